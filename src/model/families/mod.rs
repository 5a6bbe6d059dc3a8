//! The supported families, a file each: how a config becomes a [`Spec`].

mod gpt2;
mod llama;
mod mistral;
mod phi3;
mod qwen2;
mod qwen3;
mod rope;

use super::spec::{Position, Spec};
use crate::error::{Error, Result};
use crate::format::HfConfig;

/// A family: its `model_type`, and how its config is read.
type Family = (&'static str, fn(&HfConfig, Spec) -> Result<Spec>);

const FAMILIES: [Family; 6] = [
    ("llama", llama::spec),
    ("mistral", mistral::spec),
    ("qwen2", qwen2::spec),
    ("qwen3", qwen3::spec),
    ("phi3", phi3::spec),
    (gpt2::NAME, gpt2::spec),
];

/// The [`Spec`] of a config. `max_positions` is the longest sequence that will be run.
///
/// # Errors
/// [`Error::Config`] if the family is not supported, [`Error::File`] if its numbers do not fit together.
pub fn spec(c: &HfConfig, max_positions: usize) -> Result<Spec> {
    let Some((name, read)) = FAMILIES.iter().find(|(name, _)| *name == c.model_type) else {
        let names: Vec<_> = FAMILIES.iter().map(|(name, _)| *name).collect();
        let why = format!("is of the family `{}`; supported are {}", c.model_type, names.join(", "));
        return Err(Error::config("model_name_or_path", why));
    };
    let position = match *name {
        gpt2::NAME => gpt2::position(c, max_positions)?,
        _ => Position::Rope(rope::rope(c, max_positions)?),
    };
    read(c, Spec::common(name, c, position))
}
