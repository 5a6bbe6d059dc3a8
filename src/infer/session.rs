//! One conversation: what of a prompt was read before is not read again.

use super::request::{Answer, Control, Next, Request, Running, pick};
use crate::error::{Error, Result};
use crate::model::{Cache, Logits, Model, Sequence};

/// A conversation with a model, and its place in memory.
pub struct Session<'a> {
    model: &'a Model,
    cache: Cache,
    sequence: Sequence,
    /// The tokens whose keys and values are kept.
    read: Vec<u32>,
    /// The adapter that they were read with.
    adapter: Option<usize>,
}

/// On kernels so many new tokens of a prompt are always read as rows; more only if four times as many stand before them. Otherwise
/// all is read anew, in one pass.
const ROWS: usize = 64;

impl<'a> Session<'a> {
    /// Room for a conversation as long as the positions that the model was loaded for.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(model: &'a Model) -> Result<Self> {
        let room = model.max_positions();
        let mut cache = Cache::new(model, &[room])?;
        let sequence = cache.take(room).ok_or_else(|| Error::Memory("the cache has no room".into()))?;
        Ok(Session { model, cache, sequence, read: Vec::new(), adapter: None })
    }

    /// Answers a request whose prompt is the whole conversation so far; `on_token` gets each new token as it comes.
    ///
    /// # Errors
    /// As [`super::generate`].
    pub fn answer(&mut self, request: &Request, on_token: &mut dyn FnMut(u32) -> Control) -> Result<Answer> {
        request.check(self.model)?;
        let mut running = Running::new(request.clone())?;
        let mut unread = self.keep(request);
        loop {
            let logits = self.extend(request, &unread)?;
            let picked = pick(self.model, &logits, std::iter::once((0, &mut running)))?.pop();
            let next = picked.map_or_else(|| Next::Row(logits.of(0)), |(_, picked)| Next::Picked(picked));
            if let Some(finish) = running.take(next, &mut |token| on_token(token.id))? {
                return Ok(running.answer(finish));
            }
            unread = running.ids()[self.read.len()..].to_vec();
        }
    }

    /// Forgets what the request's prompt does not begin with; what is left of the prompt to read, at least its last token.
    fn keep(&mut self, request: &Request) -> Vec<u32> {
        let prompt = &request.prompt;
        let same = self.read.iter().zip(prompt).take_while(|(a, b)| a == b).count().min(prompt.len() - 1);
        let cheap = self.model.any_cut() || prompt.len() - same <= ROWS.max(same / 4);
        let known = self.adapter == request.adapter && cheap;
        let kept = if known { same } else { 0 };
        self.read.truncate(kept);
        self.sequence.truncate(kept);
        prompt[kept..].to_vec()
    }

    /// What the model says follows.
    fn extend(&mut self, request: &Request, ids: &[u32]) -> Result<Logits> {
        let logits = self.model.read(&mut self.cache, request.adapter, &mut self.sequence, ids)?;
        self.adapter = request.adapter;
        self.read.extend(ids);
        Ok(logits)
    }
}
