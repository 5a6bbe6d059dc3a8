//! Many requests, a batch at a time: a sequence that ends makes room for the next.

use super::engine::{Engine, Event, Room};
use super::request::{Answer, Control, Finish, Request};
use crate::error::Result;
use crate::model::{Model, PAGE};

/// Answers `requests`, up to `batch` at a time, in their order. `on_token` gets the request's number and each of its new
/// tokens as they come.
///
/// # Errors
/// [`crate::Error::Shape`] for a request that does not fit the model or its context, before anything is computed;
/// [`crate::Error::Memory`]; and if the model's numbers are no longer finite.
pub fn generate(
    model: &Model,
    requests: &[Request],
    batch: usize,
    on_token: &mut dyn FnMut(usize, u32) -> Control,
) -> Result<Vec<Answer>> {
    requests.iter().try_for_each(|r| r.check(model))?;
    let mut rooms: Vec<usize> = requests.iter().map(|r| r.prompt.len() + r.max_new_tokens).collect();
    rooms.sort_unstable_by(|a, b| b.cmp(a));
    rooms.truncate(batch.max(1));
    // As many as the batch holds fit at once, the longest of them too.
    let pages = rooms.iter().map(|n| n.div_ceil(PAGE)).sum();
    let room = Room { batch: rooms.len(), pages, longest: rooms.first().copied().unwrap_or(0) };
    let mut engine = Engine::new(model, room)?;
    for request in requests {
        engine.add(model, request.clone())?;
    }
    // Requests are numbered from 0 on, as they are here.
    let none = || Answer { ids: Vec::new(), finish: Finish::Stopped };
    let mut answers: Vec<Answer> = requests.iter().map(|_| none()).collect();
    let mut failed = None;
    while !engine.is_idle() && failed.is_none() {
        engine.step(model, &mut |id, event| {
            let i = id as usize;
            match event {
                Event::Token(token) => {
                    answers[i].ids.push(token.id);
                    return on_token(i, token.id);
                }
                Event::End(finish) => answers[i].finish = finish,
                Event::Begun { .. } => {}
                Event::Failed(e) => failed = Some(e),
            }
            Control::Continue
        })?;
    }
    match failed {
        Some(e) => Err(e),
        None => Ok(answers),
    }
}
