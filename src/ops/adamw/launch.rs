use super::{AdamW, Flat, Groups};
use crate::device::{Launcher, abi, bytes_of, kernels};
use crate::error::Result;
use crate::ops::{no_kernel, size};
use crate::tensor::{DType, Tensor};

/// Writes the constants of the step to device memory and enqueues `adamw_step`; formula and shapes: kernels/adamw.h. Shapes
/// were checked by [`super::step`].
pub(super) fn step(
    l: &Launcher,
    mut flat: Flat,
    groups: &mut Groups,
    a: AdamW,
    norm: &Tensor,
    loss: &Tensor,
) -> Result<()> {
    if flat.p.dtype() != DType::F32 {
        return Err(no_kernel("adamw", &format!("{:?}", flat.p.dtype())));
    }
    let table = groups.table.as_mut().ok_or_else(|| no_kernel("adamw", "groups made for the CPU"))?;
    let constants = abi::AdamWStep {
        max_norm: a.max_norm,
        beta1: a.beta1 as f32,
        beta2: a.beta2 as f32,
        rest1: (1.0 - a.beta1) as f32,
        rest2: (1.0 - a.beta2) as f32,
        step_size: a.step_size() as f32,
        root2: a.root2() as f32,
        shrink: a.shrink() as f32,
        eps: a.eps as f32,
    };
    table.step.write(0, bytes_of(&[constants]));
    let n = flat.p.len();
    let p = abi::AdamWUpdate {
        p: flat.p.ptr_mut(),
        m: flat.m.ptr_mut(),
        v: flat.v.ptr_mut(),
        copy: flat.copy.as_mut().map_or(std::ptr::null_mut(), |t| t.ptr_mut()),
        g: flat.g.ptr(),
        step: table.step.addr() as *const abi::AdamWStep,
        norm: norm.ptr(),
        loss: loss.ptr(),
        ends: table.ends.addr() as *const u64,
        n: size("parameters", n)?,
        groups: size("groups", groups.runs.len())?,
        decays: i32::from(groups.runs.first().is_some_and(|(_, decay)| *decay)),
    };
    let grid = n.div_ceil((abi::ADAMW_BLOCK * abi::ADAMW_PACK) as usize);
    l.kernel(kernels::ADAMW_STEP).grid(grid).block(abi::ADAMW_BLOCK).launch(&p)
}
