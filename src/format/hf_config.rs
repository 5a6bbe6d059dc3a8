//! A model's `config.json`, as transformers 4 (`rope_theta`, `rope_scaling`, `torch_dtype`) and 5 (`rope_parameters`,
//! `dtype`) write it. Keys not listed here are ignored.

use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::atomic::write_atomic;
use super::gguf::Gguf;
use crate::config::RopeScalingChoice;
use crate::error::{Error, Result};

/// The families there are, by `model_type`.
pub const SUPPORTED: [&str; 6] = ["llama", "mistral", "qwen2", "qwen3", "phi3", "gpt2"];

/// Every number is within the bounds stated. Named as most families name them; GPT-2's own names are in [`key`].
#[derive(Debug, Clone, PartialEq)]
pub struct HfConfig {
    pub architectures: Vec<String>,
    /// One of [`SUPPORTED`].
    pub model_type: String,
    /// 1..=2^24.
    pub vocab_size: usize,
    /// 1..=2^20.
    pub hidden_size: usize,
    /// 1..=2^24.
    pub intermediate_size: usize,
    /// 1..=4096.
    pub num_hidden_layers: usize,
    /// 1..=65536.
    pub num_attention_heads: usize,
    /// Divides num_attention_heads.
    pub num_key_value_heads: usize,
    /// Even, 2..=4096; not always hidden_size / num_attention_heads.
    pub head_dim: usize,
    /// In (0, 1); GPT-2's `layer_norm_epsilon`.
    pub rms_norm_eps: f64,
    pub rope: Rope,
    /// What each frequency (head_dim / 2) is divided by besides; only GGUF files have such.
    pub rope_divisors: Option<Vec<f32>>,
    /// 1..=2^31.
    pub max_position_embeddings: usize,
    /// For each layer, how many positions back a token sees, itself included; None: all.
    pub windows: Vec<Option<usize>>,
    pub tie_word_embeddings: bool,
    /// `attention_bias` as written: a bias on q, k, v and o. Qwen2 has one on q, k, v whatever this says.
    pub attention_bias: bool,
    pub mlp_bias: bool,
    /// "silu"; of GPT-2 "gelu_new", "gelu_pytorch_tanh" (the same) or "gelu".
    pub hidden_act: String,
    pub bos_token_id: Option<u32>,
    pub eos_token_id: Vec<u32>,
    /// "float32", "bfloat16" or "float16"; None where the file does not say.
    pub dtype: Option<String>,
}

/// Rotary position embedding: base and scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// Above 1, finite.
    pub theta: f64,
    pub kind: RopeKind,
}

/// `rope_type` with its parameters, named as in the file. Each factor is finite and at least 1.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeKind {
    Default,
    Linear {
        factor: f64,
    },
    Dynamic {
        factor: f64,
    },
    Yarn {
        factor: f64,
        original_max_position_embeddings: usize,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: Option<f64>,
        mscale: Option<f64>,
        mscale_all_dim: Option<f64>,
        truncate: bool,
    },
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_position_embeddings: usize,
    },
    /// Phi-3's, as far as sequences fit into the original length: each frequency is divided by its short factor.
    LongRope {
        /// head_dim / 2 of them, positive.
        short_factor: Vec<f64>,
        /// None: max_position_embeddings over the original length.
        factor: Option<f64>,
        attention_factor: Option<f64>,
        original_max_position_embeddings: usize,
    },
}

impl HfConfig {
    /// Reads `folder/config.json`, or the settings of a GGUF file.
    ///
    /// # Errors
    /// [`Error::File`] naming the key that is missing, of the wrong type, out of bounds or not supported.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.is_file() {
            return Gguf::open(folder)?.config();
        }
        let path = folder.join("config.json");
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot read", &e))?;
        Self::parse(&path, &text)
    }

    /// Reads the text of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// As [`HfConfig::open`].
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        let object = serde_json::from_str(text).map_err(|e| Error::file(path, format!("is not a JSON object: {e}")))?;
        Self::of(path, &object)
    }

    /// Reads the keys of a config.json; `path` is for messages.
    ///
    /// # Errors
    /// As [`HfConfig::open`].
    pub(super) fn of(path: &Path, object: &Map<String, Value>) -> Result<Self> {
        parse(object).map_err(|why| Error::file(path, why))
    }

    /// Sets the scaling that a run asks for, by LLaMA-Factory's rule: none if `model_max_length` fits as it is; otherwise
    /// the factor is ceil(model_max_length / old), and `max_position_embeddings` grows by it.
    pub fn scale_rope(&mut self, choice: RopeScalingChoice, model_max_length: usize) {
        let old = match self.rope.kind {
            RopeKind::Yarn { original_max_position_embeddings: n, .. }
            | RopeKind::Llama3 { original_max_position_embeddings: n, .. }
            | RopeKind::LongRope { original_max_position_embeddings: n, .. } => n,
            _ => self.max_position_embeddings,
        };
        if model_max_length <= old {
            log::warn!("rope_scaling: {model_max_length} tokens fit into the model's {old}; not scaled");
            return;
        }
        let times = model_max_length.div_ceil(old);
        let factor = times as f64;
        self.rope.kind = match choice {
            RopeScalingChoice::Linear => RopeKind::Linear { factor },
            RopeScalingChoice::Dynamic => RopeKind::Dynamic { factor },
            RopeScalingChoice::Yarn => yarn(factor, old),
            RopeScalingChoice::Llama3 => RopeKind::Llama3 {
                factor,
                low_freq_factor: 1.0,
                high_freq_factor: 4.0,
                original_max_position_embeddings: old,
            },
        };
        self.max_position_embeddings = old.saturating_mul(times);
    }
}

/// YaRN with the defaults of its paper (arXiv:2309.00071).
fn yarn(factor: f64, original_max_position_embeddings: usize) -> RopeKind {
    RopeKind::Yarn {
        factor,
        original_max_position_embeddings,
        beta_fast: 32.0,
        beta_slow: 1.0,
        attention_factor: None,
        mscale: None,
        mscale_all_dim: None,
        truncate: true,
    }
}

/// Carries the base model's config.json to `to`, for a fully tuned model: as it is, but for the dtype of the weights, if
/// another is given ("float32", "bfloat16").
///
/// # Errors
/// [`Error::File`].
pub fn carry(from: &Path, to: &Path, dtype: Option<&str>) -> Result<()> {
    let source = from.join("config.json");
    let text = fs::read_to_string(&source).map_err(|e| Error::io(&source, "cannot read", &e))?;
    let text = match dtype {
        None => text,
        Some(dtype) => {
            let mut config: Map<String, Value> =
                serde_json::from_str(&text).map_err(|e| Error::file(&source, format!("is not a JSON object: {e}")))?;
            let key = if config.contains_key("torch_dtype") { "torch_dtype" } else { "dtype" };
            config.insert(key.into(), dtype.into());
            format!("{:#}\n", Value::Object(config))
        }
    };
    write_atomic(&to.join("config.json"), text.as_bytes())
}

type Answer<T> = std::result::Result<T, String>;

fn parse(object: &Map<String, Value>) -> Answer<HfConfig> {
    let c = Keys(object);
    if let Some(q) = c.get("quantization_config") {
        let method = q.get("quant_method").and_then(Value::as_str).unwrap_or("unknown");
        return Err(format!(
            "is of a model quantised with {}, which is not supported: use the 16-bit model with `quantization_bit: 4`",
            method.to_uppercase()
        ));
    }
    let model_type = c.text("model_type")?.ok_or("has no `model_type`")?;
    if !SUPPORTED.contains(&model_type.as_str()) {
        return Err(format!("`model_type` {model_type} is not supported; {} are", SUPPORTED.join(", ")));
    }
    let (gpt2, phi3) = (model_type == "gpt2", model_type == "phi3");
    if gpt2 {
        plain_gpt2(&c)?;
    }
    let name = |common| key(&model_type, common);
    let hidden_size = c.size(name("hidden_size"), 1 << 20, None)?;
    let num_attention_heads = c.size(name("num_attention_heads"), 1 << 16, None)?;
    let num_hidden_layers = c.size(name("num_hidden_layers"), 4096, None)?;
    // Defaults are those of each family's configuration class in transformers, for keys that a file may leave out.
    let heads = if model_type == "mistral" { 8 } else { 32 };
    let kv_default = match (c.written("num_key_value_heads"), model_type.as_str()) {
        (true, _) | (_, "llama" | "phi3" | "gpt2") => num_attention_heads, // null: as many as there are heads
        _ => heads,
    };
    let num_key_value_heads = c.size("num_key_value_heads", 1 << 16, Some(kv_default))?;
    if num_attention_heads % num_key_value_heads != 0 {
        return Err(format!(
            "`num_key_value_heads` ({num_key_value_heads}) must divide `num_attention_heads` ({num_attention_heads})"
        ));
    }
    let head_dim = match (c.get("head_dim"), model_type.as_str()) {
        (None, "qwen3") => 128,
        (None, _) if hidden_size % num_attention_heads == 0 => hidden_size / num_attention_heads,
        (None, _) => {
            return Err(format!(
                "`num_attention_heads` ({num_attention_heads}) must divide `hidden_size` ({hidden_size}), or `head_dim` be given"
            ));
        }
        (Some(_), _) => c.size("head_dim", 4096, None)?,
    };
    if head_dim % 2 != 0 || head_dim > 4096 || head_dim == 0 {
        return Err(format!("`head_dim` must be even and at most 4096, got {head_dim}"));
    }
    let rms_norm_eps = c.number(name("rms_norm_eps"))?.unwrap_or(if gpt2 || phi3 { 1e-5 } else { 1e-6 });
    if !(rms_norm_eps > 0.0 && rms_norm_eps < 1.0) {
        return Err(format!("`{}` must be in (0, 1), got {rms_norm_eps}", name("rms_norm_eps")));
    }
    let known: &[&str] = if gpt2 { &["gelu_new", "gelu_pytorch_tanh", "gelu"] } else { &["silu", "swish"] };
    let hidden_act = c.text(name("hidden_act"))?.unwrap_or_else(|| known[0].into());
    if !known.contains(&hidden_act.as_str()) {
        let (key, most) = (name("hidden_act"), if gpt2 { "gelu_new, gelu_pytorch_tanh, gelu are" } else { "silu is" });
        return Err(format!("`{key}` {hidden_act} is not supported; {most}"));
    }
    let positions = match model_type.as_str() {
        "llama" => 2048,
        "mistral" => 131_072,
        "phi3" => 4096,
        "gpt2" => 1024,
        _ => 32_768,
    };
    let max_position_embeddings = c.size(name("max_position_embeddings"), 1 << 31, Some(positions))?;
    let dtype = c.text("dtype")?.or(c.text("torch_dtype")?).map(|d| d.trim_start_matches("torch.").to_string());
    Ok(HfConfig {
        architectures: c.texts("architectures")?.unwrap_or_default(),
        vocab_size: c.size("vocab_size", 1 << 24, None)?,
        hidden_size,
        intermediate_size: c.size(name("intermediate_size"), 1 << 24, gpt2.then_some(4 * hidden_size))?,
        num_hidden_layers,
        num_attention_heads,
        num_key_value_heads,
        head_dim,
        rms_norm_eps,
        rope: parse_rope(&c, &model_type, max_position_embeddings, head_dim)?,
        rope_divisors: None,
        max_position_embeddings,
        windows: parse_windows(&c, &model_type, num_hidden_layers)?,
        tie_word_embeddings: c.flag("tie_word_embeddings")?.unwrap_or(gpt2),
        attention_bias: c.flag("attention_bias")?.unwrap_or(false),
        mlp_bias: c.flag("mlp_bias")?.unwrap_or(false),
        hidden_act: if gpt2 { hidden_act } else { "silu".into() },
        bos_token_id: c.ids("bos_token_id")?.first().copied(),
        eos_token_id: c.ids("eos_token_id")?,
        dtype,
        model_type,
    })
}

/// What a family calls a key that most call `common`.
pub(super) fn key(model_type: &str, common: &'static str) -> &'static str {
    match (model_type, common) {
        ("gpt2", "hidden_size") => "n_embd",
        ("gpt2", "intermediate_size") => "n_inner",
        ("gpt2", "num_hidden_layers") => "n_layer",
        ("gpt2", "num_attention_heads") => "n_head",
        ("gpt2", "max_position_embeddings") => "n_positions",
        ("gpt2", "rms_norm_eps") => "layer_norm_epsilon",
        ("gpt2", "hidden_act") => "activation_function",
        _ => common,
    }
}

/// Refuses what some models of GPT-2's class have and GPT-2 has not.
fn plain_gpt2(c: &Keys<'_>) -> Answer<()> {
    let wrong =
        [("scale_attn_weights", false), ("scale_attn_by_inverse_layer_idx", true), ("add_cross_attention", true)];
    for (key, value) in wrong {
        if c.flag(key)? == Some(value) {
            return Err(format!("`{key}` {value} is not supported; {} is", !value));
        }
    }
    Ok(())
}

/// Which layers look through a window. Mistral and Phi-3: all; Qwen: with `use_sliding_window`, those that `layer_types` names, or
/// without it those from `max_window_layers` on; Llama: none.
fn parse_windows(c: &Keys<'_>, model_type: &str, layers: usize) -> Answer<Vec<Option<usize>>> {
    let used = match model_type {
        "mistral" | "phi3" => true,
        "qwen2" | "qwen3" => c.flag("use_sliding_window")?.unwrap_or(false),
        _ => false,
    };
    // Mistral's and Qwen's configuration classes have a default, Phi-3's has none.
    let absent = !c.written("sliding_window") && model_type != "phi3";
    if !used || (c.get("sliding_window").is_none() && !absent) {
        return Ok(vec![None; layers]);
    }
    let window = c.size("sliding_window", 1 << 31, Some(4096))?;
    if model_type == "mistral" || model_type == "phi3" {
        return Ok(vec![Some(window); layers]);
    }
    let Some(types) = c.texts("layer_types")? else {
        let first = c.count("max_window_layers")?.unwrap_or(28);
        return Ok((0..layers).map(|i| (i >= first).then_some(window)).collect());
    };
    if types.len() != layers {
        return Err(format!("`layer_types` has {} entries for {layers} layers", types.len()));
    }
    let kind = |t: &String| match t.as_str() {
        "full_attention" => Ok(None),
        "sliding_attention" => Ok(Some(window)),
        other => Err(format!("`layer_types` holds {other}; full_attention and sliding_attention are supported")),
    };
    types.iter().map(kind).collect()
}

fn parse_rope(c: &Keys<'_>, model_type: &str, max_position_embeddings: usize, head_dim: usize) -> Answer<Rope> {
    let empty = Map::new();
    let object = |key: &str| match c.get(key) {
        None => Ok(None),
        Some(Value::Object(o)) => Ok(Some(o)),
        Some(other) => Err(format!("`{key}` must be an object or null, got {other}")),
    };
    let written = object("rope_parameters")?.or(object("rope_scaling")?).unwrap_or(&empty);
    if !written.is_empty() && written.values().all(Value::is_object) {
        return Err("`rope_parameters` by layer type are not supported".into());
    }
    let p = Keys(written);
    let theta = p.number("rope_theta")?.or(c.number("rope_theta")?).unwrap_or(10_000.0);
    if !(theta > 1.0 && theta.is_finite()) {
        return Err(format!("`rope_theta` must be above 1, got {theta}"));
    }
    let partial = p.number("partial_rotary_factor")?.or(c.number("partial_rotary_factor")?).unwrap_or(1.0);
    if partial != 1.0 {
        return Err(format!("`partial_rotary_factor` {partial} is not supported; 1 is"));
    }
    let original = || -> Answer<usize> {
        match p.get("original_max_position_embeddings").is_some() {
            true => p.size("original_max_position_embeddings", 1 << 31, None),
            false => c.size("original_max_position_embeddings", 1 << 31, Some(max_position_embeddings)),
        }
    };
    let positive = |key: &str, least: f64| -> Answer<f64> {
        let x = p.number(key)?.ok_or_else(|| format!("its rope scaling lacks `{key}`"))?;
        if x >= least && x > 0.0 && x.is_finite() {
            Ok(x)
        } else {
            Err(format!("rope `{key}` must be at least {least}, got {x}"))
        }
    };
    let kind = p.text("rope_type")?.or(p.text("type")?).unwrap_or_else(|| "default".into());
    // Early Phi-3 files call longrope so.
    let kind = match (model_type, kind.as_str()) {
        ("phi3", "su" | "yarn") => "longrope",
        (_, kind) => kind,
    };
    let kind = match kind {
        "default" => RopeKind::Default,
        "linear" => RopeKind::Linear { factor: positive("factor", 1.0)? },
        "dynamic" => RopeKind::Dynamic { factor: positive("factor", 1.0)? },
        "yarn" => RopeKind::Yarn {
            factor: positive("factor", 1.0)?,
            original_max_position_embeddings: original()?,
            beta_fast: p.number("beta_fast")?.filter(|b| *b != 0.0).unwrap_or(32.0),
            beta_slow: p.number("beta_slow")?.filter(|b| *b != 0.0).unwrap_or(1.0),
            attention_factor: p.number("attention_factor")?,
            mscale: p.number("mscale")?,
            mscale_all_dim: p.number("mscale_all_dim")?,
            truncate: p.flag("truncate")?.unwrap_or(true),
        },
        "llama3" => {
            let (low, high) = (positive("low_freq_factor", 0.0)?, positive("high_freq_factor", 0.0)?);
            if high <= low {
                return Err(format!("rope `high_freq_factor` ({high}) must be above `low_freq_factor` ({low})"));
            }
            RopeKind::Llama3 {
                factor: positive("factor", 1.0)?,
                low_freq_factor: low,
                high_freq_factor: high,
                original_max_position_embeddings: original()?,
            }
        }
        "longrope" if model_type == "phi3" => RopeKind::LongRope {
            short_factor: p.factors("short_factor", head_dim / 2)?,
            factor: p.number("factor")?.map(|_| positive("factor", 0.0)).transpose()?,
            attention_factor: p.number("attention_factor")?,
            // Beside the scaling first, as transformers looks for it.
            original_max_position_embeddings: match c.get("original_max_position_embeddings").is_some() {
                true => c.size("original_max_position_embeddings", 1 << 31, None)?,
                false => p.size("original_max_position_embeddings", 1 << 31, Some(4096))?,
            },
        },
        other => return Err(format!("rope type {other} is not supported; default, linear, dynamic, yarn, llama3 are")),
    };
    Ok(Rope { theta, kind })
}

/// Typed access to an object's keys; null counts as absent, except for [`Keys::written`].
struct Keys<'a>(&'a Map<String, Value>);

impl Keys<'_> {
    fn get(&self, key: &str) -> Option<&Value> {
        self.0.get(key).filter(|v| !v.is_null())
    }

    fn written(&self, key: &str) -> bool {
        self.0.contains_key(key)
    }

    fn typed<T>(&self, key: &str, what: &str, read: impl Fn(&Value) -> Option<T>) -> Answer<Option<T>> {
        let found = self.get(key).map(|v| read(v).ok_or_else(|| format!("`{key}` must be {what}, got {v}")));
        found.transpose()
    }

    fn text(&self, key: &str) -> Answer<Option<String>> {
        self.typed(key, "a text", |v| v.as_str().map(str::to_string))
    }

    fn texts(&self, key: &str) -> Answer<Option<Vec<String>>> {
        self.typed(key, "a list of texts", |v| v.as_array()?.iter().map(|t| t.as_str().map(str::to_string)).collect())
    }

    fn flag(&self, key: &str) -> Answer<Option<bool>> {
        self.typed(key, "true or false", Value::as_bool)
    }

    fn number(&self, key: &str) -> Answer<Option<f64>> {
        self.typed(key, "a number", |v| v.as_f64().filter(|x| x.is_finite()))
    }

    fn count(&self, key: &str) -> Answer<Option<usize>> {
        self.typed(key, "a count", |v| v.as_u64().and_then(|n| usize::try_from(n).ok()))
    }

    /// A size in 1..=most; `default` None: required.
    fn size(&self, key: &str, most: usize, default: Option<usize>) -> Answer<usize> {
        // 4096.0 is written too, by LLaMA-Factory's scaled max_position_embeddings.
        let whole =
            |v: &Value| v.as_u64().or_else(|| v.as_f64().filter(|x| x.fract() == 0.0 && *x >= 0.0).map(|x| x as u64));
        let n = self.typed(key, "a whole number", whole)?.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
        let n = n.or(default).ok_or_else(|| format!("has no `{key}`"))?;
        if n == 0 || n > most { Err(format!("`{key}` must be in 1..={most}, got {n}")) } else { Ok(n) }
    }

    /// `n` positive numbers.
    fn factors(&self, key: &str, n: usize) -> Answer<Vec<f64>> {
        let numbers = self.typed(key, "a list of numbers", |v| v.as_array()?.iter().map(Value::as_f64).collect())?;
        let numbers: Vec<f64> = numbers.ok_or_else(|| format!("its rope scaling lacks `{key}`"))?;
        match numbers.len() == n && numbers.iter().all(|x| *x > 0.0 && x.is_finite()) {
            true => Ok(numbers),
            false => Err(format!("rope `{key}` must be {n} positive numbers, got {numbers:?}")),
        }
    }

    /// A token id, a list of them, or none.
    fn ids(&self, key: &str) -> Answer<Vec<u32>> {
        let id = |v: &Value| v.as_u64().and_then(|n| u32::try_from(n).ok());
        let ids = self.typed(key, "a token id or a list of them", |v| match v {
            Value::Array(list) => list.iter().map(id).collect(),
            one => id(one).map(|n| vec![n]),
        });
        ids.map(Option::unwrap_or_default)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn parse_text(text: &str) -> std::result::Result<HfConfig, String> {
        HfConfig::parse(Path::new("config.json"), text).map_err(|e| e.to_string())
    }

    const SIZES: &str =
        r#""vocab_size":128,"hidden_size":64,"intermediate_size":96,"num_hidden_layers":3,"num_attention_heads":4"#;

    fn of(model_type: &str, rest: &str) -> Answer<HfConfig> {
        let comma = if rest.is_empty() { "" } else { "," };
        parse_text(&format!("{{\"model_type\":\"{model_type}\",{SIZES}{comma}{rest}}}"))
    }

    #[test]
    fn both_generations_say_the_same() {
        let old = r#""rope_theta":500000.0,"torch_dtype":"bfloat16","eos_token_id":[5,6],"num_key_value_heads":2,
            "rope_scaling":{"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#;
        let new = r#""dtype":"bfloat16","eos_token_id":[5,6],"num_key_value_heads":2,
            "rope_parameters":{"rope_theta":500000.0,"rope_type":"llama3","factor":8.0,"low_freq_factor":1.0,"high_freq_factor":4.0,"original_max_position_embeddings":8192}"#;
        let config = of("llama", old).unwrap();
        assert_eq!(config, of("llama", new).unwrap());
        assert_eq!((config.head_dim, config.num_key_value_heads, config.rope.theta), (16, 2, 500_000.0));
        assert_eq!(config.eos_token_id, [5, 6]);
        assert!(matches!(config.rope.kind, RopeKind::Llama3 { original_max_position_embeddings: 8192, .. }));
        let typed = of("llama", r#""rope_scaling":{"type":"linear","factor":2}"#).unwrap();
        assert_eq!(typed.rope, Rope { theta: 10_000.0, kind: RopeKind::Linear { factor: 2.0 } });
    }

    #[test]
    fn windows_by_family() {
        let windows = |t, rest: &str| of(t, rest).unwrap().windows;
        assert_eq!(windows("llama", r#""sliding_window":8"#), [None; 3]);
        assert_eq!(windows("mistral", r#""num_key_value_heads":2,"sliding_window":8"#), [Some(8); 3]);
        assert_eq!(windows("mistral", r#""num_key_value_heads":2,"sliding_window":null"#), [None; 3]);
        assert_eq!(windows("mistral", r#""num_key_value_heads":2"#), [Some(4096); 3]);
        assert_eq!(windows("phi3", ""), [None; 3]);
        assert_eq!(windows("phi3", r#""sliding_window":2047"#), [Some(2047); 3]);
        let qwen = r#""num_key_value_heads":2,"sliding_window":8,"max_window_layers":1"#;
        assert_eq!(windows("qwen2", qwen), [None; 3]);
        assert_eq!(windows("qwen3", &format!("{qwen},\"use_sliding_window\":true")), [None, Some(8), Some(8)]);
        let types =
            r#","use_sliding_window":true,"layer_types":["sliding_attention","full_attention","full_attention"]"#;
        assert_eq!(windows("qwen3", &format!("{qwen}{types}")), [Some(8), None, None]);
    }

    #[test]
    fn what_cannot_be_is_named() {
        let wrong = |t, rest: &str| of(t, rest).unwrap_err();
        let gemma = "`model_type` gemma is not supported; llama, mistral, qwen2, qwen3, phi3, gpt2 are";
        assert!(wrong("gemma", "").contains(gemma));
        assert!(wrong("gpt2", "").contains("has no `n_embd`"));
        let gpt2 = |rest: &str| {
            let sizes = r#""model_type":"gpt2","vocab_size":128,"n_embd":64,"n_layer":3,"n_head":4"#;
            parse_text(&format!("{{{sizes}{rest}}}"))
        };
        let c = gpt2("").unwrap();
        assert_eq!((c.intermediate_size, c.max_position_embeddings, c.num_key_value_heads), (256, 1024, 4));
        assert_eq!((c.hidden_act.as_str(), c.tie_word_embeddings, c.rms_norm_eps), ("gelu_new", true, 1e-5));
        for (key, value) in [
            ("scale_attn_by_inverse_layer_idx", "true"),
            ("scale_attn_weights", "false"),
            ("activation_function", "\"relu\""),
        ] {
            assert!(gpt2(&format!(",\"{key}\":{value}")).unwrap_err().contains(&format!("`{key}`")));
        }
        let phi3 = |rest: &str| of("phi3", rest);
        assert!(phi3(r#""partial_rotary_factor":0.75"#).unwrap_err().contains("`partial_rotary_factor` 0.75"));
        let scaling = |n: usize| format!(r#""rope_scaling":{{"type":"su","short_factor":{:?}}}"#, vec![1.5; n]);
        assert!(phi3(&scaling(7)).unwrap_err().contains("`short_factor` must be 8 positive numbers"));
        let kind = phi3(&scaling(8)).unwrap().rope.kind;
        assert!(matches!(kind, RopeKind::LongRope { original_max_position_embeddings: 4096, factor: None, .. }));
        let gptq = wrong("llama", r#""quantization_config":{"quant_method":"gptq"}"#);
        assert!(gptq.contains("quantised with GPTQ") && gptq.contains("quantization_bit: 4"));
        assert!(parse_text(r#"{"model_type":"llama"}"#).unwrap_err().contains("has no `hidden_size`"));
        assert!(parse_text("[1]").unwrap_err().contains("is not a JSON object"));
        assert!(wrong("llama", r#""num_key_value_heads":3"#).contains("must divide"));
        assert!(wrong("llama", r#""head_dim":7"#).contains("must be even"));
        assert!(wrong("llama", r#""head_dim":0"#).contains("1..=4096"));
        assert!(wrong("llama", r#""rms_norm_eps":0"#).contains("`rms_norm_eps`"));
        assert!(wrong("llama", r#""hidden_act":"gelu""#).contains("gelu is not supported"));
        assert!(wrong("llama", r#""rope_theta":-1"#).contains("`rope_theta`"));
        assert!(wrong("llama", r#""rope_scaling":{"type":"longrope"}"#).contains("rope type longrope"));
        assert!(wrong("llama", r#""rope_scaling":{"type":"linear"}"#).contains("lacks `factor`"));
        assert!(wrong("llama", r#""tie_word_embeddings":"yes""#).contains("must be true or false, got \"yes\""));
        assert!(wrong("llama", r#""eos_token_id":-1"#).contains("`eos_token_id` must be a token id"));
    }

    #[test]
    fn scaling_by_the_run() {
        let mut config = of("llama", "").unwrap();
        config.scale_rope(RopeScalingChoice::Linear, 2048);
        assert_eq!(config.rope.kind, RopeKind::Default);
        config.scale_rope(RopeScalingChoice::Linear, 5000);
        assert_eq!((config.rope.kind, config.max_position_embeddings), (RopeKind::Linear { factor: 3.0 }, 6144));
    }

    #[test]
    fn carried_through() {
        let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        let text = "{\"z\": 1, \"torch_dtype\": \"bfloat16\",\n\"a\": [1e-05]}";
        fs::write(from.path().join("config.json"), text).unwrap();
        carry(from.path(), to.path(), None).unwrap();
        assert_eq!(fs::read_to_string(to.path().join("config.json")).unwrap(), text);
        carry(from.path(), to.path(), Some("float32")).unwrap();
        let changed: Value = serde_json::from_str(&fs::read_to_string(to.path().join("config.json")).unwrap()).unwrap();
        assert_eq!(changed, serde_json::json!({"z": 1, "torch_dtype": "float32", "a": [1e-05]}));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(128))]

        /// Any value under any key: an answer, and sizes within their bounds.
        #[test]
        fn junk_never_panics(
            key in prop::sample::select(vec!["vocab_size", "head_dim", "num_key_value_heads", "sliding_window", "layer_types",
                "rope_scaling", "rope_parameters", "rope_theta", "eos_token_id", "max_position_embeddings", "dtype"]),
            value in prop::sample::select(vec!["0", "-1", "1e300", "18446744073709551615", "\"x\"", "[]", "[null]", "{}",
                "{\"type\":\"yarn\",\"factor\":1e999}", "{\"type\":\"yarn\",\"factor\":4}", "true", "null", "3.5", "{\"a\":{}}"]),
            model in prop::sample::select(SUPPORTED.to_vec()),
        ) {
            if let Ok(c) = of(model, &format!("\"use_sliding_window\":true,\"{key}\":{value}")) {
                prop_assert!(c.vocab_size >= 1 && c.head_dim >= 2 && c.num_attention_heads % c.num_key_value_heads == 0);
                prop_assert_eq!(c.windows.len(), c.num_hidden_layers);
                prop_assert!(c.rope.theta.is_finite());
            }
        }
    }
}
