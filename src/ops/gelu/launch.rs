use super::Gelu;
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{bf16_only, size};
use crate::tensor::Tensor;

/// Elements that a block works on.
const ELEMENTS: usize = (abi::GELU_BLOCK * abi::GELU_PACK) as usize;

/// Enqueues `gelu_fwd`; formula and shapes: kernels/gelu.h.
pub(super) fn fwd(l: &Launcher, y: &mut Tensor, x: &Tensor, form: Gelu) -> Result<()> {
    bf16_only("gelu x", x)?;
    let p = abi::GeluFwd {
        y: y.ptr_mut(),
        x: x.ptr(),
        live: x.live(),
        rows: size("gelu rows", x.rows())?,
        cols: size("gelu columns", x.cols())?,
        tanh: i32::from(form == Gelu::Tanh),
    };
    l.kernel(kernels::GELU_FWD).grid(x.len().div_ceil(ELEMENTS)).block(abi::GELU_BLOCK).launch(&p)
}

/// Enqueues `gelu_bwd`. Shapes were checked by [`super::bwd`].
pub(super) fn bwd(l: &Launcher, x: &mut Tensor, dy: &Tensor, form: Gelu) -> Result<()> {
    bf16_only("gelu dy", dy)?;
    let p = abi::GeluBwd {
        x: x.ptr_mut(),
        dy: dy.ptr(),
        live: dy.live(),
        rows: size("gelu rows", dy.rows())?,
        cols: size("gelu columns", dy.cols())?,
        tanh: i32::from(form == Gelu::Tanh),
    };
    l.kernel(kernels::GELU_BWD).grid(dy.len().div_ceil(ELEMENTS)).block(abi::GELU_BLOCK).launch(&p)
}
