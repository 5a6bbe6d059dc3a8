use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Lora, Matrix};
use qlora_engine::quant::DeviceGgml;
use qlora_engine::quant::ggml::{Blocks, GgmlType, dequantise};
use qlora_engine::tensor::Live;

/// The types that kernels read, and where the halves of a block are.
const TYPES: [(GgmlType, &[usize]); 11] = [
    (GgmlType::F16, &[0]),
    (GgmlType::Q4_0, &[0]),
    (GgmlType::Q4_1, &[0, 2]),
    (GgmlType::Q5_0, &[0]),
    (GgmlType::Q5_1, &[0, 2]),
    (GgmlType::Q8_0, &[0]),
    (GgmlType::Q2K, &[80, 82]),
    (GgmlType::Q3K, &[108]),
    (GgmlType::Q4K, &[0, 2]),
    (GgmlType::Q5K, &[0, 2]),
    (GgmlType::Q6K, &[208]),
];

/// Blocks of random bits, but for scales of ordinary size: some of them zero, subnormal or negative.
pub fn blocks(ty: GgmlType, rows: usize, cols: usize, seed: u64) -> Blocks {
    let n = ty.row_bytes(cols).unwrap() * rows;
    let mut bytes: Vec<u8> = random(seed, n).iter().map(|x| (x.abs() * 4096.0) as u64 as u8).collect();
    let halves = TYPES.iter().find(|(t, _)| *t == ty).unwrap().1;
    for (i, block) in bytes.chunks_exact_mut(ty.block_bytes()).enumerate() {
        for (j, &at) in halves.iter().enumerate() {
            let scale = [0.01, 0.0, 3e-7, -0.02, 0.03][(i + 2 * j) % 5] * (1.0 + (i % 13) as f32 / 7.0);
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
    }
    Blocks::new(ty, rows, cols, bytes).unwrap()
}

/// The values of blocks, rounded to bf16: by code that is held to the `gguf` package elsewhere.
pub fn dequantised(q: &Blocks) -> Vec<f64> {
    let mut values = vec![f32::NAN; q.rows * q.cols];
    dequantise(q.ty, q.bytes(), &mut values);
    values.iter().map(|&x| f64::from(<bf16 as Float>::narrow(x).to_f32())).collect()
}

/// One block, more chunks than a warp and than a block of threads has, with and without a ragged end.
#[test]
fn values_are_those_of_the_cpu() {
    for (ty, _) in TYPES {
        let block = ty.block();
        for (rows, cols) in [(1, block), (3, 5 * block), (19, 768), (33, 1024)] {
            let blocks = blocks(ty, rows, cols, rows as u64);
            let want = dequantised(&blocks);
            assert!(want.iter().all(|x| x.is_finite()) && want.iter().any(|&x| x != 0.0), "{ty}");
            for part in [0..rows, rows / 2..rows, rows - 1..rows] {
                let got = on_each(|device| {
                    let q = DeviceGgml::upload(&blocks, device).unwrap();
                    let mut out = Tensor::unwritten(part.len(), cols, DType::Bf16, device).unwrap();
                    q.dequantise(part.clone(), &mut out).unwrap();
                    vec![out.to_f64()]
                });
                assert_eq!(got[0], want[part.start * cols..part.end * cols], "{ty} ({rows}, {cols}) rows {part:?}");
            }
        }
    }
}

/// Forward and backward with blocks have the bits of the dequantised matrix, with an adapter and rows of NaN past the live.
#[test]
fn a_layer_of_blocks_is_one_of_their_values() {
    for (ty, _) in TYPES {
        let (rows, live, inn, out, r) = (40, 37, 256, 70, 8);
        let blocks = blocks(ty, out, inn, 3);
        for (_, device) in kernel_devices() {
            device.set_step(Step { tokens: live as u32, ..no_step() });
            let t =
                |seed, rows: usize, cols: usize| tensor(&random(seed, rows * cols), rows, cols, DType::Bf16, &device);
            let of_rows = |seed, cols: usize| {
                let mut x = random(seed, rows * cols);
                x[live * cols..].fill(f64::NAN);
                let mut x = tensor(&x, rows, cols, DType::Bf16, &device);
                x.set_live(Live::tokens(&device));
                x
            };
            let (x, dy, a, b) = (of_rows(1, inn), of_rows(2, out), t(3, r, inn), t(4, out, r));
            let dense = tensor(&dequantised(&blocks), out, inn, DType::Bf16, &device);
            let q = DeviceGgml::upload(&blocks, &device).unwrap();
            let run = |w: Matrix| {
                let lora = Lora { a: Slot::whole(&a), b: Slot::whole(&b), scale: 0.5, dropout: None };
                let l = Linear { w, bias: None, lora: Some(lora) };
                let (y, saved) = linear::fwd(&x, &l, None).unwrap();
                let mut none = tensor(&[], 1, 0, DType::F32, &device);
                let dx = linear::bwd(saved, &x, &l, &dy, Dx::New, &mut none).unwrap().unwrap();
                [(y, out), (dx, inn)].map(|(t, cols)| t.to_f64()[..live * cols].to_vec())
            };
            let (got, want) = (run(Matrix::DeviceGgml(&q)), run(Matrix::Dense(Slot::whole(&dense))));
            assert!(want.iter().flatten().all(|x| x.is_finite()));
            assert_eq!(got, want, "{ty}");
        }
    }
}

#[test]
fn what_does_not_fit_is_refused() {
    let device = Device::host_kernels(1, false).unwrap();
    let why = |ty, cols| DeviceGgml::unwritten(ty, 2, cols, &device).map(|_| ()).unwrap_err().to_string();
    assert!(why(GgmlType::Q4K, 100).contains("no multiple of the 256"));
    assert!(why(GgmlType::F32, 32).contains("is F32"));
    let blocks = blocks(GgmlType::Q8_0, 4, 64, 1);
    let q = DeviceGgml::upload(&blocks, &device).unwrap();
    let out = |rows: std::ops::Range<usize>, n, dtype| {
        let mut out = Tensor::unwritten(n, 64, dtype, &device).unwrap();
        q.dequantise(rows, &mut out).unwrap_err().to_string()
    };
    assert!(out(3..5, 2, DType::Bf16).contains("rows 3..5 of (4, 64)"));
    assert!(out(1..3, 3, DType::Bf16).contains("dequantise out"));
    assert!(out(1..3, 2, DType::F32).contains("F32"));
    assert!(
        DeviceGgml::upload(&blocks, &Device::cpu(1))
            .unwrap()
            .dequantise(0..4, &mut { Tensor::unwritten(4, 64, DType::Bf16, &Device::cpu(1)).unwrap() })
            .is_err()
    );
    let x = tensor(&[0.0; 64], 1, 64, DType::Bf16, &Device::host_kernels(1, false).unwrap());
    let l = Linear { w: Matrix::DeviceGgml(&q), bias: None, lora: None };
    for refused in [linear::fwd(&x, &l, None).map(|_| ()), linear::decode(&x, &l, None).map(|_| ())] {
        assert!(refused.unwrap_err().to_string().contains("another device"));
    }
}
