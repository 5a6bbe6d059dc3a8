//! `plan`: what a run would take, before anything is loaded.

use super::say;
use crate::config::{Config, Strategy};
use crate::device::Card;
use crate::device::gemm::Isa;
use crate::error::{Error, Result};
use crate::train::plan::{self, Plan, available_memory, human};
use crate::train::schedule::Steps;
use crate::train::{self, Control, Event, Inputs, Target, TrainData, target};

/// Takes `--device NAME` out of the arguments, which are otherwise settings.
///
/// # Errors
/// [`Error::Config`] for a name that is not known.
pub fn take_device(args: &mut Vec<String>) -> Result<Option<Card>> {
    let Some(at) = args.iter().position(|a| a == "--device" || a.starts_with("--device=")) else { return Ok(None) };
    let name = match args.remove(at).split_once('=') {
        Some((_, name)) => name.to_string(),
        None if at < args.len() => args.remove(at),
        None => String::new(),
    };
    let known = Card::names().collect::<Vec<_>>().join(", ");
    let card = Card::known(&name);
    card.map(Some).ok_or_else(|| Error::config("--device", format!("names `{name}`; known are {known}")))
}

/// Runs the command on a config that passed `validate_for`: for the device that would be used here, or for `card`.
///
/// # Errors
/// Whatever is wrong with model, data or settings; [`Error::Memory`] if the run would not fit.
pub fn run(config: Config, card: Option<Card>) -> Result<()> {
    let target = match card {
        Some(card) => Target::Gpu(card),
        None => target::pick(&config)?.1,
    };
    let (inputs, plan) = train::prepare(&config, &target, &mut |_: &Event<'_>| Control::Continue)?;
    let steps = train::steps(&config, &inputs)?;
    say(&table(&config, &target, &inputs, &plan, &steps));
    Ok(())
}

fn table(config: &Config, target: &Target, inputs: &Inputs, plan: &Plan, steps: &Steps) -> String {
    let t = &config.train;
    let mut rows: Vec<(String, String)> = Vec::new();
    let mut row = |name: &str, value: String| rows.push((name.to_string(), value));
    let s = &plan.spec;
    row("model", format!("{}, {} layers, hidden {}, vocabulary {}", s.family, s.layers, s.hidden, s.vocab));
    row(
        "device",
        match target {
            Target::Cpu { threads } => format!("CPU, {threads} threads, {:?}", Isa::best()),
            Target::Gpu(card) => card.name.clone(),
        },
    );
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
    if let Target::Gpu(card) = target {
        for (name, value) in on_card(config, card, inputs, plan) {
            row(name, value);
        }
    }
    let b = plan.bytes;
    let bytes = [
        ("frozen weights, 16/32 bit", b.dense),
        ("frozen weights, NF4", b.nf4),
        ("table of rotations", b.table),
        ("trained values", b.trained),
        ("gradient", b.gradient),
        ("optimizer", b.optimizer),
        ("activations and workspace", b.step),
        ("  of which logits", b.logits),
        ("scratch of products", b.scratch),
        ("in all", b.total()),
        ("beside the weights while loading", b.loading),
        ("embedding, in the CPU's memory", b.pinned),
    ];
    for (name, n) in bytes.into_iter().filter(|(_, n)| *n > 0) {
        rows.push((name.to_string(), format!("{n:>14} bytes  {:>10}", human(n))));
    }
    let (name, free) = match target {
        Target::Cpu { .. } => ("free now", available_memory()),
        Target::Gpu(card) => ("of the card's", Some(card.memory)),
    };
    if let Some(free) = free {
        rows.push((name.into(), format!("{free:>14} bytes  {:>10}", human(free))));
    }
    let width = rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
    rows.iter().map(|(name, value)| format!("{name:width$}  {value}\n")).collect()
}

/// What only a GPU's plan says.
fn on_card(config: &Config, card: &Card, inputs: &Inputs, plan: &Plan) -> Vec<(&'static str, String)> {
    let (train, eval) = train::envelopes(config, inputs);
    let target = Target::Gpu(card.clone());
    let mut rows = vec![("kept for backward", plan.policies.to_string())];
    let largest = plan::largest_batch(&inputs.folder, config, &train, &eval, &target);
    rows.push((
        "largest batch that fits",
        match largest {
            Some((rows, tokens)) => format!("{rows} rows of the longest, {tokens} tokens"),
            None => "none".into(),
        },
    ));
    // Every weight is read in the forward and in the backward pass; activations are written and read about twice.
    let moved = 2.0 * plan.bytes.weights() as f64 + 4.0 * plan.bytes.step as f64;
    let seconds = card.roofline(plan.flops, moved) * config.train.gradient_accumulation_steps as f64;
    rows.push(("least time a step", format!("{:.1} ms, by the card's peak figures", seconds * 1e3)));
    rows
}
