//! PEFT LoRA adapters: `adapter_model.safetensors` with `adapter_config.json`, as PEFT 0.18.1 writes them, and
//! `qlora_engine.json` beside them with what PEFT has no key for.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value, json};

use super::atomic::write_atomic;
use super::gguf;
use super::safetensors::{self, Checkpoint, Dtype, TensorSpec};
use crate::error::{Error, Result};

const CONFIG: &str = "adapter_config.json";
const TENSORS: &str = "adapter_model.safetensors";
const SIDECAR: &str = "qlora_engine.json";
/// What PEFT puts before a module's path in the base model.
const PREFIX: &str = "base_model.model.";
/// The version whose files are written.
const PEFT_VERSION: &str = "0.18.1";

/// The modules that have adapters.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum TargetModules {
    /// Last parts of module paths, or whole paths.
    Names(Vec<String>),
    /// A regular expression over whole paths, or `all-linear`. Kept as text: the tensors say which modules it matched.
    Pattern(String),
}

/// `adapter_config.json`, as far as a plain LoRA goes.
#[derive(Debug, Clone, PartialEq)]
pub struct AdapterConfig {
    pub base_model_name_or_path: Option<String>,
    pub revision: Option<String>,
    /// At least 1.
    pub r: usize,
    /// Finite.
    pub lora_alpha: f64,
    /// `[0, 1)`.
    pub lora_dropout: f64,
    /// Ranks of single modules, by name or end of path.
    pub rank_pattern: BTreeMap<String, usize>,
    /// Alphas of single modules, likewise.
    pub alpha_pattern: BTreeMap<String, f64>,
    /// Scale by alpha / sqrt(r) instead of alpha / r.
    pub use_rslora: bool,
    pub target_modules: TargetModules,
    /// Modules trained and saved whole.
    pub modules_to_save: Vec<String>,
    /// The base stores its matrices as (in, out), as GPT-2 does. A and B are the same either way.
    pub fan_in_fan_out: bool,
}

impl AdapterConfig {
    /// A LoRA of rank `r` on `targets`; everything else as PEFT's defaults.
    pub fn new(r: usize, lora_alpha: f64, targets: Vec<String>) -> Self {
        AdapterConfig {
            base_model_name_or_path: None,
            revision: None,
            r,
            lora_alpha,
            lora_dropout: 0.0,
            rank_pattern: BTreeMap::new(),
            alpha_pattern: BTreeMap::new(),
            use_rslora: false,
            target_modules: TargetModules::Names(targets),
            modules_to_save: Vec::new(),
            fan_in_fan_out: false,
        }
    }

    /// Rank of `module` (its path in the base model).
    pub fn rank_of(&self, module: &str) -> usize {
        by_pattern(&self.rank_pattern, module).unwrap_or(self.r)
    }

    /// Alpha of `module`.
    pub fn alpha_of(&self, module: &str) -> f64 {
        by_pattern(&self.alpha_pattern, module).unwrap_or(self.lora_alpha)
    }

    /// What B A x is multiplied by: alpha / r, or alpha / sqrt(r) with rsLoRA (arXiv:2312.03732).
    pub fn scale_of(&self, module: &str) -> f64 {
        let r = self.rank_of(module) as f64;
        self.alpha_of(module) / if self.use_rslora { r.sqrt() } else { r }
    }

    /// Reads the text of an adapter_config.json; `path` is for messages.
    ///
    /// # Errors
    /// [`Error::File`] naming the key that is wrong, or asks for something other than a plain LoRA.
    pub fn parse(path: &Path, text: &str) -> Result<Self> {
        parse_config(text).map_err(|why| Error::file(path, why))
    }

    /// Every key that PEFT 0.18.1 writes, in its order.
    pub fn to_json(&self) -> Value {
        // PEFT writes an integral alpha as it was given, an integer.
        let number = |x: f64| if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) };
        let alphas: Map<String, Value> = self.alpha_pattern.iter().map(|(k, v)| (k.clone(), number(*v))).collect();
        let saved = if self.modules_to_save.is_empty() { Value::Null } else { json!(self.modules_to_save) };
        let targets = match &self.target_modules {
            TargetModules::Names(names) => json!(names),
            TargetModules::Pattern(pattern) => json!(pattern),
        };
        let entries = [
            ("alora_invocation_tokens", Value::Null),
            ("alpha_pattern", Value::Object(alphas)),
            ("arrow_config", Value::Null),
            ("auto_mapping", Value::Null),
            ("base_model_name_or_path", json!(self.base_model_name_or_path)),
            ("bias", json!("none")),
            ("corda_config", Value::Null),
            ("ensure_weight_tying", json!(false)),
            ("eva_config", Value::Null),
            ("exclude_modules", Value::Null),
            ("fan_in_fan_out", json!(self.fan_in_fan_out)),
            ("inference_mode", json!(true)),
            ("init_lora_weights", json!(true)),
            ("layer_replication", Value::Null),
            ("layers_pattern", Value::Null),
            ("layers_to_transform", Value::Null),
            ("loftq_config", json!({})),
            ("lora_alpha", number(self.lora_alpha)),
            ("lora_bias", json!(false)),
            ("lora_dropout", json!(self.lora_dropout)),
            ("megatron_config", Value::Null),
            ("megatron_core", json!("megatron.core")),
            ("modules_to_save", saved),
            ("peft_type", json!("LORA")),
            ("peft_version", json!(PEFT_VERSION)),
            ("qalora_group_size", json!(16)),
            ("r", json!(self.r)),
            ("rank_pattern", json!(self.rank_pattern)),
            ("revision", json!(self.revision)),
            ("target_modules", targets),
            ("target_parameters", Value::Null),
            ("task_type", json!("CAUSAL_LM")),
            ("trainable_token_indices", Value::Null),
            ("use_dora", json!(false)),
            ("use_qalora", json!(false)),
            ("use_rslora", json!(self.use_rslora)),
        ];
        Value::Object(entries.into_iter().map(|(k, v)| (k.to_string(), v)).collect())
    }
}

/// PEFT's rule: a key stands for every module whose path is the key or ends with a dot and the key; first match wins.
fn by_pattern<T: Copy>(patterns: &BTreeMap<String, T>, module: &str) -> Option<T> {
    let ends = |key: &str| module.strip_suffix(key).is_some_and(|head| head.is_empty() || head.ends_with('.'));
    patterns.iter().find(|(key, _)| ends(key.trim_start_matches('^'))).map(|(_, v)| *v)
}

type Answer<T> = std::result::Result<T, String>;

fn parse_config(text: &str) -> Answer<AdapterConfig> {
    let c: Map<String, Value> = serde_json::from_str(text).map_err(|e| format!("is not a JSON object: {e}"))?;
    let get = |key: &str| c.get(key).filter(|v| !v.is_null());
    let kind = get("peft_type").and_then(Value::as_str).unwrap_or("LORA");
    if kind != "LORA" {
        return Err(format!("`peft_type` {kind} is not supported; LORA is"));
    }
    // What makes it more than x + scale * B A x, or does not leave the base model as it is.
    let asked = |key: &str| match get(key) {
        None | Some(Value::Bool(false)) => false,
        Some(Value::Array(a)) => !a.is_empty(),
        Some(Value::Object(o)) => !o.is_empty(),
        Some(Value::String(s)) => !s.is_empty(),
        Some(_) => true,
    };
    for key in [
        "use_dora",
        "use_qalora",
        "lora_bias",
        "layer_replication",
        "trainable_token_indices",
        "target_parameters",
        "alora_invocation_tokens",
        "arrow_config",
        "megatron_config",
    ] {
        if asked(key) {
            return Err(format!("`{key}` is not supported: only plain LoRA adapters are"));
        }
    }
    if let Some(Value::String(init)) = get("init_lora_weights")
        && ["pissa", "olora", "corda", "loftq"].iter().any(|bad| init.to_lowercase().starts_with(bad))
    {
        return Err(format!(
            "`init_lora_weights` {init} changes the base model, which is not supported: convert it to LoRA"
        ));
    }
    let bias = get("bias").map_or(Some("none"), Value::as_str).unwrap_or("?");
    if bias != "none" {
        return Err(format!("`bias` {bias} is not supported; none is"));
    }
    let rank = |key: &str, v: &Value| {
        let r = v.as_u64().and_then(|r| usize::try_from(r).ok()).filter(|r| (1..=1 << 20).contains(r));
        r.ok_or_else(|| format!("`{key}` must be a rank of at least 1, got {v}"))
    };
    let number = |key: &str, v: &Value| {
        v.as_f64().filter(|x| x.is_finite()).ok_or_else(|| format!("`{key}` must be a number, got {v}"))
    };
    let plain = |key: &str, pattern: &str| {
        let name = pattern.trim_start_matches('^');
        match name.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '.') {
            true => Ok(()),
            false => Err(format!(
                "`{key}` holds the regular expression {pattern}; only names and ends of paths are supported"
            )),
        }
    };
    let object = |key: &str| match get(key) {
        None => Ok(Map::new()),
        Some(Value::Object(o)) => Ok(o.clone()),
        Some(v) => Err(format!("`{key}` must be an object, got {v}")),
    };
    let names = |key: &str, v: &Value| -> Answer<Vec<String>> {
        let list = v.as_array().and_then(|a| a.iter().map(|n| n.as_str().map(str::to_string)).collect());
        list.ok_or_else(|| format!("`{key}` must be a list of names, got {v}"))
    };
    let mut rank_pattern = BTreeMap::new();
    for (key, v) in object("rank_pattern")? {
        plain("rank_pattern", &key)?;
        rank_pattern.insert(key, rank("rank_pattern", &v)?);
    }
    let mut alpha_pattern = BTreeMap::new();
    for (key, v) in object("alpha_pattern")? {
        plain("alpha_pattern", &key)?;
        alpha_pattern.insert(key, number("alpha_pattern", &v)?);
    }
    let lora_dropout = get("lora_dropout").map_or(Ok(0.0), |v| number("lora_dropout", v))?;
    if !(0.0..1.0).contains(&lora_dropout) {
        return Err(format!("`lora_dropout` must be in [0, 1), got {lora_dropout}"));
    }
    Ok(AdapterConfig {
        base_model_name_or_path: get("base_model_name_or_path").and_then(Value::as_str).map(str::to_string),
        revision: get("revision").and_then(Value::as_str).map(str::to_string),
        r: get("r").map_or(Ok(8), |v| rank("r", v))?,
        lora_alpha: get("lora_alpha").map_or(Ok(8.0), |v| number("lora_alpha", v))?,
        lora_dropout,
        rank_pattern,
        alpha_pattern,
        use_rslora: get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
        target_modules: match get("target_modules") {
            Some(Value::String(pattern)) => TargetModules::Pattern(pattern.clone()),
            Some(v) => TargetModules::Names(names("target_modules", v)?),
            None => TargetModules::Names(Vec::new()),
        },
        modules_to_save: get("modules_to_save").map_or(Ok(Vec::new()), |v| names("modules_to_save", v))?,
        fan_in_fan_out: get("fan_in_fan_out").and_then(Value::as_bool).unwrap_or(false),
    })
}

/// What a tensor of an adapter is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Part {
    /// (r, in)
    A,
    /// (out, r)
    B,
    /// A weight or bias of a module in `modules_to_save`, whole.
    Saved,
}

/// One tensor of an adapter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct AdapterTensor {
    /// Its name in the file.
    pub name: String,
    /// For A and B, the path of the module in the base model (`model.layers.0.self_attn.q_proj`); for Saved, the name of
    /// the base model's tensor (`lm_head.weight`).
    pub module: String,
    pub part: Part,
}

/// The name under which PEFT saves a tensor; `module` as in [`AdapterTensor`].
pub fn tensor_name(module: &str, part: Part) -> String {
    match part {
        Part::A => format!("{PREFIX}{module}.lora_A.weight"),
        Part::B => format!("{PREFIX}{module}.lora_B.weight"),
        Part::Saved => format!("{PREFIX}{module}"),
    }
}

/// An adapter on disk.
#[derive(Debug)]
pub struct AdapterFile {
    pub config: AdapterConfig,
    pub tensors: Checkpoint,
    /// All of `tensors`, by module, A before B.
    pub entries: Vec<AdapterTensor>,
    /// None for an adapter that another program wrote.
    pub sidecar: Option<Sidecar>,
}

impl AdapterFile {
    /// Opens an adapter's folder, or a LoRA in a GGUF file. Afterwards each module has both A (r, in) and B (out, r) of the
    /// config's rank. To use the numbers of a GGUF file, see [`AdapterFile::open_for`].
    ///
    /// # Errors
    /// [`Error::File`] or [`Error::Weights`] naming what is missing, malformed or not a plain LoRA.
    pub fn open(folder: &Path) -> Result<Self> {
        if folder.is_file() {
            return Self::open_gguf(folder, None);
        }
        let path = folder.join(CONFIG);
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot read", &e))?;
        let config = AdapterConfig::parse(&path, &text)?;
        let weights = folder.join(TENSORS);
        if !weights.is_file() && folder.join("adapter_model.bin").is_file() {
            let why = format!(
                "holds only adapter_model.bin, which is not read (a pickle can run code): convert it to {TENSORS}"
            );
            return Err(Error::file(folder, why));
        }
        let tensors = Checkpoint::open_file(&weights)?;
        let mut entries = Vec::new();
        for name in tensors.names() {
            let (module, part) =
                parse_name(name, &config.modules_to_save).map_err(|why| Error::weights(&weights, name, why))?;
            entries.push(AdapterTensor { name: name.to_string(), module, part });
        }
        entries.sort_by(|x, y| (&x.module, x.part).cmp(&(&y.module, y.part)));
        if entries.is_empty() {
            return Err(Error::file(&weights, "holds no tensors"));
        }
        let adapter = AdapterFile { config, tensors, entries, sidecar: Sidecar::open(folder)? };
        adapter.check(&weights)?;
        Ok(adapter)
    }

    /// As [`AdapterFile::open`], for a model of so many heads of q and of k: files of llama.cpp have the rows of some modules
    /// in an order that depends on them.
    ///
    /// # Errors
    /// As [`AdapterFile::open`].
    pub fn open_for(path: &Path, heads: usize, kv_heads: usize) -> Result<Self> {
        if path.is_file() { Self::open_gguf(path, Some((heads, kv_heads))) } else { Self::open(path) }
    }

    fn open_gguf(path: &Path, heads: Option<(usize, usize)>) -> Result<Self> {
        let (config, tensors) = gguf::lora::open(path, heads)?;
        let mut entries = Vec::new();
        for name in tensors.names() {
            let (module, part) = parse_name(name, &[]).map_err(|why| Error::weights(path, name, why))?;
            entries.push(AdapterTensor { name: name.to_string(), module, part });
        }
        entries.sort_by(|x, y| (&x.module, x.part).cmp(&(&y.module, y.part)));
        let adapter = AdapterFile { config, tensors, entries, sidecar: None };
        adapter.check(path)?;
        Ok(adapter)
    }

    /// The name in the file of a module's A, B or (by the tensor's name in the base) saved whole.
    pub fn tensor_of(&self, module: &str, part: Part) -> Option<&str> {
        self.entries.iter().find(|e| e.part == part && e.module == module).map(|e| e.name.as_str())
    }

    /// Paths of the modules that have A and B, sorted.
    pub fn modules(&self) -> impl Iterator<Item = &str> {
        self.entries.iter().filter(|e| e.part == Part::A).map(|e| e.module.as_str())
    }

    fn check(&self, weights: &Path) -> Result<()> {
        let mut seen = BTreeSet::new();
        for e in &self.entries {
            if !seen.insert((&e.module, e.part)) {
                return Err(Error::weights(
                    weights,
                    &e.name,
                    "stands for a module that another tensor has already filled",
                ));
            }
        }
        for e in &self.entries {
            let (other, at) = match e.part {
                Part::Saved => continue,
                Part::A => (Part::B, 0),
                Part::B => (Part::A, 1),
            };
            if !seen.contains(&(&e.module, other)) {
                return Err(Error::weights(
                    weights,
                    &e.name,
                    format!("has no partner `{}`", tensor_name(&e.module, other)),
                ));
            }
            let view = self.tensors.get(&e.name)?;
            let r = self.config.rank_of(&e.module);
            if view.shape.len() != 2 || view.shape.get(at) != Some(&r) {
                return Err(
                    view.wrong(format!("has shape {:?}, which does not fit the rank {r} of {CONFIG}", view.shape))
                );
            }
        }
        Ok(())
    }
}

fn parse_name(name: &str, saved: &[String]) -> Answer<(String, Part)> {
    let path = name.strip_prefix(PREFIX).ok_or_else(|| format!("does not begin with `{PREFIX}`"))?;
    for (part, key) in [(Part::A, ".lora_A"), (Part::B, ".lora_B")] {
        // Written without the adapter's name, but old versions kept it.
        for end in [".weight", ".default.weight"] {
            if let Some(module) = path.strip_suffix(end).and_then(|p| p.strip_suffix(key)) {
                return Ok((module.to_string(), part));
            }
        }
    }
    if path.contains("lora_magnitude_vector") {
        return Err("belongs to DoRA, which is not supported".into());
    }
    if path.contains("lora_") {
        return Err("is none of a plain LoRA on linear modules".into());
    }
    let path = path.replace(".modules_to_save.default.", ".").replace(".modules_to_save.", ".");
    let module = path.rsplit_once('.').map_or("", |(m, _)| m);
    let is_saved = |s: &String| module == s || module.ends_with(&format!(".{s}"));
    match saved.iter().any(is_saved) {
        true => Ok((path, Part::Saved)),
        false => Err("is neither lora_A nor lora_B, nor of a module in `modules_to_save`".into()),
    }
}

/// `qlora_engine.json`: what an adapter needs to be used as it was trained.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Sidecar {
    /// Name of the template; None: derived from the tokenizer's chat template.
    #[serde(default)]
    pub template: Option<String>,
    /// As in the config; None: thoughts were kept as they are.
    #[serde(default)]
    pub enable_thinking: Option<bool>,
    /// The base model's name or folder.
    #[serde(default)]
    pub base_model: String,
    /// "f32" or "bf16", with "nf4" in front for a 4-bit base: "nf4+bf16".
    #[serde(default)]
    pub precision: String,
}

impl Sidecar {
    /// Reads `folder/qlora_engine.json`; None if there is none.
    ///
    /// # Errors
    /// [`Error::File`] if there is one that cannot be read.
    pub fn open(folder: &Path) -> Result<Option<Self>> {
        let path = folder.join(SIDECAR);
        if !path.exists() {
            return Ok(None);
        }
        let text = fs::read_to_string(&path).map_err(|e| Error::io(&path, "cannot read", &e))?;
        serde_json::from_str(&text).map(Some).map_err(|e| Error::file(&path, format!("is malformed: {e}")))
    }

    /// Writes `folder/qlora_engine.json`.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn write(&self, folder: &Path) -> Result<()> {
        let text = serde_json::to_string_pretty(self).map_err(|e| Error::file(folder.join(SIDECAR), e.to_string()))?;
        write_atomic(&folder.join(SIDECAR), format!("{text}\n").as_bytes())
    }
}

/// Writes an adapter: tensors in f32, then the config, then the sidecar, each whole or not at all. `tensors` are (name by
/// [`tensor_name`], shape, elements).
///
/// # Errors
/// [`Error::File`] when the disk refuses; [`Error::Weights`] if elements do not fit a shape.
pub fn write<'a>(
    folder: &Path,
    config: &AdapterConfig,
    tensors: impl IntoIterator<Item = (String, Vec<usize>, &'a [f32])>,
    sidecar: &Sidecar,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create", &e))?;
    let (specs, values): (Vec<TensorSpec>, Vec<&[f32]>) = tensors
        .into_iter()
        .map(|(name, shape, values)| (TensorSpec { name, dtype: Dtype::F32, shape }, values))
        .unzip();
    let mut values = values.into_iter();
    safetensors::write_file(&folder.join(TENSORS), &specs, |_, sink| sink.f32(values.next().unwrap_or(&[])))?;
    write_atomic(&folder.join(CONFIG), format!("{:#}", config.to_json()).as_bytes())?;
    sidecar.write(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn config() -> AdapterConfig {
        AdapterConfig { modules_to_save: vec!["lm_head".into()], ..AdapterConfig::new(2, 4.0, vec!["q_proj".into()]) }
    }

    fn sidecar() -> Sidecar {
        let (base_model, precision) = ("org/base".into(), "nf4+bf16".into());
        Sidecar { template: Some("qwen3".into()), enable_thinking: Some(false), base_model, precision }
    }

    const MODULE: &str = "model.layers.0.self_attn.q_proj";

    fn write_some(folder: &Path, names: &[(String, Vec<usize>)]) -> Result<()> {
        let values: Vec<f32> = (0..64).map(|i| i as f32 / 8.0).collect();
        let sized = |shape: &[usize]| shape.iter().product::<usize>();
        write(folder, &config(), names.iter().map(|(n, s)| (n.clone(), s.clone(), &values[..sized(s)])), &sidecar())
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (tensor_name(MODULE, Part::A), tensor_name(MODULE, Part::B));
        assert_eq!(a, "base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight");
        let head = tensor_name("lm_head.weight", Part::Saved);
        write_some(dir.path(), &[(a.clone(), vec![2, 6]), (b, vec![5, 2]), (head, vec![8, 3])]).unwrap();
        let adapter = AdapterFile::open(dir.path()).unwrap();
        assert_eq!((&adapter.config, &adapter.sidecar), (&config(), &Some(sidecar())));
        let parts: Vec<_> = adapter.entries.iter().map(|e| (e.module.as_str(), e.part)).collect();
        assert_eq!(parts, [("lm_head.weight", Part::Saved), (MODULE, Part::A), (MODULE, Part::B)]);
        assert_eq!(adapter.modules().collect::<Vec<_>>(), [MODULE]);
        let mut out = [f32::NAN; 12];
        adapter.tensors.expect(&a, &[2, 6]).unwrap().read_f32(&mut out).unwrap();
        assert_eq!(out[11], 11.0 / 8.0);
    }

    #[test]
    fn adapters_that_are_not_whole_or_plain_are_refused() {
        let dir = tempfile::tempdir().unwrap();
        let (a, b) = (tensor_name(MODULE, Part::A), tensor_name(MODULE, Part::B));
        let open = || AdapterFile::open(dir.path()).unwrap_err().to_string();
        assert!(open().contains("adapter_config.json: cannot read"), "{}", open());
        write_some(dir.path(), &[(a.clone(), vec![2, 6])]).unwrap();
        assert!(open().contains("has no partner") && open().contains("lora_B"), "{}", open());
        write_some(dir.path(), &[(a.clone(), vec![3, 6]), (b.clone(), vec![5, 3])]).unwrap();
        assert!(open().contains("does not fit the rank 2"), "{}", open());
        let dora = format!("{PREFIX}{MODULE}.lora_magnitude_vector");
        write_some(dir.path(), &[(a.clone(), vec![2, 6]), (b.clone(), vec![5, 2]), (dora, vec![5])]).unwrap();
        assert!(open().contains("belongs to DoRA"), "{}", open());
        write_some(dir.path(), &[(a, vec![2, 6]), (b, vec![5, 2]), (format!("{PREFIX}x.weight"), vec![5])]).unwrap();
        assert!(open().contains("nor of a module in `modules_to_save`"), "{}", open());
    }

    #[test]
    fn config_keys_are_peft_s_and_refusals_name_theirs() {
        let text = config().to_json().to_string();
        let parse = |text: &str| parse_config(text);
        assert_eq!(parse(&text).unwrap(), config());
        assert_eq!(config().to_json().as_object().unwrap().len(), 36);
        let with = |key: &str, value: Value| {
            let mut c = config().to_json();
            c[key] = value;
            parse(&c.to_string()).unwrap_err()
        };
        assert!(with("use_dora", json!(true)).contains("`use_dora` is not supported"));
        assert!(with("peft_type", json!("LOHA")).contains("LOHA"));
        assert!(with("bias", json!("all")).contains("`bias` all"));
        assert!(with("r", json!(0)).contains("`r` must be a rank"));
        assert!(with("lora_alpha", json!("x")).contains("`lora_alpha` must be a number"));
        assert!(with("init_lora_weights", json!("pissa_niter_4")).contains("changes the base model"));
        assert!(with("rank_pattern", json!({"a|b": 3})).contains("regular expression a|b"));
        assert!(parse("{").unwrap_err().contains("is not a JSON object"));
        let c = AdapterConfig {
            rank_pattern: [("self_attn.q_proj".to_string(), 16)].into(),
            alpha_pattern: [("q_proj".to_string(), 8.0)].into(),
            use_rslora: true,
            ..config()
        };
        assert_eq!(
            (c.rank_of(MODULE), c.rank_of("model.layers.0.xself_attn.q_proj"), c.scale_of(MODULE)),
            (16, 2, 2.0)
        );
        assert_eq!(parse(&c.to_json().to_string()).unwrap(), c);
        let mut pattern = config().to_json();
        pattern["target_modules"] = json!("all-linear");
        assert_eq!(parse(&pattern.to_string()).unwrap().target_modules, TargetModules::Pattern("all-linear".into()));
    }
}
