//! `inspect`: the exact tokens of the first samples, those that are trained on highlighted.

use std::io::IsTerminal;

use super::say;
use crate::config::Config;
use crate::data::inspect::render;
use crate::error::Result;
use crate::train::{Control, Event, Inputs};

/// Samples that are shown.
const SHOWN: usize = 3;

/// Runs the command on a config that passed `validate_for`.
///
/// # Errors
/// Whatever is wrong with tokenizer, template or data.
pub fn run(config: Config) -> Result<()> {
    let inputs = Inputs::prepare(&config, &mut |_: &Event<'_>| Control::Continue)?;
    let samples = inputs.train.samples();
    let ansi = std::io::stdout().is_terminal();
    say(&format!("template {}, {} training samples\n", inputs.template.name, samples.len()));
    for (i, sample) in samples.iter().take(SHOWN).enumerate() {
        let trained = sample.trained.iter().filter(|&&t| t).count();
        say(&format!("\nsample {}: {} tokens, {trained} trained on\n", i + 1, sample.ids.len()));
        say(&render(sample, &inputs.tokenizer, ansi));
    }
    for notice in &inputs.notices {
        say(&format!("\n{notice}\n"));
    }
    Ok(())
}
