//! A model's weights: frozen or trained, dense or NF4, and the layers made of them.

use std::ops::Range;

use super::attached::Attached;
use super::block::Context;
use super::params::Params;
use crate::error::Result;
use crate::ops::Slot;
use crate::ops::linear::{self, Linear, Lora, Matrix};
use crate::ops::philox::Stream;
use crate::quant::ggml::Blocks;
use crate::quant::{Absmax, DeviceGgml, DeviceNf4, Nf4, Quantiser};
use crate::tensor::Tensor;

/// One matrix or vector.
pub(super) enum Weight {
    Frozen(Tensor),
    /// Frozen, in memory of the CPU that kernels read in place.
    Pinned(Tensor),
    Nf4(Nf4),
    /// In the blocks of a GGUF file.
    Ggml(Blocks),
    /// The same in the memory of a device that runs kernels.
    DeviceNf4(Box<DeviceNf4>),
    DeviceGgml(Box<DeviceGgml>),
    /// Index of its entry in [`Params`].
    Trained(usize),
    /// An NF4 matrix (out, in) of a planned model.
    Planned {
        out: usize,
        inn: usize,
        double: bool,
    },
}

impl Weight {
    /// As a dense operand; None for a quantised one.
    pub(super) fn slot<'a>(&'a self, params: &'a Params) -> Option<Slot<'a>> {
        match self {
            Weight::Frozen(t) | Weight::Pinned(t) => Some(Slot::whole(t)),
            Weight::Trained(i) => Some(params.slot(*i)),
            Weight::Nf4(_)
            | Weight::Ggml(_)
            | Weight::DeviceNf4(_)
            | Weight::DeviceGgml(_)
            | Weight::Planned { .. } => None,
        }
    }

    pub(super) fn matrix<'a>(&'a self, params: &'a Params) -> Matrix<'a> {
        match self {
            Weight::Frozen(t) | Weight::Pinned(t) => Matrix::Dense(Slot::whole(t)),
            Weight::Trained(i) => Matrix::Dense(params.slot(*i)),
            Weight::Nf4(q) => Matrix::Nf4(q),
            Weight::Ggml(q) => Matrix::Ggml(q),
            Weight::DeviceNf4(q) => Matrix::DeviceNf4(q),
            Weight::DeviceGgml(q) => Matrix::DeviceGgml(q),
            Weight::Planned { out, inn, .. } => Matrix::Planned(*out, *inn),
        }
    }

    /// Adds what it takes while frozen.
    pub(super) fn add_frozen(&self, sum: &mut FrozenBytes) {
        match self {
            Weight::Frozen(t) => sum.dense += t.bytes() as u64,
            Weight::Pinned(t) => sum.pinned += t.bytes() as u64,
            Weight::Nf4(q) => sum.quantised += Nf4::bytes(q.rows, q.cols, matches!(q.absmax, Absmax::Double { .. })),
            Weight::Ggml(q) => sum.quantised += q.bytes().len() as u64,
            Weight::DeviceNf4(q) => sum.quantised += q.bytes() as u64,
            Weight::DeviceGgml(q) => sum.quantised += q.bytes() as u64,
            Weight::Planned { out, inn, double } => sum.quantised += Nf4::bytes(*out, *inn, *double),
            Weight::Trained(_) => {}
        }
    }

    /// What quantising it as it is loaded takes beside the result, where kernels do that; of a planned one.
    pub(super) fn loading_bytes(&self) -> u64 {
        match self {
            Weight::Planned { out, inn, double } => Quantiser::bytes(out * inn, *double),
            _ => 0,
        }
    }

    pub(super) fn is_trained(&self) -> bool {
        matches!(self, Weight::Trained(_))
    }
}

/// Bytes of what is frozen.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct FrozenBytes {
    /// 16- or 32-bit.
    pub dense: u64,
    /// In NF4 or blocks of a GGUF file.
    pub quantised: u64,
    /// 16-bit, in memory of the CPU that kernels read in place.
    pub pinned: u64,
}

/// A vector that is never quantised: a norm's weight.
pub(super) struct Vector(pub Weight);

/// Where a pass finds what is not frozen: the model's own parameters; and of the attached adapters those that take the
/// place of the model's own, for some rows each.
#[derive(Clone, Copy)]
pub(super) struct Values<'a> {
    pub own: &'a Params,
    /// Empty: the model's own for all rows.
    pub groups: &'a [Group<'a>],
}

/// Rows of a pass, and the attached adapter that they are read with; None: the model as it is.
pub(super) struct Group<'a> {
    pub rows: Range<usize>,
    pub adapter: Option<(usize, &'a Attached)>,
}

impl Vector {
    pub(super) fn slot<'a>(&'a self, values: Values<'a>) -> Slot<'a> {
        match self.0.slot(values.own) {
            Some(s) => s,
            None => unreachable!("only matrices of linear layers are quantised"),
        }
    }
}

/// A low-rank adapter of one layer.
pub(super) struct Adapter {
    pub a: usize,
    pub b: usize,
    pub scale: f64,
    /// Which stream of random numbers its dropout takes.
    pub module: u32,
}

/// A linear layer and its adapter.
pub(super) struct Layer {
    /// Its path in the checkpoint: `model.layers.0.mlp.up_proj`.
    pub module: String,
    pub out: usize,
    pub inn: usize,
    pub w: Weight,
    pub bias: Option<Weight>,
    pub lora: Option<Adapter>,
    /// Of each attached adapter, where it has one for this layer.
    pub attached: Vec<Option<Adapter>>,
}

/// Dropout of the adapters in a training pass: probability, seed, micro-batch counter.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Dropout {
    pub rate: f64,
    pub seed: u64,
    pub step: u32,
}

impl Layer {
    /// With the model's own adapter.
    pub(super) fn linear<'a>(&'a self, values: Values<'a>, dropout: Option<Dropout>) -> Linear<'a> {
        Linear {
            w: self.w.matrix(values.own),
            bias: self.bias.as_ref().and_then(|b| b.slot(values.own)),
            lora: self.lora.as_ref().map(|l| l.slots(values.own, dropout)),
        }
    }

    /// `x` (rows, in) -> y (rows, out), plus `add` where given.
    pub(super) fn fwd(&self, x: &Tensor, c: Context, add: Option<&Tensor>) -> Result<(Tensor, linear::Saved)> {
        if c.few_rows {
            return Ok((self.decode(x, c, add)?, linear::Saved::default()));
        }
        linear::fwd(x, &self.of_sequence(c), add)
    }

    /// As [`Layer::fwd`] of layers with the same input.
    pub(super) fn fwd_group<const N: usize>(
        layers: [&Layer; N],
        x: &Tensor,
        c: Context,
    ) -> Result<[(Tensor, linear::Saved); N]> {
        if !c.few_rows {
            return linear::fwd_group(x, layers.map(|layer| layer.of_sequence(c)), [None; N]);
        }
        let made: Vec<_> = layers.iter().map(|layer| layer.fwd(x, c, None)).collect::<Result<_>>()?;
        let Ok(made) = <[_; N]>::try_from(made) else { unreachable!("one a layer") };
        Ok(made)
    }

    /// Of the few rows of a step of generation.
    fn decode(&self, x: &Tensor, c: Context, add: Option<&Tensor>) -> Result<Tensor> {
        let layer = self.linear(c.params, c.dropout);
        let groups: Vec<linear::Group> =
            c.params.groups.iter().map(|g| (g.rows.clone(), self.lora_of(g, &layer))).collect();
        linear::decode_grouped(x, &layer, &groups, add)
    }

    /// For a pass whose rows all have one adapter: the model's own, or that of the sequence.
    fn of_sequence<'a>(&'a self, c: Context<'a>) -> Linear<'a> {
        let layer = self.linear(c.params, c.dropout);
        match c.params.groups {
            [] => layer,
            [first, ..] => Linear { lora: self.lora_of(first, &layer), ..layer },
        }
    }

    fn lora_of<'a>(&'a self, group: &Group<'a>, own: &Linear<'a>) -> Option<Lora<'a>> {
        match group.adapter {
            Some((i, attached)) => {
                self.attached.get(i).and_then(Option::as_ref).map(|a| a.slots(&attached.params, None))
            }
            None => own.lora,
        }
    }
}

impl Adapter {
    fn slots<'a>(&self, params: &'a Params, dropout: Option<Dropout>) -> Lora<'a> {
        Lora {
            a: params.slot(self.a),
            b: params.slot(self.b),
            scale: self.scale,
            dropout: dropout
                .filter(|d| d.rate > 0.0)
                .map(|d| (d.rate, Stream { seed: d.seed, step: d.step, module: self.module })),
        }
    }
}
