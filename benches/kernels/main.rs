//! Kernels on the GPU that is here, at the layer shapes of real models: time, and how near it is to what the card could do
//! at best. Without a GPU it says so and ends.
//!
//! `cargo bench --bench kernels [-- PART_OF_A_NAME]`. What is timed: `cases/`; how: `cases/measure.rs`. With the word `tiles` the
//! tiles of the products instead, for the table of src/ops/tiles.rs: `tiles.rs`.

mod cases;
#[path = "../shapes.rs"]
mod shapes;
mod tiles;

use std::time::Duration;

use cases::Sizes;
use cases::measure::{SAMPLES, line, time};
use criterion::{Criterion, criterion_group};
use qlora_engine::device::{self, Device, HOPPER};
use qlora_engine::train::target;

/// The GPU that is here; None where there is none, which it says.
fn gpu() -> Option<Device> {
    let device = match device::driver_version() {
        Ok(Some(_)) => Device::cuda(0),
        Ok(None) => {
            println!("no NVIDIA driver is here: the kernels are not timed");
            return None;
        }
        Err(e) => Err(e),
    };
    device.inspect_err(|e| println!("the kernels are not timed: {e}")).ok()
}

fn kernels(c: &mut Criterion) {
    let Some(device) = gpu() else { return };
    let card = target::card_of(&device).expect("it is a GPU");
    let (l2, hopper) = device.gpu().map_or((0, false), |g| (g.l2, g.capability == HOPPER));
    println!("{}, medians of {SAMPLES} samples; shares of the roofline, by the card's peak figures", card.name);
    let sizes = |blocks| Sizes { tokens: shapes::TOKENS, labelled: 256, keys: 2048, blocks };
    let models = shapes::GPU_LAYERS.into_iter().zip(shapes::GPU_BLOCKS);
    let long = shapes::GPU_LAYERS.into_iter().filter(|layer| layer.0 == shapes::LONG_MODEL);
    let cases = models.flat_map(|(layer, blocks)| cases::of_layer(layer, sizes(blocks)));
    let cases = cases.chain(long.flat_map(|layer| cases::of_many_tokens(layer, shapes::LONG_TOKENS)));
    let wanted = words().into_iter().next().unwrap_or_default();
    for case in cases.filter(|case| case.name.contains(&wanted)) {
        // Each as it comes: what follows may take long, or fail.
        match time(c, &case, &device, f64::from(l2)) {
            Ok(seconds) => println!("{}", line(&case, seconds, &card, hopper)),
            Err(e) => println!("{:<48} failed: {e}", case.name),
        }
    }
}

/// What follows the options: `cargo bench` adds `--bench`.
fn words() -> Vec<String> {
    std::env::args().skip(1).filter(|arg| !arg.starts_with("--")).collect()
}

criterion_group! {
    name = benches;
    config = Criterion::default().sample_size(SAMPLES).warm_up_time(Duration::from_millis(200))
        .measurement_time(Duration::from_millis(600));
    targets = kernels
}

fn main() {
    match words().split_first() {
        Some((tiles, kinds)) if tiles == "tiles" => {
            let shapes = tiles::shapes(&shapes::GPU_LAYERS);
            let done = gpu().map(|device| tiles::sweep(&device, kinds, (&shapes, &tiles::ROWS)));
            if let Some(Err(e)) = done {
                println!("the tiles are not timed: {e}");
                std::process::exit(1);
            }
        }
        _ => {
            benches();
            Criterion::default().configure_from_args().final_summary();
        }
    }
}
