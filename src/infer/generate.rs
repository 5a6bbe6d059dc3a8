//! Many requests, a batch at a time: a sequence that ends makes room for the next.

use super::request::{Answer, Control, Finish, Request, Running};
use crate::error::Result;
use crate::model::{Cache, Model, Sequence};

/// A request in the batch.
struct Slot<'a> {
    /// Its number.
    index: usize,
    sequence: Sequence,
    running: Running<'a>,
}

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
    let room = |r: &Request| r.prompt.len() + r.max_new_tokens;
    let mut rooms: Vec<usize> = requests.iter().map(room).collect();
    rooms.sort_unstable_by(|a, b| b.cmp(a));
    rooms.truncate(batch.max(1));
    let mut cache = Cache::new(model, &rooms)?;

    let mut answers: Vec<Option<Answer>> = requests.iter().map(|_| None).collect();
    let mut waiting = requests.iter().enumerate();
    let mut slots: Vec<Slot> = Vec::new();
    loop {
        // As many are admitted as the batch holds: the longest of them fit at once.
        while slots.len() < rooms.len() {
            let Some((index, request)) = waiting.next() else { break };
            let Some(mut sequence) = cache.take(room(request)) else {
                unreachable!("the cache holds the longest requests")
            };
            let mut running = Running::new(request)?;
            let logits = model.read(&mut cache, request.adapter, &mut [(&mut sequence, &request.prompt)])?;
            match running.take(&logits, 0, &mut |token| on_token(index, token))? {
                None => slots.push(Slot { index, sequence, running }),
                Some(finish) => {
                    answers[index] = Some(running.answer(finish));
                    cache.release(sequence);
                }
            }
        }
        if slots.is_empty() {
            break;
        }
        let ended = step(model, &mut cache, &mut slots, on_token)?;
        // From the last on, so that the places of the others stay.
        for (at, finish) in ended.into_iter().rev() {
            let slot = slots.remove(at);
            answers[slot.index] = Some(slot.running.answer(finish));
            cache.release(slot.sequence);
        }
    }
    let none = || Answer { ids: Vec::new(), finish: Finish::Stopped };
    Ok(answers.into_iter().map(|a| a.unwrap_or_else(none)).collect())
}

/// One token for each sequence, a pass for each adapter that is in use; those that end, by their place, ascending.
fn step(
    model: &Model,
    cache: &mut Cache,
    slots: &mut [Slot],
    on_token: &mut dyn FnMut(usize, u32) -> Control,
) -> Result<Vec<(usize, Finish)>> {
    let mut adapters: Vec<Option<usize>> = slots.iter().map(|s| s.running.adapter()).collect();
    adapters.sort_unstable();
    adapters.dedup();
    let mut ended = Vec::new();
    for adapter in adapters {
        let (mut places, mut parts) = (Vec::new(), Vec::new());
        for (place, slot) in slots.iter_mut().enumerate().filter(|(_, s)| s.running.adapter() == adapter) {
            places.push(place);
            parts.push((&mut slot.sequence, slot.running.last()));
        }
        let logits = model.read(cache, adapter, &mut parts)?;
        drop(parts);
        for (row, place) in places.into_iter().enumerate() {
            let slot = &mut slots[place];
            let index = slot.index;
            if let Some(finish) = slot.running.take(&logits, row, &mut |token| on_token(index, token))? {
                ended.push((place, finish));
            }
        }
    }
    ended.sort_unstable_by_key(|(place, _)| *place);
    Ok(ended)
}
