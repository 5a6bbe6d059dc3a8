//! Every kernel on every device that runs kernels, held to the CPU's ops in f64.

mod adamw;
mod attention;
mod columns;
mod embedding;
mod families;
mod gelu;
mod gemv;
mod ggml;
mod grad_norm;
mod infer;
mod kv_write;
mod layer_norm;
mod linear;
mod linear_cross_entropy;
mod linear_f16;
mod nf4;
mod rms_norm;
mod rope;
mod runtime;
mod sample;
mod swiglu;
mod train;
// Under AddressSanitizer nothing is compiled for GPUs.
#[cfg(not(feature = "host-asan"))]
mod usage;

use std::path::PathBuf;

use half::{bf16, f16};
use qlora_engine::device::Device;
use qlora_engine::device::abi::Step;
use qlora_engine::ops::philox::{Stream, normal};
use qlora_engine::tensor::{DType, Float, Tensor};

/// Where the project's files are: elsewhere than at the build, if the environment says so.
pub fn root() -> PathBuf {
    std::env::var_os("QLORA_TEST_ROOT").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from)
}

/// Two devices that must give the same bits: host-run forwards and in reverse; or, where QLORA_TEST_DEVICE is `cuda`, the
/// first GPU twice.
pub fn kernel_devices() -> Vec<(&'static str, Device)> {
    if std::env::var_os("QLORA_TEST_DEVICE").is_some_and(|device| device == "cuda") {
        return ["the GPU", "the GPU again"].map(|name| (name, Device::cuda(0).unwrap())).into();
    }
    vec![
        ("host-run", Device::host_kernels(2, false).unwrap()),
        ("host-run in reverse", Device::host_kernels(2, true).unwrap()),
    ]
}

/// A step of nothing: no tokens, no random numbers, no gradient.
pub fn no_step() -> Step {
    Step { tokens: 0, sequences: 0, loss_rows: 0, micro_step: 0, seed: 0, scale: 0.0, noise: 0.0 }
}

/// Runs `f` on every device; what it returns must be the same bits on the host-run ones. Returns it.
pub fn on_each(f: impl Fn(&Device) -> Vec<Vec<f64>>) -> Vec<Vec<f64>> {
    let mut all = kernel_devices().into_iter().map(|(name, device)| (name, f(&device)));
    let (_, first) = all.next().expect("host-run kernels are always there");
    for (name, got) in all {
        for (i, (a, b)) in first.iter().zip(&got).enumerate() {
            let same = a.len() == b.len() && a.iter().zip(b).all(|(a, b)| a.to_bits() == b.to_bits());
            assert!(same, "result {i} differs on {name}");
        }
    }
    first
}

/// Seeded normal numbers.
pub fn random(seed: u64, n: usize) -> Vec<f64> {
    (0..n).map(|i| f64::from(normal(Stream { seed, step: 0, module: 0 }, i as u64))).collect()
}

/// `x` rounded to bf16, as f64.
pub fn bf16s(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(<bf16 as Float>::narrow(x as f32).to_f32())).collect()
}

/// `x` as a tensor of `dtype`, rounded once.
pub fn tensor(x: &[f64], rows: usize, cols: usize, dtype: DType, device: &Device) -> Tensor {
    match dtype {
        DType::F64 => Tensor::from_slice(x, rows, cols, device),
        DType::F32 => Tensor::from_slice(&x.iter().map(|&x| x as f32).collect::<Vec<_>>(), rows, cols, device),
        DType::Bf16 => {
            let low: Vec<bf16> = x.iter().map(|&x| <bf16 as Float>::narrow(x as f32)).collect();
            Tensor::from_slice(&low, rows, cols, device)
        }
        DType::F16 => Tensor::from_slice(&x.iter().map(|&x| f16::from_f64(x)).collect::<Vec<_>>(), rows, cols, device),
    }
    .unwrap()
}

/// Largest difference; NaN if any is NaN.
pub fn max_err(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len());
    got.iter().zip(want).fold(0.0, |m, (g, w)| {
        let e = (g - w).abs();
        if e > m || e.is_nan() { e } else { m }
    })
}

/// A kernel may err at most `times` as much as plain arithmetic of the same precision does (the CPU's op in bf16), both
/// against f64; and by one f32 rounding of the largest value, where plain arithmetic happens to be exact.
pub fn check(what: &str, got: &[f64], plain: &[f64], want: &[f64], times: f64) {
    let largest = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let (e, limit) = (max_err(got, want), times * max_err(plain, want) + 2f64.powi(-23) * largest);
    assert!(e <= limit, "{what}: error {e:.3e} > {limit:.3e}");
}
