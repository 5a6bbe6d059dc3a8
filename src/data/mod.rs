//! From rows of files to batches of token ids. Knows no tensors.
//!
//! rows -> [`Record`] (registry, readers, converters) -> [`Sample`] (template, tokenizer, packing) -> [`Batch`].

pub mod convert;
pub mod order;
pub mod read;
pub mod registry;
pub mod source;
mod types;

pub use types::*;
