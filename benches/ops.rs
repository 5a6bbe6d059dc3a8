//! Every operation of a training step on the CPU, forward and backward, at the layer shapes of `shapes.rs`.
//!
//! `cargo bench --bench ops`. Element throughput is tokens/s. What is timed is checked against f64 by `tests/ops`.

mod shapes;

use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use qlora_engine::device::Device;
use qlora_engine::ops::adamw::{self, AdamW, Flat, Groups, Moments};
use qlora_engine::ops::attention::{self, Attention, Scores};
use qlora_engine::ops::linear::{self, Dx, Linear, Lora, Matrix};
use qlora_engine::ops::philox::{Stream, normal};
use qlora_engine::ops::rope::{self, Table, Turn};
use qlora_engine::ops::{Slot, grad_norm, linear_cross_entropy, rms_norm, swiglu};
use qlora_engine::tensor::{DType, Float, Index, Tensor};
use shapes::{LAYERS, TOKENS};
use std::time::Duration;

const RANK: usize = 16;

/// Seeded normal numbers: products of zeros would be faster than those of a model.
fn random(rows: usize, cols: usize, dtype: DType, device: &Device) -> Tensor {
    let stream = Stream { seed: 1, step: 0, module: 0 };
    let values = (0..rows * cols).map(|i| normal(stream, i as u64));
    match dtype {
        DType::F32 => Tensor::from_slice(&values.collect::<Vec<f32>>(), rows, cols, device),
        DType::Bf16 => Tensor::from_slice(&values.map(half::bf16::narrow).collect::<Vec<_>>(), rows, cols, device),
        DType::F16 => Tensor::from_slice(&values.map(half::f16::from_f32).collect::<Vec<_>>(), rows, cols, device),
        DType::F64 => Tensor::from_slice(&values.map(f64::from).collect::<Vec<_>>(), rows, cols, device),
    }
    .expect("a tensor of a bench fits into memory")
}

fn ops(c: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let dev = Device::cpu(threads);
    for (model, hidden, mlp, heads, kv_heads, head_dim, vocab) in LAYERS {
        for dtype in [DType::F32, DType::Bf16] {
            let mut group = c.benchmark_group(format!("{model} {dtype:?}"));
            group.throughput(Throughput::Elements(TOKENS as u64));
            group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
            let r = |rows, cols| random(rows, cols, dtype, &dev);
            let x = r(TOKENS, hidden);

            let w = r(1, hidden);
            group.bench_function("rms_norm fwd", |b| b.iter(|| rms_norm::fwd(&x, Slot::whole(&w), 1e-6).unwrap()));
            let dy = r(TOKENS, hidden);
            group.bench_function("rms_norm bwd", |b| {
                b.iter(|| rms_norm::bwd(&x, Slot::whole(&w), 1e-6, &dy, None, None).unwrap())
            });

            let (gate, up) = (r(TOKENS, mlp), r(TOKENS, mlp));
            group.bench_function("swiglu fwd", |b| b.iter(|| swiglu::fwd(&gate, &up).unwrap()));

            let table = Table::new(&vec![0.01; head_dim / 2], 1.0, TOKENS);
            let positions = Index::host((0..TOKENS as u32).collect::<Vec<_>>());
            let mut q = r(TOKENS, heads * head_dim);
            let (mut k, v) = (r(TOKENS, kv_heads * head_dim), r(TOKENS, kv_heads * head_dim));
            group.bench_function("rope", |b| {
                b.iter(|| rope::apply([&mut q, &mut k], &positions, &table, Turn::Forward).unwrap())
            });

            for spans in [1, 4] {
                let cu_seqlens = Index::host((0..=spans).map(|i| (i * TOKENS / spans) as u32).collect::<Vec<_>>());
                let a = Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    cu_seqlens: &cu_seqlens,
                    window: None,
                    scores: Scores::default(),
                };
                let id = |what| BenchmarkId::new(format!("attention {what}"), format!("{spans} spans"));
                group.bench_function(id("fwd"), |b| b.iter(|| attention::fwd(&q, &k, &v, a).unwrap()));
                group.bench_function(id("fwd + bwd"), |b| {
                    b.iter(|| {
                        let (o, saved) = attention::fwd(&q, &k, &v, a).unwrap();
                        attention::bwd(saved, &q, &k, &v, &o, &q, a).unwrap()
                    })
                });
            }

            // The adapter in one flat tensor, as a model holds it.
            let w = r(mlp, hidden);
            let flat = r(1, RANK * (hidden + mlp));
            let slot = |offset, rows, cols| Slot { tensor: &flat, offset, rows, cols, grad: true };
            let (a, b_slot) = (slot(0, RANK, hidden), slot(RANK * hidden, mlp, RANK));
            let lora = Lora { a, b: b_slot, scale: 2.0, dropout: None };
            let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: Some(lora) };
            let mut grads = Tensor::zeros(1, flat.len(), DType::F32, &dev).unwrap();
            group.bench_function("linear + lora fwd", |b| b.iter(|| linear::fwd(&x, &l, None).unwrap()));
            group.bench_function("linear + lora fwd + bwd", |b| {
                b.iter(|| {
                    let (_, saved) = linear::fwd(&x, &l, None).unwrap();
                    linear::bwd(saved, &x, &l, &gate, Dx::New, &mut grads).unwrap()
                })
            });

            let head = r(vocab, hidden);
            let rows = 256;
            let targets = Index::host((0..rows as u32).map(|i| i * 37 % vocab as u32).collect::<Vec<_>>());
            let mut loss = Tensor::zeros(1, 1, DType::F64, &dev).unwrap();
            let h = r(rows, hidden);
            group.throughput(Throughput::Elements(rows as u64));
            group.bench_function("linear_cross_entropy", |b| {
                b.iter(|| {
                    let h = h.copy().unwrap();
                    linear_cross_entropy::fwd_bwd(h, Slot::whole(&head), &targets, 1.0, &mut loss, &mut grads).unwrap()
                })
            });
            group.finish();
        }
    }
    optimizer(c, &dev);
}

fn optimizer(c: &mut Criterion, dev: &Device) {
    let n = 4 << 20;
    let mut group = c.benchmark_group("4 M parameters");
    group.throughput(Throughput::Elements(n as u64));
    group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
    let g = random(1, n, DType::F32, dev);
    let mut p = random(1, n, DType::F32, dev);
    let a = AdamW { lr: 1e-4, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_norm: 1.0, step: 3 };
    let mut groups = Groups::new([(0..n, true)], dev).unwrap();
    let one = Tensor::from_slice(&[1.0f64], 1, 1, dev).unwrap();
    group.bench_function("grad_norm", |b| b.iter(|| grad_norm::run(&g).unwrap()));
    for (name, eight_bit) in [("adamw", false), ("adamw_8bit", true)] {
        let mut moments = Moments::zeros(&p, eight_bit).unwrap();
        group.bench_function(name, |b| {
            b.iter(|| {
                let flat = Flat { p: &mut p, moments: &mut moments, g: &g, copy: None };
                adamw::step(flat, &mut groups, a, &one, &one).unwrap()
            })
        });
    }
    group.finish();
}

criterion_group!(benches, ops);
criterion_main!(benches);
