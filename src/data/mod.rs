//! From rows of files to batches of token ids. Knows no tensors.
//!
//! rows -> [`Record`] (registry, readers, converters) -> [`Sample`] (template, tokenizer, packing) -> [`Batch`].

mod types;

pub use types::*;
