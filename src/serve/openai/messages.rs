//! A conversation in OpenAI's form becomes turns of ours, as LLaMA-Factory takes them: a system prompt, then questions (or
//! the results of tools) and answers (or calls of tools), alternating.

use serde_json::{Value, json};

use super::error::ApiError;
use super::fields::{Fields, kind};
use crate::data::{Message, Role};

/// What stands between the results of several calls; as in training.
const BETWEEN_RESULTS: &str = "\n</tool_response>\n<tool_response>\n";

/// What is said so far.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Conversation {
    /// Empty: the template's own.
    pub system: String,
    pub messages: Vec<Message>,
}

/// # Errors
/// 400 naming the message that is wrong, or cannot stand where it does.
pub(super) fn parse(list: &[Value]) -> Result<Conversation, ApiError> {
    let (mut system, mut messages): (String, Vec<Message>) = (String::new(), Vec::new());
    for (i, item) in list.iter().enumerate() {
        let at = Place(i);
        let Value::Object(_) = item else { return Err(at.wrong("", &format!("must be an object, is {}", kind(item)))) };
        let f = Fields::of(item);
        let role = f.text("role").map_err(|_| at.wrong("role", "must be a string"))?;
        let role = match role {
            Some("system" | "developer") if i == 0 => {
                system = at.content(f)?;
                continue;
            }
            Some("system" | "developer") => return Err(at.wrong("role", "can be `system` in the first message only")),
            Some("user") => Role::User,
            Some("tool") => Role::Observation,
            Some("assistant") if f.get("tool_calls").is_some_and(|c| c != &json!([])) => Role::Function,
            Some("assistant") => Role::Assistant,
            Some(other) => {
                let other: String = other.chars().take(40).collect();
                return Err(at.wrong("role", &format!("must be system, user, assistant or tool; got `{other}`")));
            }
            None => return Err(at.wrong("role", "is missing")),
        };
        let content = match role {
            Role::Function => at.calls(f)?,
            _ => at.content(f)?,
        };
        // The results of several calls are one turn.
        if let (Role::Observation, Some(last)) = (role, messages.last_mut().filter(|m| m.role == Role::Observation)) {
            last.content.push_str(BETWEEN_RESULTS);
            last.content.push_str(&content);
            continue;
        }
        let asks = matches!(role, Role::User | Role::Observation);
        if asks != messages.len().is_multiple_of(2) {
            let expected = if asks { "assistant" } else { "user" };
            let why = format!(
                "is `{}` where `{expected}` is expected: after the system prompt, user (or tool) and assistant take turns",
                name(role)
            );
            return Err(at.wrong("role", &why));
        }
        messages.push(Message { role, content });
    }
    match messages.last().map(|m| m.role) {
        Some(Role::User | Role::Observation) => Ok(Conversation { system, messages }),
        Some(_) => Err(ApiError::invalid(
            "messages",
            "`messages` must end with a user (or tool) message: the answer to it is what is asked for",
        )),
        None => Err(ApiError::invalid("messages", "`messages` holds no user message")),
    }
}

fn name(role: Role) -> &'static str {
    match role {
        Role::User => "user",
        Role::Observation => "tool",
        Role::Assistant | Role::Function => "assistant",
    }
}

/// A message's place in the list, for errors.
#[derive(Clone, Copy)]
struct Place(usize);

impl Place {
    fn wrong(self, field: &str, why: &str) -> ApiError {
        let dot = if field.is_empty() { "" } else { "." };
        let param = format!("messages[{}]{dot}{field}", self.0);
        ApiError::invalid(&param, format!("`{param}` {why}"))
    }

    /// A text, or parts of one.
    fn content(self, f: Fields<'_>) -> Result<String, ApiError> {
        let parts = match f.get("content") {
            Some(Value::String(text)) => return Ok(text.clone()),
            Some(Value::Array(parts)) => parts,
            Some(other) => {
                return Err(
                    self.wrong("content", &format!("must be a string or an array of parts, is {}", kind(other)))
                );
            }
            None => return Err(self.wrong("content", "is missing")),
        };
        let mut content = String::new();
        for part in parts {
            let part = Fields::of(part);
            match (part.get("type").and_then(Value::as_str), part.get("text").and_then(Value::as_str)) {
                (Some("text"), Some(text)) => content.push_str(text),
                (Some("text"), None) => return Err(self.wrong("content", "holds a part without its `text`")),
                (Some(other), _) => {
                    let other: String = other.chars().take(40).collect();
                    return Err(
                        self.wrong("content", &format!("holds a part of type `{other}`; this model reads text alone"))
                    );
                }
                (None, _) => {
                    return Err(self.wrong("content", "must hold parts such as {\"type\": \"text\", \"text\": ..}"));
                }
            }
        }
        Ok(content)
    }

    /// The calls of an assistant message, as templates take them. Arguments come as JSON text, and are written as the JSON
    /// they are: that is what the model wrote.
    fn calls(self, f: Fields<'_>) -> Result<String, ApiError> {
        let list = f.list("tool_calls").map_err(|_| self.wrong("tool_calls", "must be an array"))?;
        let mut calls = Vec::new();
        for call in list.unwrap_or_default() {
            let function = Fields::of(call).get("function").map(Fields::of);
            let text = |key: &str| function.and_then(|f| f.get(key)).and_then(Value::as_str);
            let (Some(name), Some(arguments)) = (text("name"), text("arguments")) else {
                return Err(self
                    .wrong("tool_calls", "must hold calls with a `function` of two strings, `name` and `arguments`"));
            };
            let arguments = match serde_json::from_str(arguments) {
                Ok(parsed @ Value::Object(_)) => parsed,
                _ => Value::String(arguments.to_string()),
            };
            calls.push(json!({"name": name, "arguments": arguments}));
        }
        Ok(Value::Array(calls).to_string())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn shown(list: Value) -> Result<String, ApiError> {
        let c = parse(list.as_array().unwrap())?;
        let show = |m: &Message| format!("{}:{}", ["u", "a", "o", "f"][m.role as usize], m.content);
        Ok(format!("{}#{}", c.messages.iter().map(show).collect::<Vec<_>>().join("|"), c.system))
    }

    #[test]
    fn turns_are_those_of_training() {
        let say = |role: &str, content: &str| json!({"role": role, "content": content});
        let call = json!({"role": "assistant", "content": null, "tool_calls": [
            {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{\"x\": 1}"}},
            {"id": "2", "type": "function", "function": {"name": "g", "arguments": "no json"}},
        ]});
        let parts = json!({"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]});
        for (list, want) in [
            (json!([say("user", "q")]), "u:q#"),
            (json!([say("developer", "s"), say("user", "q"), say("assistant", "a"), parts]), "u:q|a:a|u:ab#s"),
            (
                json!([say("user", "q"), call, say("tool", "1"), say("tool", "2")]),
                "u:q|f:[{\"name\":\"f\",\"arguments\":{\"x\":1}},{\"name\":\"g\",\"arguments\":\"no json\"}]|o:1\n</tool_response>\n<tool_response>\n2#",
            ),
            (
                json!([say("user", "q"), {"role": "assistant", "content": "a", "tool_calls": []}, say("user", "")]),
                "u:q|a:a|u:#",
            ),
        ] {
            assert_eq!(shown(list.clone()).unwrap(), want, "{list}");
        }
    }

    #[test]
    fn what_cannot_stand_there_is_named() {
        let say = |role: &str| json!({"role": role, "content": "x"});
        for (list, param) in [
            (json!([]), "messages"),
            (json!([say("system")]), "messages"),
            (json!([say("user"), say("assistant")]), "messages"),
            (json!([say("user"), say("user")]), "messages[1].role"),
            (json!([say("assistant")]), "messages[0].role"),
            (json!([say("user"), say("system")]), "messages[1].role"),
            (json!([say("user"), say("tool")]), "messages[1].role"),
            (json!([say("bot")]), "messages[0].role"),
            (json!(["x"]), "messages[0]"),
            (json!([{"content": "x"}]), "messages[0].role"),
            (json!([{"role": 3, "content": "x"}]), "messages[0].role"),
            (json!([{"role": "user"}]), "messages[0].content"),
            (json!([{"role": "user", "content": 3}]), "messages[0].content"),
            (
                json!([{"role": "user", "content": [{"type": "image_url", "image_url": {"url": "x"}}]}]),
                "messages[0].content",
            ),
            (json!([{"role": "user", "content": ["x"]}]), "messages[0].content"),
            (json!([say("user"), {"role": "assistant", "tool_calls": [{}]}, say("user")]), "messages[1].tool_calls"),
            (json!([say("user"), {"role": "assistant", "tool_calls": 3}, say("user")]), "messages[1].tool_calls"),
        ] {
            let e = shown(list.clone()).unwrap_err();
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some(param)), "{list}: {}", e.message);
            assert!(e.message.starts_with(&format!("`{param}` ")), "{}", e.message);
        }
    }
}
