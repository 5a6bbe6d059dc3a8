//! The crate's one error type: a variant per thing the caller can act on, each naming the culprit,
//! what was wrong with it and what would be right.

use std::io;
use std::path::{Path, PathBuf};

/// Shorthand for results of this crate.
pub type Result<T> = std::result::Result<T, Error>;

/// Everything that can go wrong. The text of each is one line, fit to be shown to a user as it is.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The user's config is wrong. `key` is the key as typed.
    #[error("config: `{key}` {why}")]
    Config { key: String, why: String },
    /// A file or folder could not be read or written, or does not hold what it should.
    #[error("{}: {why}", path.display())]
    File { path: PathBuf, why: String },
    /// A row of a data file is malformed. `row` counts from 1.
    #[error("{}: row {row}: {why}", file.display())]
    Row { file: PathBuf, row: usize, why: String },
    /// A data set cannot be used as a whole (empty, unknown, nothing left after the split, ...).
    #[error("data set `{name}`: {why}")]
    Dataset { name: String, why: String },
    /// A tokenizer or template cannot do what is asked of it.
    #[error("tokenizer: {0}")]
    Tokenizer(String),
    /// A model file lacks a tensor, or holds it with another shape or dtype.
    #[error("{}: tensor `{name}` {why}", file.display())]
    Weights { file: PathBuf, name: String, why: String },
    /// Shapes or dtypes that do not fit together. `what` names the operand.
    #[error("{what}: {why}")]
    Shape { what: &'static str, why: String },
    /// The run does not fit into memory. `why` holds the figures and the nearest settings that fit.
    #[error("memory: {0}")]
    Memory(String),
    /// A GPU cannot be used, or failed at something that is no launch.
    #[error("gpu: {0}")]
    Gpu(String),
    /// A launch was refused or failed. `grid` in blocks, `block` in threads.
    #[error("kernel {name} (grid {grid:?}, block {block:?}): {why}")]
    Kernel { name: &'static str, grid: [u32; 3], block: [u32; 3], why: String },
    /// A download failed. `what` is the file or repository.
    #[error("download of {what}: {why}")]
    Download { what: String, why: String },
    /// The loss or the gradient norm is no longer a finite number.
    #[error("step {step}: {why}")]
    Diverged { step: usize, why: String },
    /// The run was stopped on request, after its state was saved (`saved`: where, if it was).
    #[error("stopped at step {step}{}", saved.as_ref().map(|p| format!("; state saved in {}", p.display())).unwrap_or_default())]
    Stopped { step: usize, saved: Option<PathBuf> },
    /// A feature that is not built yet.
    #[error("{0}")]
    NotYet(String),
}

impl Error {
    /// A config error about `key`.
    pub fn config(key: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Config { key: key.into(), why: why.into() }
    }

    /// A file error about `path`.
    pub fn file(path: impl AsRef<Path>, why: impl Into<String>) -> Self {
        Error::File { path: path.as_ref().to_path_buf(), why: why.into() }
    }

    /// A file error from the operating system: `doing` is a verb phrase such as "cannot read".
    pub fn io(path: impl AsRef<Path>, doing: &str, e: &io::Error) -> Self {
        Error::file(path, format!("{doing}: {e}"))
    }

    /// A shape error about the operand `what`.
    pub fn shape(what: &'static str, why: impl Into<String>) -> Self {
        Error::Shape { what, why: why.into() }
    }

    /// A weights error about tensor `name` of `file`.
    pub fn weights(file: impl AsRef<Path>, name: impl Into<String>, why: impl Into<String>) -> Self {
        Error::Weights { file: file.as_ref().to_path_buf(), name: name.into(), why: why.into() }
    }
}
