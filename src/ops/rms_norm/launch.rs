use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{Slot, bf16_only, size};
use crate::tensor::Tensor;

const SHARED: usize = abi::RMS_NORM_SHARED as usize;

/// Blocks for `groups` of `n` elements: a warp each, or a block each if they are large.
fn grid(groups: usize, n: usize) -> usize {
    let warps = (abi::RMS_NORM_BLOCK / abi::QE_WARP) as usize;
    if n > abi::RMS_NORM_WARP as usize { groups } else { groups.div_ceil(warps) }
}

/// Enqueues `rms_norm_fwd`; formula and shapes: kernels/rms_norm.h. Shapes were checked by [`super::fwd`].
pub(super) fn fwd(l: &Launcher, y: &mut Tensor, x: &Tensor, w: Slot, eps: f64) -> Result<()> {
    bf16_only("rms_norm x", x)?;
    let groups = x.len() / w.len();
    let p = abi::RmsNormFwd {
        y: y.ptr_mut(),
        x: x.ptr(),
        w: w.ptr(),
        live: x.live(),
        rows: size("rms_norm rows", x.rows())?,
        per_row: size("rms_norm groups", x.cols() / w.len())?,
        n: size("rms_norm columns", w.len())?,
        eps: eps as f32,
    };
    l.kernel(kernels::RMS_NORM_FWD).grid(grid(groups, w.len())).block(abi::RMS_NORM_BLOCK).shared(SHARED).launch(&p)
}

/// Enqueues `rms_norm_bwd`. Shapes were checked by [`super::bwd`].
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn bwd(
    l: &Launcher,
    dx: &mut Tensor,
    rstd: Option<&mut Tensor>,
    add: bool,
    x: &Tensor,
    w: Slot,
    dy: &Tensor,
    eps: f64,
) -> Result<()> {
    bf16_only("rms_norm x", x)?;
    let groups = x.len() / w.len();
    let p = abi::RmsNormBwd {
        dx: dx.ptr_mut(),
        rstd: rstd.map_or(std::ptr::null_mut(), |r| r.ptr_mut()),
        x: x.ptr(),
        w: w.ptr(),
        dy: dy.ptr(),
        live: x.live(),
        rows: size("rms_norm rows", x.rows())?,
        per_row: size("rms_norm groups", x.cols() / w.len())?,
        n: size("rms_norm columns", w.len())?,
        add: i32::from(add),
        eps: eps as f32,
    };
    l.kernel(kernels::RMS_NORM_BWD).grid(grid(groups, w.len())).block(abi::RMS_NORM_BLOCK).shared(SHARED).launch(&p)
}

/// Enqueues `rms_norm_weight`: the gradient of `w` is added to its place in `grads`.
pub(super) fn bwd_weight(
    l: &Launcher,
    grads: &mut Tensor,
    rstd: &Tensor,
    x: &Tensor,
    w: Slot,
    dy: &Tensor,
) -> Result<()> {
    let p = abi::RmsNormWeight {
        dw: w.grad_ptr(grads),
        rstd: rstd.ptr(),
        x: x.ptr(),
        dy: dy.ptr(),
        live: x.live(),
        rows: size("rms_norm rows", x.rows())?,
        per_row: size("rms_norm groups", x.cols() / w.len())?,
        n: size("rms_norm columns", w.len())?,
    };
    let (blocks, shared) = (w.len().div_ceil(abi::RMS_NORM_COLUMNS as usize), abi::RMS_NORM_SUMS as usize);
    l.kernel(kernels::RMS_NORM_WEIGHT).grid(blocks).block(abi::RMS_NORM_BLOCK).shared(shared).launch(&p)
}
