//! From rows of files to batches of token ids. Knows no tensors.
//!
//! rows -> [`Record`] (registry, readers, converters) -> [`Sample`] (template, tokenizer, packing) -> [`Batch`].

pub mod ask;
pub mod batch;
pub mod cache;
pub mod convert;
pub mod encode;
pub mod gguf_tokenizer;
pub mod inspect;
pub mod order;
mod pack;
pub mod read;
pub mod registry;
pub mod source;
pub mod template;
pub mod tokenizer;
mod types;

pub use types::*;
