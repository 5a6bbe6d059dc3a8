//! Bytes on disk and on the hub <-> named host tensors and settings.
//!
//! [`safetensors`] reads and writes weights, [`hf_config`] a model's `config.json`, [`adapter`] PEFT adapters, [`hub`]
//! fetches what is not on the disk. Nothing here computes.

pub mod adapter;
pub mod atomic;
pub mod convert;
pub mod gguf;
pub mod hf_config;
pub mod hub;
mod mmap;
pub mod safetensors;

pub use adapter::{AdapterConfig, AdapterFile, Sidecar};
pub use hf_config::HfConfig;
pub use safetensors::{Checkpoint, Dtype, TensorSpec, TensorView};
