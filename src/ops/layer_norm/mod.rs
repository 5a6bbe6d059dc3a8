//! Layer norm of rows: h = (x - mean) * rstd, y = h * w + b, rstd = 1 / sqrt(mean (x - mean)^2 + eps).
//! Ba, Kiros & Hinton 2016, arXiv:1607.06450.
//!
//! Backward, with g = dy * w: dx = rstd * (g - mean g - h * mean (g * h)); dw += sum over rows of dy * h; db += that of dy.

mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::Exec;
use crate::error::Result;
use crate::ops::Slot;
use crate::tensor::{DType, Tensor};

/// The scales and shifts of the columns, and what is added to the variance.
#[derive(Clone, Copy)]
pub struct LayerNorm<'a> {
    pub w: Slot<'a>,
    pub b: Option<Slot<'a>>,
    pub eps: f64,
}

impl LayerNorm<'_> {
    fn is_trained(&self) -> bool {
        self.w.grad || self.b.is_some_and(|b| b.grad)
    }
}

/// `x` (rows, cols) -> `y` (rows, cols).
///
/// # Errors
/// [`crate::Error::Shape`] unless `w` and `b` are (1, cols).
pub fn fwd(x: &Tensor, norm: LayerNorm) -> Result<Tensor> {
    check(x, norm)?;
    let mut y = x.like()?;
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            cpu::fwd::<T>(pool, y.slice_mut(), x.slice(), norm.w.slice(), norm.b.map(|b| b.slice()), norm.eps)
        }),
        Exec::Kernels(l) => launch::fwd(l, &mut y, x, norm)?,
        Exec::Plan(p) => p.flops(7.0 * x.len() as f64),
    }
    Ok(y)
}

/// `dx` from `dy` and the `x` that `fwd` saw; the gradients of what is trained are added to `grads`. With `add`, `dx` is
/// added to it (a residual's gradient), in place.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(
    x: &Tensor,
    norm: LayerNorm,
    dy: &Tensor,
    add: Option<Tensor>,
    grads: Option<&mut Tensor>,
) -> Result<Tensor> {
    check(x, norm)?;
    dy.expect("layer_norm dy", x.rows(), x.cols(), x.dtype())?;
    let (mut dx, accumulate) = match add {
        Some(t) => (t, true),
        None => (x.like()?, false),
    };
    dx.expect("layer_norm dx", x.rows(), x.cols(), x.dtype())?;
    let grads = grads.filter(|_| norm.is_trained());
    // Kernels hand the rows' mean and rstd from one launch to the next.
    let mut stats = match grads.is_some() && x.device().runs_kernels() {
        true => Some(x.rows_like(2, DType::F32)?),
        false => None,
    };
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            let (x, dy) = (x.slice::<T>(), dy.slice());
            cpu::bwd::<T>(pool, dx.slice_mut(), accumulate, x, norm.w.slice(), dy, norm.eps);
            if let Some(grads) = grads {
                cpu::bwd_weight::<T>(norm, grads, x, dy);
            }
        }),
        Exec::Kernels(l) => {
            launch::bwd(l, &mut dx, stats.as_mut(), accumulate, x, norm, dy)?;
            if let (Some(grads), Some(stats)) = (grads, &stats) {
                launch::bwd_weight(l, grads, stats, x, norm, dy)?;
            }
        }
        Exec::Plan(p) => p.flops(12.0 * x.len() as f64),
    }
    Ok(dx)
}

fn check(x: &Tensor, norm: LayerNorm) -> Result<()> {
    norm.w.expect("layer_norm w", 1, x.cols(), x)?;
    norm.b.map_or(Ok(()), |b| b.expect("layer_norm b", 1, x.cols(), x))
}
