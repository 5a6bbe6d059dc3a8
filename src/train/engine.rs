//! One optimizer step: gradients of a window of micro-batches, clipping, AdamW. Everything it needs is reserved when it
//! is made.

use std::collections::VecDeque;
use std::sync::Arc;

use super::graphs::Graphs;
use super::plan::Plan;
use crate::config::Config;
use crate::data::Batch;
use crate::device::{Later, Layout, Reserved};
use crate::error::{Error, Result};
use crate::model::{Model, Pass, Policies, Policy};
use crate::ops::adamw::{self, AdamW, Moments};
use crate::ops::grad_norm;
use crate::tensor::{DType, Tensor};

/// A model with its gradient, optimizer and step memory.
pub struct Engine {
    pub model: Model,
    /// First and second moments, flat like the parameters.
    pub moments: Moments,
    grads: Tensor,
    norm: grad_norm::Norm,
    groups: adamw::Groups,
    /// (1, 1): the summed loss of the step, or of an evaluation batch.
    loss: Tensor,
    graphs: Graphs,
    /// Steps whose results have not been asked for, the oldest first.
    under_way: VecDeque<UnderWay>,
    memory: Reserved,
    train_layout: Arc<Layout>,
    eval_layout: Arc<Layout>,
    hyper: Hyper,
}

/// What stays the same over a run.
#[derive(Debug, Clone, Copy)]
struct Hyper {
    beta1: f64,
    beta2: f64,
    eps: f64,
    weight_decay: f64,
    max_grad_norm: f64,
    dropout: f64,
    neftune: Option<f64>,
    seed: u64,
    policies: Policies,
}

/// What an optimizer step gives.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepResult {
    /// Summed cross-entropy over the window's labels, per label.
    pub loss: f64,
    /// 2-norm of the gradient before clipping.
    pub grad_norm: f64,
}

/// A step on the device, and its results on their way.
struct UnderWay {
    step: u64,
    /// 1 / labels.
    scale: f64,
    loss: Later,
    norm: Later,
}

impl UnderWay {
    fn wait(self) -> Result<StepResult> {
        let number = |later: Later| -> Result<f64> {
            let bytes = later.wait()?;
            Ok(bytes.try_into().map_or(f64::NAN, f64::from_ne_bytes))
        };
        let (loss, norm) = (number(self.loss)? * self.scale, number(self.norm)?);
        if loss.is_finite() && norm.is_finite() {
            return Ok(StepResult { loss, grad_norm: norm });
        }
        let what =
            if loss.is_finite() { format!("the gradient's norm is {norm}") } else { format!("the loss is {loss}") };
        let why = format!("{what}; a lower learning_rate, a warmup or max_grad_norm may help");
        Err(Error::Diverged { step: self.step as usize, why })
    }
}

/// Whether activations are kept or recomputed.
pub fn policy(config: &Config) -> Policy {
    if config.model.disable_gradient_checkpointing { Policy::KEEP } else { Policy::RECOMPUTE }
}

impl Engine {
    /// Takes the model and reserves gradient, moments and the memory of every later step.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system has not that much.
    pub fn new(model: Model, plan: &Plan, config: &Config) -> Result<Self> {
        let memory = model.device.reserve(plan.step_bytes())?;
        let t = &config.train;
        let moments = Moments::zeros(&model.params.master, t.adam_8bit)?;
        let hyper = Hyper {
            beta1: t.adam_beta1,
            beta2: t.adam_beta2,
            eps: t.adam_epsilon,
            weight_decay: t.weight_decay,
            max_grad_norm: t.max_grad_norm,
            dropout: config.tune.lora_dropout,
            neftune: t.neftune_noise_alpha,
            seed: t.seed,
            policies: plan.policies,
        };
        let decays = model.params.entries.iter().map(|e| (e.range(), e.decay));
        Ok(Engine {
            grads: model.params.zeros_like()?,
            norm: grad_norm::Norm::new(model.params.len(), &model.device)?,
            groups: adamw::Groups::new(decays, &model.device)?,
            loss: Tensor::zeros(1, 1, DType::F64, &model.device)?,
            moments,
            graphs: Graphs::default(),
            under_way: VecDeque::new(),
            memory,
            train_layout: plan.train.clone(),
            eval_layout: plan.eval.clone(),
            hyper,
            model,
        })
    }

    /// Optimizer step `step` (from 1) over `window`, whose first micro-batch is the `micro_step`-th of the run. On the CPU
    /// its result is returned; on kernels the step is enqueued, and the result is that of the step before, if there was one
    /// that [`Engine::settle`] has not given.
    ///
    /// # Errors
    /// [`Error::Diverged`] if loss or gradient norm are not finite; parameters and moments are then as before that step.
    pub fn step(&mut self, window: &[Batch], step: u64, micro_step: u64, lr: f64) -> Result<Option<StepResult>> {
        let h = self.hyper;
        let labels: usize = window.iter().map(|b| b.labels).sum();
        let scale = if labels == 0 { 0.0 } else { 1.0 / labels as f64 };
        self.grads.fill_zero();
        self.loss.fill_zero();
        for (i, batch) in window.iter().enumerate() {
            let pass = Pass {
                policy: h.policies,
                dropout: h.dropout,
                neftune: h.neftune,
                seed: h.seed,
                micro_step: (micro_step + i as u64) as u32,
                scale,
            };
            let (model, loss, grads, graphs) = (&self.model, &mut self.loss, &mut self.grads, &mut self.graphs);
            self.memory.run(&self.train_layout, || {
                let input = model.input(batch, pass)?;
                graphs.run(input.shape(), &model.device, || model.loss_and_grad_of(&input, pass, loss, grads))
            })?;
        }
        grad_norm::into(&self.grads, &mut self.norm)?;
        let a = AdamW {
            lr,
            beta1: h.beta1,
            beta2: h.beta2,
            eps: h.eps,
            weight_decay: h.weight_decay,
            max_norm: h.max_grad_norm,
            step,
        };
        let (p, copy) = self.model.params.both_mut();
        let flat = adamw::Flat { p, moments: &mut self.moments, g: &self.grads, copy };
        adamw::step(flat, &mut self.groups, a, &self.norm.value, &self.loss)?;
        // Where these are not finite the optimizer has changed nothing.
        let (loss, norm) = (self.loss.read_later::<f64>(0, 1), self.norm.value.read_later::<f64>(0, 1));
        self.under_way.push_back(UnderWay { step, scale, loss, norm });
        let waits_for = if self.model.device.runs_kernels() { 1 } else { 0 };
        if self.under_way.len() > waits_for { self.settle().map(Some) } else { Ok(None) }
    }

    /// Waits for the oldest step whose result was not given yet.
    ///
    /// # Errors
    /// As [`Engine::step`].
    pub fn settle(&mut self) -> Result<StepResult> {
        match self.under_way.pop_front() {
            Some(step) => step.wait(),
            None => unreachable!("as many results are asked for as steps were made"),
        }
    }

    /// The summed cross-entropy of a batch, without gradient.
    ///
    /// # Errors
    /// As [`Model::loss`].
    pub fn evaluate(&mut self, batch: &Batch) -> Result<f64> {
        self.loss.fill_zero();
        let (model, loss) = (&self.model, &mut self.loss);
        self.memory.run(&self.eval_layout, || model.loss(batch, loss))?;
        Ok(self.loss.read::<f64>(0, 1)[0])
    }
}
