//! Chat templates: how turns become token ids.
//!
//! A [`Template`] is data: for each kind of turn a list of slots (text around `{{content}}`, or the bos or eos token),
//! each tokenised on its own. The names and the rules are LLaMA-Factory's, token for token. Templates that open each
//! later turn with a trained eos in place of its first token (`efficient_eos` there) are not offered: their labels
//! differ from their ids, which [`Sample`](crate::data::Sample) does not represent.

mod builtin;
mod calls;
mod derive;
mod jinja;
mod ollama;
mod pyjson;
mod strftime;
mod tools;

pub use builtin::NAMES;
pub use calls::ToolCall;
pub use strftime::utc;
pub use tools::ToolFormat;

use crate::config::DataConfig;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Message, Role};
use crate::error::{Error, Result};

/// A piece of a turn.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slot {
    /// Text; the first `{{content}}` in it stands for what is said.
    Text(String),
    /// The tokenizer's bos token; nothing if it has none.
    Bos,
    /// The tokenizer's eos token.
    Eos,
}

/// How conversations are written. Made by [`Template::load`].
#[derive(Debug, Clone, PartialEq)]
pub struct Template {
    /// The name asked for; "derived" if it was read off the tokenizer's chat template.
    pub name: String,
    prefix: Vec<Slot>,
    system: Vec<Slot>,
    user: Vec<Slot>,
    observation: Vec<Slot>,
    assistant: Vec<Slot>,
    function: Vec<Slot>,
    function_format: ToolFormat,
    tool_format: ToolFormat,
    /// Used where a record has no system prompt of its own.
    pub default_system: String,
    /// Tokens that end an answer.
    pub stop_words: Vec<String>,
    /// Whether the first stop word becomes the tokenizer's eos token.
    replace_eos: bool,
    /// Whether the tokenizer's own chat template gives way to ours when the tokenizer is saved.
    replace_jinja_template: bool,
    /// The system prompt is written inside the first user turn.
    system_in_user: bool,
    /// Answers hold a thought, or an empty one is added.
    pub reasoning: bool,
    /// true: an empty thought is trained; false: it belongs to the prompt, and thoughts are removed; None: it belongs to
    /// the prompt, and thoughts are kept. Only with `reasoning`.
    pub enable_thinking: Option<bool>,
    /// Thoughts of earlier turns are kept. Only with `reasoning`.
    pub preserve_thinking: bool,
    /// Today as Llama 3's tool prompt writes it, "05 Mar 2026".
    today: String,
}

const THOUGHT: (&str, &str) = ("<think>\n", "\n</think>\n\n");
const TOOL_CALL: (&str, &str) = ("<tool_call>", "</tool_call>");

impl Template {
    /// Bare turns: what a built-in template leaves unsaid.
    fn plain(name: &str) -> Template {
        let content = || Slot::Text("{{content}}".into());
        Template {
            name: name.to_string(),
            prefix: vec![],
            system: vec![content()],
            user: vec![content()],
            observation: vec![content()],
            assistant: vec![content(), Slot::Eos],
            function: vec![content(), Slot::Eos],
            function_format: ToolFormat::Default,
            tool_format: ToolFormat::Default,
            default_system: String::new(),
            stop_words: vec![],
            replace_eos: false,
            replace_jinja_template: false,
            system_in_user: false,
            reasoning: false,
            enable_thinking: Some(true),
            preserve_thinking: false,
            today: strftime::utc("%d %b %Y"),
        }
    }

    /// The template that `data` asks for, with its overrides, and `tokenizer` fitted to it: its eos replaced where the
    /// template says so, its stop words made special, its chat template replaced where LLaMA-Factory replaces it.
    ///
    /// Without a name the slots are derived from the tokenizer's chat template; without that, `empty` is used.
    ///
    /// # Errors
    /// [`Error::Config`] for an unknown `template` or `tool_format`; [`Error::Tokenizer`] if the chat template cannot be
    /// rendered or has no place for what is said, or a stop word cannot be added.
    pub fn load(data: &DataConfig, tokenizer: &mut Tokenizer) -> Result<Template> {
        let mut t = match &data.template {
            Some(name) => builtin::by_name(name).ok_or_else(|| unknown("template", name, &NAMES))?,
            None => match tokenizer.chat_template() {
                Some(source) => {
                    log::warn!("`template` was not specified: it is derived from the tokenizer's chat template");
                    derive::from_chat_template(source, tokenizer)?
                }
                None => {
                    log::warn!("`template` was not specified and the tokenizer has no chat template: `empty` is used");
                    builtin::by_name("empty").unwrap_or_else(|| Template::plain("empty"))
                }
            },
        };
        if let Some(name) = &data.tool_format {
            let format = ToolFormat::by_name(name).ok_or_else(|| unknown("tool_format", name, &ToolFormat::NAMES))?;
            (t.tool_format, t.function_format) = (format, format);
            // LLaMA-Factory goes back to the plain slots here, whatever the template's own were.
            t.function = Template::plain("").function;
        }
        if let Some(system) = &data.default_system {
            t.default_system = system.clone();
        }
        if t.reasoning {
            t.enable_thinking = data.enable_thinking;
            t.preserve_thinking = data.preserve_thinking;
        }
        t.fit(tokenizer)?;
        if tokenizer.chat_template_missing() || t.replace_jinja_template {
            let source = jinja::source(&t, tokenizer);
            tokenizer.set_chat_template(source);
        }
        Ok(t)
    }

    /// Gives the tokenizer the special tokens this template needs.
    fn fit(&self, tokenizer: &mut Tokenizer) -> Result<()> {
        let mut stop_words = self.stop_words.as_slice();
        if self.replace_eos
            && let [first, rest @ ..] = stop_words
        {
            tokenizer.set_eos(first)?;
            stop_words = rest;
        }
        if tokenizer.eos().is_none() {
            tokenizer.set_eos("<|endoftext|>")?;
        }
        tokenizer.default_pad();
        for word in stop_words {
            let written = [&self.prefix, &self.system, &self.user, &self.observation, &self.assistant, &self.function]
                .into_iter()
                .flatten()
                .any(|s| matches!(s, Slot::Text(t) if t.contains(word.as_str())));
            tokenizer.add_special(word, written)?;
        }
        Ok(())
    }

    /// The chat template that goes with the tokenizer when it is saved: its own, or the one written for this template.
    pub fn jinja<'t>(&self, tokenizer: &'t Tokenizer) -> Option<&'t str> {
        tokenizer.saved_chat_template()
    }

    /// Ids at which generation stops: eos and the stop words that the tokenizer knows, ascending.
    pub fn stop_ids(&self, tokenizer: &Tokenizer) -> Vec<u32> {
        let mut ids: Vec<u32> = self.stop_words.iter().filter_map(|w| tokenizer.id(w)).collect();
        ids.extend(tokenizer.eos_id());
        ids.sort_unstable();
        ids.dedup();
        ids
    }

    /// Whether tokens depend on today's date: only Llama 3's tool prompt writes it.
    pub(super) fn depends_on_date(&self) -> bool {
        self.tool_format == ToolFormat::Llama3
    }

    /// This template as if today were `today` ("05 Mar 2026").
    pub fn with_date(mut self, today: &str) -> Template {
        self.today = today.to_string();
        self
    }

    /// (prompt, answer) for each pair of turns, as supervised training sees them. An odd last turn is left out.
    /// `discard_history_thoughts`: thoughts stay only in the last answer (`mask_history`).
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if tools or a function call are not the JSON they should be.
    pub fn encode_multiturn(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        system: &str,
        tools: &str,
        discard_history_thoughts: bool,
    ) -> Result<Vec<(Vec<u32>, Vec<u32>)>> {
        let mut messages = messages.to_vec();
        let n = messages.len();
        if self.reasoning {
            let last_kept = if self.enable_thinking == Some(false) { n } else { n.saturating_sub(2) };
            if self.enable_thinking == Some(false) || discard_history_thoughts {
                for m in messages.iter_mut().take(last_kept).skip(1).step_by(2) {
                    m.content = remove_thought(&m.content);
                }
            }
        }
        let mut turns = self.encode(tokenizer, &messages, system, tools)?.into_iter();
        let mut pairs = Vec::with_capacity(n / 2);
        while let (Some(prompt), Some(answer)) = (turns.next(), turns.next()) {
            pairs.push((prompt, answer));
        }
        if self.reasoning {
            let first = if discard_history_thoughts { pairs.len().saturating_sub(1) } else { 0 };
            for (i, pair) in pairs.iter_mut().enumerate().skip(first) {
                if messages.get(2 * i + 1).is_some_and(|m| has_no_thought(&m.content)) {
                    self.add_empty_thought(tokenizer, pair)?;
                }
            }
        }
        Ok(pairs)
    }

    /// (prompt, answer) of the last answer in `messages`, as LLaMA-Factory's prediction sees them: the prompt is all that
    /// comes before it. Both empty without a turn.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if tools or a function call are not the JSON they should be.
    pub fn encode_oneturn(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        system: &str,
        tools: &str,
    ) -> Result<(Vec<u32>, Vec<u32>)> {
        let mut messages = messages.to_vec();
        let n = messages.len();
        let keeps_last = !(self.reasoning && self.enable_thinking == Some(false));
        if self.reasoning && !self.preserve_thinking {
            for m in messages.iter_mut().take(n.saturating_sub(2)).skip(1).step_by(2) {
                m.content = remove_thought(&m.content);
            }
        }
        if let (false, Some(last)) = (keeps_last, messages.last_mut()) {
            last.content = remove_thought(&last.content);
        }
        let mut turns = self.encode(tokenizer, &messages, system, tools)?;
        let answer = turns.pop().unwrap_or_default();
        let mut pair = (turns.concat(), answer);
        if self.reasoning && messages.last().is_some_and(|m| has_no_thought(&m.content)) {
            self.add_empty_thought(tokenizer, &mut pair)?;
        }
        Ok(pair)
    }

    /// The prompt for the next answer to `messages`, which end with a user or observation turn.
    /// `enable_thinking: false` or None makes a reasoning template begin the answer with an empty thought.
    ///
    /// # Errors
    /// [`Error::Tokenizer`] if tools or a function call are not the JSON they should be.
    pub fn chat_prompt(
        &self,
        tokenizer: &Tokenizer,
        messages: &[Message],
        system: &str,
        tools: &str,
        enable_thinking: Option<bool>,
    ) -> Result<Vec<u32>> {
        let mut messages = messages.to_vec();
        if self.reasoning && !self.preserve_thinking {
            // The answer to come would be one more turn, so every answer here belongs to the past.
            let past = messages.len().saturating_sub(1);
            for m in messages.iter_mut().take(past).skip(1).step_by(2) {
                m.content = remove_thought(&m.content);
            }
        }
        let mut prompt = self.encode(tokenizer, &messages, system, tools)?.concat();
        if self.reasoning && enable_thinking != Some(true) {
            prompt.extend(empty_thought(tokenizer)?);
        }
        Ok(prompt)
    }

    fn add_empty_thought(&self, tokenizer: &Tokenizer, (prompt, answer): &mut (Vec<u32>, Vec<u32>)) -> Result<()> {
        let mut thought = empty_thought(tokenizer)?;
        if self.enable_thinking == Some(true) {
            thought.append(answer);
            *answer = thought;
        } else {
            prompt.append(&mut thought);
        }
        Ok(())
    }

    /// The ids of each turn; the prefix and the system prompt belong to the first.
    fn encode(&self, tokenizer: &Tokenizer, messages: &[Message], system: &str, tools: &str) -> Result<Vec<Vec<u32>>> {
        let refuse = Error::Tokenizer;
        let system = if system.is_empty() { &self.default_system } else { system };
        let mut turns = Vec::with_capacity(messages.len());
        for (i, message) in messages.iter().enumerate() {
            let mut ids = Vec::new();
            let mut fused_system = String::new();
            if i == 0 {
                push_slots(tokenizer, &self.prefix, "", None, &mut ids)?;
                if !(system.is_empty() && tools.is_empty()) {
                    let about_tools = match tools {
                        "" => String::new(),
                        tools => self.tool_format.describe(tools, &self.today).map_err(refuse)?,
                    };
                    let content = format!("{system}{about_tools}");
                    if self.system_in_user {
                        // Only the text of the first slot can be fused.
                        if let Some(Slot::Text(slot)) = self.system.first() {
                            fused_system = fill(slot, &content, None);
                        }
                    } else {
                        push_slots(tokenizer, &self.system, &content, None, &mut ids)?;
                    }
                }
            }
            match message.role {
                Role::User if self.system_in_user => {
                    push_slots(tokenizer, &self.user, &(fused_system + &message.content), None, &mut ids)?;
                }
                Role::User => {
                    let turn = (i / 2).to_string();
                    push_slots(tokenizer, &self.user, &message.content, Some(&turn), &mut ids)?;
                }
                Role::Assistant => push_slots(tokenizer, &self.assistant, &message.content, None, &mut ids)?,
                Role::Observation => push_slots(tokenizer, &self.observation, &message.content, None, &mut ids)?,
                Role::Function => {
                    let content = self.function_text(&message.content).map_err(refuse)?;
                    push_slots(tokenizer, &self.function, &content, None, &mut ids)?;
                }
            }
            turns.push(ids);
        }
        Ok(turns)
    }

    /// A `function` turn as text. What surrounds `<tool_call>..</tool_call>`, or else a thought, stands before the calls;
    /// templates with a fused system prompt take the whole content for JSON.
    fn function_text(&self, content: &str) -> std::result::Result<String, String> {
        if self.system_in_user {
            return self.function_format.write_calls(content);
        }
        if let Some((whole, inner)) = find_between(content, TOOL_CALL) {
            let before = content.replace(whole, "");
            return Ok(before + &self.function_format.write_calls(inner)?);
        }
        match find_between(content, THOUGHT) {
            Some((thought, _)) => {
                Ok(thought.to_string() + &self.function_format.write_calls(&content.replace(thought, ""))?)
            }
            None => self.function_format.write_calls(content),
        }
    }
}

/// Tokenises `slots` one by one around `content`.
fn push_slots(t: &Tokenizer, slots: &[Slot], content: &str, turn: Option<&str>, ids: &mut Vec<u32>) -> Result<()> {
    for slot in slots {
        match slot {
            Slot::Text(text) => {
                let text = fill(text, content, turn);
                if !text.is_empty() {
                    ids.extend(t.encode(&text)?);
                }
            }
            Slot::Bos => ids.extend(t.bos_id()),
            Slot::Eos => ids.extend(t.eos_id()),
        }
    }
    Ok(())
}

/// `{{content}}` and then, in user turns, `{{idx}}` are replaced once each, so that a literal `{{idx}}` in what the user
/// says is replaced too, as it is in LLaMA-Factory.
fn fill(slot: &str, content: &str, turn: Option<&str>) -> String {
    let text = slot.replacen("{{content}}", content, 1);
    match turn {
        Some(turn) => text.replacen("{{idx}}", turn, 1),
        None => text,
    }
}

fn empty_thought(tokenizer: &Tokenizer) -> Result<Vec<u32>> {
    tokenizer.encode(&format!("{}{}", THOUGHT.0, THOUGHT.1))
}

/// Whether neither of the thought's tags stands in `content`.
fn has_no_thought(content: &str) -> bool {
    !content.contains(THOUGHT.0.trim()) && !content.contains(THOUGHT.1.trim())
}

/// `content` without its thoughts and the line feeds that it then begins with.
fn remove_thought(content: &str) -> String {
    let (mut out, mut rest) = (String::with_capacity(content.len()), content);
    while let Some((whole, _)) = find_between(rest, THOUGHT) {
        let start = whole.as_ptr() as usize - rest.as_ptr() as usize;
        out.push_str(&rest[..start]);
        rest = &rest[start + whole.len()..];
    }
    out.push_str(rest);
    out.trim_start_matches('\n').to_string()
}

/// The first stretch from `open` to the nearest `close` after it: with both tags, and without.
fn find_between<'a>(text: &'a str, (open, close): (&str, &str)) -> Option<(&'a str, &'a str)> {
    let start = text.find(open)?;
    let inner = text.get(start + open.len()..)?;
    let len = inner.find(close)?;
    Some((text.get(start..start + open.len() + len + close.len())?, inner.get(..len)?))
}

/// The error for a name that is not in `names`.
fn unknown(key: &str, name: &str, names: &[&str]) -> Error {
    let nearest = names.iter().max_by(|a, b| strsim::jaro_winkler(a, name).total_cmp(&strsim::jaro_winkler(b, name)));
    let nearest = nearest.map(|n| format!("did you mean `{n}`? ")).unwrap_or_default();
    Error::config(key, format!("`{name}` is not known; {nearest}There are {}", names.join(", ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn thoughts_are_removed_one_by_one() {
        assert_eq!(remove_thought("<think>\na\n</think>\n\n\n\nhi"), "hi");
        assert_eq!(remove_thought("x<think>\na\n</think>\n\ny<think>\n\n</think>\n\nz"), "xyz");
        assert_eq!(remove_thought("<think>\nopen"), "<think>\nopen");
        assert_eq!(
            remove_thought("<think>a</think>\n\nhi"),
            "<think>a</think>\n\nhi",
            "the line feeds belong to the tags"
        );
        assert!(has_no_thought("hi") && !has_no_thought("</think>"));
    }

    #[test]
    fn a_literal_placeholder_of_the_user_is_kept() {
        assert_eq!(fill("<{{content}}>", "a {{content}} b", None), "<a {{content}} b>");
        assert_eq!(fill("<{{content}}>", "a {{idx}} b {{idx}}", Some("3")), "<a 3 b {{idx}}>");
    }

    #[test]
    fn an_unknown_name_gets_the_nearest_and_the_list() {
        let e = unknown("template", "qwen3_no_think", &NAMES).to_string();
        assert!(e.contains("did you mean `qwen3_nothink`") && e.contains("vicuna"), "{e}");
    }
}
