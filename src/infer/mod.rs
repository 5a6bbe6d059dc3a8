//! Text from a loaded model.
//!
//! Greedy, one sequence, every token by a pass over the whole sequence: enough to look at what was learned. The cost
//! grows with the square of the length.

pub mod sample;
pub mod text;

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
        let why =
            format!("has {} tokens; with {max_new_tokens} more it passes {}", prompt.len(), model.max_positions());
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

/// The most likely token after `ids`; the lowest of several.
fn most_likely(model: &Model, ids: &[u32]) -> Result<u32> {
    let tokens = ids.len() as u32;
    let sample =
        Sample { ids: ids.to_vec(), trained: vec![false; ids.len()], pieces: vec![tokens], ..Sample::default() };
    let batch = Batch::collate(&[&sample], Padding { multiple_of: 1, at_least: 0 });
    let logits = model.logits(&batch, &[tokens.saturating_sub(1)])?.to_f64();
    let best = logits.iter().enumerate().fold((0, f64::NEG_INFINITY), |m, (i, &x)| if x > m.1 { (i, x) } else { m });
    Ok(best.0 as u32)
}
