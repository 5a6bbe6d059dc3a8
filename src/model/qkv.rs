//! The layers that q, k and v come from: one each, or one whose columns they are. A fused layer stays one layer, so that
//! an adapter on it is the one that PEFT makes.

use super::block::Context;
use super::weights::Layer;
use crate::error::Result;
use crate::ops::columns;
use crate::ops::linear::{self, Dx};
use crate::tensor::Tensor;

#[allow(clippy::large_enum_variant)] // one a block: an indirection would gain nothing
pub(super) enum Qkv {
    Separate {
        q: Layer,
        k: Layer,
        v: Layer,
    },
    /// The layer, and how many of its columns are q's, k's and v's.
    Fused(Layer, [usize; 3]),
}

/// The adapters' intermediates.
#[allow(clippy::large_enum_variant)] // one a block: an indirection would gain nothing
pub(super) enum Saved {
    Separate([linear::Saved; 3]),
    Fused(linear::Saved),
}

impl Qkv {
    pub(super) fn layers(&self) -> Vec<&Layer> {
        match self {
            Qkv::Separate { q, k, v } => vec![q, k, v],
            Qkv::Fused(layer, _) => vec![layer],
        }
    }

    pub(super) fn layers_mut(&mut self) -> Vec<&mut Layer> {
        match self {
            Qkv::Separate { q, k, v } => vec![q, k, v],
            Qkv::Fused(layer, _) => vec![layer],
        }
    }

    /// `h` (tokens, hidden) -> q, k, v (tokens, heads * head_dim each).
    pub(super) fn fwd(&self, h: &Tensor, c: Context) -> Result<([Tensor; 3], Saved)> {
        match self {
            Qkv::Separate { q, k, v } => {
                let (q, saved_q) = q.fwd(h, c, None)?;
                let (k, saved_k) = k.fwd(h, c, None)?;
                let (v, saved_v) = v.fwd(h, c, None)?;
                Ok(([q, k, v], Saved::Separate([saved_q, saved_k, saved_v])))
            }
            Qkv::Fused(layer, widths) => {
                let (y, saved) = layer.fwd(h, c, None)?;
                Ok((columns::split(&y, *widths)?, Saved::Fused(saved)))
            }
        }
    }

    /// The gradient of `h` from those of q, k and v, if anything `through` here needs it.
    pub(super) fn bwd(
        &self,
        saved: Saved,
        h: &Tensor,
        [dq, dk, dv]: [Tensor; 3],
        c: Context,
        through: bool,
        grads: &mut Tensor,
    ) -> Result<Option<Tensor>> {
        match (self, saved) {
            (Qkv::Separate { q, k, v }, Saved::Separate([saved_q, saved_k, saved_v])) => {
                let mut dh = None;
                for (saved, layer, d) in [(saved_q, q, dq), (saved_k, k, dk), (saved_v, v, dv)] {
                    let to = match dh.take() {
                        _ if !through => Dx::Skip,
                        None => Dx::New,
                        Some(sum) => Dx::AddTo(sum),
                    };
                    dh = linear::bwd(saved, h, &layer.linear(c.params, c.dropout), &d, to, grads)?;
                }
                Ok(dh)
            }
            (Qkv::Fused(layer, _), Saved::Fused(saved)) => {
                let dy = columns::join([dq, dk, dv])?;
                let to = if through { Dx::New } else { Dx::Skip };
                linear::bwd(saved, h, &layer.linear(c.params, c.dropout), &dy, to, grads)
            }
            _ => unreachable!("saved by the same layers"),
        }
    }
}
