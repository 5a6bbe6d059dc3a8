use super::Scratch;
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::product::{self, Operand, Out};
use crate::ops::{Slot, on_device, size};
use crate::tensor::{Index, Tensor};

/// A chunk of rows and where its live rows are counted (null: all are live).
struct Chunk {
    start: usize,
    rows: usize,
    live: *const u32,
}

/// Enqueues the loss of `h` chunk by chunk; formulas and shapes: kernels/cross_entropy.h. Shapes were checked by
/// [`super::fwd`].
pub(super) fn fwd(
    l: &Launcher,
    h: &Tensor,
    w: Slot,
    targets: &Index,
    s: &mut Scratch,
    loss: &mut Tensor,
) -> Result<()> {
    for c in chunks(l, h, s)? {
        logits(l, &c, Operand::of("head input", h)?, w, s)?;
        rows(l, &c, w, targets, s, false)?;
    }
    sum(l, h, s, loss)
}

/// As [`fwd`], and the gradients. Shapes were checked by [`super::fwd_bwd`].
pub(super) fn fwd_bwd(
    l: &Launcher,
    h: &mut Tensor,
    w: Slot,
    targets: &Index,
    s: &mut Scratch,
    loss: &mut Tensor,
    grads: &mut Tensor,
) -> Result<()> {
    for c in chunks(l, h, s)? {
        let x = Operand::of("head input", h)?;
        logits(l, &c, x, w, s)?;
        rows(l, &c, w, targets, s, true)?;
        let d = Operand { ptr: s.logits.ptr(), rows: c.rows, cols: w.rows, ld: 2 * s.logits.cols() };
        if w.grad {
            product::tn(l, Out::grad(w, grads), d, x.rows(c.start, c.rows), 1.0, c.live, s.partial.as_mut())?;
        }
        let dh = Out::of("head input", h)?.rows(c.start, c.rows);
        product::nn(l, dh, d, Operand::slot("head", w)?, 1.0, false, c.live)?;
    }
    sum(l, h, s, loss)
}

/// The chunks of `h`'s rows, as many whatever the live rows.
fn chunks(l: &Launcher, h: &Tensor, s: &mut Scratch) -> Result<Vec<Chunk>> {
    let n = h.rows().div_ceil(s.chunk);
    if !h.live().is_null() {
        let p = abi::CrossEntropyLive {
            counts: s.counts.ptr_mut(),
            live: h.live(),
            chunk: size("rows of a chunk", s.chunk)?,
            chunks: size("chunks", n)?,
        };
        let block = abi::CROSS_ENTROPY_BLOCK;
        l.kernel(kernels::CROSS_ENTROPY_LIVE).grid(n.div_ceil(block as usize)).block(block).launch(&p)?;
    }
    let live = |i| if h.live().is_null() { h.live() } else { s.counts.ptr::<u32>().wrapping_add(i) };
    let chunk = |i| Chunk { start: i * s.chunk, rows: s.chunk.min(h.rows() - i * s.chunk), live: live(i) };
    Ok((0..n).map(chunk).collect())
}

fn logits(l: &Launcher, c: &Chunk, x: Operand, w: Slot, s: &mut Scratch) -> Result<()> {
    let to = Out { rows: c.rows, cols: w.rows, ..Out::of("logits", &mut s.logits)? };
    product::nt(l, to, x.rows(c.start, c.rows), Operand::slot("head", w)?, 1.0, false, c.live)
}

/// Enqueues `cross_entropy_rows` on a chunk.
fn rows(l: &Launcher, c: &Chunk, w: Slot, targets: &Index, s: &mut Scratch, gradient: bool) -> Result<()> {
    let p = abi::CrossEntropyRows {
        loss: s.losses.ptr_mut::<f32>().wrapping_add(c.start),
        logits: s.logits.ptr_mut(),
        targets: on_device("targets", targets)?.wrapping_add(c.start),
        live: c.live,
        step: l.step(),
        rows: size("rows of a chunk", c.rows)?,
        pitch: size("vocabulary", s.logits.cols())?,
        vocab: size("vocabulary", w.rows)?,
        gradient: i32::from(gradient),
    };
    let shared = size_of::<abi::CrossEntropySmem>();
    l.kernel(kernels::CROSS_ENTROPY_ROWS).grid(c.rows).block(abi::CROSS_ENTROPY_BLOCK).shared(shared).launch(&p)
}

/// Enqueues `cross_entropy_sum`.
fn sum(l: &Launcher, h: &Tensor, s: &Scratch, loss: &mut Tensor) -> Result<()> {
    let p = abi::CrossEntropySum {
        total: loss.ptr_mut(),
        loss: s.losses.ptr(),
        live: h.live(),
        rows: size("rows of the head", h.rows())?,
    };
    let shared = size_of::<abi::CrossEntropySmem>();
    l.kernel(kernels::CROSS_ENTROPY_SUM).grid(1).block(abi::CROSS_ENTROPY_BLOCK).shared(shared).launch(&p)
}
