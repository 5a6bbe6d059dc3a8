//! ggml's blocks, on one core: quantising and dequantising, in bytes of f32 per second.
//!
//! `cargo bench --bench gguf`. A matrix of 1024 rows of 4096, and (for dequantising) 16 rows that stay in cache, as a
//! product reads them. `benches/peers/gguf_speed.py` times the `gguf` Python package on the same shapes.

use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qlora_engine::ops::philox::{Stream, normal};
use qlora_engine::quant::ggml::{GgmlType, can_quantise, dequantise, quantise};

const ROWS: usize = 1024;
const COLS: usize = 4096;
const IN_CACHE: usize = 16;

fn gguf(c: &mut Criterion) {
    let stream = Stream { seed: 1, step: 0, module: 0 };
    let x: Vec<f32> = (0..ROWS * COLS).map(|i| normal(stream, i as u64)).collect();
    for ty in GgmlType::ALL {
        let mut group = c.benchmark_group(ty.name());
        group.sample_size(10).warm_up_time(Duration::from_millis(300)).measurement_time(Duration::from_secs(1));
        group.throughput(Throughput::Bytes(4 * x.len() as u64));
        let mut blocks = Vec::new();
        if can_quantise(ty) {
            group.bench_function("quantise", |b| {
                b.iter(|| {
                    blocks.clear();
                    quantise(ty, &x, &mut blocks);
                });
            });
        } else {
            blocks = vec![0x11; ROWS * COLS / ty.block() * ty.block_bytes()];
        }
        let mut y = vec![0f32; x.len()];
        group.bench_function("dequantise", |b| b.iter(|| dequantise(ty, &blocks, &mut y)));
        let (few, y) = (&blocks[..blocks.len() / ROWS * IN_CACHE], &mut y[..IN_CACHE * COLS]);
        group.throughput(Throughput::Bytes(4 * y.len() as u64));
        group.bench_function("dequantise in cache", |b| b.iter(|| dequantise(ty, few, y)));
    }
}

criterion_group!(benches, gguf);
criterion_main!(benches);
