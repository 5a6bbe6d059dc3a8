//! Text from a loaded model.
//!
//! Greedy, one sequence, every token by a pass over the whole sequence: enough to look at what was learned. The cost
//! grows with the square of the length.

use crate::data::batch::Padding;
use crate::data::{Batch, Sample};
use crate::error::{Error, Result};
use crate::model::Model;

/// Continues `prompt` with the most likely token each time, until one of `stops` or `max_new_tokens` of them; the stop
/// itself is left out.
///
/// # Errors
/// [`Error::Shape`] if prompt and answer are longer than the model was loaded for, or an id lies beyond the vocabulary.
pub fn greedy(model: &Model, prompt: &[u32], stops: &[u32], max_new_tokens: usize) -> Result<Vec<u32>> {
    if prompt.len().saturating_add(max_new_tokens) > model.max_positions() {
        let why = format!("has {} tokens; with {max_new_tokens} more it passes {}", prompt.len(), model.max_positions());
        return Err(Error::shape("prompt", why));
    }
    let mut ids = prompt.to_vec();
    for _ in 0..max_new_tokens {
        let next = most_likely(model, &ids)?;
        if stops.contains(&next) {
            break;
        }
        ids.push(next);
    }
    Ok(ids.split_off(prompt.len()))
}

<<<<<<< HEAD
/// The most likely token after `ids`; the lowest of several.
fn most_likely(model: &Model, ids: &[u32]) -> Result<u32> {
    let tokens = ids.len() as u32;
    let sample =
        Sample { ids: ids.to_vec(), trained: vec![false; ids.len()], pieces: vec![tokens], ..Sample::default() };
    let batch = Batch::collate(&[&sample], Padding { multiple_of: 1, at_least: 0 });
    let logits = model.logits(&batch, &[tokens.saturating_sub(1)])?.to_f64();
    let best = logits.iter().enumerate().fold((0, f64::NEG_INFINITY), |m, (i, &x)| if x > m.1 { (i, x) } else { m });
    Ok(best.0 as u32)
=======
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
>>>>>>> cli
}
