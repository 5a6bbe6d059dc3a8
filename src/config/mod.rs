//! The configuration of a run: YAML, JSON and `key=value` arguments as written, then [`Config`], checked once and
//! relied on after.

mod run;

pub use run::*;
