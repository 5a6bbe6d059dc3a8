//! The norm in front of a block's halves and of the head: root-mean-square, or layer norm with a shift.

use super::weights::{Values, Vector, Weight};
use crate::error::Result;
use crate::ops::layer_norm::{self, LayerNorm};
use crate::ops::rms_norm;
use crate::tensor::Tensor;

pub(super) enum Norm {
    /// Scales.
    Rms(Vector),
    /// Scales and shifts.
    Layer(Vector, Vector),
}

impl Norm {
    pub(super) fn weights(&self) -> impl Iterator<Item = &Weight> {
        let (w, b) = match self {
            Norm::Rms(w) => (w, None),
            Norm::Layer(w, b) => (w, Some(b)),
        };
        std::iter::once(w).chain(b).map(|v| &v.0)
    }

    pub(super) fn is_trained(&self) -> bool {
        self.weights().any(Weight::is_trained)
    }

    /// `x` (tokens, hidden) -> y (tokens, hidden).
    pub(super) fn fwd(&self, x: &Tensor, values: Values, eps: f64) -> Result<Tensor> {
        match self {
            Norm::Rms(w) => rms_norm::fwd(x, w.slot(values), eps),
            Norm::Layer(w, b) => layer_norm::fwd(x, layer(w, b, values, eps)),
        }
    }

    /// The gradient of `x` from that of y, added to `add` where given; those of what is trained are added to `grads`.
    pub(super) fn bwd(
        &self,
        x: &Tensor,
        values: Values,
        eps: f64,
        dy: &Tensor,
        add: Option<Tensor>,
        grads: &mut Tensor,
    ) -> Result<Tensor> {
        match self {
            Norm::Rms(w) => rms_norm::bwd(x, w.slot(values), eps, dy, add, Some(grads)),
            Norm::Layer(w, b) => layer_norm::bwd(x, layer(w, b, values, eps), dy, add, Some(grads)),
        }
    }
}

fn layer<'a>(w: &'a Vector, b: &'a Vector, values: Values<'a>, eps: f64) -> LayerNorm<'a> {
    LayerNorm { w: w.slot(values), b: Some(b.slot(values)), eps }
}
