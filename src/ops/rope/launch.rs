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
    half: i32,
    /// 2^shift lanes a head.
    shift: i32,
    grid: usize,
}

/// `x`: q and k.
fn place(x: [&Tensor; 2], table: &Table) -> Result<Place> {
    bf16_only("rope x", x[0])?;
    let Some(on_device) = &table.device else { return Err(no_kernel("rope table", "held by the CPU alone")) };
    let heads = x[0].rows() * ((x[0].cols() + x[1].cols()) / (2 * table.half));
    let _: i32 = size("rope heads of all rows", heads)?;
    let shares = if table.half.is_multiple_of(PACK) { table.half / PACK } else { table.half };
    let lanes = shares.next_power_of_two().min(abi::QE_WARP as usize);
    Ok(Place {
        table: on_device.ptr(),
        half: size("rope head_dim", table.half)?,
        shift: lanes.ilog2() as i32,
        grid: (heads * lanes).div_ceil(abi::ROPE_BLOCK as usize),
    })
}

fn heads(x: &Tensor, table: &Table) -> Result<i32> {
    size("rope heads", x.cols() / (2 * table.half))
}

/// `y`: where the results go, for q and k.
fn turn(
    l: &Launcher,
    y: [*mut half::bf16; 2],
    x: [&Tensor; 2],
    norms: Option<[Norm; 2]>,
    positions: &Index,
    table: &Table,
    turn: Turn,
) -> Result<()> {
    let at = place(x, table)?;
    let part = |i: usize| -> Result<abi::RopeHeads> {
        let w = norms.map_or(std::ptr::null(), |n| n[i].w.ptr());
        Ok(abi::RopeHeads { y: y[i], x: x[i].ptr(), w, heads: heads(x[i], table)? })
    };
    let p = abi::RopeFwd {
        q: part(0)?,
        k: part(1)?,
        table: at.table,
        positions: on_device("rope positions", positions)?,
        live: x[0].live(),
        rows: size("rope rows", x[0].rows())?,
        half: at.half,
        shift: at.shift,
        sign: if turn == Turn::Forward { 1.0 } else { -1.0 },
        eps: norms.map_or(0.0, |[n, _]| n.eps) as f32,
    };
    l.kernel(kernels::ROPE_FWD).grid(at.grid).block(abi::ROPE_BLOCK).launch(&p)
}

/// Enqueues `rope_fwd` in place. Shapes were checked by [`super::apply`].
pub(super) fn apply(l: &Launcher, x: [&mut Tensor; 2], positions: &Index, table: &Table, way: Turn) -> Result<()> {
    let [q, k] = x;
    turn(l, [q.ptr_mut(), k.ptr_mut()], [q, k], None, positions, table, way)
}

/// Enqueues `rope_fwd`. Shapes were checked by [`super::fwd`].
pub(super) fn fwd(
    l: &Launcher,
    [q, k]: &mut [Tensor; 2],
    x: [&Tensor; 2],
    norms: [Norm; 2],
    positions: &Index,
    table: &Table,
) -> Result<()> {
    turn(l, [q.ptr_mut(), k.ptr_mut()], x, Some(norms), positions, table, Turn::Forward)
}

/// Enqueues `rope_bwd`; a `dy` is turned back in place if its `rstd` is wanted. Shapes were checked by [`super::bwd`].
#[allow(clippy::too_many_arguments)] // the kernel's
pub(super) fn bwd(
    l: &Launcher,
    dx: &mut [Tensor; 2],
    dy: &mut [Tensor; 2],
    rstd: &mut [Option<Tensor>; 2],
    x: [&Tensor; 2],
    norms: [Norm; 2],
    positions: &Index,
    table: &Table,
) -> Result<()> {
    let at = place(x, table)?;
    let mut part = |i: usize| -> Result<abi::RopeHeadsGrad> {
        Ok(abi::RopeHeadsGrad {
            dx: dx[i].ptr_mut(),
            dy: dy[i].ptr_mut(),
            rstd: rstd[i].as_mut().map_or(std::ptr::null_mut(), Tensor::ptr_mut),
            x: x[i].ptr(),
            w: norms[i].w.ptr(),
            heads: heads(x[i], table)?,
        })
    };
    let p = abi::RopeBwd {
        q: part(0)?,
        k: part(1)?,
        table: at.table,
        positions: on_device("rope positions", positions)?,
        live: x[0].live(),
        rows: size("rope rows", x[0].rows())?,
        half: at.half,
        shift: at.shift,
        eps: norms[0].eps as f32,
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
