use super::Noise;
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{Slot, bf16_only, on_device, size};
use crate::tensor::{Index, Tensor};

/// Threads for one row: a pack each, in whole warps.
fn threads(cols: usize) -> u32 {
    let packs = cols.div_ceil(abi::EMBEDDING_PACK as usize).next_multiple_of(abi::QE_WARP as usize);
    packs.clamp(abi::QE_WARP as usize, abi::EMBEDDING_BLOCK as usize) as u32
}

/// Enqueues `embedding_fwd`; formula and shapes: kernels/embedding.h. Shapes were checked by [`super::fwd`].
pub(super) fn fwd(l: &Launcher, x: &mut Tensor, table: Slot, ids: &Index, noise: Option<Noise>) -> Result<()> {
    bf16_only("embedding", x)?;
    let p = abi::EmbeddingFwd {
        x: x.ptr_mut(),
        table: table.ptr(),
        ids: on_device("token ids", ids)?,
        live: x.live(),
        step: if noise.is_some() { l.step() } else { std::ptr::null() },
        rows: size("embedding rows", x.rows())?,
        cols: size("embedding columns", x.cols())?,
        module: noise.map_or(0, |n| n.stream.module),
    };
    l.kernel(kernels::EMBEDDING_FWD).grid(x.rows()).block(threads(x.cols())).launch(&p)
}

/// Enqueues `embedding_add`. Shapes were checked by [`super::add`].
pub(super) fn add(l: &Launcher, x: &mut Tensor, table: Slot, ids: &Index) -> Result<()> {
    bf16_only("embedding", x)?;
    let p = abi::EmbeddingAdd {
        x: x.ptr_mut(),
        table: table.ptr(),
        ids: on_device("positions", ids)?,
        live: x.live(),
        rows: size("embedding rows", x.rows())?,
        cols: size("embedding columns", x.cols())?,
    };
    l.kernel(kernels::EMBEDDING_ADD).grid(x.rows()).block(threads(x.cols())).launch(&p)
}

/// Enqueues `embedding_bwd`. Shapes were checked by [`super::bwd`].
pub(super) fn bwd(l: &Launcher, table: Slot, ids: &Index, dx: &Tensor, grads: &mut Tensor) -> Result<()> {
    bf16_only("embedding dx", dx)?;
    let p = abi::EmbeddingBwd {
        dtable: table.grad_ptr(grads),
        dx: dx.ptr(),
        ids: on_device("token ids", ids)?,
        live: dx.live(),
        rows: size("embedding rows", dx.rows())?,
        cols: size("embedding columns", dx.cols())?,
    };
    let columns = dx.cols().div_ceil((abi::EMBEDDING_BLOCK * abi::EMBEDDING_PACK) as usize);
    let shared = size_of::<abi::EmbeddingSmem>();
    l.kernel(kernels::EMBEDDING_BWD).grid3(dx.rows(), columns, 1).block(abi::EMBEDDING_BLOCK).shared(shared).launch(&p)
}

/// Enqueues `embedding_scatter`. Shapes were checked by [`super::scatter`].
pub(super) fn scatter(l: &Launcher, x: &mut Tensor, dx: &Tensor, rows: &Index) -> Result<()> {
    bf16_only("scatter dy", dx)?;
    let p = abi::EmbeddingScatter {
        x: x.ptr_mut(),
        dx: dx.ptr(),
        ids: on_device("scatter rows", rows)?,
        live: dx.live(),
        rows: size("scatter rows", dx.rows())?,
        cols: size("scatter columns", dx.cols())?,
    };
    l.kernel(kernels::EMBEDDING_SCATTER).grid(dx.rows()).block(threads(dx.cols())).launch(&p)
}
