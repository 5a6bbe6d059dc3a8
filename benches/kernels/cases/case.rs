//! A computation that is timed.

use super::inputs::{quantised, tensor};
use qlora_engine::Result;
use qlora_engine::device::Device;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::Matrix;
use qlora_engine::quant::{Code2, DeviceNf4, Nf4};
use qlora_engine::tensor::{DType, Tensor};

/// A computation over its inputs on one device; returns its results.
pub type Run = Box<dyn FnMut() -> Result<Vec<Tensor>>>;

/// Makes the inputs on a device.
type Make = Box<dyn Fn(&Device) -> Result<Run>>;

/// Something to time.
pub struct Case {
    pub name: String,
    pub flops: f64,
    /// That have to be moved at least.
    pub bytes: f64,
    /// Launched one by one: it cannot be captured as a graph.
    pub eager: bool,
    pub make: Make,
}

/// The matrix of a layer, wherever it lies.
pub enum Base {
    Dense(Tensor),
    Host(Nf4),
    Device(Box<DeviceNf4>),
    Planned(usize, usize),
}

impl Base {
    pub fn new(out: usize, inn: usize, nf4: bool, device: &Device) -> Result<Self> {
        match (nf4, device.is_plan()) {
            (false, _) => return Ok(Base::Dense(tensor(out, inn, 7, device)?)),
            (true, true) => return Ok(Base::Planned(out, inn)),
            (true, false) => {}
        }
        let q = quantised(out, inn)?;
        match device.runs_kernels() {
            true => Ok(Base::Device(Box::new(DeviceNf4::upload(&q, &Code2::new(device)?)?))),
            false => Ok(Base::Host(q)),
        }
    }

    /// NF4 in bf16, on `device`.
    pub fn dequantised(&self, device: &Device) -> Result<Tensor> {
        let (rows, cols) = match self {
            Base::Dense(t) => (t.rows(), t.cols()),
            Base::Host(q) => (q.rows, q.cols),
            Base::Device(q) => (q.rows, q.cols),
            Base::Planned(out, inn) => (*out, *inn),
        };
        let mut y = Tensor::unwritten(rows, cols, DType::Bf16, device)?;
        match self {
            Base::Host(q) => q.rows_bf16(0..rows, y.slice_mut())?,
            Base::Device(q) => q.dequantise(0..rows, &mut y)?,
            Base::Dense(_) | Base::Planned(..) => {}
        }
        Ok(y)
    }

    pub fn matrix(&self) -> Matrix<'_> {
        match self {
            Base::Dense(t) => Matrix::Dense(Slot::whole(t)),
            Base::Host(q) => Matrix::Nf4(q),
            Base::Device(q) => Matrix::DeviceNf4(q),
            Base::Planned(out, inn) => Matrix::Planned(*out, *inn),
        }
    }
}
