//! What a line at the prompt means.

/// A line, understood.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Entry {
    /// An empty line.
    Nothing,
    /// For the model.
    Say(String),
    Clear,
    Exit,
    Help,
    /// A new system prompt; None: the configured one again.
    System(Option<String>),
    /// The name of an adapter; None: which one answers.
    Adapter(Option<String>),
    Adapters,
    /// A slash and a word that is no command.
    Unknown(String),
}

pub(super) const HELP: &str = "\
clear            forget the conversation
exit             leave (also Ctrl-D, or Ctrl-C twice)
Ctrl-C           stop the answer
/adapters        the adapters that are loaded, the one that answers marked
/adapter NAME    let this one answer from now on; `base` for none
/system TEXT     another system prompt from now on; alone: the configured one
/help            this
Anything else is said to the model; a space before it lets it begin with a slash.";

impl Entry {
    /// Reads a line without its line break.
    pub fn of(line: &str) -> Entry {
        let text = line.trim();
        match text {
            "" => return Entry::Nothing,
            "clear" => return Entry::Clear,
            "exit" => return Entry::Exit,
            _ => {}
        }
        let (word, rest) = text.split_once(char::is_whitespace).unwrap_or((text, ""));
        let rest = Some(rest.trim()).filter(|r| !r.is_empty()).map(str::to_string);
        // A path or a date is no command.
        let named = word.strip_prefix('/').filter(|w| w.chars().all(|c| c.is_ascii_lowercase()));
        match named.filter(|_| line.starts_with('/')) {
            Some("clear") => Entry::Clear,
            Some("exit" | "quit" | "bye") => Entry::Exit,
            Some("help") => Entry::Help,
            Some("system") => Entry::System(rest),
            Some("adapter") => Entry::Adapter(rest),
            Some("adapters") => Entry::Adapters,
            Some(_) => Entry::Unknown(word.to_string()),
            None => Entry::Say(text.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_are_understood() {
        let some = |s: &str| Some(s.to_string());
        let say = |s: &str| Entry::Say(s.to_string());
        for (line, want) in [
            ("", Entry::Nothing),
            (" \t", Entry::Nothing),
            ("clear", Entry::Clear),
            (" exit ", Entry::Exit),
            ("/clear", Entry::Clear),
            ("/quit", Entry::Exit),
            ("/help", Entry::Help),
            ("/system You are  brief.", Entry::System(some("You are  brief."))),
            ("/system", Entry::System(None)),
            ("/adapter", Entry::Adapter(None)),
            ("/adapter  x/lora ", Entry::Adapter(some("x/lora"))),
            ("/adapters", Entry::Adapters),
            ("/adaptor x", Entry::Unknown("/adaptor".into())),
            ("/", Entry::Unknown("/".into())),
            ("/etc/hosts is what?", say("/etc/hosts is what?")),
            (" /help", say("/help")),
            ("clear the table", say("clear the table")),
            ("Exit", say("Exit")),
            ("多久洗一次牙？", say("多久洗一次牙？")),
        ] {
            assert_eq!(Entry::of(line), want, "{line:?}");
        }
        for word in ["clear", "exit", "/adapters", "/adapter ", "/system ", "/help"] {
            assert!(HELP.lines().any(|l| l.starts_with(word)), "{word}");
        }
    }
}
