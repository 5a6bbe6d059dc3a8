use std::cell::RefCell;
use std::ops::Range;

use super::Attention;
use crate::device::gemm::{View, gemm};
use crate::device::par::{Blocks, blocks_of, for_blocks};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::ops::sums::sum;
use crate::ops::{mat, out};
use crate::tensor::{Float, Real};
use num_traits::Float as _;

/// Queries of a tile: its scores against a few thousand keys then stay in the second-level cache.
pub(super) const TILE: usize = 64;

/// Rows of one head: `data` (tokens, heads * dim), rows `r`.
pub(super) fn head<T: Float>(data: &[T], width: usize, r: Range<usize>, head: usize, dim: usize) -> View<'_> {
    let from = r.start * width + head * dim;
    let rows = r.len();
    let to = if rows == 0 { from } else { from + (rows - 1) * width + dim };
    View { src: T::src(&data[from..to]), rows, cols: dim, row_stride: width, col_stride: 1 }
}

/// Keys that query `i` (from the start of its span) sees.
pub(super) fn seen(i: usize, window: Option<usize>) -> Range<usize> {
    window.map_or(0, |w| (i + 1).saturating_sub(w))..i + 1
}

/// A tile of queries of one span: its queries, and all keys that any of them sees. Counted from the span's start.
fn tile(start: usize, len: usize, window: Option<usize>) -> (Range<usize>, Range<usize>) {
    let queries = start..(start + TILE).min(len);
    let keys = seen(start, window).start..queries.end;
    (queries, keys)
}

/// At least `n` elements of scratch.
pub(super) fn room<T: Float>(v: &mut Vec<T>, n: usize) -> &mut [T] {
    if v.len() < n {
        v.resize(n, T::narrow(T::Acc::of(0.0)));
    }
    &mut v[..n]
}

/// Scratch of a task: scores and sums in the accumulator type, operands of products in the storage type. A thread keeps
/// it, as large as the largest tile it has seen.
type Scratch<T> = ([Vec<<T as Float>::Acc>; 5], [Vec<T>; 2]);

/// Types that have a scratch of their own on each thread.
pub(super) trait HasScratch: Float {
    fn with_scratch<R>(f: impl FnOnce(&mut Scratch<Self>) -> R) -> R;
}

macro_rules! scratch {
    ($($T:ty)+) => {$(
        impl HasScratch for $T {
            fn with_scratch<R>(f: impl FnOnce(&mut Scratch<$T>) -> R) -> R {
                thread_local! { static SCRATCH: RefCell<Scratch<$T>> = RefCell::default(); }
                SCRATCH.with_borrow_mut(f)
            }
        }
    )+};
}
scratch!(f64 f32 half::bf16);

/// Spans as ranges of rows.
fn spans(a: &Attention) -> Vec<Range<usize>> {
    a.cu_seqlens.numbers().windows(2).map(|w| w[0] as usize..w[1] as usize).collect()
}

pub(super) fn fwd<T: HasScratch>(
    pool: &Pool,
    o: &mut [T],
    lse: &mut [T::Acc],
    q: &[T],
    k: &[T],
    v: &[T],
    a: &Attention,
) {
    let (d, group) = (a.head_dim, a.heads / a.kv_heads);
    let (q_width, kv_width) = (a.heads * d, a.kv_heads * d);
    // (start of the span, queries, keys), the latter two counted from it
    let mut tiles = Vec::new();
    for span in spans(a) {
        tiles.extend((0..span.len()).step_by(TILE).map(|s| (span.start, tile(s, span.len(), a.window))));
    }
    let rows: Vec<_> = tiles.iter().map(|(at, (queries, _))| at + queries.start..at + queries.end).collect();
    let outs = [blocks_of(o, a.heads, d)];
    for_blocks(pool, &rows, a.heads, outs, [blocks_of(lse, a.heads, 1)], |i, h, [mut o], [mut lse]| {
        let (at, (queries, keys)) = &tiles[i];
        let key_rows = at + keys.start..at + keys.end;
        let (m, n) = (queries.len(), keys.len());
        let how = a.scores.of::<T::Acc>(h, d);
        T::with_scratch(|([scores, sums, ..], [p, _])| {
            let (scores, sums, p) = (room(scores, m * n), room(sums, m * d), room(p, m * n));
            let qs = head(q, q_width, rows[i].clone(), h, d);
            let ks = head(k, kv_width, key_rows.clone(), h / group, d);
            gemm(None, 1.0, qs, ks.t(), 0.0, out(scores, n));
            wide!({
                for (r, (scores, p)) in scores.chunks_exact_mut(n).zip(p.chunks_exact_mut(n)).enumerate() {
                    let see = visible(queries.start + r, keys, a.window);
                    let scale = how.prepare(scores, &see);
                    lse.row_mut(r)[0] = softmax(scores, p, see, scale);
                }
            });
            gemm(None, 1.0, mat(p, m, n), head(v, kv_width, key_rows, h / group, d), 0.0, out(sums, d));
            for (r, sums) in sums.chunks_exact(d).enumerate() {
                o.row_mut(r).iter_mut().zip(sums).for_each(|(o, &s)| *o = T::narrow(s));
            }
        });
    });
}

/// The keys that query `i` sees, as columns of a tile whose first column is `keys.start`.
pub(super) fn visible(i: usize, keys: &Range<usize>, window: Option<usize>) -> Range<usize> {
    let see = seen(i, window);
    see.start - keys.start..see.end - keys.start
}

/// p = softmax(scale * scores) over the visible columns, 0 elsewhere; returns log sum exp.
#[inline(always)]
pub(super) fn softmax<T: Float>(scores: &[T::Acc], p: &mut [T], see: Range<usize>, scale: T::Acc) -> T::Acc {
    let zero = T::narrow(T::Acc::of(0.0));
    p[..see.start].fill(zero);
    p[see.end..].fill(zero);
    let (s, p) = (&scores[see.clone()], &mut p[see]);
    let max = s.iter().fold(T::Acc::of(f64::NEG_INFINITY), |m, &x| if x > m || x.is_nan() { x } else { m }) * scale;
    let total = sum(s.len(), |c| (s[c] * scale - max).exp_wide());
    let lse = max + total.ln();
    for (p, &s) in p.iter_mut().zip(s) {
        *p = T::narrow((s * scale - lse).exp_wide());
    }
    lse
}

/// A task is one span and one kv head with the query heads it serves: it owns its rows and columns of dq, dk and dv.
pub(super) fn bwd<T: HasScratch>(
    pool: &Pool,
    [dq, dk, dv]: [&mut [T]; 3],
    lse: &[T::Acc],
    [q, k, v]: [&[T]; 3],
    o: &[T],
    d_o: &[T],
    a: &Attention,
) {
    let (d, group) = (a.head_dim, a.heads / a.kv_heads);
    let (q_width, kv_width) = (a.heads * d, a.kv_heads * d);
    let spans = spans(a);
    let outs = [blocks_of(dq, a.kv_heads, group * d), blocks_of(dk, a.kv_heads, d), blocks_of(dv, a.kv_heads, d)];
    for_blocks(pool, &spans, a.kv_heads, outs, [] as [Blocks<'_, T>; 0], |i, kv, [mut dq, mut dk, mut dv], _| {
        let span = spans[i].clone();
        let len = span.len();
        T::with_scratch(|([scores, dp, dq_sums, dk_sums, dv_sums], [p, ds])| {
            let (dk_sums, dv_sums) = (room(dk_sums, len * d), room(dv_sums, len * d));
            dk_sums.fill(T::Acc::of(0.0));
            dv_sums.fill(T::Acc::of(0.0));
            for h in kv * group..(kv + 1) * group {
                let how = a.scores.of::<T::Acc>(h, d);
                for start in (0..len).step_by(TILE) {
                    let (queries, keys) = tile(start, len, a.window);
                    let (m, n) = (queries.len(), keys.len());
                    let rows = span.start + queries.start..span.start + queries.end;
                    let key_rows = span.start + keys.start..span.start + keys.end;
                    let (scores, dp) = (room(scores, m * n), room(dp, m * n));
                    let (p, ds, dq_sums) = (room(p, m * n), room(ds, m * n), room(dq_sums, m * d));
                    let (qs, dos) = (head(q, q_width, rows.clone(), h, d), head(d_o, q_width, rows.clone(), h, d));
                    let (ks, vs) = (head(k, kv_width, key_rows.clone(), kv, d), head(v, kv_width, key_rows, kv, d));
                    gemm(None, 1.0, qs, ks.t(), 0.0, out(scores, n));
                    gemm(None, 1.0, dos, vs.t(), 0.0, out(dp, n));
                    wide!({
                        for r in 0..m {
                            let at = (rows.start + r) * q_width + h * d;
                            let (o, d_o) = (&o[at..at + d], &d_o[at..at + d]);
                            let delta = sum(d, |c| o[c].acc() * d_o[c].acc());
                            let lse = lse[(rows.start + r) * a.heads + h];
                            let see = visible(queries.start + r, &keys, a.window);
                            let row = r * n..(r + 1) * n;
                            let (p, ds) = (&mut p[row.clone()], &mut ds[row.clone()]);
                            let (s, dp, how) = (&scores[row.clone()], &dp[row], how);
                            // By value, so that nothing but the columns is read in the loop.
                            if how.plain {
                                let scale = how.scale;
                                softmax_bwd(move |c| (s[c] * scale, scale), dp, p, ds, see, (lse, delta));
                            } else {
                                let last = see.end - 1;
                                softmax_bwd(move |c| how.of(s[c], last - c), dp, p, ds, see, (lse, delta));
                            }
                        }
                    });
                    gemm(None, 1.0, mat(ds, m, n), ks, 0.0, out(dq_sums, d));
                    for (r, sums) in dq_sums.chunks_exact(d).enumerate() {
                        let row = &mut dq.row_mut(queries.start + r)[(h - kv * group) * d..][..d];
                        row.iter_mut().zip(sums).for_each(|(x, &s)| *x = T::narrow(s));
                    }
                    let keys = keys.start * d..keys.end * d;
                    gemm(None, 1.0, mat(p, m, n).t(), dos, 1.0, out(&mut dv_sums[keys.clone()], d));
                    gemm(None, 1.0, mat(ds, m, n).t(), qs, 1.0, out(&mut dk_sums[keys], d));
                }
            }
            for r in 0..len {
                dk.row_mut(r).iter_mut().zip(&dk_sums[r * d..]).for_each(|(x, &s)| *x = T::narrow(s));
                dv.row_mut(r).iter_mut().zip(&dv_sums[r * d..]).for_each(|(x, &s)| *x = T::narrow(s));
            }
        });
    });
}

/// One query: p = e^(s - lse) and ds = s' p (dp - delta) over the visible columns, 0 elsewhere. `score` gives s and its derivative s'
/// by the product q . k.
#[inline(always)]
fn softmax_bwd<T: Float>(
    score: impl Fn(usize) -> (T::Acc, T::Acc),
    dp: &[T::Acc],
    p: &mut [T],
    ds: &mut [T],
    see: Range<usize>,
    (lse, delta): (T::Acc, T::Acc),
) {
    let zero = T::narrow(T::Acc::of(0.0));
    for x in [&mut *p, &mut *ds] {
        x[..see.start].fill(zero);
        x[see.end..].fill(zero);
    }
    for c in see {
        let (s, slack) = score(c);
        let prob = (s - lse).exp_wide();
        p[c] = T::narrow(prob);
        ds[c] = T::narrow(slack * prob * (dp[c] - delta));
    }
}
