//! Launches of `lora_bwd`: what adapters take from dy, Q and the gradient of B, in one pass over dy. Formulas and rounding:
//! kernels/lora_bwd.h.

use std::ptr;

use super::{Bwd, Lora};
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::group::{MEMBERS, in_line};
use crate::ops::product::{Operand, Out};
use crate::ops::{no_kernel, size};
use crate::tensor::{DType, Tensor};

const COLUMNS: usize = abi::LORA_BWD_COLUMNS as usize;
const ROWS: usize = abi::LORA_BWD_ROWS as usize;
const RANKS: usize = abi::LORA_BWD_RANKS as usize;

/// Whether the kernel takes it: the parts of Q grow with the rank, and those of larger ones would be about as many bytes as dy.
pub(super) fn takes(lora: &Lora) -> bool {
    lora.a.rows <= abi::LORA_BWD_RANK as usize
}

/// Elements of f32 scratch: for the parts of Q, and for those of the gradient of B where it is trained.
pub(super) fn scratch(lora: &Lora, rows: usize) -> (usize, usize) {
    let (out, pitch) = (lora.b.rows, lora.a.rows.next_multiple_of(8));
    let of_b = if lora.b.grad { rows.div_ceil(ROWS) * out * pitch } else { 0 };
    (out.div_ceil(COLUMNS) * rows * pitch, of_b)
}

/// Enqueues Q = s dy B, and the gradients of trained B, added to `grads`, of the members that the kernel takes. `memory` is
/// f32 scratch of as many elements as [`scratch`] says of all of them.
///
/// # Errors
/// [`crate::Error::Kernel`] if the device refuses a launch; [`crate::Error::Shape`] if there is too little scratch, or a size
/// does not fit into its field.
pub(super) fn bwd(
    l: &Launcher,
    x: &Tensor,
    members: &mut [Bwd],
    grads: &mut Tensor,
    memory: Option<&mut Tensor>,
) -> Result<()> {
    let rows = x.rows();
    let (mut free, mut left) = match memory.filter(|t| t.dtype() == DType::F32) {
        Some(t) => (t.ptr_mut::<f32>(), t.len()),
        None => (ptr::null_mut(), 0),
    };
    let mut take = |n: usize| {
        left = left.checked_sub(n).ok_or_else(|| no_kernel("linear", "too little scratch"))?;
        let taken = free;
        free = free.wrapping_add(n);
        Ok(taken)
    };
    let mut all = Vec::new();
    for m in members {
        let (Some(lora), Some((p, q))) = (&m.l.lora, &mut m.lora) else { continue };
        if !takes(lora) {
            continue;
        }
        // The kernel counts in 32 bits, and looks a block further.
        for n in [rows, lora.b.rows] {
            size::<i32>("rows and columns", n.saturating_add(COLUMNS))?;
        }
        let (of_q, of_b) = scratch(lora, rows);
        all.push(abi::LoraBwd {
            q: Out::of("linear Q", q)?.ptr.cast(),
            dy: Operand::of("linear dy", m.dy)?.ptr.cast(),
            b: Operand::slot("lora B", lora.b)?.ptr.cast(),
            p: Operand::of("linear P", p)?.ptr.cast(),
            db: if lora.b.grad { Out::grad(lora.b, grads).ptr.cast() } else { ptr::null_mut() },
            q_parts: take(of_q)?,
            b_parts: take(of_b)?,
            out: size("columns", lora.b.rows)?,
            r: size("rank", lora.a.rows)?,
            scale: lora.scale as f32,
        });
    }
    for some in all.chunks(MEMBERS) {
        let blocks = |m: &abi::LoraBwd| (m.out as usize).div_ceil(COLUMNS) * (m.r as usize).div_ceil(RANKS);
        let (of, ends, blocks) = in_line(some, blocks)?;
        let parts = abi::LoraBwdGroup { of, ends, live: x.live(), rows: size("rows", rows)? };
        let launch = l.kernel(kernels::LORA_BWD_PARTS).grid3(blocks, rows.div_ceil(ROWS), 1);
        launch.block(abi::LORA_BWD_BLOCK).shared(abi::LORA_BWD_SHARED as usize).launch(&parts)?;

        let elements = |m: &abi::LoraBwd| (rows + m.out as usize) * m.r as usize;
        let (of, ends, blocks) = in_line(some, |m| elements(m).div_ceil(abi::LORA_BWD_SUM_BLOCK as usize))?;
        let sum = abi::LoraBwdGroup { of, ends, ..parts };
        l.kernel(kernels::LORA_BWD_SUM).grid(blocks).block(abi::LORA_BWD_SUM_BLOCK).launch(&sum)?;
    }
    Ok(())
}
