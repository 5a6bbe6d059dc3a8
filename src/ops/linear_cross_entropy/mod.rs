//! The head and its loss in one: logits = h W^T, loss = sum over rows of -log softmax(logits)[target].
//!
//! Logits exist for a chunk of rows at a time, in the accumulator type; the gradient is taken in the same pass:
//! dlogits = (softmax - onehot) * scale; dh = dlogits W; and for a trained head dW += dlogits^T h.

mod cpu;

use crate::by_dtype;
use crate::device::Exec;
use crate::error::{Error, Result};
use crate::ops::{Slot, no_kernel};
use crate::tensor::{DType, Float, Index, Tensor};

/// Logits of at most this many elements are alive at once (32 MB in f32).
const CHUNK_ELEMENTS: usize = 8 << 20;

/// Rows of a chunk for a vocabulary.
pub fn chunk_rows(vocab: usize) -> usize {
    (CHUNK_ELEMENTS / vocab.max(1)).clamp(16, 1024)
}

/// Adds to `loss` (1, 1; f64) the sum of the losses of `h` (rows, hidden), row r against `targets[r]`, under the head `w`
/// (vocab, hidden).
///
/// # Errors
/// [`Error::Shape`] if shapes do not fit or a target lies outside the vocabulary.
pub fn fwd(h: &Tensor, w: Slot, targets: &Index, loss: &mut Tensor) -> Result<()> {
    check(h, w, targets)?;
    let mut logits = chunk(h, w, by_dtype!(h.dtype(), T => <<T as Float>::Acc as Float>::DTYPE))?;
    match h.device().exec() {
        Exec::Cpu(pool) => {
            loss.slice_mut::<f64>()[0] +=
                by_dtype!(h.dtype(), T => cpu::fwd::<T>(pool, h.slice(), w, targets.numbers(), logits.slice_mut()));
        }
        Exec::Kernels(_) => return Err(no_kernel("linear_cross_entropy", "not built")),
        Exec::Plan(p) => p.flops(2.0 * h.len() as f64 * w.rows as f64),
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
    let device = h.device().clone();
    let mut logits = chunk(&h, w, by_dtype!(h.dtype(), T => <<T as Float>::Acc as Float>::DTYPE))?;
    let mut dlogits = chunk(&h, w, h.dtype())?;
    match device.exec() {
        Exec::Cpu(pool) => by_dtype!(h.dtype(), T => {
            let scratch = (logits.slice_mut(), dlogits.slice_mut());
            loss.slice_mut::<f64>()[0] +=
                cpu::fwd_bwd::<T>(pool, h.slice_mut(), w, targets.numbers(), scale, scratch, grads)
        }),
        Exec::Kernels(_) => return Err(no_kernel("linear_cross_entropy", "not built")),
        Exec::Plan(p) => p.flops(if w.grad { 6.0 } else { 4.0 } * h.len() as f64 * w.rows as f64),
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
