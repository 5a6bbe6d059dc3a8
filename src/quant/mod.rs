//! Quantised storage of frozen weights.

pub mod dynamic8;
pub mod nf4;

pub use nf4::{Absmax, Nf4, Nf4Builder};
