use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{bf16_only, size};
use crate::tensor::Tensor;

/// Elements that a block works on.
const ELEMENTS: usize = (abi::SWIGLU_BLOCK * abi::SWIGLU_PACK) as usize;

/// Enqueues `swiglu_fwd`; formula and shapes: kernels/swiglu.h. Shapes were checked by [`super::fwd`].
pub(super) fn fwd(l: &Launcher, h: &mut Tensor, gate: &Tensor, up: &Tensor) -> Result<()> {
    bf16_only("swiglu gate", gate)?;
    let p = abi::SwigluFwd {
        h: h.ptr_mut(),
        gate: gate.ptr(),
        up: up.ptr(),
        live: gate.live(),
        rows: size("swiglu rows", gate.rows())?,
        cols: size("swiglu columns", gate.cols())?,
    };
    l.kernel(kernels::SWIGLU_FWD).grid(gate.len().div_ceil(ELEMENTS)).block(abi::SWIGLU_BLOCK).launch(&p)
}

/// Enqueues `swiglu_bwd`. Shapes were checked by [`super::bwd`].
pub(super) fn bwd(l: &Launcher, gate: &mut Tensor, up: &mut Tensor, dh: &Tensor) -> Result<()> {
    bf16_only("swiglu dh", dh)?;
    let p = abi::SwigluBwd {
        gate: gate.ptr_mut(),
        up: up.ptr_mut(),
        dh: dh.ptr(),
        live: dh.live(),
        rows: size("swiglu rows", dh.rows())?,
        cols: size("swiglu columns", dh.cols())?,
    };
    l.kernel(kernels::SWIGLU_BWD).grid(dh.len().div_ceil(ELEMENTS)).block(abi::SWIGLU_BLOCK).launch(&p)
}
