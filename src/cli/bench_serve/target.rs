//! One server, and one request to it: what it answers, and when.

use std::io::{BufRead, BufReader, Read};
use std::time::{Duration, Instant};

use serde_json::Value;
use ureq::Agent;
use ureq::config::AutoHeaderValue;

use crate::error::{Error, Result};

/// A line of a stream, or an answer that is not streamed, is at most so long.
const LONGEST: u64 = 64 << 20;
/// Of what a refusal says, so many characters are kept.
const SAID: usize = 200;

/// A server that speaks OpenAI's API.
pub(super) struct Target {
    agent: Agent,
    /// Without `/v1`.
    root: String,
    key: Option<String>,
}

/// What became of a request. Times count from the start of the run.
#[derive(Debug, Default)]
pub(super) struct Outcome {
    pub fate: Fate,
    /// When it should have been sent: waiting for a free client is the server's fault too.
    pub due: Duration,
    /// The first and the last piece of text.
    pub first: Option<Duration>,
    pub last: Option<Duration>,
    pub end: Duration,
    /// The longest between two pieces.
    pub pause: Option<Duration>,
    pub prompt_tokens: u64,
    pub cached_tokens: u64,
    pub tokens: u64,
    /// `tokens` counts pieces: the server sent no `usage`.
    pub estimated: bool,
}

/// How a request ended.
#[derive(Debug, Default, PartialEq)]
pub(super) enum Fate {
    #[default]
    Done,
    /// Another status than 200, and what was said with it.
    Status(u16, String),
    Broken(String),
}

impl Target {
    /// `url` with or without `/v1`.
    pub fn new(url: &str, key: Option<String>, clients: usize, limit: Duration) -> Target {
        let root = url.trim_end_matches('/');
        let root = root.strip_suffix("/v1").unwrap_or(root).to_string();
        let config = Agent::config_builder()
            .http_status_as_error(false)
            .accept_encoding(AutoHeaderValue::None)
            // Connections are kept for the next request, as clients do.
            .max_idle_connections(clients)
            .max_idle_connections_per_host(clients)
            .timeout_global(Some(limit));
        Target { agent: Agent::new_with_config(config.build()), root, key }
    }

    /// The names of the models it serves.
    ///
    /// # Errors
    /// [`Error::Config`] if it does not answer, or without a model.
    pub fn models(&self) -> Result<Vec<String>> {
        let url = format!("{}/v1/models", self.root);
        let refused = |why: String| Error::config("URL", format!("{url}: {why}"));
        let mut request = self.agent.get(&url);
        if let Some(key) = &self.key {
            request = request.header("authorization", &format!("Bearer {key}"));
        }
        let mut response = request.call().map_err(|e| refused(format!("no answer: {e}")))?;
        let body = response.body_mut().read_to_string().map_err(|e| refused(format!("no answer: {e}")))?;
        if response.status() != 200 {
            return Err(refused(format!("status {}: {}", response.status().as_u16(), said(&body))));
        }
        let body: Value = serde_json::from_str(&body).map_err(|e| refused(format!("the answer is no JSON: {e}")))?;
        let names = body["data"].as_array().into_iter().flatten().filter_map(|m| m["id"].as_str());
        let names: Vec<String> = names.map(str::to_string).collect();
        if names.is_empty() { Err(refused("no model is served; name one with --model".into())) } else { Ok(names) }
    }

    /// How long a GET of `path` takes; None if it is not answered with 200.
    pub fn probe(&self, path: &str) -> Option<Duration> {
        let start = Instant::now();
        let mut response = self.agent.get(&format!("{}{path}", self.root)).call().ok()?;
        response.body_mut().read_to_vec().ok()?;
        (response.status() == 200).then(|| start.elapsed())
    }

    /// Sends a request and reads the answer to its end.
    pub fn ask(&self, path: &str, body: &Value, start: Instant, due: Duration) -> Outcome {
        let mut outcome = Outcome { due, ..Outcome::default() };
        if let Err(fate) = self.exchange(path, body, start, &mut outcome) {
            outcome.fate = fate;
        }
        outcome.end = start.elapsed();
        outcome
    }

    fn exchange(
        &self,
        path: &str,
        body: &Value,
        start: Instant,
        outcome: &mut Outcome,
    ) -> std::result::Result<(), Fate> {
        let mut request = self.agent.post(&format!("{}{path}", self.root)).content_type("application/json");
        if let Some(key) = &self.key {
            request = request.header("authorization", &format!("Bearer {key}"));
        }
        let mut response = request.send(body.to_string()).map_err(|e| Fate::Broken(e.to_string()))?;
        if response.status() != 200 {
            let status = response.status().as_u16();
            let text = response.body_mut().read_to_string().unwrap_or_default();
            return Err(Fate::Status(status, said(&text)));
        }
        let mut reader = BufReader::new(response.body_mut().with_config().limit(u64::MAX).reader());
        if body["stream"] == true {
            return read_stream(&mut reader, &mut || start.elapsed(), outcome).map_err(Fate::Broken);
        }
        let mut text = Vec::new();
        reader.take(LONGEST).read_to_end(&mut text).map_err(|e| Fate::Broken(e.to_string()))?;
        let answer: Value = serde_json::from_slice(&text).map_err(|e| Fate::Broken(e.to_string()))?;
        match answer["usage"].is_object() {
            true => outcome.count(&answer["usage"]),
            false => return Err(Fate::Broken("the answer has no usage".into())),
        }
        Ok(())
    }
}

impl Outcome {
    fn count(&mut self, usage: &Value) {
        let number = |value: &Value| value.as_u64().unwrap_or(0);
        self.prompt_tokens = number(&usage["prompt_tokens"]);
        self.cached_tokens = number(&usage["prompt_tokens_details"]["cached_tokens"]);
        self.tokens = number(&usage["completion_tokens"]);
    }
}

/// Reads server-sent events to their end; `now` tells the time.
fn read_stream(
    reader: &mut impl BufRead,
    now: &mut dyn FnMut() -> Duration,
    outcome: &mut Outcome,
) -> std::result::Result<(), String> {
    let (mut line, mut pieces, mut counted, mut ended) = (Vec::new(), 0u64, false, false);
    loop {
        line.clear();
        let n = reader.by_ref().take(LONGEST).read_until(b'\n', &mut line).map_err(|e| e.to_string())?;
        if n == 0 {
            break;
        }
        let Some(data) = line.strip_prefix(b"data:") else { continue };
        let data = data.trim_ascii();
        if data == b"[DONE]" {
            // What follows is read too, or the connection could not be used again.
            ended = true;
            continue;
        }
        let chunk: Value = serde_json::from_slice(data).map_err(|e| format!("an event is no JSON: {e}"))?;
        if !chunk["error"].is_null() {
            return Err(said(&chunk.to_string()));
        }
        if chunk["usage"].is_object() {
            outcome.count(&chunk["usage"]);
            counted = true;
        }
        if !chunk["choices"].as_array().is_some_and(|choices| choices.iter().any(says_something)) {
            continue;
        }
        let time = now();
        pieces += 1;
        outcome.first.get_or_insert(time);
        if let Some(last) = outcome.last.replace(time) {
            outcome.pause = Some(outcome.pause.unwrap_or_default().max(time.saturating_sub(last)));
        }
    }
    if !counted {
        (outcome.tokens, outcome.estimated) = (pieces, true);
    }
    if ended { Ok(()) } else { Err("the stream ended without [DONE]".into()) }
}

/// Whether a choice of a streamed answer brings text, a thought or a call.
fn says_something(choice: &Value) -> bool {
    let delta = &choice["delta"];
    let texts = [&choice["text"], &delta["content"], &delta["reasoning_content"]];
    texts.iter().any(|text| text.as_str().is_some_and(|t| !t.is_empty())) || delta["tool_calls"].is_array()
}

/// The message of an error in OpenAI's shape, or the beginning of whatever else was sent, on one line.
fn said(body: &str) -> String {
    let parsed: Option<Value> = serde_json::from_str(body).ok();
    let message = parsed.as_ref().and_then(|v| v["error"]["message"].as_str()).unwrap_or(body);
    message.split_whitespace().collect::<Vec<_>>().join(" ").chars().take(SAID).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> (Outcome, std::result::Result<(), String>) {
        let (mut outcome, mut time) = (Outcome::default(), 0);
        // Each look at the clock takes longer than the one before: 1, 3, 6, 10, ...
        let mut step = 0;
        let mut now = || {
            step += 1;
            time += step;
            Duration::from_millis(time)
        };
        let result = read_stream(&mut text.as_bytes(), &mut now, &mut outcome);
        (outcome, result)
    }

    #[test]
    fn a_stream_is_timed_and_counted() {
        let text = "data: {\"choices\":[{\"delta\":{\"role\":\"assistant\",\"content\":\"\"}}]}\n\n\
                    : a comment\n\ndata: {\"choices\":[{\"delta\":{\"content\":\"a\"}}]}\r\n\r\n\
                    data:{\"choices\":[{\"delta\":{\"content\":\"b\"}}]}\n\ndata: {\"choices\":[{\"text\":\"c\"}]}\n\n";
        let ms = |n| Some(Duration::from_millis(n));
        let (outcome, result) = read(&format!("{text}data: [DONE]\n\n"));
        assert_eq!(result, Ok(()));
        assert_eq!((outcome.first, outcome.last, outcome.pause), (ms(1), ms(6), ms(3)));
        assert_eq!((outcome.tokens, outcome.estimated), (3, true));

        let usage = "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":7,\"completion_tokens\":5,\
                     \"prompt_tokens_details\":{\"cached_tokens\":2}}}\n\n";
        let (outcome, result) = read(&format!("{text}{usage}data: [DONE]\n"));
        assert_eq!(result, Ok(()));
        assert_eq!((outcome.prompt_tokens, outcome.cached_tokens, outcome.tokens), (7, 2, 5));
        assert!(!outcome.estimated);

        assert_eq!(read(text).1, Err("the stream ended without [DONE]".into()));
        assert_eq!(read("data: {\"error\":{\"message\":\"out\\nof it\"}}\n").1, Err("out of it".into()));
        assert!(read("data: {\n").1.unwrap_err().contains("no JSON"));
    }

    #[test]
    fn addresses_with_and_without_the_version() {
        for url in ["http://a:1", "http://a:1/", "http://a:1/v1", "http://a:1/v1/"] {
            assert_eq!(Target::new(url, None, 1, Duration::from_secs(1)).root, "http://a:1", "{url}");
        }
    }
}
