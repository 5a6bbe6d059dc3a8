//! The keys that say what is trained.

use crate::config::run::{ModelConfig, RopeScalingChoice};
use crate::config::settings::{Settings, expand_home};
use crate::error::{Error, Result};

pub(super) fn read(s: &Settings) -> Result<ModelConfig> {
    Ok(ModelConfig {
        model_name_or_path: model_name_or_path(s)?,
        adapter_name_or_path: s.words("adapter_name_or_path")?.iter().map(|w| expand_home(w)).collect(),
        model_revision: s.text("model_revision")?.unwrap_or_else(|| "main".to_string()),
        cache_dir: s.path("cache_dir")?,
        hf_hub_token: s.text("hf_hub_token")?,
        quantization_bit: quantization_bit(s)?,
        double_quantization: s.flag("double_quantization", true)?,
        split_special_tokens: s.flag("split_special_tokens", false)?,
        disable_gradient_checkpointing: s.flag("disable_gradient_checkpointing", false)?,
        rope_scaling: s.maybe_choice(
            "rope_scaling",
            &[
                ("linear", RopeScalingChoice::Linear),
                ("dynamic", RopeScalingChoice::Dynamic),
                ("yarn", RopeScalingChoice::Yarn),
                ("llama3", RopeScalingChoice::Llama3),
            ],
            &[],
        )?,
        train_from_scratch: s.flag("train_from_scratch", false)?,
        use_cpu: s.flag("use_cpu", false)?,
        max_memory: max_memory(s)?,
    })
}

fn model_name_or_path(s: &Settings) -> Result<String> {
    const KEY: &str = "model_name_or_path";
    let Some(name) = s.text(KEY)? else {
        return Err(Error::config(KEY, "is missing: give the model's folder, its name on the hub, or a .gguf file"));
    };
    if name.to_lowercase().ends_with(".ggml") {
        let why = "names a file of the format before GGUF: give a .gguf file, or the Hugging Face folder or name";
        return Err(s.conflict(KEY, why));
    }
    Ok(expand_home(&name).to_string_lossy().into_owned())
}

fn quantization_bit(s: &Settings) -> Result<Option<u8>> {
    const KEY: &str = "quantization_bit";
    match s.maybe_whole(KEY, 0)? {
        None => Ok(None),
        Some(4) => Ok(Some(4)),
        Some(bits @ (2 | 3 | 8)) => Err(s.conflict(KEY, format!("asks for {bits} bits, which is not built; 4 is"))),
        Some(_) => Err(s.bad(KEY, "4, or left out")),
    }
}

/// As [`parse_bytes`] reads it.
fn max_memory(s: &Settings) -> Result<Option<u64>> {
    const KEY: &str = "max_memory";
    const EXPECTED: &str = "a number of bytes above 0, or one with a unit such as \"10GB\" or \"8GiB\"";
    let Some(entry) = s.entry(KEY).filter(|e| !e.value.is_null()) else { return Ok(None) };
    let bytes = match &entry.value {
        serde_json::Value::String(text) => parse_bytes(text),
        value => value.as_f64(),
    };
    match bytes {
        // Up to 2^53 bytes, 9 petabytes, a float counts exactly.
        Some(b) if (1.0..=9.0e15).contains(&b) => Ok(Some(b as u64)),
        _ => Err(s.bad(KEY, EXPECTED)),
    }
}

/// Bytes, or a number with a unit: kB, MB, GB, TB are powers of 1000, KiB, MiB, GiB, TiB of 1024, as in
/// Hugging Face's `max_memory`. None for anything else.
pub fn parse_bytes(text: &str) -> Option<f64> {
    let text = text.trim();
    let end = text.find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len());
    let (number, unit) = text.split_at(end);
    let unit = unit.trim().to_ascii_lowercase();
    let scale = match unit.as_str() {
        "" | "b" => 1.0,
        "k" | "kb" => 1e3,
        "m" | "mb" => 1e6,
        "g" | "gb" => 1e9,
        "t" | "tb" => 1e12,
        "kib" => 1024f64,
        "mib" => 1024f64.powi(2),
        "gib" => 1024f64.powi(3),
        "tib" => 1024f64.powi(4),
        _ => return None,
    };
    Some(number.parse::<f64>().ok()? * scale)
}

#[cfg(test)]
mod tests {
    use super::parse_bytes;

    #[test]
    fn bytes_with_units() {
        assert_eq!(parse_bytes("10GB"), Some(10e9));
        assert_eq!(parse_bytes(" 1.5 GiB"), Some(1.5 * 1024.0 * 1024.0 * 1024.0));
        assert_eq!(parse_bytes("123"), Some(123.0));
        for bad in ["", "GB", "10 XB", "-1GB", "1..2GB", "ten"] {
            assert_eq!(parse_bytes(bad), None, "{bad:?}");
        }
    }
}
