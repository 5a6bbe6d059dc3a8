//! From rows of files to batches of token ids. Knows no tensors.
//!
//! rows -> [`Record`] (registry, readers, converters) -> [`Sample`] (template, tokenizer, packing) -> [`Batch`].

pub mod order;
mod types;

pub use types::*;
