//! How a case is timed: held to the CPU's result first; then as a captured graph over several sets of inputs, together larger
//! than the second-level cache, between two events of the device.

use std::sync::Arc;
use std::time::Duration;

use super::case::{Case, How};
use criterion::Criterion;
use qlora_engine::device::abi::Step;
use qlora_engine::device::{Card, Device, Layout, Reserved};
use qlora_engine::tensor::Tensor;
use qlora_engine::{Error, Result};

/// What tensor cores of a Hopper card reach by `mma.sync`, as a share of their peak, which takes `wgmma`: 494 of 757 TFLOP/s
/// measured on an H800 (arXiv:2501.12084).
const MMA_SYNC_ON_HOPPER: f64 = 494.0 / 757.0;

/// Times that a case is measured.
pub const SAMPLES: usize = 10;

/// Distance of two results, relative to the second.
fn distance(a: &Tensor, b: &Tensor) -> f64 {
    let (a, b) = (a.to_f64(), b.to_f64());
    let off: f64 = a.iter().zip(&b).map(|(a, b)| (a - b) * (a - b)).sum();
    (off / b.iter().map(|b| b * b).sum::<f64>()).sqrt()
}

/// Where the runs of a case have their results: each tensor at its planned place in memory reserved beforehand; None: as it comes.
struct Place(Option<(Reserved, Arc<Layout>)>);

impl Place {
    fn new(case: &Case, copies: usize, device: &Device) -> Result<Place> {
        if case.how == How::Asking {
            return Ok(Place(None));
        }
        let planned = Device::plan_kernels();
        let mut dry = (0..copies).map(|_| (case.make)(&planned)).collect::<Result<Vec<_>>>()?;
        let _ = planned.take_plan();
        for run in &mut dry {
            run()?;
        }
        let layout = Arc::new(planned.take_plan().unwrap_or_default().0.layout());
        Ok(Place(Some((device.reserve(layout.bytes())?, layout))))
    }

    fn run<R>(&self, work: impl FnOnce() -> Result<R>) -> Result<R> {
        match &self.0 {
            Some((memory, layout)) => memory.run(layout, work),
            None => work(),
        }
    }
}

/// Times a case on a device whose second-level cache has `l2` bytes; returns the seconds a run, the median of [`SAMPLES`] as of
/// the peers (benches/peers/gpu_kernels.py). `c` takes that many.
///
/// # Errors
/// What the device says, and a result that is not the CPU's.
pub fn time(c: &mut Criterion, case: &Case, device: &Device, l2: f64) -> Result<f64> {
    let copies = ((2.0 * l2 / case.bytes).ceil() as usize).clamp(1, 32);
    let place = Place::new(case, copies, device)?;
    // Kernels read the scale of the loss here; every row of a case counts.
    device.set_step(Step { tokens: 0, sequences: 0, loss_rows: 0, micro_step: 0, seed: 0, scale: 1.0, noise: 0.0 });
    let mut runs = (0..copies).map(|_| (case.make)(device)).collect::<Result<Vec<_>>>()?;

    // Both round their results to bf16 once (2^-9 of each, root mean square 2^-9 / sqrt 3), and the intermediates that their
    // headers name as often: 1 % is several times that.
    let want = (case.make)(&Device::cpu(std::thread::available_parallelism().map_or(1, |n| n.get())))?()?;
    let mut off = 0.0f64;
    place.run(|| {
        for (i, run) in runs.iter_mut().enumerate() {
            let got = run()?;
            if i == 0 {
                // A NaN is as far off as can be.
                let far = |(g, w)| Some(distance(g, w)).filter(|d| d.is_finite()).unwrap_or(f64::INFINITY);
                off = got.iter().zip(&want).map(far).fold(0.0, f64::max);
            }
        }
        Ok(())
    })?;
    if off > 0.01 {
        return Err(Error::Gpu(format!("is off the CPU's result by {off:.2e}")));
    }

    let all = |runs: &mut Vec<super::case::Run>| runs.iter_mut().try_for_each(|run| run().map(drop));
    let graph = match case.how {
        How::Graph => place.run(|| device.capture(|| all(&mut runs)))?,
        How::Launched | How::Asking => None,
    };
    let mut each = Vec::new();
    let mut failed = None;
    c.bench_function(&case.name, |b| {
        b.iter_custom(|n| {
            let timed = device.timed(|| {
                for _ in 0..n {
                    match &graph {
                        Some(graph) => graph.launch()?,
                        None => place.run(|| all(&mut runs))?,
                    }
                }
                Ok(())
            });
            // Criterion cannot be told of an error, nor take a time of 0.
            let elapsed = timed.unwrap_or_else(|e| {
                failed = Some(e);
                Duration::from_secs(1)
            });
            let elapsed = (elapsed / copies as u32).max(Duration::from_nanos(1));
            each.push(elapsed.as_secs_f64() / n as f64);
            elapsed
        })
    });
    if each.is_empty() {
        return Err(Error::Gpu("criterion was told to leave it out".into()));
    }
    // Those before are criterion's warm-up.
    let warm_up = each.len().saturating_sub(SAMPLES);
    failed.map_or_else(|| Ok(median(&mut each[warm_up..])), Err)
}

fn median(x: &mut [f64]) -> f64 {
    x.sort_by(f64::total_cmp);
    (x[(x.len() - 1) / 2] + x[x.len() / 2]) / 2.0
}

/// A line of the table: time, rates, the share of the card's roofline (of a Hopper card also that of what `mma.sync` can reach
/// there), and whether it ran as a graph.
pub fn line(case: &Case, seconds: f64, card: &Card, hopper: bool) -> String {
    let share = |card: &Card| 100.0 * card.roofline(case.flops, case.bytes) / seconds;
    let slower = Card { flops: card.flops * MMA_SYNC_ON_HOPPER, ..card.clone() };
    let of_mma = if hopper { format!(" {:>5.0} % of mma.sync", share(&slower)) } else { String::new() };
    let how = if case.how == How::Graph { "graph" } else { "launched" };
    format!(
        "{:<48} {:>10.1} us {:>8.1} TFLOP/s {:>8.0} GB/s {:>5.0} %{of_mma} {how}",
        case.name,
        seconds * 1e6,
        case.flops / seconds / 1e12,
        case.bytes / seconds / 1e9,
        share(card),
    )
}
