//! `plan`: shows what a run would cost.

use crate::config::Config;
use crate::error::{Error, Result};

/// Runs the command on a config that passed `validate_for`.
///
/// # Errors
/// [`Error::NotYet`].
pub fn run(_config: Config) -> Result<()> {
    Err(Error::NotYet("`plan` is not built yet".to_string()))
}
