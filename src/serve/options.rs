//! What a server is told.

use std::path::PathBuf;
use std::time::Duration;

use super::auth::Keys;

/// How a server serves. The defaults trust nobody and reach nobody but this machine.
#[derive(Debug, Clone)]
pub struct Options {
    /// Address to listen on (default 127.0.0.1).
    pub host: String,
    /// Default 8000; 0: any free one.
    pub port: u16,
    /// Adapters beside the config's own: name and path.
    pub adapters: Vec<(String, PathBuf)>,
    /// What the base is called; None: the last part of `model_name_or_path`.
    pub model_name: Option<String>,
    /// Without any, every request is taken.
    pub keys: Keys,
    /// The only folder that adapters are loaded from at run time; None: they are not.
    pub adapters_dir: Option<PathBuf>,
    /// Origins whose pages may ask; `*` for all. None by default.
    pub cors: Vec<String>,
    /// Sequences computed at a time (default 32), at least 1.
    pub max_batch: usize,
    /// Tokens whose keys and values are kept; None: `max_batch` times the context or 2048, as far as memory goes.
    pub cache_tokens: Option<usize>,
    /// Requests that wait (default 128), at least 1.
    pub max_queue: usize,
    /// Bytes of a request's body (default 1 MiB).
    pub max_body: usize,
    /// Answers to one prompt (default 8), at least 1.
    pub max_n: usize,
    /// From the first byte of a request to the last of its answer (default 600 s).
    pub request_timeout: Duration,
    /// How long a stop waits for what runs (default 30 s).
    pub shutdown_timeout: Duration,
    /// Requests and answers stand in the log (default false).
    pub log_prompts: bool,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            host: "127.0.0.1".into(),
            port: 8000,
            adapters: Vec::new(),
            model_name: None,
            keys: Keys::default(),
            adapters_dir: None,
            cors: Vec::new(),
            max_batch: 32,
            cache_tokens: None,
            max_queue: 128,
            max_body: 1 << 20,
            max_n: 8,
            request_timeout: Duration::from_secs(600),
            shutdown_timeout: Duration::from_secs(30),
            log_prompts: false,
        }
    }
}
