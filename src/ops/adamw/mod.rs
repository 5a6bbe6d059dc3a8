//! AdamW over one flat buffer, as PyTorch's: Loshchilov & Hutter 2019, arXiv:1711.05101.
//!
//! g' = clip * g, clip = min(1, max_norm / (norm + 1e-6)); p *= 1 - lr * weight_decay (where it applies);
//! m = b1 m + (1 - b1) g'; v = b2 v + (1 - b2) g'^2; p -= lr / (1 - b1^t) * m / (sqrt(v) / sqrt(1 - b2^t) + eps).
//! Nothing is changed if the norm or the loss is not finite.
//!
//! The moments are f32, or 8 bits with an absmax for every 256 elements of the flat buffer: Dettmers et al. 2021,
//! arXiv:2110.02861. (Of bitsandbytes' they have the maps and the rounding. Its blocks begin anew with each tensor, and
//! tensors of fewer than 4096 elements keep f32; ours do neither.)

mod cpu;
mod launch;
mod moments;

pub use moments::{Codes, Moments};

use std::ops::Range;

use crate::device::{Buffer, Device, Exec, abi, bytes_of};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// The constants of a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AdamW {
    pub lr: f64,
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// The gradient is scaled down to this norm where it is longer; 0: never.
    pub max_norm: f64,
    /// Counts from 1.
    pub step: u64,
}

impl AdamW {
    /// Factor on a gradient of this norm.
    pub fn clip(&self, norm: f64) -> f64 {
        if self.max_norm > 0.0 { (self.max_norm / (norm + 1e-6)).min(1.0) } else { 1.0 }
    }

    fn step_size(&self) -> f64 {
        self.lr / (1.0 - self.beta1.powf(self.step as f64))
    }

    fn root2(&self) -> f64 {
        (1.0 - self.beta2.powf(self.step as f64)).sqrt()
    }

    fn shrink(&self) -> f64 {
        1.0 - self.lr * self.weight_decay
    }
}

/// Parameters, gradient and moments, all flat and of one length, in f32 (f64 in the oracle).
pub struct Flat<'a> {
    pub p: &'a mut Tensor,
    pub moments: &'a mut Moments,
    pub g: &'a Tensor,
    /// The parameters rounded to bf16, brought up to date where there is such a copy.
    pub copy: Option<&'a mut Tensor>,
}

/// Which of the flat parameters weight decay applies to; on kernels also in device memory, with the constants of the step.
pub struct Groups {
    /// Runs that follow each other from 0; the flag changes from each to the next.
    runs: Vec<(Range<usize>, bool)>,
    table: Option<Table>,
}

/// What the kernel reads.
struct Table {
    /// The end of each run.
    ends: Buffer,
    /// An [`abi::AdamWStep`].
    step: Buffer,
}

impl Groups {
    /// From ranges that follow each other from 0, and whether each decays.
    ///
    /// # Errors
    /// [`Error::Shape`] for a gap or an overlap; [`Error::Memory`].
    pub fn new(ranges: impl IntoIterator<Item = (Range<usize>, bool)>, device: &Device) -> Result<Self> {
        let mut runs: Vec<(Range<usize>, bool)> = Vec::new();
        for (range, decay) in ranges {
            let start = runs.last().map_or(0, |(last, _)| last.end);
            if range.start != start || range.end < start {
                return Err(Error::shape("adamw groups", format!("{range:?} does not follow on {start}")));
            }
            match runs.last_mut() {
                _ if range.is_empty() => {}
                Some((last, d)) if *d == decay => last.end = range.end,
                _ => runs.push((range, decay)),
            }
        }
        let ends: Vec<u64> = runs.iter().map(|(range, _)| range.end as u64).collect();
        let table = match device.runs_kernels() {
            true => {
                let mut table =
                    Table { ends: device.alloc(8 * ends.len())?, step: device.alloc(size_of::<abi::AdamWStep>())? };
                table.ends.write(0, bytes_of(&ends));
                Some(table)
            }
            false => None,
        };
        Ok(Groups { runs, table })
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.runs.last().map_or(0, |(range, _)| range.end)
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

/// One step over all elements. `norm` is that of `flat.g` and `loss` that of the step, each (1, 1) f64.
///
/// # Errors
/// [`Error::Shape`] unless all have one shape and dtype (the copy: bf16) and the groups are of as many elements.
pub fn step(flat: Flat, groups: &mut Groups, a: AdamW, norm: &Tensor, loss: &Tensor) -> Result<()> {
    let (rows, cols, dtype) = (flat.p.rows(), flat.p.cols(), flat.p.dtype());
    if !matches!(dtype, DType::F32 | DType::F64) {
        return Err(Error::shape(
            "adamw p",
            format!("is {dtype:?}; steps are smaller than that resolves: f32 is needed"),
        ));
    }
    match &*flat.moments {
        Moments::Full { m, v } => {
            m.expect("adamw m", rows, cols, dtype)?;
            v.expect("adamw v", rows, cols, dtype)?;
        }
        Moments::Eight { m, v } => {
            flat.p.expect("adamw p with 8-bit moments", rows, cols, DType::F32)?;
            m.expect("adamw m", rows * cols)?;
            v.expect("adamw v", rows * cols)?;
        }
    }
    flat.g.expect("adamw g", rows, cols, dtype)?;
    if let Some(copy) = &flat.copy {
        copy.expect("adamw copy", rows, cols, DType::Bf16)?;
    }
    norm.expect("adamw norm", 1, 1, DType::F64)?;
    loss.expect("adamw loss", 1, 1, DType::F64)?;
    if groups.len() != flat.p.len() {
        let why = format!("are of {} elements, the parameters have {}", groups.len(), flat.p.len());
        return Err(Error::shape("adamw groups", why));
    }
    let device = flat.p.device().clone();
    match device.exec() {
        Exec::Cpu(pool) => {
            let (norm, loss) = (norm.slice::<f64>()[0], loss.slice::<f64>()[0]);
            if norm.is_finite() && loss.is_finite() {
                match dtype {
                    DType::F64 => cpu::step::<f64>(pool, flat, &groups.runs, a, norm),
                    _ => cpu::step::<f32>(pool, flat, &groups.runs, a, norm),
                }
            }
        }
        Exec::Kernels(l) => launch::step(l, flat, groups, a, norm, loss)?,
        Exec::Plan(p) => p.flops(14.0 * flat.p.len() as f64),
    }
    Ok(())
}
