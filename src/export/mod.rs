//! What was trained, as files for others: a merged Hugging Face folder, a merged GGUF file, or an adapter as GGUF.
//!
//! [`export`] builds the folder beside its place and renames it once it is whole. [`verify`] compares the logits of what
//! was written with those of base and adapter.

mod folder;
pub mod gguf;
pub mod gguf_lora;
pub mod hf;
mod keys;
pub mod merge;
pub mod modelfile;
pub mod verify;

use std::path::{Path, PathBuf};

use serde_json::json;

use crate::config::{Config, ExportFormat, OutType};
use crate::data::template::Template;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::format::adapter::Sidecar;
use crate::format::atomic::write_atomic;
use crate::format::{AdapterFile, HfConfig};
pub use merge::Merged;

/// What is exported.
pub struct Job<'a> {
    pub config: &'a Config,
    /// The base model's folder.
    pub base: &'a Path,
    /// Fitted to the template.
    pub tokenizer: &'a Tokenizer,
    pub template: &'a Template,
}

/// Builds the export in a temporary folder beside `export_dir`, calls `check` with what can be loaded from it (the folder,
/// or the GGUF file in it), and then puts it into its place. An error on the way leaves nothing there.
///
/// # Errors
/// [`Error::Config`] if `export_dir` is missing or holds something else than an earlier export; whatever is wrong with
/// base, adapters and tokenizer; [`Error::File`] when the disk refuses; and what `check` returns.
pub fn export(
    job: &Job<'_>,
    progress: &mut dyn FnMut(usize, usize),
    check: &mut dyn FnMut(&Path) -> Result<()>,
) -> Result<PathBuf> {
    let (e, m) = (&job.config.export, &job.config.model);
    let dir = e.dir.as_deref().ok_or_else(|| Error::config("export_dir", "is missing"))?;
    let kept = m.adapter_name_or_path.iter().map(PathBuf::as_path).chain([job.base]);
    folder::replace(dir, &kept.collect::<Vec<_>>(), |temp| {
        let made = build(job, temp, progress)?;
        check(&made)
    })?;
    Ok(dir.to_path_buf())
}

/// Writes everything into `dir`; what of it can be loaded.
fn build(job: &Job<'_>, dir: &Path, progress: &mut dyn FnMut(usize, usize)) -> Result<PathBuf> {
    let (e, m) = (&job.config.export, &job.config.model);
    let adapters = &m.adapter_name_or_path;
    let nf4 = (e.dequantized && m.quantization_bit.is_some()).then_some(m.double_quantization);
    let open = || Merged::open(job.base, adapters, nf4);
    let name = name_of(&m.model_name_or_path);
    let made = match e.format {
        ExportFormat::Hf => {
            hf::write(dir, job.base, &open()?, job.tokenizer, e.shard_bytes, progress)?;
            dir.to_path_buf()
        }
        ExportFormat::Gguf => {
            let outtype = e.outtype.unwrap_or(OutType::F16);
            let path = dir.join(format!("{name}-{}.gguf", outtype.name()));
            gguf::write(&path, &open()?, job.tokenizer, (outtype, &name), progress)?;
            path
        }
        ExportFormat::GgufLora => {
            let outtype = e.outtype.unwrap_or(OutType::F32);
            let path = dir.join(format!("{name}-lora-{}.gguf", outtype.name()));
            let [adapter] = &adapters[..] else {
                return Err(Error::config(
                    "adapter_name_or_path",
                    "must name one adapter for `export_format: gguf-lora`",
                ));
            };
            let config = HfConfig::open(job.base)?;
            let adapter = AdapterFile::open_for(adapter, config.num_attention_heads, config.num_key_value_heads)?;
            gguf_lora::write(&path, &adapter, &config, (outtype, &name))?;
            path
        }
    };
    if e.format != ExportFormat::Hf {
        let file = made.file_name().map_or(String::new(), |n| format!("./{}", n.to_string_lossy()));
        let (from, adapter) = match e.format {
            ExportFormat::GgufLora => (m.model_name_or_path.as_str(), Some(file.as_str())),
            _ => (file.as_str(), None),
        };
        let config = HfConfig::open(job.base)?;
        let thinking = job.template.enable_thinking;
        let text = modelfile::text(from, adapter, job.template, thinking, job.tokenizer, &config);
        write_atomic(&dir.join("Modelfile"), text.as_bytes())?;
    }
    let precision = if nf4.is_some() { "merged into nf4" } else { "" };
    let sidecar = Sidecar {
        template: job.config.data.template.clone(),
        enable_thinking: job.template.enable_thinking,
        base_model: m.model_name_or_path.clone(),
        precision: precision.to_string(),
    };
    sidecar.write(dir)?;
    let about = json!({"base_model": m.model_name_or_path, "adapters": adapters});
    write_atomic(&dir.join(folder::MARK), format!("{about:#}\n").as_bytes())?;
    Ok(made)
}

/// The last part of the base's name, as part of a file name.
fn name_of(model: &str) -> String {
    let last = model.trim_end_matches(['/', '\\']).rsplit(['/', '\\']).next().unwrap_or("");
    let plain: String = last.chars().filter(|c| c.is_alphanumeric() || "-_.".contains(*c)).collect();
    let plain = plain.trim_start_matches('.');
    if plain.is_empty() { "model".to_string() } else { plain.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_plain_file_names() {
        for (model, name) in
            [("Qwen/Qwen3-0.6B", "Qwen3-0.6B"), ("a/b/", "b"), (".", "model"), ("x y*.z", "xy.z"), ("C:\\m\\q", "q")]
        {
            assert_eq!(name_of(model), name);
        }
    }
}
