//! The Euclidean norm of the flat gradient: squares summed in f64, chunk by chunk, in a fixed order.

mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::{Device, Exec, abi};
use crate::error::Result;
use crate::ops::no_kernel;
use crate::tensor::{DType, Tensor};

/// Where a norm is left, so that nobody waits for it; and what computing it needs.
pub struct Norm {
    /// (1, 1) f64.
    pub value: Tensor,
    /// The kernels' sums of chunks, f64.
    partial: Option<Tensor>,
}

impl Norm {
    /// For a gradient of `n` elements on `device`.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
    pub fn new(n: usize, device: &Device) -> Result<Self> {
        let chunks = n.div_ceil(abi::GRAD_NORM_CHUNK as usize);
        let partial = match device.runs_kernels() {
            true => Some(Tensor::unwritten(1, chunks, DType::F64, device)?),
            false => None,
        };
        Ok(Norm { value: Tensor::zeros(1, 1, DType::F64, device)?, partial })
    }
}

/// `norm.value` = sqrt(sum g^2): NaN or infinite if any element is.
///
/// # Errors
/// [`crate::Error::Shape`] unless `norm` was made for as many elements and kernels, if they are to compute it, are given f32.
pub fn into(g: &Tensor, norm: &mut Norm) -> Result<()> {
    match g.device().exec() {
        Exec::Cpu(pool) => {
            by_dtype!(g.dtype(), T => norm.value.slice_mut::<f64>()[0] = cpu::norm::<T>(pool, g.slice()))
        }
        Exec::Kernels(l) => {
            let partial = norm.partial.as_mut().ok_or_else(|| no_kernel("grad_norm", "a norm made for the CPU"))?;
            launch::into(l, &mut norm.value, partial, g)?;
        }
        Exec::Plan(p) => p.flops(2.0 * g.len() as f64),
    }
    Ok(())
}

/// The norm itself: waits for it. 0 in a plan.
///
/// # Errors
/// As [`into`], and [`crate::Error::Memory`].
pub fn run(g: &Tensor) -> Result<f64> {
    let mut norm = Norm::new(g.len(), g.device())?;
    into(g, &mut norm)?;
    Ok(if g.device().is_plan() { 0.0 } else { norm.value.read::<f64>(0, 1)[0] })
}
