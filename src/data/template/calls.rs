//! Function calls read out of what a model has written: the way back from [`ToolFormat`]'s way of writing them.
//!
//! What is a call and what is not follows LLaMA-Factory's extractors, with these exceptions. Where LLaMA-Factory fails
//! (JSON that is not an object where a call should stand) or makes a call that cannot be answered (a name that is not a
//! string, an empty list of calls), the text is plain text here. JSON with lone surrogates or nested deeper than
//! [`Json`] reads is plain text too. And Mistral's calls may be preceded by the `[TOOL_CALLS]` that they are trained
//! with: LLaMA-Factory relies on the tokenizer to hide it, which holds only where it is one special token.

use super::pyjson::Json;
use super::{TOOL_CALL, Template, ToolFormat};

/// A call that an answer asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ToolCall {
    pub name: String,
    /// JSON, mostly an object. It is what the model wrote: nothing says that the function takes it.
    pub arguments: String,
}

const ACTION: &str = "Action:";
const MISTRAL_CALLS: &str = "[TOOL_CALLS]";

impl Template {
    /// The calls in `text`, a whole answer; None if it is to be shown as it is. Takes time linear in the text's length.
    pub fn tool_calls(&self, text: &str) -> Option<Vec<ToolCall>> {
        let calls = match self.tool_format {
            ToolFormat::Default => after_action(text),
            ToolFormat::Llama3 => bare(text, "parameters"),
            ToolFormat::Mistral => {
                let text = strip(text);
                bare(text.strip_prefix(MISTRAL_CALLS).unwrap_or(text), "arguments")
            }
            ToolFormat::Qwen => tagged(text),
        };
        calls.filter(|c| !c.is_empty())
    }

    /// How an answer begins that may be shown although more is to come: no call can have part in it, whatever follows.
    /// It never gets shorter as `text` grows.
    pub fn before_tool_calls<'a>(&self, text: &'a str) -> &'a str {
        let shown = match self.tool_format {
            ToolFormat::Default => before(text, ACTION),
            ToolFormat::Qwen => before(text, TOOL_CALL.0),
            ToolFormat::Llama3 => {
                if may_be_bare(text) {
                    0
                } else {
                    text.len()
                }
            }
            ToolFormat::Mistral => {
                let said = text.trim_start_matches(is_space);
                let marked = said.starts_with(MISTRAL_CALLS) || MISTRAL_CALLS.starts_with(said);
                if marked || may_be_bare(said) { 0 } else { text.len() }
            }
        };
        text.get(..shown).unwrap_or_default()
    }

    /// Whether some of `text`, which may go on, is a call or could become one. If not, all of it may be shown.
    pub fn may_be_tool_call(&self, text: &str) -> bool {
        self.before_tool_calls(text).len() < text.len()
    }
}

/// `Action: name`, `Action Input: JSON`, any number of times.
fn after_action(text: &str) -> Option<Vec<ToolCall>> {
    let (mut calls, mut rest) = (Vec::new(), text);
    while let Some((_, after)) = rest.split_once(ACTION) {
        rest = after;
        let Some((name, input)) = action(after).filter(|(_, input)| !input.is_empty()) else { continue };
        let input = input.trim_start_matches(is_space);
        // The input has at least one character, be it the first of another `Action:`.
        let first = input.chars().next().map_or(0, char::len_utf8);
        let end = input[first..].find(ACTION).map_or(input.len(), |at| first + at);
        let json = input[..end].trim_end_matches(is_space);
        rest = &input[json.len()..];
        let arguments = Json::parse(json.trim_matches('"').trim_matches('`')).ok()?.dumps(None);
        calls.push(ToolCall { name: name.to_string(), arguments });
    }
    Some(calls)
}

/// The name and what follows `Action Input:`, in the text after `Action:`.
fn action(text: &str) -> Option<(&str, &str)> {
    const INPUT: &str = "Action Input:";
    let text = text.trim_start_matches(is_space);
    let len = text.find(|c: char| !c.is_ascii_alphanumeric() && c != '_').unwrap_or(text.len());
    let (name, after) = text.split_at(len);
    let found = match after.trim_start_matches(is_space).strip_prefix(INPUT) {
        Some(input) => (name, input),
        // Nothing has to stand between the name and `Action Input:`.
        None => (name.strip_suffix("Action")?, after.strip_prefix(" Input:")?),
    };
    (!found.0.is_empty()).then_some(found)
}

/// `<tool_call>JSON</tool_call>`, any number of times. A closing tag counts only before the next call or at the end, so
/// that a call's strings may hold one.
fn tagged(text: &str) -> Option<Vec<ToolCall>> {
    let (open, close) = TOOL_CALL;
    let (mut calls, mut rest) = (Vec::new(), text);
    while let Some((_, inner)) = rest.split_once(open) {
        let ends = |at: usize| {
            let after = inner[at + close.len()..].trim_start_matches(is_space);
            at > 0 && (after.is_empty() || after.starts_with(open))
        };
        // Without an end to this call there is none to a later one either.
        let Some((at, _)) = inner.match_indices(close).find(|&(at, _)| ends(at)) else { break };
        calls.push(call(&Json::parse(strip(&inner[..at])).ok()?, "arguments")?);
        rest = &inner[at + close.len()..];
    }
    Some(calls)
}

/// The whole text is JSON: one call, or a list of them.
fn bare(text: &str, arguments: &str) -> Option<Vec<ToolCall>> {
    match Json::parse(strip(text)).ok()? {
        Json::List(items) => items.iter().map(|c| call(c, arguments)).collect(),
        one => call(&one, arguments).map(|c| vec![c]),
    }
}

fn call(json: &Json, arguments: &str) -> Option<ToolCall> {
    match (json.get("name")?, json.get(arguments)?) {
        (Json::Str(name), arguments) => Some(ToolCall { name: name.clone(), arguments: arguments.dumps(None) }),
        _ => None,
    }
}

/// Where `marker` begins in `text`, or what may become one at its end; else the text's length.
fn before(text: &str, marker: &str) -> usize {
    let begun = || (1..marker.len()).rev().find(|&n| text.ends_with(&marker[..n])).unwrap_or(0);
    text.find(marker).unwrap_or_else(|| text.len() - begun())
}

/// Whether `text` begins as an object with a key does, or a list of such.
fn may_be_bare(text: &str) -> bool {
    let text = text.trim_start_matches(is_space);
    let object = text.strip_prefix('[').unwrap_or(text).trim_start_matches(is_space);
    match object.strip_prefix('{') {
        Some(inner) => matches!(inner.trim_start_matches(is_space).chars().next(), None | Some('"')),
        None => object.is_empty(),
    }
}

/// Python's `str.strip()`.
fn strip(text: &str) -> &str {
    text.trim_matches(is_space)
}

/// Python's `str.isspace()`, of one character: some separators of ASCII are white space there.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}
