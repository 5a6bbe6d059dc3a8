//! From `tokenizer.ggml.*` to the JSON of a model folder.

use std::collections::HashMap;

use serde_json::{Map, Value, json};

use super::kind;
use super::pre::{self, Pre};
use crate::error::Result;
use crate::format::gguf::Metadata;

/// What a model folder would hold of the tokenizer.
pub struct Files {
    /// tokenizer.json
    pub tokenizer: Value,
    /// tokenizer_config.json, with the chat template.
    pub config: Map<String, Value>,
}

/// The four special tokens that have a key of their own: name in tokenizer_config.json, key.
const NAMED: [(&str, &str); 4] = [
    ("bos_token", "tokenizer.ggml.bos_token_id"),
    ("eos_token", "tokenizer.ggml.eos_token_id"),
    ("unk_token", "tokenizer.ggml.unknown_token_id"),
    ("pad_token", "tokenizer.ggml.padding_token_id"),
];
const TOKENS: &str = "tokenizer.ggml.tokens";
const MERGES: &str = "tokenizer.ggml.merges";
const SCORES: &str = "tokenizer.ggml.scores";

/// Makes the two files from a GGUF file's metadata.
///
/// # Errors
/// [`crate::Error::File`] naming the key that is missing, of the wrong length or holds an id out of range; the kind of
/// tokenizer or the `pre` that is not known, with those that are.
pub fn files(m: &Metadata) -> Result<Files> {
    let model = m.string("tokenizer.ggml.model")?;
    let Some(model) = model else {
        return Err(m.error("tokenizer.ggml.model", "is missing: the file holds no tokenizer"));
    };
    let vocab = Vocab::read(m)?;
    let mut specials = specials(m, &vocab)?;
    let (tokenizer, add_bos) = match model {
        "gpt2" => {
            let pre = pre_of(m)?;
            (byte_level(m, &vocab, pre)?, pre.add_bos)
        }
        "llama" => {
            // SentencePiece's own ids, where the file gives none.
            for (name, id) in [("unk_token", 0), ("bos_token", 1), ("eos_token", 2)] {
                let missing = !specials.iter().any(|(n, _)| *n == name);
                if let (true, Some(token)) = (missing, vocab.tokens.get(id)) {
                    specials.push((name, token.clone()));
                }
            }
            (sentencepiece(m, &vocab, &specials)?, true)
        }
        other => {
            let why = format!("is `{other}`; gpt2 (byte-level BPE) and llama (SentencePiece's BPE) are read");
            return Err(m.error("tokenizer.ggml.model", why));
        }
    };
    let add_bos = m.flag("tokenizer.ggml.add_bos_token")?.unwrap_or(add_bos);
    let add_eos = m.flag("tokenizer.ggml.add_eos_token")?.unwrap_or(false);
    let text_of = |name: &str| specials.iter().find(|(n, _)| *n == name).map(|(_, t)| t.as_str());
    let mut tokenizer = tokenizer;
    let around = [text_of("bos_token").filter(|_| add_bos), text_of("eos_token").filter(|_| add_eos)];
    if let Some(map) = tokenizer.as_object_mut() {
        map.insert("added_tokens".into(), Value::Array(vocab.added(m)?));
        if around.iter().any(Option::is_some) {
            map.insert("post_processor".into(), post_processor(around, &vocab));
        }
    }
    let mut config = Map::new();
    config.insert("tokenizer_class".into(), json!("PreTrainedTokenizerFast"));
    config.insert("add_bos_token".into(), json!(add_bos));
    config.insert("add_eos_token".into(), json!(add_eos));
    config.extend(specials.into_iter().map(|(name, text)| (name.to_string(), Value::String(text))));
    if let Some(template) = m.string("tokenizer.chat_template")? {
        config.insert("chat_template".into(), json!(template));
    }
    Ok(Files { tokenizer, config })
}

/// The tokens, each spelled differently, and what each is.
struct Vocab {
    tokens: Vec<String>,
    kinds: Vec<i64>,
    ids: HashMap<String, usize>,
}

impl Vocab {
    fn read(m: &Metadata) -> Result<Vocab> {
        let Some(tokens) = m.strings(TOKENS)?.filter(|t| !t.is_empty()) else {
            return Err(m.error(TOKENS, "is missing or empty: it must list the vocabulary"));
        };
        if u32::try_from(tokens.len()).is_err() {
            return Err(m.error(TOKENS, format!("holds {} tokens; ids have 32 bits", tokens.len())));
        }
        let kinds = match m.integers("tokenizer.ggml.token_type")? {
            Some(kinds) if kinds.len() == tokens.len() => kinds,
            Some(kinds) => {
                let why = format!("has {} entries for {} tokens", kinds.len(), tokens.len());
                return Err(m.error("tokenizer.ggml.token_type", why));
            }
            None => vec![kind::NORMAL; tokens.len()],
        };
        let mut ids: HashMap<String, usize> = HashMap::with_capacity(tokens.len());
        let mut spelled = Vec::with_capacity(tokens.len());
        for (id, token) in tokens.iter().enumerate() {
            // A token without a spelling of its own never comes from text; it still needs a place.
            let mut token = token.clone();
            if token.is_empty() || ids.contains_key(&token) {
                log::warn!("{TOKENS}: token {id}, `{token}`, is empty or a repetition: no text gives it");
                token = format!("[SAME{id}]");
            }
            if let Some(other) = ids.insert(token.clone(), id) {
                return Err(m.error(TOKENS, format!("holds `{token}` twice, as {other} and {id}")));
            }
            spelled.push(token);
        }
        Ok(Vocab { tokens: spelled, kinds, ids })
    }

    fn json(&self) -> Value {
        Value::Object(self.tokens.iter().enumerate().map(|(id, t)| (t.clone(), json!(id))).collect())
    }

    /// The tokens that are looked for in a text before it is split.
    fn added(&self, m: &Metadata) -> Result<Vec<Value>> {
        // Phi-3's own tokens swallow the white space after them; the file says so only by its name.
        let name = m.string("general.name")?.unwrap_or("").to_lowercase();
        let phi3 = name.contains("phi-3") || name.contains("phi3");
        let swallows = |token: &str, kind: i64| {
            let ends = !["<unk>", "<s>", "<|endoftext|>"].contains(&token);
            phi3 && ends && kind != kind::NORMAL
        };
        let looked_for = [kind::UNKNOWN, kind::CONTROL, kind::USER_DEFINED];
        let all = self.tokens.iter().zip(&self.kinds).enumerate();
        let added = all.filter(|(_, (_, kind))| looked_for.contains(kind)).map(|(id, (token, &kind))| {
            json!({"id": id, "content": token, "single_word": false, "lstrip": false, "rstrip": swallows(token, kind),
                   "normalized": false, "special": kind != kind::USER_DEFINED})
        });
        Ok(added.collect())
    }
}

/// The named special tokens that the file gives: (name, text).
fn specials(m: &Metadata, vocab: &Vocab) -> Result<Vec<(&'static str, String)>> {
    let mut named = Vec::new();
    for (name, key) in NAMED {
        // Some writers put -1 for "none".
        let Some(id) = m.number(key)?.filter(|&id| id != u64::from(u32::MAX)) else { continue };
        let token = usize::try_from(id).ok().and_then(|id| vocab.tokens.get(id));
        let Some(token) = token else {
            return Err(m.error(key, format!("is {id}, but there are only {} tokens", vocab.tokens.len())));
        };
        named.push((name, token.clone()));
    }
    Ok(named)
}

fn pre_of(m: &Metadata) -> Result<&'static Pre> {
    const KEY: &str = "tokenizer.ggml.pre";
    let name = m.string(KEY)?.unwrap_or_else(|| {
        log::warn!("the GGUF file has no `{KEY}`: text is split as llama.cpp does by default, which may not be right");
        "default"
    });
    pre::find(name).ok_or_else(|| m.error(KEY, format!("is `{name}`; known are {}", pre::names())))
}

fn model(vocab: &Vocab, merges: Vec<Value>) -> Map<String, Value> {
    let mut model = Map::new();
    for (key, value) in [
        ("type", json!("BPE")),
        ("dropout", Value::Null),
        ("unk_token", Value::Null),
        ("continuing_subword_prefix", Value::Null),
        ("end_of_word_suffix", Value::Null),
        ("fuse_unk", json!(false)),
        ("byte_fallback", json!(false)),
        ("ignore_merges", json!(false)),
        ("vocab", vocab.json()),
        ("merges", Value::Array(merges)),
    ] {
        model.insert(key.into(), value);
    }
    model
}

fn whole(normalizer: Value, pre_tokenizer: Value, decoder: Value, model: Map<String, Value>) -> Value {
    json!({"version": "1.0", "truncation": null, "padding": null, "added_tokens": [], "normalizer": normalizer,
           "pre_tokenizer": pre_tokenizer, "post_processor": null, "decoder": decoder, "model": model})
}

/// `gpt2`: byte-level BPE.
fn byte_level(m: &Metadata, vocab: &Vocab, pre: &Pre) -> Result<Value> {
    let Some(list) = m.strings(MERGES)? else {
        return Err(m.error(MERGES, "is missing: byte-level BPE needs its merges"));
    };
    let mut merges = Vec::with_capacity(list.len());
    for (rank, merge) in list.iter().enumerate() {
        let wrong = |why: &str| m.error(MERGES, format!("holds `{merge}` at {rank}, which {why}"));
        // A space inside a token is spelled otherwise, so the first one parts them.
        let (left, right) = merge.split_once(' ').ok_or_else(|| wrong("is not two tokens with a space between"))?;
        let known = |t: &str| vocab.ids.contains_key(t);
        if !known(left) || !known(right) || !known(&format!("{left}{right}")) {
            return Err(wrong("names or gives a token that is not in the vocabulary"));
        }
        merges.push(json!([left, right]));
    }
    let mut steps: Vec<Value> = pre
        .patterns
        .iter()
        .map(|p| json!({"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": false}))
        .collect();
    let bytes = json!({"type": "ByteLevel", "add_prefix_space": false, "trim_offsets": false, "use_regex": false});
    steps.push(bytes.clone());
    let normalizer = if pre.nfc { json!({"type": "NFC"}) } else { Value::Null };
    let mut model = model(vocab, merges);
    model.insert("ignore_merges".into(), json!(pre.ignore_merges));
    Ok(whole(normalizer, json!({"type": "Sequence", "pretokenizers": steps}), bytes, model))
}

/// `llama`: SentencePiece's BPE. Any two neighbours that together are a token may be merged, the highest score first:
/// as merges with ranks, those are all ways to part a token in two, sorted by the token's score.
fn sentencepiece(m: &Metadata, vocab: &Vocab, specials: &[(&'static str, String)]) -> Result<Value> {
    let Some(scores) = m.floats(SCORES)? else {
        return Err(m.error(SCORES, "is missing: a `llama` tokenizer merges by scores"));
    };
    if scores.len() != vocab.tokens.len() {
        let why = format!("has {} entries for {} tokens", scores.len(), vocab.tokens.len());
        return Err(m.error(SCORES, why));
    }
    if let Some(id) = scores.iter().position(|s| s.is_nan()) {
        return Err(m.error(SCORES, format!("is not a number for token {id}")));
    }
    let merges = merges_of(vocab, scores);
    let prefix = m.flag("tokenizer.ggml.add_space_prefix")?.unwrap_or(true);
    let mut normalizers = Vec::new();
    let mut decoders = vec![
        json!({"type": "Replace", "pattern": {"String": "▁"}, "content": " "}),
        json!({"type": "ByteFallback"}),
        json!({"type": "Fuse"}),
    ];
    if prefix {
        normalizers.push(json!({"type": "Prepend", "prepend": "▁"}));
        decoders.push(json!({"type": "Strip", "content": " ", "start": 1, "stop": 0}));
    }
    normalizers.push(json!({"type": "Replace", "pattern": {"String": " "}, "content": "▁"}));
    let unknown = specials.iter().find(|(n, _)| *n == "unk_token").map(|(_, t)| t);
    let mut model = model(vocab, merges.into_iter().map(|(l, r)| json!([l, r])).collect());
    model.insert("unk_token".into(), json!(unknown));
    model.insert("fuse_unk".into(), json!(true));
    model.insert("byte_fallback".into(), json!(true));
    let normalizer = json!({"type": "Sequence", "normalizers": normalizers});
    Ok(whole(normalizer, Value::Null, json!({"type": "Sequence", "decoders": decoders}), model))
}

/// Every way to part a token in two tokens, best score first; of one score, the longer left part first, as SentencePiece
/// takes the leftmost pair.
fn merges_of<'a>(vocab: &'a Vocab, scores: &[f32]) -> Vec<(&'a str, &'a str)> {
    let merged = |id: usize| matches!(vocab.kinds.get(id), Some(&kind::NORMAL | &kind::USER_DEFINED));
    let mut all = Vec::new();
    for (id, token) in vocab.tokens.iter().enumerate().filter(|(id, _)| merged(*id)) {
        for (at, _) in token.char_indices().skip(1) {
            let (left, right) = token.split_at(at);
            let id_of = |t: &str| vocab.ids.get(t).copied().filter(|&i| merged(i));
            if let (Some(l), Some(r)) = (id_of(left), id_of(right)) {
                all.push((scores.get(id).copied().unwrap_or(0.0), left, right, l, r));
            }
        }
    }
    all.sort_by(|x, y| {
        let lengths = |e: &(f32, &str, &str, usize, usize)| (e.1.chars().count(), e.2.chars().count());
        y.0.total_cmp(&x.0).then(lengths(y).cmp(&lengths(x))).then((x.3, x.4).cmp(&(y.3, y.4)))
    });
    all.into_iter().map(|(_, left, right, ..)| (left, right)).collect()
}

fn post_processor([bos, eos]: [Option<&str>; 2], vocab: &Vocab) -> Value {
    let token = |t: &str| json!({"SpecialToken": {"id": t, "type_id": 0}});
    let piece = |text: &str| {
        let text = json!({"Sequence": {"id": text, "type_id": 0}});
        [bos.map(token), Some(text), eos.map(token)].into_iter().flatten()
    };
    let single: Vec<Value> = piece("A").collect();
    let pair: Vec<Value> = piece("A").chain(piece("B")).collect();
    let named: Map<String, Value> = [bos, eos]
        .into_iter()
        .flatten()
        .filter_map(|t| Some((t.to_string(), json!({"id": t, "ids": [vocab.ids.get(t)?], "tokens": [t]}))))
        .collect();
    json!({"type": "TemplateProcessing", "single": single, "pair": pair, "special_tokens": named})
}
