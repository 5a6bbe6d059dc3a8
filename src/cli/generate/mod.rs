//! `generate`: answers to one prompt or to many, for people and for scripts.

pub(super) mod prompts;

use std::time::Instant;

use serde_json::{Value, json};

use self::prompts::Prompt;
use super::args::Raw;
use super::{loaded, say};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::infer::text::{StopStrings, Streamer};
use crate::infer::{self, Answer, Finish, Request, Sampling};
use crate::train::{Control, Event, Inputs, plan};

/// So many batches are answered before the first of their answers are printed.
const BATCHES: usize = 8;

/// What the command's own options say.
pub(super) struct Asked {
    prompts: Vec<Prompt>,
    /// Texts at which an answer ends.
    stops: Vec<String>,
    json: bool,
}

/// Takes the command's own options out of the arguments, which are otherwise settings, and reads the prompts.
///
/// # Errors
/// [`Error::Config`] for an option without its value, or if nothing is asked; those of reading a file.
pub(super) fn take_options(raw: &mut Raw) -> Result<Asked> {
    let texts = raw.take_values("--prompt")?;
    let files = raw.take_values("--prompt-file")?;
    let stops = raw.take_values("--stop")?;
    let json = raw.take_flag("--json");
    raw.take_adapter()?;
    if raw.take_flag("--greedy") {
        raw.args.push("do_sample=false".into());
    }
    // A text of one dash is standard input, as a file's name is.
    let mut asked = Vec::new();
    for text in texts {
        match text.as_str() {
            "-" => asked.extend(prompts::read("-")?),
            text => asked.push(Prompt::of_text(text)),
        }
    }
    for file in files {
        asked.extend(prompts::read(&file)?);
    }
    if asked.is_empty() {
        let why = "is missing: --prompt \"..\", or --prompt-file with a .txt (a prompt a line), a .jsonl or - (standard input)";
        return Err(Error::config("--prompt", why));
    }
    StopStrings::new(stops.clone())?;
    Ok(Asked { prompts: asked, stops, json })
}

/// Prints the answers of the model that `config` names to what is asked, in their order.
///
/// # Errors
/// Whatever is wrong with model, adapter, tokenizer or template; [`Error::Shape`] for a prompt that is too long.
pub(super) fn run(config: &Config, asked: &Asked) -> Result<()> {
    let (folder, tokenizer, template) = Inputs::model(config, &mut |_: &Event<'_>| Control::Continue)?;
    let most = plan::context(config, &folder)?;
    let encode = |p: &Prompt| {
        let system = if p.system.is_empty() { &template.default_system } else { &p.system };
        template.chat_prompt(&tokenizer, &p.messages, system, "", config.data.enable_thinking)
    };
    let stops = template.stop_ids(&tokenizer);
    let requests = asked.prompts.iter().enumerate().map(|(i, p)| {
        let prompt = encode(p)?;
        let max_new_tokens = config.generate.room_after(prompt.len()).min(most.saturating_sub(prompt.len()));
        if max_new_tokens == 0 {
            let limit = config.generate.max_length.map_or(most, |n| n.min(most));
            let why = format!("{} has {} tokens, which leaves no room for an answer in {limit}", i + 1, prompt.len());
            return Err(Error::shape("prompt", why));
        }
        let sampling = Sampling::of(&config.generate, config.train.seed);
        Ok(Request { prompt, max_new_tokens, stops: stops.clone(), sampling, adapter: None, logprobs: None })
    });
    let mut requests = requests.collect::<Result<Vec<Request>>>()?;
    let positions = requests.iter().map(|r| r.prompt.len() + r.max_new_tokens).max().unwrap_or(1);
    let (model, adapters) = loaded::load(config, &folder, &[], positions)?;
    requests.iter_mut().for_each(|r| r.adapter = adapters.chosen);

    let batch = config.train.per_device_eval_batch_size.max(1);
    let prompts = asked.prompts.chunks(batch * BATCHES);
    for (prompts, requests) in prompts.zip(requests.chunks(batch * BATCHES)) {
        let mut heard =
            requests.iter().map(|_| Heard::new(&tokenizer, &asked.stops)).collect::<Result<Vec<Heard>>>()?;
        let answers = infer::generate(&model, requests, batch, &mut |i, token| heard[i].hear(token))?;
        for ((prompt, answer), heard) in prompts.iter().zip(&answers).zip(heard) {
            say(&heard.finish(prompt, answer, asked.json)?);
        }
    }
    Ok(())
}

/// An answer as it comes.
struct Heard<'a> {
    started: Instant,
    ended: Instant,
    streamer: Streamer<&'a crate::data::tokenizer::Tokenizer>,
    stops: StopStrings,
    text: String,
    /// Whether one of the stop strings ended it.
    stopped: bool,
    failed: Option<Error>,
}

impl<'a> Heard<'a> {
    fn new(tokenizer: &'a crate::data::tokenizer::Tokenizer, stops: &[String]) -> Result<Heard<'a>> {
        let (now, stops) = (Instant::now(), StopStrings::new(stops.to_vec())?);
        let streamer = Streamer::new(tokenizer);
        Ok(Heard { started: now, ended: now, streamer, stops, text: String::new(), stopped: false, failed: None })
    }

    fn hear(&mut self, token: u32) -> infer::Control {
        self.ended = Instant::now();
        match self.streamer.push(token) {
            Ok(piece) => {
                let shown = self.stops.push(&piece.unwrap_or_default());
                self.text.push_str(&shown.text);
                self.stopped = shown.stopped;
            }
            Err(e) => self.failed = Some(e),
        }
        let go_on = !self.stopped && self.failed.is_none();
        if go_on { infer::Control::Continue } else { infer::Control::Stop }
    }

    /// The lines to print.
    fn finish(mut self, prompt: &Prompt, answer: &Answer, as_json: bool) -> Result<String> {
        if let Some(e) = self.failed {
            return Err(e);
        }
        if !self.stopped {
            // What was held back may hold a stop string still.
            let rest = self.streamer.finish()?;
            let shown = self.stops.push(&rest);
            self.text.push_str(&shown.text);
            self.stopped = shown.stopped;
            if !self.stopped {
                self.text.push_str(&self.stops.finish());
            }
        }
        if !as_json {
            return Ok(format!("{}\n", self.text.trim_end()));
        }
        let finish = match answer.finish {
            _ if self.stopped => "stop",
            Finish::Stop => "stop",
            Finish::Length => "length",
            Finish::Stopped => "stopped",
        };
        let (key, shown) = &prompt.shown;
        let seconds = self.ended.duration_since(self.started).as_secs_f64();
        let line: Value = json!({
            (*key): shown, "answer": self.text, "finish": finish, "tokens": answer.ids.len(),
            "seconds": (seconds * 1e3).round() / 1e3,
        });
        Ok(format!("{line}\n"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn take(args: &[&str]) -> Result<(Asked, Vec<String>)> {
        let mut raw = Raw { args: args.iter().map(|a| a.to_string()).collect() };
        Ok((take_options(&mut raw)?, raw.args))
    }

    #[test]
    fn options_stand_before_or_after_the_file() {
        for args in [
            &["--prompt", "What is it?", "a.yaml", "seed=1", "--greedy", "--json"][..],
            &["a.yaml", "--json", "seed=1", "--greedy", "--prompt=What is it?"],
        ] {
            let (asked, rest) = take(args).unwrap();
            assert_eq!(asked.prompts, [Prompt::of_text("What is it?")]);
            assert!(asked.json && asked.stops.is_empty());
            assert_eq!(rest, ["a.yaml", "seed=1", "do_sample=false"]);
        }
        let (_, rest) = take(&["--adapter", "saves/a, b", "a.yaml", "--prompt", "x"]).unwrap();
        assert_eq!(rest, ["a.yaml", "adapter_name_or_path=[\"saves/a, b\"]"]);
        let (asked, rest) =
            take(&["a.yaml", "--prompt", "--json", "--stop", "x", "--stop=y", "--prompt", "b"]).unwrap();
        assert_eq!(asked.prompts, [Prompt::of_text("--json"), Prompt::of_text("b")]);
        assert!(!asked.json && asked.stops == ["x", "y"] && rest == ["a.yaml"]);
    }

    #[test]
    fn what_is_missing_is_named() {
        for (args, word) in [
            (&["a.yaml"][..], "--prompt"),
            (&["a.yaml", "--prompt"], "--prompt"),
            (&["a.yaml", "--prompt-file", "no-such.txt"], "no-such.txt"),
            (&["a.yaml", "--prompt", "a", "--stop", ""], "stop"),
            (&["a.yaml", "--prompt", "a", "--adapter"], "--adapter"),
            (&["a.yaml", "--prompt", "a", "--adapter", "x", "--adapter=y"], "leave out y"),
        ] {
            let e = take(args).err().unwrap().to_string();
            assert!(e.contains(word) && !e.contains('\n'), "{args:?}: {e}");
        }
    }
}
