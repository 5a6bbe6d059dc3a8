//! Text from a loaded model: many requests at once, or one conversation.
//!
//! Each sequence's tokens are the same whatever else is in the batch: products are batch-invariant, attention is cut into
//! the same pieces, and random numbers depend on the request's seed and the token's place alone.

mod engine;
mod generate;
mod request;
pub mod sample;
mod session;
pub mod text;

pub use engine::{Counts, Engine, Event, Id, Room};
pub use generate::generate;
pub use request::{Answer, Control, Finish, Logprobs, Request, Token};
pub use sample::Sampling;
pub use session::Session;
