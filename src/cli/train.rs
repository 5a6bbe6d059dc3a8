//! `train`: fine-tunes as a config says.

use crate::config::Config;
use crate::error::{Error, Result};

/// Runs the command on a config that passed `validate_for`.
///
/// # Errors
/// [`Error::NotYet`].
pub fn run(_config: Config) -> Result<()> {
    Err(Error::NotYet("`train` is not built yet".to_string()))
}
