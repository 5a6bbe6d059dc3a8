//! Gaussian error linear unit: y = x * P(x), P the normal distribution; and its tanh form, y = x * sigma(2 u),
//! u = sqrt(2 / pi) (x + 0.044715 x^3). Hendrycks & Gimpel 2016, arXiv:1606.08415.
//!
//! Backward: dx = dy * (P + x * e^(-x^2 / 2) / sqrt(2 pi)); or dy * (s + x * s * (1 - s) * 2 u'), s = sigma(2 u).

mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::Exec;
use crate::error::Result;
use crate::tensor::Tensor;

/// Which form, as `hidden_act` names them: `gelu`; `gelu_new`, `gelu_pytorch_tanh`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Gelu {
    Exact,
    Tanh,
}

/// `x` (rows, cols) -> y (rows, cols).
///
/// # Errors
/// [`crate::Error::Memory`].
pub fn fwd(x: &Tensor, form: Gelu) -> Result<Tensor> {
    let mut y = x.like()?;
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => cpu::fwd::<T>(pool, y.slice_mut(), x.slice(), form)),
        Exec::Kernels(l) => launch::fwd(l, &mut y, x, form)?,
        Exec::Plan(p) => p.flops(8.0 * x.len() as f64),
    }
    Ok(y)
}

/// dx in the place of `x`, which nothing needs afterwards.
///
/// # Errors
/// [`crate::Error::Shape`] unless `dy` is of `x`'s shape.
pub fn bwd(mut x: Tensor, dy: &Tensor, form: Gelu) -> Result<Tensor> {
    dy.expect("gelu dy", x.rows(), x.cols(), x.dtype())?;
    match dy.device().exec() {
        Exec::Cpu(pool) => by_dtype!(dy.dtype(), T => cpu::bwd::<T>(pool, x.slice_mut(), dy.slice(), form)),
        Exec::Kernels(l) => launch::bwd(l, &mut x, dy, form)?,
        Exec::Plan(p) => p.flops(14.0 * dy.len() as f64),
    }
    Ok(x)
}
