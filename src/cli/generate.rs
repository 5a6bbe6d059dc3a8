//! `generate`: one answer, to see what a model has learned.

use super::say;
use crate::config::Config;
use crate::error::Result;
use crate::infer::Answerer;

/// Tokens of an answer at most.
const MAX_NEW_TOKENS: usize = 128;

/// Prints the answer to `prompt` of the base that `config` names, with its adapters.
///
/// # Errors
/// Those of [`Answerer`].
pub fn run(config: &Config, prompt: &str) -> Result<()> {
    let answer = Answerer::load(config, MAX_NEW_TOKENS)?.answer(prompt, MAX_NEW_TOKENS)?;
    say(&format!("{}\n", answer.trim_end()));
    Ok(())
}
