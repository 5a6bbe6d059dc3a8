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
                let [(q, saved_q), (k, saved_k), (v, saved_v)] = Layer::fwd_group([q, k, v], h, c)?;
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
        let to = if through { Dx::New } else { Dx::Skip };
        match (self, saved) {
            (Qkv::Separate { q, k, v }, Saved::Separate(saved)) => {
                let layers = [q, k, v].map(|layer| layer.linear(c.params, c.dropout));
                linear::bwd_group(saved, h, layers, [&dq, &dk, &dv], to, grads)
            }
            (Qkv::Fused(layer, _), Saved::Fused(saved)) => {
                let dy = columns::join([dq, dk, dv])?;
                linear::bwd(saved, h, &layer.linear(c.params, c.dropout), &dy, to, grads)
            }
            _ => unreachable!("saved by the same layers"),
        }
    }
}
