//! Root-mean-square layer norm: y[r,c] = x[r,c] * rstd[r] * w[c], rstd[r] = 1 / sqrt(mean_c x[r,c]^2 + eps).
//! Zhang & Sennrich 2019, arXiv:1910.07467, eq. 4.
//!
//! Backward, with g = dy * w and m[r] = mean_c g[r,c] * x[r,c]:
//! dx[r,c] = rstd[r] * (g[r,c] - x[r,c] * rstd[r]^2 * m[r]); dw[c] += sum_r dy[r,c] * x[r,c] * rstd[r].

mod launch;

use crate::by_dtype;
use crate::device::Exec;
use crate::error::{Error, Result};
use crate::ops::{Slot, rms};
use crate::tensor::{DType, Tensor};

/// Normalises groups of `w.len()` elements of `x`: a row, or a head of it. `x` (rows, cols) -> `y` (rows, cols).
///
/// # Errors
/// [`Error::Shape`] unless cols is a multiple of `w.len()`.
pub fn fwd(x: &Tensor, w: Slot, eps: f64) -> Result<Tensor> {
    check(x, w)?;
    let mut y = x.like()?;
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => rms::fwd::<T>(pool, y.slice_mut(), x.slice(), w.slice(), eps)),
        Exec::Kernels(l) => launch::fwd(l, &mut y, x, w, eps)?,
        Exec::Plan(p) => p.flops(4.0 * x.len() as f64),
    }
    Ok(y)
}

/// `dx` from `dy` and the `x` that `fwd` saw; `w`'s gradient is added to `grads` where it is trained. With `add`, `dx`
/// is added to it (a residual's gradient), in place.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(
    x: &Tensor,
    w: Slot,
    eps: f64,
    dy: &Tensor,
    add: Option<Tensor>,
    grads: Option<&mut Tensor>,
) -> Result<Tensor> {
    check(x, w)?;
    dy.expect("rms_norm dy", x.rows(), x.cols(), x.dtype())?;
    let (mut dx, accumulate) = match add {
        Some(t) => (t, true),
        None => (x.like()?, false),
    };
    dx.expect("rms_norm dx", x.rows(), x.cols(), x.dtype())?;
    let grads = grads.filter(|_| w.grad);
    // Kernels hand rstd from one launch to the next.
    let mut rstd = match grads.is_some() && x.device().runs_kernels() {
        true => Some(x.rows_like(x.cols() / w.len(), DType::F32)?),
        false => None,
    };
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            rms::bwd::<T>(pool, dx.slice_mut(), accumulate, x.slice(), w.slice(), dy.slice(), eps);
            if let Some(g) = grads {
                rms::bwd_weight::<T>(pool, w.grad_of(g), x.slice(), dy.slice(), eps);
            }
        }),
        Exec::Kernels(l) => {
            launch::bwd(l, &mut dx, rstd.as_mut(), accumulate, x, w, dy, eps)?;
            if let (Some(g), Some(rstd)) = (grads, &rstd) {
                launch::bwd_weight(l, g, rstd, x, w, dy)?;
            }
        }
        Exec::Plan(p) => p.flops(8.0 * x.len() as f64),
    }
    Ok(dx)
}

fn check(x: &Tensor, w: Slot) -> Result<()> {
    if w.is_empty() || !x.cols().is_multiple_of(w.len()) {
        return Err(Error::shape("rms_norm w", format!("has {} elements, x has {} columns", w.len(), x.cols())));
    }
    w.expect("rms_norm w", w.rows, w.cols, x)
}
