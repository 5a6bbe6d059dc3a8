//! Kernels on the GPU that is here, at the layer shapes of real models: time, and how near it is to what the card could do
//! at best. Without a GPU it says so and ends.
//!
//! `cargo bench --bench kernels`. Before it is timed each result is held to the CPU's. A case runs as a captured graph over
//! several sets of inputs, together larger than the second-level cache, so neither launches nor caching are timed.

mod shapes;

use std::sync::Arc;
use std::time::{Duration, Instant};

use criterion::{Criterion, criterion_group, criterion_main};
use half::bf16;
use qlora_engine::device::{Card, Device};
use qlora_engine::format::Dtype;
use qlora_engine::ops::attention::{self, Attention, Scores};
use qlora_engine::ops::linear::{self, Dx, Linear, Lora, Matrix};
use qlora_engine::ops::{Slot, linear_cross_entropy, rms_norm, swiglu};
use qlora_engine::quant::{Code2, DeviceNf4, Nf4, Nf4Builder};
use qlora_engine::tensor::{DType, Float, Index, Live, Tensor};
use qlora_engine::train::target;
use qlora_engine::{Result, device};
use shapes::{GPU_LAYERS, TOKENS};

const RANK: usize = 16;
/// Rows that reach the head.
const HEAD_ROWS: usize = 256;

/// A computation over its inputs on one device; returns its results.
type Run = Box<dyn FnMut() -> Result<Vec<Tensor>>>;

/// Makes the inputs on a device.
type Make = Box<dyn Fn(&Device) -> Result<Run>>;

/// Something to time.
struct Case {
    name: String,
    flops: f64,
    /// That have to be moved at least.
    bytes: f64,
    make: Make,
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

fn tensor(rows: usize, cols: usize, seed: u64, device: &Device) -> Result<Tensor> {
    if device.is_plan() {
        return Tensor::unwritten(rows, cols, DType::Bf16, device);
    }
    Tensor::from_slice(&values(rows * cols, seed), rows, cols, device)
}

/// The matrix of a layer, wherever it lies.
enum Base {
    Dense(Tensor),
    Host(Nf4),
    Device(Box<DeviceNf4>),
    Planned(usize, usize),
}

impl Base {
    fn new(out: usize, inn: usize, nf4: bool, device: &Device) -> Result<Self> {
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

    fn matrix(&self) -> Matrix<'_> {
        match self {
            Base::Dense(t) => Matrix::Dense(Slot::whole(t)),
            Base::Host(q) => Matrix::Nf4(q),
            Base::Device(q) => Matrix::DeviceNf4(q),
            Base::Planned(out, inn) => Matrix::Planned(*out, *inn),
        }
    }
}

/// A layer with its adapter, forward or both ways: what the backward pass needs is made by the forward pass.
fn linear_case(model: &str, out: usize, inn: usize, nf4: bool, backward: bool) -> Case {
    let (t, o, i, r) = (TOKENS as f64, out as f64, inn as f64, RANK as f64);
    let weights = o * i * if nf4 { 0.516 } else { 2.0 };
    let adapter = 2.0 * t * r * (o + i);
    Case {
        name: format!(
            "{model} linear {out}x{inn} {} {}",
            if nf4 { "nf4" } else { "bf16" },
            if backward { "fwd + bwd" } else { "fwd" }
        ),
        flops: if backward { 4.0 * t * o * i + 3.0 * adapter } else { 2.0 * t * o * i + adapter },
        bytes: (weights + 2.0 * t * (o + i)) * if backward { 2.0 } else { 1.0 },
        make: Box::new(move |device| {
            let (base, x) = (Base::new(out, inn, nf4, device)?, tensor(TOKENS, inn, 1, device)?);
            let (dy, flat) = (tensor(TOKENS, out, 2, device)?, tensor(1, RANK * (inn + out), 3, device)?);
            let mut grads = Tensor::zeros(1, flat.len(), DType::F32, device)?;
            Ok(Box::new(move || {
                let slot = |offset, rows, cols| Slot { tensor: &flat, offset, rows, cols, grad: true };
                let lora = Lora { a: slot(0, RANK, inn), b: slot(RANK * inn, out, RANK), scale: 2.0, dropout: None };
                let l = Linear { w: base.matrix(), bias: None, lora: Some(lora) };
                let (y, saved) = linear::fwd(&x, &l, None)?;
                if !backward {
                    return Ok(vec![y]);
                }
                Ok(linear::bwd(saved, &x, &l, &dy, Dx::New, &mut grads)?.into_iter().collect())
            }))
        }),
    }
}

fn attention_case(model: &str, heads: usize, kv_heads: usize, head_dim: usize, backward: bool) -> Case {
    let (t, width, kv) = (TOKENS as f64, (heads * head_dim) as f64, (kv_heads * head_dim) as f64);
    Case {
        name: format!("{model} attention {heads}/{kv_heads}x{head_dim} {}", if backward { "fwd + bwd" } else { "fwd" }),
        flops: t * (t + 1.0) / 2.0 * width * if backward { 14.0 } else { 4.0 },
        bytes: 2.0 * t * (2.0 * width + 2.0 * kv) * if backward { 3.0 } else { 1.0 },
        make: Box::new(move |device| {
            let q = tensor(TOKENS, heads * head_dim, 1, device)?;
            let (k, v) =
                (tensor(TOKENS, kv_heads * head_dim, 2, device)?, tensor(TOKENS, kv_heads * head_dim, 3, device)?);
            let spans = attention::spans(vec![0, TOKENS as u32], TOKENS, device)?;
            Ok(Box::new(move || {
                let a = Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    cu_seqlens: &spans,
                    window: None,
                    scores: Scores::default(),
                };
                let (o, saved) = attention::fwd(&q, &k, &v, a)?;
                if !backward {
                    return Ok(vec![o]);
                }
                Ok(attention::bwd(saved, &q, &k, &v, &o, &q, a)?.into())
            }))
        }),
    }
}

fn row_cases(model: &str, hidden: usize, mlp: usize) -> Vec<Case> {
    let elements = |cols: usize| (TOKENS * cols) as f64;
    vec![
        Case {
            name: format!("{model} rms_norm {hidden} fwd"),
            flops: 4.0 * elements(hidden),
            bytes: 4.0 * elements(hidden),
            make: Box::new(move |device| {
                let (x, w) = (tensor(TOKENS, hidden, 1, device)?, tensor(1, hidden, 2, device)?);
                Ok(Box::new(move || Ok(vec![rms_norm::fwd(&x, Slot::whole(&w), 1e-6)?])))
            }),
        },
        Case {
            name: format!("{model} rms_norm {hidden} bwd"),
            flops: 8.0 * elements(hidden),
            bytes: 6.0 * elements(hidden),
            make: Box::new(move |device| {
                let (x, w) = (tensor(TOKENS, hidden, 1, device)?, tensor(1, hidden, 2, device)?);
                let dy = tensor(TOKENS, hidden, 3, device)?;
                Ok(Box::new(move || Ok(vec![rms_norm::bwd(&x, Slot::whole(&w), 1e-6, &dy, None, None)?])))
            }),
        },
        Case {
            name: format!("{model} swiglu {mlp} fwd"),
            flops: 5.0 * elements(mlp),
            bytes: 6.0 * elements(mlp),
            make: Box::new(move |device| {
                let (gate, up) = (tensor(TOKENS, mlp, 1, device)?, tensor(TOKENS, mlp, 2, device)?);
                Ok(Box::new(move || Ok(vec![swiglu::fwd(&gate, &up)?])))
            }),
        },
    ]
}

fn head_case(model: &str, hidden: usize, vocab: usize) -> Case {
    let (rows, h, v) = (HEAD_ROWS as f64, hidden as f64, vocab as f64);
    Case {
        name: format!("{model} linear_cross_entropy {vocab}x{hidden}"),
        flops: 4.0 * rows * h * v,
        bytes: 4.0 * h * v,
        make: Box::new(move |device| {
            let (h, w) = (tensor(HEAD_ROWS, hidden, 1, device)?, tensor(vocab, hidden, 2, device)?);
            let targets: Vec<u32> = (0..HEAD_ROWS as u32).map(|i| i * 37 % vocab as u32).collect();
            let targets = Index::new(targets, HEAD_ROWS, None::<Live>, device)?;
            let mut loss = Tensor::zeros(1, 1, DType::F64, device)?;
            let mut none = Tensor::zeros(1, 0, DType::F32, device)?;
            Ok(Box::new(move || {
                let h = h.copy()?;
                let dh = linear_cross_entropy::fwd_bwd(h, Slot::whole(&w), &targets, 1.0, &mut loss, &mut none)?;
                Ok(vec![dh])
            }))
        }),
    }
}

fn cases() -> Vec<Case> {
    let mut all = Vec::new();
    for (model, hidden, mlp, heads, kv_heads, head_dim, vocab) in GPU_LAYERS {
        all.extend(row_cases(model, hidden, mlp));
        for backward in [false, true] {
            all.push(attention_case(model, heads, kv_heads, head_dim, backward));
            for nf4 in [true, false] {
                all.push(linear_case(model, mlp, hidden, nf4, backward));
            }
        }
        all.push(head_case(model, hidden, vocab));
    }
    all
}

/// Distance of two results, relative to the second.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f64(), b.to_f64());
    let off: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    (off / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Times a case; returns seconds a run.
fn time(c: &mut Criterion, case: &Case, device: &Device, l2: f64) -> Result<f64> {
    let copies = ((2.0 * l2 / case.bytes).ceil() as usize).clamp(1, 32);
    let planned = Device::plan_kernels();
    let mut dry = (0..copies).map(|_| (case.make)(&planned)).collect::<Result<Vec<_>>>()?;
    let _ = planned.take_plan();
    for run in &mut dry {
        run()?;
    }
    let layout = Arc::new(planned.take_plan().unwrap_or_default().0.layout());
    let memory = device.reserve(layout.bytes())?;
    let mut runs = (0..copies).map(|_| (case.make)(device)).collect::<Result<Vec<_>>>()?;

    // Both round their results to bf16 once (2^-9 of each, root mean square 2^-9 / sqrt 3), and the intermediates that their
    // headers name as often: 1 % is several times that.
    let want = (case.make)(&Device::cpu(std::thread::available_parallelism().map_or(1, |n| n.get())))?()?;
    let mut off = 0.0;
    memory.run(&layout, || {
        for (i, run) in runs.iter_mut().enumerate() {
            let got = run()?;
            if i == 0 {
                off = got.iter().zip(&want).map(|(g, w)| distance(g, w)).fold(0.0, f64::max);
            }
        }
        Ok(())
    })?;
    assert!(off <= 0.01, "{}: is off the CPU's result by {off:.2e}", case.name);

    let graph = memory.run(&layout, || device.capture(|| runs.iter_mut().try_for_each(|run| run().map(drop))))?;
    let Some(graph) = graph else { unreachable!("a GPU captures") };
    let mut best = f64::INFINITY;
    c.bench_function(&case.name, |b| {
        b.iter_custom(|n| {
            device.synchronize().expect("the device runs");
            let began = Instant::now();
            for _ in 0..n {
                graph.launch().expect("the device takes a graph");
            }
            device.synchronize().expect("the device runs");
            let elapsed = began.elapsed() / copies as u32;
            best = best.min(elapsed.as_secs_f64() / n as f64);
            elapsed
        })
    });
    Ok(best)
}

fn kernels(c: &mut Criterion) {
    let device = match device::driver_version() {
        Ok(Some(_)) => Device::cuda(0),
        Ok(None) => return println!("no NVIDIA driver is here: the kernels are not timed"),
        Err(e) => Err(e),
    };
    let device = match device {
        Ok(device) => device,
        Err(e) => return println!("the kernels are not timed: {e}"),
    };
    let (card, l2) = (target::card_of(&device).expect("it is a GPU"), device.gpu().map_or(0, |g| g.l2));
    let mut rows = Vec::new();
    for case in cases() {
        match time(c, &case, &device, f64::from(l2)) {
            Ok(seconds) => rows.push(line(&case, seconds, &card)),
            Err(e) => rows.push(format!("{:<48} failed: {e}", case.name)),
        }
    }
    println!("\n{}, best of its samples; the share is of the roofline, by the card's peak figures", card.name);
    rows.iter().for_each(|row| println!("{row}"));
}

fn line(case: &Case, seconds: f64, card: &Card) -> String {
    let share = 100.0 * card.roofline(case.flops, case.bytes) / seconds;
    format!(
        "{:<48} {:>10.1} us {:>8.1} TFLOP/s {:>8.0} GB/s {share:>5.0} %",
        case.name,
        seconds * 1e6,
        case.flops / seconds / 1e12,
        case.bytes / seconds / 1e9
    )
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(10).warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = kernels
}
criterion_main!(benches);
