use std::ops::Range;

use half::bf16;

use super::moments::{BLOCK, Codes};
use super::{AdamW, Flat, Moments};
use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::tensor::{Float, Real, Tensor};

type Runs = [(Range<usize>, bool)];

pub(super) fn step<A: Real>(pool: &Pool, flat: Flat, runs: &Runs, a: AdamW, norm: f64) {
    let Flat { p, moments, g, copy } = flat;
    let clip = a.clip(norm);
    match moments {
        Moments::Full { m, v } => {
            for (range, decay) in runs {
                let c = Constants::new(a, clip, *decay);
                let (p, m, v) = (p.slice_mut::<A>(), m.slice_mut::<A>(), v.slice_mut::<A>());
                let (p, m, v) = (&mut p[range.clone()], &mut m[range.clone()], &mut v[range.clone()]);
                let g = &g.slice::<A>()[range.clone()];
                for_rows(pool, 4096, (rows_of(p, 1), rows_of(m, 1), rows_of(v, 1)), |r, (p, m, v)| {
                    wide!(update(c, p, m, v, &g[r]))
                });
            }
        }
        Moments::Eight { m, v } => eight_bit(pool, p, m, v, g, runs, a, clip),
    }
    if let Some(copy) = copy {
        let from = p.slice::<A>();
        for_rows(pool, 8192, rows_of(copy.slice_mut::<bf16>(), 1), |r, to| {
            wide!(to.iter_mut().zip(&from[r]).for_each(|(to, x)| *to = bf16::narrow(x.f64() as f32)));
        });
    }
}

#[derive(Clone, Copy)]
struct Constants<A> {
    b1: A,
    b2: A,
    c1: A,
    c2: A,
    step_size: A,
    root2: A,
    shrink: A,
    eps: A,
    clip: A,
}

impl<A: Real> Constants<A> {
    fn new(a: AdamW, clip: f64, decay: bool) -> Self {
        Constants {
            b1: A::of(a.beta1),
            b2: A::of(a.beta2),
            c1: A::of(1.0 - a.beta1),
            c2: A::of(1.0 - a.beta2),
            step_size: A::of(a.step_size()),
            root2: A::of(a.root2()),
            shrink: A::of(if decay { a.shrink() } else { 1.0 }),
            eps: A::of(a.eps),
            clip: A::of(clip),
        }
    }
}

#[inline(always)]
fn update<A: Real>(c: Constants<A>, p: &mut [A], m: &mut [A], v: &mut [A], g: &[A]) {
    for (((p, m), v), g) in p.iter_mut().zip(m).zip(v).zip(g) {
        let g = *g * c.clip;
        *m = c.b1 * *m + c.c1 * g;
        *v = c.b2 * *v + c.c2 * g * g;
        *p = *p * c.shrink - c.step_size * *m / (v.sqrt() / c.root2 + c.eps);
    }
}

/// Block by block: the moments widened, the step as above, and they rounded again.
#[allow(clippy::too_many_arguments)] // The parts of `Flat`, of f32, and the step's constants.
fn eight_bit(pool: &Pool, p: &mut Tensor, m: &mut Codes, v: &mut Codes, g: &Tensor, runs: &Runs, a: AdamW, clip: f64) {
    let (m_map, v_map) = (m.map(), v.map());
    let constants = [false, true].map(|decay| Constants::<f32>::new(a, clip, decay));
    let g = g.slice::<f32>();
    let block = |start: usize, p: &mut [f32], (m, v): (&mut [u8], &mut [u8]), (ma, va): (&mut f32, &mut f32)| {
        let n = p.len();
        let (mut wide_m, mut wide_v) = ([0f32; BLOCK], [0f32; BLOCK]);
        let (wide_m, wide_v) = (&mut wide_m[..n], &mut wide_v[..n]);
        m_map.decode(m, *ma, wide_m);
        v_map.decode(v, *va, wide_v);
        for (range, decay) in &runs[runs.partition_point(|(range, _)| range.end <= start)..] {
            if range.start >= start + n {
                break;
            }
            let part = range.start.max(start) - start..range.end.min(start + n) - start;
            let g = &g[start + part.start..start + part.end];
            let (p, m, v) = (&mut p[part.clone()], &mut wide_m[part.clone()], &mut wide_v[part]);
            wide!(update(constants[usize::from(*decay)], p, m, v, g));
        }
        *ma = m_map.encode(wide_m, m);
        *va = v_map.encode(wide_v, v);
    };
    let p = p.slice_mut::<f32>();
    let whole = p.len() / BLOCK;
    let (p, p_rest) = p.split_at_mut(whole * BLOCK);
    let (m_codes, m_rest) = m.codes.bytes_mut().split_at_mut(whole * BLOCK);
    let (v_codes, v_rest) = v.codes.bytes_mut().split_at_mut(whole * BLOCK);
    let (m_absmax, ma_rest) = m.absmax.slice_mut::<f32>().split_at_mut(whole);
    let (v_absmax, va_rest) = v.absmax.slice_mut::<f32>().split_at_mut(whole);
    let outs = (
        rows_of(p, BLOCK),
        (rows_of(m_codes, BLOCK), rows_of(v_codes, BLOCK)),
        (rows_of(m_absmax, 1), rows_of(v_absmax, 1)),
    );
    for_rows(pool, 16, outs, |r, (p, (m, v), (ma, va))| {
        let codes = m.chunks_exact_mut(BLOCK).zip(v.chunks_exact_mut(BLOCK));
        let all = p.chunks_exact_mut(BLOCK).zip(codes).zip(ma.iter_mut().zip(va));
        for (i, ((p, codes), absmax)) in r.zip(all) {
            block(i * BLOCK, p, codes, absmax);
        }
    });
    if let ([ma], [va]) = (ma_rest, va_rest) {
        block(whole * BLOCK, p_rest, (m_rest, v_rest), (ma, va));
    }
}
