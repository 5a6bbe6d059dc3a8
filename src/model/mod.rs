//! Decoder-only language models: a family as data ([`Spec`]) on one [`block`], with adapters, loaded and run.

mod attached;
mod base;
mod block;
mod cache;
mod cached;
mod decoder;
pub mod families;
mod input;
mod load;
#[cfg(all(test, feature = "host-kernels"))]
mod load_tests;
mod mlp;
mod names;
mod norm;
mod params;
mod policy;
mod prefix;
mod qkv;
mod spec;
mod weights;

pub use attached::Prepared;
pub use cache::{Cache, PAGE, PIECE, Sequence};
pub use cached::{Logits, Part};
pub use decoder::{Model, Pass};
pub use input::{Input, Shape};
pub use load::{Options, load};
pub use names::{MlpLayers, Names, QkvLayers};
pub use params::{Entry, Params};
pub use policy::{Policies, Policy};
pub use spec::{NormKind, Position, Rope, Spec};
pub use weights::FrozenBytes;
