//! Every op on the CPU: gradients against finite differences in f64, then f32 and bf16 against f64.

mod adamw;
mod attention;
mod columns;
mod embedding;
mod gelu;
mod layer_norm;
mod linear;
mod linear_cross_entropy;
mod rms_norm;
mod rope;
mod swiglu;

use half::bf16;
use qlora_engine::device::Device;
use qlora_engine::ops::philox::{Stream, normal};
use qlora_engine::tensor::{DType, Float, Index, Tensor};

pub fn cpu() -> Device {
    Device::cpu(2)
}

/// Seeded normal numbers.
pub fn random(seed: u64, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from(normal(Stream { seed, step: 0, module: 0 }, i as u64))).collect()
}

/// `x` as a tensor of `dtype`, rounded once.
pub fn tensor(x: &[f64], rows: usize, cols: usize, dtype: DType) -> Tensor {
    let dev = cpu();
    match dtype {
        DType::F64 => Tensor::from_slice(x, rows, cols, &dev),
        DType::F32 => Tensor::from_slice(&x.iter().map(|&x| x as f32).collect::<Vec<_>>(), rows, cols, &dev),
        DType::Bf16 => {
            let low: Vec<bf16> = x.iter().map(|&x| <bf16 as Float>::narrow(x as f32)).collect();
            Tensor::from_slice(&low, rows, cols, &dev)
        }
        DType::F16 => {
            Tensor::from_slice(&x.iter().map(|&x| half::f16::from_f64(x)).collect::<Vec<_>>(), rows, cols, &dev)
        }
    }
    .unwrap()
}

/// `x` as that dtype holds it.
pub fn rounded(x: &[f64], dtype: DType) -> Vec<f64> {
    tensor(x, 1, x.len(), dtype).to_f64()
}

/// Largest difference; NaN if any is NaN.
pub fn max_err(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).fold(0.0, |m, (g, w)| {
        let e = (g - w).abs();
        if e > m || e.is_nan() { e } else { m }
    })
}

/// Largest magnitude.
pub fn max_abs(x: &[f64]) -> f64 {
    x.iter().fold(0.0, |m, x| m.max(x.abs()))
}

pub fn dot(a: &[f64], b: &[f64]) -> f64 {
    a.iter().zip(b).map(|(a, b)| a * b).sum()
}

/// Unit roundoff: half a unit in the last place.
pub fn eps(dtype: DType) -> f64 {
    match dtype {
        DType::F64 => 2f64.powi(-53),
        DType::F32 => 2f64.powi(-24),
        DType::Bf16 => 2f64.powi(-8),
        DType::F16 => 2f64.powi(-11),
    }
}

/// Checks `grad` = d f / d x by central differences.
///
/// With h = 1e-4 the truncation is h^2/6 times a third derivative of order 10 or less, 2e-8, and rounding adds 1e-16 / h
/// = 1e-12 relative: 1e-6 of the largest gradient holds both.
pub fn check_grad(what: &str, x: &[f64], grad: &[f64], f: impl Fn(&[f64]) -> f64) {
    assert_eq!(x.len(), grad.len());
    let h = 1e-4;
    let scale = max_abs(grad).max(1.0);
    for i in 0..x.len() {
        let mut y = x.to_vec();
        y[i] = x[i] + h;
        let up = f(&y);
        y[i] = x[i] - h;
        let slope = (up - f(&y)) / (2.0 * h);
        let e = (slope - grad[i]).abs();
        assert!(e <= 1e-6 * scale, "{what}: element {i}: gradient {} but slope {slope}", grad[i]);
    }
}
