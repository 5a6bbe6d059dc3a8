//! A name for the data of a run, by content.

use std::fs::File;
use std::io::Read;

use super::specs;
use crate::config::Config;
use crate::error::{Error, Result};

/// 64 hex digits that change when the records of a run could: a hash (BLAKE3) of every byte of the data files, of what
/// the registry says of them, and of the settings that pick, mix and split. Not of the files' names or places.
///
/// # Errors
/// What [`crate::data::registry::find`] refuses, and [`Error::File`] for a file that cannot be read.
pub fn digest(cfg: &Config) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    let data = &cfg.data;
    let settings = (
        (data.mix_strategy, &data.interleave_probs, data.max_samples, data.val_size, data.eval_on_each_dataset),
        (data.streaming, data.buffer_size, cfg.train.seed, cfg.tune.stage),
    );
    hash.update(format!("records 1 {settings:?}\n").as_bytes());
    let (train, eval) = specs(cfg)?;
    let mut buffer = vec![0; 1 << 20];
    for (part, specs) in [("train", train), ("eval", eval)] {
        for spec in specs {
            let what = (part, &spec.name, spec.kind, spec.num_samples, &spec.format, spec.files.len());
            hash.update(format!("{what:?}\n").as_bytes());
            for path in &spec.files {
                let failed = |e: std::io::Error| Error::io(path, "cannot read", &e);
                let mut file = File::open(path).map_err(failed)?;
                let mut content = blake3::Hasher::new();
                loop {
                    let n = file.read(&mut buffer).map_err(failed)?;
                    match buffer.get(..n) {
                        Some(bytes) if n > 0 => content.update(bytes),
                        _ => break,
                    };
                }
                hash.update(content.finalize().as_bytes());
            }
        }
    }
    Ok(hash.finalize().to_hex().to_string())
}
