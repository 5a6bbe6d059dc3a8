//! What answers depend on, in short: a run goes on only where it is the same.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::data::ask::Question;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::infer::Request;

/// A digest of the model's files, `adapters`, the settings of generation, the prompts and the labels. Weights of the base
/// count by name, size and time, those of adapters by content.
///
/// # Errors
/// [`Error::File`] for a folder or an adapter that cannot be read.
pub(super) fn of(
    config: &Config,
    folder: &Path,
    adapters: &[PathBuf],
    tokenizer: &Tokenizer,
    requests: &[Request],
    questions: &[Question],
) -> Result<String> {
    let mut hash = blake3::Hasher::new();
    let mut add = |what: &str, bytes: &[u8]| {
        hash.update(&(what.len() as u64).to_le_bytes());
        hash.update(what.as_bytes());
        hash.update(&(bytes.len() as u64).to_le_bytes());
        hash.update(bytes);
    };
    let m = &config.model;
    let loading = (m.quantization_bit, m.double_quantization, m.rope_scaling, config.train.precision);
    add("loading", format!("{loading:?}").as_bytes());
    add("special tokens", &[u8::from(config.generate.skip_special_tokens)]);
    add("tokenizer", tokenizer.key().as_bytes());
    for path in files(folder)? {
        let meta = path.metadata().map_err(|e| Error::io(&path, "cannot read", &e))?;
        add(&path.to_string_lossy(), format!("{} {:?}", meta.len(), meta.modified().ok()).as_bytes());
    }
    for adapter in adapters {
        for path in files(adapter)? {
            add(&path.to_string_lossy(), &std::fs::read(&path).map_err(|e| Error::io(&path, "cannot read", &e))?);
        }
    }
    for (request, question) in requests.iter().zip(questions) {
        add("request", format!("{request:?} {:?}", question.label).as_bytes());
    }
    Ok(hash.finalize().to_hex().to_string())
}

/// The files in `at` that hold weights or say how they are used, by name; `at` itself where it is a file.
fn files(at: &Path) -> Result<Vec<PathBuf>> {
    if at.is_file() {
        return Ok(vec![at.to_path_buf()]);
    }
    let counts = |path: &PathBuf| {
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        name.ends_with(".safetensors") || name.ends_with(".gguf") || name.ends_with("config.json")
    };
    let listed = std::fs::read_dir(at).map_err(|e| Error::io(at, "cannot read", &e))?;
    let mut paths: Vec<PathBuf> = listed.filter_map(|entry| Some(entry.ok()?.path())).filter(counts).collect();
    paths.sort();
    Ok(paths)
}
