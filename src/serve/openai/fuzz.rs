//! Whatever comes in: the parsers give a request, or a 4xx with a message. Never a panic, never a 5xx.

use std::path::Path;
use std::sync::Arc;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::common::Bounds;
use super::error::ApiError;
use super::fields::{Fields, object};
use super::{chat, completion};
use crate::config::{self, Format};
use crate::serve::voice::{Voice, Voices};

const BOUNDS: Bounds = Bounds { n: 8, answers: 128 };

thread_local! {
    /// One for each way of writing tools.
    static VOICES: Vec<Arc<Voice>> = ["qwen", "llama3", "mistral", "default"].map(voice).into();
}

fn voice(tools: &str) -> Arc<Voice> {
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
    let text = format!("model_name_or_path: {}\ntemplate: qwen3\ntool_format: {tools}", base.display());
    let config = config::from_str(&text, Format::Yaml, &[]).unwrap();
    Voices::new(&config, &base).of(None).unwrap()
}

/// What is taken is written as a prompt, by every template.
fn prompts(body: &[u8]) -> Result<(), ApiError> {
    let asked = chat::parse(body, BOUNDS)?;
    VOICES.with(|all| all.iter().try_for_each(|voice| asked.prompt(voice).map(drop)))
}

/// Every parser on one body.
fn parse_all(body: &[u8]) -> Result<(), String> {
    let results = [
        prompts(body),
        completion::parse(body, BOUNDS).map(drop),
        object(body).and_then(|v| Fields::of(&v).needed_text("lora_name").map(drop)),
    ];
    results.into_iter().try_for_each(|result| match result {
        Ok(()) => Ok(()),
        Err(e) => fit_to_be_sent(&e),
    })
}

fn fit_to_be_sent(e: &ApiError) -> Result<(), String> {
    let fine = e.status.is_client_error() && !e.message.is_empty() && e.message.len() < 1000;
    if fine && e.body()["error"]["message"].is_string() { Ok(()) } else { Err(format!("{e:?}")) }
}

/// A body with every field that is known.
fn full(chat: bool) -> Value {
    let mut body = json!({
        "model": "m", "stream": true, "stream_options": {"include_usage": true}, "stop": ["a", "b"], "n": 2, "seed": -1,
        "max_tokens": 5, "max_completion_tokens": 6, "temperature": 0.5, "top_p": 0.9, "top_k": 5, "min_p": 0.1,
        "repetition_penalty": 1.1, "presence_penalty": 0.5, "frequency_penalty": -0.5, "logit_bias": {}, "user": "u",
        "response_format": {"type": "text"}, "best_of": 2,
    });
    let more = match chat {
        true => json!({
            "messages": [
                {"role": "system", "content": "s"},
                {"role": "user", "content": [{"type": "text", "text": "q"}]},
                {"role": "assistant", "content": null, "tool_calls": [
                    {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]},
                {"role": "tool", "tool_call_id": "1", "content": "r"},
            ],
            "logprobs": true, "top_logprobs": 3, "tool_choice": "auto", "enable_thinking": false,
            "tools": [{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"properties": {}}}}],
            "chat_template_kwargs": {"enable_thinking": true},
        }),
        false => json!({"prompt": ["p", [1, 2]], "logprobs": 3, "echo": false, "suffix": null}),
    };
    let (Value::Object(body_map), Value::Object(more)) = (&mut body, more) else { unreachable!() };
    body_map.extend(more);
    body
}

/// Any JSON.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        any::<u64>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        (-3i64..30).prop_map(Value::from),
        ".{0,12}".prop_map(Value::from),
        Just(Value::from("x".repeat(5000))),
    ];
    leaf.prop_recursive(3, 24, 6, |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..20).prop_map(Value::from),
            prop::collection::vec(("(role|content|type|text|function|name|[a-z]{1,4})", inner), 0..5)
                .prop_map(|pairs| Value::Object(pairs.into_iter().collect())),
        ]
    })
}

/// How many places a value has, itself included.
fn places(value: &Value) -> usize {
    1 + match value {
        Value::Array(items) => items.iter().map(places).sum::<usize>(),
        Value::Object(map) => map.values().map(places).sum(),
        _ => 0,
    }
}

/// Puts `new` into place `at`, or takes what is there out of its object or list.
fn change(value: &mut Value, at: &mut usize, new: Option<&Value>) {
    let here = |at: &mut usize| {
        let found = *at == 0;
        *at = at.wrapping_sub(1);
        found
    };
    match value {
        Value::Array(items) => {
            let mut i = 0;
            while i < items.len() {
                if here(at) {
                    match new {
                        Some(new) => items[i] = new.clone(),
                        None => drop(items.remove(i)),
                    }
                    return;
                }
                change(&mut items[i], at, new);
                i += 1;
            }
        }
        Value::Object(map) => {
            let keys: Vec<String> = map.keys().cloned().collect();
            for key in keys {
                if here(at) {
                    match new {
                        Some(new) => drop(map.insert(key, new.clone())),
                        None => drop(map.remove(&key)),
                    }
                    return;
                }
                if let Some(inner) = map.get_mut(&key) {
                    change(inner, at, new);
                }
            }
        }
        _ => {}
    }
}

#[test]
fn the_full_bodies_are_taken() {
    assert_eq!(prompts(full(true).to_string().as_bytes()), Ok(()));
    assert!(completion::parse(full(false).to_string().as_bytes(), BOUNDS).is_ok());
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 1000, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_bytes(body in prop::collection::vec(any::<u8>(), 0..200)) {
        prop_assert_eq!(parse_all(&body), Ok(()));
    }

    #[test]
    fn any_value(body in any_json()) {
        prop_assert_eq!(parse_all(body.to_string().as_bytes()), Ok(()));
    }

    /// A good body in which fields, however deep, are taken out or made something else.
    #[test]
    fn changed_fields(chat in any::<bool>(), picks in prop::collection::vec((any::<usize>(), prop::option::of(any_json())), 1..4)) {
        let mut body = full(chat);
        for (at, new) in picks {
            let mut at = at % places(&body).max(2).saturating_sub(1);
            change(&mut body, &mut at, new.as_ref());
        }
        prop_assert_eq!(parse_all(body.to_string().as_bytes()), Ok(()), "{}", body);
    }

    /// A good body in which bytes are changed, or which is cut off.
    #[test]
    fn changed_bytes(chat in any::<bool>(), picks in prop::collection::vec((any::<usize>(), any::<u8>()), 0..6), cut in any::<usize>()) {
        let mut body = full(chat).to_string().into_bytes();
        let n = body.len();
        for (at, byte) in picks {
            body[at % n] = byte;
        }
        if cut % 3 == 0 {
            body.truncate(cut % n);
        }
        prop_assert_eq!(parse_all(&body), Ok(()), "{}", String::from_utf8_lossy(&body));
    }
}
