//! `generate`: one answer, to see what a model has learned.

use super::say;
use crate::config::Config;
use crate::data::{Message, Role};
use crate::error::Result;
use crate::infer;
use crate::model;
use crate::train::{Control, Event, Inputs, plan, target};

/// Tokens of an answer at most.
const MAX_NEW_TOKENS: usize = 128;

/// Prints the most likely answer to `prompt` of the base that `config` names, with its adapters.
///
/// # Errors
/// Whatever is wrong with model, adapter, tokenizer or template; [`crate::Error::Shape`] for a prompt that is too long.
pub fn run(config: &Config, prompt: &str) -> Result<()> {
    let (folder, tokenizer, template) = Inputs::model(config, &mut |_: &Event<'_>| Control::Continue)?;
    let messages = [Message { role: Role::User, content: prompt.to_string() }];
    let thinking = config.data.enable_thinking;
    let ids = template.chat_prompt(&tokenizer, &messages, &template.default_system, "", thinking)?;
    let positions = config.data.cutoff_len.max(ids.len()) + MAX_NEW_TOKENS;
    let (device, target) = target::pick(config)?;
    // Without an adapter in the config a new one is made, whose B is zero: it changes nothing.
    let model = model::load(&folder, &plan::options(config, positions, &target), &device, &|_, _| {})?;
    let request = infer::Request {
        prompt: ids,
        max_new_tokens: MAX_NEW_TOKENS,
        stops: template.stop_ids(&tokenizer),
        sampling: infer::Sampling::greedy(),
        adapter: None,
    };
    let answers = infer::generate(&model, &[request], 1, &mut |_, _| infer::Control::Continue)?;
    for answer in answers {
        say(&format!("{}\n", tokenizer.decode(&answer.ids, true)?.trim_end()));
    }
    Ok(())
}
