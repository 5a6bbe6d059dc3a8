//! A merged model as a Hugging Face folder.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::merge::Merged;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::format::atomic::write_atomic;
use crate::format::{TensorSpec, safetensors};

/// Values that are merged at a time.
const PIECE: usize = 1 << 22;

/// Writes `merged` into `dir`: shards of at most `shard_bytes` with their index, config.json, generation_config.json,
/// tokenizer and chat template. Numbers are added in f32 and then rounded to the base's dtype.
///
/// # Errors
/// [`Error::File`] when the disk refuses, [`Error::Weights`] for a tensor that cannot be merged.
pub fn write(
    dir: &Path,
    base: &Path,
    merged: &Merged,
    tokenizer: &Tokenizer,
    shard_bytes: u64,
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let specs: Vec<TensorSpec> = merged.tensors().iter().map(|t| TensorSpec::new(&t.name, t.dtype, &t.shape)).collect();
    let mut done = 0;
    safetensors::write_model(dir, &specs, shard_bytes, |spec, sink| {
        progress(done, specs.len());
        done += 1;
        let t = merged.tensors().iter().find(|t| t.name == spec.name);
        let t = t.ok_or_else(|| Error::weights(dir, &spec.name, "has no values"))?;
        if let Some(bytes) = merged.untouched(t)? {
            return sink.bytes(bytes);
        }
        let source = merged.source(t)?;
        let (rows, cols) = t.rows_cols();
        let step = (PIECE / cols.max(1)).max(1);
        let mut values = vec![0.0f32; step.min(rows) * cols];
        for at in (0..rows).step_by(step) {
            let end = rows.min(at + step);
            let values = &mut values[..(end - at) * cols];
            source.rows(at..end, values)?;
            sink.f32(values)?;
        }
        Ok(())
    })?;
    progress(specs.len(), specs.len());
    config(dir, base, merged.untied)?;
    let generation = base.join("generation_config.json");
    if generation.is_file() {
        fs::copy(&generation, dir.join("generation_config.json"))
            .map_err(|e| Error::io(&generation, "cannot copy", &e))?;
    }
    tokenizer.save(dir)
}

/// The base's config.json, which says so if the head is no longer tied.
fn config(dir: &Path, base: &Path, untied: bool) -> Result<()> {
    let source = base.join("config.json");
    let text = fs::read_to_string(&source).map_err(|e| Error::io(&source, "cannot read", &e))?;
    let mut config: Map<String, Value> =
        serde_json::from_str(&text).map_err(|e| Error::file(&source, format!("is not a JSON object: {e}")))?;
    if untied {
        config.insert("tie_word_embeddings".into(), Value::Bool(false));
    }
    write_atomic(&dir.join("config.json"), format!("{:#}\n", Value::Object(config)).as_bytes())
}
