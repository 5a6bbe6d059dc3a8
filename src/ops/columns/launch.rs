use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{bf16_only, size};
use crate::tensor::Tensor;

/// Enqueues `columns_copy` from column `at` of `x` on; formula and shapes: kernels/columns.h. Shapes were checked by
/// [`super::split`].
pub(super) fn take(l: &Launcher, part: &mut Tensor, x: &Tensor, at: usize) -> Result<()> {
    let (cols, stride) = (part.cols(), x.cols());
    copy(l, (part.ptr_mut(), cols), (x.ptr::<half::bf16>().wrapping_add(at), stride), x, cols)
}

/// Enqueues `columns_copy` to column `at` of `x` on. Shapes were checked by [`super::join`].
pub(super) fn put(l: &Launcher, x: &mut Tensor, part: &Tensor, at: usize) -> Result<()> {
    let (cols, stride) = (part.cols(), x.cols());
    copy(l, (x.ptr_mut::<half::bf16>().wrapping_add(at), stride), (part.ptr(), cols), part, cols)
}

fn copy(
    l: &Launcher,
    (to, to_stride): (*mut half::bf16, usize),
    (from, from_stride): (*const half::bf16, usize),
    like: &Tensor,
    cols: usize,
) -> Result<()> {
    bf16_only("columns", like)?;
    let p = abi::ColumnsCopy {
        to,
        from,
        live: like.live(),
        rows: size("columns rows", like.rows())?,
        cols: size("columns", cols)?,
        to_stride: size("columns", to_stride)?,
        from_stride: size("columns", from_stride)?,
    };
    let packs = cols.div_ceil(abi::COLUMNS_PACK as usize).next_multiple_of(abi::QE_WARP as usize);
    let threads = packs.clamp(abi::QE_WARP as usize, abi::COLUMNS_BLOCK as usize) as u32;
    l.kernel(kernels::COLUMNS_COPY).grid(like.rows()).block(threads).launch(&p)
}
