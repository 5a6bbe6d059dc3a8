//! The head and its loss in one: logits = h W^T, loss = sum over rows of -log softmax(logits)[target].
//!
//! Logits exist for a chunk of rows at a time, in the accumulator type; the gradient is taken in the same pass (by kernels
//! in the place of the logits):
//! dlogits = (softmax - onehot) * scale; dh = dlogits W; and for a trained head dW += dlogits^T h.

mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::Exec;
use crate::error::{Error, Result};
use crate::ops::{Slot, product};
use crate::tensor::{DType, Element, Float, Index, Tensor};

/// Logits of at most this many elements are alive at once (32 MB in f32).
const CHUNK_ELEMENTS: usize = 8 << 20;

/// Rows of a chunk for a vocabulary.
pub fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_ELEMENTS / vocab.max(1)).clamp(16, 1024)
}

/// As [`CHUNK_ELEMENTS`], for kernels (256 MB in f32): with fewer rows the products would read the head too often.
const KERNEL_CHUNK_ELEMENTS: usize = 64 << 20;

/// As [`chunk_rows`], for kernels: whole tiles of their products.
pub fn kernel_chunk_rows(vocab: usize) -> usize {
    (KERNEL_CHUNK_ELEMENTS / vocab.max(1) / 128 * 128).clamp(128, 1024)
}

/// What kernels need room for, besides the gradients.
struct Scratch {
    /// Rows of a chunk.
    chunk: usize,
    /// (chunk, vocab rounded up to 16-byte packs of bf16), f32; in its place their gradient.
    logits: Tensor,
    /// The loss of each row, f32.
    losses: Tensor,
    /// The live rows of each chunk, u32.
    counts: Tensor,
    /// Partial sums of the head's gradient, if its product needs them.
    partial: Option<Tensor>,
}

impl Scratch {
    fn new(h: &Tensor, w: Slot, gradient: bool) -> Result<Self> {
        let chunk = kernel_chunk_rows(w.rows).min(h.rows()).max(1);
        let unwritten = |rows, cols| Tensor::unwritten(rows, cols, DType::F32, h.device());
        let partial = if gradient && w.grad { product::tn_scratch(w.rows, w.cols, chunk) } else { 0 };
        Ok(Scratch {
            chunk,
            logits: unwritten(chunk, w.rows.next_multiple_of(8))?,
            losses: unwritten(1, h.rows())?,
            counts: unwritten(1, h.rows().div_ceil(chunk))?,
            partial: if partial > 0 { Some(unwritten(1, partial)?) } else { None },
        })
    }
}

/// Adds to `loss` (1, 1; f64) the sum of the losses of `h` (rows, hidden), row r against `targets[r]`, under the head `w`
/// (vocab, hidden).
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit or a target lies outside the vocabulary.
pub fn fwd(h: &Tensor, w: Slot, targets: &Index, loss: &mut Tensor) -> Result<()> {
    check(h, w, targets)?;
    loss.expect("loss", 1, 1, DType::F64)?;
    let acc = by_dtype!(h.dtype(), T => <<T as Float>::Acc as Element>::DTYPE);
    match h.device().exec() {
        Exec::Cpu(pool) => {
            let mut logits = chunk(h, w, acc)?;
            loss.slice_mut::<f64>()[0] +=
                by_dtype!(h.dtype(), T => cpu::fwd::<T>(pool, h.slice(), w, targets.numbers(), logits.slice_mut()));
        }
        Exec::Kernels(l) => launch::fwd(l, h, w, targets, &mut Scratch::new(h, w, false)?, loss)?,
        Exec::Plan(p) => {
            if h.device().runs_kernels() {
                Scratch::new(h, w, false)?;
            } else {
                chunk(h, w, acc)?;
            }
            p.flops(2.0 * h.len() as f64 * w.rows as f64);
        }
    }
    Ok(())
}

/// The same, and the gradient times `scale` in the place of `h`; `w`'s is added to `grads` where it is trained. (Kernels
/// read the scale from the step.)
///
/// # Errors
/// As [`fwd`].
pub fn fwd_bwd(
    mut h: Tensor,
    w: Slot,
    targets: &Index,
    scale: f64,
    loss: &mut Tensor,
    grads: &mut Tensor,
) -> Result<Tensor> {
    check(&h, w, targets)?;
    loss.expect("loss", 1, 1, DType::F64)?;
    let device = h.device().clone();
    let acc = by_dtype!(h.dtype(), T => <<T as Float>::Acc as Element>::DTYPE);
    match device.exec() {
        Exec::Cpu(pool) => by_dtype!(h.dtype(), T => {
            let (mut logits, mut dlogits) = (chunk(&h, w, acc)?, chunk(&h, w, h.dtype())?);
            let scratch = (logits.slice_mut(), dlogits.slice_mut());
            loss.slice_mut::<f64>()[0] +=
                cpu::fwd_bwd::<T>(pool, h.slice_mut(), w, targets.numbers(), scale, scratch, grads)
        }),
        Exec::Kernels(l) => {
            let mut scratch = Scratch::new(&h, w, true)?;
            launch::fwd_bwd(l, &mut h, w, targets, &mut scratch, loss, grads)?;
        }
        Exec::Plan(p) => {
            if device.runs_kernels() {
                Scratch::new(&h, w, true)?;
            } else {
                let (_logits, _dlogits) = (chunk(&h, w, acc)?, chunk(&h, w, h.dtype())?);
            }
            p.flops(if w.grad { 6.0 } else { 4.0 } * h.len() as f64 * w.rows as f64);
        }
    }
    Ok(h)
}

/// Room for the logits of one chunk.
fn chunk(h: &Tensor, w: Slot, dtype: DType) -> Result<Tensor> {
    Tensor::unwritten(chunk_rows(w.rows).min(h.rows()), w.rows, dtype, h.device())
}

fn check(h: &Tensor, w: Slot, targets: &Index) -> Result<()> {
    w.expect("head", w.rows, h.cols(), h)?;
    if targets.rows() != h.rows() {
        return Err(Error::shape("targets", format!("has {} elements, h has {} rows", targets.rows(), h.rows())));
    }
    match targets.numbers().iter().find(|&&t| t as usize >= w.rows) {
        Some(t) => Err(Error::shape("targets", format!("holds {t}, the vocabulary ends at {}", w.rows))),
        None => Ok(()),
    }
}
