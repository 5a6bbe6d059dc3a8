//! A template as Ollama's model files write one.

use super::{Slot, THOUGHT, Template};
use crate::data::tokenizer::Tokenizer;

impl Template {
    /// This template as Ollama writes one: Go's, with `.System`, `.Prompt` and `.Response`, for one turn at a time. bos is left
    /// to the model file. None if a turn has no place for what is said, or holds what that language would read.
    pub fn ollama(&self, tokenizer: &Tokenizer, enable_thinking: Option<bool>) -> Option<String> {
        let eos = tokenizer.eos().unwrap_or("");
        let write = |slots: &[Slot]| -> Option<String> {
            let texts = slots.iter().map(|s| match s {
                Slot::Text(text) => text.as_str(),
                Slot::Bos => "",
                Slot::Eos => eos,
            });
            let whole: String = texts.collect();
            let (before, after) = whole.split_once("{{content}}")?;
            let plain = |s: &str| !s.contains("{{") && !s.contains("}}");
            let fine = plain(before) && plain(after);
            fine.then_some(whole)
        };
        let put = |slots: &[Slot], what: &str| write(slots).map(|t| t.replacen("{{content}}", what, 1));
        let prefix: String = self.prefix.iter().map(|s| if let Slot::Text(t) = s { t.as_str() } else { "" }).collect();
        let system = format!("{{{{ if .System }}}}{}{{{{ end }}}}", put(&self.system, "{{ .System }}")?);
        let question = match self.system_in_user {
            true => put(&self.user, &format!("{system}{{{{ .Prompt }}}}"))?,
            false => format!("{system}{{{{ if .Prompt }}}}{}{{{{ end }}}}", put(&self.user, "{{ .Prompt }}")?),
        };
        let thought = match self.reasoning && enable_thinking != Some(true) {
            true => format!("{}{}", THOUGHT.0, THOUGHT.1),
            false => String::new(),
        };
        let answer = put(&self.assistant, "{{ .Response }}")?;
        (!prefix.contains("{{")).then(|| format!("{prefix}{question}{thought}{answer}"))
    }
}
