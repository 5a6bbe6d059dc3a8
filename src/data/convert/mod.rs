//! Rows to [`Record`]s: LLaMA-Factory's alpaca, sharegpt and openai converters, and what its processors drop.

mod guess;
mod python_json;

use serde_json::{Map, Value};

use super::read::Row;
use super::registry::{Format, Formatting, Tags};
use super::{Message, Record, Role};
use crate::config::Stage;
use crate::error::Result;

pub use guess::guess;

/// Why a row is passed over: a reason to count by, and what this row looks like.
#[derive(Debug, Clone, PartialEq)]
pub struct Skip {
    pub reason: &'static str,
    pub detail: String,
}

/// Converts one row. `Ok(Err(skip))` is a row that LLaMA-Factory, too, passes over.
///
/// # Errors
/// [`crate::Error::Row`] for a row of the wrong shape, on which LLaMA-Factory would crash.
pub fn convert(row: &Row, format: &Format, stage: Stage) -> Result<std::result::Result<Record, Skip>> {
    let converted = match format.formatting {
        Formatting::Alpaca => alpaca(row, format, stage)?,
        Formatting::Sharegpt => sharegpt(row, format)?,
        Formatting::Openai { thinking_note } => openai(row, format, thinking_note)?,
    };
    Ok(converted.and_then(|mut record| match stage {
        // Pretraining reads the first turn alone.
        Stage::Pt if record.messages.is_empty() => Err(no_messages()),
        Stage::Pt => {
            record.messages.truncate(1);
            Ok(Record { messages: record.messages, system: String::new(), tools: String::new() })
        }
        Stage::Sft if record.messages.is_empty() => Err(no_messages()),
        Stage::Sft => Ok(record),
    }))
}

fn no_messages() -> Skip {
    Skip { reason: "no messages", detail: "the row holds no messages".into() }
}

/// What a JSON value is, in words.
fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "true or false",
        Value::Number(_) => "a number",
        Value::String(_) => "a text",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}

/// The text in a column; None where the column is not read, absent or null.
fn text<'a>(row: &'a Row, column: &Option<String>) -> Result<Option<&'a str>> {
    let Some(column) = column else { return Ok(None) };
    match row.columns.get(column) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(text)) => Ok(Some(text)),
        Some(other) => Err(row.error(format!("`{column}` must be a text, is {}", kind(other)))),
    }
}

/// The tools' JSON, as text or written out.
fn tools(row: &Row, column: &Option<String>) -> Result<String> {
    match column.as_ref().and_then(|column| row.columns.get(column)) {
        Some(value @ (Value::Array(_) | Value::Object(_))) => Ok(python_json::dumps(value)),
        _ => Ok(text(row, column)?.unwrap_or_default().into()),
    }
}

fn message(role: Role, content: impl Into<String>) -> Message {
    Message { role, content: content.into() }
}

/// Prompt and query are joined by a line break, empty ones left out; earlier turns come from `history`.
fn alpaca(row: &Row, format: &Format, stage: Stage) -> Result<std::result::Result<Record, Skip>> {
    let columns = &format.columns;
    let mut messages = Vec::new();
    if let Some(column) = &columns.history {
        let pairs = match row.columns.get(column) {
            None | Some(Value::Null) => &[][..],
            Some(Value::Array(pairs)) => pairs,
            Some(other) => return Err(row.error(format!("`{column}` must be a list of pairs, is {}", kind(other)))),
        };
        for pair in pairs {
            match pair.as_array().map(Vec::as_slice) {
                Some([Value::String(prompt), Value::String(response)]) => {
                    messages.push(message(Role::User, prompt));
                    messages.push(message(Role::Assistant, response));
                }
                _ => return Err(row.error(format!("`{column}` must hold pairs of texts [prompt, response]"))),
            }
        }
    }
    let parts = [text(row, &columns.prompt)?, text(row, &columns.query)?];
    let parts: Vec<&str> = parts.into_iter().flatten().filter(|part| !part.is_empty()).collect();
    messages.push(message(Role::User, parts.join("\n")));
    if stage == Stage::Sft {
        let column = columns.response.as_deref().unwrap_or("response");
        match row.columns.get(column) {
            Some(Value::String(response)) => messages.push(message(Role::Assistant, response)),
            None | Some(Value::Null) => {
                return Ok(Err(Skip { reason: "the answer is null", detail: format!("`{column}` is null") }));
            }
            Some(other) => {
                let detail = format!("`{column}` is {}, not a text", kind(other));
                return Ok(Err(Skip { reason: "the answer is not a text", detail }));
            }
        }
    }
    let system = text(row, &columns.system)?.unwrap_or_default().into();
    Ok(Ok(Record { messages, system, tools: tools(row, &columns.tools)? }))
}

/// One message as it stands in the row: its role's tag ("" for none), its content, and all of it.
struct Raw<'a> {
    tag: &'a str,
    content: Option<&'a str>,
    whole: &'a Map<String, Value>,
}

/// The messages of a row, and the name of their column.
fn messages<'a>(row: &'a Row, format: &'a Format) -> Result<(Vec<Raw<'a>>, &'a str)> {
    let column = format.columns.messages.as_deref().unwrap_or("messages");
    let list = match row.columns.get(column) {
        Some(Value::Array(list)) => list,
        None => return Err(row.error(format!("`{column}` is missing"))),
        Some(other) => return Err(row.error(format!("`{column}` must be a list of messages, is {}", kind(other)))),
    };
    let tags = &format.tags;
    let read = |item: &'a Value| {
        let Value::Object(whole) = item else {
            return Err(row.error(format!("`{column}` must hold messages, holds {}", kind(item))));
        };
        let get = |key: &str| match whole.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str())),
            Some(other) => Err(row.error(format!("`{column}`: a message's `{key}` must be a text, is {}", kind(other)))),
        };
        if !whole.contains_key(&tags.role) {
            let has = whole.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
            let why = format!("`{column}`: a message has no `{}`, only {has}; see `tags`", tags.role);
            return Err(row.error(why));
        }
        Ok(Raw { tag: get(&tags.role)?.unwrap_or_default(), content: get(&tags.content)?, whole })
    };
    Ok((list.iter().map(read).collect::<Result<_>>()?, column))
}

/// Splits a leading system message off; else the system prompt is the column's.
fn system<'a, 'b>(row: &'a Row, format: &Format, messages: &'b [Raw<'a>]) -> Result<(&'a str, &'b [Raw<'a>])> {
    match messages.split_first() {
        Some((first, rest)) if format.tags.system.as_deref() == Some(first.tag) => {
            Ok((first.content.unwrap_or_default(), rest))
        }
        _ => Ok((text(row, &format.columns.system)?.unwrap_or_default(), messages)),
    }
}

/// The role of a tag; None for a system message's and for an unknown one.
fn role(tags: &Tags, tag: &str) -> Option<Role> {
    let known = [
        (&tags.user, Role::User),
        (&tags.assistant, Role::Assistant),
        (&tags.observation, Role::Observation),
        (&tags.function, Role::Function),
    ];
    known.into_iter().find(|(known, _)| known.as_deref() == Some(tag)).map(|(_, role)| role)
}

/// Whether `role` may stand at `turn` (from 0): questions and observations first, answers and calls second.
fn in_turn(role: Role, turn: usize) -> bool {
    matches!(role, Role::User | Role::Observation) == turn.is_multiple_of(2)
}

fn out_of_turn(turn: usize, tag: &str) -> Skip {
    Skip {
        reason: "roles do not alternate",
        detail: format!("message {} has role `{tag}`, which cannot stand there", turn + 1),
    }
}

fn odd(count: usize) -> Skip {
    Skip { reason: "the last message is not an answer", detail: format!("{count} messages, the last without answer") }
}

fn sharegpt(row: &Row, format: &Format) -> Result<std::result::Result<Record, Skip>> {
    let (raw, column) = messages(row, format)?;
    let (system, raw) = system(row, format, &raw)?;
    let mut messages = Vec::new();
    for (turn, raw) in raw.iter().enumerate() {
        let Some(role) = role(&format.tags, raw.tag).filter(|role| in_turn(*role, turn)) else {
            return Ok(Err(out_of_turn(turn, raw.tag)));
        };
        messages.push(message(role, content(row, format, column, raw)?));
    }
    if !messages.len().is_multiple_of(2) {
        return Ok(Err(odd(messages.len())));
    }
    Ok(Ok(Record { messages, system: system.into(), tools: tools(row, &format.columns.tools)? }))
}

fn content<'a>(row: &Row, format: &Format, column: &str, raw: &Raw<'a>) -> Result<&'a str> {
    raw.content.ok_or_else(|| row.error(format!("`{column}`: a message's `{}` is null or missing", format.tags.content)))
}

/// As `sharegpt`, and: `tool_calls` become one function turn, results that follow one another one observation.
fn openai(row: &Row, format: &Format, thinking_note: bool) -> Result<std::result::Result<Record, Skip>> {
    let (raw, column) = messages(row, format)?;
    let (system, raw) = system(row, format, &raw)?;
    let tags = &format.tags;
    let mut messages: Vec<Message> = Vec::new();
    let mut results: Vec<&str> = Vec::new();
    let mut skip = None;
    for raw in raw {
        let Some(mut role) = role(tags, raw.tag) else {
            if tags.system.as_deref() == Some(raw.tag) {
                skip.get_or_insert_with(|| out_of_turn(messages.len(), raw.tag));
                continue;
            }
            return Err(row.error(format!("`{column}`: unknown role `{}`; see `tags`", raw.tag)));
        };
        if role == Role::Observation {
            results.push(content(row, format, column, raw)?);
            continue;
        }
        let calls = match raw.whole.get("tool_calls").and_then(Value::as_array) {
            Some(calls) if !calls.is_empty() && matches!(role, Role::Assistant | Role::Function) => calls,
            _ => &Vec::new(),
        };
        let text = if calls.is_empty() {
            content(row, format, column, raw)?.to_string()
        } else {
            role = Role::Function;
            let functions = calls.iter().map(|call| call.get("function").cloned()).collect::<Option<Vec<_>>>();
            let Some(functions) = functions else {
                return Err(row.error(format!("`{column}`: a tool call has no `function`")));
            };
            python_json::dumps(&Value::Array(functions))
        };
        if !results.is_empty() {
            messages.push(message(Role::Observation, results.join("\n</tool_response>\n<tool_response>\n")));
            results.clear();
        }
        messages.push(message(role, text));
    }
    if let Some(turn) = (0..messages.len()).find(|&turn| !messages.get(turn).is_some_and(|m| in_turn(m.role, turn))) {
        skip.get_or_insert_with(|| out_of_turn(turn, ""));
    }
    if !messages.len().is_multiple_of(2) {
        skip.get_or_insert_with(|| odd(messages.len()));
    }
    if let Some(skip) = skip {
        return Ok(Err(skip));
    }
    let tools = tools(row, &format.columns.tools)?;
    let mut system = system.to_string();
    if thinking_note {
        const OFF: &str = "detailed thinking off";
        let says = system.contains("detailed thinking on") || system.contains(OFF);
        match (system.is_empty(), tools.is_empty()) {
            (true, true) => system = OFF.into(),
            (true, false) => {}
            (false, true) if says => {}
            (false, true) => system = format!("{system}\n{OFF}"),
            (false, false) => system.push('\n'),
        }
    }
    Ok(Ok(Record { messages, system, tools }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::data::registry::{Columns, Tags};
    use serde_json::json;
    use std::path::Path;

    fn row(columns: Value) -> Row {
        let Value::Object(columns) = columns else { panic!("not an object") };
        Row { file: Path::new("f.json").into(), number: 3, columns }
    }

    fn format(formatting: Formatting) -> Format {
        let some = |s: &str| Some(s.to_string());
        let columns = Columns {
            prompt: some("instruction"),
            query: some("input"),
            response: some("output"),
            history: some("history"),
            messages: some("conversations"),
            system: some("system"),
            tools: some("tools"),
        };
        Format { formatting, columns, tags: Tags::default(), expected: vec![] }
    }

    /// "u:..|a:.." and the system prompt, or the reason of a skip.
    fn shown(row_columns: Value, format: &Format, stage: Stage) -> Result<String> {
        let show = |m: &Message| format!("{}:{}", ["u", "a", "o", "f"][m.role as usize], m.content);
        Ok(match convert(&row(row_columns), format, stage)? {
            Ok(r) => format!("{}#{}", r.messages.iter().map(show).collect::<Vec<_>>().join("|"), r.system),
            Err(skip) => skip.reason.to_string(),
        })
    }

    #[test]
    fn alpaca_rows() {
        let format = format(Formatting::Alpaca);
        for (row, want) in [
            (json!({"instruction": "q", "input": "i", "output": "a"}), "u:q\ni|a:a#"),
            (json!({"instruction": "q", "input": "", "output": ""}), "u:q|a:#"),
            (json!({"instruction": null, "input": "i", "output": "a", "system": "s"}), "u:i|a:a#s"),
            (json!({"instruction": "q", "output": "a", "history": [["x", "y"]]}), "u:x|a:y|u:q|a:a#"),
            (json!({"output": "a"}), "u:|a:a#"),
            (json!({"instruction": "q", "output": null}), "the answer is null"),
            (json!({"instruction": "q"}), "the answer is null"),
            (json!({"instruction": "q", "output": 3}), "the answer is not a text"),
        ] {
            assert_eq!(shown(row.clone(), &format, Stage::Sft).unwrap(), want, "{row}");
        }
        for row in [json!({"instruction": 3, "output": "a"}), json!({"history": [["x"]], "output": "a"}), json!({"history": "x"})]
        {
            assert!(shown(row, &format, Stage::Sft).unwrap_err().to_string().starts_with("f.json: row 3: `"));
        }
        assert_eq!(shown(json!({"instruction": "text"}), &format, Stage::Pt).unwrap(), "u:text#");
    }

    #[test]
    fn sharegpt_rows() {
        let format = format(Formatting::Sharegpt);
        let say = |turns: &[(&str, &str)]| {
            let turns: Vec<_> = turns.iter().map(|(from, value)| json!({"from": from, "value": value})).collect();
            json!({"conversations": turns, "system": "column"})
        };
        for (row, want) in [
            (say(&[("human", "q"), ("gpt", "a")]), "u:q|a:a#column"),
            (say(&[("system", "s"), ("human", "q"), ("function_call", "f"), ("observation", "o"), ("gpt", "")]), "u:q|f:f|o:o|a:#s"),
            (say(&[("human", "q"), ("human", "q")]), "roles do not alternate"),
            (say(&[("gpt", "q"), ("human", "q")]), "roles do not alternate"),
            (say(&[("human", "q"), ("bot", "q")]), "roles do not alternate"),
            (say(&[("human", "q"), ("gpt", "a"), ("human", "q")]), "the last message is not an answer"),
            (say(&[("system", "s")]), "no messages"),
            (say(&[]), "no messages"),
        ] {
            assert_eq!(shown(row.clone(), &format, Stage::Sft).unwrap(), want, "{row}");
        }
        for row in [
            json!({}),
            json!({"conversations": null}),
            json!({"conversations": ["x"]}),
            json!({"conversations": [{"role": "human", "content": "q"}]}),
            json!({"conversations": [{"from": "human", "value": null}]}),
            json!({"conversations": [{"from": 3, "value": "q"}]}),
        ] {
            assert!(shown(row, &format, Stage::Sft).unwrap_err().to_string().starts_with("f.json: row 3: `conversations`"));
        }
    }

    #[test]
    fn openai_rows() {
        let mut format = format(Formatting::Openai { thinking_note: true });
        let some = |s: &str| Some(s.to_string());
        format.tags = Tags {
            role: "role".into(),
            content: "content".into(),
            user: some("user"),
            assistant: some("assistant"),
            observation: some("tool"),
            function: some("function"),
            system: some("system"),
        };
        let call = json!([{"id": "1", "function": {"name": "f", "arguments": "{\"x\": 1}"}}]);
        let turns = json!([
            {"role": "user", "content": "q"}, {"role": "assistant", "content": null, "tool_calls": call},
            {"role": "tool", "content": "r1"}, {"role": "tool", "content": "r2"}, {"role": "assistant", "content": "a"},
        ]);
        let calls = r#"f:[{"name": "f", "arguments": "{\"x\": 1}"}]"#;
        let want = format!("u:q|{calls}|o:r1\n</tool_response>\n<tool_response>\nr2|a:a#detailed thinking off");
        assert_eq!(shown(json!({ "conversations": turns }), &format, Stage::Sft).unwrap(), want);
        let with = |first: Value| json!({"conversations": [first, {"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]});
        let system = |s: &str| shown(with(json!({"role": "system", "content": s})), &format, Stage::Sft).unwrap();
        assert_eq!(system("s"), "u:q|a:a#s\ndetailed thinking off");
        assert_eq!(system("detailed thinking on"), "u:q|a:a#detailed thinking on");
        let twice = shown(with(json!({"role": "user", "content": "q"})), &format, Stage::Sft);
        assert_eq!(twice.unwrap(), "roles do not alternate");
        assert!(shown(with(json!({"role": "developer", "content": "q"})), &format, Stage::Sft).is_err());
    }
}
