//! Rows of a table by token id: x[r] = table[ids[r]], with NEFTune's noise on request (Jain et al. 2023,
//! arXiv:2310.05914: uniform in [-m, m], m = alpha / sqrt(L d)); or added to x. Backward: dtable[ids[r]] += dx[r], in the order of r.

mod launch;

use crate::by_dtype;
use crate::device::Exec;
use crate::device::par::{for_rows, rows_of};
use crate::device::simd::wide;
use crate::error::{Error, Result};
use crate::ops::Slot;
use crate::ops::philox::{Stream, uniform};
use crate::tensor::{Float, Index, Real, Tensor};

/// NEFTune's noise: its bound m and its random numbers.
#[derive(Debug, Clone, Copy)]
pub struct Noise {
    pub bound: f64,
    pub stream: Stream,
}

/// `table` (vocab, hidden), `ids` (tokens) -> x (tokens, hidden). (Kernels read the noise's bound, seed and step from the
/// device's step.)
///
/// # Errors
/// [`Error::Shape`] if an id lies outside the table.
pub fn fwd(table: Slot, ids: &Index, noise: Option<Noise>) -> Result<Tensor> {
    if let Some(id) = ids.numbers().iter().find(|&&id| id as usize >= table.rows) {
        return Err(Error::shape("token ids", format!("hold {id}, the embedding has {} rows", table.rows)));
    }
    let n = table.cols;
    let mut x = Tensor::unwritten(ids.rows(), n, table.tensor.dtype(), table.tensor.device())?;
    x.set_live(ids.live_rows());
    let device = x.device().clone();
    match device.exec() {
        Exec::Kernels(l) => launch::fwd(l, &mut x, table, ids, noise)?,
        Exec::Plan(_) => {}
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            let (table, ids) = (table.slice::<T>(), ids.numbers());
            for_rows(pool, 64, rows_of(x.slice_mut::<T>(), n), |rows, x| {
                for (r, x) in rows.zip(x.chunks_exact_mut(n)) {
                    x.copy_from_slice(&table[ids[r] as usize * n..][..n]);
                    if let Some(noise) = noise {
                        for (c, x) in x.iter_mut().enumerate() {
                            let u = f64::from(uniform(noise.stream, (r * n + c) as u64)) * 2.0 - 1.0;
                            *x = T::narrow(x.acc() + <T as Float>::Acc::of(u * noise.bound));
                        }
                    }
                }
            });
        }),
    }
    Ok(x)
}

/// x[r] += table[ids[r]], rounded once.
///
/// # Errors
/// [`Error::Shape`] if `x` is not (ids, hidden), or an id lies outside the table.
pub fn add(x: &mut Tensor, table: Slot, ids: &Index) -> Result<()> {
    x.expect("embedding x", ids.rows(), table.cols, table.tensor.dtype())?;
    let device = x.device().clone();
    if let Some(id) = ids.numbers().iter().find(|&&id| id as usize >= table.rows) {
        return Err(Error::shape("positions", format!("hold {id}, their table has {} rows", table.rows)));
    }
    let n = table.cols;
    match device.exec() {
        Exec::Kernels(l) => launch::add(l, x, table, ids)?,
        Exec::Plan(p) => p.flops(x.len() as f64),
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            let (table, ids) = (table.slice::<T>(), ids.numbers());
            for_rows(pool, 64, rows_of(x.slice_mut::<T>(), n), |rows, x| {
                wide!({
                    for (r, x) in rows.zip(x.chunks_exact_mut(n)) {
                        let row = &table[ids[r] as usize * n..][..n];
                        x.iter_mut().zip(row).for_each(|(x, t)| *x = T::narrow(x.acc() + t.acc()));
                    }
                })
            });
        }),
    }
    Ok(())
}

/// Adds the gradient of `table` to `grads`.
///
/// # Errors
/// [`Error::Shape`] if `dx` is not (tokens, hidden).
pub fn bwd(table: Slot, ids: &Index, dx: &Tensor, grads: &mut Tensor) -> Result<()> {
    dx.expect("embedding dx", ids.rows(), table.cols, table.tensor.dtype())?;
    match dx.device().exec() {
        Exec::Kernels(l) => launch::bwd(l, table, ids, dx, grads)?,
        Exec::Plan(_) => {}
        Exec::Cpu(_) => by_dtype!(dx.dtype(), T => {
            let g = table.grad_of::<<T as Float>::Acc>(grads);
            let n = table.cols;
            wide!({
                for (&id, dx) in ids.numbers().iter().zip(dx.slice::<T>().chunks_exact(n)) {
                    g[id as usize * n..][..n].iter_mut().zip(dx).for_each(|(g, d)| *g += d.acc());
                }
            });
        }),
    }
    Ok(())
}

/// Rows `rows` of `x`, in that order: the positions that reach the head.
///
/// # Errors
/// [`Error::Shape`] if a row lies outside.
pub fn gather(x: &Tensor, rows: &Index) -> Result<Tensor> {
    fwd(Slot::whole(x), rows, None)
}

/// The transpose of [`gather`]: a tensor of as many rows as `like`, `dy`'s rows at `rows` (each at most once), zeros
/// elsewhere.
///
/// # Errors
/// [`Error::Shape`] if a row lies outside.
pub fn scatter(dy: &Tensor, rows: &Index, like: &Tensor) -> Result<Tensor> {
    let tokens = like.rows();
    dy.expect("scatter dy", rows.rows(), dy.cols(), dy.dtype())?;
    if let Some(r) = rows.numbers().iter().find(|&&r| r as usize >= tokens) {
        return Err(Error::shape("scatter rows", format!("hold {r}, there are {tokens} tokens")));
    }
    let mut x = like.rows_like(dy.cols(), dy.dtype())?;
    x.fill_zero();
    let n = dy.cols();
    match dy.device().exec() {
        Exec::Kernels(l) => launch::scatter(l, &mut x, dy, rows)?,
        Exec::Plan(_) => {}
        Exec::Cpu(_) => by_dtype!(dy.dtype(), T => {
            let x = x.slice_mut::<T>();
            for (&r, dy) in rows.numbers().iter().zip(dy.slice::<T>().chunks_exact(n)) {
                x[r as usize * n..][..n].copy_from_slice(dy);
            }
        }),
    }
    Ok(x)
}
