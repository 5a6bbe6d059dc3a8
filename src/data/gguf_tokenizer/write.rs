//! From a tokenizer to `tokenizer.ggml.*`.

use std::collections::HashMap;

use serde_json::{Value as Json, json};

use super::super::tokenizer::Tokenizer;
use super::kind;
use super::pre;
use crate::error::{Error, Result};
use crate::format::gguf::{Array, Metadata, Value};

/// Texts on which the tokenizer that GGUF can say is compared with the one it is made from.
const PROBES: [&str; 12] = [
    "Hello, world! It's 3 o'clock; we'll see 12345 things, won't WE'LL?",
    "The quick brown fox  jumps   over\tthe\n\n lazy dog.\r\n  End. ",
    "北京的人口在2023年约为2185.8万人。我们一起去吃饭吧！",
    "日本語のテキストと、カタカナ。한국어 텍스트도 있습니다.",
    "🦙 llamas 👩‍👩‍👧 and é, ü, ñ, ½ ² Ⅷ — “quotes”…",
    "fn main() {\n    let x = a[0] + b->c * 2; // ok\n\tprintln!(\"{}\", x);\n}",
    "1 22 333 4444 55555 3.14159 1,000,000 0x1F",
    "Привет, мир! Ελληνικά. नमस्ते ไทย العربية עברית",
    "x\n\n\ny \n z\u{a0}w\u{3000}v",
    "!!! ??? ... ((())) [] {} <> ~`^|$+= @#%&*_",
    "camelCaseWord HTTPServer snake_case kebab-case ALLCAPS",
    "a",
];

/// The entries of a file for a model whose embedding has `rows` rows. Ids without a token are filled with unused ones.
///
/// # Errors
/// [`Error::Tokenizer`] if the tokenizer is of no kind that GGUF has, splits text in a way that has no name there, has
/// more tokens than `rows`, or if what the entries say gives other ids than the tokenizer itself.
pub fn entries(t: &Tokenizer, rows: usize) -> Result<Vec<(String, Value)>> {
    let json = t.json()?;
    let vocab = Vocab::read(&json, t, rows)?;
    let add = t.adds_around()?;
    let mut m = Metadata::new();
    let strings = |v: Vec<String>| Value::Array(Array::String(v));
    let kinds = vocab.kinds.iter().map(|&k| k as i32).collect();
    match kind_of(&json)? {
        Kind::ByteLevel { pre } => {
            m.set("tokenizer.ggml.model", Value::string("gpt2"));
            m.set("tokenizer.ggml.pre", Value::string(pre));
            m.set("tokenizer.ggml.tokens", strings(vocab.tokens.clone()));
            m.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
            let merges = merges(&json)?.into_iter().map(|(l, r)| format!("{l} {r}")).collect();
            m.set("tokenizer.ggml.merges", strings(merges));
        }
        Kind::SentencePiece { prefix } => {
            m.set("tokenizer.ggml.model", Value::string("llama"));
            m.set("tokenizer.ggml.pre", Value::string("default"));
            m.set("tokenizer.ggml.tokens", strings(vocab.tokens.clone()));
            m.set("tokenizer.ggml.scores", Value::Array(Array::F32(vocab.scores(&merges(&json)?))));
            m.set("tokenizer.ggml.token_type", Value::Array(Array::I32(kinds)));
            m.set("tokenizer.ggml.add_space_prefix", Value::Bool(prefix));
        }
    }
    let ids = [("bos", t.bos_id()), ("eos", t.eos_id()), ("unknown", t.unk_id()), ("padding", t.pad_id())];
    for (name, id) in ids {
        if let Some(id) = id {
            m.set(format!("tokenizer.ggml.{name}_token_id"), Value::U32(id));
        }
    }
    m.set("tokenizer.ggml.add_bos_token", Value::Bool(add.0));
    m.set("tokenizer.ggml.add_eos_token", Value::Bool(add.1));
    if let Some(template) = t.saved_chat_template() {
        m.set("tokenizer.chat_template", Value::string(template));
    }
    compare(t, &m)?;
    Ok(m.iter().map(|(k, v)| (k.to_string(), v.clone())).collect())
}

fn wrong(why: impl Into<String>) -> Error {
    Error::Tokenizer(format!("cannot be written as GGUF: {}", why.into()))
}

enum Kind {
    ByteLevel {
        pre: &'static str,
    },
    /// Whether a space is put before the text.
    SentencePiece {
        prefix: bool,
    },
}

fn type_of(v: &Json) -> &str {
    v.get("type").and_then(Json::as_str).unwrap_or("")
}

/// The steps of a normalizer or pre-tokenizer, without nesting.
fn steps<'a>(v: Option<&'a Json>, list: &str) -> Vec<&'a Json> {
    match v {
        None | Some(Json::Null) => Vec::new(),
        Some(v) => match v.get(list).and_then(Json::as_array) {
            Some(inner) => inner.iter().flat_map(|s| steps(Some(s), list)).collect(),
            None => vec![v],
        },
    }
}

fn kind_of(json: &Json) -> Result<Kind> {
    let flag = |v: &Json, key: &str| v.get(key).and_then(Json::as_bool).unwrap_or(false);
    let model = json.get("model").unwrap_or(&Json::Null);
    if type_of(model) != "BPE" {
        return Err(wrong(format!("its model is {}, and only BPE has a form there", type_of(model))));
    }
    let normalizers = steps(json.get("normalizer"), "normalizers");
    let pre_tokenizers = steps(json.get("pre_tokenizer"), "pretokenizers");
    if pre_tokenizers.iter().any(|p| type_of(p) == "ByteLevel") {
        if let Some(other) = normalizers.iter().find(|n| type_of(n) != "NFC") {
            return Err(wrong(format!("it normalises text by {}", type_of(other))));
        }
        let patterns: Vec<String> =
            pre_tokenizers.iter().filter_map(|p| pattern(p).transpose()).collect::<Result<_>>()?;
        let name = pre::recognise(&patterns, flag(model, "ignore_merges"), !normalizers.is_empty());
        let known = || wrong(format!("it splits text by {patterns:?}, which has no name there; known are {}", pre::names()));
        return Ok(Kind::ByteLevel { pre: name.ok_or_else(known)? });
    }
    if !flag(model, "byte_fallback") {
        return Err(wrong("it is neither byte-level nor falls back on bytes"));
    }
    let spaces_escaped = |v: &Json| v.pointer("/pattern/String").and_then(Json::as_str) == Some(" ");
    let mut prefix = false;
    for n in normalizers {
        match type_of(n) {
            "Prepend" => prefix = true,
            "Replace" if spaces_escaped(n) => {}
            other => return Err(wrong(format!("it normalises text by {other}"))),
        }
    }
    for p in pre_tokenizers {
        match type_of(p) {
            "Metaspace" => prefix |= p.get("prepend_scheme").and_then(Json::as_str) != Some("never"),
            other => return Err(wrong(format!("it splits text by {other}"))),
        }
    }
    Ok(Kind::SentencePiece { prefix })
}

/// A step of splitting as a pattern; None where it splits nothing.
fn pattern(step: &Json) -> Result<Option<String>> {
    let text = |key: &str| step.get(key).and_then(Json::as_str).unwrap_or("");
    let flag = |key: &str, default| step.get(key).and_then(Json::as_bool).unwrap_or(default);
    let regex = step.pointer("/pattern/Regex").and_then(Json::as_str);
    match (type_of(step), regex) {
        ("ByteLevel", _) if flag("add_prefix_space", false) => Err(wrong("it puts a space before every text")),
        ("ByteLevel", _) => Ok(flag("use_regex", true).then(|| pre::GPT2.to_string())),
        ("Split", Some(regex)) if text("behavior") == "Isolated" && !flag("invert", false) => Ok(Some(regex.into())),
        // What is removed between matches is nothing where the pattern takes every character.
        ("Split", Some(regex)) if text("behavior") == "Removed" && flag("invert", false) => Ok(Some(regex.into())),
        ("Digits", _) => Ok(Some(if flag("individual_digits", false) { pre::DIGIT } else { pre::DIGITS }.to_string())),
        ("Punctuation", _) if text("behavior") == "Contiguous" => Ok(Some(pre::PUNCTUATION.to_string())),
        (other, _) => Err(wrong(format!("it splits text by {other} in a way that has no name there"))),
    }
}

/// The merges, best first.
fn merges(json: &Json) -> Result<Vec<(String, String)>> {
    let list = json.pointer("/model/merges").and_then(Json::as_array).ok_or_else(|| wrong("it has no merges"))?;
    let pair = |m: &Json| match m {
        Json::String(s) => s.split_once(' ').map(|(l, r)| (l.to_string(), r.to_string())),
        m => Some((m.get(0)?.as_str()?.to_string(), m.get(1)?.as_str()?.to_string())),
    };
    list.iter().map(|m| pair(m).ok_or_else(|| wrong(format!("its merge {m} is not two tokens")))).collect()
}

/// Every id's token and what it is.
struct Vocab {
    tokens: Vec<String>,
    kinds: Vec<i64>,
}

impl Vocab {
    fn read(json: &Json, t: &Tokenizer, rows: usize) -> Result<Vocab> {
        let of_model = json.pointer("/model/vocab").and_then(Json::as_object);
        let of_model = of_model.ok_or_else(|| wrong("it has no vocabulary"))?;
        let mut found: Vec<Option<(String, i64)>> = vec![None; rows];
        let mut put = |id: Option<u64>, token: &str, kind: i64| -> Result<()> {
            let place = id.and_then(|id| found.get_mut(usize::try_from(id).ok()?));
            let beyond = || wrong(format!("`{token}` lies beyond the {rows} rows of the model's embedding"));
            *place.ok_or_else(beyond)? = Some((token.to_string(), kind));
            Ok(())
        };
        for (token, id) in of_model {
            put(id.as_u64(), token, if is_byte(token) { kind::BYTE } else { kind::NORMAL })?;
        }
        let bytes = of_model.contains_key("<0x00>");
        for a in json.get("added_tokens").and_then(Json::as_array).into_iter().flatten() {
            let content = a.get("content").and_then(Json::as_str).unwrap_or("");
            let special = a.get("special").and_then(Json::as_bool).unwrap_or(false);
            let kind = match special {
                true if bytes && t.unk() == Some(content) => kind::UNKNOWN,
                true => kind::CONTROL,
                false => kind::USER_DEFINED,
            };
            put(a.get("id").and_then(Json::as_u64), content, kind)?;
        }
        let all = found.into_iter().enumerate();
        let (tokens, kinds) = all.map(|(id, f)| f.unwrap_or_else(|| (format!("[PAD{id}]"), kind::UNUSED))).unzip();
        Ok(Vocab { tokens, kinds })
    }

    /// What SentencePiece would have: a token's score falls with the rank of the first merge that gives it, and what no
    /// merge gives comes after all that one does.
    fn scores(&self, merges: &[(String, String)]) -> Vec<f32> {
        let mut rank: HashMap<String, usize> = HashMap::with_capacity(merges.len());
        for (i, (left, right)) in merges.iter().enumerate() {
            rank.entry(format!("{left}{right}")).or_insert(i);
        }
        let score = |(id, token): (usize, &String)| match (self.kinds.get(id), rank.get(token)) {
            (Some(&kind::NORMAL | &kind::USER_DEFINED), Some(&r)) => -(r as f32),
            (Some(&kind::NORMAL), None) => -((merges.len() + id) as f32),
            _ => 0.0,
        };
        self.tokens.iter().enumerate().map(score).collect()
    }
}

/// `<0x0A>`
fn is_byte(token: &str) -> bool {
    let hex = token.strip_prefix("<0x").and_then(|t| t.strip_suffix('>'));
    hex.is_some_and(|h| h.len() == 2 && h.chars().all(|c| c.is_ascii_hexdigit()))
}

/// Tries out what was written.
fn compare(t: &Tokenizer, m: &Metadata) -> Result<()> {
    let back = Tokenizer::from_gguf(m, false)?;
    for text in PROBES {
        let (want, got) = (t.encode(text)?, back.encode(text)?);
        if want != got {
            let at = want.iter().zip(&got).take_while(|(x, y)| x == y).count();
            let why = format!("text would be split otherwise there: {}, from token {at} on", json!(text));
            return Err(wrong(why));
        }
    }
    Ok(())
}
