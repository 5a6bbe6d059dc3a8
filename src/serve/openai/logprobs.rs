//! Probabilities of tokens, in the shapes of chat and of completions.

use serde_json::{Map, Value, json};

use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::infer::Logprobs;

/// A token's text and bytes, and the natural logarithm of its probability.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Entry {
    text: String,
    bytes: Vec<u8>,
    logprob: f32,
}

/// A token of an answer, and the likeliest tokens at its place.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Scored {
    chosen: Entry,
    top: Vec<Entry>,
}

/// # Errors
/// [`crate::Error::Tokenizer`] if the tokenizer's decoder fails.
pub(super) fn score(tokenizer: &Tokenizer, id: u32, logprobs: &Logprobs) -> Result<Scored> {
    let top = logprobs.top.iter().map(|(id, logprob)| entry(tokenizer, *id, *logprob)).collect::<Result<_>>()?;
    Ok(Scored { chosen: entry(tokenizer, id, logprobs.chosen)?, top })
}

fn entry(tokenizer: &Tokenizer, id: u32, logprob: f32) -> Result<Entry> {
    // JSON has no -inf; the least float stands for a token that cannot be.
    let logprob = if logprob.is_finite() { logprob } else { f32::MIN };
    let (spelt, mut text) = (tokenizer.token(id).unwrap_or_default(), tokenizer.decode(&[id], false)?);
    // At the start of a text some decoders take the space away that belongs to the token.
    if spelt.starts_with('▁') && !text.starts_with(' ') {
        text.insert(0, ' ');
    }
    let bytes = match text.contains('\u{FFFD}') {
        true => raw_bytes(&spelt).unwrap_or_else(|| text.clone().into_bytes()),
        false => text.clone().into_bytes(),
    };
    Ok(Entry { text, bytes, logprob })
}

/// The bytes of a token that is a part of a character: spelt `<0xE4>`, or in GPT-2's alphabet of bytes.
fn raw_bytes(spelt: &str) -> Option<Vec<u8>> {
    if let Some(hex) = spelt.strip_prefix("<0x").and_then(|s| s.strip_suffix('>')) {
        return u8::from_str_radix(hex, 16).ok().map(|b| vec![b]);
    }
    spelt.chars().map(byte_of).collect()
}

/// GPT-2 writes printable bytes of Latin-1 as themselves, and the others, in their order, as the letters from U+0100 on.
fn byte_of(c: char) -> Option<u8> {
    let printable = |b: &u8| matches!(b, b'!'..=b'~' | 0xA1..=0xAC | 0xAE..=0xFF);
    match u32::from(c) {
        code @ 0..=0xFF => u8::try_from(code).ok().filter(printable),
        code => (0..=u8::MAX).filter(|b| !printable(b)).nth(usize::try_from(code - 0x100).ok()?),
    }
}

/// `{"content": [..]}` of a chat's choice.
pub(super) fn of_chat(tokens: &[Scored]) -> Value {
    let show = |e: &Entry| json!({"token": e.text, "logprob": e.logprob, "bytes": e.bytes});
    let content = tokens.iter().map(|t| {
        let mut shown = show(&t.chosen);
        shown["top_logprobs"] = t.top.iter().map(show).collect();
        shown
    });
    json!({"content": content.collect::<Vec<Value>>(), "refusal": null})
}

/// The four lists of a completion's choice; `offset` is where the first token's text begins.
pub(super) fn of_completion(tokens: &[Scored], mut offset: usize) -> Value {
    let mut offsets = Vec::with_capacity(tokens.len());
    for t in tokens {
        offsets.push(offset);
        offset += t.chosen.text.chars().count();
    }
    let top = tokens.iter().map(|t| {
        // Two tokens of one text are one key, the likelier stays.
        let mut map = Map::new();
        t.top.iter().for_each(|e| _ = map.entry(e.text.clone()).or_insert(json!(e.logprob)));
        Value::Object(map)
    });
    json!({
        "tokens": tokens.iter().map(|t| t.chosen.text.as_str()).collect::<Vec<_>>(),
        "token_logprobs": tokens.iter().map(|t| t.chosen.logprob).collect::<Vec<_>>(),
        "top_logprobs": top.collect::<Vec<_>>(),
        "text_offset": offsets,
    })
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    fn tokenizer(folder: &str) -> Tokenizer {
        Tokenizer::load(&Path::new(env!("CARGO_MANIFEST_DIR")).join(folder), false).unwrap()
    }

    /// Bytes of the tokens, laid end to end, are those of the text, however characters are cut.
    #[test]
    fn bytes_are_those_of_the_text() {
        let text = "Hello, 多久洗一次牙 😀 naïve";
        for folder in ["assets/tiny-base", "tests/golden/models/llama2", "tests/golden/models/qwen2"] {
            let t = tokenizer(folder);
            let ids = t.encode(text).unwrap();
            let bytes: Vec<u8> = ids.iter().flat_map(|id| entry(&t, *id, 0.0).unwrap().bytes).collect();
            let said = String::from_utf8(bytes).unwrap();
            assert_eq!(said.trim_start(), text, "{folder}");
        }
    }

    #[test]
    fn shapes_of_openai() {
        let e = |text: &str, logprob| Entry { text: text.into(), bytes: text.as_bytes().to_vec(), logprob };
        let tokens = [
            Scored { chosen: e("é", -0.5), top: vec![e("é", -0.5), e("b", -1.5)] },
            Scored { chosen: e("!", -2.0), top: vec![] },
        ];
        let want = json!({"content": [
            {"token": "é", "logprob": -0.5, "bytes": [195, 169], "top_logprobs": [
                {"token": "é", "logprob": -0.5, "bytes": [195, 169]}, {"token": "b", "logprob": -1.5, "bytes": [98]}]},
            {"token": "!", "logprob": -2.0, "bytes": [33], "top_logprobs": []},
        ], "refusal": null});
        assert_eq!(of_chat(&tokens), want);
        let want = json!({
            "tokens": ["é", "!"], "token_logprobs": [-0.5, -2.0], "top_logprobs": [{"é": -0.5, "b": -1.5}, {}],
            "text_offset": [7, 8],
        });
        assert_eq!(of_completion(&tokens, 7), want);
        let t = tokenizer("assets/tiny-base");
        assert_eq!(entry(&t, 70, f32::NEG_INFINITY).unwrap().logprob, f32::MIN);
    }
}
