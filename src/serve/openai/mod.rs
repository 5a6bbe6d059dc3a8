//! OpenAI's protocol: what a request may say, and how answers look.

pub(super) mod answers;
pub(super) mod chat;
pub(super) mod common;
pub(super) mod completion;
pub(super) mod error;
pub(super) mod fields;
#[cfg(test)]
mod fuzz;
mod logprobs;
pub(super) mod messages;
pub(super) mod reply;
pub(super) mod stream;
