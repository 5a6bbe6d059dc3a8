//! Trained parameters: one flat buffer of values, so that gradient, clipping and optimizer are one pass each.

use crate::by_dtype;
use crate::device::par::{for_rows, rows_of};
use crate::device::simd::wide;
use crate::device::{Device, Exec, abi, kernels};
use crate::error::{Error, Result};
use crate::ops::{Slot, bf16_only, size};
use crate::tensor::{DType, Float, Real, Tensor};

/// One trained matrix or vector inside the flat buffer.
#[derive(Debug, Clone, PartialEq)]
pub struct Entry {
    /// Name as saved, without PEFT's prefix: `model.layers.0.self_attn.q_proj.lora_A.weight`.
    pub name: String,
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    /// Shape as saved; a vector has one axis.
    pub shape: Vec<usize>,
    /// Whether weight decay applies: not to norms and biases.
    pub decay: bool,
    /// Saved transposed: `shape` is (cols, rows).
    pub turned: bool,
}

impl Entry {
    pub fn range(&self) -> std::ops::Range<usize> {
        self.offset..self.offset + self.rows * self.cols
    }

    /// Its `values` in the order in which they are saved.
    pub fn as_saved<T: Copy>(&self, values: Vec<T>) -> Vec<T> {
        if self.turned { transposed(&values, self.rows, self.cols) } else { values }
    }
}

/// A (rows, cols) matrix -> (cols, rows).
fn transposed<T: Copy>(values: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| values[r * cols + c])).collect()
}

/// All trained parameters.
pub struct Params {
    pub entries: Vec<Entry>,
    /// (1, total) in f32 (f64 in the oracle): what the optimizer changes and what is saved.
    pub master: Tensor,
    /// The same in the dtype of the activations, where that differs.
    compute: Option<Tensor>,
}

impl Params {
    /// Zeroed room for the entries, whose offsets must follow each other from 0.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(entries: Vec<Entry>, dtype: DType, device: &Device) -> Result<Self> {
        let total = entries.last().map_or(0, |e| e.range().end);
        let master_dtype = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let master = Tensor::zeros(1, total, master_dtype, device)?;
        let compute = if dtype == master_dtype { None } else { Some(Tensor::zeros(1, total, dtype, device)?) };
        Ok(Params { entries, master, compute })
    }

    /// Number of trained values.
    pub fn len(&self) -> usize {
        self.master.len()
    }

    pub fn is_empty(&self) -> bool {
        self.master.is_empty()
    }

    /// Bytes of values, both copies.
    pub fn bytes(&self) -> usize {
        self.master.bytes() + self.compute.as_ref().map_or(0, Tensor::bytes)
    }

    /// A zeroed tensor like `master`: gradient or moment.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn zeros_like(&self) -> Result<Tensor> {
        Tensor::zeros(1, self.len(), self.master.dtype(), self.master.device())
    }

    /// Entry `i` as an operand.
    pub fn slot(&self, i: usize) -> Slot<'_> {
        let e = &self.entries[i];
        let tensor = self.compute.as_ref().unwrap_or(&self.master);
        Slot { tensor, offset: e.offset, rows: e.rows, cols: e.cols, grad: true }
    }

    /// The values and, where there is one, their copy in the activations' dtype: for the optimizer, which keeps both.
    pub fn both_mut(&mut self) -> (&mut Tensor, Option<&mut Tensor>) {
        (&mut self.master, self.compute.as_mut())
    }

    /// Brings the copy in the activations' dtype up to date, after loading. (The optimizer does so itself.)
    ///
    /// # Errors
    /// [`Error::Kernel`] if the device refuses the launch.
    pub fn refresh(&mut self) -> Result<()> {
        let Some(compute) = &mut self.compute else { return Ok(()) };
        let device = self.master.device().clone();
        let master = &self.master;
        match device.exec() {
            Exec::Cpu(pool) => by_dtype!(compute.dtype(), T => {
                let from = master.slice::<<T as Float>::Acc>();
                for_rows(pool, 8192, rows_of(compute.slice_mut::<T>(), 1), |r, to| {
                    wide!(to.iter_mut().zip(&from[r]).for_each(|(to, &x)| *to = T::narrow(x)));
                });
            }),
            Exec::Kernels(l) => {
                bf16_only("parameters", compute)?;
                let n = size("parameters", master.len())?;
                let p = abi::ConvertF32Bf16 { y: compute.ptr_mut(), x: master.ptr(), n };
                let grid = master.len().div_ceil((abi::CONVERT_BLOCK * abi::CONVERT_PACK) as usize);
                l.kernel(kernels::CONVERT_F32_BF16).grid(grid).block(abi::CONVERT_BLOCK).launch(&p)?;
            }
            Exec::Plan(_) => {}
        }
        Ok(())
    }

    /// The values of entry `i` as f32, as they are saved.
    pub fn values(&self, i: usize) -> Vec<f32> {
        let e = &self.entries[i];
        let range = e.range();
        e.as_saved(self.master.read_f64(range.start, range.len()).into_iter().map(|x| x as f32).collect())
    }

    /// Sets the values of entry `i`, given as they are saved; call [`Params::refresh`] afterwards.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are as many as the entry has.
    pub fn set(&mut self, i: usize, values: &[f32]) -> Result<()> {
        let e = &self.entries[i];
        let range = e.range();
        if range.len() != values.len() {
            return Err(Error::shape("parameter", format!("{} values for {}", values.len(), e.name)));
        }
        let turned = if e.turned { transposed(values, e.cols, e.rows) } else { Vec::new() };
        let values = if e.turned { &turned } else { values };
        by_dtype!(self.master.dtype(), T => {
            let values: Vec<T> = values.iter().map(|&x| T::narrow(<T as Float>::Acc::of(f64::from(x)))).collect();
            self.master.write(range.start, &values);
        });
        Ok(())
    }
}
