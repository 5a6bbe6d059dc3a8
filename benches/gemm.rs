//! Matrix products at the shapes of training, in GFLOP/s (criterion's "elements" are floating-point operations).
//!
//! `cargo bench --bench gemm`; `QLORA_ISA=avx512bf16` and the like force a lesser instruction set, `GEMM_THREADS=1`
//! sets the threads (default: all). Every product is checked against f64 at sampled elements before it is timed.

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use half::bf16;
use qlora_engine::device::gemm::{Absmax, DstView, Isa, Nf4Ref, View, gemm};
use qlora_engine::device::pool::Pool;
use std::time::Duration;

/// What is multiplied: the names say A, B and how they are stored ("t": transposed).
#[derive(Clone, Copy, PartialEq)]
enum Op {
    /// X W^T, the forward of a linear.
    F32,
    Bf16,
    /// The same from 4-bit weights.
    Nf4,
    /// dY W, the backward into X.
    Bf16Back,
    Nf4Back,
    /// dY^T X, the gradient of a weight; K is the number of tokens.
    F32Grad,
    Bf16Grad,
}

const CASES: [(&str, Op, [usize; 3]); 19] = [
    ("linear", Op::F32, [512, 3072, 1024]),
    ("linear", Op::F32, [1152, 512, 1536]),
    ("square", Op::F32, [2048, 2048, 2048]),
    ("linear", Op::Bf16, [512, 3072, 1024]),
    ("linear", Op::Bf16, [1152, 512, 1536]),
    ("square", Op::Bf16, [2048, 2048, 2048]),
    ("backward", Op::Bf16Back, [512, 1024, 3072]),
    ("nf4", Op::Nf4, [512, 3072, 1024]),
    ("nf4 backward", Op::Nf4Back, [512, 1024, 3072]),
    ("lora down", Op::F32, [1024, 8, 1024]),
    ("lora down", Op::Bf16, [1024, 16, 1024]),
    ("lora up", Op::F32, [1024, 1024, 8]),
    ("lora up", Op::Bf16, [1024, 1024, 16]),
    ("lora dB", Op::F32Grad, [1024, 8, 1024]),
    ("lora dA", Op::F32Grad, [8, 1024, 1024]),
    ("dW", Op::Bf16Grad, [1024, 1024, 1152]),
    ("head", Op::Bf16, [256, 8192, 1024]),
    ("attention tile", Op::F32, [64, 256, 64]),
    ("attention tile", Op::Bf16, [64, 256, 128]),
];

/// Values in [-1, 1) from a linear congruential generator.
fn random(n: usize, seed: u32) -> Vec<f32> {
    let mut s = seed;
    let mut next = || {
        s = s.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        (s >> 8) as f32 / 8_388_608.0 - 1.0
    };
    (0..n).map(|_| next()).collect()
}

fn products(c: &mut Criterion) {
    let threads = std::env::var("GEMM_THREADS").ok().and_then(|v| v.parse().ok());
    let threads = threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let pool = Pool::new(threads);
    let mut group = c.benchmark_group(format!("gemm {} {threads} threads", Isa::best()));
    group.sample_size(20).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(2));
    for (name, op, [m, n, k]) in CASES {
        let a: Vec<bf16> = random(m * k, 1).into_iter().map(bf16::from_f32).collect();
        let b: Vec<bf16> = random(k * n, 2).into_iter().map(bf16::from_f32).collect();
        // f32 copies of the same numbers.
        let (a32, b32): (Vec<f32>, Vec<f32>) =
            (a.iter().map(|v| v.to_f32()).collect(), b.iter().map(|v| v.to_f32()).collect());
        let packed: Vec<u8> = random(k * n / 2, 3).into_iter().map(|v| (v * 128.0) as i8 as u8).collect();
        let absmax: Vec<f32> = random((k * n).div_ceil(64), 4).into_iter().map(|v| 1.0 + v.abs()).collect();
        let code: [f32; 16] = std::array::from_fn(|i| (i as f32 - 7.5) / 7.5);
        let q = Nf4Ref { packed: &packed, absmax: Absmax::Plain(&absmax), code: &code, round_bf16: true };

        let (av, bv) = match op {
            Op::F32 => (View::f32(&a32, m, k), View::f32(&b32, n, k).t()),
            Op::F32Grad => (View::f32(&a32, k, m).t(), View::f32(&b32, k, n)),
            Op::Bf16 => (View::bf16(&a, m, k), View::bf16(&b, n, k).t()),
            Op::Bf16Back => (View::bf16(&a, m, k), View::bf16(&b, k, n)),
            Op::Bf16Grad => (View::bf16(&a, k, m).t(), View::bf16(&b, k, n)),
            Op::Nf4 => (View::bf16(&a, m, k), View::nf4(q, n, k).t()),
            Op::Nf4Back => (View::bf16(&a, m, k), View::nf4(q, k, n)),
        };
        let pool = (!name.starts_with("attention")).then_some(&pool);
        let mut out = vec![f32::NAN; m * n];
        let mut out16 = vec![bf16::NAN; m * n];
        gemm(pool, 1.0, av, bv, 0.0, DstView::f32(&mut out, m, n));
        for s in 0..50 {
            let (i, j) = (s * 7919 % m, s * 104_729 % n);
            let (mut want, mut size) = (0.0, 0.0);
            for l in 0..k {
                let at = l * bv.row_stride + j * bv.col_stride;
                let y = if matches!(op, Op::Nf4 | Op::Nf4Back) {
                    let nibble = if at % 2 == 0 { packed[at / 2] >> 4 } else { packed[at / 2] & 15 };
                    bf16::from_f32(code[usize::from(nibble)] * absmax[at / 64]).to_f64()
                } else {
                    f64::from(b32[at])
                };
                let p = f64::from(a32[i * av.row_stride + l * av.col_stride]) * y;
                want += p;
                size += p.abs();
            }
            // At most K additions and a few more roundings, each of at most 2^-24 of the sum of sizes.
            let (e, limit) = ((f64::from(out[i * n + j]) - want).abs(), (k + 8) as f64 * size * 2f64.powi(-24));
            assert!(e <= limit, "{name} {m}x{n}x{k} ({i}, {j}): error {e:e} > {limit:e}");
        }
        group.throughput(Throughput::Elements(2 * (m * n * k) as u64));
        let (kind, wide) = match op {
            Op::F32 | Op::F32Grad => ("f32", true),
            Op::Bf16 | Op::Bf16Back | Op::Bf16Grad => ("bf16", false),
            Op::Nf4 | Op::Nf4Back => ("bf16 x nf4", false),
        };
        group.bench_function(BenchmarkId::new(format!("{name} {kind}"), format!("{m}x{n}x{k}")), |t| {
            t.iter(|| {
                let dst = if wide { DstView::f32(&mut out, m, n) } else { DstView::bf16(&mut out16, m, n) };
                gemm(pool, 1.0, av, bv, 0.0, dst);
            });
        });
    }
    group.finish();
}

criterion_group!(benches, products);
criterion_main!(benches);
