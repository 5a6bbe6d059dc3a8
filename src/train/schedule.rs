//! How many steps a run has, what happens at which of them, and the learning rate of each.
//!
//! Formulas and defaults are those of transformers 5.6 (`optimization.py`, `Trainer.set_initial_training_values`,
//! `TrainerState.compute_steps`, `DefaultFlowCallback`); all arithmetic is f64 in the same order as there.

use std::f64::consts::PI;

use crate::config::{SchedulerType, Strategy, TrainConfig};
use crate::error::{Error, Result};

/// More steps than this are a mistake in the config, and would no longer be exact in f64.
const MOST_STEPS: f64 = 9_007_199_254_740_992.0;

/// The arithmetic of a run's steps. One step is one optimizer update.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Steps {
    /// Micro-batches in an epoch, the last one maybe short.
    pub batches_per_epoch: u64,
    /// Optimizer steps in an epoch; the last one may have fewer than `accumulation` micro-batches.
    pub steps_per_epoch: u64,
    /// Micro-batches in a full step.
    pub accumulation: u64,
    /// Optimizer steps of the whole run.
    pub total: u64,
    /// Epochs begun, as written to trainer_state.json.
    pub epochs: u64,
    /// Samples that `train_samples_per_second` is counted from; transformers counts `max_steps` whole batches where
    /// steps were given, else the epochs as asked for.
    pub samples_counted: f64,
}

/// The micro-batches of one optimizer step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Window {
    /// Epoch, from 0.
    pub epoch: u64,
    /// First micro-batch, counted from 0 within the epoch.
    pub first_batch: u64,
    /// Micro-batches, at least 1.
    pub batches: u64,
    /// Whether the epoch ends with this step.
    pub ends_epoch: bool,
}

impl Steps {
    /// Plans a run over `samples` rows in micro-batches of `batch`, `accumulation` of them a step. `max_steps`
    /// replaces `epochs` where given. With `drop_last` a last short micro-batch is left out.
    ///
    /// # Errors
    /// [`Error::Config`] if a size is 0, if no step comes out of it, or if the count is beyond all sense.
    pub fn plan(
        samples: u64,
        batch: u64,
        accumulation: u64,
        epochs: f64,
        max_steps: Option<u64>,
        drop_last: bool,
    ) -> Result<Steps> {
        if batch == 0 {
            return Err(Error::config("per_device_train_batch_size", "must be at least 1, got 0"));
        }
        if accumulation == 0 {
            return Err(Error::config("gradient_accumulation_steps", "must be at least 1, got 0"));
        }
        let batches = if drop_last { samples / batch } else { samples.div_ceil(batch) };
        if batches == 0 {
            let why = format!("leaves no batch to train on: {samples} samples in batches of {batch}");
            return Err(Error::config(if drop_last { "dataloader_drop_last" } else { "dataset" }, why));
        }
        let steps_per_epoch = batches.div_ceil(accumulation);
        let (total, epochs_begun, samples_counted) = match max_steps {
            Some(total) => {
                let counted = total as f64 * batch as f64 * accumulation as f64;
                (total as f64, total.div_ceil(steps_per_epoch) as f64, counted)
            }
            None => ((epochs * steps_per_epoch as f64).ceil(), epochs.ceil(), samples as f64 * epochs),
        };
        if !(1.0..=MOST_STEPS).contains(&total) {
            let key = if max_steps.is_some() { "max_steps" } else { "num_train_epochs" };
            return Err(Error::config(key, format!("must give at least one step, gives {total}")));
        }
        Ok(Steps {
            batches_per_epoch: batches,
            steps_per_epoch,
            accumulation,
            total: total as u64,
            epochs: epochs_begun as u64,
            samples_counted,
        })
    }

    /// Plans the run that `config` asks for over `samples` rows. Errors as [`Steps::plan`].
    pub fn of(config: &TrainConfig, samples: usize) -> Result<Steps> {
        Steps::plan(
            samples as u64,
            config.per_device_train_batch_size as u64,
            config.gradient_accumulation_steps as u64,
            config.num_train_epochs,
            config.max_steps.map(|n| n as u64),
            config.dataloader_drop_last,
        )
    }

    /// The micro-batches of the step that brings the count of finished steps from `done` to `done + 1`.
    pub fn window(&self, done: u64) -> Window {
        let epoch = done / self.steps_per_epoch;
        let first_batch = (done % self.steps_per_epoch) * self.accumulation;
        let batches = self.accumulation.min(self.batches_per_epoch - first_batch);
        Window { epoch, first_batch, batches, ends_epoch: first_batch + batches == self.batches_per_epoch }
    }

    /// Epochs done after `done` steps, as transformers logs them: finished micro-batches over those of an epoch.
    pub fn epoch_at(&self, done: u64) -> f64 {
        let Some(last) = done.checked_sub(1) else { return 0.0 };
        let w = self.window(last);
        w.epoch as f64 + (w.first_batch + w.batches) as f64 / self.batches_per_epoch as f64
    }
}

/// `every` as written: a count, or below 1 a share of `total` steps (rounded up).
pub fn resolve_interval(every: f64, total: u64) -> u64 {
    if every < 1.0 { (total as f64 * every).ceil() as u64 } else { every as u64 }
}

/// Warmup steps of a run of `total` steps. `warmup_ratio` above 0 takes the place of `warmup_steps`; either one is
/// then a share of all steps (rounded up) below 1 and a count from 1 on, so that a ratio of exactly 1 is one step,
/// as in transformers.
pub fn warmup_steps(warmup_ratio: f64, warmup_steps: f64, total: u64) -> u64 {
    resolve_interval(if warmup_ratio > 0.0 { warmup_ratio } else { warmup_steps }, total)
}

/// When to log, evaluate and save.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Cadence {
    pub logging: Strategy,
    pub logging_steps: u64,
    pub logging_first_step: bool,
    pub eval: Strategy,
    pub eval_steps: u64,
    pub save: Strategy,
    pub save_steps: u64,
    /// Steps of the whole run.
    pub total: u64,
}

/// What is due now, in this order: log, evaluate, save.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Due {
    /// Only if a step was made since the last log.
    pub log: bool,
    pub evaluate: bool,
    /// With `save_strategy: best` the caller saves after each new best instead.
    pub save: bool,
}

impl Due {
    /// Whether anything is.
    pub fn any(&self) -> bool {
        self.log || self.evaluate || self.save
    }
}

impl Cadence {
    /// The cadence of `config` in a run of `total` steps, shares resolved. Where nothing is evaluated by steps,
    /// `eval_steps` is 500, the figure transformers writes into trainer_state.json.
    pub fn of(config: &TrainConfig, total: u64) -> Cadence {
        let by_steps = config.eval_strategy == Strategy::Steps;
        let eval = config.eval_steps.filter(|&n| n > 0.0 || !by_steps);
        let eval = eval.unwrap_or(if by_steps { config.logging_steps } else { 500.0 });
        Cadence {
            logging: config.logging_strategy,
            logging_steps: resolve_interval(config.logging_steps, total),
            logging_first_step: config.logging_first_step,
            eval: config.eval_strategy,
            eval_steps: resolve_interval(eval, total),
            save: config.save_strategy,
            save_steps: resolve_interval(config.save_steps, total),
            total,
        }
    }

    /// What is due after `step` steps; `ends_epoch` where an epoch ends (or the run, amid one). Both are one occasion: a
    /// checkpoint saved there knows what was logged and evaluated there, and a resumed run need not do it again.
    pub fn at(&self, step: u64, ends_epoch: bool) -> Due {
        let last = step >= self.total;
        let due = |strategy, every: u64, at_end: bool| match strategy {
            Strategy::Steps => (every > 0 && step.is_multiple_of(every)) || (last && at_end),
            Strategy::Epoch => ends_epoch,
            Strategy::No | Strategy::Best => false,
        };
        Due {
            log: (step == 1 && self.logging_first_step) || due(self.logging, self.logging_steps, false),
            evaluate: due(self.eval, self.eval_steps, true),
            save: due(self.save, self.save_steps, true),
        }
    }
}

/// The learning rate over a run.
#[derive(Debug, Clone, PartialEq)]
pub struct Schedule {
    base: f64,
    warmup: f64,
    total: f64,
    shape: Shape,
}

/// What follows the warmup, with its parameters.
#[derive(Debug, Clone, Copy, PartialEq)]
enum Shape {
    Constant,
    ConstantWithWarmup,
    Linear,
    Cosine { cycles: f64, floor: f64 },
    Restarts { cycles: f64 },
    Polynomial { power: f64, end: f64 },
    InverseSqrt { timescale: f64 },
}

impl Schedule {
    /// The schedule of `config` over `total` steps. Errors as [`Schedule::new`].
    pub fn of(config: &TrainConfig, total: u64) -> Result<Schedule> {
        let warmup = warmup_steps(config.warmup_ratio, config.warmup_steps, total);
        Schedule::new(config.lr_scheduler_type, config.learning_rate, &config.lr_scheduler_kwargs, warmup, total)
    }

    /// A schedule from 0 up to `base` over `warmup` steps, then by `kind` to the end at `total`. `kwargs` are
    /// transformers' `lr_scheduler_kwargs`.
    ///
    /// # Errors
    /// [`Error::Config`] naming `lr_scheduler_kwargs` if a name does not belong to `kind`, or a value is outside
    /// what its formula can take.
    pub fn new(kind: SchedulerType, base: f64, kwargs: &[(String, f64)], warmup: u64, total: u64) -> Result<Schedule> {
        let names: &[&str] = match kind {
            SchedulerType::Linear | SchedulerType::Constant | SchedulerType::ConstantWithWarmup => &[],
            SchedulerType::Cosine | SchedulerType::CosineWithRestarts => &["num_cycles"],
            SchedulerType::Polynomial => &["lr_end", "power"],
            SchedulerType::InverseSqrt => &["timescale"],
            SchedulerType::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
        };
        let bad = |why: String| Error::config("lr_scheduler_kwargs", why);
        for (name, value) in kwargs {
            if matches!(kind, SchedulerType::Constant | SchedulerType::ConstantWithWarmup) {
                log::warn!("lr_scheduler_kwargs: `{name}` has no effect on a constant learning rate");
            } else if !names.contains(&name.as_str()) {
                let known = if names.is_empty() { "nothing".into() } else { names.join(", ") };
                return Err(bad(format!("does not take `{name}` with this lr_scheduler_type; it takes {known}")));
            }
            if !value.is_finite() {
                return Err(bad(format!("`{name}` must be a finite number, got {value}")));
            }
        }
        let get = |name: &str| kwargs.iter().rev().find(|(n, _)| n == name).map(|&(_, v)| v);
        let shape = match kind {
            SchedulerType::Constant => Shape::Constant,
            SchedulerType::ConstantWithWarmup => Shape::ConstantWithWarmup,
            SchedulerType::Linear => Shape::Linear,
            SchedulerType::Cosine => Shape::Cosine { cycles: get("num_cycles").unwrap_or(0.5), floor: 0.0 },
            SchedulerType::CosineWithRestarts => Shape::Restarts { cycles: get("num_cycles").unwrap_or(1.0) },
            SchedulerType::Polynomial => {
                let end = get("lr_end").unwrap_or(1e-7);
                let falls = base > end;
                if !falls {
                    return Err(bad(format!("`lr_end` ({end}) must be below learning_rate ({base})")));
                }
                Shape::Polynomial { power: get("power").unwrap_or(1.0), end }
            }
            SchedulerType::InverseSqrt => {
                let default = if warmup == 0 { 10_000.0 } else { warmup as f64 };
                let timescale = get("timescale").unwrap_or(default);
                let positive = timescale > 0.0;
                if !positive {
                    return Err(bad(format!("`timescale` must be above 0, got {timescale}")));
                }
                Shape::InverseSqrt { timescale }
            }
            SchedulerType::CosineWithMinLr => {
                let floor = match (get("min_lr"), get("min_lr_rate")) {
                    (Some(_), Some(_)) => return Err(bad("must give `min_lr` or `min_lr_rate`, not both".into())),
                    (Some(least), None) if base > 0.0 => least / base,
                    (Some(_), None) => return Err(bad("`min_lr` needs a learning_rate above 0".into())),
                    (None, Some(rate)) => rate,
                    (None, None) => {
                        return Err(bad("must give `min_lr` or `min_lr_rate` with cosine_with_min_lr".into()));
                    }
                };
                Shape::Cosine { cycles: get("num_cycles").unwrap_or(0.5), floor }
            }
        };
        Ok(Schedule { base, warmup: warmup as f64, total: total as f64, shape })
    }

    /// The learning rate of the step that follows `done` finished ones: the first step of a run has `lr(0)`.
    pub fn lr(&self, done: u64) -> f64 {
        self.base * self.multiplier(done)
    }

    /// [`Schedule::lr`] as a share of the config's `learning_rate`.
    pub fn multiplier(&self, done: u64) -> f64 {
        let step = done as f64;
        if self.shape == Shape::Constant {
            return 1.0;
        }
        if step < self.warmup {
            return step / self.warmup.max(1.0);
        }
        let progress = (step - self.warmup) / (self.total - self.warmup).max(1.0);
        match self.shape {
            Shape::Constant | Shape::ConstantWithWarmup => 1.0,
            Shape::Linear => ((self.total - step) / (self.total - self.warmup).max(1.0)).max(0.0),
            Shape::Cosine { cycles, floor } => {
                let wave = 0.5 * (1.0 + (PI * cycles * 2.0 * progress).cos());
                (wave * (1.0 - floor) + floor).max(0.0)
            }
            Shape::Restarts { .. } if progress >= 1.0 => 0.0,
            Shape::Restarts { cycles } => (0.5 * (1.0 + (PI * ((cycles * progress) % 1.0)).cos())).max(0.0),
            Shape::Polynomial { end, .. } if step > self.total || self.total <= self.warmup => end / self.base,
            Shape::Polynomial { power, end } => {
                let left = 1.0 - (step - self.warmup) / (self.total - self.warmup);
                ((self.base - end) * left.powf(power) + end) / self.base
            }
            Shape::InverseSqrt { timescale } => 1.0 / ((step + (timescale - self.warmup)) / timescale).sqrt(),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    /// Made by transformers itself: tests/golden/schedule/make.py.
    fn golden() -> Value {
        serde_json::from_str(include_str!("../../tests/golden/schedule/schedule.json")).unwrap()
    }

    fn kind(name: &str) -> SchedulerType {
        match name {
            "linear" => SchedulerType::Linear,
            "cosine" => SchedulerType::Cosine,
            "cosine_with_restarts" => SchedulerType::CosineWithRestarts,
            "polynomial" => SchedulerType::Polynomial,
            "constant" => SchedulerType::Constant,
            "constant_with_warmup" => SchedulerType::ConstantWithWarmup,
            "inverse_sqrt" => SchedulerType::InverseSqrt,
            "cosine_with_min_lr" => SchedulerType::CosineWithMinLr,
            other => panic!("{other}"),
        }
    }

    /// The same operations in the same order on f64: only `cos` and `pow` may differ, by their last place, and
    /// `1 + cos` carries that over as an absolute error of 2^-52; twice that is allowed.
    #[test]
    fn multipliers_equal_transformers() {
        let golden = golden();
        let cases = golden["schedules"].as_array().unwrap();
        assert!(cases.len() >= 16);
        for case in cases {
            let kwargs: Vec<_> =
                case["kwargs"].as_object().unwrap().iter().map(|(k, v)| (k.clone(), v.as_f64().unwrap())).collect();
            let n = |k: &str| case[k].as_u64().unwrap();
            let name = case["name"].as_str().unwrap();
            let s = Schedule::new(kind(name), case["lr"].as_f64().unwrap(), &kwargs, n("warmup"), n("total")).unwrap();
            for (step, want) in case["lrs"].as_array().unwrap().iter().enumerate() {
                let (got, want) = (s.lr(step as u64), want.as_f64().unwrap());
                let limit = case["lr"].as_f64().unwrap() * 4.5e-16;
                assert!((got - want).abs() <= limit, "{case:?} step {step}: {got} is not {want}");
            }
        }
    }

    #[test]
    fn steps_equal_transformers() {
        let golden = golden();
        let cases = golden["steps"].as_array().unwrap();
        assert!(cases.len() >= 20);
        for case in cases {
            let n = |k: &str| case[k].as_u64().unwrap();
            let epochs = case["epochs"].as_f64().unwrap();
            let got = Steps::plan(
                n("samples"),
                n("batch"),
                n("accum"),
                epochs,
                case["max_steps"].as_u64(),
                case["drop_last"].as_bool().unwrap(),
            )
            .unwrap();
            assert_eq!(got.epochs, n("num_train_epochs"), "{case}");
            assert_eq!(got.steps_per_epoch, n("num_update_steps_per_epoch"), "{case}");
            assert_eq!(got.batches_per_epoch, n("steps_in_epoch"), "{case}");
            assert_eq!(got.total, n("total_steps"), "{case}");
            assert_eq!(got.samples_counted, case["num_train_samples"].as_f64().unwrap(), "{case}");
            assert_eq!(warmup_steps(0.0, case["warmup"].as_f64().unwrap(), got.total), n("warmup_steps"), "{case}");
            assert_eq!(resolve_interval(case["every"].as_f64().unwrap(), got.total), n("every_steps"), "{case}");
        }
    }

    #[test]
    fn windows_cover_an_epoch_once() {
        for (samples, batch, accum) in [(10, 2, 2), (11, 2, 4), (1, 4, 8), (7, 1, 3)] {
            let s = Steps::plan(samples, batch, accum, 3.0, None, false).unwrap();
            let mut batches = Vec::new();
            for done in 0..s.total {
                let w = s.window(done);
                batches.extend((w.first_batch..w.first_batch + w.batches).map(|b| (w.epoch, b)));
                assert_eq!(w.ends_epoch, (done + 1) % s.steps_per_epoch == 0);
            }
            let want: Vec<_> = (0..3).flat_map(|e| (0..s.batches_per_epoch).map(move |b| (e, b))).collect();
            assert_eq!(batches, want, "{samples} {batch} {accum}");
            assert_eq!(s.epoch_at(s.total), 3.0);
            assert_eq!(s.epoch_at(0), 0.0);
        }
        // 5 micro-batches, 2 a step: 2/5, 4/5, 1, 1 + 2/5.
        let s = Steps::plan(10, 2, 2, 2.0, None, false).unwrap();
        assert_eq!([1, 2, 3, 4].map(|n| s.epoch_at(n)), [0.4, 0.8, 1.0, 1.4]);
    }

    #[test]
    fn plans_without_a_step_are_refused() {
        for (samples, batch, accum, epochs, max, drop) in [
            (0, 2, 1, 3.0, None, false),
            (3, 4, 1, 3.0, None, true),
            (8, 0, 1, 3.0, None, false),
            (8, 2, 0, 3.0, None, false),
            (8, 2, 1, 0.0, None, false),
            (8, 2, 1, -1.0, None, false),
            (8, 2, 1, f64::NAN, None, false),
            (8, 2, 1, 1e300, None, false),
            (8, 2, 1, 1.0, Some(0), false),
        ] {
            let got = Steps::plan(samples, batch, accum, epochs, max, drop);
            assert!(matches!(got, Err(Error::Config { .. })), "{samples} {batch} {accum} {epochs} {max:?}: {got:?}");
        }
    }

    #[test]
    fn cadence_follows_the_default_flow() {
        let c = Cadence {
            logging: Strategy::Steps,
            logging_steps: 3,
            logging_first_step: true,
            eval: Strategy::Steps,
            eval_steps: 4,
            save: Strategy::Steps,
            save_steps: 4,
            total: 10,
        };
        let steps = |f: fn(Due) -> bool| (1..=10).filter(|&s| f(c.at(s, false))).collect::<Vec<_>>();
        assert_eq!(steps(|d| d.log), [1, 3, 6, 9]);
        assert_eq!(steps(|d| d.evaluate), [4, 8, 10]);
        assert_eq!(steps(|d| d.save), [4, 8, 10]);
        assert_eq!(c.at(5, true), Due::default());
        let by_epoch = Cadence { logging: Strategy::Epoch, eval: Strategy::Epoch, save: Strategy::No, ..c };
        assert_eq!(by_epoch.at(9, false), Due::default());
        assert_eq!(by_epoch.at(9, true), Due { log: true, evaluate: true, save: false });
        assert!(!Cadence { save_steps: 0, ..c }.at(4, false).save);
    }

    #[test]
    fn kwargs_that_do_not_fit_are_refused() {
        let new = |kind, lr, kwargs: &[(&str, f64)]| {
            let kwargs: Vec<_> = kwargs.iter().map(|&(k, v)| (k.to_string(), v)).collect();
            Schedule::new(kind, lr, &kwargs, 0, 10)
        };
        for (kind, lr, kwargs) in [
            (SchedulerType::Cosine, 1e-4, &[("power", 2.0)][..]),
            (SchedulerType::Linear, 1e-4, &[("num_cycles", 2.0)]),
            (SchedulerType::Cosine, 1e-4, &[("num_cycles", f64::NAN)]),
            (SchedulerType::Polynomial, 1e-8, &[]),
            (SchedulerType::InverseSqrt, 1e-4, &[("timescale", 0.0)]),
            (SchedulerType::CosineWithMinLr, 1e-4, &[]),
            (SchedulerType::CosineWithMinLr, 1e-4, &[("min_lr", 1e-5), ("min_lr_rate", 0.1)]),
            (SchedulerType::CosineWithMinLr, 0.0, &[("min_lr", 1e-5)]),
        ] {
            let e = new(kind, lr, kwargs).unwrap_err().to_string();
            assert!(e.starts_with("config: `lr_scheduler_kwargs` "), "{e}");
        }
        assert!(new(SchedulerType::Constant, 1e-4, &[("num_cycles", 2.0)]).is_ok());
    }
}
