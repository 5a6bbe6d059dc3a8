//! Answers from a loaded model.
//!
//! Greedy, one sequence, every token by a pass over the whole sequence: enough to look at what was learned. The cost
//! grows with the square of the length.

use crate::config::Config;
use crate::data::batch::Padding;
use crate::data::template::Template;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Batch, Message, Role, Sample};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::model::{self, Model};
use crate::train::{Inputs, plan, threads};

/// A model with what is needed to talk to it.
pub struct Answerer {
    model: Model,
    tokenizer: Tokenizer,
    template: Template,
    enable_thinking: Option<bool>,
    system: String,
}

impl Answerer {
    /// Loads the base of a config with its adapters, for answers of up to `max_new_tokens` tokens after prompts that
    /// together fit `cutoff_len`.
    ///
    /// # Errors
    /// Whatever is wrong with model, adapter, tokenizer or template.
    pub fn load(config: &Config, max_new_tokens: usize) -> Result<Self> {
        let (folder, tokenizer, template) =
            Inputs::model(config, &mut |_: &crate::train::Event<'_>| crate::train::Control::Continue)?;
        let positions = config.data.cutoff_len.saturating_add(max_new_tokens);
        let n = threads(config);
        // A config without an adapter would get an empty one; B is then zero and changes nothing.
        let model = model::load(&folder, &plan::options(config, positions, n), &Device::cpu(n), &|_, _| {})?;
        let system = template.default_system.clone();
        Ok(Answerer { model, tokenizer, template, enable_thinking: config.data.enable_thinking, system })
    }

    /// The most likely answer to `question`, of at most `max_new_tokens` tokens.
    ///
    /// # Errors
    /// [`Error::Config`] if prompt and answer do not fit into `cutoff_len` plus `max_new_tokens`.
    pub fn answer(&self, question: &str, max_new_tokens: usize) -> Result<String> {
        let messages = [Message { role: Role::User, content: question.to_string() }];
        let mut ids = self.template.chat_prompt(&self.tokenizer, &messages, &self.system, "", self.enable_thinking)?;
        let start = ids.len();
        if start + max_new_tokens > self.model.max_positions() {
            let why = format!("is too short for a prompt of {start} tokens");
            return Err(Error::config("cutoff_len", why));
        }
        let stops = self.template.stop_ids(&self.tokenizer);
        for _ in 0..max_new_tokens {
            let next = self.next(&ids)?;
            if stops.contains(&next) {
                break;
            }
            ids.push(next);
        }
        self.tokenizer.decode(&ids[start..], true)
    }

    /// The most likely token after `ids`; the lowest of several.
    fn next(&self, ids: &[u32]) -> Result<u32> {
        let sample = Sample {
            ids: ids.to_vec(),
            trained: vec![false; ids.len()],
            pieces: vec![ids.len() as u32],
            block_diagonal: false,
        };
        let batch = Batch::collate(&[&sample], Padding { multiple_of: 1, at_least: 0 });
        let logits = self.model.logits(&batch, &[ids.len() as u32 - 1])?.to_f64();
        let best =
            logits.iter().enumerate().fold((0, f64::NEG_INFINITY), |m, (i, &x)| if x > m.1 { (i, x) } else { m });
        Ok(best.0 as u32)
    }
}
