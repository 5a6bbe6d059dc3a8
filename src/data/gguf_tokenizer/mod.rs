//! Tokenizers as GGUF files hold them (`tokenizer.ggml.*`), to and from a `tokenizer.json`.
//!
//! Two kinds are known: `gpt2`, byte-level BPE with its merges, whose splitting of text into words is named by
//! `tokenizer.ggml.pre` (table in [`pre`]); and `llama`, SentencePiece's BPE, whose merges follow from the scores.
//! Reading makes the same JSON that a model folder holds, so that everything after it is one code.

pub mod pre;
mod read;
mod write;

pub use read::{Files, files};
pub use write::entries;

/// What a token is, as `tokenizer.ggml.token_type` counts.
pub(super) mod kind {
    pub const NORMAL: i64 = 1;
    pub const UNKNOWN: i64 = 2;
    pub const CONTROL: i64 = 3;
    pub const USER_DEFINED: i64 = 4;
    pub const UNUSED: i64 = 5;
    pub const BYTE: i64 = 6;
}
