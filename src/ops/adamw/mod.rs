//! AdamW over one flat buffer, as PyTorch's: Loshchilov & Hutter 2019, arXiv:1711.05101.
//!
//! g' = clip * g; p *= 1 - lr * weight_decay (where it applies); m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'^2;
//! p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps).

use std::ops::Range;

use crate::device::Exec;
use crate::device::par::{for_rows, rows_of};
use crate::device::simd::wide;
use crate::error::Result;
use crate::tensor::{Real, Tensor};

/// The constants of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// Factor on the gradient: min(1, max_norm / (norm + 1e-6)).
    pub clip: f64,
    /// Counts from 1.
    pub step: u64,
}

/// Parameters, gradient and moments, all flat and of one length, in f32 (f64 in the oracle).
pub struct Flat<'a> {
    pub p: &'a mut Tensor,
    pub m: &'a mut Tensor,
    pub v: &'a mut Tensor,
    pub g: &'a Tensor,
}

/// One step over the elements `range`; `decay` says whether weight decay applies to them.
///
/// # Errors
/// [`crate::Error::Shape`] unless all four have one shape and dtype.
pub fn step(flat: Flat, range: Range<usize>, a: AdamW, decay: bool) -> Result<()> {
    let (rows, cols, dtype) = (flat.p.rows(), flat.p.cols(), flat.p.dtype());
    flat.m.expect("adamw m", rows, cols, dtype)?;
    flat.v.expect("adamw v", rows, cols, dtype)?;
    flat.g.expect("adamw g", rows, cols, dtype)?;
    match dtype {
        crate::tensor::DType::F64 => cpu::<f64>(flat, range, a, decay),
        _ => cpu::<f32>(flat, range, a, decay),
    }
    Ok(())
}

fn cpu<A: Real>(flat: Flat, range: Range<usize>, a: AdamW, decay: bool) {
    let device = flat.p.device().clone();
    let Exec::Cpu(pool) = device.exec() else { return };
    let (b1, b2) = (A::of(a.beta1), A::of(a.beta2));
    let (c1, c2) = (A::of(1.0 - a.beta1), A::of(1.0 - a.beta2));
    let t = a.step as f64;
    let step_size = A::of(a.lr / (1.0 - a.beta1.powf(t)));
    let root2 = A::of((1.0 - a.beta2.powf(t)).sqrt());
    let shrink = A::of(if decay { 1.0 - a.lr * a.weight_decay } else { 1.0 });
    let (eps, clip) = (A::of(a.eps), A::of(a.clip));
    let g = &flat.g.slice::<A>()[range.clone()];
    let (p, m, v) = (flat.p.slice_mut::<A>(), flat.m.slice_mut::<A>(), flat.v.slice_mut::<A>());
    let outs = (rows_of(&mut p[range.clone()], 1), rows_of(&mut m[range.clone()], 1), rows_of(&mut v[range], 1));
    for_rows(pool, 4096, outs, |r, (p, m, v)| {
        wide(|| {
            for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(&g[r]) {
                let g = *g * clip;
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * g * g;
                *p = *p * shrink - step_size * *m / (v.sqrt() / root2 + eps);
            }
        })
    });
}
