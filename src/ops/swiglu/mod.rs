//! Gated SiLU: h = silu(g) * u, silu(g) = g * sigma(g), sigma(g) = 1 / (1 + e^-g). Shazeer 2020, arXiv:2002.05202.
//!
//! Backward: du = dh * silu(g); dg = dh * u * sigma(g) * (1 + g * (1 - sigma(g))).

mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::Exec;
use crate::error::Result;
use crate::tensor::Tensor;

/// `gate`, `up` (rows, cols) -> h (rows, cols).
///
/// # Errors
/// [`crate::Error::Shape`] unless both are of one shape.
pub fn fwd(gate: &Tensor, up: &Tensor) -> Result<Tensor> {
    up.expect("swiglu up", gate.rows(), gate.cols(), gate.dtype())?;
    let mut h = gate.like()?;
    match gate.device().exec() {
        Exec::Cpu(pool) => by_dtype!(gate.dtype(), T => cpu::fwd::<T>(pool, h.slice_mut(), gate.slice(), up.slice())),
        Exec::Kernels(l) => launch::fwd(l, &mut h, gate, up)?,
        Exec::Plan(p) => p.flops(5.0 * gate.len() as f64),
    }
    Ok(h)
}

/// (dgate, dup) in the places of `gate` and `up`, which nothing needs afterwards.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(mut gate: Tensor, mut up: Tensor, dh: &Tensor) -> Result<(Tensor, Tensor)> {
    up.expect("swiglu up", gate.rows(), gate.cols(), gate.dtype())?;
    dh.expect("swiglu dh", gate.rows(), gate.cols(), gate.dtype())?;
    match dh.device().exec() {
        Exec::Cpu(pool) => {
            by_dtype!(dh.dtype(), T => cpu::bwd::<T>(pool, gate.slice_mut(), up.slice_mut(), dh.slice()))
        }
        Exec::Kernels(l) => launch::bwd(l, &mut gate, &mut up, dh)?,
        Exec::Plan(p) => p.flops(10.0 * dh.len() as f64),
    }
    Ok((gate, up))
}
