//! `chat`: a conversation on the terminal, or with a script.

mod conversation;
mod entry;
mod input;

use std::io::Write;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Instant;

use self::conversation::Conversation;
use self::entry::{Entry, HELP};
use self::input::Input;
use super::loaded::{self, Adapters};
use crate::config::Config;
use crate::data::template::Template;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::infer::text::Streamer;
use crate::infer::{Control, Finish, Request, Sampling, Session};
use crate::train::{self, Event, Inputs, plan};

/// Talks with the base that `config` names, its adapter and `more` of them loaded beside it. Answers go to stdout, all else
/// to stderr.
///
/// # Errors
/// Whatever is wrong with model, adapters, tokenizer or template; in a script also what is wrong with one of its lines.
pub fn run(config: &Config, more: &[PathBuf]) -> Result<()> {
    let (folder, tokenizer, template) = Inputs::model(config, &mut |_: &Event<'_>| train::Control::Continue)?;
    let most = plan::context(config, &folder)?;
    let g = &config.generate;
    let answer = g.max_length.unwrap_or(g.max_new_tokens);
    let positions = config.data.cutoff_len.saturating_add(answer).min(most);
    let (model, adapters) = loaded::load(config, &folder, more, positions)?;
    let input = Input::open();
    let interrupt = input.is_terminal().then(Interrupt::new);
    if input.is_terminal() {
        eprintln!("{} answers, of at most {positions} tokens of context. /help lists the commands.", adapters.name());
    }
    let chat = Chat {
        config,
        tokenizer: &tokenizer,
        template: &template,
        adapters,
        session: Session::new(&model)?,
        positions,
        conversation: Conversation::default(),
        system: template.default_system.clone(),
        answers: 0,
        interrupt,
    };
    chat.run(input)
}

struct Chat<'a> {
    config: &'a Config,
    tokenizer: &'a Tokenizer,
    template: &'a Template,
    adapters: Adapters,
    session: Session<'a>,
    /// Tokens of a prompt and its answer at most.
    positions: usize,
    conversation: Conversation,
    system: String,
    /// Answers so far: each is drawn with a seed of its own.
    answers: u64,
    interrupt: Option<Interrupt>,
}

impl Chat<'_> {
    fn run(mut self, mut input: Input) -> Result<()> {
        while let Some(line) = input.next()? {
            match Entry::of(&line) {
                Entry::Nothing => {}
                Entry::Exit => break,
                Entry::Help => eprintln!("{HELP}"),
                Entry::Clear => {
                    self.conversation.clear();
                    eprintln!("note: the conversation is forgotten");
                }
                Entry::System(text) => {
                    self.system = text.unwrap_or_else(|| self.template.default_system.clone());
                    eprintln!("note: the system prompt is: {}", self.system);
                }
                Entry::Adapters => eprintln!("{}", self.adapters.list()),
                Entry::Adapter(name) => match name.map_or(Ok(()), |name| self.adapters.choose(&name)) {
                    Ok(()) => eprintln!("note: {} answers", self.adapters.name()),
                    Err(why) if input.is_terminal() => eprintln!("note: {why}"),
                    Err(why) => return Err(Error::config("/adapter", why)),
                },
                Entry::Unknown(word) => {
                    let why = "is no command: /help lists them; a space before it says it to the model";
                    match input.is_terminal() {
                        true => eprintln!("note: {word} {why}"),
                        false => return Err(Error::config(word, why)),
                    }
                }
                // A person tries again; a script must not go on with another question than it asked.
                Entry::Say(text) => match self.answer(text) {
                    Err(e) if input.is_terminal() => eprintln!("error: {e}"),
                    done => done?,
                },
            }
        }
        Ok(())
    }

    fn answer(&mut self, text: String) -> Result<()> {
        let (prompt, max_new_tokens) = self.prompt(text)?;
        let mut sampling = Sampling::of(&self.config.generate, self.config.train.seed);
        sampling.seed = sampling.seed.wrapping_add(self.answers);
        let stops = self.template.stop_ids(self.tokenizer);
        let request =
            Request { prompt, max_new_tokens, stops, sampling, adapter: self.adapters.chosen, logprobs: None };
        if self.interrupt.is_some() {
            show("Assistant: ");
        }
        let (mut streamer, mut said, mut failed) = (Streamer::new(self.tokenizer), String::new(), None);
        let mut speed = Speed::new();
        let interrupt = self.interrupt.as_ref();
        interrupt.inspect(|i| i.begin());
        let answer = self.session.answer(&request, &mut |token| {
            speed.count();
            match streamer.push(token) {
                Ok(piece) => {
                    let piece = piece.unwrap_or_default();
                    said.push_str(&piece);
                    let heard = show(&piece);
                    if heard && !interrupt.is_some_and(Interrupt::asked) { Control::Continue } else { Control::Stop }
                }
                Err(e) => {
                    failed = Some(e);
                    Control::Stop
                }
            }
        });
        interrupt.inspect(|i| i.end());
        let finish = match (answer, failed) {
            (Ok(answer), None) => answer.finish,
            (Err(e), _) | (_, Some(e)) => {
                show("\n");
                self.conversation.withdraw();
                return Err(e);
            }
        };
        let rest = streamer.finish()?;
        said.push_str(&rest);
        show(&format!("{rest}\n"));
        self.conversation.answered(said);
        self.answers += 1;
        let why = match finish {
            Finish::Stop => String::new(),
            Finish::Length => format!("; cut at {max_new_tokens} tokens"),
            Finish::Stopped => "; stopped".to_string(),
        };
        eprintln!("[{}{why}]", speed.report());
        Ok(())
    }

    /// The prompt for an answer to `text`, and the most tokens that the answer may have.
    fn prompt(&mut self, text: String) -> Result<(Vec<u32>, usize)> {
        let g = &self.config.generate;
        // Of a short context half is left to the answer.
        let reserved = g.room_after(0).min(self.positions / 2);
        let (template, tokenizer, system) = (self.template, self.tokenizer, &self.system);
        let thinking = self.config.data.enable_thinking;
        let encode = |messages: &[_]| template.chat_prompt(tokenizer, messages, system, "", thinking);
        let allowed = self.positions - reserved;
        let (prompt, dropped) = self.conversation.ask(text, allowed, encode).map_err(|e| match e {
            Error::Shape { what, why } => {
                let all = self.positions;
                let why = format!("{why}: of a context of {all}, {reserved} are kept for the answer (`cutoff_len` and `max_new_tokens` set both)");
                Error::shape(what, why)
            }
            e => e,
        })?;
        if dropped > 0 {
            let pairs = if dropped == 1 { "pair" } else { "pairs" };
            eprintln!("note: the context is full: the oldest {dropped} {pairs} of turns are forgotten");
        }
        let room = g.room_after(prompt.len()).min(self.positions - prompt.len());
        if room == 0 {
            self.conversation.withdraw();
            let why = format!("has {} tokens, which leaves none of `max_length` for an answer", prompt.len());
            return Err(Error::shape("conversation", why));
        }
        Ok((prompt, room))
    }
}

/// Writes to stdout at once; false if nobody reads it any more.
fn show(text: &str) -> bool {
    let mut out = std::io::stdout().lock();
    out.write_all(text.as_bytes()).and_then(|()| out.flush()).is_ok()
}

/// Ctrl-C: during an answer it stops it; a second one before it has, or one at another time, ends the program. At the
/// prompt the line editor gets it instead.
struct Interrupt {
    answering: Arc<AtomicBool>,
    asked: Arc<AtomicBool>,
}

impl Interrupt {
    fn new() -> Interrupt {
        let new = Interrupt { answering: Arc::default(), asked: Arc::default() };
        let (answering, asked) = (new.answering.clone(), new.asked.clone());
        let handler = move || {
            if !answering.load(Ordering::Relaxed) || asked.swap(true, Ordering::Relaxed) {
                std::process::exit(130);
            }
        };
        if let Err(e) = ctrlc::set_handler(handler) {
            log::warn!("Ctrl-C will end the program, not the answer: {e}");
        }
        new
    }

    fn begin(&self) {
        self.asked.store(false, Ordering::Relaxed);
        self.answering.store(true, Ordering::Relaxed);
    }

    fn end(&self) {
        self.answering.store(false, Ordering::Relaxed);
    }

    fn asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed)
    }
}

/// How fast an answer comes.
struct Speed {
    started: Instant,
    first: Option<Instant>,
    last: Instant,
    tokens: usize,
}

impl Speed {
    fn new() -> Speed {
        let now = Instant::now();
        Speed { started: now, first: None, last: now, tokens: 0 }
    }

    fn count(&mut self) {
        self.last = Instant::now();
        self.first.get_or_insert(self.last);
        self.tokens += 1;
    }

    /// Tokens per second are those after the first, for which the prompt had to be read.
    fn report(&self) -> String {
        let Some(first) = self.first else { return "0 tokens".to_string() };
        let wait = first.duration_since(self.started).as_secs_f64();
        let seconds = self.last.duration_since(first).as_secs_f64();
        let rate = match self.tokens {
            n if n > 1 && seconds > 0.0 => format!(", {:.1} tokens/s", (n - 1) as f64 / seconds),
            _ => String::new(),
        };
        let tokens = if self.tokens == 1 { "token" } else { "tokens" };
        format!("{} {tokens}{rate}, the first after {wait:.2} s", self.tokens)
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    #[test]
    fn speed_counts_what_came_after_the_first_token() {
        let started = Instant::now();
        let at = |ms| started + Duration::from_millis(ms);
        let speed = Speed { started, first: Some(at(500)), last: at(2500), tokens: 21 };
        assert_eq!(speed.report(), "21 tokens, 10.0 tokens/s, the first after 0.50 s");
        let speed = Speed { started, first: Some(at(500)), last: at(500), tokens: 1 };
        assert_eq!(speed.report(), "1 token, the first after 0.50 s");
        assert_eq!(Speed { started, first: None, last: started, tokens: 0 }.report(), "0 tokens");
    }
}
