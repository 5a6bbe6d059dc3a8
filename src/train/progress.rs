//! What the training loop tells those who watch it, and what they may answer.

use std::path::Path;

use serde_json::{Map, Value};

use super::json;
use crate::error::Result;
use crate::format::hub;

/// The answer of an observer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// End after the current step; the loop saves its state first.
    Stop,
}

impl Control {
    /// Stop if either says so.
    pub fn or(self, other: Control) -> Control {
        if self == Control::Stop { self } else { other }
    }
}

/// Something that happened in the loop.
#[derive(Debug, Clone, Copy)]
#[non_exhaustive]
pub enum Event<'a> {
    /// A longer piece of work begins, before the first step: reading, tokenising, loading.
    Preparing { what: &'a str },
    /// Of the rows of a data set, `done` of `total` are tokenised.
    Tokenising { done: u64, total: u64 },
    /// A file of the base model comes from the hub.
    Download(hub::Event<'a>),
    /// Before the first step of this process.
    Start(&'a RunInfo<'a>),
    /// After each optimizer step.
    Step(&'a StepReport),
    /// A row for the logs: the mean loss since the last one, an evaluation, or the closing figures.
    Log(&'a LogRow),
    /// `done` of `total` evaluation batches are through.
    Evaluating { done: u64, total: u64 },
    /// A checkpoint was written whole.
    Saved { step: u64, path: &'a Path },
    /// After the last step, also of a run that was stopped.
    End { step: u64 },
}

/// What a run is, known before it starts.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct RunInfo<'a> {
    /// Steps of the whole run.
    pub total_steps: u64,
    /// Steps already done by the run that is resumed; 0 for a new one.
    pub start_step: u64,
    /// Tokens seen by the run that is resumed.
    pub start_tokens: u64,
    /// Log rows of the run that is resumed, as in its trainer_state.json.
    pub history: &'a [Map<String, Value>],
    /// `include_num_input_tokens_seen`: whether rows carry token counts.
    pub count_tokens: bool,
}

/// One optimizer step, just finished.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct StepReport {
    /// Steps done, this one included.
    pub step: u64,
    pub total_steps: u64,
    /// Epochs done, with their fraction.
    pub epoch: f64,
    /// Loss of this step: summed cross-entropy over its labels, per label.
    pub loss: f64,
    /// 2-norm of the gradient before clipping.
    pub grad_norm: f64,
    /// The learning rate this step was made with.
    pub lr: f64,
    /// Input tokens seen since step 0.
    pub tokens_seen: u64,
}

/// One row of the logs.
#[derive(Debug, Clone, PartialEq)]
pub struct LogRow {
    /// Steps done.
    pub step: u64,
    /// Epochs done, with their fraction.
    pub epoch: f64,
    /// Input tokens seen since step 0.
    pub tokens_seen: u64,
    /// Names as transformers has them (`loss`, `eval_loss`, `train_runtime`, ...), in order.
    pub values: Vec<(String, f64)>,
}

impl LogRow {
    /// A training row: `loss` is the mean over the steps since the last row, the others are of the last step.
    pub fn train(last: &StepReport, loss: f64) -> LogRow {
        let values = [("loss", loss), ("grad_norm", last.grad_norm), ("learning_rate", last.lr)];
        LogRow {
            step: last.step,
            epoch: last.epoch,
            tokens_seen: last.tokens_seen,
            values: values.map(|(name, x)| (name.to_string(), x)).to_vec(),
        }
    }

    /// The value called `name`.
    pub fn get(&self, name: &str) -> Option<f64> {
        self.values.iter().find(|(n, _)| n == name).map(|&(_, x)| x)
    }

    /// The row as a result file has it: its values and the epoch.
    pub fn metrics(&self) -> Vec<(String, f64)> {
        let epoch = ("epoch".to_string(), self.epoch);
        self.values.iter().cloned().chain([epoch]).collect()
    }

    /// The row as it stands in `log_history` of trainer_state.json.
    pub fn to_history(&self, count_tokens: bool) -> Map<String, Value> {
        let mut map: Map<_, _> = self.values.iter().map(|(name, x)| (name.clone(), json::number(*x))).collect();
        map.insert("epoch".into(), json::number(self.epoch));
        if count_tokens {
            map.insert("num_input_tokens_seen".into(), self.tokens_seen.into());
        }
        map.insert("step".into(), self.step.into());
        map
    }
}

/// Someone who watches a run. Every `FnMut(&Event) -> Control` is one.
pub trait Observer {
    /// Called in the loop's own thread: what it takes, the run waits.
    ///
    /// # Errors
    /// Any error ends the run with it.
    fn observe(&mut self, event: &Event<'_>) -> Result<Control>;
}

impl<F: FnMut(&Event<'_>) -> Control> Observer for F {
    fn observe(&mut self, event: &Event<'_>) -> Result<Control> {
        Ok(self(event))
    }
}

/// Several observers, told in order.
#[derive(Default)]
pub struct Observers<'a>(pub Vec<Box<dyn Observer + 'a>>);

impl Observer for Observers<'_> {
    /// Tells everyone; one [`Control::Stop`] is enough.
    fn observe(&mut self, event: &Event<'_>) -> Result<Control> {
        let mut control = Control::Continue;
        for observer in &mut self.0 {
            if observer.observe(event)? == Control::Stop {
                control = Control::Stop;
            }
        }
        Ok(control)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn closures_observe_and_one_can_stop() {
        let mut seen = Vec::new();
        let report = |step| StepReport {
            step,
            total_steps: 9,
            epoch: 0.5,
            loss: 2.0,
            grad_norm: 1.0,
            lr: 1e-4,
            tokens_seen: 10 * step,
        };
        {
            let first = |e: &Event<'_>| match e {
                Event::Step(r) if r.step == 2 => Control::Stop,
                _ => Control::Continue,
            };
            let second = |e: &Event<'_>| {
                if let Event::Step(r) = e {
                    seen.push(r.step);
                }
                Control::Continue
            };
            let mut all = Observers(vec![Box::new(first), Box::new(second)]);
            assert_eq!(all.observe(&Event::Step(&report(1))).unwrap(), Control::Continue);
            assert_eq!(all.observe(&Event::Step(&report(2))).unwrap(), Control::Stop);
        }
        assert_eq!(seen, [1, 2]);
        let row = LogRow::train(&report(3), 2.25);
        assert_eq!(row.get("loss"), Some(2.25));
        assert_eq!(
            json::line(&Value::Object(row.to_history(true))),
            r#"{"loss": 2.25, "grad_norm": 1.0, "learning_rate": 0.0001, "epoch": 0.5, "num_input_tokens_seen": 30, "step": 3}"#
        );
    }
}
