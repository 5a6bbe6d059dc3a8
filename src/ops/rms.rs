//! Root-mean-square norm of groups on the CPU, for the ops `rms_norm` (formulas there) and `rope`.

use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::ops::sums::sum;
use crate::tensor::{Float, Real};
use num_traits::Float as _;

#[inline(always)]
fn rstd<T: Float>(x: &[T], eps: f64) -> T::Acc {
    let mean = sum(x.len(), |c| x[c].acc() * x[c].acc()) / T::Acc::of(x.len() as f64);
    (mean + T::Acc::of(eps)).sqrt().recip()
}

pub(crate) fn fwd<T: Float>(pool: &Pool, y: &mut [T], x: &[T], w: &[T], eps: f64) {
    let n = w.len();
    for_rows(pool, 32, rows_of(y, n), |rows, y| {
        wide!({
            for (y, x) in y.chunks_exact_mut(n).zip(x[rows.start * n..rows.end * n].chunks_exact(n)) {
                let r = rstd(x, eps);
                for c in 0..n {
                    y[c] = T::narrow(x[c].acc() * r * w[c].acc());
                }
            }
        })
    });
}

pub(crate) fn bwd<T: Float>(pool: &Pool, dx: &mut [T], accumulate: bool, x: &[T], w: &[T], dy: &[T], eps: f64) {
    let n = w.len();
    for_rows(pool, 32, rows_of(dx, n), |rows, dx| {
        wide!({
            let (x, dy) = (&x[rows.start * n..rows.end * n], &dy[rows.start * n..rows.end * n]);
            for ((dx, x), dy) in dx.chunks_exact_mut(n).zip(x.chunks_exact(n)).zip(dy.chunks_exact(n)) {
                let r = rstd(x, eps);
                let m = sum(n, |c| dy[c].acc() * w[c].acc() * x[c].acc()) / T::Acc::of(n as f64);
                let k = r * r * m;
                for c in 0..n {
                    let d = r * (dy[c].acc() * w[c].acc() - x[c].acc() * k);
                    dx[c] = T::narrow(if accumulate { dx[c].acc() + d } else { d });
                }
            }
        })
    });
}

/// dw[c] += sum over rows, in the order of the rows.
pub(crate) fn bwd_weight<T: Float>(_pool: &Pool, dw: &mut [T::Acc], x: &[T], dy: &[T], eps: f64) {
    let n = dw.len();
    wide!({
        for (x, dy) in x.chunks_exact(n).zip(dy.chunks_exact(n)) {
            let r = rstd(x, eps);
            for c in 0..n {
                dw[c] += dy[c].acc() * x[c].acc() * r;
            }
        }
    });
}
