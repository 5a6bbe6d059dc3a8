//! `predict`: answers for a data set, with scores; base and adapter side by side; people's scores summed up.

use std::io::IsTerminal;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};

use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

use super::{say, train};
use crate::config::{Config, FinetuningType};
use crate::error::{Error, Result};
use crate::eval::compare;
use crate::eval::predict::{self, Progress};
use crate::infer::Control;
use crate::train::log::Terminal;

/// What `predict` is asked for beside its config.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Asked {
    /// `--compare base`.
    pub compare: bool,
    /// `--scores sheet.csv`: nothing is predicted.
    pub scores: Option<PathBuf>,
}

/// Takes `--compare base` and `--scores FILE` out of the arguments.
///
/// # Errors
/// [`Error::Config`] for another comparison, or a flag without its value.
pub fn take_flags(args: &mut Vec<String>) -> Result<Asked> {
    let compare = match take(args, "--compare")?.as_deref() {
        None => false,
        Some("base") => true,
        Some(other) => return Err(Error::config("--compare", format!("takes `base`; got `{}`", other.escape_debug()))),
    };
    let scores = take(args, "--scores")?.map(PathBuf::from);
    if compare && scores.is_some() {
        return Err(Error::config("--scores", "sums up a sheet that is there; leave out --compare"));
    }
    Ok(Asked { compare, scores })
}

/// The value of `name VALUE` or `name=VALUE`, taken out of the arguments.
fn take(args: &mut Vec<String>, name: &str) -> Result<Option<String>> {
    let is = |a: &String| a == name || a.strip_prefix(name).is_some_and(|rest| rest.starts_with('='));
    let Some(at) = args.iter().position(is) else { return Ok(None) };
    match args.remove(at).split_once('=') {
        Some((_, value)) => Ok(Some(value.to_string())),
        None if at < args.len() => Ok(Some(args.remove(at))),
        None => Err(Error::config(name, "needs a value")),
    }
}

/// Prints what a filled sheet says.
///
/// # Errors
/// Those of [`compare::sum_up`].
pub fn scores(sheet: &Path) -> Result<()> {
    say(&compare::sum_up(sheet)?.to_string());
    Ok(())
}

/// Runs the command on a config that passed `validate_for`. Ctrl-C leaves; what was answered stays, and the same command
/// goes on with it.
///
/// # Errors
/// Those of [`predict::run`].
pub fn run(mut config: Config, compare: bool) -> Result<()> {
    // A training file may be given as it is; nothing is trained here.
    config.train.do_train = false;
    run_until(&config, compare, &train::on_ctrl_c("stopping; the same command goes on from here"))
}

/// As [`run`], until `stop` is set.
pub(super) fn run_until(config: &Config, compare: bool, stop: &AtomicBool) -> Result<()> {
    let mut terminal = Terminal::new(config.train.disable_tqdm);
    let bar = bar(config);
    let mut watch = |p: Progress| {
        bar.set_length(p.total as u64);
        bar.set_position(p.done as u64);
        let rate = if p.seconds > 0.0 { p.tokens as f64 / p.seconds } else { 0.0 };
        bar.set_message(format!("{}{rate:.1} tokens/s", if p.base { "base, " } else { "" }));
        if stop.load(Ordering::Relaxed) { Control::Stop } else { Control::Continue }
    };
    let outcome = predict::run(config, compare, &mut terminal, &mut watch);
    bar.finish_and_clear();
    let outcome = outcome?;
    terminal.metrics("predict", &outcome.metrics);
    if let Some(compared) = &outcome.compared {
        say(&compare::table(compared, SHOWN, WIDTH));
        let dir = config.train.output_dir.display();
        let (read, sheet) = (compare::COMPARISON, compare::SHEET);
        say(&format!("to read: {dir}/{read}; to score: {dir}/{sheet}, then predict --scores {dir}/{sheet}\n"));
    }
    say(&format!("done: the answers are in {}\n", outcome.path.display()));
    Ok(())
}

/// Rows of a comparison that are shown, and the width of a column: four of them fit into 100.
const SHOWN: usize = 10;
const WIDTH: usize = 23;

/// A bar on standard error where that is a terminal and the config wants one.
pub(super) fn bar(config: &Config) -> ProgressBar {
    if config.train.disable_tqdm || !std::io::stderr().is_terminal() {
        return ProgressBar::hidden();
    }
    let bar = ProgressBar::with_draw_target(Some(0), ProgressDrawTarget::stderr());
    let form = "{percent:>3}% {bar:30} {pos}/{len} [{elapsed_precise}] {wide_msg}";
    bar.set_style(ProgressStyle::with_template(form).unwrap_or(ProgressStyle::default_bar()));
    bar
}

/// The config that predicts with what `config` has just trained.
pub(super) fn after_training(config: &Config) -> Config {
    let mut config = config.clone();
    let trained = config.train.output_dir.clone();
    match config.tune.finetuning_type {
        FinetuningType::Lora => {
            // The last adapter was trained on, unless a new one was asked for; those before it were merged.
            if !config.tune.create_new_adapter {
                config.model.adapter_name_or_path.pop();
            }
            config.model.adapter_name_or_path.push(trained);
        }
        FinetuningType::Full | FinetuningType::Freeze => {
            config.model.model_name_or_path = trained.to_string_lossy().into_owned();
            config.model.train_from_scratch = false;
        }
    }
    config
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::{Format, from_str};

    #[test]
    fn flags_are_taken_out_of_the_settings() {
        let taken = |line: &str| {
            let mut args: Vec<String> = line.split(' ').map(String::from).collect();
            take_flags(&mut args).map(|asked| (asked, args.join(" ")))
        };
        let asked = |compare, scores: Option<&str>| Asked { compare, scores: scores.map(PathBuf::from) };
        assert_eq!(taken("a.yaml --compare base top_k=1").unwrap(), (asked(true, None), "a.yaml top_k=1".into()));
        assert_eq!(taken("--compare=base a.yaml").unwrap(), (asked(true, None), "a.yaml".into()));
        assert_eq!(taken("--scores s.csv").unwrap(), (asked(false, Some("s.csv")), "".into()));
        assert_eq!(taken("a.yaml").unwrap(), (asked(false, None), "a.yaml".into()));
        for bad in ["a.yaml --compare", "a.yaml --compare other", "--scores", "--scores s --compare base"] {
            assert!(taken(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn what_was_trained_predicts() {
        let of = |lines: &str| {
            let text = format!("model_name_or_path: m\noutput_dir: out\n{lines}");
            let c = after_training(&from_str(&text, Format::Yaml, &[]).unwrap());
            let adapters: Vec<String> = c.model.adapter_name_or_path.iter().map(|p| p.display().to_string()).collect();
            (c.model.model_name_or_path, adapters.join(","))
        };
        assert_eq!(of(""), ("m".into(), "out".into()));
        assert_eq!(of("adapter_name_or_path: a,b"), ("m".into(), "a,out".into()));
        assert_eq!(of("adapter_name_or_path: a,b\ncreate_new_adapter: true"), ("m".into(), "a,b,out".into()));
        assert_eq!(of("finetuning_type: full"), ("out".into(), "".into()));
    }
}
