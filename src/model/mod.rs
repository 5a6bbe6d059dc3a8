//! Decoder-only language models: a family as data ([`Spec`]) on one [`block`], with adapters, loaded and run.

mod block;
mod decoder;
pub mod families;
mod input;
mod load;
mod params;
mod spec;
mod weights;

pub use block::Policy;
pub use decoder::{Model, Pass};
pub use load::{Options, load};
pub use params::{Entry, Params};
pub use spec::{Rope, Spec};
