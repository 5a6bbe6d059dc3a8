//! Chat templates in Jinja: rendering a model's own, as transformers does, and writing one for a template of ours.

use std::collections::BTreeMap;

use minijinja::value::{Kwargs, Rest, Value, ValueKind};
use minijinja::{Environment, ErrorKind, context};

use super::pyjson::Json;
use super::{Slot, Template, strftime};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

/// Renders `source` over (role, content) pairs, with what transformers' `apply_chat_template` puts into scope.
///
/// # Errors
/// [`Error::Tokenizer`] with the line and the reason, if the template is malformed, raises, or uses what is missing here.
pub(super) fn render(
    source: &str,
    messages: &[(&str, &str)],
    add_generation_prompt: bool,
    tokenizer: &Tokenizer,
) -> Result<String> {
    let mut env = Environment::new();
    let syntax = env.syntax().to_builder().trim_blocks(true).lstrip_blocks(true).build();
    env.set_syntax(syntax.map_err(|e| Error::Tokenizer(one_line(&e)))?);
    env.set_unknown_method_callback(minijinja_contrib::pycompat::unknown_method_callback);
    // Python spells these three differently from minijinja.
    env.set_formatter(|out, state, value| {
        if value.is_none() {
            out.write_str("None").map_err(minijinja::Error::from)
        } else if let Ok(b) = bool::try_from(value.clone())
            && value.kind() == ValueKind::Bool
        {
            out.write_str(if b { "True" } else { "False" }).map_err(minijinja::Error::from)
        } else {
            minijinja::escape_formatter(out, state, value)
        }
    });
    env.add_filter("tojson", tojson);
    env.add_function("raise_exception", |message: String| -> std::result::Result<Value, minijinja::Error> {
        Err(minijinja::Error::new(ErrorKind::InvalidOperation, message))
    });
    env.add_function("strftime_now", |format: String| strftime::utc(&format));
    let messages: Vec<Value> =
        messages.iter().map(|(role, content)| context! { role => *role, content => *content }).collect();
    let mut scope = BTreeMap::from([
        ("messages".to_string(), Value::from(messages)),
        ("tools".to_string(), Value::from(())),
        ("documents".to_string(), Value::from(())),
        ("add_generation_prompt".to_string(), Value::from(add_generation_prompt)),
    ]);
    scope.extend(tokenizer.named_specials().into_iter().map(|(name, text)| (name.to_string(), Value::from(text))));
    let source = without_generation_tags(source);
    env.render_str(&source, Value::from(scope))
        .map_err(|e| Error::Tokenizer(format!("the chat template cannot be rendered: {}", one_line(&e))))
}

fn one_line(e: &minijinja::Error) -> String {
    e.to_string().replace('\n', " ")
}

/// `{% generation %}` marks an answer for transformers' masks and prints nothing: an `if true` does the same.
fn without_generation_tags(source: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(source.len()), source);
    while let Some(at) = rest.find("{%") {
        let (before, tag) = rest.split_at(at + 2);
        out.push_str(before);
        let trimmed = tag.trim_start_matches(['-', '+']).trim_start();
        let (word, instead) = if trimmed.starts_with("generation") {
            ("generation", "if true")
        } else if trimmed.starts_with("endgeneration") {
            ("endgeneration", "endif")
        } else {
            rest = tag;
            continue;
        };
        out.push_str(&tag[..tag.len() - trimmed.len()]);
        out.push_str(instead);
        rest = &trimmed[word.len()..];
    }
    out.push_str(rest);
    out
}

/// transformers' `tojson`: Python's `json.dumps` with `ensure_ascii=False` unless told otherwise, nothing escaped for HTML.
fn tojson(value: &Value, args: Rest<Value>, kwargs: Kwargs) -> std::result::Result<String, minijinja::Error> {
    let bad = |why: String| minijinja::Error::new(ErrorKind::InvalidOperation, why);
    let mut json = to_json(value).ok_or_else(|| bad("tojson: not a JSON value".to_string()))?;
    let ascii = match args.first() {
        Some(v) => v.is_true(),
        None => kwargs.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
    };
    let indent = kwargs.get::<Option<usize>>("indent")?;
    if kwargs.get::<Option<bool>>("sort_keys")?.unwrap_or(false) {
        sort_keys(&mut json);
    }
    kwargs.assert_all_used()?;
    Ok(if ascii { json.dumps_ascii(indent) } else { json.dumps(indent) })
}

/// None for what JSON has no word for, such as an undefined value.
fn to_json(value: &Value) -> Option<Json> {
    Some(match value.kind() {
        ValueKind::None => Json::Null,
        ValueKind::Bool => Json::Bool(value.is_true()),
        ValueKind::Number if value.is_integer() => Json::Int(value.to_string()),
        ValueKind::Number => Json::Float(f64::try_from(value.clone()).ok()?),
        ValueKind::String => Json::Str(value.as_str()?.to_string()),
        ValueKind::Seq | ValueKind::Iterable => {
            Json::List(value.try_iter().ok()?.map(|v| to_json(&v)).collect::<Option<_>>()?)
        }
        ValueKind::Map => {
            let pair = |k: Value| Some((k.to_string(), to_json(&value.get_item(&k).ok()?)?));
            Json::Dict(value.try_iter().ok()?.map(pair).collect::<Option<_>>()?)
        }
        _ => return None,
    })
}

fn sort_keys(json: &mut Json) {
    match json {
        Json::List(items) => items.iter_mut().for_each(sort_keys),
        Json::Dict(items) => {
            items.sort_by(|a, b| a.0.cmp(&b.0));
            items.iter_mut().for_each(|(_, v)| sort_keys(v));
        }
        _ => {}
    }
}

/// A chat template for `t`, the same text that LLaMA-Factory saves: system, user and assistant turns, no tools.
pub(super) fn source(t: &Template, tokenizer: &Tokenizer) -> String {
    let quoted = |s: &str| format!("'{}'", s.replace('\'', "\\'"));
    let expression = |slots: &[Slot], name: &str| -> String {
        let mut items = Vec::new();
        for slot in slots {
            match slot {
                Slot::Text(text) => {
                    let (before, after) =
                        text.split_once("{{content}}").map_or((text.as_str(), None), |(a, b)| (a, Some(b)));
                    if !before.is_empty() {
                        items.push(quoted(before));
                    }
                    if let Some(after) = after {
                        items.push(name.to_string());
                        if !after.is_empty() {
                            items.push(quoted(after));
                        }
                    }
                }
                // Literally, because eos may be replaced later. Not quoted: LLaMA-Factory does not escape it either.
                Slot::Bos => items.extend(tokenizer.bos().map(|s| format!("'{s}'"))),
                Slot::Eos => items.extend(tokenizer.eos().map(|s| format!("'{s}'"))),
            }
        }
        items.join(" + ")
    };
    let prefix = expression(&t.prefix, "content");
    let system = expression(&t.system, "system_message");
    let mut out = String::new();
    if !prefix.is_empty() {
        out += &format!("{{{{ {prefix} }}}}");
    }
    if !t.default_system.is_empty() {
        out += &format!("{{% set system_message = {} %}}", quoted(&t.default_system));
    }
    out += "{% if messages[0]['role'] == 'system' %}{% set loop_messages = messages[1:] %}\
            {% set system_message = messages[0]['content'] %}{% else %}{% set loop_messages = messages %}{% endif %}";
    if t.system_in_user {
        out += &format!(
            "{{% for message in loop_messages %}}{{% if loop.index0 == 0 and system_message is defined %}}\
             {{% set content = {system} + message['content'] %}}{{% else %}}{{% set content = message['content'] %}}{{% endif %}}"
        );
    } else {
        out += &format!(
            "{{% if system_message is defined %}}{{{{ {system} }}}}{{% endif %}}\
             {{% for message in loop_messages %}}{{% set content = message['content'] %}}"
        );
    }
    out += &format!(
        "{{% if message['role'] == 'user' %}}{{{{ {} }}}}{{% elif message['role'] == 'assistant' %}}{{{{ {} }}}}\
         {{% endif %}}{{% endfor %}}",
        expression(&t.user, "content"),
        expression(&t.assistant, "content")
    );
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn generation_tags_become_plain_blocks() {
        let s = without_generation_tags("{%- generation -%}x{%   endgeneration %}{% if a %}{% endif %} generation");
        assert_eq!(s, "{%- if true -%}x{%   endif %}{% if a %}{% endif %} generation");
    }
}
