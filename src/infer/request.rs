//! What is asked of a model, and what it answers.

use super::sample::{Sampler, Sampling};
use crate::error::{Error, Result};
use crate::model::{Logits, Model};
use crate::ops::sample::{Ask, Picked};

/// A prompt and how to continue it.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// Token ids, at least one.
    pub prompt: Vec<u32>,
    /// At least 1. With the prompt it must not pass the positions that the model was loaded for.
    pub max_new_tokens: usize,
    /// Tokens that end the answer.
    pub stops: Vec<u32>,
    pub sampling: Sampling,
    /// Which of the attached adapters answers; None: the model as it is.
    pub adapter: Option<usize>,
    /// Whether each token comes with its probability, and with those of so many of the likeliest tokens.
    pub logprobs: Option<usize>,
}

/// A new token.
#[derive(Debug, Clone, PartialEq)]
pub struct Token {
    pub id: u32,
    /// Where the request asked for them.
    pub logprobs: Option<Logprobs>,
}

/// Natural logarithms of probabilities, of the model's logits as they are: before penalties and temperature.
#[derive(Debug, Clone, PartialEq)]
pub struct Logprobs {
    pub chosen: f32,
    /// The likeliest tokens, descending.
    pub top: Vec<(u32, f32)>,
}

impl Request {
    /// # Errors
    /// Those of [`Request::fits`]; [`Error::Shape`] if it names an adapter that is not there.
    pub fn check(&self, model: &Model) -> Result<()> {
        self.fits(model.max_positions(), model.spec.vocab)?;
        model.check_adapter(self.adapter)
    }

    /// Checks it for a model that has `vocab` tokens and was loaded for `most` positions.
    ///
    /// # Errors
    /// [`Error::Shape`] if it has no prompt or asks for nothing, passes the positions, or names a token that is not there;
    /// [`Error::Config`] for settings of sampling that are out of bounds.
    pub fn fits(&self, most: usize, vocab: usize) -> Result<()> {
        let (prompt, new) = (self.prompt.len(), self.max_new_tokens);
        if prompt == 0 || new == 0 {
            return Err(Error::shape("request", format!("has {prompt} tokens of prompt and asks for {new} new ones")));
        }
        if prompt.saturating_add(new) > most {
            let why = format!("has {prompt} tokens; with {new} new ones it passes the {most} of the context");
            return Err(Error::shape("prompt", why));
        }
        if let Some(id) = self.prompt.iter().find(|&&id| id as usize >= vocab) {
            return Err(Error::shape("prompt", format!("holds token {id}, the vocabulary has {vocab}")));
        }
        self.sampling.check()
    }
}

/// What the receiver of a token wants.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    Continue,
    /// Ends this answer; the token is part of it.
    Stop,
}

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Finish {
    /// One of the request's stop tokens.
    Stop,
    /// `max_new_tokens`.
    Length,
    /// The receiver of the tokens.
    Stopped,
}

/// What a request gave.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    /// The new tokens, the stop token left out.
    pub ids: Vec<u32>,
    pub finish: Finish,
}

/// What a token is taken from.
pub(super) enum Next {
    /// What [`Running::ask`] asked for.
    Picked(Picked),
    /// All logits (vocabulary).
    Row(Vec<f32>),
}

/// What the answers take their next tokens from, those that are not read as whole rows: of each the part of `logits` that it asked for.
/// One launch for all.
///
/// # Errors
/// As [`Logits::pick`] and [`Sampler::ask`].
pub(super) fn pick<'a>(
    model: &Model,
    logits: &Logits,
    answers: impl Iterator<Item = (usize, &'a mut Running)>,
) -> Result<Vec<(usize, Picked)>> {
    if model.any_cut() {
        // The CPU has the rows at hand.
        return Ok(Vec::new());
    }
    let mut asks = Vec::new();
    for (part, running) in answers {
        asks.extend(running.ask(model.spec.vocab)?.map(|ask| (part, ask)));
    }
    let picked = logits.pick(&asks)?;
    Ok(asks.iter().zip(picked).filter_map(|(&(part, _), picked)| Some((part, picked?))).collect())
}

/// An answer under way.
pub(super) struct Running {
    request: Request,
    sampler: Sampler,
    /// Prompt and answer.
    ids: Vec<u32>,
}

impl Running {
    /// # Errors
    /// [`Error::Config`] for settings of sampling that are out of bounds.
    pub fn new(request: Request) -> Result<Self> {
        let sampler = Sampler::new(request.sampling.clone())?;
        Ok(Running { sampler, ids: request.prompt.clone(), request })
    }

    pub fn request(&self) -> &Request {
        &self.request
    }

    /// Prompt and answer, the last of which the model has not read yet.
    pub fn ids(&self) -> &[u32] {
        &self.ids
    }

    /// What of `vocab` logits the next token is chosen from; None: all of them.
    ///
    /// # Errors
    /// As [`Sampler::ask`].
    pub fn ask(&mut self, vocab: usize) -> Result<Option<Ask<'_>>> {
        match self.request.logprobs {
            Some(_) => Ok(None),
            None => self.sampler.ask(vocab, &self.ids, self.request.prompt.len()),
        }
    }

    /// Takes the next token from `next`; why the answer ends, where it does.
    ///
    /// # Errors
    /// As [`Sampler::pick`].
    pub fn take(&mut self, next: Next, on_token: &mut dyn FnMut(Token) -> Control) -> Result<Option<Finish>> {
        let (prompt, position) = (self.request.prompt.len(), self.ids.len());
        let asked = self.request.logprobs;
        let (id, plain) = match next {
            Next::Picked(picked) => (self.sampler.pick_from(&picked, position)?, None),
            Next::Row(mut logits) => {
                let plain = asked.map(|_| logits.clone());
                (self.sampler.pick(&mut logits, &self.ids, prompt, position)?, plain)
            }
        };
        if self.request.stops.contains(&id) {
            return Ok(Some(Finish::Stop));
        }
        self.ids.push(id);
        let logprobs = plain.zip(asked).map(|(plain, most)| logprobs(&plain, id, most));
        Ok(match on_token(Token { id, logprobs }) {
            Control::Stop => Some(Finish::Stopped),
            Control::Continue if self.ids.len() - prompt >= self.request.max_new_tokens => Some(Finish::Length),
            Control::Continue => None,
        })
    }

    pub fn answer(mut self, finish: Finish) -> Answer {
        Answer { ids: self.ids.split_off(self.request.prompt.len()), finish }
    }
}

/// log softmax of finite `logits`, at `chosen` and at the `most` largest; of equals the lower ids come first.
fn logprobs(logits: &[f32], chosen: u32, most: usize) -> Logprobs {
    let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    let sum: f64 = logits.iter().map(|&x| f64::from(x - max).exp()).sum();
    let norm = f64::from(max) + sum.ln();
    let of = |id: u32| (f64::from(logits[id as usize]) - norm) as f32;
    let order = |a: &u32, b: &u32| logits[*b as usize].total_cmp(&logits[*a as usize]).then(a.cmp(b));
    let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
    let most = most.min(ids.len());
    if (1..ids.len()).contains(&most) {
        ids.select_nth_unstable_by(most - 1, order);
    }
    ids.truncate(most);
    ids.sort_unstable_by(order);
    Logprobs { chosen: of(chosen), top: ids.into_iter().map(|id| (id, of(id))).collect() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn logprobs_are_a_log_softmax() {
        let logits = [1.0f32, 3.0, 3.0, -50.0, 2.0];
        let got = logprobs(&logits, 4, 3);
        assert_eq!(got.top.iter().map(|t| t.0).collect::<Vec<_>>(), [1, 2, 4]);
        let sum: f64 = logits.iter().map(|&x| f64::from(x).exp()).sum();
        for (id, p) in got.top {
            // One rounding to f32 of a number below 4.
            assert!((f64::from(p) - f64::from(logits[id as usize]) + sum.ln()).abs() <= 4.0 * 2f64.powi(-24), "{id}");
            assert_eq!(id == 4, p == got.chosen);
        }
        assert_eq!(logprobs(&logits, 0, 0).top, []);
        let all: f64 = logprobs(&logits, 0, 99).top.iter().map(|t| f64::from(t.1).exp()).sum();
        assert!((all - 1.0).abs() < 1e-6, "{all}");
    }
}
