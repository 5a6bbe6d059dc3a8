use super::LayerNorm;
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{Slot, bf16_only, size};
use crate::tensor::Tensor;

const BLOCK: u32 = abi::LAYER_NORM_BLOCK;
const SHARED: usize = abi::LAYER_NORM_SHARED as usize;

/// Blocks for the rows of `x`: a warp each, or a block each if they are large.
fn grid(x: &Tensor) -> usize {
    let warps = (BLOCK / abi::QE_WARP) as usize;
    if x.cols() > abi::LAYER_NORM_WARP as usize { x.rows() } else { x.rows().div_ceil(warps) }
}

/// Enqueues `layer_norm_fwd`; formula and shapes: kernels/layer_norm.h. Shapes were checked by [`super::fwd`].
pub(super) fn fwd(l: &Launcher, y: &mut Tensor, x: &Tensor, norm: LayerNorm) -> Result<()> {
    bf16_only("layer_norm x", x)?;
    let p = abi::LayerNormFwd {
        y: y.ptr_mut(),
        x: x.ptr(),
        w: norm.w.ptr(),
        b: norm.b.map_or(std::ptr::null(), |b| b.ptr()),
        live: x.live(),
        rows: size("layer_norm rows", x.rows())?,
        n: size("layer_norm columns", x.cols())?,
        eps: norm.eps as f32,
    };
    l.kernel(kernels::LAYER_NORM_FWD).grid(grid(x)).block(BLOCK).shared(SHARED).launch(&p)
}

/// Enqueues `layer_norm_bwd`. Shapes were checked by [`super::bwd`].
pub(super) fn bwd(
    l: &Launcher,
    dx: &mut Tensor,
    stats: Option<&mut Tensor>,
    add: bool,
    x: &Tensor,
    norm: LayerNorm,
    dy: &Tensor,
) -> Result<()> {
    bf16_only("layer_norm x", x)?;
    let p = abi::LayerNormBwd {
        dx: dx.ptr_mut(),
        stats: stats.map_or(std::ptr::null_mut(), |s| s.ptr_mut()),
        x: x.ptr(),
        w: norm.w.ptr(),
        dy: dy.ptr(),
        live: x.live(),
        rows: size("layer_norm rows", x.rows())?,
        n: size("layer_norm columns", x.cols())?,
        add: i32::from(add),
        eps: norm.eps as f32,
    };
    l.kernel(kernels::LAYER_NORM_BWD).grid(grid(x)).block(BLOCK).shared(SHARED).launch(&p)
}

/// Enqueues `layer_norm_weight`: the gradients of what is trained are added to their places in `grads`.
pub(super) fn bwd_weight(
    l: &Launcher,
    grads: &mut Tensor,
    stats: &Tensor,
    x: &Tensor,
    norm: LayerNorm,
    dy: &Tensor,
) -> Result<()> {
    let mut place = |s: Option<Slot>| s.filter(|s| s.grad).map_or(std::ptr::null_mut(), |s| s.grad_ptr(grads));
    let p = abi::LayerNormWeight {
        dw: place(Some(norm.w)),
        db: place(norm.b),
        stats: stats.ptr(),
        x: x.ptr(),
        dy: dy.ptr(),
        live: x.live(),
        rows: size("layer_norm rows", x.rows())?,
        n: size("layer_norm columns", x.cols())?,
    };
    let (blocks, shared) = (x.cols().div_ceil(abi::LAYER_NORM_COLUMNS as usize), abi::LAYER_NORM_SUMS as usize);
    l.kernel(kernels::LAYER_NORM_WEIGHT).grid(blocks).block(BLOCK).shared(shared).launch(&p)
}
