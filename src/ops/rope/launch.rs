use super::{Norm, Table, Turn};
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{bf16_only, no_kernel, on_device, size};
use crate::tensor::{Index, Tensor};

/// bf16 in 16 bytes: what a lane reads at once where heads allow it.
const PACK: usize = 8;

/// What every launch here begins with; formulas and shapes: kernels/rope.h.
struct Place {
    table: *const f32,
    heads: i32,
    half: i32,
    /// 2^shift lanes a head.
    shift: i32,
    grid: usize,
}

fn place(x: &Tensor, table: &Table) -> Result<Place> {
    bf16_only("rope x", x)?;
    let Some(on_device) = &table.device else { return Err(no_kernel("rope table", "held by the CPU alone")) };
    let heads = x.cols() / (2 * table.half);
    let _: i32 = size("rope heads of all rows", x.rows() * heads)?;
    let shares = if table.half.is_multiple_of(PACK) { table.half / PACK } else { table.half };
    let lanes = shares.next_power_of_two().min(abi::QE_WARP as usize);
    Ok(Place {
        table: on_device.ptr(),
        heads: size("rope heads", heads)?,
        half: size("rope head_dim", table.half)?,
        shift: lanes.ilog2() as i32,
        grid: (x.rows() * heads * lanes).div_ceil(abi::ROPE_BLOCK as usize),
    })
}

fn turn(
    l: &Launcher,
    (y, x): (*mut half::bf16, &Tensor),
    norm: Option<Norm>,
    positions: &Index,
    table: &Table,
    turn: Turn,
) -> Result<()> {
    let at = place(x, table)?;
    let p = abi::RopeFwd {
        y,
        x: x.ptr(),
        w: norm.map_or(std::ptr::null(), |n| n.w.ptr()),
        table: at.table,
        positions: on_device("rope positions", positions)?,
        live: x.live(),
        rows: size("rope rows", x.rows())?,
        heads: at.heads,
        half: at.half,
        shift: at.shift,
        sign: if turn == Turn::Forward { 1.0 } else { -1.0 },
        eps: norm.map_or(0.0, |n| n.eps) as f32,
    };
    l.kernel(kernels::ROPE_FWD).grid(at.grid).block(abi::ROPE_BLOCK).launch(&p)
}

/// Enqueues `rope_fwd` in place. Shapes were checked by [`super::apply`].
pub(super) fn apply(l: &Launcher, x: &mut Tensor, positions: &Index, table: &Table, way: Turn) -> Result<()> {
    turn(l, (x.ptr_mut(), x), None, positions, table, way)
}

/// Enqueues `rope_fwd`. Shapes were checked by [`super::fwd`].
pub(super) fn fwd(
    l: &Launcher,
    y: &mut Tensor,
    x: &Tensor,
    norm: Option<Norm>,
    positions: &Index,
    table: &Table,
) -> Result<()> {
    turn(l, (y.ptr_mut(), x), norm, positions, table, Turn::Forward)
}

/// Enqueues `rope_bwd`; `dy` is turned back in place if `rstd` is wanted. Shapes were checked by [`super::bwd`].
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn bwd(
    l: &Launcher,
    dx: &mut Tensor,
    dy: &mut Tensor,
    rstd: Option<&mut Tensor>,
    x: &Tensor,
    norm: Norm,
    positions: &Index,
    table: &Table,
) -> Result<()> {
    let at = place(x, table)?;
    let p = abi::RopeBwd {
        dx: dx.ptr_mut(),
        dy: dy.ptr_mut(),
        rstd: rstd.map_or(std::ptr::null_mut(), |r| r.ptr_mut()),
        x: x.ptr(),
        w: norm.w.ptr(),
        table: at.table,
        positions: on_device("rope positions", positions)?,
        live: x.live(),
        rows: size("rope rows", x.rows())?,
        heads: at.heads,
        half: at.half,
        shift: at.shift,
        eps: norm.eps as f32,
    };
    l.kernel(kernels::ROPE_BWD).grid(at.grid).block(abi::ROPE_BLOCK).launch(&p)
}

/// Enqueues `rms_norm_weight` (kernels/rms_norm.h) on the gradient `g` of the norm's result.
pub(super) fn bwd_weight(
    l: &Launcher,
    grads: &mut Tensor,
    rstd: &Tensor,
    x: &Tensor,
    norm: Norm,
    g: &Tensor,
) -> Result<()> {
    let p = abi::RmsNormWeight {
        dw: norm.w.grad_ptr(grads),
        rstd: rstd.ptr(),
        x: x.ptr(),
        dy: g.ptr(),
        live: x.live(),
        rows: size("rope rows", x.rows())?,
        per_row: size("rope heads", x.cols() / norm.w.len())?,
        n: size("rope head_dim", norm.w.len())?,
    };
    let (blocks, shared) = (norm.w.len().div_ceil(abi::RMS_NORM_COLUMNS as usize), abi::RMS_NORM_SUMS as usize);
    l.kernel(kernels::RMS_NORM_WEIGHT).grid(blocks).block(abi::RMS_NORM_BLOCK).shared(shared).launch(&p)
}
