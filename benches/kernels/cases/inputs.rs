//! What is multiplied: seeded numbers.

use half::bf16;
use qlora_engine::Result;
use qlora_engine::device::Device;
use qlora_engine::format::Dtype;
use qlora_engine::quant::{Nf4, Nf4Builder};
use qlora_engine::tensor::{DType, Float, Tensor};

/// Seeded numbers in [-1, 1), bf16: products of zeros would be faster than those of a model.
pub fn values(n: usize, seed: u64) -> Vec<bf16> {
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

/// A matrix in NF4 with double quantisation.
pub fn quantised(out: usize, inn: usize) -> Result<Nf4> {
    let mut builder = Nf4Builder::new(out, inn, Dtype::BF16, true)?;
    builder.push(&values(out * inn, 7).iter().map(|x| x.to_f32()).collect::<Vec<_>>(), 8)?;
    builder.finish()
}
