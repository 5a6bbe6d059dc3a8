//! A model's settings as GGUF's keys, and as the tensors that some of them become.

use std::f64::consts::PI;
use std::path::Path;

use crate::config::OutType;
use crate::error::{Error, Result};
use crate::format::HfConfig;
use crate::format::gguf::{Metadata, Value};
use crate::format::hf_config::RopeKind;

/// llama.cpp's name of a family: Mistral's files say llama.
pub(super) fn architecture(model_type: &str) -> &str {
    if model_type == "mistral" { "llama" } else { model_type }
}

/// A tensor made of settings.
type Extra = (String, Vec<f32>);

/// The keys of a whole model, without the tokenizer's. `path` is for messages.
///
/// # Errors
/// [`Error::File`] for a setting that GGUF has no key for.
pub(super) fn metadata(c: &HfConfig, name: &str, file: OutType, path: &Path) -> Result<(Metadata, Vec<Extra>)> {
    let cannot = |why: String| Error::file(path, format!("cannot be written: {why}"));
    let arch = architecture(&c.model_type);
    let mut m = Metadata::new();
    let number = |what: &str, n: usize| u32::try_from(n).map(Value::U32).map_err(|_| cannot(format!("{what} is {n}")));
    m.set("general.architecture", Value::string(arch));
    m.set("general.type", Value::string("model"));
    m.set("general.name", Value::string(name));
    m.set("general.file_type", Value::U32(file.id()));
    m.set("general.quantization_version", Value::U32(2));
    for (key, n) in [
        ("vocab_size", c.vocab_size),
        ("context_length", c.max_position_embeddings),
        ("embedding_length", c.hidden_size),
        ("block_count", c.num_hidden_layers),
        ("feed_forward_length", c.intermediate_size),
        ("attention.head_count", c.num_attention_heads),
        ("attention.head_count_kv", c.num_key_value_heads),
    ] {
        m.set(format!("{arch}.{key}"), number(key, n)?);
    }
    let gpt2 = arch == "gpt2";
    let epsilon = if gpt2 { "layer_norm_epsilon" } else { "layer_norm_rms_epsilon" };
    m.set(format!("{arch}.attention.{epsilon}"), Value::F32(c.rms_norm_eps as f32));
    if gpt2 {
        return Ok((m, Vec::new()));
    }
    m.set(format!("{arch}.rope.dimension_count"), number("head_dim", c.head_dim)?);
    m.set(format!("{arch}.rope.freq_base"), Value::F32(c.rope.theta as f32));
    for key in ["key_length", "value_length"] {
        m.set(format!("{arch}.attention.{key}"), number(key, c.head_dim)?);
    }
    let window = c.windows.first().copied().flatten();
    if c.windows.iter().any(|w| *w != window) {
        return Err(cannot("its layers see windows of different lengths, for which there is no key".into()));
    }
    if let Some(window) = window {
        m.set(format!("{arch}.attention.sliding_window"), number("sliding_window", window)?);
        if arch != "phi3" {
            log::warn!("llama.cpp reads no sliding window for {arch}: beyond {window} tokens it answers otherwise");
        }
    }
    let extra = rope(c, arch, &mut m).map_err(cannot)?;
    Ok((m, extra))
}

/// The keys of rope scaling; None where there is nothing to say.
fn rope(c: &HfConfig, arch: &str, m: &mut Metadata) -> std::result::Result<Vec<Extra>, String> {
    let mut set = |key: &str, value: Value| m.set(format!("{arch}.rope.scaling.{key}"), value);
    let original = |n: usize| u32::try_from(n).map(Value::U32).map_err(|_| format!("the original context is {n}"));
    match &c.rope.kind {
        RopeKind::Default => Ok(Vec::new()),
        RopeKind::Linear { factor } => {
            set("type", Value::string("linear"));
            set("factor", Value::F32(*factor as f32));
            Ok(Vec::new())
        }
        RopeKind::Dynamic { .. } => {
            log::warn!(
                "dynamic rope scaling has no key in GGUF: up to {} tokens it changes nothing",
                c.max_position_embeddings
            );
            Ok(Vec::new())
        }
        RopeKind::Yarn {
            factor,
            original_max_position_embeddings,
            beta_fast,
            beta_slow,
            attention_factor,
            mscale,
            mscale_all_dim,
            truncate,
        } => {
            let usual = (*beta_fast, *beta_slow, *truncate) == (32.0, 1.0, true);
            if !usual || attention_factor.is_some() || mscale.is_some() || mscale_all_dim.is_some() {
                return Err(
                    "its yarn scaling has settings beside factor and original length, which are not written".into()
                );
            }
            set("type", Value::string("yarn"));
            set("factor", Value::F32(*factor as f32));
            set("original_context_length", original(*original_max_position_embeddings)?);
            Ok(Vec::new())
        }
        RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let bounds = (*factor, *low_freq_factor, *high_freq_factor, *original_max_position_embeddings as f64);
            Ok(vec![("rope_freqs.weight".into(), divisors(c.head_dim, c.rope.theta, bounds))])
        }
        RopeKind::LongRope { .. } => Err("its longrope scaling has no form there that is written; `hf` has".into()),
    }
}

/// What each frequency is divided by (`rope_freqs.weight`): 1 for short waves, `factor` for long ones, between them a blend.
fn divisors(head_dim: usize, theta: f64, (factor, low, high, context): (f64, f64, f64, f64)) -> Vec<f32> {
    let one = |i: usize| {
        let wavelength = 2.0 * PI * theta.powf((2 * i) as f64 / head_dim as f64);
        if wavelength < context / high {
            1.0
        } else if wavelength > context / low {
            factor as f32
        } else {
            let smooth = (context / wavelength - low) / (high - low);
            (1.0 / ((1.0 - smooth) / factor + smooth)) as f32
        }
    };
    (0..head_dim / 2).map(one).collect()
}
