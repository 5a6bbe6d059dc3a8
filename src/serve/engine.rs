//! The way to the model.

use std::path::Path;
#[cfg(test)]
use std::sync::Arc;
use std::time::Duration;

#[cfg(test)]
use super::double::Double;
use super::worker::{Load, Refused, Ticket, Worker};
use crate::error::Result;
use crate::infer::Request;

/// The worker. Tests put another in its place.
#[derive(Clone)]
pub(super) enum Engine {
    Worker(Worker),
    #[cfg(test)]
    Double(Arc<Double>),
}

impl Engine {
    pub fn submit(&self, request: Request) -> std::result::Result<Ticket, Refused> {
        match self {
            Engine::Worker(w) => w.submit(request),
            #[cfg(test)]
            Engine::Double(d) => d.submit(request),
        }
    }

    pub fn load(&self, path: &Path) -> Result<usize> {
        match self {
            Engine::Worker(w) => w.load(path),
            #[cfg(test)]
            Engine::Double(d) => d.load(path),
        }
    }

    pub fn unload(&self, adapter: usize) {
        match self {
            Engine::Worker(w) => w.unload(adapter),
            #[cfg(test)]
            Engine::Double(d) => d.unload(adapter),
        }
    }

    pub fn now(&self) -> Load {
        match self {
            Engine::Worker(w) => w.now(),
            #[cfg(test)]
            Engine::Double(_) => Load::default(),
        }
    }

    pub fn is_ready(&self) -> bool {
        match self {
            Engine::Worker(w) => w.is_ready(),
            #[cfg(test)]
            Engine::Double(_) => true,
        }
    }

    pub fn stop(&self, limit: Duration) -> bool {
        match self {
            Engine::Worker(w) => w.stop(limit),
            #[cfg(test)]
            Engine::Double(d) => d.stop(limit),
        }
    }
}
