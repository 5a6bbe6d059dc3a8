//! A model that says what a test tells it to.

use std::path::Path;
use std::sync::{Mutex, MutexGuard};
use std::time::Duration;

use tokio::sync::mpsc::{UnboundedSender, unbounded_channel};

use super::worker::{Refused, Ticket, Update};
use crate::error::{Error, Result};
use crate::infer::{Finish, Logprobs, Request, Token};

/// What becomes of the requests to come.
#[derive(Debug, Clone)]
pub(super) enum Script {
    /// These tokens, as many as were asked for, and the end.
    Say(Vec<u32>),
    /// These tokens, and then nothing until the test goes on.
    Wait(Vec<u32>),
    /// These tokens, and then a failure.
    Fail(Vec<u32>),
    Full,
}

pub(super) struct Double {
    pub script: Mutex<Script>,
    pub asked: Mutex<Vec<Request>>,
    /// The other ends of requests that wait.
    pub waiting: Mutex<Vec<UnboundedSender<Update>>>,
    pub unloaded: Mutex<Vec<usize>>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap()
}

impl Double {
    pub fn new(script: Script) -> Double {
        Double {
            script: Mutex::new(script),
            asked: Mutex::default(),
            waiting: Mutex::default(),
            unloaded: Mutex::default(),
        }
    }

    pub fn submit(&self, request: Request) -> std::result::Result<Ticket, Refused> {
        let (to, updates) = unbounded_channel();
        let logprobs = |id: u32| {
            request
                .logprobs
                .map(|n| Logprobs { chosen: -0.5, top: (0..n as u32).map(|i| (id + i, -0.5 - i as f32)).collect() })
        };
        let say = |ids: &[u32]| {
            to.send(Update::Begun { cached: 2 }).unwrap();
            for &id in ids.iter().take(request.max_new_tokens) {
                to.send(Update::Token(Token { id, logprobs: logprobs(id) })).unwrap();
            }
        };
        match &*lock(&self.script) {
            Script::Full => return Err(Refused::Full),
            Script::Say(ids) => {
                say(ids);
                let finish = if ids.len() >= request.max_new_tokens { Finish::Length } else { Finish::Stop };
                to.send(Update::End(finish)).unwrap();
            }
            Script::Wait(ids) => {
                say(ids);
                lock(&self.waiting).push(to);
            }
            Script::Fail(ids) => {
                say(ids);
                let e = Error::Diverged { step: 1, why: "a logit is not finite".into() };
                to.send(Update::Failed(e.into())).unwrap();
            }
        }
        lock(&self.asked).push(request);
        Ok(Ticket { updates })
    }

    pub fn load(&self, path: &Path) -> Result<usize> {
        match path.join("adapter_config.json").exists() {
            true => Ok(7),
            false => Err(Error::file(path.join("adapter_config.json"), "cannot read")),
        }
    }

    pub fn unload(&self, adapter: usize) {
        lock(&self.unloaded).push(adapter);
    }

    pub fn stop(&self, _: Duration) -> bool {
        lock(&self.waiting).clear();
        true
    }

    /// How many of the requests that wait are still wanted.
    pub fn wanted(&self) -> usize {
        lock(&self.waiting).iter().filter(|to| !to.is_closed()).count()
    }
}
