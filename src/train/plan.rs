//! The dry run before step 1: the same model code, on a device that only writes down sizes and lifetimes, gives every
//! byte that training will need and a fixed place for each tensor of a step.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::engine::policy;
use super::target::Target;
use crate::config::{Config, NOTHING_TRAINED};
use crate::data::Batch;
use crate::device::{Device, Layout};
use crate::error::Result;
use crate::format::HfConfig;
use crate::model::{self, FrozenBytes, Model, Options, Pass, Policies, Policy, Spec};
use crate::ops::adamw::Moments;
use crate::ops::linear_cross_entropy::{chunk_rows, kernel_chunk_rows};
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
    pub(super) fn first(&self, rows: usize, len: usize) -> Self {
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
    /// What each block keeps for its backward pass.
    pub policies: Policies,
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
    /// The table of rotations.
    pub table: u64,
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
    /// Beside the weights while they are loaded, when nothing else is there yet.
    pub loading: u64,
    /// Of a run on a GPU, in the CPU's memory, page-locked: an embedding that is only gathered. No part of the total.
    pub pinned: u64,
}

impl Bytes {
    /// The most that is taken at a time.
    pub fn total(&self) -> u64 {
        self.weights() + self.loading.max(self.run())
    }

    /// What is there beside the weights once they are loaded, at its peak.
    pub fn run(&self) -> u64 {
        self.trained + self.gradient + self.optimizer + self.step + self.scratch
    }

    /// What is frozen.
    pub fn weights(&self) -> u64 {
        self.dense + self.nf4 + self.table
    }
}

impl Plan {
    /// Bytes of one step's memory.
    pub(super) fn step_bytes(&self) -> usize {
        self.train.bytes().max(self.eval.bytes())
    }
}

/// How the model of a run is loaded; `max_positions` is its longest sequence.
pub fn options<'a>(config: &'a Config, max_positions: usize, target: &Target) -> Options<'a> {
    Options {
        method: &config.tune,
        dtype: target.dtype(config),
        nf4: config.model.quantization_bit.map(|_| config.model.double_quantization),
        max_positions,
        rope_scaling: config.model.rope_scaling,
        adapters: &config.model.adapter_name_or_path,
        from_scratch: config.model.train_from_scratch,
        config_only: false,
        seed: config.train.seed,
        threads: target.threads(),
    }
}

/// How a model is loaded that is only used, with `merged` merged into it and sequences of up to `positions` tokens.
pub fn use_options<'a>(config: &'a Config, merged: &'a [PathBuf], positions: usize, target: &Target) -> Options<'a> {
    Options { method: &NOTHING_TRAINED, adapters: merged, ..options(config, positions, target) }
}

/// Tokens of the longest sequence that the model in `folder` was made for; no bound where `rope_scaling` stretches it.
///
/// # Errors
/// Those of its config.json.
pub fn context(config: &Config, folder: &Path) -> Result<usize> {
    match config.model.rope_scaling {
        Some(_) => Ok(usize::MAX),
        None => Ok(HfConfig::open(folder)?.max_position_embeddings),
    }
}

/// Plans a run of the model in `folder` whose largest training and evaluation batches are given. On a GPU as much is kept
/// for the backward pass as fits; on the CPU `disable_gradient_checkpointing` decides.
///
/// # Errors
/// As [`model::load`].
pub fn plan(folder: &Path, config: &Config, train: &Envelope, eval: &Envelope, target: &Target) -> Result<Plan> {
    plan_of(folder, config, train, eval, target, false)
}

/// As [`plan`], for a model of which only config.json has to be there.
///
/// # Errors
/// As [`model::load`].
pub fn plan_shapes(folder: &Path, config: &Config, train: &Envelope, eval: &Envelope, target: &Target) -> Result<Plan> {
    plan_of(folder, config, train, eval, target, true)
}

fn plan_of(
    folder: &Path,
    config: &Config,
    train: &Envelope,
    eval: &Envelope,
    target: &Target,
    config_only: bool,
) -> Result<Plan> {
    let mut dry = DryRun::new(folder, config, train, eval, target, config_only)?;
    match target {
        Target::Cpu { .. } => dry.plan(policy(config).into()),
        Target::Gpu(_) => dry.most_kept(target.limit(config).unwrap_or(u64::MAX)),
    }
}

/// The most rows as long as the longest of the data that a micro-batch can have, and their tokens; None if not even one
/// fits.
pub fn largest_batch(
    folder: &Path,
    config: &Config,
    train: &Envelope,
    eval: &Envelope,
    target: &Target,
) -> Option<(usize, usize)> {
    let longest = train.lengths.first().copied()?;
    let heads = train.loss_rows.div_ceil(train.lengths.len());
    let limit = target.limit(config)?;
    let fits = |rows: usize| {
        let e = Envelope { lengths: vec![longest; rows], loss_rows: heads * rows };
        let least =
            DryRun::new(folder, config, &e, eval, target, false).and_then(|mut d| d.plan(Policy::RECOMPUTE.into()));
        least.is_ok_and(|p| p.bytes.total() <= limit)
    };
    let mut too_many = 1;
    while fits(too_many) {
        too_many *= 2;
        if too_many > MOST_ROWS {
            return Some((MOST_ROWS, MOST_ROWS * longest));
        }
    }
    let mut enough = too_many / 2;
    while too_many - enough > 1 {
        let tried = (enough + too_many) / 2;
        if fits(tried) { enough = tried } else { too_many = tried }
    }
    (enough > 0).then_some((enough, enough * longest))
}

/// Where the search for the largest batch ends: no run uses as many.
const MOST_ROWS: usize = 1 << 16;

/// A planned model, to be run with one policy after the other.
struct DryRun<'a> {
    config: &'a Config,
    train: &'a Envelope,
    eval: &'a Envelope,
    target: &'a Target,
    device: Device,
    model: Model,
    loss: Tensor,
    grads: Tensor,
}

impl<'a> DryRun<'a> {
    fn new(
        folder: &Path,
        config: &'a Config,
        train: &'a Envelope,
        eval: &'a Envelope,
        target: &'a Target,
        config_only: bool,
    ) -> Result<Self> {
        let device = target.planner();
        let longest = train.lengths.iter().chain(&eval.lengths).copied().max().unwrap_or(1);
        let options = Options { config_only, ..options(config, longest, target) };
        let model = model::load(folder, &options, &device, &|_, _| {})?;
        let grads = model.params.zeros_like()?;
        let loss = Tensor::zeros(1, 1, DType::F64, &device)?;
        Ok(DryRun { config, train, eval, target, device, model, loss, grads })
    }

    /// The plan that keeps most of what fits into `limit` bytes; if nothing fits, the one that keeps least.
    fn most_kept(&mut self, limit: u64) -> Result<Plan> {
        let layers = self.model.spec.layers;
        let mut best = self.plan(Policy::KEEP.into())?;
        for pair in Policy::CHAIN.windows(2) {
            if best.bytes.total() <= limit {
                return Ok(best);
            }
            let (full, lean) = (pair[0], pair[1]);
            // The fewest lean layers that fit, if all of them do; bytes fall with their number.
            best = self.plan(Policies { full, lean, lean_layers: layers })?;
            let (mut too_few, mut enough) = (0, layers);
            while best.bytes.total() <= limit && enough - too_few > 1 {
                let lean_layers = (too_few + enough) / 2;
                let tried = self.plan(Policies { full, lean, lean_layers })?;
                if tried.bytes.total() <= limit {
                    (best, enough) = (tried, lean_layers);
                } else {
                    too_few = lean_layers;
                }
            }
        }
        Ok(best)
    }

    fn plan(&mut self, policies: Policies) -> Result<Plan> {
        // Weights and gradient are outside the step: forget what they recorded.
        let _ = self.device.take_plan();
        let pass = Pass {
            policy: policies,
            dropout: self.config.tune.lora_dropout,
            neftune: self.config.train.neftune_noise_alpha,
            seed: 0,
            micro_step: 0,
            scale: 1.0,
        };
        self.model.loss_and_grad(&self.train.batch(), pass, &mut self.loss, &mut self.grads)?;
        let (train, flops) = self.recorded();
        let eval = match self.eval.lengths.is_empty() {
            true => Layout::default(),
            false => {
                self.model.loss(&self.eval.batch(), &mut self.loss)?;
                self.recorded().0
            }
        };
        let spec = self.model.spec.clone();
        let FrozenBytes { dense, quantised: nf4, pinned } = self.model.frozen_bytes();
        let gradient = self.grads.bytes() as u64;
        let per_chunk = if self.model.device.runs_kernels() { kernel_chunk_rows } else { chunk_rows };
        let logit_rows = per_chunk(spec.vocab).min(self.train.loss_rows.max(self.eval.loss_rows));
        let bytes = Bytes {
            dense,
            nf4,
            table: self.model.rotation_bytes(),
            trained: self.model.params.bytes() as u64,
            gradient,
            optimizer: Moments::bytes(self.grads.len(), self.grads.dtype().size(), self.config.train.adam_8bit),
            step: train.bytes().max(eval.bytes()) as u64,
            logits: (logit_rows * spec.vocab * 4) as u64,
            scratch: self.scratch(),
            loading: self.model.loading_bytes(),
            pinned,
        };
        let trained = self.model.params.len();
        let (train, eval) = (Arc::new(train), Arc::new(eval));
        Ok(Plan { spec, trained, bytes, flops, policies, train, eval })
    }

    fn recorded(&self) -> (Layout, f64) {
        let (recorder, flops) = self.device.take_plan().unwrap_or_default();
        (recorder.layout(), flops)
    }

    /// What products and attention take beside the arena, on the CPU.
    fn scratch(&self) -> u64 {
        let Target::Cpu { threads } = self.target else { return 0 };
        let longest = self.train.lengths.iter().chain(&self.eval.lengths).copied().max().unwrap_or(1);
        (threads * (SCRATCH_PER_THREAD + 64 * longest * 20 + longest * self.model.spec.head_dim * 8)) as u64
    }
}

/// Panels of a product that a thread packs: two of at most a few MB.
const SCRATCH_PER_THREAD: usize = 8 << 20;

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
