//! Sums in a fixed order that vectorises.

use crate::tensor::Real;

/// sum of f(0..n), in sixteen interleaved partial sums that are added pairwise at the end: the same order, and so the
/// same bits, for every width of vector.
#[inline(always)]
pub(super) fn sum<A: Real>(n: usize, f: impl Fn(usize) -> A) -> A {
    const LANES: usize = 16;
    let zero = A::of(0.0);
    let mut lanes = [zero; LANES];
    let whole = n / LANES * LANES;
    let mut i = 0;
    while i < whole {
        for (l, lane) in lanes.iter_mut().enumerate() {
            *lane += f(i + l);
        }
        i += LANES;
    }
    for (l, lane) in lanes.iter_mut().enumerate().take(n - whole) {
        *lane += f(whole + l);
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    lanes[0]
}
