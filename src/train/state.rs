//! trainer_state.json, and what follows from it: losses between logs, the best evaluation, early stopping.
//!
//! Fields, layout and rules are those of transformers 5.6 (`TrainerState`, `Trainer._determine_best_metric`,
//! `EarlyStoppingCallback`). What only this program needs for an exact resume stands under `stateful_callbacks`
//! as `QloraEngine`, which transformers skips.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::json;
use super::progress::LogRow;
use super::schedule::{Cadence, Steps};
use crate::config::{Strategy, TrainConfig};
use crate::error::{Error, Result};
use crate::format::atomic::write_atomic;

/// The file's name, in a checkpoint and in output_dir.
pub const TRAINER_STATE: &str = "trainer_state.json";

/// Losses summed up between two log rows and over the whole run.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct LossMeter {
    /// Sum of the step losses since the last row.
    pub since_log: f64,
    /// Steps in `since_log`.
    pub steps_since_log: u64,
    /// Sum of the step losses up to the last row.
    pub logged: f64,
}

impl LossMeter {
    /// Adds the loss of a step.
    pub fn add(&mut self, loss: f64) {
        self.since_log += loss;
        self.steps_since_log += 1;
    }

    /// The mean since the last row, and starts anew; None if there was no step.
    pub fn take(&mut self) -> Option<f64> {
        if self.steps_since_log == 0 {
            return None;
        }
        let mean = self.since_log / self.steps_since_log as f64;
        *self = LossMeter { logged: self.logged + self.since_log, ..LossMeter::default() };
        Some(mean)
    }

    /// `train_loss`: the mean over all `steps` of the run.
    pub fn mean(&self, steps: u64) -> f64 {
        // As transformers: a run of no steps divides by 0.001.
        (self.logged + self.since_log) / (steps as f64).max(0.001)
    }
}

/// Where a run stands.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerState {
    /// The step of the best evaluation.
    pub best_global_step: Option<u64>,
    pub best_metric: Option<f64>,
    /// Path of the best step's checkpoint, once it is written.
    pub best_model_checkpoint: Option<String>,
    /// Epochs done, with their fraction.
    pub epoch: f64,
    pub eval_steps: u64,
    /// Optimizer steps done.
    pub global_step: u64,
    /// One object a log row.
    pub log_history: Vec<Map<String, Value>>,
    pub logging_steps: u64,
    /// Optimizer steps of the whole run.
    pub max_steps: u64,
    pub num_input_tokens_seen: u64,
    pub num_train_epochs: u64,
    pub save_steps: u64,
    /// Floating-point operations so far.
    pub total_flos: f64,
    /// Samples a micro-batch.
    pub train_batch_size: u64,
    pub losses: LossMeter,
    /// None without `early_stopping_steps`.
    pub early_stopping: Option<EarlyStopping>,
}

impl TrainerState {
    /// The state of a run that has not begun.
    pub fn new(config: &TrainConfig, steps: &Steps) -> TrainerState {
        let cadence = Cadence::of(config, steps.total);
        TrainerState {
            best_global_step: None,
            best_metric: None,
            best_model_checkpoint: None,
            epoch: 0.0,
            eval_steps: cadence.eval_steps,
            global_step: 0,
            log_history: Vec::new(),
            logging_steps: cadence.logging_steps,
            max_steps: steps.total,
            num_input_tokens_seen: 0,
            num_train_epochs: steps.epochs,
            save_steps: cadence.save_steps,
            total_flos: 0.0,
            train_batch_size: config.per_device_train_batch_size as u64,
            losses: LossMeter::default(),
            early_stopping: config.early_stopping_steps.map(|n| EarlyStopping { patience: n as u64, bad: 0 }),
        }
    }

    /// Appends `row` to the history.
    pub fn log(&mut self, row: &LogRow, count_tokens: bool) {
        self.log_history.push(row.to_history(count_tokens));
    }

    /// The JSON text of the file.
    pub fn to_json(&self) -> String {
        let mut callbacks = json!({
            "QloraEngine": {
                "args": {},
                "attributes": {
                    "loss_since_log": json::number(self.losses.since_log),
                    "steps_since_log": self.losses.steps_since_log,
                    "loss_logged": json::number(self.losses.logged),
                },
            },
            "TrainerControl": {
                "args": {
                    "should_epoch_stop": false,
                    "should_evaluate": false,
                    "should_log": false,
                    "should_save": true,
                    "should_training_stop": self.global_step >= self.max_steps,
                },
                "attributes": {},
            },
        });
        if let Some(e) = self.early_stopping {
            callbacks["EarlyStoppingCallback"] = json!({
                "args": { "early_stopping_patience": e.patience, "early_stopping_threshold": 0.0 },
                "attributes": { "early_stopping_patience_counter": e.bad },
            });
        }
        let value = json!({
            "best_global_step": self.best_global_step,
            "best_metric": self.best_metric.map(json::number),
            "best_model_checkpoint": self.best_model_checkpoint,
            "epoch": json::number(self.epoch),
            "eval_steps": self.eval_steps,
            "global_step": self.global_step,
            "is_hyper_param_search": false,
            "is_local_process_zero": true,
            "is_world_process_zero": true,
            "log_history": self.log_history,
            "logging_steps": self.logging_steps,
            "max_steps": self.max_steps,
            "num_input_tokens_seen": self.num_input_tokens_seen,
            "num_train_epochs": self.num_train_epochs,
            "save_steps": self.save_steps,
            "stateful_callbacks": callbacks,
            "total_flos": json::number(self.total_flos),
            "train_batch_size": self.train_batch_size,
            "trial_name": null,
            "trial_params": null,
        });
        json::pretty(&value, 2) + "\n"
    }

    /// Writes `dir`/trainer_state.json.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be written; an older one then still stands.
    pub fn write(&self, dir: &Path) -> Result<()> {
        write_atomic(&dir.join(TRAINER_STATE), self.to_json().as_bytes())
    }

    /// Reads `dir`/trainer_state.json. Every field is checked: the file may come from anywhere.
    ///
    /// # Errors
    /// [`Error::File`] naming the file and the field.
    pub fn read(dir: &Path) -> Result<TrainerState> {
        let path = dir.join(TRAINER_STATE);
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot read", &e))?;
        TrainerState::parse(&text).map_err(|why| Error::file(&path, why))
    }

    /// As [`TrainerState::read`], from the file's text; the error says which field and why.
    fn parse(text: &str) -> std::result::Result<TrainerState, String> {
        let root: Value = serde_json::from_str(text).map_err(|e| format!("is not JSON: {e}"))?;
        let root = Fields { map: root.as_object().ok_or("is not a JSON object")?, within: "" };
        let callbacks = root.object("stateful_callbacks")?;
        let ours = callbacks.object("QloraEngine").map_err(|_| "was not written by this program (no `QloraEngine`)")?;
        let ours = ours.object("attributes")?;
        let early_stopping = match callbacks.map.contains_key("EarlyStoppingCallback") {
            false => None,
            true => {
                let e = callbacks.object("EarlyStoppingCallback")?;
                Some(EarlyStopping {
                    patience: e.object("args")?.count("early_stopping_patience")?,
                    bad: e.object("attributes")?.count("early_stopping_patience_counter")?,
                })
            }
        };
        let history = root.get("log_history")?.as_array().ok_or("`log_history` must be a list")?;
        let mut log_history = Vec::with_capacity(history.len());
        let mut last_step = 0;
        for (i, row) in history.iter().enumerate() {
            let row = row.as_object().ok_or(format!("`log_history` row {} must be an object", i + 1))?;
            let step = row.get("step").and_then(Value::as_u64).filter(|&s| s >= last_step);
            last_step = step.ok_or(format!("`log_history` row {} must have a step of at least {last_step}", i + 1))?;
            log_history.push(row.clone());
        }
        let state = TrainerState {
            best_global_step: root.optional("best_global_step", Fields::count)?,
            best_metric: root.optional("best_metric", Fields::finite)?,
            best_model_checkpoint: root.optional("best_model_checkpoint", Fields::text)?,
            epoch: root.finite("epoch")?,
            eval_steps: root.count("eval_steps")?,
            global_step: root.count("global_step")?,
            log_history,
            logging_steps: root.count("logging_steps")?,
            max_steps: root.count("max_steps")?,
            num_input_tokens_seen: root.count("num_input_tokens_seen")?,
            num_train_epochs: root.count("num_train_epochs")?,
            save_steps: root.count("save_steps")?,
            total_flos: root.finite("total_flos")?,
            train_batch_size: root.count("train_batch_size")?,
            losses: LossMeter {
                since_log: ours.finite("loss_since_log")?,
                steps_since_log: ours.count("steps_since_log")?,
                logged: ours.finite("loss_logged")?,
            },
            early_stopping,
        };
        if last_step > state.global_step {
            return Err(format!("`log_history` goes to step {last_step}, `global_step` is {}", state.global_step));
        }
        Ok(state)
    }

    /// Whether a run of `config` and `steps` may go on from this state. Batch size, accumulation and the number of
    /// steps decide which samples a step sees, so they must be the same.
    ///
    /// # Errors
    /// [`Error::Config`] naming the first key that differs.
    pub fn check_resume(&self, config: &TrainConfig, steps: &Steps) -> Result<()> {
        let batch = config.per_device_train_batch_size as u64;
        if self.train_batch_size != batch {
            let why = format!("is {batch}, but the checkpoint was trained with {}", self.train_batch_size);
            return Err(Error::config("per_device_train_batch_size", why));
        }
        if self.global_step > steps.total {
            let why = format!("the checkpoint is at step {}, the run has only {}", self.global_step, steps.total);
            return Err(Error::config("resume_from_checkpoint", why));
        }
        // Steps and fraction of epochs agree only with the same samples and accumulation.
        let epoch = steps.epoch_at(self.global_step);
        if !((self.epoch - epoch).abs() <= 1e-9 * epoch.max(1.0)) {
            let why = format!(
                "the checkpoint's step {} ends epoch {}, here it would end epoch {epoch}: the data or \
                 gradient_accumulation_steps differ",
                self.global_step, self.epoch
            );
            return Err(Error::config("resume_from_checkpoint", why));
        }
        Ok(())
    }
}

/// A JSON object whose fields are asked for by type.
struct Fields<'a> {
    map: &'a Map<String, Value>,
    within: &'a str,
}

impl<'a> Fields<'a> {
    fn get(&self, name: &str) -> std::result::Result<&'a Value, String> {
        self.map.get(name).ok_or_else(|| format!("lacks `{}{name}`", self.within))
    }

    fn typed<T>(
        &self,
        name: &str,
        read: impl Fn(&'a Value) -> Option<T>,
        what: &str,
    ) -> std::result::Result<T, String> {
        let value = self.get(name)?;
        read(value).ok_or_else(|| {
            let shown: String = value.to_string().chars().take(60).collect();
            format!("`{}{name}` must be {what}, got {shown}", self.within)
        })
    }

    fn object(&self, name: &'a str) -> std::result::Result<Fields<'a>, String> {
        let map = self.typed(name, Value::as_object, "an object")?;
        Ok(Fields { map, within: "stateful_callbacks." })
    }

    fn count(&self, name: &str) -> std::result::Result<u64, String> {
        self.typed(name, Value::as_u64, "a whole number from 0 on")
    }

    fn finite(&self, name: &str) -> std::result::Result<f64, String> {
        self.typed(name, |v| v.as_f64().filter(|x| x.is_finite()), "a number")
    }

    fn text(&self, name: &str) -> std::result::Result<String, String> {
        self.typed(name, |v| v.as_str().map(String::from), "a text")
    }

    /// null, or what `read` reads.
    fn optional<T>(
        &self,
        name: &str,
        read: impl Fn(&Self, &str) -> std::result::Result<T, String>,
    ) -> std::result::Result<Option<T>, String> {
        if self.get(name)?.is_null() { Ok(None) } else { read(self, name).map(Some) }
    }
}

/// Which figure of an evaluation decides, and which way.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BestMetric {
    /// The full name, such as `eval_loss`.
    pub name: String,
    pub greater_is_better: bool,
    /// False with `save_strategy: no`: there is then no checkpoint to be best.
    pub tracks_step: bool,
}

impl BestMetric {
    /// The metric of `config`; None where neither `load_best_model_at_end` nor `save_strategy: best` nor
    /// `early_stopping_steps` nor `metric_for_best_model` asks for one. The default is `eval_loss`; greater is
    /// better unless the name ends in "loss".
    pub fn of(config: &TrainConfig) -> Option<BestMetric> {
        let wanted = config.load_best_model_at_end
            || config.save_strategy == Strategy::Best
            || config.early_stopping_steps.is_some();
        let name = match (&config.metric_for_best_model, wanted) {
            (Some(name), _) => name.as_str(),
            (None, true) => "loss",
            (None, false) => return None,
        };
        let greater_is_better = config.greater_is_better.unwrap_or(!name.ends_with("loss"));
        let name = if name.starts_with("eval_") { name.to_string() } else { format!("eval_{name}") };
        Some(BestMetric { name, greater_is_better, tracks_step: config.save_strategy != Strategy::No })
    }

    /// Whether `value` beats `best`. A NaN beats nothing.
    pub fn improves(&self, value: f64, best: Option<f64>) -> bool {
        let worst = if self.greater_is_better { f64::NEG_INFINITY } else { f64::INFINITY };
        let best = best.unwrap_or(worst);
        if self.greater_is_better { value > best } else { value < best }
    }

    /// The metric's value among `metrics` of an evaluation.
    ///
    /// # Errors
    /// [`Error::Config`] naming `metric_for_best_model` and the metrics there are.
    pub fn value(&self, metrics: &[(String, f64)]) -> Result<f64> {
        metrics.iter().find(|(name, _)| *name == self.name).map(|&(_, x)| x).ok_or_else(|| {
            let names: Vec<_> = metrics.iter().map(|(name, _)| name.as_str()).collect();
            let why = format!("asks for `{}`, but an evaluation gives {}", self.name, names.join(", "));
            Error::config("metric_for_best_model", why)
        })
    }
}

/// Counts evaluations in a row that were no improvement.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct EarlyStopping {
    /// `early_stopping_steps`: so many end the run.
    pub patience: u64,
    /// So many there were.
    pub bad: u64,
}

/// What an evaluation means for the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict {
    /// The best so far.
    pub new_best: bool,
    /// Patience is at its end: stop, after a save that is due.
    pub stop: bool,
}

impl TrainerState {
    /// Takes in the `metrics` of an evaluation at the current step.
    ///
    /// # Errors
    /// Those of [`BestMetric::value`].
    pub fn judge(&mut self, best: &BestMetric, metrics: &[(String, f64)]) -> Result<Verdict> {
        let value = best.value(metrics)?;
        let improved = best.improves(value, self.best_metric);
        let mut stop = false;
        if let Some(e) = &mut self.early_stopping {
            // The first evaluation never counts, not even a NaN.
            e.bad = if improved || self.best_metric.is_none() { 0 } else { e.bad.saturating_add(1) };
            stop = e.bad >= e.patience;
        }
        if improved {
            self.best_metric = Some(value);
            if best.tracks_step {
                self.best_global_step = Some(self.global_step);
            }
        }
        Ok(Verdict { new_best: improved, stop })
    }
}

/// The checkpoints, given by their steps in any order, that `save_total_limit` removes, oldest first. The newest
/// and the best always stay, even where that makes one more than the limit. None and 0 remove nothing.
pub fn to_rotate(steps: &[u64], limit: Option<usize>, best: Option<u64>) -> Vec<u64> {
    let mut steps = steps.to_vec();
    steps.sort_unstable();
    let (Some(limit), Some(&newest)) = (limit.filter(|&n| n > 0), steps.last()) else { return Vec::new() };
    let keeps = |step: u64| step == newest || Some(step) == best;
    let kept = steps.iter().filter(|&&s| keeps(s)).count();
    let excess = steps.len().saturating_sub(limit.max(kept));
    steps.into_iter().filter(|&s| !keeps(s)).take(excess).collect()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn state() -> TrainerState {
        let row = LogRow {
            step: 10,
            epoch: 0.4,
            tokens_seen: 123,
            values: vec![("loss".into(), 2.1234567890123457), ("learning_rate".into(), 5e-5)],
        };
        let mut state = TrainerState {
            best_global_step: Some(10),
            best_metric: Some(0.1 + 0.2),
            best_model_checkpoint: Some("saves/a/checkpoint-10".into()),
            epoch: 0.44,
            eval_steps: 500,
            global_step: 11,
            log_history: Vec::new(),
            logging_steps: 10,
            max_steps: 75,
            num_input_tokens_seen: 4000,
            num_train_epochs: 3,
            save_steps: 10,
            total_flos: 12345678912345.0,
            train_batch_size: 2,
            losses: LossMeter { since_log: 1.0 / 3.0, steps_since_log: 1, logged: 21.234567890123457 },
            early_stopping: Some(EarlyStopping { patience: 3, bad: 1 }),
        };
        state.log(&row, true);
        state
    }

    #[test]
    fn reads_back_to_the_bit() {
        let dir = tempfile::tempdir().unwrap();
        let state = state();
        state.write(dir.path()).unwrap();
        let back = TrainerState::read(dir.path()).unwrap();
        assert_eq!(back, state);
        assert_eq!(back.to_json(), state.to_json());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn any_sum_survives(bits in any::<u64>()) {
            let x = f64::from_bits(bits);
            prop_assume!(x.is_finite());
            let state = TrainerState { losses: LossMeter { since_log: x, ..state().losses }, ..state() };
            let back = TrainerState::parse(&state.to_json()).unwrap();
            prop_assert_eq!(back.losses.since_log.to_bits(), bits);
        }

        /// Any field replaced by any JSON value gives a state or a message, never a panic.
        #[test]
        fn hostile_files_are_refused(field in 0usize..20, pick in 0usize..7) {
            let mut value: Value = serde_json::from_str(&state().to_json()).unwrap();
            let name = value.as_object().unwrap().keys().nth(field).unwrap().clone();
            let junk = [json!(null), json!(-1), json!(1e300), json!("x"), json!([1]), json!({"a": 1}), json!(u64::MAX)];
            value[&name] = junk[pick].clone();
            if let Err(why) = TrainerState::parse(&value.to_string()) {
                prop_assert!(!why.contains('\n') && !why.is_empty());
            }
        }
    }

    #[test]
    fn layout_is_transformers_s() {
        let text = state().to_json();
        let keys: Vec<_> = text
            .lines()
            .filter_map(|l| l.strip_prefix("  \"").and_then(|l| l.split_once('"')).map(|(k, _)| k))
            .collect();
        // The fields of transformers 5.6's TrainerState, sorted.
        assert_eq!(
            keys,
            [
                "best_global_step",
                "best_metric",
                "best_model_checkpoint",
                "epoch",
                "eval_steps",
                "global_step",
                "is_hyper_param_search",
                "is_local_process_zero",
                "is_world_process_zero",
                "log_history",
                "logging_steps",
                "max_steps",
                "num_input_tokens_seen",
                "num_train_epochs",
                "save_steps",
                "stateful_callbacks",
                "total_flos",
                "train_batch_size",
                "trial_name",
                "trial_params"
            ]
        );
        assert!(text.contains("\n      \"learning_rate\": 5e-05,\n"), "{text}");
        assert!(text.ends_with("\n}\n"));
    }

    #[test]
    fn errors_name_the_field() {
        for (find, replace, want) in [
            ("\"global_step\": 11", "\"global_step\": -1", "`global_step` must be a whole number"),
            ("\"global_step\": 11", "\"global_step\": 3", "`log_history` goes to step 10"),
            ("\"max_steps\": 75,", "", "lacks `max_steps`"),
            ("QloraEngine", "Other", "was not written by this program"),
            ("\"step\": 10", "\"step\": \"x\"", "`log_history` row 1"),
            ("\"epoch\": 0.44", "\"epoch\": null", "`epoch` must be a number, got null"),
            ("\"trial_params\": null\n}", "", "is not JSON"),
        ] {
            let text = state().to_json();
            assert!(text.contains(find));
            let why = TrainerState::parse(&text.replacen(find, replace, 1)).unwrap_err();
            assert!(why.contains(want), "{why}");
        }
    }

    #[test]
    fn losses_are_means_between_rows_and_of_the_run() {
        let mut m = LossMeter::default();
        assert_eq!(m.take(), None);
        m.add(3.0);
        m.add(1.0);
        assert_eq!(m.take(), Some(2.0));
        m.add(5.0);
        assert_eq!(m.mean(3), 3.0);
        assert_eq!(m.take(), Some(5.0));
        assert_eq!(m.mean(3), 3.0);
    }

    #[test]
    fn early_stopping_counts_evaluations_without_improvement() {
        let best = BestMetric { name: "eval_loss".into(), greater_is_better: false, tracks_step: true };
        let mut s = TrainerState {
            best_metric: None,
            best_global_step: None,
            early_stopping: Some(EarlyStopping { patience: 2, bad: 0 }),
            ..state()
        };
        let mut judge = |step, loss: f64| {
            s.global_step = step;
            let v = s.judge(&best, &[("eval_loss".into(), loss)]).unwrap();
            (v.new_best, v.stop, s.best_global_step)
        };
        assert_eq!(judge(1, 2.0), (true, false, Some(1)));
        assert_eq!(judge(2, 2.0), (false, false, Some(1)));
        assert_eq!(judge(3, 1.5), (true, false, Some(3)));
        assert_eq!(judge(4, f64::NAN), (false, false, Some(3)));
        assert_eq!(judge(5, 1.6), (false, true, Some(3)));
        let e = s.judge(&best, &[("eval_runtime".into(), 1.0)]).unwrap_err().to_string();
        assert!(e.contains("`eval_loss`, but an evaluation gives eval_runtime"), "{e}");
    }

    #[test]
    fn rotation_keeps_the_newest_and_the_best() {
        assert_eq!(to_rotate(&[30, 10, 20], Some(2), None), [10]);
        assert_eq!(to_rotate(&[30, 10, 20], Some(2), Some(10)), [20]);
        assert_eq!(to_rotate(&[10, 20, 30], Some(1), Some(10)), [20]);
        assert_eq!(to_rotate(&[10, 20, 30], Some(1), Some(30)), [10, 20]);
        assert_eq!(to_rotate(&[10, 20, 30], Some(3), None), [0u64; 0]);
        assert_eq!(to_rotate(&[10, 20, 30], None, None), [0u64; 0]);
        assert_eq!(to_rotate(&[10, 20, 30], Some(0), None), [0u64; 0]);
        assert_eq!(to_rotate(&[], Some(1), Some(5)), [0u64; 0]);
    }
}
