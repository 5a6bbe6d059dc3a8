//! What distinguishes one decoder from another, as data.

use super::names::{self, MlpLayers, Names, QkvLayers};
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
    pub norm: NormKind,
    /// Epsilon of every norm.
    pub eps: f64,
    pub position: Position,
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
    /// What its modules are called, and which are fused.
    pub names: Names,
    /// The matrices of the blocks' linear layers lie in the checkpoint as (in, out).
    pub transposed: bool,
}

/// The norms in front of a block's halves and of the head.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NormKind {
    /// Root-mean-square, with scales.
    Rms,
    /// Layer norm, with scales and shifts.
    Layer,
}

/// How a token's position reaches the model.
#[derive(Debug, Clone, PartialEq)]
pub enum Position {
    /// q and k are rotated.
    Rope(Rope),
    /// A row of the matrix `module` (rows, hidden) is added to the embedding.
    Learned { module: &'static str, rows: usize },
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
        let matrices = if let MlpLayers::Plain(..) = self.names.mlp { 2 } else { 3 };
        self.layers * (attention + matrices * self.hidden * self.mlp)
    }

    /// Modules outside the blocks, by the last part of their paths.
    pub fn outside(&self) -> Vec<&'static str> {
        let positions = match self.position {
            Position::Learned { module, .. } => Some(names::last(module)),
            Position::Rope(_) => None,
        };
        [names::last(self.names.embed), "lm_head", names::last(self.names.norm)].into_iter().chain(positions).collect()
    }

    /// How many tensors a checkpoint has for it.
    pub(super) fn tensors(&self) -> usize {
        let linears = self.names.linears().len();
        let qkv = if let QkvLayers::Fused(_) = self.names.qkv { 1 } else { 3 };
        let flags = [(self.qkv_bias, qkv), (self.o_bias, 1), (self.mlp_bias, linears - qkv - 1), (self.qk_norm, 2)];
        let more: usize = flags.iter().filter(|(there, _)| *there).map(|(_, n)| n).sum();
        let norm = if self.norm == NormKind::Rms { 1 } else { 2 };
        let outside =
            1 + norm + usize::from(!self.tied) + usize::from(matches!(self.position, Position::Learned { .. }));
        outside + self.layers * (linears + 2 * norm + more)
    }

    /// What all families have in common, read from a config.
    pub(super) fn common(family: &'static str, c: &HfConfig, position: Position) -> Self {
        Spec {
            family,
            vocab: c.vocab_size,
            hidden: c.hidden_size,
            mlp: c.intermediate_size,
            layers: c.num_hidden_layers,
            heads: c.num_attention_heads,
            kv_heads: c.num_key_value_heads,
            head_dim: c.head_dim,
            norm: NormKind::Rms,
            eps: c.rms_norm_eps,
            position,
            windows: vec![None; c.num_hidden_layers],
            qk_norm: false,
            qkv_bias: c.attention_bias,
            o_bias: c.attention_bias,
            mlp_bias: c.mlp_bias,
            tied: c.tie_word_embeddings,
            names: names::LLAMA,
            transposed: false,
        }
    }
}
