//! `POST /v1/chat/completions`: the request.

use std::borrow::Cow;

use serde_json::Value;

use super::common::{self, Bounds, Common, TOP_LOGPROBS};
use super::error::ApiError;
use super::fields::{Fields, kind, object, wrong};
use super::messages::{self, Conversation};
use crate::data::template::utc;
use crate::error::Error;
use crate::serve::voice::Voice;

/// A request for an answer to a conversation.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Chat {
    pub common: Common,
    pub conversation: Conversation,
    /// The functions that may be called, a JSON array; empty: none.
    pub tools: String,
    /// None: as the adapter was trained.
    pub thinking: Option<bool>,
    /// With probabilities, of so many alternatives each.
    pub logprobs: Option<usize>,
}

/// # Errors
/// 400 naming the field.
pub(in crate::serve) fn parse(body: &[u8], bounds: Bounds) -> Result<Chat, ApiError> {
    let body = object(body)?;
    let f = Fields::of(&body);
    let common = common::parse(f, bounds)?;
    let list = f.list("messages")?.ok_or_else(|| ApiError::invalid("messages", "`messages` is missing"))?;
    let conversation = messages::parse(list)?;
    let top = f.count("top_logprobs", 0..=TOP_LOGPROBS)?;
    let logprobs = match f.flag("logprobs")?.unwrap_or(false) {
        true => Some(top.unwrap_or(0)),
        false if top.is_some_and(|n| n > 0) => {
            return Err(ApiError::invalid("top_logprobs", "`top_logprobs` needs `logprobs`: true"));
        }
        false => None,
    };
    for old in ["functions", "function_call"] {
        f.refuse(old, "is OpenAI's old form; use `tools`")?;
    }
    f.refuse("audio", "is not built: this model writes text alone")?;
    Ok(Chat { common, conversation, tools: tools(f)?, thinking: thinking(f)?, logprobs })
}

/// The functions of `tools`, if they may be called.
fn tools(f: Fields<'_>) -> Result<String, ApiError> {
    let mut functions = Vec::new();
    for (i, tool) in f.list("tools")?.unwrap_or_default().iter().enumerate() {
        let param = format!("tools[{i}]");
        let Value::Object(_) = tool else { return Err(wrong(&param, "an object", tool)) };
        let tool = Fields::of(tool);
        let function = tool.get("function").filter(|_| tool.get("type").and_then(Value::as_str) == Some("function"));
        match function {
            Some(function @ Value::Object(map)) if map.get("name").is_some_and(Value::is_string) => {
                functions.push(function.clone())
            }
            _ => {
                return Err(ApiError::invalid(
                    &param,
                    format!(
                        "`{param}` must be {{\"type\": \"function\", \"function\": {{\"name\": .., \"description\": .., \"parameters\": ..}}}}"
                    ),
                ));
            }
        }
    }
    let allowed = match f.get("tool_choice") {
        None => true,
        Some(Value::String(choice)) if choice == "auto" => true,
        Some(Value::String(choice)) if choice == "none" => false,
        Some(Value::String(_) | Value::Object(_)) => {
            return Err(ApiError::invalid(
                "tool_choice",
                "`tool_choice` must be \"auto\" or \"none\": a call cannot be forced",
            ));
        }
        Some(other) => {
            return Err(ApiError::invalid(
                "tool_choice",
                format!("`tool_choice` must be \"auto\" or \"none\", is {}", kind(other)),
            ));
        }
    };
    Ok(if allowed && !functions.is_empty() { Value::Array(functions).to_string() } else { String::new() })
}

/// `enable_thinking`, or vLLM's place for it.
fn thinking(f: Fields<'_>) -> Result<Option<bool>, ApiError> {
    let inner = f.object("chat_template_kwargs")?.map(|k| k.flag("enable_thinking")).transpose()?.flatten();
    Ok(inner.or(f.flag("enable_thinking")?))
}

impl Chat {
    /// The tokens of the prompt.
    ///
    /// # Errors
    /// 400 if the template cannot write what was said, such as a call that is no JSON.
    pub fn prompt(&self, voice: &Voice) -> Result<Vec<u32>, ApiError> {
        let Conversation { system, messages } = &self.conversation;
        let thinking = self.thinking.or(voice.thinking);
        // The prompt for tools may name the day, and a server sees many.
        let template = match self.tools.is_empty() {
            true => Cow::Borrowed(&voice.template),
            false => Cow::Owned(voice.template.clone().with_date(&utc("%d %b %Y"))),
        };
        let prompt = template.chat_prompt(&voice.tokenizer, messages, system, &self.tools, thinking);
        prompt.map_err(|e| match &e {
            Error::Tokenizer(why) if why.contains("tool") => ApiError::of("tools", &e),
            e => ApiError::of("messages", e),
        })
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BOUNDS: Bounds = Bounds { n: 8, answers: 128 };

    fn read(extra: Value) -> Result<Chat, ApiError> {
        let mut all = json!({"model": "m", "messages": [{"role": "user", "content": "q"}]});
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        parse(all.to_string().as_bytes(), BOUNDS)
    }

    #[test]
    fn fields_of_chat() {
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}});
        let c = read(json!({"tools": [tool], "logprobs": true, "top_logprobs": 3, "enable_thinking": true, "chat_template_kwargs": {"enable_thinking": false}})).unwrap();
        assert_eq!((c.logprobs, c.thinking), (Some(3), Some(false)));
        assert_eq!(c.tools, r#"[{"name":"f","parameters":{"properties":{}}}]"#);
        assert_eq!(read(json!({"tools": [tool], "tool_choice": "none"})).unwrap().tools, "");
        assert_eq!(read(json!({"logprobs": false, "top_logprobs": 0})).unwrap().logprobs, None);
        for (field, value, param) in [
            ("messages", json!(null), "messages"),
            ("messages", json!("x"), "messages"),
            ("top_logprobs", json!(3), "top_logprobs"),
            ("top_logprobs", json!(21), "top_logprobs"),
            ("tools", json!([{"type": "web_search"}]), "tools[0]"),
            ("tools", json!([3]), "tools[0]"),
            ("tool_choice", json!("required"), "tool_choice"),
            ("tool_choice", json!({"type": "function"}), "tool_choice"),
            ("functions", json!([{}]), "functions"),
            ("chat_template_kwargs", json!(1), "chat_template_kwargs"),
            ("enable_thinking", json!("no"), "enable_thinking"),
        ] {
            let e = read(json!({field: value})).unwrap_err();
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some(param)), "{field}: {}", e.message);
        }
    }
}
