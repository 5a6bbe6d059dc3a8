//! Rotary position embedding, Su et al. 2021, arXiv:2104.09864, in the half-split form of Hugging Face's Llama:
//! for i < d/2, y[i] = x[i] cos - x[i + d/2] sin and y[i + d/2] = x[i + d/2] cos + x[i] sin, at angle p * freq[i].

mod cpu;

use crate::by_dtype;
use crate::device::Exec;
use crate::error::{Error, Result};
use crate::ops::no_kernel;
use crate::tensor::{Index, Tensor};

/// cos and sin of every (position, frequency): (positions, head_dim / 2) each, scaled by the rope's attention factor.
pub struct Table {
    cos: Vec<f64>,
    sin: Vec<f64>,
    half: usize,
}

impl Table {
    /// `freq` (head_dim / 2) in radians per position, for positions 0 .. `positions`.
    ///
    /// Angles are f32 products, as PyTorch computes them: at position 4,000 that rounding moves an angle by up to
    /// 2e-4, which is not ours to better.
    pub fn new(freq: &[f32], factor: f64, positions: usize) -> Self {
        let angles = (0..positions).flat_map(|p| freq.iter().map(move |f| p as f32 * f));
        let (sin, cos) = angles.map(|a| (f64::from(a).sin() * factor, f64::from(a).cos() * factor)).unzip();
        Table { cos, sin, half: freq.len() }
    }

    /// How many positions it covers.
    pub fn positions(&self) -> usize {
        self.cos.len() / self.half.max(1)
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        (self.cos.len() + self.sin.len()) * 8
    }
}

/// Which way to turn.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Turn {
    Forward,
    /// The backward pass: the transpose of a rotation turns back.
    Back,
}

/// Rotates every head of `x` (tokens, heads * head_dim) in place, row r by `positions[r]`.
///
/// # Errors
/// [`Error::Shape`] if a position lies beyond the table, or the shapes do not fit.
pub fn apply(x: &mut Tensor, positions: &Index, table: &Table, turn: Turn) -> Result<()> {
    if positions.rows() != x.rows() || table.half == 0 || !x.cols().is_multiple_of(2 * table.half) {
        let why = format!("x is ({}, {}), head_dim {}", x.rows(), x.cols(), 2 * table.half);
        return Err(Error::shape("rope positions", format!("has {} elements, {why}", positions.rows())));
    }
    if let Some(p) = positions.numbers().iter().find(|&&p| p as usize >= table.positions()) {
        return Err(Error::shape("rope positions", format!("holds {p}, the table ends before {}", table.positions())));
    }
    let device = x.device().clone();
    match device.exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            let width = x.cols();
            cpu::apply::<T>(pool, x.slice_mut(), width, positions.numbers(), table, turn)
        }),
        Exec::Kernels(_) => return Err(no_kernel("rope", "not built")),
        Exec::Plan(p) => p.flops(3.0 * x.len() as f64),
    }
    Ok(())
}
