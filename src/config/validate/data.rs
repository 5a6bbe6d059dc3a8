//! The keys that say what it is trained on.

use serde_json::Value;

use crate::config::dialect;
use crate::config::run::{DataConfig, MixStrategy};
use crate::config::settings::Settings;
use crate::error::Result;

pub(super) fn read(s: &Settings) -> Result<DataConfig> {
    let tutorial = dialect::data(s)?;
    Ok(DataConfig {
        dataset: s.words("dataset")?,
        eval_dataset: s.words("eval_dataset")?,
        dataset_dir: dataset_dir(s)?,
        template: s.text("template")?,
        cutoff_len: s.count("cutoff_len", 2048, 1)?,
        train_on_prompt: s.flag("train_on_prompt", false)?,
        mask_history: s.flag("mask_history", false)?,
        streaming: s.flag("streaming", false)?,
        buffer_size: s.count("buffer_size", 16384, 1)?,
        mix_strategy: s.choice(
            "mix_strategy",
            MixStrategy::Concat,
            &[
                ("concat", MixStrategy::Concat),
                ("interleave_under", MixStrategy::InterleaveUnder),
                ("interleave_over", MixStrategy::InterleaveOver),
                ("interleave_once", MixStrategy::InterleaveOnce),
            ],
            &[],
        )?,
        interleave_probs: interleave_probs(s)?,
        overwrite_cache: s.flag("overwrite_cache", false)?,
        preprocessing_batch_size: s.count("preprocessing_batch_size", 1000, 1)?,
        max_samples: s.maybe_count("max_samples", 1)?,
        val_size: s.number(
            "val_size",
            0.0,
            |x| (0.0..1.0).contains(&x) || (x > 1.0 && x.fract() == 0.0 && x < 1e15),
            "a share in [0, 1) or a whole number of rows above 1",
        )?,
        eval_on_each_dataset: s.flag("eval_on_each_dataset", false)?,
        packing: s.flag("packing", false)?,
        neat_packing: s.flag("neat_packing", false)?,
        tool_format: s.text("tool_format")?,
        default_system: s.text_or_empty("default_system")?,
        enable_thinking: match s.entry("enable_thinking").map(|e| &e.value) {
            // `null` has a meaning of its own here: thoughts are kept as they are.
            Some(Value::Null) => None,
            _ => Some(s.flag("enable_thinking", true)?),
        },
        preserve_thinking: s.flag("preserve_thinking", false)?,
        tokenized_path: s.path("tokenized_path")?,
        ignore_pad_token_for_loss: true,
        tutorial,
    })
}

fn dataset_dir(s: &Settings) -> Result<std::path::PathBuf> {
    let dir = s.path("dataset_dir")?.unwrap_or_else(|| "data".into());
    let online = dir.to_str().is_some_and(|d| d == "ONLINE" || d.starts_with("REMOTE:"));
    if online {
        return Err(s.conflict("dataset_dir", "asks for data sets from a hub, which is not built: give a local folder"));
    }
    Ok(dir)
}

/// Probabilities as `0.3,0.7` or a list of numbers.
fn interleave_probs(s: &Settings) -> Result<Option<Vec<f64>>> {
    const KEY: &str = "interleave_probs";
    const EXPECTED: &str = "probabilities in [0, 1] that sum to 1, such as 0.3,0.7";
    let probs: Option<Vec<f64>> = match s.entry(KEY).map(|e| &e.value) {
        None | Some(Value::Null) => return Ok(None),
        Some(Value::Array(items)) => items.iter().map(Value::as_f64).collect(),
        Some(Value::String(text)) => text.split(',').map(|p| p.trim().parse().ok()).collect(),
        Some(Value::Number(n)) => n.as_f64().map(|p| vec![p]),
        Some(_) => None,
    };
    // NumPy's choice() allows the sum to be off by the square root of f64's epsilon.
    match probs {
        Some(p)
            if p.iter().all(|x| (0.0..=1.0).contains(x))
                && (p.iter().sum::<f64>() - 1.0).abs() <= f64::EPSILON.sqrt() =>
        {
            Ok(Some(p))
        }
        _ => Err(s.bad(KEY, EXPECTED)),
    }
}
