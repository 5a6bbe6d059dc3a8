//! `eval`: a multiple-choice benchmark.

use super::predict::bar;
use super::say;
use crate::config::Config;
use crate::error::Result;
use crate::eval::choice;
use crate::train::log::Terminal;

/// Runs the command on a config that passed `validate_for`.
///
/// # Errors
/// Those of [`choice::run`].
pub fn run(config: Config) -> Result<()> {
    let bar = bar(&config);
    let mut watch = |p: choice::Progress<'_>| {
        bar.set_length(p.total as u64);
        bar.set_position(p.done as u64);
        bar.set_message(format!("{:.2} % right so far, {}", 100.0 * p.right as f64 / p.done as f64, p.subject));
    };
    let results = choice::run(&config, &mut Terminal::new(config.train.disable_tqdm), &mut watch);
    bar.finish_and_clear();
    let results = results?;
    say(&results.log());
    if let Some(dir) = config.benchmark.as_ref().and_then(|b| b.save_dir.as_ref()) {
        say(&format!("done: the results are in {}\n", dir.display()));
    }
    Ok(())
}
