//! A template read off a tokenizer's chat template by rendering a few probe conversations, as LLaMA-Factory's
//! `parse_template` does.

use super::tools::ToolFormat;
use super::{Slot, Template, jinja};
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};

const HOLE: &str = "{{content}}";

/// The slots that `source` writes around what is said.
///
/// # Errors
/// [`Error::Tokenizer`] if a probe cannot be rendered (a chat template may refuse a lone system prompt) or what is said
/// does not appear in a turn; both say to set `template`.
pub(super) fn from_chat_template(source: &str, tokenizer: &Tokenizer) -> Result<Template> {
    let prefix = tokenizer.decode(&tokenizer.encode_with_specials("")?, false)?;
    let skip = prefix.chars().count();
    let probe = |messages: &[(&str, &str)], generation: bool| -> Result<String> {
        let text = jinja::render(source, messages, generation, tokenizer)
            .map_err(|e| Error::Tokenizer(format!("{}; set `template`", strip_kind(&e))))?;
        Ok(text.chars().skip(skip).collect())
    };
    let system = probe(&[("system", HOLE)], false)?;
    let user_empty_system = probe(&[("system", ""), ("user", HOLE)], true)?;
    let mut user = probe(&[("user", HOLE)], true)?;
    let both = probe(&[("user", HOLE), ("assistant", HOLE)], false)?;

    let answer: String = both.chars().skip(user.chars().count()).collect();
    let reasoning = answer.contains("<think>");
    let assistant = answer.replace("<think>", "").replace("</think>", "").trim_start_matches('\n').to_string();

    let mut default_system = String::new();
    if user.chars().count() > user_empty_system.chars().count() {
        default_system = surplus(&user_empty_system, &user);
        let whole = system.replacen(HOLE, &default_system, 1);
        user = user.chars().skip(whole.chars().count()).collect();
    }
    for (what, slot) in [("system", &system), ("user", &user), ("assistant", &assistant)] {
        if !slot.contains(HOLE) {
            return Err(Error::Tokenizer(format!(
                "the chat template does not write what the {what} says where it could be read off; set `template`"
            )));
        }
    }
    let text = |s: &str| vec![Slot::Text(s.to_string())];
    Ok(Template {
        prefix: if prefix.is_empty() { vec![] } else { text(&prefix) },
        system: text(&system),
        observation: text(&user),
        user: text(&user),
        function: text(&assistant),
        assistant: text(&assistant),
        function_format: ToolFormat::Default,
        tool_format: ToolFormat::Default,
        default_system,
        reasoning,
        ..Template::plain("derived")
    })
}

/// An error's text without the word that [`Error::Tokenizer`] puts before it.
fn strip_kind(e: &Error) -> String {
    let text = e.to_string();
    text.strip_prefix("tokenizer: ").unwrap_or(&text).to_string()
}

/// The characters of `long` that are left over when `short` is matched along it.
fn surplus(short: &str, long: &str) -> String {
    let mut short = short.chars().peekable();
    let mut out = String::new();
    for c in long.chars() {
        match short.peek() {
            None => break,
            Some(s) if *s == c => drop(short.next()),
            Some(_) => out.push(c),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_default_system_is_what_the_empty_one_lacks() {
        assert_eq!(surplus("<s>\nuser: x", "<s>Be kind.\nuser: x"), "Be kind.");
        assert_eq!(surplus("ab", "abc"), "", "what comes after the shorter text does not count");
    }
}
