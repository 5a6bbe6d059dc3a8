//! `bench-serve`: puts a running server under load and tells how long it took. Any server that speaks OpenAI's API
//! will do, so that one program measures them all.

mod drive;
mod stats;
mod target;

use std::time::Duration;

use serde_json::{Map, Value, json};

use self::drive::WORDS;
use self::stats::Summary;
use self::target::Target;
use super::generate::prompts::{self, Prompt};
use super::say;
use crate::error::{Error, Result};
use crate::ops::philox::{Stream, uniform};

/// Clients at a given rate are as many as it takes, but no more than these.
const MOST_CLIENTS: usize = 1024;

/// What made-up prompts consist of: most tokenizers have a token for each.
const VOCABULARY: [&str; 32] = [
    "the", "time", "people", "water", "word", "place", "year", "day", "work", "world", "life", "hand", "part", "child",
    "eye", "week", "case", "point", "number", "group", "problem", "fact", "house", "night", "home", "room", "mother",
    "area", "money", "story", "month", "book",
];

/// What `bench-serve` is asked.
#[derive(Debug, clap::Args)]
pub(super) struct Options {
    /// Where the server listens, with or without /v1
    #[arg(value_name = "URL", default_value = "http://127.0.0.1:8000")]
    url: String,
    /// The model to ask, more than once to ask them in turn; without it the first that the server names
    #[arg(long = "model", value_name = "NAME")]
    models: Vec<String>,
    /// How many requests are sent
    #[arg(long, value_name = "N", default_value_t = 100, value_parser = clap::value_parser!(u32).range(1..))]
    requests: u32,
    /// Requests per second, at random times (a Poisson process); 0: as fast as --concurrency allows
    #[arg(long, value_name = "R", default_value_t = 0.0, value_parser = rate)]
    rate: f64,
    /// Requests under way at once, at most [default: 16, or with --rate as many as it takes]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..=MOST_CLIENTS as i64))]
    concurrency: Option<u32>,
    /// About how many tokens a prompt has: so many common words, drawn by the seed
    #[arg(long, value_name = "N", default_value_t = 64, value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    prompt_tokens: u32,
    /// Prompts in turn from a .txt (one a line) or a .jsonl ({"prompt": ..} or {"messages": [..]} a line)
    #[arg(long, value_name = "FILE", conflicts_with = "prompt_tokens")]
    prompt_file: Option<String>,
    /// Tokens of an answer at most
    #[arg(long, value_name = "N", default_value_t = 128, value_parser = clap::value_parser!(u32).range(1..))]
    max_tokens: u32,
    /// 0: always the most likely token
    #[arg(long, value_name = "T", default_value_t = 0.0, value_parser = rate)]
    temperature: f64,
    /// Ask /v1/completions, not /v1/chat/completions
    #[arg(long)]
    completions: bool,
    /// Ask for answers of exactly `--max-tokens` (`ignore_eos`, which vLLM knows too)
    #[arg(long)]
    ignore_eos: bool,
    /// Fields for every request beside, as a JSON object: what one server alone understands
    #[arg(long, value_name = "JSON", value_parser = fields)]
    extra: Option<Map<String, Value>>,
    /// Ask for whole answers: then there is no time to first token
    #[arg(long)]
    no_stream: bool,
    /// The key to show; otherwise that in the variable API_KEY, if there is one
    #[arg(long, value_name = "KEY")]
    api_key: Option<String>,
    /// Ask this path too, 20 times a second meanwhile, and tell how long it took: /health
    #[arg(long, value_name = "PATH")]
    probe: Option<String>,
    /// A request that takes longer has failed
    #[arg(long, value_name = "SECONDS", default_value_t = 600, value_parser = clap::value_parser!(u32).range(1..))]
    timeout: u32,
    /// Of the prompts, the arrivals and the draws
    #[arg(long, value_name = "N", default_value_t = 0)]
    seed: u64,
    /// Print one JSON object
    #[arg(long)]
    json: bool,
}

pub(super) const EXAMPLES: &str = "\
Examples:
  qlora-engine bench-serve --requests 200 --concurrency 16
  qlora-engine bench-serve http://10.0.0.5:8000 --model medical --model legal --rate 4 --prompt-file questions.txt
  qlora-engine bench-serve --concurrency 64 --requests 640 --probe /health --json > load.json";

/// A number from 0 up.
fn rate(text: &str) -> std::result::Result<f64, String> {
    match text.parse::<f64>() {
        Ok(r) if (0.0..=1e6).contains(&r) => Ok(r),
        _ => Err("it must be a number from 0 to 1e6".into()),
    }
}

fn fields(text: &str) -> std::result::Result<Map<String, Value>, String> {
    serde_json::from_str(text).map_err(|e| format!("it must be a JSON object: {e}"))
}

/// Loads the server and prints what it took.
///
/// # Errors
/// [`Error::Config`] if the server does not answer, or answers no request.
pub(super) fn run(options: &Options) -> Result<()> {
    let clients = match options.concurrency {
        Some(n) => n as usize,
        None if options.rate > 0.0 => (options.requests as usize).min(MOST_CLIENTS),
        None => 16,
    };
    let key = options.api_key.clone().or_else(|| std::env::var("API_KEY").ok());
    let target = Target::new(&options.url, key, clients, Duration::from_secs(options.timeout.into()));
    let models = match options.models.as_slice() {
        [] => target.models()?.into_iter().take(1).collect(),
        named => named.to_vec(),
    };
    let prompts = match &options.prompt_file {
        Some(file) => prompts::read(file)?,
        None => (0..options.requests.into()).map(|i| made_up(options, i)).collect(),
    };
    let bodies: Vec<Value> = (0..options.requests as usize)
        .map(|i| body(options, &models[i % models.len()], &prompts[i % prompts.len()], i))
        .collect::<Result<_>>()?;
    let path = if options.completions { "/v1/completions" } else { "/v1/chat/completions" };
    let due = drive::arrivals(bodies.len(), options.rate, options.seed);
    let (outcomes, probes) = drive::run(&target, path, &bodies, &due, clients, options.probe.as_deref());

    let summary = Summary::of(&outcomes, options.probe.as_deref().map(|path| (path, probes.as_slice())));
    summary.worked().map_err(|why| Error::config("URL", format!("{}: every request failed: {why}", options.url)))?;
    if options.json {
        let mut told = json!({"url": options.url, "models": models, "concurrency": clients, "rate": options.rate});
        if let (Some(told), Value::Object(sums)) = (told.as_object_mut(), summary.json()) {
            told.extend(sums);
        }
        say(&format!("{told}\n"));
    } else {
        let pace =
            if options.rate > 0.0 { format!("{} a second", options.rate) } else { format!("{clients} at a time") };
        say(&format!("{}: {} requests, {pace}, of {}\n", options.url, options.requests, models.join(", ")));
        say(&summary.text());
    }
    Ok(())
}

/// Request `i`.
fn body(options: &Options, model: &str, prompt: &Prompt, i: usize) -> Result<Value> {
    let mut body = json!({
        "model": model,
        "max_tokens": options.max_tokens,
        "temperature": options.temperature,
        "seed": options.seed.wrapping_add(i as u64) & i64::MAX as u64,
        "stream": !options.no_stream,
    });
    if options.ignore_eos {
        body["ignore_eos"] = true.into();
    }
    if !options.no_stream {
        body["stream_options"] = json!({"include_usage": true});
    }
    let (kind, shown) = &prompt.shown;
    match (options.completions, *kind) {
        (true, "prompt") => body["prompt"] = shown.clone(),
        (true, _) => return Err(Error::config("--completions", "takes prompts, but the file has `messages`")),
        (false, _) => {
            let turns = match shown {
                Value::Array(turns) => turns.clone(),
                text => vec![json!({"role": "user", "content": text})],
            };
            // A system prompt may stand beside the turns or be the first of them.
            let beside = !prompt.system.is_empty() && turns[0]["role"] != "system";
            let system = beside.then(|| json!({"role": "system", "content": prompt.system}));
            body["messages"] = system.into_iter().chain(turns).collect();
        }
    }
    if let (Some(body), Some(extra)) = (body.as_object_mut(), &options.extra) {
        body.extend(extra.clone());
    }
    Ok(body)
}

/// Common words in an order drawn by the seed: no two prompts begin alike, so that none is found in a cache.
fn made_up(options: &Options, i: u64) -> Prompt {
    let stream = Stream { seed: options.seed, step: i as u32, module: WORDS };
    let word = |n: u32| VOCABULARY[(uniform(stream, n.into()) * VOCABULARY.len() as f32) as usize];
    let words: Vec<&str> = (0..options.prompt_tokens).map(word).collect();
    Prompt::of_text(&words.join(" "))
}
