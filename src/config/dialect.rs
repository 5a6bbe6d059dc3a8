//! The dialect of small tutorials: `base_model`, `train_data_dir`, `batch_size`, `epochs`, ... Some keys are other
//! names of LLaMA-Factory's; whoever uses any of them writes a short file and relies on the rest being sensible.

use std::path::{Path, PathBuf};

use super::read::Entry;
use super::run::TutorialData;
use super::settings::Settings;
use crate::error::{Error, Result};

/// Keys that only such a file uses.
const MARKS: [&str; 6] = ["base_model", "train_data_dir", "metadata_path", "batch_size", "epochs", "task_type"];

/// `logging_steps` of such a file, where LLaMA-Factory's 500 would log nothing of a short run.
pub(super) const LOGGING_STEPS: f64 = 10.0;

/// The key that `typed` stands for.
pub(super) fn canonical(typed: &str) -> &str {
    match typed {
        "base_model" => "model_name_or_path",
        "batch_size" => "per_device_train_batch_size",
        "epochs" => "num_train_epochs",
        other => other,
    }
}

/// Whether settings are written in the dialect: then training and TensorBoard are on unless said otherwise. A benchmark's
/// file has a `batch_size` too, and is none.
pub(super) fn is_spoken(entries: &[Entry]) -> bool {
    entries.iter().any(|e| MARKS.contains(&e.typed.as_str())) && !entries.iter().any(|e| e.typed == "task")
}

/// The data of such a file, if it names any. Without `train_data_dir` it is the folder of `metadata_path`.
///
/// # Errors
/// [`Error::Config`] if `dataset` is given too, or `task_type` is anything but text generation.
pub(super) fn data(settings: &Settings) -> Result<Option<TutorialData>> {
    if let Some(task) = settings.text("task_type")? {
        let known = ["text_generation", "causal_lm", "sft"];
        if !known.contains(&task.to_lowercase().replace('-', "_").as_str()) {
            return Err(settings.bad("task_type", "text-generation (or causal_lm, sft: they mean the same)"));
        }
    }
    let metadata_path = settings.path("metadata_path")?;
    let folder_of = |file: &PathBuf| match file.parent() {
        Some(dir) if dir != Path::new("") => dir.to_path_buf(),
        _ => PathBuf::from("."),
    };
    let Some(train_data_dir) = settings.path("train_data_dir")?.or_else(|| metadata_path.as_ref().map(folder_of))
    else {
        return Ok(None);
    };
    if settings.is_set("dataset") {
        let other = if settings.is_set("train_data_dir") { "train_data_dir" } else { "metadata_path" };
        return Err(Error::config("dataset", format!("and `{other}` both name the data: keep one of them")));
    }
    Ok(Some(TutorialData { train_data_dir, metadata_path }))
}
