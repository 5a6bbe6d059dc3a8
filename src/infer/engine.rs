//! Continuous batching: requests join and leave the running batch at every step. (Yu et al. 2022, Orca, section 3.1.)
//!
//! A step reads one token of each answer under way and some tokens of prompts, a piece at a time, so that a long prompt does not
//! hold up the others. A request is admitted when the cache has room for the whole of it, so none is ever thrown out. Its tokens
//! do not depend on what else runs.

use std::collections::VecDeque;

use super::request::{Control, Finish, Next, Request, Running, Token, pick};
use crate::error::{Error, Result};
use crate::model::{Cache, Model, PAGE, PIECE, Part, Sequence};

/// What an engine has room for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Room {
    /// Sequences in the batch at most.
    pub batch: usize,
    /// Pages of the cache.
    pub pages: usize,
    /// Tokens of a prompt and its answer at most.
    pub longest: usize,
}

/// What becomes of a request.
#[derive(Debug)]
pub enum Event {
    /// The prompt is read. `cached`: tokens of it that were in the cache already.
    Begun {
        cached: usize,
    },
    Token(Token),
    /// Nothing follows.
    End(Finish),
    /// This request alone failed; nothing follows.
    Failed(Error),
}

/// A request, by a number that is never used again.
pub type Id = u64;

/// Requests under way.
pub struct Engine {
    cache: Cache,
    batch: usize,
    waiting: VecDeque<(Id, Request)>,
    slots: Vec<Slot>,
    /// Whose prompts are not read yet, in the order in which they get their next piece.
    turns: VecDeque<Id>,
    next: Id,
    counts: Counts,
}

/// Since the start.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub steps: u64,
    /// Tokens of prompts that were read, and those that were in the cache already.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub new_tokens: u64,
    /// Sequences of the last step.
    pub batch: usize,
}

/// A request in the batch.
struct Slot {
    id: Id,
    sequence: Sequence,
    running: Running,
    /// Tokens of the prompt that were in the cache already; None before the first piece.
    cached: Option<usize>,
    /// What tells its pages from those of another adapter.
    of: u64,
}

impl Slot {
    /// Tokens that are not read yet.
    fn unread(&self) -> &[u32] {
        &self.running.ids()[self.sequence.len()..]
    }

    fn is_answering(&self) -> bool {
        self.running.ids().len() > self.running.request().prompt.len()
    }
}

impl Engine {
    /// # Errors
    /// [`Error::Memory`] if the cache does not fit.
    pub fn new(model: &Model, room: Room) -> Result<Engine> {
        let cache = Cache::of_pages(model, room.pages, room.longest)?;
        Ok(Engine {
            cache,
            batch: room.batch.max(1),
            waiting: VecDeque::new(),
            slots: Vec::new(),
            turns: VecDeque::new(),
            next: 0,
            counts: Counts::default(),
        })
    }

    /// Takes a request, which waits until there is room.
    ///
    /// # Errors
    /// Those of [`Request::check`]; [`Error::Shape`] for one that is longer than the whole cache.
    pub fn add(&mut self, model: &Model, request: Request) -> Result<Id> {
        request.check(model)?;
        let (tokens, most) = (request.prompt.len() + request.max_new_tokens, self.cache.longest());
        if tokens > most {
            let why = format!("and answer have {tokens} tokens, the cache has room for {most}");
            return Err(Error::shape("prompt", why));
        }
        let id = self.next;
        self.next += 1;
        self.waiting.push_back((id, request));
        Ok(id)
    }

    /// Ends requests, waiting or running, about which nobody needs to hear.
    pub fn end(&mut self, is_over: impl Fn(Id) -> bool) {
        self.waiting.retain(|(id, _)| !is_over(*id));
        let over: Vec<usize> = (0..self.slots.len()).rev().filter(|&i| is_over(self.slots[i].id)).collect();
        for i in over {
            self.close(i);
        }
    }

    pub fn is_idle(&self) -> bool {
        self.waiting.is_empty() && self.slots.is_empty()
    }

    pub fn waiting(&self) -> usize {
        self.waiting.len()
    }

    pub fn running(&self) -> usize {
        self.slots.len()
    }

    pub fn cache(&self) -> &Cache {
        &self.cache
    }

    pub fn counts(&self) -> Counts {
        self.counts
    }

    /// Whether a request, waiting or running, uses the adapter.
    pub fn uses(&self, adapter: usize) -> bool {
        let requests = self.waiting.iter().map(|(_, r)| r).chain(self.slots.iter().map(|s| s.running.request()));
        requests.into_iter().any(|r| r.adapter == Some(adapter))
    }

    /// One step; `on_event` hears of every token and end, and may end a request at a token.
    ///
    /// # Errors
    /// Those of [`Model::read_parts`], which concern every request; all are then as before the step. And those of
    /// [`crate::model::Logits::pick`]: what was read then has no next token, so that no request of the step can go on.
    pub fn step(&mut self, model: &Model, on_event: &mut dyn FnMut(Id, Event) -> Control) -> Result<()> {
        self.admit(on_event);
        let pieces = self.pieces();
        let mut places = Vec::with_capacity(pieces.len());
        let mut parts = Vec::with_capacity(pieces.len());
        for (place, (slot, n)) in self.slots.iter_mut().zip(&pieces).enumerate().filter(|(_, (_, n))| **n > 0) {
            let Slot { sequence, running, .. } = slot;
            let unread = &running.ids()[sequence.len()..];
            let (adapter, asks) = (running.request().adapter, *n == unread.len());
            parts.push(Part { ids: &unread[..*n], sequence, adapter, asks });
            places.push((place, asks));
        }
        if parts.is_empty() {
            return Ok(());
        }
        let read: usize = parts.iter().map(|p| p.ids.len()).sum();
        let logits = model.read_parts(&mut self.cache, &mut parts)?;
        drop(parts);
        self.counts.steps += 1;
        self.counts.batch = places.len();
        let answering = places.iter().filter(|(place, _)| self.slots[*place].is_answering()).count();
        self.counts.prompt_tokens += (read - answering) as u64;
        let mut parts = vec![None; self.slots.len()];
        for (part, &(place, asks)) in places.iter().enumerate() {
            parts[place] = asks.then_some(part);
        }
        let answers = self.slots.iter_mut().zip(parts);
        let answers = answers.filter_map(|(slot, part)| Some((part?, &mut slot.running)));
        let mut picked = pick(model, &logits, answers)?.into_iter().peekable();
        let mut ended = Vec::new();
        for (part, (place, asks)) in places.into_iter().enumerate() {
            self.keep(model, place);
            if !asks {
                continue;
            }
            let slot = &mut self.slots[place];
            let id = slot.id;
            if !slot.is_answering() {
                on_event(id, Event::Begun { cached: slot.cached.unwrap_or(0) });
            }
            let mut new = 0;
            let next = match picked.next_if(|(other, _)| *other == part) {
                Some((_, picked)) => Next::Picked(picked),
                None => Next::Row(logits.of(part)),
            };
            let taken = slot.running.take(next, &mut |token| {
                new += 1;
                on_event(id, Event::Token(token))
            });
            self.counts.new_tokens += new;
            let event = match taken {
                Ok(None) => continue,
                Ok(Some(finish)) => Event::End(finish),
                Err(e) => Event::Failed(e),
            };
            on_event(id, event);
            ended.push(place);
        }
        // From the last on, so that the places of the others stay.
        ended.into_iter().rev().for_each(|place| self.close(place));
        Ok(())
    }

    /// Moves requests into the batch, in their order, as far as there is room.
    fn admit(&mut self, on_event: &mut dyn FnMut(Id, Event) -> Control) {
        while self.slots.len() < self.batch {
            let Some((_, request)) = self.waiting.front() else { return };
            let of = request.adapter.map_or(0, |a| a as u64 + 1);
            // What it will share counts, and is not given up for it.
            let tokens = request.prompt.len() + request.max_new_tokens;
            let Some(sequence) = self.cache.take_after(tokens, of, &request.prompt) else { return };
            let Some((id, request)) = self.waiting.pop_front() else { return };
            match Running::new(request) {
                Ok(running) => {
                    self.slots.push(Slot { id, sequence, running, cached: None, of });
                    self.turns.push_back(id);
                }
                Err(e) => {
                    self.cache.release(sequence);
                    on_event(id, Event::Failed(e));
                }
            }
        }
    }

    /// How many tokens of each slot this step reads: one of each answer; and of prompts PIECE or a little more, each prompt getting its
    /// turn.
    fn pieces(&mut self) -> Vec<usize> {
        let mut pieces: Vec<usize> = self.slots.iter().map(|s| usize::from(s.is_answering())).collect();
        let (mut left, mut read, mut later) = (PIECE, Vec::new(), Vec::new());
        while let Some(id) = self.turns.pop_front() {
            let Some(place) = self.slots.iter().position(|s| s.id == id) else { continue };
            if left == 0 || read.iter().any(|&other| self.begin_alike(other, place)) {
                later.push(id);
                continue;
            }
            self.begin(place);
            let slot = &self.slots[place];
            let piece = slot.unread().len().min(PIECE - slot.sequence.len() % PIECE);
            pieces[place] = piece;
            left = left.saturating_sub(piece);
            read.push(place);
        }
        // Those that had their turn come last.
        let unread = |place: &usize| self.slots[*place].unread().len() > pieces[*place];
        let again = read.iter().filter(|place| unread(place)).map(|&place| self.slots[place].id);
        self.turns = later.into_iter().chain(again).collect();
        pieces
    }

    /// Whether the prompt of `place`, of which nothing is read, begins with a page that `other` reads in this step: in the next one
    /// it need not be read again.
    fn begin_alike(&self, other: usize, place: usize) -> bool {
        let (other, slot) = (&self.slots[other], &self.slots[place]);
        let beginning = slot.sequence.len() + PAGE;
        slot.cached.is_none()
            && slot.of == other.of
            && other.sequence.len() < beginning
            && slot.running.ids().len() > beginning
            && slot.running.ids().get(..beginning) == other.running.ids().get(..beginning)
    }

    /// Before the first piece of a prompt: what others have read since it was admitted is not read again.
    fn begin(&mut self, place: usize) {
        let slot = &mut self.slots[place];
        if slot.cached.is_some() {
            return;
        }
        let prompt = &slot.running.request().prompt;
        let tokens = prompt.len() + slot.running.request().max_new_tokens;
        let untouched = std::mem::replace(&mut slot.sequence, Sequence::none());
        self.cache.release(untouched);
        let of = slot.of;
        let Some(sequence) = self.cache.take_after(tokens, of, prompt) else {
            unreachable!("at least as many pages were given back just now")
        };
        slot.cached = Some(sequence.len());
        self.counts.cached_tokens += sequence.len() as u64;
        slot.sequence = sequence;
    }

    /// Keeps what was read for prompts to come.
    fn keep(&mut self, model: &Model, place: usize) {
        let Slot { sequence, running, of, .. } = &mut self.slots[place];
        // On kernels the tokens of an answer have other bits than those of a prompt.
        let ids = if model.any_cut() { running.ids() } else { &running.request().prompt };
        self.cache.keep(sequence, *of, ids);
    }

    fn close(&mut self, place: usize) {
        let slot = self.slots.remove(place);
        self.turns.retain(|id| *id != slot.id);
        self.cache.release(slot.sequence);
    }
}
