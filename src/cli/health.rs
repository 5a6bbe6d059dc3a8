//! `health`: asks a running server whether it is well, for container health checks where there is no curl.

use std::time::Duration;

use super::say;
use crate::error::{Error, Result};

/// Longer than any healthy server needs, shorter than any health check waits.
const LIMIT: Duration = Duration::from_secs(3);

/// What `health` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// What is asked
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8000/health")]
    pub url: String,
}

/// Prints `ok` if a GET of the URL is answered with a status of 200 to 299.
///
/// # Errors
/// [`Error::Config`] otherwise.
pub(super) fn run(options: &Options) -> Result<()> {
    let config = ureq::Agent::config_builder().timeout_global(Some(LIMIT)).max_redirects(0);
    match ureq::Agent::new_with_config(config.build()).get(&options.url).call() {
        Ok(_) => {
            say("ok\n");
            Ok(())
        }
        Err(ureq::Error::StatusCode(status)) => {
            Err(Error::config("URL", format!("{} answers with status {status}", options.url)))
        }
        Err(e) => Err(Error::config("URL", format!("{} gives no answer: {e}", options.url))),
    }
}
