use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::ops::sums::sum;
use crate::tensor::{Float, Real};

/// Elements of one partial sum. Part of the definition: another size would give other last bits.
const CHUNK: usize = 1 << 14;

pub(super) fn norm<T: Float>(pool: &Pool, g: &[T]) -> f64 {
    let mut partial = vec![0.0f64; g.len().div_ceil(CHUNK)];
    for_rows(pool, 1, rows_of(&mut partial, 1), |r, out| {
        for (i, out) in r.zip(out) {
            let g = &g[i * CHUNK..((i + 1) * CHUNK).min(g.len())];
            *out = wide!({
                sum(g.len(), |c| {
                    let x = g[c].acc().f64();
                    x * x
                })
            });
        }
    });
    partial.iter().sum::<f64>().sqrt()
}
