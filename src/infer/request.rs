//! What is asked of a model, and what it answers.

use super::sample::{Sampler, Sampling};
use crate::by_dtype;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::tensor::{Float, Real, Tensor};

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
    /// [`Error::Shape`] if it has no prompt or asks for nothing, or passes the positions that the model was loaded for.
    pub(super) fn check(&self, model: &Model) -> Result<()> {
        let most = model.max_positions();
        let (prompt, new) = (self.prompt.len(), self.max_new_tokens);
        if prompt == 0 || new == 0 {
            return Err(Error::shape("request", format!("has {prompt} tokens of prompt and asks for {new} new ones")));
        }
        if prompt.saturating_add(new) > most {
            let why = format!("has {prompt} tokens; with {new} new ones it passes the {most} of the context");
            return Err(Error::shape("prompt", why));
        }
        Ok(())
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

/// An answer under way.
pub(super) struct Running<'a> {
    request: &'a Request,
    sampler: Sampler,
    /// Prompt and answer.
    ids: Vec<u32>,
}

impl<'a> Running<'a> {
    /// # Errors
    /// [`Error::Shape`] for settings of sampling that are out of bounds.
    pub fn new(request: &'a Request) -> Result<Self> {
        let sampler = Sampler::new(request.sampling.clone())?;
        Ok(Running { request, sampler, ids: request.prompt.clone() })
    }

    /// The last token, which the model has not read yet.
    pub fn last(&self) -> &[u32] {
        &self.ids[self.ids.len() - 1..]
    }

    pub fn adapter(&self) -> Option<usize> {
        self.request.adapter
    }

    /// Takes the next token from row `row` of `logits`; why the answer ends, where it does.
    ///
    /// # Errors
    /// As [`Sampler::pick`].
    pub fn take(
        &mut self,
        logits: &Tensor,
        row: usize,
        on_token: &mut dyn FnMut(u32) -> Control,
    ) -> Result<Option<Finish>> {
        let n = logits.cols();
        let mut logits: Vec<f32> = by_dtype!(logits.dtype(), T => {
            logits.read::<T>(row * n, n).into_iter().map(|x| x.acc().f64() as f32).collect()
        });
        let prompt = self.request.prompt.len();
        let token = self.sampler.pick(&mut logits, &self.ids, prompt, self.ids.len())?;
        if self.request.stops.contains(&token) {
            return Ok(Some(Finish::Stop));
        }
        self.ids.push(token);
        Ok(match on_token(token) {
            Control::Stop => Some(Finish::Stopped),
            Control::Continue if self.ids.len() - prompt >= self.request.max_new_tokens => Some(Finish::Length),
            Control::Continue => None,
        })
    }

    pub fn answer(mut self, finish: Finish) -> Answer {
        Answer { ids: self.ids.split_off(self.request.prompt.len()), finish }
    }
}
