//! Layer shapes of real models, so that the benches say something about them.

/// Tokens of a micro-batch.
pub const TOKENS: usize = 1024;

/// A model's layer: (name, hidden, MLP, heads, kv heads, head_dim, vocabulary).
pub const LAYERS: [(&str, usize, usize, usize, usize, usize, usize); 2] =
    [("29M", 512, 1536, 8, 4, 64, 8192), ("Qwen3-0.6B", 1024, 3072, 16, 8, 128, 151_936)];
