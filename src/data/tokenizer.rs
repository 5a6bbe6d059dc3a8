//! Text to token ids and back, by a model folder's `tokenizer.json` and the files beside it, read as transformers 5 does.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};
use tokenizers::AddedToken;

use super::gguf_tokenizer;
use crate::error::{Error, Result};
use crate::format::gguf::{Gguf, Metadata};

/// The special tokens that have a name of their own in tokenizer_config.json.
const NAMED: [&str; 7] = ["bos_token", "eos_token", "unk_token", "sep_token", "pad_token", "cls_token", "mask_token"];

/// A model's tokenizer. Cheap to share between threads.
#[derive(Clone)]
pub struct Tokenizer {
    inner: tokenizers::Tokenizer,
    /// The file that the vocabulary was read from, for messages.
    file: PathBuf,
    /// Of the files read.
    digest: blake3::Hash,
    /// tokenizer_config.json as it stands there.
    config: Map<String, Value>,
    /// Name in tokenizer_config.json, text.
    named: Vec<(&'static str, String)>,
    chat_template: ChatTemplate,
    split_special_tokens: bool,
    /// One above the largest id that the files hold.
    file_rows: usize,
    /// Tokens added for a template, with their ids and whether the template writes them.
    added: Vec<(String, u32, bool)>,
}

/// What a tokenizer is built from.
struct Files {
    file: PathBuf,
    /// tokenizer.json
    bytes: Vec<u8>,
    config: Map<String, Value>,
    special_map: Map<String, Value>,
    class: Class,
    chat_template: ChatTemplate,
    digest: blake3::Hash,
}

/// What the folder has of chat templates.
#[derive(Clone)]
enum ChatTemplate {
    None,
    One(String),
    /// Several by name: the one called "default", if there is.
    Several(Option<String>),
}

impl Tokenizer {
    /// Reads `folder`'s `tokenizer.json`, `tokenizer_config.json`, `special_tokens_map.json` and chat template; all but the
    /// first may be missing. `split_special_tokens`: special tokens in a text are read as plain text.
    ///
    /// # Errors
    /// [`Error::File`] if `tokenizer.json` is missing or malformed, or one of the others is malformed.
    pub fn load(folder: &Path, split_special_tokens: bool) -> Result<Tokenizer> {
        if folder.is_file() {
            return Tokenizer::from_gguf(Gguf::open(folder)?.metadata(), split_special_tokens);
        }
        let file = folder.join("tokenizer.json");
        let Some(bytes) = read(&file)? else {
            let hint = if folder.join("tokenizer.model").exists() {
                "; only `tokenizer.model` is there: convert it by loading and saving it with transformers"
            } else {
                ""
            };
            return Err(Error::file(&file, format!("is missing; every tokenizer is read from it{hint}")));
        };
        let mut hash = blake3::Hasher::new();
        hash.update(&bytes);
        let mut object = |name: &str| -> Result<Map<String, Value>> {
            let path = folder.join(name);
            let Some(bytes) = read(&path)? else { return Ok(Map::new()) };
            hash.update(&bytes);
            match serde_json::from_slice(&bytes) {
                Ok(Value::Object(map)) => Ok(map),
                Ok(_) => Err(Error::file(&path, "must hold a JSON object")),
                Err(e) => Err(Error::file(&path, format!("is not JSON: {e}"))),
            }
        };
        let config = object("tokenizer_config.json")?;
        let special_map = object("special_tokens_map.json")?;
        let model_config = object("config.json").unwrap_or_default();

        let class = class_of(&config, &model_config);
        let bytes = if class == Class::Llama { llama_pipeline(bytes, &config, &file)? } else { bytes };
        let chat_template = chat_template(folder, &config)?;
        let files = Files { file, bytes, config, special_map, class, chat_template, digest: hash.finalize() };
        Self::build(files, split_special_tokens)
    }

    /// Makes the tokenizer that a GGUF file's metadata describe.
    ///
    /// # Errors
    /// [`Error::File`] naming the key that is missing, malformed or says what is not known.
    pub fn from_gguf(m: &Metadata, split_special_tokens: bool) -> Result<Tokenizer> {
        let gguf_tokenizer::Files { tokenizer, config } = gguf_tokenizer::files(m)?;
        let file = m.file().to_path_buf();
        let bytes = serde_json::to_vec(&tokenizer).map_err(|e| Error::file(&file, e.to_string()))?;
        drop(tokenizer);
        let mut hash = blake3::Hasher::new();
        hash.update(&bytes);
        hash.update(Value::Object(config.clone()).to_string().as_bytes());
        let chat_template = template_of(&config);
        let (class, special_map, digest) = (Class::Other, Map::new(), hash.finalize());
        Self::build(Files { file, bytes, config, special_map, class, chat_template, digest }, split_special_tokens)
    }

    fn build(files: Files, split_special_tokens: bool) -> Result<Tokenizer> {
        let Files { file, bytes, config, special_map, class, chat_template, digest } = files;
        let mut inner = tokenizers::Tokenizer::from_bytes(&bytes)
            .map_err(|e| Error::file(&file, format!("is not a tokenizer: {}", e.to_string().replace('\n', " "))))?;
        drop(bytes);
        inner.with_padding(None);
        inner.with_truncation(None).map_err(|e| Error::file(&file, e.to_string()))?;

        // Older folders keep the names in special_tokens_map.json; newer ones repeat it, and then it is not asked.
        let legacy = !config.contains_key("added_tokens_decoder");
        let value_of = |name: &str| -> Option<&Value> {
            legacy.then(|| special_map.get(name)).flatten().or_else(|| config.get(name))
        };
        let mut named = Vec::new();
        for name in NAMED {
            let text = match value_of(name) {
                Some(v) => content_of(v),
                None => class.default_special(name).map(str::to_string),
            };
            named.extend(text.filter(|t| !t.is_empty()).map(|t| (name, t)));
        }

        let mut missing = Vec::new();
        if let Some(Value::Object(tokens)) = config.get("added_tokens_decoder") {
            let mut tokens: Vec<(u64, &Value)> =
                tokens.iter().filter_map(|(id, t)| Some((id.parse().ok()?, t))).collect();
            tokens.sort_by_key(|(id, _)| *id);
            missing.extend(tokens.into_iter().filter_map(|(_, t)| added_token(t)));
        }
        missing.extend(named.iter().map(|(_, text)| AddedToken::from(text.clone(), true)));
        let extra = ["extra_special_tokens", "additional_special_tokens"].into_iter().find_map(value_of);
        match extra {
            Some(Value::Array(list)) => {
                missing.extend(list.iter().filter_map(content_of).map(|t| AddedToken::from(t, true)))
            }
            Some(Value::Object(map)) => {
                missing.extend(map.values().filter_map(content_of).map(|t| AddedToken::from(t, true)))
            }
            _ => {}
        }
        // Special or not is settled by the first mention: tokenizer.json, then the config's own list, then the names.
        let known = inner.get_added_vocabulary().get_added_tokens_decoder().clone();
        missing.retain(|t| !known.values().any(|k| k.content == t.content && (k.special || !t.special)));
        if !missing.is_empty() {
            inner.add_tokens(&missing);
        }
        inner.set_encode_special_tokens(split_special_tokens);

        let file_rows = rows(&inner);
        let added = Vec::new();
        if split_special_tokens {
            log::warn!("`split_special_tokens`: a template's own markers are then split into plain text too");
        }
        Ok(Tokenizer { inner, file, digest, config, named, chat_template, split_special_tokens, file_rows, added })
    }

    /// The ids of `text`, nothing added around it.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot take the text.
    pub fn encode(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_inner(text, false)
    }

    /// The ids of `text` with what the tokenizer itself puts around a text, such as bos.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer cannot take the text.
    pub fn encode_with_specials(&self, text: &str) -> Result<Vec<u32>> {
        self.encode_inner(text, true)
    }

    fn encode_inner(&self, text: &str, add_special_tokens: bool) -> Result<Vec<u32>> {
        match self.inner.encode_fast(text, add_special_tokens) {
            Ok(e) => Ok(e.get_ids().to_vec()),
            Err(e) => Err(Error::Tokenizer(format!("cannot encode a text: {e}"))),
        }
    }

    /// The text of `ids`; special tokens are left out if `skip_special`. Bytes that are no UTF-8 become U+FFFD.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the tokenizer's decoder fails.
    pub fn decode(&self, ids: &[u32], skip_special: bool) -> Result<String> {
        self.inner.decode(ids, skip_special).map_err(|e| Error::Tokenizer(format!("cannot decode: {e}")))
    }

    /// One token as the vocabulary spells it (`Ġthe`, `▁the`, `<0x0A>`).
    pub fn token(&self, id: u32) -> Option<String> {
        self.inner.id_to_token(id)
    }

    /// The id of a whole token.
    pub fn id(&self, token: &str) -> Option<u32> {
        self.inner.token_to_id(token)
    }

    /// Whether `id` is a special token, which [`Tokenizer::decode`] leaves out if asked to.
    pub fn is_special(&self, id: u32) -> bool {
        self.token(id).is_some_and(|t| self.inner.get_added_vocabulary().is_special_token(&t))
    }

    fn special(&self, name: &str) -> Option<&str> {
        self.named.iter().find(|(n, _)| *n == name).map(|(_, text)| text.as_str())
    }

    /// The token that opens a text.
    pub fn bos(&self) -> Option<&str> {
        self.special("bos_token")
    }

    /// The token that ends an answer or a text.
    pub fn eos(&self) -> Option<&str> {
        self.special("eos_token")
    }

    /// The id of [`Tokenizer::bos`].
    pub fn bos_id(&self) -> Option<u32> {
        self.bos().and_then(|t| self.id(t))
    }

    /// The id of [`Tokenizer::eos`].
    pub fn eos_id(&self) -> Option<u32> {
        self.eos().and_then(|t| self.id(t))
    }

    /// The id that others pad with. No row here is padded, but pretraining does not train on it.
    pub fn pad_id(&self) -> Option<u32> {
        self.special("pad_token").and_then(|t| self.id(t))
    }

    /// The token that stands for what has none.
    pub fn unk(&self) -> Option<&str> {
        self.special("unk_token")
    }

    /// The id of [`Tokenizer::unk`].
    pub fn unk_id(&self) -> Option<u32> {
        self.unk().and_then(|t| self.id(t))
    }

    /// Whether the tokenizer itself puts bos before a text, and eos after it.
    ///
    /// # Errors
    /// As [`Tokenizer::encode`].
    pub fn adds_around(&self) -> Result<(bool, bool)> {
        let around = self.encode_with_specials("")?;
        let bos = !around.is_empty() && around.first().copied() == self.bos_id();
        let eos = around.len() > usize::from(bos) && around.last().copied() == self.eos_id();
        Ok((bos, eos))
    }

    /// tokenizer.json as it would be saved.
    pub(super) fn json(&self) -> Result<Value> {
        let text = self.inner.to_string(false).map_err(|e| Error::Tokenizer(format!("cannot be written: {e}")))?;
        serde_json::from_str(&text).map_err(|e| Error::Tokenizer(format!("cannot be written: {e}")))
    }

    /// The named special tokens: (name in tokenizer_config.json, text).
    pub fn named_specials(&self) -> Vec<(&'static str, &str)> {
        self.named.iter().map(|(n, t)| (*n, t.as_str())).collect()
    }

    /// Ids run below this; the vocabulary and every added token counted.
    pub fn vocab_size(&self) -> usize {
        rows(&self.inner)
    }

    /// Checks that an embedding of `embedding_rows` rows has one for every token that can occur.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if the files hold more tokens, or a token added because the template writes it lies beyond.
    /// An added stop word that is never written only gets a warning: LLaMA-Factory trains such models too.
    pub fn check_vocab(&self, embedding_rows: usize) -> Result<()> {
        if self.file_rows > embedding_rows {
            return Err(Error::Tokenizer(format!(
                "{} has ids up to {}, but the model's embedding has only {embedding_rows} rows: tokenizer and model do not \
                 belong together",
                self.file.display(),
                self.file_rows - 1
            )));
        }
        for (token, id, written) in self.added.iter().filter(|(_, id, _)| *id as usize >= embedding_rows) {
            let place = format!("id {id} lies beyond the embedding's {embedding_rows} rows");
            if *written {
                return Err(Error::Tokenizer(format!(
                    "the template needs the token `{token}`, which the tokenizer lacks, and {place}; use the template \
                     that the model was made with"
                )));
            }
            log::warn!("the stop word `{token}` is not in the tokenizer and {place}: it must not occur in the data");
        }
        Ok(())
    }

    /// Makes `token` the eos token and special, adding it to the vocabulary if need be.
    pub(super) fn set_eos(&mut self, token: &str) -> Result<()> {
        if self.eos() == Some(token) {
            return Ok(());
        }
        self.add_special(token, true)?;
        self.named.retain(|(n, _)| *n != "eos_token");
        self.named.push(("eos_token", token.to_string()));
        Ok(())
    }

    /// Lets the eos token stand for a missing pad token.
    pub(super) fn default_pad(&mut self) {
        if self.pad_id().is_none()
            && let Some(eos) = self.eos().map(str::to_string)
        {
            self.named.retain(|(n, _)| *n != "pad_token");
            self.named.push(("pad_token", eos));
        }
    }

    /// Makes `token` special, adding it to the vocabulary if need be. `written`: whether the template writes it.
    pub(super) fn add_special(&mut self, token: &str, written: bool) -> Result<()> {
        let known = self.id(token).is_some();
        self.inner.add_special_tokens(&[AddedToken::from(token, true)]);
        let id = self.id(token).ok_or_else(|| Error::Tokenizer(format!("the token `{token}` cannot be added")))?;
        if !known {
            log::warn!("the tokenizer lacks `{token}`: it was added as id {id}");
            self.added.push((token.to_string(), id, written));
        }
        Ok(())
    }

    /// The chat template, unless there is none or several.
    pub(super) fn chat_template(&self) -> Option<&str> {
        match &self.chat_template {
            ChatTemplate::One(s) => Some(s),
            _ => None,
        }
    }

    pub(super) fn chat_template_missing(&self) -> bool {
        matches!(self.chat_template, ChatTemplate::None)
    }

    pub(super) fn saved_chat_template(&self) -> Option<&str> {
        match &self.chat_template {
            ChatTemplate::One(s) | ChatTemplate::Several(Some(s)) => Some(s),
            _ => None,
        }
    }

    pub(super) fn set_chat_template(&mut self, source: String) {
        self.chat_template = ChatTemplate::One(source);
    }

    /// What ids depend on: the files, the special tokens as a template has fitted them, and how they are split.
    pub fn key(&self) -> blake3::Hash {
        let mut h = blake3::Hasher::new();
        h.update(self.digest.as_bytes());
        h.update(format!("{:?}{:?}{}", self.named, self.added, self.split_special_tokens).as_bytes());
        h.finalize()
    }

    /// Writes `tokenizer.json`, `tokenizer_config.json` and `chat_template.jinja` into `folder`, as they are after a
    /// template has fitted them.
    ///
    /// # Errors
    /// [`Error::File`] if a file cannot be written.
    pub fn save(&self, folder: &Path) -> Result<()> {
        let write = |name: &str, text: &str| {
            let path = folder.join(name);
            fs::write(&path, text).map_err(|e| Error::io(&path, "cannot write", &e))
        };
        let json = self.inner.to_string(true).map_err(|e| Error::Tokenizer(format!("cannot be written: {e}")))?;
        write("tokenizer.json", &json)?;
        let mut config = self.config.clone();
        config.remove("chat_template");
        for (name, text) in &self.named {
            let differs = config.get(*name).and_then(content_of).is_none_or(|old| old != *text);
            if differs {
                config.insert((*name).to_string(), Value::String(text.clone()));
            }
        }
        if let Some(Value::Object(decoder)) = config.get_mut("added_tokens_decoder") {
            for (token, id, _) in &self.added {
                decoder.insert(
                    id.to_string(),
                    json!({"content": token, "lstrip": false, "normalized": false, "rstrip": false,
                           "single_word": false, "special": true}),
                );
            }
        }
        let text = serde_json::to_string_pretty(&config).map_err(|e| Error::Tokenizer(e.to_string()))?;
        write("tokenizer_config.json", &(text + "\n"))?;
        match self.saved_chat_template() {
            Some(source) => write("chat_template.jinja", source),
            None => Ok(()),
        }
    }
}

/// The file's bytes; None if there is no such file.
fn read(path: &Path) -> Result<Option<Vec<u8>>> {
    match fs::read(path) {
        Ok(b) => Ok(Some(b)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(Error::io(path, "cannot read", &e)),
    }
}

/// One above the largest id.
fn rows(inner: &tokenizers::Tokenizer) -> usize {
    let added = inner.get_added_vocabulary().get_added_tokens_decoder().keys().max().map_or(0, |id| *id as usize + 1);
    added.max(inner.get_vocab_size(false))
}

/// transformers' tokenizer classes that do not take tokenizer.json as it stands.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Class {
    /// Builds its own pipeline over the file's vocabulary and merges.
    Llama,
    /// Builds the pipeline that Qwen's files hold anyway, and has default special tokens.
    Qwen2,
    Other,
}

impl Class {
    fn default_special(self, name: &str) -> Option<&'static str> {
        match (self, name) {
            (Class::Llama, "bos_token") => Some("<s>"),
            (Class::Llama, "eos_token") => Some("</s>"),
            (Class::Llama, "unk_token") => Some("<unk>"),
            (Class::Qwen2, "eos_token" | "pad_token" | "unk_token") => Some("<|endoftext|>"),
            _ => None,
        }
    }
}

fn class_of(config: &Map<String, Value>, model_config: &Map<String, Value>) -> Class {
    let name = config.get("tokenizer_class").and_then(Value::as_str);
    match name.map(|n| n.strip_suffix("Fast").unwrap_or(n)) {
        Some("LlamaTokenizer") => Class::Llama,
        Some("Qwen2Tokenizer") => Class::Qwen2,
        Some(_) => Class::Other,
        None => match model_config.get("model_type").and_then(Value::as_str) {
            Some("qwen2" | "qwen3") => Class::Qwen2,
            _ => Class::Other,
        },
    }
}

/// tokenizer.json with the pipeline that transformers' `LlamaTokenizer` builds: no normalizer, a space put before the
/// whole text unless it begins with one, bytes for what the vocabulary lacks. A byte-level tokenizer under that class
/// name (some distilled models have one) is left as it is.
fn llama_pipeline(bytes: Vec<u8>, config: &Map<String, Value>, file: &Path) -> Result<Vec<u8>> {
    let mut v: Value =
        serde_json::from_slice(&bytes).map_err(|e| Error::file(file, format!("is not a tokenizer: {e}")))?;
    let is_bpe = v.pointer("/model/type").and_then(Value::as_str) == Some("BPE");
    let byte_level = v.get("pre_tokenizer").is_some_and(|p| p.to_string().contains("ByteLevel"));
    if !is_bpe || byte_level {
        return Ok(bytes);
    }
    let add_space = config.get("add_prefix_space").and_then(Value::as_bool).unwrap_or(true);
    let legacy = config.get("legacy").and_then(Value::as_bool).unwrap_or(false);
    let scheme = match (add_space, legacy) {
        (false, _) => "never",
        (true, true) => "always",
        (true, false) => "first",
    };
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if add_space {
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    if let Some(map) = v.as_object_mut() {
        map.insert("normalizer".into(), Value::Null);
        map.insert(
            "pre_tokenizer".into(),
            json!({"type": "Metaspace", "replacement": "▁", "prepend_scheme": scheme, "split": false}),
        );
        map.insert("decoder".into(), json!({"type": "Sequence", "decoders": decoders}));
    }
    if let Some(model) = v.get_mut("model").and_then(Value::as_object_mut) {
        for (key, value) in [
            ("unk_token", Value::Null),
            ("fuse_unk", json!(true)),
            ("byte_fallback", json!(true)),
            ("dropout", Value::Null),
        ] {
            model.insert(key.into(), value);
        }
    }
    serde_json::to_vec(&v).map_err(|e| Error::file(file, e.to_string()))
}

/// A token's text: a string, or an object with `content`.
fn content_of(v: &Value) -> Option<String> {
    v.as_str().or_else(|| v.get("content").and_then(Value::as_str)).map(str::to_string)
}

/// An entry of `added_tokens_decoder`.
fn added_token(v: &Value) -> Option<AddedToken> {
    let flag = |name: &str, default| v.get(name).and_then(Value::as_bool).unwrap_or(default);
    let special = flag("special", false);
    Some(
        AddedToken::from(content_of(v)?, special)
            .single_word(flag("single_word", false))
            .lstrip(flag("lstrip", false))
            .rstrip(flag("rstrip", false))
            .normalized(flag("normalized", !special)),
    )
}

/// The chat template: `chat_template.jinja`, else `chat_template.json`, else the key of tokenizer_config.json.
fn chat_template(folder: &Path, config: &Map<String, Value>) -> Result<ChatTemplate> {
    let path = folder.join("chat_template.jinja");
    if let Some(bytes) = read(&path)? {
        return String::from_utf8(bytes).map(ChatTemplate::One).map_err(|_| Error::file(&path, "is not UTF-8"));
    }
    let path = folder.join("chat_template.json");
    if let Some(bytes) = read(&path)? {
        let v: Value = serde_json::from_slice(&bytes).map_err(|e| Error::file(&path, format!("is not JSON: {e}")))?;
        if let Some(s) = v.get("chat_template").and_then(Value::as_str) {
            return Ok(ChatTemplate::One(s.to_string()));
        }
    }
    Ok(template_of(config))
}

/// The chat template in tokenizer_config.json.
fn template_of(config: &Map<String, Value>) -> ChatTemplate {
    match config.get("chat_template") {
        Some(Value::String(s)) => ChatTemplate::One(s.clone()),
        Some(Value::Array(list)) => {
            let default = list.iter().find(|t| t.get("name").and_then(Value::as_str) == Some("default"));
            let text = default.and_then(|t| t.get("template")).and_then(Value::as_str);
            ChatTemplate::Several(text.map(str::to_string))
        }
        _ => ChatTemplate::None,
    }
}

#[cfg(test)]
pub(crate) mod tests {
    use super::*;

    /// A byte-level tokenizer without merges: one token for each ASCII letter and a few specials.
    pub(crate) fn tiny_folder(specials: &[&str], config: Value) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        let mut vocab = Map::new();
        for c in ('!'..='~').chain(['Ġ', 'Ċ']) {
            vocab.insert(c.to_string(), json!(vocab.len()));
        }
        let added: Vec<Value> = specials
            .iter()
            .enumerate()
            .map(|(i, s)| {
                json!({"id": vocab.len() + i, "content": s, "single_word": false, "lstrip": false, "rstrip": false,
                       "normalized": false, "special": true})
            })
            .collect();
        let byte_level =
            json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": true, "use_regex": false});
        let t = json!({"version": "1.0", "truncation": {"direction": "Right", "max_length": 4, "strategy": "LongestFirst",
            "stride": 0}, "padding": null, "added_tokens": added, "normalizer": null, "pre_tokenizer": byte_level,
            "post_processor": null, "decoder": byte_level, "model": {"type": "BPE", "dropout": null, "unk_token": null,
            "continuing_subword_prefix": null, "end_of_word_suffix": null, "fuse_unk": false, "byte_fallback": false,
            "ignore_merges": false, "vocab": vocab, "merges": []}});
        fs::write(dir.path().join("tokenizer.json"), t.to_string()).unwrap();
        fs::write(dir.path().join("tokenizer_config.json"), config.to_string()).unwrap();
        dir
    }

    #[test]
    fn a_missing_or_malformed_file_is_one_clear_line() {
        let dir = tempfile::tempdir().unwrap();
        let e = Tokenizer::load(dir.path(), false).err().unwrap().to_string();
        assert!(e.contains("tokenizer.json") && e.contains("missing"), "{e}");
        fs::write(dir.path().join("tokenizer.json"), "{\"model\": 3").unwrap();
        let e = Tokenizer::load(dir.path(), false).err().unwrap().to_string();
        assert!(e.contains("tokenizer.json") && !e.contains('\n'), "{e}");
    }

    #[test]
    fn a_baked_in_truncation_is_not_applied_and_specials_split_only_on_demand() {
        let dir = tiny_folder(&["<s>", "</s>"], json!({"eos_token": {"content": "</s>"}, "bos_token": "<s>"}));
        let t = Tokenizer::load(dir.path(), false).unwrap();
        let ids = t.encode("a long text</s>").unwrap();
        assert_eq!(ids.len(), 12);
        assert_eq!(ids.last().copied(), t.eos_id());
        assert_eq!(t.decode(&ids, true).unwrap(), "a long text");
        assert_eq!(t.decode(&ids, false).unwrap(), "a long text</s>");
        let t = Tokenizer::load(dir.path(), true).unwrap();
        assert_eq!(t.encode("a</s>").unwrap().len(), 5);
        assert_eq!(t.pad_id(), None);
    }

    #[test]
    fn an_added_token_beyond_the_embedding_is_refused_only_if_written() {
        let dir = tiny_folder(&["</s>"], json!({"eos_token": "</s>"}));
        let mut t = Tokenizer::load(dir.path(), false).unwrap();
        let rows = t.vocab_size();
        t.check_vocab(rows).unwrap();
        let e = t.check_vocab(rows - 1).unwrap_err().to_string();
        assert!(e.contains("embedding") && e.contains("tokenizer.json"), "{e}");
        t.add_special("<|eom|>", false).unwrap();
        t.check_vocab(rows).unwrap();
        t.set_eos("<|end|>").unwrap();
        assert_eq!(t.vocab_size(), rows + 2);
        let e = t.check_vocab(rows).unwrap_err().to_string();
        assert!(e.contains("<|end|>"), "{e}");
        t.check_vocab(rows + 2).unwrap();
    }

    #[test]
    fn what_is_saved_reads_back() {
        let dir = tiny_folder(&["</s>"], json!({"eos_token": "</s>", "chat_template": "{{ messages[0].content }}"}));
        let mut t = Tokenizer::load(dir.path(), false).unwrap();
        t.set_eos("<|end|>").unwrap();
        t.default_pad();
        let out = tempfile::tempdir().unwrap();
        t.save(out.path()).unwrap();
        let back = Tokenizer::load(out.path(), false).unwrap();
        assert_eq!(back.eos(), Some("<|end|>"));
        assert_eq!(back.pad_id(), t.eos_id());
        assert_eq!(back.encode("hi<|end|>").unwrap(), t.encode("hi<|end|>").unwrap());
        assert_eq!(back.chat_template(), Some("{{ messages[0].content }}"));
    }
}
