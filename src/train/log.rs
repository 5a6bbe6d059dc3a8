//! What a run says on the terminal. The only place in `train` that prints.
//!
//! Rows go to standard output in transformers' form, with the time left after it; where standard error is a
//! terminal, a progress bar stands there below them.

use std::io::{self, IsTerminal, Write};
use std::time::{Duration, Instant};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::json;
use super::log_files::{Clock, timedelta};
use super::progress::{Control, Event, LogRow, Observer, StepReport};
use crate::error::Result;
use crate::format::hub;

/// Shows a run to a person: a progress bar with loss, learning rate, tokens/s and time left, and a line a log row.
pub struct Terminal {
    out: Box<dyn Write + Send>,
    with_bar: bool,
    bar: Option<ProgressBar>,
    clock: Option<Clock>,
    start_tokens: u64,
    pace: Pace,
}

impl Terminal {
    /// Standard output, and a bar on standard error where that is a terminal. `disable_tqdm` leaves the bar out.
    pub fn new(disable_tqdm: bool) -> Terminal {
        Terminal::to(Box::new(io::stdout()), !disable_tqdm && io::stderr().is_terminal())
    }

    fn to(out: Box<dyn Write + Send>, with_bar: bool) -> Terminal {
        Terminal { out, with_bar, bar: None, clock: None, start_tokens: 0, pace: Pace::default() }
    }

    /// Prints the closing table of `split` (train, eval): one metric a line, sorted by name.
    pub fn metrics(&mut self, split: &str, metrics: &[(String, f64)]) {
        let table = metrics_table(split, metrics);
        self.say(&table);
    }

    fn say(&mut self, text: &str) {
        let out = &mut self.out;
        // A reader that has gone away (a closed pipe) must not end the training.
        let mut write = || drop(writeln!(out, "{text}").and_then(|()| out.flush()));
        match &self.bar {
            Some(bar) => bar.suspend(write),
            None => write(),
        }
    }

    fn row(&mut self, row: &LogRow) {
        let mut text = format!("{{{}}}", row_fields(row));
        if let (Some(clock), true) = (&self.clock, row.get("loss").is_some()) {
            text += &format!(" step {}/{}", row.step, self.pace.total);
            if let Some(rate) = self.pace.rate {
                text += &format!(", {rate:.0} tokens/s");
            }
            if row.step < self.pace.total {
                text += &format!(", {} left", timedelta(clock.remaining(row.step)));
            }
        }
        self.say(&text);
    }

    fn clear(&mut self) {
        if let Some(bar) = self.bar.take() {
            bar.finish_and_clear();
        }
    }

    fn tokenising(&mut self, done: u64, total: u64) {
        if self.with_bar && self.bar.is_none() {
            let bar = ProgressBar::with_draw_target(Some(total), ProgressDrawTarget::stderr());
            let form = "{percent:>3}% {bar:30} {pos}/{len} rows, {eta} left";
            bar.set_style(ProgressStyle::with_template(form).unwrap_or(ProgressStyle::default_bar()));
            self.bar = Some(bar);
        }
        if let Some(bar) = &self.bar {
            bar.set_length(total);
            bar.set_position(done);
        }
    }

    fn download(&mut self, event: &hub::Event<'_>) {
        match event {
            hub::Event::Start { file, index, files, bytes } => {
                if self.with_bar {
                    let bar = ProgressBar::with_draw_target(Some(*bytes), ProgressDrawTarget::stderr());
                    let form = "{bar:30} {bytes}/{total_bytes} {bytes_per_sec}, {eta} left  {msg}";
                    bar.set_style(ProgressStyle::with_template(form).unwrap_or(ProgressStyle::default_bar()));
                    bar.set_message(format!("{file} ({}/{files})", index + 1));
                    self.bar = Some(bar);
                } else {
                    self.say(&format!("{file} ({}/{files}), {bytes} bytes", index + 1));
                }
            }
            hub::Event::Bytes(n) => {
                if let Some(bar) = &self.bar {
                    bar.inc(*n);
                }
            }
            hub::Event::Finish => self.clear(),
        }
    }

    fn step(&mut self, report: &StepReport) {
        self.pace.step(report, Instant::now());
        let Some(bar) = &self.bar else { return };
        let rate = self.pace.rate.map_or(String::new(), |r| format!(", {r:.0} tokens/s"));
        let left = self.clock.as_ref().map_or(0.0, |clock| clock.remaining(report.step));
        bar.set_position(report.step);
        bar.set_message(format!("loss {:.4}, lr {:.3e}{rate}, {} left", report.loss, report.lr, timedelta(left)));
    }
}

impl Observer for Terminal {
    fn observe(&mut self, event: &Event<'_>) -> Result<Control> {
        match event {
            Event::Preparing { what } => {
                self.clear();
                self.say(what);
            }
            Event::Tokenising { done, total } => self.tokenising(*done, *total),
            Event::Download(event) => self.download(event),
            Event::Start(info) => {
                self.clear();
                self.clock = Some(Clock::new(info));
                self.pace = Pace { total: info.total_steps, tokens: info.start_tokens, ..Pace::default() };
                self.start_tokens = info.start_tokens;
                if self.with_bar {
                    let bar = ProgressBar::with_draw_target(Some(info.total_steps), ProgressDrawTarget::stderr());
                    let form = "{percent:>3}% {bar:30} {pos}/{len} [{elapsed_precise}] {wide_msg}";
                    bar.set_style(ProgressStyle::with_template(form).unwrap_or(ProgressStyle::default_bar()));
                    bar.set_position(info.start_step);
                    self.bar = Some(bar);
                }
                if info.start_step > 0 {
                    self.say(&format!("resumed at step {} of {}", info.start_step, info.total_steps));
                }
            }
            Event::Step(report) => self.step(report),
            Event::Log(row) => self.row(row),
            Event::Evaluating { done, total } => {
                if let Some(bar) = &self.bar {
                    bar.set_message(format!("evaluating {done}/{total}"));
                }
            }
            Event::Saved { path, .. } => self.say(&format!("saved {}", path.display())),
            Event::End { .. } => self.clear(),
        }
        Ok(Control::Continue)
    }
}

/// Tokens a second, over windows of a second or more so that the figure can be read.
#[derive(Default)]
struct Pace {
    total: u64,
    tokens: u64,
    since: Option<Instant>,
    rate: Option<f64>,
}

impl Pace {
    fn step(&mut self, report: &StepReport, now: Instant) {
        // The first step only starts the clock: it also warms caches.
        let Some(since) = self.since else {
            (self.since, self.tokens) = (Some(now), report.tokens_seen);
            return;
        };
        let span = now.duration_since(since);
        if span >= Duration::from_secs(1) || (self.rate.is_none() && span > Duration::ZERO) {
            self.rate = Some(report.tokens_seen.saturating_sub(self.tokens) as f64 / span.as_secs_f64());
        }
        if span >= Duration::from_secs(1) {
            (self.since, self.tokens) = (Some(now), report.tokens_seen);
        }
    }
}

/// `'loss': '2.312', 'epoch': '0.25'`: four significant digits, quoted, as transformers prints rows.
fn row_fields(row: &LogRow) -> String {
    let epoch = ("epoch".to_string(), row.epoch);
    let shown = row.values.iter().filter(|(name, _)| name != "total_flos").chain([&epoch]);
    shown.map(|(name, x)| format!("'{name}': '{}'", general(*x, 4))).collect::<Vec<_>>().join(", ")
}

/// `x` to `digits` significant digits as C's `%.<digits>g` prints it.
fn general(x: f64, digits: usize) -> String {
    if x == 0.0 || !x.is_finite() {
        return if x == 0.0 { "0".into() } else { x.to_string().to_lowercase() };
    }
    let text = format!("{x:.*e}", digits.saturating_sub(1));
    let (mantissa, exponent) = text.split_once('e').unwrap_or((&text, "0"));
    let exponent: i32 = exponent.parse().unwrap_or(0);
    let trim =
        |s: &str| if s.contains('.') { s.trim_end_matches('0').trim_end_matches('.').to_string() } else { s.into() };
    if exponent < -4 || exponent >= digits as i32 {
        let sign = if exponent < 0 { '-' } else { '+' };
        return format!("{}e{sign}{:02}", trim(mantissa), exponent.unsigned_abs());
    }
    let places = (digits as i32 - 1 - exponent).max(0) as usize;
    trim(&format!("{x:.places$}"))
}

/// The table transformers prints at the end: runtimes as `0:00:12.34`, FLOPs in GF, the rest to four places.
fn metrics_table(split: &str, metrics: &[(String, f64)]) -> String {
    let show = |name: &str, x: f64| {
        if name.contains("_runtime") {
            // Rounded first, so that 59.999 becomes 1:00.00 and not 0:60.00.
            let hundredths = (x * 100.0).round() as u64;
            format!("{}.{:02}", timedelta((hundredths / 100) as f64), hundredths % 100)
        } else if name == "total_flos" {
            format!("{}GF", (x as u64) >> 30)
        } else {
            json::float_repr(json::round(x, 4))
        }
    };
    let mut rows: Vec<_> = metrics.iter().map(|(name, x)| (name.as_str(), show(name, *x))).collect();
    rows.sort();
    let names = rows.iter().map(|(name, _)| name.len()).max().unwrap_or(0);
    let values = rows.iter().map(|(_, value)| value.len()).max().unwrap_or(0);
    let mut text = format!("***** {split} metrics *****");
    for (name, value) in rows {
        text += &format!("\n  {name:names$} = {value:>values$}");
    }
    text
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::super::progress::RunInfo;
    use super::*;

    #[derive(Clone, Default)]
    struct Shared(Arc<Mutex<Vec<u8>>>);

    impl Write for Shared {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().write(bytes)
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    /// Each text was printed by CPython 3.11's `f"{x:.4g}"`.
    #[test]
    fn four_digits_are_python_s() {
        for (x, want) in [
            (2.31249, "2.312"),
            (0.8127432, "0.8127"),
            (5e-5, "5e-05"),
            (9.99996, "10"),
            (123456.0, "1.235e+05"),
            (9999.6, "1e+04"),
            (0.00012345, "0.0001234"),
            (3.0, "3"),
            (0.0, "0"),
            (f64::NAN, "nan"),
            (-1.5, "-1.5"),
            (100.0, "100"),
        ] {
            assert_eq!(general(x, 4), want);
        }
    }

    #[test]
    fn plain_lines() {
        let shared = Shared::default();
        let mut terminal = Terminal::to(Box::new(shared.clone()), false);
        let info = RunInfo { total_steps: 40, start_step: 4, start_tokens: 0, history: &[], count_tokens: false };
        terminal.observe(&Event::Start(&info)).unwrap();
        let report = StepReport {
            step: 40,
            total_steps: 40,
            epoch: 0.25,
            loss: 2.31249,
            grad_norm: 0.5,
            lr: 9.9e-5,
            tokens_seen: 100,
        };
        terminal.observe(&Event::Step(&report)).unwrap();
        terminal.observe(&Event::Log(&LogRow::train(&report, 2.31249))).unwrap();
        let values = vec![("eval_loss".to_string(), 2.5), ("eval_runtime".to_string(), 0.25)];
        let row = LogRow { step: 40, epoch: 0.25, tokens_seen: 100, values };
        terminal.observe(&Event::Log(&row)).unwrap();
        terminal.observe(&Event::End { step: 40 }).unwrap();
        let text = String::from_utf8(shared.0.lock().unwrap().clone()).unwrap();
        assert_eq!(
            text,
            "resumed at step 4 of 40\n\
             {'loss': '2.312', 'grad_norm': '0.5', 'learning_rate': '9.9e-05', 'epoch': '0.25'} step 40/40\n\
             {'eval_loss': '2.5', 'eval_runtime': '0.25', 'epoch': '0.25'}\n"
        );
    }

    #[test]
    fn pace_counts_tokens_over_a_second() {
        let mut pace = Pace::default();
        let start = Instant::now();
        let report = |tokens_seen| StepReport {
            step: 1,
            total_steps: 9,
            epoch: 0.0,
            loss: 1.0,
            grad_norm: 1.0,
            lr: 1.0,
            tokens_seen,
        };
        pace.step(&report(1000), start);
        assert_eq!(pace.rate, None);
        pace.step(&report(1100), start + Duration::from_millis(500));
        assert_eq!(pace.rate, Some(200.0));
        pace.step(&report(1400), start + Duration::from_secs(2));
        assert_eq!(pace.rate, Some(200.0));
        pace.step(&report(1500), start + Duration::from_millis(2500));
        assert_eq!(pace.rate, Some(200.0));
        pace.step(&report(2400), start + Duration::from_secs(4));
        assert_eq!(pace.rate, Some(500.0));
    }

    #[test]
    fn table_of_metrics() {
        let metrics = [("train_loss", 1.23456), ("train_runtime", 65.999), ("total_flos", 5e9), ("epoch", 3.0)];
        let metrics: Vec<_> = metrics.map(|(n, x)| (n.to_string(), x)).to_vec();
        assert_eq!(
            metrics_table("train", &metrics),
            "***** train metrics *****\n  epoch         =        3.0\n  total_flos    =        4GF\n  \
             train_loss    =     1.2346\n  train_runtime = 0:01:06.00"
        );
    }
}
