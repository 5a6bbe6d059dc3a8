use super::LayerNorm;
use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::ops::sums::sum;
use crate::tensor::{Float, Real, Tensor};
use num_traits::Float as _;

/// mean and rstd of a row.
#[inline(always)]
fn stats<T: Float>(x: &[T], eps: f64) -> (T::Acc, T::Acc) {
    let n = T::Acc::of(x.len() as f64);
    let mean = sum(x.len(), |c| x[c].acc()) / n;
    let variance = sum(x.len(), |c| (x[c].acc() - mean) * (x[c].acc() - mean)) / n;
    (mean, (variance + T::Acc::of(eps)).sqrt().recip())
}

pub(super) fn fwd<T: Float>(pool: &Pool, y: &mut [T], x: &[T], w: &[T], b: Option<&[T]>, eps: f64) {
    let n = w.len();
    for_rows(pool, 32, rows_of(y, n), |rows, y| {
        wide!({
            for (y, x) in y.chunks_exact_mut(n).zip(x[rows.start * n..rows.end * n].chunks_exact(n)) {
                let (mean, rstd) = stats(x, eps);
                for c in 0..n {
                    let shift = b.map_or(T::Acc::of(0.0), |b| b[c].acc());
                    y[c] = T::narrow((x[c].acc() - mean) * rstd * w[c].acc() + shift);
                }
            }
        })
    });
}

pub(super) fn bwd<T: Float>(pool: &Pool, dx: &mut [T], accumulate: bool, x: &[T], w: &[T], dy: &[T], eps: f64) {
    let n = w.len();
    for_rows(pool, 32, rows_of(dx, n), |rows, dx| {
        wide!({
            let (x, dy) = (&x[rows.start * n..rows.end * n], &dy[rows.start * n..rows.end * n]);
            for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
                let (mean, rstd) = stats(x, eps);
                let (g, h) = (|c: usize| dy[c].acc() * w[c].acc(), |c: usize| (x[c].acc() - mean) * rstd);
                let count = T::Acc::of(n as f64);
                let (mean_g, mean_gh) = (sum(n, g) / count, sum(n, |c| g(c) * h(c)) / count);
                for (c, dx) in dx.iter_mut().enumerate() {
                    let d = rstd * (g(c) - mean_g - h(c) * mean_gh);
                    *dx = T::narrow(if accumulate { dx.acc() + d } else { d });
                }
            }
        })
    });
}

/// dw and db, where they are trained, in the order of the rows.
pub(super) fn bwd_weight<T: Float>(norm: LayerNorm, grads: &mut Tensor, x: &[T], dy: &[T]) {
    let n = norm.w.len();
    if norm.w.grad {
        let dw = norm.w.grad_of::<T::Acc>(grads);
        for (x, dy) in x.chunks_exact(n).zip(dy.chunks_exact(n)) {
            let (mean, rstd) = stats(x, norm.eps);
            for c in 0..n {
                dw[c] += dy[c].acc() * ((x[c].acc() - mean) * rstd);
            }
        }
    }
    if let Some(b) = norm.b.filter(|b| b.grad) {
        let db = b.grad_of::<T::Acc>(grads);
        for dy in dy.chunks_exact(n) {
            db.iter_mut().zip(dy).for_each(|(db, d)| *db += d.acc());
        }
    }
}
