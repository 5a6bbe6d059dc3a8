//! `plan`: what a run would take, before anything is loaded.

use super::say;
use crate::config::{Config, Strategy};
use crate::device::gemm::Isa;
use crate::error::Result;
use crate::train::plan::{Plan, available_memory, human};
use crate::train::schedule::Steps;
use crate::train::{self, Control, Event, Inputs, TrainData};

/// Runs the command on a config that passed `validate_for`.
///
/// # Errors
/// Whatever is wrong with model, data or settings; [`crate::Error::Memory`] if the run would not fit.
pub fn run(config: Config) -> Result<()> {
    let (inputs, plan) = train::prepare(&config, &mut |_: &Event<'_>| Control::Continue)?;
    let steps = train::steps(&config, &inputs)?;
    say(&table(&config, &inputs, &plan, &steps));
    Ok(())
}

fn table(config: &Config, inputs: &Inputs, plan: &Plan, steps: &Steps) -> String {
    let t = &config.train;
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_string(), value));
    let s = &plan.spec;
    row("model", format!("{}, {} layers, hidden {}, vocabulary {}", s.family, s.layers, s.hidden, s.vocab));
    row("device", format!("CPU, {} threads, {:?}", train::threads(config), Isa::best()));
    row("trained values", plan.trained.to_string());
    match &inputs.train {
        TrainData::Whole(samples) => {
            let tokens: usize = samples.iter().map(|s| s.ids.len()).sum();
            let trained: usize = samples.iter().map(|s| s.trained.iter().filter(|&&t| t).count()).sum();
            row("training samples", samples.len().to_string());
            row("tokens an epoch", format!("{tokens}, of which {trained} are trained on"));
        }
        TrainData::Streamed => row("training samples", "streamed".into()),
    }
    for (name, samples) in &inputs.eval {
        row(&format!("evaluation samples {name}"), samples.len().to_string());
    }
    row(
        "steps",
        format!(
            "{} ({} an epoch; {} rows x {} micro-batches each)",
            steps.total, steps.steps_per_epoch, t.per_device_train_batch_size, t.gradient_accumulation_steps
        ),
    );
    if t.save_strategy == Strategy::Steps {
        row("a checkpoint every", format!("{} steps", train::schedule::resolve_interval(t.save_steps, steps.total)));
    }
    row("largest micro-batch", format!("{:.1} GFLOP", plan.flops / 1e9));
    let b = plan.bytes;
    let bytes = [
        ("frozen weights, 16/32 bit", b.dense),
        ("frozen weights, NF4", b.nf4),
        ("trained values", b.trained),
        ("gradient", b.gradient),
        ("optimizer", b.optimizer),
        ("activations and workspace", b.step),
        ("  of which logits", b.logits),
        ("scratch of products", b.scratch),
        ("in all", b.total()),
    ];
    for (name, n) in bytes.into_iter().filter(|(_, n)| *n > 0) {
        rows.push((name.to_string(), format!("{n:>14} bytes  {:>10}", human(n))));
    }
    if let Some(free) = available_memory() {
        rows.push(("free now".into(), format!("{free:>14} bytes  {:>10}", human(free))));
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}
