//! The second half of a block: a gated MLP, its two inputs from one layer each or from one whose columns they are, or a
//! plain one with GELU.

use super::block::{Context, wanted};
use super::weights::Layer;
use crate::error::Result;
use crate::ops::gelu::{self, Gelu};
use crate::ops::linear::{self, Dx};
use crate::ops::{columns, swiglu};
use crate::tensor::Tensor;

pub(super) struct Mlp {
    pub up: Up,
    pub down: Layer,
}

/// What leads to the activation.
#[allow(clippy::large_enum_variant)] // one a block: an indirection would gain nothing
pub(super) enum Up {
    Gated {
        gate: Layer,
        up: Layer,
    },
    /// The first half of its columns is gate, the second up.
    Fused(Layer),
    Plain(Layer, Gelu),
}

/// The activation's inputs, or their gradients, and the adapters' intermediates.
pub(super) enum Hidden {
    Gated { gate: Tensor, up: Tensor, saved: [linear::Saved; 2] },
    Fused { gate: Tensor, up: Tensor, saved: linear::Saved },
    Plain { x: Tensor, form: Gelu, saved: linear::Saved },
}

impl Hidden {
    /// What the layer `down` takes.
    fn activated(&self) -> Result<Tensor> {
        match self {
            Hidden::Gated { gate, up, .. } | Hidden::Fused { gate, up, .. } => swiglu::fwd(gate, up),
            Hidden::Plain { x, form, .. } => gelu::fwd(x, *form),
        }
    }

    /// The gradients of the activation's inputs, in their places, from that of its result.
    fn bwd(self, d: &Tensor) -> Result<Self> {
        Ok(match self {
            Hidden::Gated { gate, up, saved } => {
                let (gate, up) = swiglu::bwd(gate, up, d)?;
                Hidden::Gated { gate, up, saved }
            }
            Hidden::Fused { gate, up, saved } => {
                let (gate, up) = swiglu::bwd(gate, up, d)?;
                Hidden::Fused { gate, up, saved }
            }
            Hidden::Plain { x, form, saved } => Hidden::Plain { x: gelu::bwd(x, d, form)?, form, saved },
        })
    }
}

impl Mlp {
    pub(super) fn layers(&self) -> Vec<&Layer> {
        match &self.up {
            Up::Gated { gate, up } => vec![gate, up, &self.down],
            Up::Fused(up) | Up::Plain(up, _) => vec![up, &self.down],
        }
    }

    pub(super) fn layers_mut(&mut self) -> Vec<&mut Layer> {
        match &mut self.up {
            Up::Gated { gate, up } => vec![gate, up, &mut self.down],
            Up::Fused(up) | Up::Plain(up, _) => vec![up, &mut self.down],
        }
    }

    /// `h` (tokens, hidden) -> the activation's inputs.
    pub(super) fn up(&self, h: &Tensor, c: Context) -> Result<Hidden> {
        match &self.up {
            Up::Gated { gate, up } => {
                let [(gate, saved_gate), (up, saved_up)] = Layer::fwd_group([gate, up], h, c)?;
                Ok(Hidden::Gated { gate, up, saved: [saved_gate, saved_up] })
            }
            Up::Fused(layer) => {
                let (y, saved) = layer.fwd(h, c, None)?;
                let [gate, up] = columns::split(&y, [c.spec.mlp; 2])?;
                Ok(Hidden::Fused { gate, up, saved })
            }
            Up::Plain(layer, form) => {
                let (x, saved) = layer.fwd(h, c, None)?;
                Ok(Hidden::Plain { x, form: *form, saved })
            }
        }
    }

    /// mid + down(activation).
    pub(super) fn down(&self, mid: &Tensor, s: &Hidden, c: Context) -> Result<(Tensor, linear::Saved)> {
        let a = s.activated()?;
        self.down.fwd(&a, c, Some(mid))
    }

    /// The gradients of the activation's inputs from that of [`Mlp::down`]'s result.
    pub(super) fn down_bwd(
        &self,
        s: Hidden,
        down: linear::Saved,
        dy: &Tensor,
        c: Context,
        grads: &mut Tensor,
    ) -> Result<Hidden> {
        let a = s.activated()?;
        let da = linear::bwd(down, &a, &self.down.linear(c.params, c.dropout), dy, Dx::New, grads)?;
        drop(a);
        s.bwd(&wanted(da))
    }

    /// The gradient of `h` from those of the activation's inputs.
    pub(super) fn up_bwd(&self, d: Hidden, h: &Tensor, c: Context, grads: &mut Tensor) -> Result<Tensor> {
        match (&self.up, d) {
            (Up::Gated { gate, up }, Hidden::Gated { gate: dgate, up: dup, saved }) => {
                let layers = [gate, up].map(|layer| layer.linear(c.params, c.dropout));
                linear::bwd_group(saved, h, layers, [&dgate, &dup], Dx::New, grads).map(wanted)
            }
            (Up::Fused(layer), Hidden::Fused { gate, up, saved }) => {
                let dy = columns::join([gate, up])?;
                linear::bwd(saved, h, &layer.linear(c.params, c.dropout), &dy, Dx::New, grads).map(wanted)
            }
            (Up::Plain(layer, _), Hidden::Plain { x, saved, .. }) => {
                linear::bwd(saved, h, &layer.linear(c.params, c.dropout), &x, Dx::New, grads).map(wanted)
            }
            _ => unreachable!("made by the same layers"),
        }
    }
}
