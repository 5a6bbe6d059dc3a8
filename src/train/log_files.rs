//! The files a run leaves beside its weights: trainer_log.jsonl while it runs, `*_results.json` when it is done.
//!
//! Names, fields and layout are those of LLaMA-Factory's `LogCallback` and transformers' `save_metrics`.

use std::fs::{self, File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Instant;

use serde_json::{Map, Value};

use super::json;
use super::progress::{Control, Event, LogRow, Observer, RunInfo};
use super::schedule::Steps;
use super::state::TrainerState;
use crate::error::{Error, Result};
use crate::format::atomic::write_atomic;

/// The name of the log in output_dir.
pub const TRAINER_LOG: &str = "trainer_log.jsonl";

/// Writes trainer_log.jsonl: one row for each [`Event::Log`].
///
/// A resumed run keeps exactly the rows that its checkpoint knew of, so that the file ends up as that of a run
/// never interrupted, times aside.
pub struct TrainerLog {
    path: PathBuf,
    open: Option<Open>,
}

struct Open {
    file: File,
    clock: Clock,
    start_tokens: u64,
    count_tokens: bool,
}

impl TrainerLog {
    /// The log of `output_dir`, touched only when the run starts.
    pub fn new(output_dir: &Path) -> TrainerLog {
        TrainerLog { path: output_dir.join(TRAINER_LOG), open: None }
    }

    fn start(&mut self, info: &RunInfo<'_>) -> Result<()> {
        let old = match fs::read(&self.path) {
            Ok(bytes) => String::from_utf8_lossy(&bytes).into_owned(),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => String::new(),
            Err(e) => return Err(Error::io(&self.path, "cannot read", &e)),
        };
        write_atomic(&self.path, kept_rows(&old, info).as_bytes())?;
        let file = OpenOptions::new().append(true).open(&self.path);
        let file = file.map_err(|e| Error::io(&self.path, "cannot open", &e))?;
        let clock = Clock::new(info);
        self.open = Some(Open { file, clock, start_tokens: info.start_tokens, count_tokens: info.count_tokens });
        Ok(())
    }

    fn append(&mut self, row: &LogRow) -> Result<()> {
        let Some(open) = &mut self.open else { return Ok(()) };
        let mut fields = log_fields(&row.to_history(open.count_tokens), open.clock.total_steps);
        fields.insert("elapsed_time".into(), timedelta(open.clock.elapsed()).into());
        fields.insert("remaining_time".into(), timedelta(open.clock.remaining(row.step)).into());
        if open.count_tokens && row.tokens_seen > 0 {
            let tokens = row.tokens_seen.saturating_sub(open.start_tokens) as f64;
            let rate = tokens / open.clock.elapsed().max(1e-9);
            fields.insert("throughput".into(), json::number(json::round(rate, 2)));
            fields.insert("total_tokens".into(), row.tokens_seen.into());
        }
        let line = json::line(&Value::Object(fields)) + "\n";
        open.file.write_all(line.as_bytes()).map_err(|e| Error::io(&self.path, "cannot write", &e))
    }
}

impl Observer for TrainerLog {
    fn observe(&mut self, event: &Event<'_>) -> Result<Control> {
        match event {
            Event::Start(info) => self.start(info)?,
            Event::Log(row) => self.append(row)?,
            _ => {}
        }
        Ok(Control::Continue)
    }
}

/// The fields of a log row that do not depend on the clock, from a row of `log_history`.
fn log_fields(history: &Map<String, Value>, total_steps: u64) -> Map<String, Value> {
    let step = history.get("step").and_then(Value::as_u64).unwrap_or(0);
    let percentage = if total_steps == 0 {
        100.into()
    } else {
        json::number(json::round(step as f64 / total_steps as f64 * 100.0, 2))
    };
    let mut fields = Map::new();
    fields.insert("current_steps".into(), step.into());
    fields.insert("total_steps".into(), total_steps.into());
    for (ours, theirs) in [("loss", "loss"), ("eval_loss", "eval_loss"), ("lr", "learning_rate"), ("epoch", "epoch")] {
        if let Some(value) = history.get(theirs).filter(|v| !v.is_null()) {
            fields.insert(ours.into(), value.clone());
        }
    }
    fields.insert("percentage".into(), percentage);
    fields
}

/// The text a resumed run begins its log with: the old file's row for each row of the history. A row that is
/// missing there, or torn, or another one's, is made anew without its times.
fn kept_rows(old: &str, info: &RunInfo<'_>) -> String {
    let mut lines = old.lines();
    let mut text = String::new();
    for history in info.history {
        let fields = log_fields(history, info.total_steps);
        let line = lines.next().filter(|line| {
            let row = serde_json::from_str::<Map<String, Value>>(line).unwrap_or_default();
            fields.iter().all(|(name, value)| row.get(name) == Some(value))
        });
        match line {
            Some(line) => text.push_str(line),
            None => text.push_str(&json::line(&Value::Object(fields))),
        }
        text.push('\n');
    }
    text
}

/// Time spent and time left, counted from this process's first step.
pub(super) struct Clock {
    start: Instant,
    start_step: u64,
    total_steps: u64,
}

impl Clock {
    pub(super) fn new(info: &RunInfo<'_>) -> Clock {
        Clock { start: Instant::now(), start_step: info.start_step, total_steps: info.total_steps }
    }

    /// Seconds since the start.
    pub(super) fn elapsed(&self) -> f64 {
        self.start.elapsed().as_secs_f64()
    }

    /// Seconds that the steps after `step` take, if each takes as long as those of this process did; 0 while there
    /// are none to judge by.
    pub(super) fn remaining(&self, step: u64) -> f64 {
        let done = step.saturating_sub(self.start_step);
        if done == 0 { 0.0 } else { self.elapsed() / done as f64 * self.total_steps.saturating_sub(step) as f64 }
    }
}

/// Seconds as Python prints a timedelta: `0:01:05`, `1 day, 0:00:00`. Fractions are dropped.
pub fn timedelta(seconds: f64) -> String {
    let s = seconds as u64;
    let (days, h, m, s) = (s / 86_400, s / 3600 % 24, s / 60 % 60, s % 60);
    let days = match days {
        0 => String::new(),
        1 => "1 day, ".into(),
        n => format!("{n} days, "),
    };
    format!("{days}{h}:{m:02}:{s:02}")
}

/// The rates of a phase that took `seconds`: `<split>_runtime`, `<split>_samples_per_second`,
/// `<split>_steps_per_second`, rounded as transformers does.
pub fn speed_metrics(split: &str, seconds: f64, samples: f64, steps: u64) -> Vec<(String, f64)> {
    let mut metrics = vec![(format!("{split}_runtime"), json::round(seconds, 4))];
    if seconds > 0.0 {
        metrics.push((format!("{split}_samples_per_second"), json::round(samples / seconds, 3)));
        metrics.push((format!("{split}_steps_per_second"), json::round(steps as f64 / seconds, 3)));
    }
    metrics
}

/// The closing figures of a run that made the steps after `start_step` in `seconds`: the rates, `total_flos` and
/// `train_loss`. Only steps that were made are counted, also where the run was resumed or stopped early.
pub fn train_metrics(seconds: f64, start_step: u64, steps: &Steps, state: &TrainerState) -> Vec<(String, f64)> {
    let made = state.global_step.saturating_sub(start_step);
    let samples = steps.samples_counted * (made as f64 / steps.total as f64);
    let mut metrics = speed_metrics("train", seconds, samples, made);
    metrics.push(("total_flos".into(), state.total_flos));
    metrics.push(("train_loss".into(), state.losses.mean(state.global_step)));
    metrics
}

/// Writes `<split>_results.json` (`split`: train, eval, ...) and merges `metrics` into all_results.json.
///
/// # Errors
/// [`Error::File`] if one cannot be written; the older one then still stands.
pub fn write_results(output_dir: &Path, split: &str, metrics: &[(String, f64)]) -> Result<()> {
    let value = |name: &str, x: f64| match name {
        // A count, and the only whole number among them.
        "num_input_tokens_seen" => Value::from(x as u64),
        _ => json::number(x),
    };
    let metrics: Map<_, _> = metrics.iter().map(|(name, x)| (name.clone(), value(name, *x))).collect();
    let all_path = output_dir.join("all_results.json");
    let mut all = match fs::read(&all_path) {
        Ok(bytes) => serde_json::from_slice::<Map<String, Value>>(&bytes).unwrap_or_else(|e| {
            log::warn!("{}: is no JSON object ({e}), started anew", all_path.display());
            Map::new()
        }),
        Err(_) => Map::new(),
    };
    all.extend(metrics.clone());
    let text = |map| json::pretty(&Value::Object(map), 4);
    write_atomic(&output_dir.join(format!("{split}_results.json")), text(metrics).as_bytes())?;
    write_atomic(&all_path, text(all).as_bytes())
}

#[cfg(test)]
mod tests {
    use super::super::state::LossMeter;
    use super::*;

    fn row(step: u64, values: &[(&str, f64)]) -> LogRow {
        let values = values.iter().map(|&(n, x)| (n.to_string(), x)).collect();
        LogRow { step, epoch: step as f64 / 4.0, tokens_seen: 100 * step, values }
    }

    fn rows() -> Vec<LogRow> {
        vec![
            row(1, &[("loss", 2.5), ("grad_norm", 1.5), ("learning_rate", 1e-5)]),
            row(2, &[("loss", 2.25), ("grad_norm", 1.25), ("learning_rate", 5e-5)]),
            row(2, &[("eval_loss", 2.75), ("eval_runtime", 0.5)]),
            row(3, &[("loss", 2.0), ("grad_norm", 1.0), ("learning_rate", 2e-5)]),
            row(3, &[("train_runtime", 9.0), ("train_loss", 2.25)]),
        ]
    }

    /// Runs the rows `range` of a run and returns the file without what depends on the clock.
    fn run(dir: &Path, from: usize, to: usize) -> String {
        let rows = rows();
        let history: Vec<_> = rows[..from].iter().map(|r| r.to_history(true)).collect();
        let info = RunInfo { total_steps: 3, start_step: 0, start_tokens: 0, history: &history, count_tokens: true };
        let mut log = TrainerLog::new(dir);
        log.observe(&Event::Start(&info)).unwrap();
        for row in &rows[from..to] {
            log.observe(&Event::Log(row)).unwrap();
        }
        drop(log);
        let text = fs::read_to_string(dir.join(TRAINER_LOG)).unwrap();
        let timeless = text.lines().map(|line| {
            let mut row: Map<String, Value> = serde_json::from_str(line).unwrap();
            for name in ["elapsed_time", "remaining_time", "throughput", "total_tokens"] {
                row.shift_remove(name);
            }
            json::line(&Value::Object(row)) + "\n"
        });
        timeless.collect()
    }

    #[test]
    fn rows_are_llama_factory_s() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(
            run(dir.path(), 0, 5),
            "{\"current_steps\": 1, \"total_steps\": 3, \"loss\": 2.5, \"lr\": 1e-05, \"epoch\": 0.25, \"percentage\": 33.33}\n\
             {\"current_steps\": 2, \"total_steps\": 3, \"loss\": 2.25, \"lr\": 5e-05, \"epoch\": 0.5, \"percentage\": 66.67}\n\
             {\"current_steps\": 2, \"total_steps\": 3, \"eval_loss\": 2.75, \"epoch\": 0.5, \"percentage\": 66.67}\n\
             {\"current_steps\": 3, \"total_steps\": 3, \"loss\": 2.0, \"lr\": 2e-05, \"epoch\": 0.75, \"percentage\": 100.0}\n\
             {\"current_steps\": 3, \"total_steps\": 3, \"epoch\": 0.75, \"percentage\": 100.0}\n"
        );
        let text = fs::read_to_string(dir.path().join(TRAINER_LOG)).unwrap();
        let first = text.lines().next().unwrap();
        let keys: Vec<_> = serde_json::from_str::<Map<String, Value>>(first).unwrap().keys().cloned().collect();
        // The order in which LLaMA-Factory 0.9.5's on_log puts them.
        let want =
            "current_steps total_steps loss lr epoch percentage elapsed_time remaining_time throughput total_tokens";
        assert_eq!(keys.join(" "), want);
    }

    #[test]
    fn a_resumed_log_equals_an_uninterrupted_one() {
        let dir = tempfile::tempdir().unwrap();
        let whole = run(dir.path(), 0, 5);
        for (before, checkpoint) in [(5, 5), (5, 3), (4, 2), (3, 3), (1, 0), (5, 0)] {
            let dir = tempfile::tempdir().unwrap();
            run(dir.path(), 0, before);
            assert_eq!(run(dir.path(), checkpoint, 5), whole, "{before} rows, resumed at {checkpoint}");
        }
        // Lost, torn, or of another run: made anew from the checkpoint.
        for old in ["", "{\"current_steps\": 1, \"total", "{\"current_steps\": 7}\nnonsense\n", "\u{0}\n"] {
            let dir = tempfile::tempdir().unwrap();
            fs::write(dir.path().join(TRAINER_LOG), old).unwrap();
            assert_eq!(run(dir.path(), 3, 5), whole, "{old:?}");
        }
    }

    #[test]
    fn timedeltas_are_python_s() {
        for (s, want) in [
            (0.9, "0:00:00"),
            (65.0, "0:01:05"),
            (36_000.0, "10:00:00"),
            (86_400.0, "1 day, 0:00:00"),
            (180_061.0, "2 days, 2:01:01"),
        ] {
            assert_eq!(timedelta(s), want);
        }
    }

    #[test]
    fn results_merge() {
        let dir = tempfile::tempdir().unwrap();
        let of = |pairs: &[(&str, f64)]| pairs.iter().map(|&(n, x)| (n.to_string(), x)).collect::<Vec<_>>();
        write_results(dir.path(), "train", &of(&[("train_loss", 1.5), ("epoch", 3.0), ("total_flos", 1.2e17)]))
            .unwrap();
        write_results(dir.path(), "eval", &of(&[("eval_loss", 1.75), ("epoch", 3.0)])).unwrap();
        let read = |name: &str| fs::read_to_string(dir.path().join(name)).unwrap();
        assert_eq!(
            read("train_results.json"),
            "{\n    \"epoch\": 3.0,\n    \"total_flos\": 1.2e+17,\n    \"train_loss\": 1.5\n}"
        );
        assert_eq!(
            read("all_results.json"),
            "{\n    \"epoch\": 3.0,\n    \"eval_loss\": 1.75,\n    \"total_flos\": 1.2e+17,\n    \"train_loss\": 1.5\n}"
        );
        let steps = Steps::plan(10, 2, 1, 2.0, None, false).unwrap();
        let config = crate::train::state::tests::state();
        let state =
            TrainerState { global_step: 10, losses: LossMeter { logged: 25.0, ..Default::default() }, ..config };
        let got = train_metrics(4.0, 5, &steps, &state);
        let want = [
            ("train_runtime", 4.0),
            ("train_samples_per_second", 2.5),
            ("train_steps_per_second", 1.25),
            ("total_flos", 12345678912345.0),
            ("train_loss", 2.5),
        ];
        assert_eq!(got, want.map(|(n, x)| (n.to_string(), x)));
        assert_eq!(speed_metrics("eval", 3.0, 10.0, 5)[1], ("eval_samples_per_second".to_string(), 3.333));
    }
}
