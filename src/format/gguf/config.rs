//! A GGUF's settings as a config.json says them, so that both are read and checked by the same code.

use serde_json::{Map, Value, json};

use super::{GgmlType, Gguf, Metadata};
use crate::error::{Error, Result};
use crate::format::{HfConfig, hf_config};

/// (llama.cpp's architecture, `model_type`). Mistral's files say llama.
const ARCHITECTURES: [(&str, &str); 5] =
    [("llama", "llama"), ("qwen2", "qwen2"), ("qwen3", "qwen3"), ("gpt2", "gpt2"), ("phi3", "phi3")];

impl Gguf {
    /// `general.architecture`.
    ///
    /// # Errors
    /// [`Error::File`] if the file names none, or one that is not supported, or if it is an adapter.
    pub fn architecture(&self) -> Result<&'static str> {
        let m = self.metadata();
        if let Some(kind) = m.string("general.type")?.filter(|kind| *kind != "model") {
            return Err(m.error("general.type", format!("is {kind}: the file is no model")));
        }
        let name = m.string("general.architecture")?;
        let name = name.ok_or_else(|| m.error("general.architecture", "is missing"))?;
        match ARCHITECTURES.iter().find(|(known, _)| *known == name) {
            Some((known, _)) => Ok(known),
            None => {
                let known: Vec<_> = ARCHITECTURES.iter().map(|(known, _)| *known).collect();
                let why = format!("is {name}, which is not supported; {} are", known.join(", "));
                Err(m.error("general.architecture", why))
            }
        }
    }

    /// The model's config, in Hugging Face's terms.
    ///
    /// # Errors
    /// [`Error::File`] naming the key that is missing, of the wrong type, out of bounds or not supported.
    pub fn config(&self) -> Result<HfConfig> {
        let arch = self.architecture()?;
        let c = Keys { m: self.metadata(), arch };
        let mut out = Map::new();
        let window = c.number("attention.sliding_window")?.filter(|w| *w > 0);
        let model_type = match ARCHITECTURES.iter().find(|(known, _)| *known == arch) {
            // Of the two only Mistral has one.
            Some((_, "llama")) if window.is_some() => "mistral",
            Some((_, model_type)) => *model_type,
            None => arch,
        };
        out.insert("model_type".into(), json!(model_type));
        let embedding = self.find("token_embd.weight").ok_or_else(|| self.lacks("token_embd.weight"))?;
        out.insert("vocab_size".into(), json!(embedding.rows()));
        let heads = c.number("attention.head_count")?;
        for (key, value) in [
            ("hidden_size", c.number("embedding_length")?),
            ("num_hidden_layers", c.number("block_count")?),
            ("intermediate_size", c.number("feed_forward_length")?),
            ("num_attention_heads", heads),
            ("num_key_value_heads", c.number("attention.head_count_kv")?.or(heads)),
            ("head_dim", c.number("attention.key_length")?),
            ("max_position_embeddings", c.number("context_length")?),
            ("bos_token_id", c.m.number("tokenizer.ggml.bos_token_id")?),
            ("eos_token_id", c.m.number("tokenizer.ggml.eos_token_id")?),
        ] {
            out.extend(value.map(|n| (hf_config::key(model_type, key).to_string(), json!(n))));
        }
        // Some files have it, where it is hidden_size / heads.
        let hidden = c.number("embedding_length")?.unwrap_or(0);
        if let (None, Some(heads)) = (c.number("attention.key_length")?, heads.filter(|h| *h > 0 && hidden % h == 0)) {
            out.insert("head_dim".into(), json!(hidden / heads));
        }
        let epsilon = if arch == "gpt2" { "attention.layer_norm_epsilon" } else { "attention.layer_norm_rms_epsilon" };
        let epsilon = c.float(epsilon)?.ok_or_else(|| c.missing(epsilon))?;
        out.insert(hf_config::key(model_type, "rms_norm_eps").into(), json!(epsilon));
        if let Some(window) = window {
            out.insert("sliding_window".into(), json!(window));
        }
        if let Some(theta) = c.float("rope.freq_base")? {
            out.insert("rope_theta".into(), json!(theta));
        }
        out.extend(c.rope_scaling()?.map(|scaling| ("rope_scaling".to_string(), scaling)));
        if let Some(factors) = self.divisors("rope_factors_short.weight")? {
            // Phi-3's scaling for long sequences, as far as they fit into the length before it.
            let mut scaling = json!({"rope_type": "longrope", "short_factor": factors});
            if let (Some(factor), Some(o)) = (c.float("rope.scaling.attn_factor")?, scaling.as_object_mut()) {
                o.insert("attention_factor".into(), json!(factor));
            }
            out.insert("rope_scaling".into(), scaling);
            let original = c.number("rope.scaling.original_context_length")?;
            out.extend(original.map(|n| ("original_max_position_embeddings".to_string(), json!(n))));
        }
        self.check_rotation(&c, &out)?;
        out.insert("tie_word_embeddings".into(), json!(self.find("output.weight").is_none()));
        out.insert("attention_bias".into(), json!(self.find("blk.0.attn_output.bias").is_some()));
        out.insert("mlp_bias".into(), json!(self.find("blk.0.ffn_down.bias").is_some()));
        let mut config = HfConfig::of(self.path(), &out)?;
        // Llama 3.1's scaling.
        config.rope_divisors = self.divisors("rope_freqs.weight")?;
        match &config.rope_divisors {
            Some(divisors) if divisors.len() != config.head_dim / 2 => {
                let why = format!("has {} numbers, head_dim is {}", divisors.len(), config.head_dim);
                Err(Error::weights(self.path(), "rope_freqs.weight", why))
            }
            _ => Ok(config),
        }
    }

    fn lacks(&self, tensor: &str) -> Error {
        Error::weights(self.path(), tensor, "is missing")
    }

    /// Only rotations of whole heads are supported.
    fn check_rotation(&self, c: &Keys, config: &Map<String, Value>) -> Result<()> {
        let whole = config.get("head_dim").and_then(Value::as_u64);
        match (c.number("rope.dimension_count")?, whole) {
            (Some(n), Some(head_dim)) if n != head_dim => {
                let why = format!("is {n} of {head_dim}; only rotations of whole heads are supported");
                Err(c.m.error(&c.key("rope.dimension_count"), why))
            }
            _ => Ok(()),
        }
    }

    /// What a scaling of the rotation divides each frequency by, which converters write as the tensor `name`.
    fn divisors(&self, name: &str) -> Result<Option<Vec<f32>>> {
        let Some(t) = self.find(name) else { return Ok(None) };
        if t.ty != GgmlType::F32 || t.dims.len() != 1 {
            let why = format!("is {} {:?}, must be a row of F32", t.ty.name(), t.dims);
            return Err(Error::weights(self.path(), name, why));
        }
        let bytes = self.bytes(t).chunks_exact(4);
        let values: Vec<f32> = bytes.map(|b| f32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect();
        match values.iter().find(|x| !(x.is_finite() && **x > 0.0)) {
            Some(bad) => Err(Error::weights(self.path(), name, format!("holds {bad}, which is no divisor"))),
            None => Ok(Some(values)),
        }
    }
}

/// Keys of one architecture.
struct Keys<'a> {
    m: &'a Metadata,
    arch: &'static str,
}

impl Keys<'_> {
    fn key(&self, key: &str) -> String {
        format!("{}.{key}", self.arch)
    }

    fn missing(&self, key: &str) -> Error {
        self.m.error(&self.key(key), "is missing")
    }

    fn number(&self, key: &str) -> Result<Option<u64>> {
        self.m.number(&self.key(key))
    }

    fn float(&self, key: &str) -> Result<Option<f64>> {
        self.m.float(&self.key(key))
    }

    fn rope_scaling(&self) -> Result<Option<Value>> {
        let kind = self.m.string(&self.key("rope.scaling.type"))?;
        let factor = self.float("rope.scaling.factor")?.filter(|f| *f != 0.0);
        let original = self.number("rope.scaling.original_context_length")?;
        Ok(match (kind, factor) {
            (Some("none") | None, None) => None,
            (Some("linear") | None, Some(factor)) => Some(json!({"rope_type": "linear", "factor": factor})),
            (Some("yarn"), Some(factor)) => {
                let mut yarn = json!({"rope_type": "yarn", "factor": factor});
                if let (Some(original), Some(o)) = (original, yarn.as_object_mut()) {
                    o.insert("original_max_position_embeddings".into(), json!(original));
                }
                Some(yarn)
            }
            (Some("linear" | "yarn"), None) => return Err(self.missing("rope.scaling.factor")),
            (Some("none"), Some(_)) => None,
            (Some(other), _) => {
                let why = format!("is {other}, which is not supported; none, linear and yarn are");
                return Err(self.m.error(&self.key("rope.scaling.type"), why));
            }
        })
    }
}
