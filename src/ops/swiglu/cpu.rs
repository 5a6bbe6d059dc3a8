use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::tensor::{Float, Real};

/// Elements of a task: enough to outweigh handing it out.
const GRAIN: usize = 8192;

#[inline(always)]
fn sigmoid<A: Real>(x: A) -> A {
    let one = A::of(1.0);
    one / (one + (-x).exp_wide())
}

pub(super) fn fwd<T: Float>(pool: &Pool, h: &mut [T], gate: &[T], up: &[T]) {
    for_rows(pool, GRAIN, rows_of(h, 1), |r, h| {
        wide!({
            for ((h, g), u) in h.iter_mut().zip(&gate[r.clone()]).zip(&up[r]) {
                let g = g.acc();
                *h = T::narrow(g * sigmoid(g) * u.acc());
            }
        })
    });
}

pub(super) fn bwd<T: Float>(pool: &Pool, gate: &mut [T], up: &mut [T], dh: &[T]) {
    for_rows(pool, GRAIN, (rows_of(gate, 1), rows_of(up, 1)), |r, (gate, up)| {
        wide!({
            for ((g, u), d) in gate.iter_mut().zip(up.iter_mut()).zip(&dh[r]) {
                let (gv, uv, d) = (g.acc(), u.acc(), d.acc());
                let s = sigmoid(gv);
                *u = T::narrow(d * gv * s);
                *g = T::narrow(d * uv * s * (T::Acc::of(1.0) + gv * (T::Acc::of(1.0) - s)));
            }
        })
    });
}
