use std::ops::Range;

use crate::device::gemm::gemm;
use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::ops::Slot;
use crate::ops::sums::sum;
use crate::ops::{mat, out};
use crate::tensor::{Float, Real, Tensor};

/// log sum exp of a row.
#[inline(always)]
fn log_sum_exp<A: Real>(row: &[A]) -> A {
    let max = row.iter().fold(A::of(f64::NEG_INFINITY), |m, &x| if x > m || x.is_nan() { x } else { m });
    max + sum(row.len(), |c| (row[c] - max).exp_wide()).ln()
}

/// Chunks of rows that fit the scratch.
fn chunks(rows: usize, scratch: usize, vocab: usize) -> impl Iterator<Item = Range<usize>> {
    let per = (scratch / vocab).max(1);
    (0..rows).step_by(per).map(move |r| r..(r + per).min(rows))
}

pub(super) fn fwd<T: Float>(pool: &Pool, h: &[T], w: Slot, targets: &[u32], logits: &mut [T::Acc]) -> f64 {
    let (vocab, hidden) = (w.rows, w.cols);
    let mut losses = vec![0.0; targets.len()];
    for r in chunks(targets.len(), logits.len(), vocab) {
        let logits = &mut logits[..r.len() * vocab];
        gemm(
            Some(pool),
            1.0,
            mat(&h[r.start * hidden..r.end * hidden], r.len(), hidden),
            mat(w.slice::<T>(), vocab, hidden).t(),
            0.0,
            out(logits, vocab),
        );
        let (logits, targets) = (&*logits, &targets[r.clone()]);
        for_rows(pool, 1, rows_of(&mut losses[r], 1), |rows, losses| {
            for (i, loss) in rows.zip(losses) {
                let row = &logits[i * vocab..(i + 1) * vocab];
                *loss = (wide!(log_sum_exp(row)) - row[targets[i] as usize]).f64();
            }
        });
    }
    losses.iter().sum()
}

pub(super) fn fwd_bwd<T: Float>(
    pool: &Pool,
    h: &mut [T],
    w: Slot,
    targets: &[u32],
    scale: f64,
    (logits, dlogits): (&mut [T::Acc], &mut [T]),
    grads: &mut Tensor,
) -> f64 {
    let (vocab, hidden) = (w.rows, w.cols);
    let scale = T::Acc::of(scale);
    let mut losses = vec![0.0; targets.len()];
    for r in chunks(targets.len(), logits.len(), vocab) {
        let (m, h) = (r.len(), &mut h[r.start * hidden..r.end * hidden]);
        let (logits, dlogits) = (&mut logits[..m * vocab], &mut dlogits[..m * vocab]);
        gemm(Some(pool), 1.0, mat(h, m, hidden), mat(w.slice::<T>(), vocab, hidden).t(), 0.0, out(logits, vocab));
        let (logits, targets) = (&*logits, &targets[r.clone()]);
        for_rows(pool, 1, (rows_of(&mut losses[r], 1), rows_of(dlogits, vocab)), |rows, (losses, dlogits)| {
            for ((i, loss), d) in rows.zip(losses).zip(dlogits.chunks_exact_mut(vocab)) {
                let (row, target) = (&logits[i * vocab..(i + 1) * vocab], targets[i] as usize);
                wide!({
                    let lse = log_sum_exp(row);
                    *loss = (lse - row[target]).f64();
                    for (d, &x) in d.iter_mut().zip(row) {
                        *d = T::narrow((x - lse).exp_wide() * scale);
                    }
                    // p - 1 without the cancellation of rounding p first.
                    d[target] = T::narrow(((row[target] - lse).exp_wide() - T::Acc::of(1.0)) * scale);
                });
            }
        });
        if w.grad {
            gemm(
                Some(pool),
                1.0,
                mat(dlogits, m, vocab).t(),
                mat(h, m, hidden),
                1.0,
                out(w.grad_of::<T::Acc>(grads), hidden),
            );
        }
        gemm(Some(pool), 1.0, mat(dlogits, m, vocab), mat(w.slice::<T>(), vocab, hidden), 0.0, out(h, hidden));
    }
    losses.iter().sum()
}
