//! Causal attention over sequences laid end to end, with grouped queries and an optional sliding window, ALiBi and soft-cap.
//!
//! Per span and head: S = Q K^T / sqrt(d) over keys j <= i (and j > i - window), P = softmax(S), O = P V. Saved is only
//! lse_i = log sum_j e^S_ij. Backward (Dao et al. 2022, arXiv:2205.14135, appendix B.2), with D_i = dO_i . O_i:
//! dV = P^T dO; dS = P o (dO V^T - D); dQ = dS K / sqrt(d); dK = dS^T Q / sqrt(d).
//!
//! With [`Scores`] S is capped, S = c tanh(Q K^T / (sqrt(d) c)), so that dS takes the factor 1 - tanh^2 on its way to dQ and dK; and
//! m (j - i) is added to it.
//!
//! The scores of a masked pair are never computed, and P exists one tile of queries at a time. Rounding points: P and dS
//! to the storage type; sums in the accumulator type.
//!
//! [`decode`] is the same for one new query a sequence, with the keys and values before it in pages; [`store`] fills them.

mod cpu;
mod launch;
mod paged;
mod scores;
mod store;

pub use scores::Scores;
pub use store::store;

use std::borrow::Cow;

use crate::by_dtype;
use crate::device::{Device, Exec};
use crate::error::{Error, Result};
use crate::tensor::{DType, Element, Float, Index, Tensor};

/// What attention looks at.
#[derive(Clone, Copy)]
pub struct Attention<'a> {
    pub heads: usize,
    /// Divides `heads`: each serves heads / kv_heads query heads.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Starts of the spans, and the number of tokens last; for kernels made by [`spans`].
    pub cu_seqlens: &'a Index<'a>,
    /// Keys a query sees, itself included; None: all before it.
    pub window: Option<usize>,
    pub scores: Scores<'a>,
}

/// `cu_seqlens` for [`Attention`] on `device`, where q, k and v have `rows` rows. Kernels read a table made of it: how many
/// rows belong to a span, and of each row where its span begins and ends.
///
/// # Errors
/// [`Error::Memory`].
pub fn spans<'a>(cu_seqlens: impl Into<Cow<'a, [u32]>>, rows: usize, device: &Device) -> Result<Index<'a>> {
    let numbers = cu_seqlens.into();
    if !device.runs_kernels() {
        return Ok(Index::host(numbers));
    }
    let mut table = vec![0; table_len(rows)];
    table[0] = numbers.last().copied().unwrap_or(0);
    for span in numbers.windows(2) {
        for i in span[0] as usize..(span[1] as usize).min(rows) {
            table[2 * i + 2..2 * i + 4].copy_from_slice(span);
        }
    }
    Index::with_table(numbers, &table, device)
}

/// Numbers of the table that [`spans`] makes.
fn table_len(rows: usize) -> usize {
    2 * rows + 2
}

/// lse (tokens, heads) in the accumulator type.
pub struct Saved {
    lse: Tensor,
}

/// `q` (tokens, heads * head_dim), `k`, `v` (tokens, kv_heads * head_dim) -> o (tokens, heads * head_dim).
///
/// # Errors
/// [`Error::Shape`] if shapes, or the starts of the spans, do not fit.
pub fn fwd(q: &Tensor, k: &Tensor, v: &Tensor, a: Attention) -> Result<(Tensor, Saved)> {
    check(q, k, v, &a)?;
    let mut o = q.like()?;
    let acc = by_dtype!(q.dtype(), T => <<T as Float>::Acc as Element>::DTYPE);
    let mut lse = q.rows_like(a.heads, acc)?;
    match q.device().exec() {
        Exec::Cpu(pool) => by_dtype!(q.dtype(), T => {
            cpu::fwd::<T>(pool, o.slice_mut(), lse.slice_mut(), q.slice(), k.slice(), v.slice(), &a)
        }),
        Exec::Kernels(l) => launch::fwd(l, &mut o, &mut lse, [q, k, v], &a)?,
        Exec::Plan(p) => p.flops(4.0 * pairs(&a) * q.cols() as f64),
    }
    Ok((o, Saved { lse }))
}

/// (dq, dk, dv) from `d_o`, and from the `q`, `k`, `v` and `o` of `fwd`.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(
    saved: Saved,
    q: &Tensor,
    k: &Tensor,
    v: &Tensor,
    o: &Tensor,
    d_o: &Tensor,
    a: Attention,
) -> Result<[Tensor; 3]> {
    check(q, k, v, &a)?;
    o.expect("attention o", q.rows(), q.cols(), q.dtype())?;
    d_o.expect("attention do", q.rows(), q.cols(), q.dtype())?;
    let mut dq = q.like()?;
    let mut dk = k.like()?;
    let mut dv = v.like()?;
    // Kernels compute D beforehand.
    let kernels = q.device().runs_kernels();
    let mut delta = kernels.then(|| q.rows_like(a.heads, DType::F32)).transpose()?;
    match q.device().exec() {
        Exec::Cpu(pool) => by_dtype!(q.dtype(), T => {
            let grads = [dq.slice_mut::<T>(), dk.slice_mut(), dv.slice_mut()];
            cpu::bwd::<T>(pool, grads, saved.lse.slice(), [q.slice(), k.slice(), v.slice()], o.slice(), d_o.slice(), &a)
        }),
        Exec::Kernels(l) => {
            let grads = [&mut dq, &mut dk, &mut dv];
            launch::bwd(l, grads, delta.as_mut(), &saved.lse, [q, k, v, o, d_o], &a)?;
        }
        Exec::Plan(p) => p.flops(10.0 * pairs(&a) * q.cols() as f64),
    }
    Ok([dq, dk, dv])
}

/// What one query a sequence looks at: keys and values kept in pages.
#[derive(Clone, Copy)]
pub struct Paged<'a> {
    pub heads: usize,
    /// Divides `heads`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Keys a query sees, itself included; None: all.
    pub window: Option<usize>,
    pub scores: Scores<'a>,
    /// Keys of a page: a multiple of 16.
    pub page: usize,
    /// The pages of each sequence in order, as many places a sequence; those past its keys are not looked at.
    pub pages: &'a Index<'a>,
    /// Keys of each sequence, that of its query included; 0: no sequence.
    pub lengths: &'a Index<'a>,
}

/// `q` (sequences, heads * head_dim), `k`, `v` (pages * page, kv_heads * head_dim) -> o (sequences, heads * head_dim), of
/// which rows without a sequence hold nothing. Key j of sequence n is row `pages[n][j / page] * page + j % page`. The bits
/// of a sequence depend on nothing else in the batch.
///
/// # Errors
/// [`Error::Shape`] if shapes, pages or lengths do not fit.
pub fn decode(q: &Tensor, k: &Tensor, v: &Tensor, a: Paged) -> Result<Tensor> {
    let width = check_paged(q, k, v, &a)?;
    let mut o = q.like()?;
    // Sums of each split of the keys.
    let rows = launch::splits(&a, width).saturating_mul(q.rows().saturating_mul(a.heads));
    let partial = || Tensor::unwritten(rows, a.head_dim + 2, DType::F32, q.device());
    let mut partial = q.device().runs_kernels().then(partial).transpose()?;
    match q.device().exec() {
        Exec::Cpu(pool) => by_dtype!(q.dtype(), T => {
            paged::fwd::<T>(pool, o.slice_mut(), q.slice(), k.slice(), v.slice(), &a, width)
        }),
        Exec::Kernels(l) => launch::decode(l, &mut o, partial.as_mut(), [q, k, v], &a, width)?,
        Exec::Plan(p) => {
            let keys = |n: &u32| a.window.map_or(*n as usize, |w| w.min(*n as usize));
            p.flops(4.0 * a.lengths.numbers().iter().map(keys).sum::<usize>() as f64 * q.cols() as f64);
        }
    }
    Ok(o)
}

/// Places for pages that each sequence has.
fn check_paged(q: &Tensor, k: &Tensor, v: &Tensor, a: &Paged) -> Result<usize> {
    q.expect("attention q", a.lengths.rows(), a.heads * a.head_dim, q.dtype())?;
    k.expect("attention k", k.rows(), a.kv_heads * a.head_dim, q.dtype())?;
    v.expect("attention v", k.rows(), k.cols(), q.dtype())?;
    a.scores.check(q, a.heads)?;
    if a.kv_heads == 0 || !a.heads.is_multiple_of(a.kv_heads) || a.window == Some(0) {
        let why = format!("{} heads, {} kv heads, window {:?}", a.heads, a.kv_heads, a.window);
        return Err(Error::shape("attention", why));
    }
    if a.page == 0 || !a.page.is_multiple_of(16) || !k.rows().is_multiple_of(a.page) {
        let why = format!("{} keys; must be a multiple of 16 and divide the {} of the cache", a.page, k.rows());
        return Err(Error::shape("attention page", why));
    }
    let width = a.pages.rows() / q.rows().max(1);
    if width * q.rows() != a.pages.rows() {
        let why = format!("has {} places for {} sequences", a.pages.rows(), q.rows());
        return Err(Error::shape("attention pages", why));
    }
    for (n, &keys) in a.lengths.numbers().iter().enumerate() {
        let used = (keys as usize).div_ceil(a.page);
        let pages = a.pages.numbers().get(n * width..n * width + used);
        let exist = |pages: &[u32]| pages.iter().all(|&p| (p as usize) < k.rows() / a.page);
        if used > width || !pages.is_some_and(exist) {
            return Err(Error::shape("attention pages", format!("sequence {n} of {keys} keys has not as many")));
        }
    }
    Ok(width)
}

/// (query, key) pairs that are not masked, a head.
fn pairs(a: &Attention) -> f64 {
    let span = |n: f64| match a.window.map(|w| w as f64) {
        Some(w) if w < n => w * (w + 1.0) / 2.0 + (n - w) * w,
        _ => n * (n + 1.0) / 2.0,
    };
    a.cu_seqlens.numbers().windows(2).map(|w| span(f64::from(w[1] - w[0]))).sum()
}

fn check(q: &Tensor, k: &Tensor, v: &Tensor, a: &Attention) -> Result<()> {
    let tokens = q.rows();
    q.expect("attention q", tokens, a.heads * a.head_dim, q.dtype())?;
    k.expect("attention k", tokens, a.kv_heads * a.head_dim, q.dtype())?;
    v.expect("attention v", tokens, a.kv_heads * a.head_dim, q.dtype())?;
    a.scores.check(q, a.heads)?;
    if a.kv_heads == 0 || !a.heads.is_multiple_of(a.kv_heads) || a.window == Some(0) {
        let why = format!("{} heads, {} kv heads, window {:?}", a.heads, a.kv_heads, a.window);
        return Err(Error::shape("attention", why));
    }
    let spans = a.cu_seqlens.numbers();
    // On kernels the rows past the true count belong to no span.
    let fits = |n: usize| if q.device().runs_kernels() { n <= tokens } else { n == tokens };
    let ascending = spans.windows(2).all(|w| w[0] <= w[1]);
    if spans.first() != Some(&0) || !spans.last().is_some_and(|&n| fits(n as usize)) || !ascending {
        return Err(Error::shape("attention cu_seqlens", format!("must ascend from 0 to {tokens}")));
    }
    Ok(())
}
