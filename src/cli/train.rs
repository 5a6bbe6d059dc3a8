//! `train`: fine-tunes as a config says.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::{predict, say};
use crate::config::Config;
use crate::device;
use crate::error::{Error, Result};
use crate::train::log::Terminal;
use crate::train::{self, Control, Event, Observer};

/// Runs the command on a config that passed `validate_for`. Ctrl-C saves a checkpoint and leaves.
///
/// # Errors
/// Those of [`train::train`]; [`Error::Stopped`] after Ctrl-C.
pub fn run(config: Config) -> Result<()> {
    if let Some(why) = device::built_without_kernels() {
        eprintln!("note: {why}");
    }
    let t = &config.train;
    let stop = on_ctrl_c("stopping after this step; Ctrl-C again leaves without saving");
    if t.do_train || t.do_eval || !t.do_predict {
        run_training(&config, stop.clone())?;
    }
    match (t.do_predict, t.do_train) {
        (false, _) => Ok(()),
        (true, false) => predict::run_until(&config, false, &stop),
        (true, true) => predict::run_until(&predict::after_training(&config), false, &stop),
    }
}

fn run_training(config: &Config, stop: Arc<AtomicBool>) -> Result<()> {
    let mut shown = Shown { terminal: Terminal::new(config.train.disable_tqdm), stop };
    let outcome = train::train(config, &mut shown)?;
    if let Some(saved) = outcome.stopped {
        return Err(Error::Stopped { step: outcome.step as usize, saved: Some(saved) });
    }
    if outcome.step > 0 {
        say(&format!("done: {} steps; the result is in {}\n", outcome.step, config.train.output_dir.display()));
    }
    let preprocessed = !config.train.do_train && !config.train.do_eval;
    if preprocessed && let Some(folder) = &config.data.tokenized_path {
        say(&format!("done: the tokenised data are in {}\n", folder.display()));
    }
    Ok(())
}

/// The terminal, and Ctrl-C.
struct Shown {
    terminal: Terminal,
    stop: Arc<AtomicBool>,
}

impl Observer for Shown {
    fn observe(&mut self, event: &Event<'_>) -> Result<Control> {
        self.terminal.observe(event)?;
        // Before the first step there is nothing to save yet: leave at once.
        let asked = self.stop.load(Ordering::Relaxed);
        match event {
            Event::Preparing { .. } | Event::Tokenising { .. } | Event::Download(_) if asked => {
                Err(Error::Stopped { step: 0, saved: None })
            }
            _ if asked => Ok(Control::Stop),
            _ => Ok(Control::Continue),
        }
    }
}

/// A flag that the first Ctrl-C (or SIGTERM) sets, and is answered with `said`; the second ends the program at once.
pub(super) fn on_ctrl_c(said: &'static str) -> Arc<AtomicBool> {
    let flag = Arc::new(AtomicBool::new(false));
    let set = flag.clone();
    let handler = move || {
        if set.swap(true, Ordering::Relaxed) {
            std::process::exit(130);
        }
        eprintln!("\n{said}");
    };
    if let Err(e) = ctrlc::set_handler(handler) {
        log::warn!("Ctrl-C will not save a checkpoint: {e}");
    }
    flag
}
