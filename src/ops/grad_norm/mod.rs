//! The Euclidean norm of the flat gradient: squares summed in f64, chunk by chunk, in a fixed order.

use crate::by_dtype;
use crate::device::Exec;
use crate::device::par::{for_rows, rows_of};
use crate::device::simd::wide;
use crate::ops::sums::sum;
use crate::tensor::{Float, Real, Tensor};

/// Elements of one partial sum. Part of the definition: another size would give other last bits.
const CHUNK: usize = 1 << 14;

/// sqrt(sum g^2). NaN or infinite if any element is. 0 in a plan.
pub fn run(g: &Tensor) -> f64 {
    let Exec::Cpu(pool) = g.device().exec() else { return 0.0 };
    by_dtype!(g.dtype(), T => {
        let g = g.slice::<T>();
        let mut partial = vec![0.0f64; g.len().div_ceil(CHUNK)];
        for_rows(pool, 1, rows_of(&mut partial, 1), |r, out| {
            for (i, out) in r.zip(out) {
                let g = &g[i * CHUNK..((i + 1) * CHUNK).min(g.len())];
                *out = wide(|| sum(g.len(), |c| { let x = g[c].acc().f64(); x * x }));
            }
        });
        partial.iter().sum::<f64>().sqrt()
    })
}
