//! Fine-tune decoder-only language models with LoRA and QLoRA, from LLaMA-Factory's YAML files.
//!
//! The program is a thin shell over this library: [`config::load`] or [`config::from_str`] make a checked [`Config`],
//! [`train::train`] runs it and tells an observer of each step. `examples/embed.rs` does that from another program.
//! Nothing here prints or ends the process; warnings go through the `log` crate.
//!
//! # How a row becomes a trained adapter
//!
//! | from | in | to |
//! |---|---|---|
//! | a file of rows, whatever its format | [`data::source`], `data/convert` | [`data::Record`]: messages with roles |
//! | messages | [`data::template`], [`data::tokenizer`] | [`data::Sample`]: token ids, and which of them are trained on |
//! | samples in an epoch's order | [`data::batch`] | [`data::Batch`]: sequences end to end, their bounds and positions; no padding |
//! | ids | [`ops::embedding`], `model/block` forward | x (tokens, hidden), and what each block's backward needs |
//! | x at the trained positions only | [`ops::linear_cross_entropy`] | the summed loss; logits exist a chunk at a time |
//! | the loss | `model/block` backward, last block first | one flat gradient, added to |
//! | the gradient of a whole step | [`ops::grad_norm`], [`ops::adamw`] | changed values, moments |
//! | values, moments, state | [`train::checkpoint_dir`] | a checkpoint that is whole or not there |
//!
//! # Where a thing is
//!
//! | looked for | place |
//! |---|---|
//! | a key: whether it is known, its type, default and bounds | [`config::table`], `config/validate/`, [`config::Config`] |
//! | a file format: safetensors, config.json, PEFT's adapters, the hub | [`format`] |
//! | a data set's description, a template, the order of rows | [`data::registry`], [`data::template`], [`data::order`] |
//! | memory, threads, matrix products for each instruction set | [`device`] |
//! | the 4-bit code | [`quant`] |
//! | one operation, its formula and its backward | `ops/<name>/mod.rs`, its arithmetic in `cpu.rs` beside it |
//! | a model family, as data | `model/families/` |
//! | bytes and steps before a run, the loop, its files | [`train::plan`], `train/trainer`, [`train::log_files`] |
//! | blocks of GGUF files, their tokenizers and names | [`quant::ggml`], [`data::gguf_tokenizer`], [`format::gguf`] |
//! | tokens from a model: cache, batches, sampling, text as it comes | [`model::Cache`], [`infer`] |
//! | requests that join and leave a running batch | [`infer::Engine`] |
//! | predictions, scores, benchmarks | [`eval`] |
//! | the server: OpenAI's protocol, the thread that owns the model | [`serve`], [`serve::worker`] |
//! | merged folders, GGUF files, Modelfiles | [`export`] |
//! | a subcommand | `cli/`, a file each |
//!
//! # Who may import whom
//!
//! Left only; `tests/layers.rs` reads the source and fails otherwise:
//! `error < config < format < data < device < tensor < quant < ops < model < {train, infer} < {eval, export} < serve < cli`.

pub mod cli;
pub mod config;
pub mod data;
pub mod device;
pub mod error;
pub mod eval;
pub mod export;
pub mod format;
pub mod infer;
pub mod model;
pub mod ops;
pub mod quant;
pub mod serve;
pub mod tensor;
pub mod train;

pub use config::Config;
pub use error::{Error, Result};
