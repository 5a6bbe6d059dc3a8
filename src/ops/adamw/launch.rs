use super::{AdamW, Flat, Groups, Moments};
use crate::device::{Launcher, abi, bytes_of, kernels};
use crate::error::Result;
use crate::ops::{no_kernel, size};
use crate::tensor::{DType, Tensor};

/// Writes the constants of the step to device memory and enqueues `adamw_step` or `adamw_step_8bit`; formula and shapes: kernels/adamw.h. Shapes
/// were checked by [`super::step`].
pub(super) fn step(
    l: &Launcher,
    flat: Flat,
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
    let len = flat.p.len();
    let (p, g, n) = (flat.p.ptr_mut(), flat.g.ptr(), size("parameters", len)?);
    let copy = flat.copy.map_or(std::ptr::null_mut(), |t| t.ptr_mut());
    let step = table.step.addr() as *const abi::AdamWStep;
    let (norm, loss, ends) = (norm.ptr(), loss.ptr(), table.ends.addr() as *const u64);
    let decays = i32::from(groups.runs.first().is_some_and(|(_, decay)| *decay));
    let groups = size("groups", groups.runs.len())?;
    match flat.moments {
        Moments::Full { m, v } => {
            let (m, v) = (m.ptr_mut(), v.ptr_mut());
            let p = abi::AdamWUpdate { p, m, v, copy, g, step, norm, loss, ends, n, groups, decays };
            let grid = len.div_ceil((abi::ADAMW_BLOCK * abi::ADAMW_PACK) as usize);
            l.kernel(kernels::ADAMW_STEP).grid(grid).block(abi::ADAMW_BLOCK).launch(&p)
        }
        Moments::Eight { m, v } => {
            let p = abi::AdamWUpdate8 {
                p,
                m: m.codes.addr() as *mut u8,
                v: v.codes.addr() as *mut u8,
                m_absmax: m.absmax.ptr_mut(),
                v_absmax: v.absmax.ptr_mut(),
                copy,
                g,
                m_code: m.map.ptr(),
                v_code: v.map.ptr(),
                step,
                norm,
                loss,
                ends,
                n,
                groups,
                decays,
            };
            let grid = len.div_ceil(abi::ADAMW_TILE_8BIT as usize);
            l.kernel(kernels::ADAMW_STEP_8BIT).grid(grid).block(abi::ADAMW_BLOCK).shared(4 * 256 * 4).launch(&p)
        }
    }
}
