//! Settings -> [`Config`]: each key against the table, each value against its type and bounds, then the values
//! against each other. Defaults are those of LLaMA-Factory 0.9.5 with transformers 5.

mod data;
mod export;
mod generate;
mod model;
mod together;
mod train;
mod tune;

use serde_json::Value;

use super::read::{Entry, printable};
use super::run::{Config, Stage};
use super::settings::{Settings, describe};
use super::table::{self, Fine, Status};
use crate::error::{Error, Result};

pub use model::parse_bytes;
pub use together::Command;

/// Checks everything and builds the run.
///
/// # Errors
/// [`Error::Config`] naming the key as typed: unknown, refused, of the wrong type, out of bounds, or at odds
/// with another.
pub(super) fn build(settings: Settings) -> Result<Config> {
    let mut no_effect = Vec::new();
    for entry in settings.entries() {
        judge(entry, &mut no_effect)?;
    }
    let written = settings.entries().iter().map(|e| (e.typed.clone(), without_secret(&e.key, &e.value))).collect();
    // The method comes first: a file for a stage that is not built is refused by `stage`, not by a side issue.
    let tune = tune::read(&settings)?;
    let model = model::read(&settings)?;
    let mut data = data::read(&settings)?;
    let train = train::read(&settings, &mut no_effect)?;
    // Pretraining packs unless told otherwise.
    data.packing = settings.maybe_flag("packing")?.unwrap_or(tune.stage == Stage::Pt) || data.neat_packing;
    let (generate, benchmark) = (generate::read(&settings)?, generate::benchmark(&settings, &mut no_effect)?);
    let export = export::read(&settings)?;
    let config = Config { model, data, tune, train, generate, benchmark, export, written, no_effect };
    together::check(&settings, &config)?;
    Ok(config)
}

/// Holds one entry against the table.
fn judge(entry: &Entry, no_effect: &mut Vec<(String, String)>) -> Result<()> {
    match table::status(&entry.key) {
        None => Err(Error::config(
            printable(&entry.typed),
            match table::nearest(&entry.typed) {
                Some(near) => format!("is not a known key; did you mean `{near}`?"),
                None => "is not a known key".to_string(),
            },
        )),
        Some(Status::Works) => Ok(()),
        Some(Status::NoEffect(why)) => {
            if !entry.value.is_null() {
                no_effect.push((entry.typed.clone(), why.to_string()));
            }
            Ok(())
        }
        Some(Status::Refused { fine, why }) if !asks_for_nothing(fine, &entry.value) => {
            Err(Error::config(&entry.typed, format!("{why} (got {})", describe(&entry.value))))
        }
        Some(Status::Refused { .. }) => Ok(()),
    }
}

/// Whether a refused key has one of the values at which it asks for nothing.
fn asks_for_nothing(fine: Fine, value: &Value) -> bool {
    match (fine, value) {
        (_, Value::Null) => true,
        (Fine::Unset, Value::String(s)) => s.is_empty(),
        (Fine::Unset, Value::Array(items)) => items.is_empty(),
        (Fine::Off, Value::Bool(on)) => !on,
        (Fine::On, Value::Bool(on)) => *on,
        (Fine::Zero, Value::Number(n)) => n.as_f64() == Some(0.0),
        (Fine::One, Value::Number(n)) => n.as_f64() == Some(1.0),
        (Fine::Words(words), Value::String(s)) => words.contains(&s.as_str()),
        _ => false,
    }
}

/// What the user wrote is recorded beside the result, secrets excepted.
fn without_secret(key: &str, value: &Value) -> Value {
    let secret = ["_token", "_api_key", "_secret", "_webhook_url"].iter().any(|end| key.ends_with(end));
    if secret && !value.is_null() { Value::String("<hidden>".to_string()) } else { value.clone() }
}

#[cfg(test)]
mod tests;
