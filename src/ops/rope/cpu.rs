use super::{Table, Turn};
use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::tensor::{Float, Real};

pub(super) fn apply<T: Float>(pool: &Pool, x: &mut [T], width: usize, positions: &[u32], t: &Table, turn: Turn) {
    let half = t.half;
    let sign = T::Acc::of(if turn == Turn::Forward { 1.0 } else { -1.0 });
    for_rows(pool, 16, rows_of(x, width), |rows, x| {
        wide!({
            for (row, &p) in x.chunks_exact_mut(width).zip(&positions[rows]) {
                let (cos, sin) = (&t.cos[p as usize * half..][..half], &t.sin[p as usize * half..][..half]);
                for head in row.chunks_exact_mut(2 * half) {
                    let (lo, hi) = head.split_at_mut(half);
                    for i in 0..half {
                        let (c, s) = (T::Acc::of(cos[i]), T::Acc::of(sin[i]) * sign);
                        let (a, b) = (lo[i].acc(), hi[i].acc());
                        lo[i] = T::narrow(a * c - b * s);
                        hi[i] = T::narrow(b * c + a * s);
                    }
                }
            }
        })
    });
}
