//! Rotary position embedding, Su et al. 2021, arXiv:2104.09864, in the half-split form of Hugging Face's Llama:
//! for i < d/2, y[i] = x[i] cos - x[i + d/2] sin and y[i + d/2] = x[i + d/2] cos + x[i] sin, at angle p * freq[i].
//! And in one with it the root-mean-square norm of each head that some families put before it (formula: `rms_norm`).

mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::pool::Pool;
use crate::device::{Device, Exec};
use crate::error::{Error, Result};
use crate::ops::{Slot, rms};
use crate::tensor::{DType, Index, Tensor};

/// cos and sin of every (position, frequency), scaled by the rope's attention factor.
pub struct Table {
    /// (positions, head_dim / 2) each, for the CPU; empty where kernels read the copy in device memory.
    cos: Vec<f64>,
    sin: Vec<f64>,
    half: usize,
    positions: usize,
    /// For kernels: (positions, head_dim) in f32, a row's cosines and then its sines.
    device: Option<Tensor>,
}

impl Table {
    /// `freq` (head_dim / 2) in radians per position, for positions 0 .. `positions`.
    ///
    /// Angles are f32 products, as PyTorch computes them: at position 4,000 that rounding moves an angle by up to
    /// 2e-4, which is not ours to better.
    pub fn new(freq: &[f32], factor: f64, positions: usize) -> Self {
        let angles = (0..positions).flat_map(|p| freq.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(|a| (f64::from(a).sin() * factor, f64::from(a).cos() * factor)).unzip();
        Table { cos, sin, half: freq.len(), positions, device: None }
    }

    /// The same where ops on `device` read it: moved to its memory if they are kernels. On a planning device only its size
    /// is real.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn of(freq: &[f32], factor: f64, positions: usize, device: &Device) -> Result<Self> {
        if !device.is_plan() {
            return Table::new(freq, factor, positions).on(device);
        }
        let half = freq.len();
        let copy = match device.runs_kernels() {
            true => Some(Tensor::unwritten(positions, 2 * half, DType::F32, device)?),
            false => None,
        };
        Ok(Table { cos: Vec::new(), sin: Vec::new(), half, positions, device: copy })
    }

    /// The same, moved to device memory if it is kernels that read it.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn on(self, device: &Device) -> Result<Self> {
        if !device.runs_kernels() || self.half == 0 {
            return Ok(self);
        }
        let rows = self.cos.chunks_exact(self.half).zip(self.sin.chunks_exact(self.half));
        let rows: Vec<f32> = rows.flat_map(|(cos, sin)| cos.iter().chain(sin)).map(|&x| x as f32).collect();
        let copy = Tensor::from_slice(&rows, self.positions, 2 * self.half, device)?;
        Ok(Table { cos: Vec::new(), sin: Vec::new(), device: Some(copy), ..self })
    }

    /// How many positions it covers.
    pub fn positions(&self) -> usize {
        self.positions
    }

    /// Size in bytes, where ops read it.
    pub fn bytes(&self) -> usize {
        self.device.as_ref().map_or(self.positions * 2 * self.half * size_of::<f64>(), Tensor::bytes)
    }
}

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Forward,
    /// The backward pass: the transpose of a rotation turns back.
    Back,
}

/// The norm of each head before it turns: scales of a head's elements, and what is added to the mean square.
#[derive(Clone, Copy)]
pub struct Norm<'a> {
    pub w: Slot<'a>,
    pub eps: f64,
}

/// Rotates every head of `x`, q (tokens, heads * head_dim) and k (tokens, kv_heads * head_dim), in place, row r by
/// `positions[r]`.
///
/// # Errors
/// [`Error::Shape`] if a position lies beyond the table, or the shapes do not fit.
pub fn apply(x: [&mut Tensor; 2], positions: &Index, table: &Table, turn: Turn) -> Result<()> {
    let [q, k] = x;
    check([q, k], positions, table)?;
    let device = q.device().clone();
    match device.exec() {
        Exec::Cpu(pool) => {
            for x in [q, k] {
                turn_on_cpu(pool, x, positions, table, turn)?;
            }
        }
        Exec::Kernels(l) => launch::apply(l, [q, k], positions, table, turn)?,
        Exec::Plan(p) => p.flops(3.0 * (q.len() + k.len()) as f64),
    }
    Ok(())
}

/// Every head of `x`, q and k as in [`apply`], normalised and then rotated: tensors of their own.
///
/// # Errors
/// As [`apply`]; and if a norm is not of head_dim elements, or the two norms differ in eps.
pub fn fwd(x: [&Tensor; 2], norms: [Norm; 2], positions: &Index, table: &Table) -> Result<[Tensor; 2]> {
    check(x, positions, table)?;
    check_norms(x, norms, table)?;
    let mut y = [x[0].like()?, x[1].like()?];
    match x[0].device().exec() {
        Exec::Cpu(pool) => {
            for ((x, n), y) in x.into_iter().zip(norms).zip(&mut y) {
                by_dtype!(x.dtype(), T => rms::fwd::<T>(pool, y.slice_mut(), x.slice(), n.w.slice(), n.eps));
                turn_on_cpu(pool, y, positions, table, Turn::Forward)?;
            }
        }
        Exec::Kernels(l) => launch::fwd(l, &mut y, x, norms, positions, table)?,
        Exec::Plan(p) => p.flops(7.0 * (x[0].len() + x[1].len()) as f64),
    }
    Ok(y)
}

/// The gradients of [`fwd`]'s `x` from those of its results; those of the norms' scales are added to `grads` where they
/// are trained.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(
    x: [&Tensor; 2],
    norms: [Norm; 2],
    positions: &Index,
    table: &Table,
    mut dy: [Tensor; 2],
    grads: &mut Tensor,
) -> Result<[Tensor; 2]> {
    check(x, positions, table)?;
    check_norms(x, norms, table)?;
    for (x, dy) in x.iter().zip(&dy) {
        dy.expect("rope dy", x.rows(), x.cols(), x.dtype())?;
    }
    let mut dx = [x[0].like()?, x[1].like()?];
    match x[0].device().exec() {
        Exec::Cpu(pool) => {
            for (((x, n), dy), dx) in x.into_iter().zip(norms).zip(&mut dy).zip(&mut dx) {
                turn_on_cpu(pool, dy, positions, table, Turn::Back)?;
                by_dtype!(x.dtype(), T => {
                    rms::bwd::<T>(pool, dx.slice_mut(), false, x.slice(), n.w.slice(), dy.slice(), n.eps);
                    if n.w.grad {
                        rms::bwd_weight::<T>(pool, n.w.grad_of(grads), x.slice(), dy.slice(), n.eps);
                    }
                });
            }
        }
        Exec::Kernels(l) => {
            let mut rstd = rstds(x, norms)?;
            launch::bwd(l, &mut dx, &mut dy, &mut rstd, x, norms, positions, table)?;
            for i in 0..2 {
                if let Some(rstd) = &rstd[i] {
                    launch::bwd_weight(l, grads, rstd, x[i], norms[i], &dy[i])?;
                }
            }
        }
        Exec::Plan(p) => {
            if x[0].device().runs_kernels() {
                drop(rstds(x, norms)?);
            }
            p.flops(11.0 * (x[0].len() + x[1].len()) as f64);
        }
    }
    Ok(dx)
}

/// What kernels hand from one launch to the next where a norm is trained: (rows, heads) for q and k.
fn rstds(x: [&Tensor; 2], norms: [Norm; 2]) -> Result<[Option<Tensor>; 2]> {
    let of = |i: usize| match norms[i].w.grad {
        true => x[i].rows_like(x[i].cols() / norms[i].w.len(), DType::F32).map(Some),
        false => Ok(None),
    };
    Ok([of(0)?, of(1)?])
}

fn turn_on_cpu(pool: &Pool, x: &mut Tensor, positions: &Index, table: &Table, turn: Turn) -> Result<()> {
    let width = x.cols();
    by_dtype!(x.dtype(), T => cpu::apply::<T>(pool, x.slice_mut(), width, positions.numbers(), table, turn));
    Ok(())
}

fn check(x: [&Tensor; 2], positions: &Index, table: &Table) -> Result<()> {
    let dim = 2 * table.half;
    for x in x {
        if positions.rows() != x.rows() || dim == 0 || !x.cols().is_multiple_of(dim) {
            let why = format!("x is ({}, {}), head_dim {dim}", x.rows(), x.cols());
            return Err(Error::shape("rope positions", format!("has {} elements, {why}", positions.rows())));
        }
    }
    let [q, k] = x;
    k.expect("rope k", q.rows(), k.cols(), q.dtype())?;
    if let Some(p) = positions.numbers().iter().find(|&&p| p as usize >= table.positions()) {
        return Err(Error::shape("rope positions", format!("holds {p}, the table ends before {}", table.positions())));
    }
    Ok(())
}

fn check_norms(x: [&Tensor; 2], norms: [Norm; 2], table: &Table) -> Result<()> {
    for (x, n) in x.into_iter().zip(norms) {
        if n.w.len() != 2 * table.half {
            let why = format!("has {} elements, head_dim is {}", n.w.len(), 2 * table.half);
            return Err(Error::shape("rope norm", why));
        }
        n.w.expect("rope norm", n.w.rows, n.w.cols, x)?;
    }
    if norms[0].eps != norms[1].eps {
        return Err(Error::shape("rope norm", format!("has eps {} for q, {} for k", norms[0].eps, norms[1].eps)));
    }
    Ok(())
}
