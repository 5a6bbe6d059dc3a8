//! The whole model: embedding, blocks, final norm, head and loss; forward, and forward with backward.

use super::attached::Attached;
use super::block::{Block, Context, Saved};
use super::input::{Input, NO_STEP};
use super::norm::Norm;
use super::params::Params;
use super::policy::{Policies, Policy};
use super::spec::Spec;
use super::weights::{FrozenBytes, Values, Weight};
use crate::data::Batch;
use crate::device::{Device, abi};
use crate::error::{Error, Result};
use crate::ops::embedding::{self, Noise};
use crate::ops::linear::{self, Linear};
use crate::ops::philox::Stream;
use crate::ops::rope::Table;
use crate::ops::{Slot, linear_cross_entropy};
use crate::tensor::{DType, Index, Tensor};

pub use super::weights::Dropout;

/// A loaded model with its trained parameters.
pub struct Model {
    pub spec: Spec,
    /// dtype of activations and dense weights.
    pub dtype: DType,
    pub device: Device,
    pub params: Params,
    pub(super) embed: Weight,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: Norm,
    /// None: the head is the embedding.
    pub(super) head: Option<Weight>,
    /// None: positions are added to the embedding.
    pub(super) rope: Option<Table>,
    /// What is added to the embedding at each position, where the family has it.
    pub(super) positions: Option<Weight>,
    /// The longest sequence that can be run.
    pub(super) max_positions: usize,
    /// None: one that was detached.
    pub(super) attached: Vec<Option<Attached>>,
}

/// How a training pass runs.
#[derive(Debug, Clone, Copy)]
pub struct Pass {
    pub policy: Policies,
    /// Probability of the adapters' dropout.
    pub dropout: f64,
    /// NEFTune's alpha.
    pub neftune: Option<f64>,
    pub seed: u64,
    /// Counts micro-batches over the whole run: what random numbers depend on.
    pub micro_step: u32,
    /// 1 / (labels of the whole optimizer step): the gradient's scale.
    pub scale: f64,
}

/// A pass without random numbers or gradient.
const NO_PASS: Pass = Pass {
    policy: Policies { full: Policy::KEEP, lean: Policy::KEEP, lean_layers: 0 },
    dropout: 0.0,
    neftune: None,
    seed: 0,
    micro_step: 0,
    scale: 0.0,
};

/// Stream of NEFTune's noise; adapters count from 0.
const NOISE_MODULE: u32 = u32::MAX;

impl Model {
    pub(super) fn table(&self) -> Slot<'_> {
        self.dense(&self.embed)
    }

    pub(super) fn head(&self) -> Slot<'_> {
        self.dense(self.head.as_ref().unwrap_or(&self.embed))
    }

    pub(super) fn dense<'a>(&'a self, w: &'a Weight) -> Slot<'a> {
        match w.slot(&self.params) {
            Some(s) => s,
            None => unreachable!("embedding and head are never quantised"),
        }
    }

    /// The model's own values: those that training changes.
    pub(super) fn own(&self) -> Values<'_> {
        Values { own: &self.params, groups: &[] }
    }

    fn context<'a>(&'a self, input: &'a Input, dropout: Option<Dropout>) -> Context<'a> {
        Context {
            spec: &self.spec,
            params: self.own(),
            rope: self.rope.as_ref(),
            positions: &input.positions,
            cu_seqlens: &input.cu_seqlens,
            windows: input.windows,
            dropout,
            few_rows: false,
        }
    }

    fn weights(&self) -> impl Iterator<Item = &Weight> {
        let outside = std::iter::once(&self.embed).chain(&self.positions).chain(self.norm.weights()).chain(&self.head);
        outside.chain(self.blocks.iter().flat_map(Block::weights))
    }

    /// Bytes of frozen weights.
    pub fn frozen_bytes(&self) -> FrozenBytes {
        let mut sum = FrozenBytes::default();
        self.weights().for_each(|w| w.add_frozen(&mut sum));
        sum
    }

    /// Bytes of the table of rotations; 0 without one.
    pub fn rotation_bytes(&self) -> u64 {
        self.rope.as_ref().map_or(0, |table| table.bytes() as u64)
    }

    /// Bytes that a loaded model keeps where it computes: its weights, the table of rotations, and the values of what is trained
    /// and of the attached adapters. Not those that are pinned in the CPU's memory.
    pub fn resident_bytes(&self) -> u64 {
        let FrozenBytes { dense, quantised, pinned: _ } = self.frozen_bytes();
        let adapters = self.attached.iter().flatten().map(|a| &a.params);
        let values: usize = adapters.chain([&self.params]).map(Params::bytes).sum();
        dense + quantised + self.rotation_bytes() + values as u64
    }

    /// Of a planned model: the most bytes of device memory that loading it takes beside the weights, before anything else is
    /// there.
    pub fn loading_bytes(&self) -> u64 {
        if !self.device.runs_kernels() {
            return 0;
        }
        self.weights().map(Weight::loading_bytes).max().unwrap_or(0)
    }

    /// The longest sequence that can be run.
    pub fn max_positions(&self) -> usize {
        self.max_positions
    }

    /// Adds the summed cross-entropy of a batch to `loss` (1, 1; f64), and its gradient times `pass.scale` to `grads`.
    ///
    /// # Errors
    /// [`Error::Shape`] if the batch does not fit the model (an id beyond the embedding, a position beyond the table).
    pub fn loss_and_grad(&self, batch: &Batch, pass: Pass, loss: &mut Tensor, grads: &mut Tensor) -> Result<()> {
        self.loss_and_grad_of(&self.input(batch, pass)?, pass, loss, grads)
    }

    /// The first part of [`Model::loss_and_grad`]: the batch, checked and copied to where kernels read it.
    ///
    /// # Errors
    /// As [`Model::loss_and_grad`].
    pub fn input<'a>(&self, batch: &'a Batch, pass: Pass) -> Result<Input<'a>> {
        self.check(batch)?;
        let noise = pass.neftune.filter(|&alpha| alpha > 0.0);
        let noise = noise.map_or(0.0, |alpha| alpha / (batch.padded_len as f64 * self.spec.hidden as f64).sqrt());
        let (micro_step, seed, scale) = (pass.micro_step, pass.seed, pass.scale as f32);
        Input::new(batch, abi::Step { micro_step, seed, scale, ..NO_STEP }, noise, &self.device)
    }

    /// The second part: the pass itself. On kernels it only enqueues, and what it enqueues depends on the input's shape
    /// alone.
    ///
    /// # Errors
    /// As [`Model::loss_and_grad`].
    pub fn loss_and_grad_of(&self, input: &Input, pass: Pass, loss: &mut Tensor, grads: &mut Tensor) -> Result<()> {
        if input.targets.rows() == 0 {
            return Ok(());
        }
        let noise = (input.noise > 0.0).then_some(Noise {
            bound: input.noise,
            stream: Stream { seed: pass.seed, step: pass.micro_step, module: NOISE_MODULE },
        });
        let dropout = Some(Dropout { rate: pass.dropout, seed: pass.seed, step: pass.micro_step });
        let c = self.context(input, dropout);
        let mut x = self.embedded(input, noise)?;

        // Below the first trained block nothing needs a gradient, so nothing is kept.
        let embed_trained = self.embed.is_trained() || self.positions.as_ref().is_some_and(Weight::is_trained);
        let first = match self.blocks.iter().position(Block::is_trained) {
            _ if embed_trained => 0,
            Some(i) => i,
            None => self.blocks.len(),
        };
        let mut saved: Vec<Saved> = Vec::with_capacity(self.blocks.len() - first);
        for (i, block) in self.blocks.iter().enumerate() {
            x = if i < first {
                block.infer(x, c)?
            } else {
                let (y, s) = block.fwd(x, c, pass.policy.of(i))?;
                saved.push(s);
                y
            };
        }

        let mut dx = Some(self.head_loss(&x, input, pass.scale, loss, grads)?);
        drop(x);
        for (i, block) in self.blocks.iter().enumerate().skip(first).rev() {
            let Some(s) = saved.pop() else { unreachable!("one was pushed for each of these blocks") };
            let Some(dy) = dx else { unreachable!("asked for below") };
            dx = block.bwd(s, dy, c, i > first || embed_trained, grads)?;
        }
        if let (true, Some(dx)) = (embed_trained, dx) {
            self.embedded_bwd(input, &dx, grads)?;
        }
        Ok(())
    }

    /// The tokens' rows of the embedding, and what is added for their positions.
    fn embedded(&self, input: &Input, noise: Option<Noise>) -> Result<Tensor> {
        let mut x = embedding::fwd(self.table(), &input.ids, noise)?;
        if let Some(w) = &self.positions {
            embedding::add(&mut x, self.dense(w), &input.positions)?;
        }
        Ok(x)
    }

    fn embedded_bwd(&self, input: &Input, dx: &Tensor, grads: &mut Tensor) -> Result<()> {
        let tables = [(Some(&self.embed), &input.ids), (self.positions.as_ref(), &input.positions)];
        for (w, numbers) in tables.into_iter().filter_map(|(w, n)| Some((w.filter(|w| w.is_trained())?, n))) {
            embedding::bwd(self.dense(w), numbers, dx, grads)?;
        }
        Ok(())
    }

    /// Final norm, head and loss over the rows that are trained on; the gradient of `x`.
    fn head_loss(
        &self,
        x: &Tensor,
        input: &Input,
        scale: f64,
        loss: &mut Tensor,
        grads: &mut Tensor,
    ) -> Result<Tensor> {
        let last = embedding::gather(x, &input.loss_rows)?;
        let h = self.norm.fwd(&last, self.own(), self.spec.eps)?;
        let dh = linear_cross_entropy::fwd_bwd(h, self.head(), &input.targets, scale, loss, grads)?;
        let dlast = self.norm.bwd(&last, self.own(), self.spec.eps, &dh, None, grads)?;
        embedding::scatter(&dlast, &input.loss_rows, x)
    }

    /// Adds the summed cross-entropy of a batch to `loss` (1, 1; f64), without gradient, dropout or noise.
    ///
    /// # Errors
    /// As [`Model::loss_and_grad`].
    pub fn loss(&self, batch: &Batch, loss: &mut Tensor) -> Result<()> {
        let input = self.input(batch, NO_PASS)?;
        let x = embedding::gather(&self.hidden(&input)?, &input.loss_rows)?;
        let h = self.norm.fwd(&x, self.own(), self.spec.eps)?;
        linear_cross_entropy::fwd(&h, self.head(), &input.targets, loss)
    }

    /// Logits (rows, vocab) of the batch's tokens `rows`, in the activations' dtype.
    ///
    /// # Errors
    /// As [`Model::loss_and_grad`].
    pub fn logits(&self, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        let input = self.input(batch, NO_PASS)?;
        let rows = Index::new(rows, rows.len(), None, &self.device)?;
        let x = embedding::gather(&self.hidden(&input)?, &rows)?;
        let h = self.norm.fwd(&x, self.own(), self.spec.eps)?;
        let head = Linear { w: linear::Matrix::Dense(self.head()), bias: None, lora: None };
        Ok(linear::fwd(&h, &head, None)?.0)
    }

    /// The likeliest token after each of the batch's `loss_rows`, the lowest of several: what [`Model::loss`] compares with
    /// `targets`. Logits exist a chunk at a time.
    ///
    /// # Errors
    /// As [`Model::loss_and_grad`].
    pub fn guesses(&self, batch: &Batch) -> Result<Vec<u32>> {
        let input = self.input(batch, NO_PASS)?;
        let x = self.hidden(&input)?;
        let head = Linear { w: linear::Matrix::Dense(self.head()), bias: None, lora: None };
        let mut guesses = Vec::with_capacity(batch.loss_rows.len());
        for rows in batch.loss_rows.chunks(linear_cross_entropy::chunk_rows(self.head().rows)) {
            let rows = Index::new(rows, rows.len(), None, &self.device)?;
            let h = self.norm.fwd(&embedding::gather(&x, &rows)?, self.own(), self.spec.eps)?;
            let logits = linear::fwd(&h, &head, None)?.0;
            let vocab = logits.cols();
            for row in logits.to_f64().chunks(vocab).take(rows.rows()) {
                let likelier = |best: usize, i: usize| if row[i] > row[best] { i } else { best };
                guesses.push((0..vocab).fold(0, likelier) as u32);
            }
        }
        Ok(guesses)
    }

    fn hidden(&self, input: &Input) -> Result<Tensor> {
        let c = self.context(input, None);
        let mut x = self.embedded(input, None)?;
        for block in &self.blocks {
            x = block.infer(x, c)?;
        }
        Ok(x)
    }

    /// Everything that a kernel could not refuse: numbers that lead outside a tensor. (A replayed pass runs no op's
    /// checks.)
    fn check(&self, batch: &Batch) -> Result<()> {
        let tokens = batch.ids.len();
        if tokens == 0 || batch.positions.len() != tokens || batch.targets.len() != batch.loss_rows.len() {
            let (p, r, t) = (batch.positions.len(), batch.loss_rows.len(), batch.targets.len());
            return Err(Error::shape("batch", format!("has {tokens} tokens, {p} positions, {r} rows, {t} targets")));
        }
        let below = |what: &'static str, numbers: &[u32], end: usize| match numbers.iter().find(|&&n| n as usize >= end)
        {
            Some(n) => Err(Error::shape(what, format!("hold {n}, which must be below {end}"))),
            None => Ok(()),
        };
        below("token ids", &batch.ids, self.table().rows)?;
        below("targets", &batch.targets, self.head().rows)?;
        below("rows of the head", &batch.loss_rows, tokens)?;
        if !self.device.is_plan() {
            below("positions", &batch.positions, self.max_positions())?;
        }
        Ok(())
    }
}
