//! The dry run before step 1: the same model code, on a device that only writes down sizes and lifetimes, gives every
//! byte that training will need and a fixed place for each tensor of a step.

use std::path::Path;
use std::sync::Arc;

use super::engine::policy;
use crate::config::{Config, FinetuningType, Precision};
use crate::data::Batch;
use crate::device::{Device, Layout};
use crate::error::{Error, Result};
use crate::model::{self, Options, Pass, Policy, Spec};
use crate::ops::linear_cross_entropy::chunk_rows;
use crate::tensor::{DType, Tensor};

/// The sizes of the largest batch of a run: no batch has more tokens, or more rows that reach the head.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Envelope {
    /// Lengths of its rows.
    pub lengths: Vec<usize>,
    /// Tokens that reach the head.
    pub loss_rows: usize,
}

impl Envelope {
    /// The `batch` longest of `samples` (length, rows that reach the head), each figure for itself.
    pub fn of(samples: impl Iterator<Item = (usize, usize)>, batch: usize) -> Self {
        let (mut lengths, mut heads): (Vec<usize>, Vec<usize>) = samples.unzip();
        for v in [&mut lengths, &mut heads] {
            v.sort_unstable_by(|a, b| b.cmp(a));
            v.truncate(batch);
        }
        Envelope { lengths, loss_rows: heads.iter().sum() }
    }

    /// `batch` rows of `len` tokens, all of which may reach the head: where the data are not known beforehand.
    pub fn uniform(len: usize, batch: usize) -> Self {
        Envelope { lengths: vec![len; batch], loss_rows: len * batch }
    }

    /// What is left of it with at most `rows` rows of at most `len` tokens.
    fn first(&self, rows: usize, len: usize) -> Self {
        let lengths: Vec<usize> = self.lengths.iter().take(rows).map(|&n| n.min(len)).collect();
        let tokens = lengths.iter().sum();
        Envelope { loss_rows: self.loss_rows.min(tokens), lengths }
    }

    /// Tokens of the largest batch.
    pub fn tokens(&self) -> usize {
        self.lengths.iter().sum()
    }

    /// A batch of these sizes; its contents do not matter to a plan.
    fn batch(&self) -> Batch {
        let tokens = self.tokens();
        let loss_rows = self.loss_rows.min(tokens);
        let mut cu_seqlens = vec![0u32];
        for len in &self.lengths {
            cu_seqlens.push(cu_seqlens[cu_seqlens.len() - 1] + *len as u32);
        }
        Batch {
            ids: vec![0; tokens],
            positions: vec![0; tokens],
            cu_seqlens,
            loss_rows: vec![0; loss_rows],
            targets: vec![0; loss_rows],
            labels: loss_rows,
            rows: self.lengths.len(),
            no_window: false,
            padded_len: self.lengths.iter().copied().max().unwrap_or(1),
        }
    }
}

/// What a run needs, before it starts.
pub struct Plan {
    pub spec: Spec,
    /// Values that are trained.
    pub trained: usize,
    /// Bytes by purpose.
    pub bytes: Bytes,
    /// Floating-point operations of the largest micro-batch, forward and backward.
    pub flops: f64,
    pub(super) train: Arc<Layout>,
    pub(super) eval: Arc<Layout>,
}

/// Bytes by purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Bytes {
    /// Frozen weights, 16- or 32-bit.
    pub dense: u64,
    /// Frozen weights in NF4.
    pub nf4: u64,
    /// Trained values, and their copy in bf16.
    pub trained: u64,
    pub gradient: u64,
    pub optimizer: u64,
    /// Everything alive inside a step, at its peak and placed.
    pub step: u64,
    /// Of that, the chunk of logits.
    pub logits: u64,
    /// Scratch of the products, a thread; an estimate from above.
    pub scratch: u64,
}

impl Bytes {
    /// All of it.
    pub fn total(&self) -> u64 {
        self.dense + self.nf4 + self.trained + self.gradient + self.optimizer + self.step + self.scratch
    }
}

impl Plan {
    /// Bytes of one step's memory.
    pub(super) fn step_bytes(&self) -> usize {
        self.train.bytes().max(self.eval.bytes())
    }
}

/// dtype of activations on the CPU.
pub fn dtype(config: &Config) -> DType {
    match config.train.precision {
        Precision::F32 => DType::F32,
        Precision::Bf16 => DType::Bf16,
    }
}

/// How the model of a run is loaded; `max_positions` is its longest sequence.
pub fn options(config: &Config, max_positions: usize, threads: usize) -> Options<'_> {
    Options {
        method: &config.tune,
        dtype: dtype(config),
        nf4: config.model.quantization_bit.map(|_| config.model.double_quantization),
        max_positions,
        rope_scaling: config.model.rope_scaling,
        adapters: &config.model.adapter_name_or_path,
        from_scratch: config.model.train_from_scratch,
        seed: config.train.seed,
        threads,
    }
}

/// Plans a run of the model in `folder` whose largest training and evaluation batches are given.
///
/// # Errors
/// As [`model::load`].
pub fn plan(folder: &Path, config: &Config, train: &Envelope, eval: &Envelope, threads: usize) -> Result<Plan> {
    plan_with(folder, config, train, eval, policy(config), threads)
}

fn plan_with(
    folder: &Path,
    config: &Config,
    train: &Envelope,
    eval: &Envelope,
    policy: Policy,
    threads: usize,
) -> Result<Plan> {
    let device = Device::plan();
    let longest = train.lengths.iter().chain(&eval.lengths).copied().max().unwrap_or(1);
    let model = model::load(folder, &options(config, longest, threads), &device, &|_, _| {})?;
    let mut grads = model.params.zeros_like()?;
    let mut loss = Tensor::zeros(1, 1, DType::F64, &device)?;
    let (dense, nf4) = model.frozen_bytes();
    let params = model.params.bytes() as u64;
    let gradient = grads.bytes() as u64;
    // Weights and gradient are outside the step: forget what they recorded.
    let _ = device.take_plan();

    let pass = Pass {
        policy,
        dropout: config.tune.lora_dropout,
        neftune: config.train.neftune_noise_alpha,
        seed: 0,
        micro_step: 0,
        scale: 1.0,
    };
    let recorded = |run: &mut dyn FnMut() -> Result<()>| -> Result<(Layout, f64)> {
        run()?;
        let (recorder, flops) = device.take_plan().unwrap_or_default();
        Ok((recorder.layout(), flops))
    };
    let (train_layout, flops) = recorded(&mut || model.loss_and_grad(&train.batch(), pass, &mut loss, &mut grads))?;
    let (eval_layout, _) = match eval.lengths.is_empty() {
        true => Default::default(),
        false => recorded(&mut || model.loss(&eval.batch(), &mut loss))?,
    };

    let spec = model.spec.clone();
    let logit_rows = chunk_rows(spec.vocab).min(train.loss_rows.max(eval.loss_rows));
    let bytes = Bytes {
        dense,
        nf4,
        trained: params,
        gradient,
        optimizer: 2 * gradient,
        step: train_layout.bytes().max(eval_layout.bytes()) as u64,
        logits: (logit_rows * spec.vocab * 4) as u64,
        scratch: (threads * (SCRATCH_PER_THREAD + 64 * longest * 20 + longest * spec.head_dim * 8)) as u64,
    };
    let trained = model.params.len();
    Ok(Plan { spec, trained, bytes, flops, train: Arc::new(train_layout), eval: Arc::new(eval_layout) })
}

/// Panels of a product that a thread packs: two of at most a few MB.
const SCRATCH_PER_THREAD: usize = 8 << 20;

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
    threads: usize,
) -> Result<()> {
    let need = plan.bytes.total();
    if need <= limit {
        return Ok(());
    }
    let fits = |c: &Config, t: &Envelope, e: &Envelope| {
        plan_with(folder, c, t, e, policy(c), threads).is_ok_and(|p| p.bytes.total() <= limit)
    };
    let advice = nearest(config, train, eval, &fits);
    let b = plan.bytes;
    let advice =
        advice.map_or("no setting makes it fit".into(), |settings| format!("this fits: {}", settings.join(", ")));
    Err(Error::Memory(format!(
        "the run needs {} (weights {}, trained {}, gradient and optimizer {}, a step {}), the limit is {}; {advice}",
        human(need),
        human(b.dense + b.nf4),
        human(b.trained),
        human(b.gradient + b.optimizer),
        human(b.step + b.scratch),
        human(limit)
    )))
}

/// The settings, as `key: value`, that make a run fit and change least of it; each is tried on top of those before. None
/// if nothing helps.
fn nearest(
    config: &Config,
    train: &Envelope,
    eval: &Envelope,
    fits: &dyn Fn(&Config, &Envelope, &Envelope) -> bool,
) -> Option<Vec<String>> {
    let mut c = config.clone();
    let mut settings = Vec::new();
    // The same result, a little slower.
    if c.model.disable_gradient_checkpointing {
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

/// Bytes for people.
pub fn human(bytes: u64) -> String {
    const UNITS: [&str; 4] = ["KiB", "MiB", "GiB", "TiB"];
    if bytes < 1024 {
        return format!("{bytes} B");
    }
    let mut x = bytes as f64 / 1024.0;
    let mut unit = 0;
    while x >= 1024.0 && unit < 3 {
        x /= 1024.0;
        unit += 1;
    }
    format!("{x:.1} {}", UNITS[unit])
}

/// Bytes of memory that the system could give now, where it says so (Linux).
pub fn available_memory() -> Option<u64> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let line = text.lines().find_map(|l| l.strip_prefix("MemAvailable:"))?;
    line.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}
