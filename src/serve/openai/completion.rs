//! `POST /v1/completions`: the request.

use serde_json::Value;

use super::common::{self, Bounds, Common, TOP_LOGPROBS};
use super::error::ApiError;
use super::fields::{Fields, kind, object};
use crate::data::tokenizer::Tokenizer;

/// A request to continue texts.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Completion {
    pub common: Common,
    pub prompts: Vec<Prompt>,
    /// With probabilities, of so many alternatives each.
    pub logprobs: Option<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) enum Prompt {
    Text(String),
    Ids(Vec<u32>),
}

/// # Errors
/// 400 naming the field.
pub(in crate::serve) fn parse(body: &[u8], bounds: Bounds) -> Result<Completion, ApiError> {
    let body = object(body)?;
    let f = Fields::of(&body);
    let common = common::parse(f, bounds)?;
    f.refuse("echo", "is not built; put the prompt before the answer yourself")?;
    f.refuse("suffix", "is not built: this model only continues a text")?;
    // OpenAI's newer form of it is a flag; false asks for none.
    let logprobs = match f.get("logprobs") {
        Some(Value::Bool(false)) => None,
        _ => f.count("logprobs", 0..=TOP_LOGPROBS)?,
    };
    let prompts = prompts(f)?;
    let answers = prompts.len().saturating_mul(common.n);
    if answers > bounds.answers {
        let why = format!("`prompt` asks for {answers} answers at once; {} are allowed", bounds.answers);
        return Err(ApiError::invalid("prompt", why));
    }
    Ok(Completion { common, prompts, logprobs })
}

fn prompts(f: Fields<'_>) -> Result<Vec<Prompt>, ApiError> {
    let wrong = |got: &Value| {
        let why = format!("`prompt` must be a string, token ids, or an array of either; it holds {}", kind(got));
        ApiError::invalid("prompt", why)
    };
    let list = match f.get("prompt") {
        None => return Err(ApiError::invalid("prompt", "`prompt` is missing")),
        Some(Value::String(text)) => return Ok(vec![Prompt::Text(text.clone())]),
        Some(Value::Array(list)) => list,
        Some(other) => return Err(wrong(other)),
    };
    let id = |v: &Value| v.as_u64().and_then(|id| u32::try_from(id).ok()).ok_or_else(|| wrong(v));
    let ids = |list: &[Value]| list.iter().map(id).collect::<Result<Vec<u32>, ApiError>>();
    match list.first() {
        None => Err(ApiError::invalid("prompt", "`prompt` is an empty array")),
        Some(Value::Number(_)) => Ok(vec![Prompt::Ids(ids(list)?)]),
        Some(_) => list
            .iter()
            .map(|item| match item {
                Value::String(text) => Ok(Prompt::Text(text.clone())),
                Value::Array(inner) => Ok(Prompt::Ids(ids(inner)?)),
                other => Err(wrong(other)),
            })
            .collect(),
    }
}

impl Prompt {
    /// Its tokens; a text's with what the tokenizer puts around a text, such as bos.
    ///
    /// # Errors
    /// 400 for a prompt without any, and for an id that is not in the vocabulary.
    pub fn ids(&self, tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<u32>, ApiError> {
        let ids = match self {
            Prompt::Text(text) => tokenizer.encode_with_specials(text).map_err(|e| ApiError::of("prompt", &e))?,
            Prompt::Ids(ids) => ids.clone(),
        };
        if ids.is_empty() {
            return Err(ApiError::invalid("prompt", "`prompt` is empty: there is nothing to continue"));
        }
        match ids.iter().find(|id| **id as usize >= vocab) {
            Some(id) => {
                Err(ApiError::invalid("prompt", format!("`prompt` holds the id {id}; the vocabulary has {vocab}")))
            }
            None => Ok(ids),
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BOUNDS: Bounds = Bounds { n: 8, answers: 10 };

    fn read(extra: Value) -> Result<Completion, ApiError> {
        let mut all = json!({"model": "m", "prompt": "q"});
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        parse(all.to_string().as_bytes(), BOUNDS)
    }

    #[test]
    fn prompts_of_every_kind() {
        let text = |t: &str| Prompt::Text(t.into());
        for (prompt, want) in [
            (json!("q"), vec![text("q")]),
            (json!(["a", "b"]), vec![text("a"), text("b")]),
            (json!([1, 2]), vec![Prompt::Ids(vec![1, 2])]),
            (json!([[1], [2, 3]]), vec![Prompt::Ids(vec![1]), Prompt::Ids(vec![2, 3])]),
        ] {
            assert_eq!(read(json!({"prompt": prompt})).unwrap().prompts, want);
        }
        assert_eq!(read(json!({"logprobs": 2, "echo": false})).unwrap().logprobs, Some(2));
        for (field, value) in [
            ("prompt", json!(null)),
            ("prompt", json!([])),
            ("prompt", json!(3)),
            ("prompt", json!([1, -2])),
            ("prompt", json!([1, 2.5])),
            ("prompt", json!(["a", {}])),
            ("prompt", json!([1u64 << 33])),
            ("echo", json!(true)),
            ("suffix", json!("x")),
            ("logprobs", json!(21)),
            ("logprobs", json!("x")),
            ("prompt", json!(vec!["x"; 11])),
        ] {
            let e = read(json!({field: value})).unwrap_err();
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some(field)), "{}", e.message);
        }
        let e = read(json!({"prompt": vec!["x"; 4], "n": 3})).unwrap_err();
        assert!(e.message.contains("12 answers") && e.message.contains("10 are allowed"), "{}", e.message);
    }
}
