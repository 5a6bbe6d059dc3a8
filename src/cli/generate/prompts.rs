//! What is asked: on the command line, in a file, or on standard input.

use std::fs;
use std::io::Read;
use std::path::Path;

use serde_json::{Map, Value};

use crate::data::{Message, Role};
use crate::error::{Error, Result};

/// One question, or a conversation that ends with one.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::cli) struct Prompt {
    pub messages: Vec<Message>,
    /// Empty: the configured one.
    pub system: String,
    /// What stands for it in JSON: ("prompt", its text) or ("messages", as given).
    pub shown: (&'static str, Value),
}

impl Prompt {
    pub fn of_text(text: &str) -> Prompt {
        let messages = vec![Message { role: Role::User, content: text.to_string() }];
        Prompt { messages, system: String::new(), shown: ("prompt", Value::from(text)) }
    }

    fn of_object(object: &Map<String, Value>) -> std::result::Result<Prompt, String> {
        let system = match object.get("system") {
            None | Some(Value::Null) => "",
            Some(v) => v.as_str().ok_or("`system` must be a text")?,
        };
        match (object.get("prompt"), object.get("messages")) {
            (Some(text), None) => {
                let text = text.as_str().ok_or("`prompt` must be a text")?;
                Ok(Prompt { system: system.to_string(), ..Prompt::of_text(text) })
            }
            (None, Some(list)) => {
                let (within, messages) = messages(list)?;
                if !system.is_empty() && !within.is_empty() {
                    return Err("has a system prompt both in `system` and in `messages`: keep one".into());
                }
                let system = if system.is_empty() { within } else { system.to_string() };
                Ok(Prompt { messages, system, shown: ("messages", list.clone()) })
            }
            (Some(_), Some(_)) => Err("has both `prompt` and `messages`: keep one".into()),
            (None, None) => Err("needs `prompt` (a text) or `messages` (a list of role and content)".into()),
        }
    }
}

/// System prompt and turns of a list of `{"role": .., "content": ..}`.
fn messages(list: &Value) -> std::result::Result<(String, Vec<Message>), String> {
    let list = list.as_array().ok_or("`messages` must be a list")?;
    let (mut system, mut messages) = (String::new(), Vec::new());
    for (i, item) in list.iter().enumerate() {
        let text = |key: &str| {
            let found = item.get(key).and_then(Value::as_str);
            found.ok_or_else(|| format!("message {} needs the text `{key}`", i + 1))
        };
        let (role, content) = (text("role")?, text("content")?.to_string());
        let role = match role {
            "system" if i == 0 => {
                system = content;
                continue;
            }
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "tool" | "observation" => Role::Observation,
            "function" => Role::Function,
            "system" => return Err(format!("message {}: only the first may be of the role `system`", i + 1)),
            other => {
                return Err(format!(
                    "message {}: the role `{other}` is not known: user, assistant, system, tool",
                    i + 1
                ));
            }
        };
        let asks = matches!(role, Role::User | Role::Observation);
        if asks != messages.len().is_multiple_of(2) {
            return Err(format!("message {}: user (or tool) and assistant must take turns, user first", i + 1));
        }
        messages.push(Message { role, content });
    }
    match messages.len() % 2 {
        1 => Ok((system, messages)),
        _ => Err("`messages` must end with the user's turn, which is then answered".into()),
    }
}

/// The prompts in `path`, `-` being standard input: a prompt a line, or, in a .jsonl or if the first line is one, a JSON
/// object a line. Empty lines are left out.
///
/// # Errors
/// [`Error::File`] if it cannot be read or holds none, [`Error::Row`] naming the line that is wrong.
pub(in crate::cli) fn read(path: &str) -> Result<Vec<Prompt>> {
    let (name, bytes) = match path {
        "-" => {
            let mut bytes = Vec::new();
            let name = Path::new("standard input");
            std::io::stdin().lock().read_to_end(&mut bytes).map_err(|e| Error::io(name, "cannot read", &e))?;
            (name, bytes)
        }
        path => {
            let path = Path::new(path);
            (path, fs::read(path).map_err(|e| Error::io(path, "cannot read", &e))?)
        }
    };
    let text = String::from_utf8(bytes).map_err(|_| Error::file(name, "is not UTF-8"))?;
    parse(name, &text)
}

fn parse(name: &Path, text: &str) -> Result<Vec<Prompt>> {
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    let lines = || text.lines().enumerate().filter(|(_, l)| !l.trim().is_empty());
    let object = |line: &str| serde_json::from_str::<Map<String, Value>>(line);
    let is_json = name.extension().is_some_and(|e| e == "jsonl" || e == "ndjson")
        || name.extension().is_none() && lines().next().is_some_and(|(_, l)| object(l).is_ok());
    let prompts: Vec<Prompt> = if is_json {
        let read = |(i, line): (usize, &str)| {
            let wrong = |why| Error::Row { file: name.to_path_buf(), row: i + 1, why };
            let object = object(line).map_err(|e| wrong(format!("is not a JSON object: {e}")))?;
            Prompt::of_object(&object).map_err(wrong)
        };
        lines().map(read).collect::<Result<_>>()?
    } else {
        lines().map(|(_, line)| Prompt::of_text(line)).collect()
    };
    match prompts.is_empty() {
        true => Err(Error::file(name, "holds no prompt")),
        false => Ok(prompts),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn of(name: &str, text: &str) -> Result<Vec<Prompt>> {
        parse(Path::new(name), text)
    }

    #[test]
    fn a_prompt_a_line_or_an_object_a_line() {
        let texts = of("a.txt", "\u{FEFF}one \r\n\n{\"prompt\": 1}\n").unwrap();
        assert_eq!(texts, [Prompt::of_text("one "), Prompt::of_text("{\"prompt\": 1}")]);
        let lines = concat!(
            r#"{"prompt": "一", "system": "Brief.", "id": 7}"#,
            "\n\n",
            r#"{"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]}"#
        );
        let lines = lines.replace("},\n", "},");
        for name in ["a.jsonl", "standard input"] {
            let got = of(name, &lines).unwrap();
            assert_eq!((got[0].system.as_str(), got[0].messages[0].content.as_str()), ("Brief.", "一"), "{name}");
            assert_eq!(got[0].shown, ("prompt", json!("一")));
            let said: Vec<(Role, &str)> = got[1].messages.iter().map(|m| (m.role, m.content.as_str())).collect();
            assert_eq!(said, [(Role::User, "a"), (Role::Assistant, "b"), (Role::User, "c")]);
            assert_eq!((got[1].system.as_str(), got[1].shown.0), ("S", "messages"));
        }
        assert_eq!(of("standard input", "plain\n").unwrap(), [Prompt::of_text("plain")]);
    }

    #[test]
    fn a_wrong_line_is_named() {
        let message = |role: &str| format!(r#"{{"role": "{role}", "content": "x"}}"#);
        let list = |roles: &[&str]| {
            format!(r#"{{"messages": [{}]}}"#, roles.iter().map(|r| message(r)).collect::<Vec<_>>().join(", "))
        };
        for (line, word) in [
            ("{\"prompt\"".to_string(), "JSON"),
            ("[1]".into(), "JSON object"),
            ("{}".into(), "`prompt`"),
            (r#"{"prompt": 3}"#.into(), "`prompt` must be a text"),
            (r#"{"prompt": "a", "system": 3}"#.into(), "`system`"),
            (r#"{"prompt": "a", "messages": []}"#.into(), "both"),
            (r#"{"messages": "a"}"#.into(), "list"),
            (r#"{"messages": [{"role": "user"}]}"#.into(), "`content`"),
            (list(&[]), "end with the user"),
            (list(&["user", "assistant"]), "end with the user"),
            (list(&["assistant", "user"]), "message 1"),
            (list(&["user", "user"]), "message 2"),
            (list(&["user", "system"]), "message 2"),
            (list(&["human"]), "`human`"),
        ] {
            let e = of("p.jsonl", &format!("{{\"prompt\": \"fine\"}}\n{line}\n")).unwrap_err().to_string();
            assert!(e.contains("p.jsonl: row 2") && e.contains(word) && !e.contains('\n'), "{line}: {e}");
        }
        assert!(of("a.txt", " \n\n").unwrap_err().to_string().contains("no prompt"));
        assert!(read("no/such/file.txt").unwrap_err().to_string().contains("no/such/file.txt"));
    }
}
