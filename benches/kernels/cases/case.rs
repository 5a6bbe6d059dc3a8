//! A computation that is timed.

use super::inputs::{quantised, tensor};
use qlora_engine::Result;
use qlora_engine::device::Device;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::Matrix;
use qlora_engine::quant::{Code2, DeviceNf4, Nf4};
use qlora_engine::tensor::{DType, Tensor};

/// A computation over its inputs on one device; returns its results. Where they cost more to get at than to compute, or
/// take the place of the inputs, only the first run does so.
pub type Run = Box<dyn FnMut() -> Result<Vec<Tensor>>>;

/// Results that a run leaves where its inputs were, for the comparison: copies on the CPU, outside of planned memory. None in
/// a plan, and none after the first time, which `shown` remembers.
pub fn show(results: &[&Tensor], shown: &mut bool) -> Result<Vec<Tensor>> {
    let plan = results.iter().any(|t| t.device().is_plan());
    if plan || std::mem::replace(shown, true) {
        return Ok(Vec::new());
    }
    results.iter().map(|t| Tensor::from_slice(&t.to_f64(), t.rows(), t.cols(), &Device::cpu(1))).collect()
}

/// Makes the inputs on a device.
type Make = Box<dyn Fn(&Device) -> Result<Run>>;

/// Something to time.
pub struct Case {
    pub name: String,
    pub flops: f64,
    /// That have to be moved at least.
    pub bytes: f64,
    pub how: How,
    pub make: Make,
}

/// How kernels of a case are started.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum How {
    /// All at once, as a graph that was captured.
    Graph,
    /// One by one: the CPU writes something for each run.
    Launched,
    /// One by one, in memory that no plan placed: the CPU waits for an answer in each run, which counts.
    Asking,
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
