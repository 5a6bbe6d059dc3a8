//! Fine-tune decoder-only language models with LoRA and QLoRA, from LLaMA-Factory's YAML files.
//!
//! Who may import whom (left only; `tests/layers.rs` reads the `use` lines and fails otherwise):
//! `error < config < format < data < device < tensor < quant < ops < model < train < cli`.

pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod format;
pub mod infer;
pub mod model;
pub mod ops;
pub mod quant;
pub mod tensor;
pub mod train;

pub use config::Config;
pub use error::{Error, Result};
