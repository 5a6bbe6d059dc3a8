//! Rotary position embedding, Su et al. 2021, arXiv:2104.09864, in the half-split form of Hugging Face's Llama:
//! for i < d/2, y[i] = x[i] cos - x[i + d/2] sin and y[i + d/2] = x[i + d/2] cos + x[i] sin, at angle p * freq[i].
//! And in one with it the root-mean-square norm of each head that some families put before it (formula: `rms_norm`).

mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::{Device, Exec};
use crate::error::{Error, Result};
use crate::ops::{Slot, rms};
use crate::tensor::{DType, Index, Tensor};

/// cos and sin of every (position, frequency): (positions, head_dim / 2) each, scaled by the rope's attention factor.
pub struct Table {
    cos: Vec<f64>,
    sin: Vec<f64>,
    half: usize,
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
        Table { cos, sin, half: freq.len(), device: None }
    }

    /// The same, with a copy in device memory where kernels need one.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn on(mut self, device: &Device) -> Result<Self> {
        if device.runs_kernels() && !device.is_plan() && self.half > 0 {
            let rows = self.cos.chunks_exact(self.half).zip(self.sin.chunks_exact(self.half));
            let rows: Vec<f32> = rows.flat_map(|(cos, sin)| cos.iter().chain(sin)).map(|&x| x as f32).collect();
            self.device = Some(Tensor::from_slice(&rows, self.positions(), 2 * self.half, device)?);
        }
        Ok(self)
    }

    /// How many positions it covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        (self.cos.len() + self.sin.len()) * 8 + self.device.as_ref().map_or(0, Tensor::bytes)
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

/// Rotates every head of `x` (tokens, heads * head_dim) in place, row r by `positions[r]`.
///
/// # Errors
/// [`Error::Shape`] if a position lies beyond the table, or the shapes do not fit.
pub fn apply(x: &mut Tensor, positions: &Index, table: &Table, turn: Turn) -> Result<()> {
    check(x, None, positions, table)?;
    let device = x.device().clone();
    match device.exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            let width = x.cols();
            cpu::apply::<T>(pool, x.slice_mut(), width, positions.numbers(), table, turn)
        }),
        Exec::Kernels(l) => launch::apply(l, x, positions, table, turn)?,
        Exec::Plan(p) => p.flops(3.0 * x.len() as f64),
    }
    Ok(())
}

/// Every head of `x` (tokens, heads * head_dim) normalised, where there is a norm, and then rotated: a tensor of its own.
///
/// # Errors
/// As [`apply`]; and if the norm is not of head_dim elements.
pub fn fwd(x: &Tensor, norm: Option<Norm>, positions: &Index, table: &Table) -> Result<Tensor> {
    check(x, norm, positions, table)?;
    let mut y = x.like()?;
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            match norm {
                Some(n) => rms::fwd::<T>(pool, y.slice_mut(), x.slice(), n.w.slice(), n.eps),
                None => y.slice_mut::<T>().copy_from_slice(x.slice()),
            }
            cpu::apply::<T>(pool, y.slice_mut(), x.cols(), positions.numbers(), table, Turn::Forward)
        }),
        Exec::Kernels(l) => launch::fwd(l, &mut y, x, norm, positions, table)?,
        Exec::Plan(p) => p.flops(if norm.is_some() { 7.0 } else { 3.0 } * x.len() as f64),
    }
    Ok(y)
}

/// The gradient of [`fwd`]'s `x` from that of its result, in the place of `dy` if there is no norm; that of the norm's
/// scales is added to `grads` where they are trained.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(
    x: &Tensor,
    norm: Option<Norm>,
    positions: &Index,
    table: &Table,
    mut dy: Tensor,
    grads: &mut Tensor,
) -> Result<Tensor> {
    check(x, norm, positions, table)?;
    dy.expect("rope dy", x.rows(), x.cols(), x.dtype())?;
    let Some(n) = norm else {
        apply(&mut dy, positions, table, Turn::Back)?;
        return Ok(dy);
    };
    let mut dx = x.like()?;
    // Kernels hand rstd from one launch to the next.
    let mut rstd = match n.w.grad && x.device().runs_kernels() {
        true => Some(x.rows_like(x.cols() / n.w.len(), DType::F32)?),
        false => None,
    };
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            cpu::apply::<T>(pool, dy.slice_mut(), x.cols(), positions.numbers(), table, Turn::Back);
            rms::bwd::<T>(pool, dx.slice_mut(), false, x.slice(), n.w.slice(), dy.slice(), n.eps);
            if n.w.grad {
                rms::bwd_weight::<T>(pool, n.w.grad_of(grads), x.slice(), dy.slice(), n.eps);
            }
        }),
        Exec::Kernels(l) => {
            launch::bwd(l, &mut dx, &mut dy, rstd.as_mut(), x, n, positions, table)?;
            if let Some(rstd) = &rstd {
                launch::bwd_weight(l, grads, rstd, x, n, &dy)?;
            }
        }
        Exec::Plan(p) => p.flops(11.0 * x.len() as f64),
    }
    Ok(dx)
}

fn check(x: &Tensor, norm: Option<Norm>, positions: &Index, table: &Table) -> Result<()> {
    if positions.rows() != x.rows() || table.half == 0 || !x.cols().is_multiple_of(2 * table.half) {
        let why = format!("x is ({}, {}), head_dim {}", x.rows(), x.cols(), 2 * table.half);
        return Err(Error::shape("rope positions", format!("has {} elements, {why}", positions.rows())));
    }
    if let Some(p) = positions.numbers().iter().find(|&&p| p as usize >= table.positions()) {
        return Err(Error::shape("rope positions", format!("holds {p}, the table ends before {}", table.positions())));
    }
    match norm {
        Some(n) if n.w.len() != 2 * table.half => {
            Err(Error::shape("rope norm", format!("has {} elements, head_dim is {}", n.w.len(), 2 * table.half)))
        }
        Some(n) => n.w.expect("rope norm", n.w.rows, n.w.cols, x),
        None => Ok(()),
    }
}
