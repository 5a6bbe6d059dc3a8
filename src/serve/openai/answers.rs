//! The answers to one request as they come: tokens become pieces of text, until each answer has ended.
//!
//! Nothing runs in the background: whoever polls gets what there is, and dropping it all ends every sequence at once.

use std::collections::VecDeque;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::time::{Instant, Sleep};

use super::error::ApiError;
use super::logprobs::{Scored, score};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::infer::text::{StopStrings, Streamer};
use crate::infer::{Finish, Token};
use crate::serve::log::Record;
use crate::serve::worker::{Ticket, Update};

/// Why an answer ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) enum Reason {
    Stop,
    Length,
}

impl Reason {
    pub fn name(self) -> &'static str {
        match self {
            Reason::Stop => "stop",
            Reason::Length => "length",
        }
    }
}

/// A part of an answer.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Piece {
    /// Which of the request's answers.
    pub index: usize,
    pub text: String,
    /// Of the tokens since the last piece, where the request asked.
    pub logprobs: Vec<Scored>,
    /// With the last piece.
    pub finish: Option<Reason>,
}

/// Tokens of a request.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(in crate::serve) struct Usage {
    pub prompt: usize,
    pub completion: usize,
    pub cached: usize,
}

/// One answer.
struct Answer {
    /// None: it has ended.
    ticket: Option<Ticket>,
    streamer: Option<Streamer<Arc<Tokenizer>>>,
    stops: StopStrings,
    /// Of tokens whose text is held back.
    logprobs: Vec<Scored>,
}

/// All answers to a request.
pub(in crate::serve) struct Answers {
    answers: Vec<Answer>,
    tokenizer: Arc<Tokenizer>,
    /// Answers to each prompt.
    n: usize,
    /// Tokens of each prompt that were in the cache; they are known once it is read.
    cached: Vec<usize>,
    usage: Usage,
    ready: VecDeque<Piece>,
    deadline: Pin<Box<Sleep>>,
    limit: Duration,
    over: bool,
    record: Arc<Record>,
}

impl Answers {
    /// Of `tickets`, `n` for each of the prompts, of `prompt` tokens together; they must come within `limit` of the request.
    ///
    /// # Errors
    /// [`Error::Config`] for stop strings that are none.
    pub fn new(
        tickets: Vec<Ticket>,
        (n, prompt): (usize, usize),
        stops: &[String],
        tokenizer: &Arc<Tokenizer>,
        limit: Duration,
        record: Arc<Record>,
    ) -> Result<Answers> {
        let stops = StopStrings::new(stops.to_vec())?;
        let n = n.max(1);
        let cached = vec![0; tickets.len().div_ceil(n)];
        let answer = |ticket| Answer {
            ticket: Some(ticket),
            streamer: Some(Streamer::new(tokenizer.clone())),
            stops: stops.clone(),
            logprobs: Vec::new(),
        };
        Ok(Answers {
            answers: tickets.into_iter().map(answer).collect(),
            tokenizer: tokenizer.clone(),
            n,
            cached,
            usage: Usage { prompt, ..Usage::default() },
            ready: VecDeque::new(),
            deadline: Box::pin(tokio::time::sleep_until(Instant::from_std(record.began()) + limit)),
            limit,
            over: false,
            record,
        })
    }

    pub fn len(&self) -> usize {
        self.answers.len()
    }

    pub fn record(&self) -> &Record {
        &self.record
    }

    /// Whole once all answers have ended.
    pub fn usage(&self) -> Usage {
        Usage { cached: self.cached.iter().sum::<usize>().min(self.usage.prompt), ..self.usage }
    }

    /// The next piece; None after the last piece of the last answer. After an error all have ended.
    pub fn poll_next(&mut self, cx: &mut Context<'_>) -> Poll<Option<std::result::Result<Piece, ApiError>>> {
        loop {
            if let Some(piece) = self.ready.pop_front() {
                self.record.answer(&piece.text);
                return Poll::Ready(Some(Ok(piece)));
            }
            if self.over {
                return Poll::Ready(None);
            }
            if self.answers.iter().all(|a| a.ticket.is_none()) {
                self.over = true;
                self.record.tokens_cached.store(self.usage().cached as u64, Relaxed);
                self.record.complete();
                continue;
            }
            if self.deadline.as_mut().poll(cx).is_ready() {
                return Poll::Ready(Some(Err(self.fail(ApiError::timeout(self.limit.as_secs_f64())))));
            }
            for index in 0..self.answers.len() {
                while let Some(ticket) = self.answers[index].ticket.as_mut() {
                    let Poll::Ready(update) = ticket.updates.poll_recv(cx) else { break };
                    if let Err(e) = self.take(index, update) {
                        return Poll::Ready(Some(Err(self.fail(e))));
                    }
                }
            }
            if self.ready.is_empty() && self.answers.iter().any(|a| a.ticket.is_some()) {
                return Poll::Pending;
            }
        }
    }

    /// The next piece, as [`Answers::poll_next`].
    pub async fn next(&mut self) -> Option<std::result::Result<Piece, ApiError>> {
        std::future::poll_fn(|cx| self.poll_next(cx)).await
    }

    /// Ends every sequence.
    fn fail(&mut self, e: ApiError) -> ApiError {
        self.answers.iter_mut().for_each(|a| a.ticket = None);
        self.ready.clear();
        self.over = true;
        self.record.error(e.code.unwrap_or(e.kind));
        e
    }

    fn take(&mut self, index: usize, update: Option<Update>) -> std::result::Result<(), ApiError> {
        let broken = |e: Error| ApiError::failed(format!("the answer cannot be written: {e}"));
        let piece = match update {
            Some(Update::Begun { cached }) => {
                if let Some(known) = self.cached.get_mut(index / self.n).filter(|_| index.is_multiple_of(self.n)) {
                    *known = cached;
                }
                None
            }
            Some(Update::Token(token)) => {
                self.usage.completion += 1;
                self.record.token();
                self.answers[index].hear(&token, &self.tokenizer).map_err(broken)?
            }
            Some(Update::End(finish)) => {
                let reason = match finish {
                    Finish::Stop => Reason::Stop,
                    Finish::Length => Reason::Length,
                    Finish::Stopped => return Err(ApiError::stopping()),
                };
                Some(self.answers[index].end(reason).map_err(broken)?)
            }
            // The worker was stopped before the answer was whole.
            None => return Err(ApiError::stopping()),
            Some(Update::Failed(e)) => return Err(ApiError::failed(format!("the model failed: {e}"))),
        };
        if let Some((text, logprobs, finish)) = piece {
            self.ready.push_back(Piece { index, text, logprobs, finish });
        }
        Ok(())
    }
}

type Part = (String, Vec<Scored>, Option<Reason>);

impl Answer {
    /// What a token settles; None if nothing is to be said yet.
    fn hear(&mut self, token: &Token, tokenizer: &Tokenizer) -> Result<Option<Part>> {
        if let Some(logprobs) = &token.logprobs {
            self.logprobs.push(score(tokenizer, token.id, logprobs)?);
        }
        let Some(streamer) = &mut self.streamer else { return Ok(None) };
        let Some(piece) = streamer.push(token.id)? else { return Ok(None) };
        let shown = self.stops.push(&piece);
        if shown.stopped {
            self.ticket = None;
            return Ok(Some((shown.text, std::mem::take(&mut self.logprobs), Some(Reason::Stop))));
        }
        Ok(match shown.text.is_empty() {
            true => None,
            false => Some((shown.text, std::mem::take(&mut self.logprobs), None)),
        })
    }

    /// The rest, where no stop string ended the answer.
    fn end(&mut self, reason: Reason) -> Result<Part> {
        self.ticket = None;
        let rest = self.streamer.take().map(Streamer::finish).transpose()?.unwrap_or_default();
        let mut shown = self.stops.push(&rest);
        if !shown.stopped {
            shown.text.push_str(&std::mem::replace(&mut self.stops, StopStrings::new(Vec::new())?).finish());
        }
        let reason = if shown.stopped { Reason::Stop } else { reason };
        Ok((shown.text, std::mem::take(&mut self.logprobs), Some(reason)))
    }
}
