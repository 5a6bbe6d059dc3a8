//! A model that is only used: the base that a config names, its adapters, and where it runs.

use std::path::Path;
use std::time::Instant;

use crate::config::Config;
use crate::error::Result;
use crate::model::{self, Model};
use crate::train::{plan, target};

/// A model and the adapter that answers.
pub struct Loaded {
    pub model: Model,
    /// The last of the config's adapters, attached unmerged; None without any. Those before it are merged, as
    /// LLaMA-Factory does it.
    pub adapter: Option<usize>,
    /// Seconds that loading took.
    pub seconds: f64,
}

/// Loads the model in `folder` as `config` says, for sequences of up to `positions` tokens.
///
/// # Errors
/// Whatever is wrong with the model, its adapters or the device.
pub fn load(config: &Config, folder: &Path, positions: usize) -> Result<Loaded> {
    let began = Instant::now();
    let (device, target) = target::pick(config)?;
    let (merged, last) = match config.model.adapter_name_or_path.split_last() {
        Some((last, merged)) => (merged, Some(last)),
        None => (&[][..], None),
    };
    let options = plan::use_options(config, merged, positions, &target);
    let mut model = model::load(folder, &options, &device, &|_, _| {})?;
    let adapter = last.map(|path| model.attach(path)).transpose()?;
    Ok(Loaded { model, adapter, seconds: began.elapsed().as_secs_f64() })
}
