//! The configuration of a run: YAML, JSON and `key=value` arguments as written, then [`Config`], checked once and
//! relied on after.
//!
//! [`load`] takes the arguments of a command; [`from_str`] takes a text. Both go the same way: `read` finds keys
//! and values, `table` says which are known, `validate` gives them types, defaults and bounds.

mod dialect;
mod read;
mod run;
mod settings;
pub mod table;
mod validate;

use std::path::Path;

pub use read::Format;
pub use run::*;
pub use validate::{Command, parse_bytes};

use crate::error::{Error, Result};

/// Reads the config named by a command's arguments: a file (first, or after `--config`), then settings that
/// override it, as `key=value`, `--key value` or `--key=value`. Without a file, the settings alone are the config.
///
/// # Errors
/// [`crate::Error::File`] if the file cannot be read or is malformed, [`crate::Error::Config`] naming the key if a
/// setting is unknown, refused, of the wrong type, out of bounds, or at odds with another.
pub fn load(args: &[String]) -> Result<Config> {
    let (file, pairs) = read::split_args(args)?;
    let entries = match &file {
        Some(path) => read::file(path)?,
        None => Vec::new(),
    };
    build(entries, &pairs)
}

/// Reads a config from a text, with settings in [`load`]'s forms over it.
///
/// # Errors
/// As [`load`].
pub fn from_str(text: &str, format: Format, overrides: &[&str]) -> Result<Config> {
    let overrides: Vec<String> = overrides.iter().map(|o| o.to_string()).collect();
    let (file, pairs) = read::split_args(&overrides)?;
    if let Some(file) = file {
        return Err(Error::config(file.display().to_string(), "is not understood: overrides are `key=value`"));
    }
    build(read::parse(Path::new("config"), text, format)?, &pairs)
}

fn build(mut entries: Vec<read::Entry>, pairs: &[read::Pair]) -> Result<Config> {
    // Asked before as well: an override by LLaMA-Factory's name does not change how the file is written.
    let tutorial = dialect::is_spoken(&entries);
    read::override_with(&mut entries, pairs);
    let tutorial = tutorial || dialect::is_spoken(&entries);
    validate::build(settings::Settings::new(entries, tutorial))
}
