//! Layer shapes of real models, so that the benches say something about them.

// Each bench uses a part of it.
#![allow(dead_code)]

/// Tokens of a micro-batch.
pub const TOKENS: usize = 1024;

/// A model's layer: (name, hidden, MLP, heads, kv heads, head_dim, vocabulary).
pub const LAYERS: [(&str, usize, usize, usize, usize, usize, usize); 2] =
    [("29M", 512, 1536, 8, 4, 64, 8192), ("Qwen3-0.6B", 1024, 3072, 16, 8, 128, 151_936)];

/// Blocks of the models of [`GPU_LAYERS`].
pub const GPU_BLOCKS: [usize; 3] = [28, 32, 36];

/// The one of them that is also timed with so many tokens.
pub const LONG_MODEL: &str = "Llama-2-7B";
pub const LONG_TOKENS: usize = 4096;

/// As [`LAYERS`], for GPUs.
pub const GPU_LAYERS: [(&str, usize, usize, usize, usize, usize, usize); 3] = [
    ("Qwen3-0.6B", 1024, 3072, 16, 8, 128, 151_936),
    ("Llama-2-7B", 4096, 11_008, 32, 32, 128, 32_000),
    ("Qwen3-8B", 4096, 12_288, 32, 8, 128, 151_936),
];
