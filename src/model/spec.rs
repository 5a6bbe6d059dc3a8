//! What distinguishes one decoder from another, as data.

use crate::format::HfConfig;

/// The axes along which the supported families differ. One block (`block.rs`) computes all of them.
#[derive(Debug, Clone, PartialEq)]
pub struct Spec {
    /// `model_type` of the checkpoint.
    pub family: &'static str,
    pub vocab: usize,
    pub hidden: usize,
    /// Width of the MLP.
    pub mlp: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Epsilon of every RMS norm.
    pub eps: f64,
    pub rope: Rope,
    /// For each layer the keys that a query sees, itself included; None: all before it.
    pub windows: Vec<Option<usize>>,
    /// An RMS norm on each head of q and k, before the rotation.
    pub qk_norm: bool,
    /// Biases on q, k and v.
    pub qkv_bias: bool,
    /// Bias on the attention's output projection.
    pub o_bias: bool,
    /// Biases in the MLP.
    pub mlp_bias: bool,
    /// The head is the embedding.
    pub tied: bool,
}

/// Rotary embedding of a model.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Radians per position, (head_dim / 2).
    pub freq: Vec<f32>,
    /// Scale of cos and sin (yarn's attention factor; 1 otherwise).
    pub factor: f64,
}

impl Spec {
    /// Parameters of the linear layers inside the blocks, the head and embedding not counted.
    pub fn linear_params(&self) -> usize {
        let attention = self.hidden * self.head_dim * (2 * self.heads + 2 * self.kv_heads);
        self.layers * (attention + 3 * self.hidden * self.mlp)
    }

    /// What all families have in common, read from a config.
    pub(super) fn common(family: &'static str, c: &HfConfig, rope: Rope) -> Self {
        Spec {
            family,
            vocab: c.vocab_size,
            hidden: c.hidden_size,
            mlp: c.intermediate_size,
            layers: c.num_hidden_layers,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            eps: c.rms_norm_eps,
            rope,
            windows: vec![None; c.num_hidden_layers],
            qk_norm: false,
            qkv_bias: c.attention_bias,
            o_bias: c.attention_bias,
            mlp_bias: c.mlp_bias,
            tied: c.tie_word_embeddings,
        }
    }
}
