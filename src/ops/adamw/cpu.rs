use std::ops::Range;

use half::bf16;

use super::{AdamW, Flat};
use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::tensor::{Float, Real};

pub(super) fn step<A: Real>(pool: &Pool, mut flat: Flat, runs: &[(Range<usize>, bool)], a: AdamW, norm: f64) {
    for (range, decay) in runs {
        update::<A>(pool, &mut flat, range.clone(), a, a.clip(norm), *decay);
    }
    if let Some(copy) = flat.copy {
        let from = flat.p.slice::<A>();
        for_rows(pool, 8192, rows_of(copy.slice_mut::<bf16>(), 1), |r, to| {
            wide(|| to.iter_mut().zip(&from[r]).for_each(|(to, x)| *to = bf16::narrow(x.f64() as f32)));
        });
    }
}

fn update<A: Real>(pool: &Pool, flat: &mut Flat, range: Range<usize>, a: AdamW, clip: f64, decay: bool) {
    let (b1, b2) = (A::of(a.beta1), A::of(a.beta2));
    let (c1, c2) = (A::of(1.0 - a.beta1), A::of(1.0 - a.beta2));
    let (step_size, root2) = (A::of(a.step_size()), A::of(a.root2()));
    let shrink = A::of(if decay { a.shrink() } else { 1.0 });
    let (eps, clip) = (A::of(a.eps), A::of(clip));
    let g = &flat.g.slice::<A>()[range.clone()];
    let (p, m, v) = (flat.p.slice_mut::<A>(), flat.m.slice_mut::<A>(), flat.v.slice_mut::<A>());
    let outs = (rows_of(&mut p[range.clone()], 1), rows_of(&mut m[range.clone()], 1), rows_of(&mut v[range], 1));
    for_rows(pool, 4096, outs, |r, (p, m, v)| {
        wide(|| {
            for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(&g[r]) {
                let g = *g * clip;
                *m = b1 * *m + c1 * g;
                *v = b2 * *v + c2 * g * g;
                *p = *p * shrink - step_size * *m / (v.sqrt() / root2 + eps);
            }
        })
    });
}
