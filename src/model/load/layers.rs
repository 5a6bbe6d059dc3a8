//! A family's blocks and layers, each with its adapter.

use super::names::matches_module;
use super::{Builder, Init, Role};
use crate::config::FinetuningType;
use crate::error::Result;
use crate::format::adapter::Part;
use crate::model::block::Block;
use crate::model::mlp::{Mlp, Up};
use crate::model::names::{MlpLayers, QkvLayers};
use crate::model::norm::Norm;
use crate::model::params::Entry;
use crate::model::qkv::Qkv;
use crate::model::spec::NormKind;
use crate::model::weights::{Adapter, Layer, Vector, Weight};

impl Builder<'_> {
    pub(super) fn block(&mut self, i: usize) -> Result<Block> {
        let s = self.spec.clone();
        let names = s.names;
        let at = |part: &str| format!("{}.{i}.{part}", names.layers);
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let norm_of_head = |b: &mut Self, name: &str| match s.qk_norm {
            true => b.vector(&at(name), s.head_dim).map(Some),
            false => Ok(None),
        };
        Ok(Block {
            norm1: self.norm(&at(names.norm1))?,
            qkv: match names.qkv {
                QkvLayers::Separate { q: name_q, k, v } => Qkv::Separate {
                    q: self.layer(&at(name_q), q, s.hidden, s.qkv_bias)?,
                    k: self.layer(&at(k), kv, s.hidden, s.qkv_bias)?,
                    v: self.layer(&at(v), kv, s.hidden, s.qkv_bias)?,
                },
                QkvLayers::Fused(name) => {
                    Qkv::Fused(self.layer(&at(name), q + 2 * kv, s.hidden, s.qkv_bias)?, [q, kv, kv])
                }
            },
            q_norm: norm_of_head(self, "self_attn.q_norm")?,
            k_norm: norm_of_head(self, "self_attn.k_norm")?,
            o: self.layer(&at(names.o), s.hidden, q, s.o_bias)?,
            norm2: self.norm(&at(names.norm2))?,
            mlp: Mlp {
                up: match names.mlp {
                    MlpLayers::Gated { gate, up } => Up::Gated {
                        gate: self.layer(&at(gate), s.mlp, s.hidden, s.mlp_bias)?,
                        up: self.layer(&at(up), s.mlp, s.hidden, s.mlp_bias)?,
                    },
                    MlpLayers::GatedFused(name) => Up::Fused(self.layer(&at(name), 2 * s.mlp, s.hidden, s.mlp_bias)?),
                    MlpLayers::Plain(name, form) => {
                        Up::Plain(self.layer(&at(name), s.mlp, s.hidden, s.mlp_bias)?, form)
                    }
                },
                down: self.layer(&at(names.down), s.hidden, s.mlp, s.mlp_bias)?,
            },
            window: s.windows.get(i).copied().flatten(),
        })
    }

    fn layer(&mut self, module: &str, out: usize, inn: usize, bias: bool) -> Result<Layer> {
        let w = self.parameter(module, "weight", &format!("{module}.weight"), &[out, inn], Role::Linear)?;
        let bias = match bias {
            true => Some(self.parameter(module, "bias", &format!("{module}.bias"), &[out], Role::Other)?),
            false => None,
        };
        let lora = self.lora(module, out, inn)?;
        Ok(Layer { module: module.to_string(), out, inn, w, bias, lora, attached: Vec::new() })
    }

    fn vector(&mut self, module: &str, len: usize) -> Result<Vector> {
        self.parameter(module, "weight", &format!("{module}.weight"), &[len], Role::Other).map(Vector)
    }

    pub(super) fn norm(&mut self, module: &str) -> Result<Norm> {
        let len = self.spec.hidden;
        let w = self.vector(module, len)?;
        Ok(match self.spec.norm {
            NormKind::Rms => Norm::Rms(w),
            NormKind::Layer => {
                let b = self.parameter(module, "bias", &format!("{module}.bias"), &[len], Role::Other)?;
                Norm::Layer(w, Vector(b))
            }
        })
    }

    pub(super) fn weight(&mut self, module: &str, rows: usize, cols: usize, role: Role) -> Result<Weight> {
        self.parameter(module, "weight", &format!("{module}.weight"), &[rows, cols], role)
    }

    fn lora(&mut self, module: &str, out: usize, inn: usize) -> Result<Option<Adapter>> {
        let m = self.o.method;
        if m.finetuning_type != FinetuningType::Lora {
            return Ok(None);
        }
        let (name_a, name_b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
        let (r, scale, from_a, from_b) = match self.trained {
            Some((i, file)) => {
                let named = file.tensor_of(module, Part::A).zip(file.tensor_of(module, Part::B));
                let Some((a, b)) = named else { return Ok(None) };
                let (a, b) = (Init::Adapter(i, a.to_string()), Init::Adapter(i, b.to_string()));
                (file.config.rank_of(module), file.config.scale_of(module), a, b)
            }
            None => {
                if !m.lora_target.iter().any(|t| t == "all" || matches_module(module, t)) {
                    return Ok(None);
                }
                let r = m.lora_rank;
                let scale = m.lora_alpha / if m.use_rslora { (r as f64).sqrt() } else { r as f64 };
                (r, scale, Init::KaimingUniform { fan_in: inn }, Init::Zero)
            }
        };
        let a = self.entry(name_a, &[r, inn], true, from_a);
        let b = self.entry(name_b, &[out, r], true, from_b);
        self.modules += 1;
        Ok(Some(Adapter { a, b, scale, module: self.modules - 1 }))
    }

    pub(super) fn entry(&mut self, name: String, shape: &[usize], decay: bool, from: Init) -> usize {
        let offset = self.entries.last().map_or(0, |e| e.range().end);
        let (rows, cols) = if let [r, c] = *shape { (r, c) } else { (1, shape.iter().product()) };
        self.entries.push(Entry { name, offset, rows, cols, shape: shape.to_vec(), decay, turned: false });
        self.init.push(from);
        self.entries.len() - 1
    }
}
