//! A computation that is timed, and what its inputs are made of.

use half::bf16;
use qlora_engine::Result;
use qlora_engine::device::Device;
use qlora_engine::format::Dtype;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::Matrix;
use qlora_engine::quant::{Code2, DeviceNf4, Nf4, Nf4Builder};
use qlora_engine::tensor::{DType, Float, Tensor};

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

/// Seeded numbers in [-1, 1), bf16: products of zeros would be faster than those of a model.
fn values(n: usize, seed: u64) -> Vec<bf16> {
    let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1 << 23) as f32 - 1.0
    };
    (0..n).map(|_| bf16::narrow(next())).collect()
}

pub fn tensor(rows: usize, cols: usize, seed: u64, device: &Device) -> Result<Tensor> {
    if device.is_plan() {
        return Tensor::unwritten(rows, cols, DType::Bf16, device);
    }
    Tensor::from_slice(&values(rows * cols, seed), rows, cols, device)
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
        let mut builder = Nf4Builder::new(out, inn, Dtype::BF16, true)?;
        builder.push(&values(out * inn, 7).iter().map(|x| x.to_f32()).collect::<Vec<_>>(), 8)?;
        let q = builder.finish()?;
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
