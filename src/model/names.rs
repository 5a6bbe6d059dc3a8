//! What the parts of a family's checkpoint are called, and with that which of its layers are fused.

use crate::ops::gelu::Gelu;

/// Paths of modules: of those outside the blocks whole, of those inside from the block on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Names {
    pub embed: &'static str,
    /// What the number of a block follows.
    pub layers: &'static str,
    /// The final norm.
    pub norm: &'static str,
    pub norm1: &'static str,
    pub qkv: QkvLayers,
    /// The attention's output projection.
    pub o: &'static str,
    pub norm2: &'static str,
    pub mlp: MlpLayers,
    /// The MLP's output projection.
    pub down: &'static str,
    /// What some checkpoints leave out in front of every name; "" otherwise.
    pub prefix: &'static str,
}

/// The linear layers that q, k and v come from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum QkvLayers {
    Separate {
        q: &'static str,
        k: &'static str,
        v: &'static str,
    },
    /// One whose columns are q's, then k's, then v's.
    Fused(&'static str),
}

/// The linear layers in front of the MLP's activation.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MlpLayers {
    /// silu(gate) * up.
    Gated { gate: &'static str, up: &'static str },
    /// The same of one layer whose columns are gate's, then up's.
    GatedFused(&'static str),
    /// gelu(up).
    Plain(&'static str, Gelu),
}

/// Llama, and most families after it.
pub(super) const LLAMA: Names = Names {
    embed: "model.embed_tokens",
    layers: "model.layers",
    norm: "model.norm",
    norm1: "input_layernorm",
    qkv: QkvLayers::Separate { q: "self_attn.q_proj", k: "self_attn.k_proj", v: "self_attn.v_proj" },
    o: "self_attn.o_proj",
    norm2: "post_attention_layernorm",
    mlp: MlpLayers::Gated { gate: "mlp.gate_proj", up: "mlp.up_proj" },
    down: "mlp.down_proj",
    prefix: "",
};

impl Names {
    /// The linear layers of a block, in the order of the forward pass.
    pub fn linears(&self) -> Vec<&'static str> {
        let qkv = match self.qkv {
            QkvLayers::Separate { q, k, v } => vec![q, k, v],
            QkvLayers::Fused(name) => vec![name],
        };
        let up = match self.mlp {
            MlpLayers::Gated { gate, up } => vec![gate, up],
            MlpLayers::GatedFused(name) | MlpLayers::Plain(name, _) => vec![name],
        };
        qkv.into_iter().chain([self.o]).chain(up).chain([self.down]).collect()
    }

    /// The last parts of their paths, each once: `q_proj`.
    pub fn linear_names(&self) -> Vec<&'static str> {
        let mut names: Vec<&str> = Vec::new();
        for name in self.linears().into_iter().map(last) {
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }

    /// The parts of a block: `self_attn`, `mlp`, and its norms.
    pub fn parts(&self) -> [&'static str; 4] {
        let first = |path: &'static str| path.split('.').next().unwrap_or(path);
        [first(self.o), first(self.down), self.norm1, self.norm2]
    }

    /// `model.layers.3.mlp.up_proj` -> (3, `mlp.up_proj`).
    pub fn layer_and_part<'m>(&self, module: &'m str) -> Option<(usize, &'m str)> {
        let (index, part) = module.strip_prefix(self.layers)?.strip_prefix('.')?.split_once('.')?;
        Some((index.parse().ok()?, part))
    }

    /// The shortest names that mean these modules and no other linear layer: the last part of each path, unless a linear
    /// layer that is not among them shares it.
    pub fn targets<'m>(&self, modules: &[&'m str]) -> Vec<&'m str> {
        let part = |module: &'m str| self.layer_and_part(module).map_or(module, |(_, part)| part);
        let parts: Vec<&str> = modules.iter().map(|m| part(m)).collect();
        let mut names = Vec::new();
        for &path in &parts {
            let shared = self.linears().iter().any(|l| last(l) == last(path) && !parts.contains(l));
            let name = if shared { path } else { last(path) };
            if !names.contains(&name) {
                names.push(name);
            }
        }
        names
    }
}

/// The last part of a path.
pub(super) fn last(path: &str) -> &str {
    path.rsplit('.').next().unwrap_or(path)
}
