//! The thread that owns the model: requests come to it from any thread, and their tokens go back as they are made.

use std::path::Path;

use tokio::sync::mpsc::UnboundedReceiver;

use crate::error::{Error, Result};
use crate::infer::{Finish, Request, Token};
use crate::model::Model;

/// What a worker is given.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Sequences in the running batch at most.
    pub batch: usize,
    /// Tokens whose keys and values are kept, over all sequences.
    pub cache_tokens: usize,
    /// Requests that wait at most; one more is refused.
    pub queue: usize,
}

/// The way to the thread. Cheap to clone.
#[derive(Clone)]
pub struct Worker {}

/// A request under way. Dropping it ends the request at the next step.
pub struct Ticket {
    pub updates: UnboundedReceiver<Update>,
}

/// What becomes of a request. After `End` or `Failed` nothing follows.
#[derive(Debug)]
pub enum Update {
    Token(Token),
    End {
        finish: Finish,
        /// Tokens of the prompt that were in the cache already.
        cached: usize,
    },
    /// This request alone failed.
    Failed(Error),
}

/// Why a request was not taken.
#[derive(Debug)]
pub enum Refused {
    /// As many wait as may.
    Full,
    /// The worker is stopping.
    Stopping,
    /// The request can never be answered: it is malformed, or longer than the context or the whole cache.
    Wrong(Error),
}

/// How much is going on.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Load {
    /// Sequences in the batch.
    pub running: usize,
    pub waiting: usize,
    /// Pages of the cache, of [`crate::model::PAGE`] tokens each.
    pub pages: usize,
    /// Those that a running sequence holds.
    pub pages_used: usize,
    /// Those kept for the prefixes of requests to come; they are given up when they are needed.
    pub pages_kept: usize,
    /// Steps since the start.
    pub steps: u64,
    /// Tokens that were read as prompts since the start, without those found in the cache; and those.
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    /// Tokens that were made since the start.
    pub new_tokens: u64,
}

impl Worker {
    /// Starts the thread.
    ///
    /// # Errors
    /// [`Error::Memory`] if the cache does not fit.
    pub fn start(_model: Model, _limits: Limits) -> Result<Worker> {
        Err(Error::NotYet("the worker".into()))
    }

    /// Takes a request, which is answered as soon as there is room.
    pub fn submit(&self, _request: Request) -> std::result::Result<Ticket, Refused> {
        Err(Refused::Stopping)
    }

    /// Loads the adapter in `path` beside the others, while requests run; the number by which requests name it. Blocks
    /// until it is there.
    ///
    /// # Errors
    /// Those of [`Model::attach`]; nothing has changed then.
    pub fn load(&self, _path: &Path) -> Result<usize> {
        Err(Error::NotYet("the worker".into()))
    }

    /// Takes an adapter away as soon as the last request that uses it has ended; requests that name it from now on are
    /// refused. Returns at once.
    pub fn unload(&self, _adapter: usize) {}

    pub fn now(&self) -> Load {
        Load::default()
    }

    /// Refuses new requests from now on, and returns when the last one has ended, or after `limit`; those that had not
    /// ended are then cut off. True if all ended. Blocks.
    pub fn stop(&self, _limit: std::time::Duration) -> bool {
        true
    }
}
