//! What does not fit is refused before anything is loaded, with the figures and what would fit.

use std::path::Path;

use super::plan::{self, Bytes, Envelope, Plan, human};
use super::target::Target;
use crate::config::{Config, FinetuningType};
use crate::error::{Error, Result};

/// Refuses a plan that exceeds `limit` bytes, naming the nearest settings that fit.
///
/// # Errors
/// [`Error::Memory`] with the figures.
pub fn check(
    plan: &Plan,
    limit: u64,
    folder: &Path,
    config: &Config,
    train: &Envelope,
    eval: &Envelope,
    target: &Target,
) -> Result<()> {
    let b = plan.bytes;
    let need = b.total();
    if need <= limit {
        return Ok(());
    }
    let fits = |c: &Config, t: &Envelope, e: &Envelope| {
        plan::plan(folder, c, t, e, target).is_ok_and(|p| p.bytes.total() <= limit)
    };
    let advice = match nearest(config, train, eval, target, &fits) {
        Some(settings) => format!("this fits: {}", settings.join(", ")),
        None if b.loading <= b.run() => "no setting makes it fit".into(),
        None => {
            let way = match config.model.max_memory {
                Some(_) => format!("allow `max_memory: {need}`"),
                None => format!("{} more of the card's memory are needed", human(need - limit)),
            };
            format!("no setting makes it fit, as smaller batches take no less while the model is loaded: {way}")
        }
    };
    let parts = parts(&b);
    Err(Error::Memory(format!("the run needs {} ({parts}), the limit is {}; {advice}", human(need), human(limit))))
}

/// What the total is made of. Loading and the run come one after the other: the larger of the two counts.
fn parts(b: &Bytes) -> String {
    let weights = human(b.weights());
    if b.loading > b.run() {
        let (loading, run) = (human(b.loading), human(b.run()));
        return format!(
            "weights {weights}, and while they are loaded {loading} to quantise them; the run itself takes {run}"
        );
    }
    format!(
        "weights {weights}, trained {}, gradient and optimizer {}, a step {}",
        human(b.trained),
        human(b.gradient + b.optimizer),
        human(b.step + b.scratch)
    )
}

/// The settings, as `key: value`, that make a run fit and change least of it; each is tried on top of those before. None
/// if nothing helps.
fn nearest(
    config: &Config,
    train: &Envelope,
    eval: &Envelope,
    target: &Target,
    fits: &dyn Fn(&Config, &Envelope, &Envelope) -> bool,
) -> Option<Vec<String>> {
    let mut c = config.clone();
    let mut settings = Vec::new();
    // The same result, a little slower. (On a GPU the plan has done that already.)
    if matches!(target, Target::Cpu { .. }) && c.model.disable_gradient_checkpointing {
        c.model.disable_gradient_checkpointing = false;
        settings.push("disable_gradient_checkpointing: false".to_string());
        if fits(&c, train, eval) {
            return Some(settings);
        }
    }
    // The same step, in more and smaller micro-batches.
    let rows = config.train.per_device_train_batch_size;
    let batches = |rows_now: usize| {
        let steps = config.train.gradient_accumulation_steps * rows / rows_now;
        let mut all = vec![format!("per_device_train_batch_size: {rows_now}")];
        if steps != config.train.gradient_accumulation_steps {
            all.push(format!("gradient_accumulation_steps: {steps}"));
        }
        if eval.lengths.len() > rows_now {
            all.push(format!("per_device_eval_batch_size: {rows_now}"));
        }
        all
    };
    for rows_now in (1..rows.max(eval.lengths.len())).rev().filter(|n| rows.is_multiple_of(*n)) {
        if fits(&c, &train.first(rows_now, usize::MAX), &eval.first(rows_now, usize::MAX)) {
            settings.extend(batches(rows_now));
            return Some(settings);
        }
    }
    let one = |e: &Envelope| e.first(1, usize::MAX);
    settings.extend(batches(1));
    // Another model in memory, but the same data.
    if c.model.quantization_bit.is_none() && c.tune.finetuning_type == FinetuningType::Lora {
        c.model.quantization_bit = Some(4);
        settings.push("quantization_bit: 4".to_string());
        if fits(&c, &one(train), &one(eval)) {
            return Some(settings);
        }
    }
    // Less of the data.
    let mut cutoff = config.data.cutoff_len;
    while cutoff > 64 {
        cutoff /= 2;
        if fits(&c, &train.first(1, cutoff), &eval.first(1, cutoff)) {
            settings.push(format!("cutoff_len: {cutoff}"));
            return Some(settings);
        }
    }
    None
}
