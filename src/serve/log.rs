//! One line of log for each request, and its share of the metrics, when it is over: however it ends.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use serde_json::{Map, Value, json};
use tokio::sync::watch;

use super::metrics::{Metrics, Taken};

/// The `log` target of these lines, each a JSON object.
pub const TARGET: &str = "qlora_engine::serve::request";

/// nginx's status for a client that went away before it was answered.
const GONE: u16 = 499;

/// A request from its head to the last byte of its answer; dropped, it is written down.
pub(super) struct Record {
    pub id: String,
    endpoint: &'static str,
    began: Instant,
    metrics: Arc<Metrics>,
    log_prompts: bool,
    /// The model that answers; empty until one is found.
    model: OnceLock<String>,
    pub tokens_in: AtomicU64,
    pub tokens_out: AtomicU64,
    pub tokens_cached: AtomicU64,
    /// Whether it asks for answers, and whether all of them were given.
    asks: AtomicBool,
    complete: AtomicBool,
    rest: Mutex<Rest>,
    /// Held while the request is under way: a stop waits for it.
    pub live: Option<watch::Receiver<()>>,
}

#[derive(Default)]
struct Rest {
    status: Option<u16>,
    error: Option<&'static str>,
    first: Option<Instant>,
    last: Option<Instant>,
    /// The sequences that its tokens belong to.
    sequences: u64,
    prompt: Option<String>,
    answer: String,
}

impl Record {
    pub fn new(id: String, endpoint: &'static str, metrics: Arc<Metrics>, log_prompts: bool) -> Record {
        Record {
            id,
            endpoint,
            began: Instant::now(),
            metrics,
            log_prompts,
            model: OnceLock::new(),
            tokens_in: AtomicU64::new(0),
            tokens_out: AtomicU64::new(0),
            tokens_cached: AtomicU64::new(0),
            asks: AtomicBool::new(false),
            complete: AtomicBool::new(false),
            rest: Mutex::default(),
            live: None,
        }
    }

    fn rest(&self) -> MutexGuard<'_, Rest> {
        self.rest.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// When it was received.
    pub fn began(&self) -> Instant {
        self.began
    }

    pub fn model(&self, name: &str) {
        // The first counts.
        let _ = self.model.set(name.to_string());
    }

    /// It asks for `sequences` answers to prompts of so many tokens.
    pub fn asks(&self, tokens: usize, sequences: usize) {
        self.tokens_in.store(tokens as u64, Relaxed);
        self.rest().sequences = sequences as u64;
        if !self.asks.swap(true, Relaxed) {
            self.metrics.running.inc();
        }
    }

    /// A token came.
    pub fn token(&self) {
        self.tokens_out.fetch_add(1, Relaxed);
        let now = Instant::now();
        let mut rest = self.rest();
        rest.first.get_or_insert(now);
        rest.last = Some(now);
    }

    /// The answer is whole.
    pub fn complete(&self) {
        self.complete.store(true, Relaxed);
    }

    pub fn status(&self, status: u16, error: Option<&'static str>) {
        let mut rest = self.rest();
        rest.status = Some(status);
        rest.error = error.or(rest.error);
    }

    /// A failure after the status was sent.
    pub fn error(&self, error: &'static str) {
        self.rest().error = Some(error);
        self.complete();
    }

    /// What was asked, if that is wanted in the log.
    pub fn prompt(&self, body: &[u8]) {
        if self.log_prompts {
            self.rest().prompt = Some(String::from_utf8_lossy(body).into_owned());
        }
    }

    /// A piece of what is answered, likewise.
    pub fn answer(&self, text: &str) {
        if self.log_prompts {
            self.rest().answer.push_str(text);
        }
    }

    fn line(&self, rest: &Rest, taken: &Taken<'_>, status: u16) -> Value {
        let mut line = Map::new();
        let mut put = |key: &str, value: Value| drop(line.insert(key.into(), value));
        let seconds = |d: Duration| json!((d.as_secs_f64() * 1e4).round() / 1e4);
        put("id", json!(self.id));
        put("endpoint", json!(self.endpoint));
        if let Some(model) = self.model.get() {
            put("model", json!(model));
        }
        put("status", json!(status));
        if self.asks.load(Relaxed) {
            put("tokens_in", json!(taken.tokens_in));
            put("tokens_out", json!(taken.tokens_out));
            put("tokens_cached", json!(taken.tokens_cached));
        }
        if let Some(first) = taken.first_token {
            put("first_token_seconds", seconds(first));
        }
        put("seconds", seconds(taken.seconds));
        if taken.cancelled {
            put("cancelled", json!(true));
        }
        if let Some(error) = rest.error {
            put("error", json!(error));
        }
        if let Some(prompt) = &rest.prompt {
            put("prompt", json!(prompt));
            put("answer", json!(rest.answer));
        }
        Value::Object(line)
    }
}

impl Drop for Record {
    fn drop(&mut self) {
        let rest = std::mem::take(&mut *self.rest());
        let asks = self.asks.load(Relaxed);
        let out = self.tokens_out.load(Relaxed);
        let spread = rest.first.zip(rest.last).map(|(first, last)| last.duration_since(first));
        // Sequences of one request run side by side.
        let steps = out.checked_div(rest.sequences).unwrap_or(0).saturating_sub(1);
        let taken = Taken {
            model: self.model.get().map_or("", String::as_str),
            tokens_in: self.tokens_in.load(Relaxed),
            tokens_out: out,
            tokens_cached: self.tokens_cached.load(Relaxed),
            first_token: rest.first.map(|first| first.duration_since(self.began)),
            per_token: spread.filter(|_| steps > 0).map(|spread| spread.div_f64(steps as f64)),
            seconds: self.began.elapsed(),
            cancelled: rest.status.is_none() || asks && rest.status == Some(200) && !self.complete.load(Relaxed),
        };
        let status = rest.status.unwrap_or(GONE);
        self.metrics.request(taken.model, self.endpoint, &status.to_string());
        if asks {
            self.metrics.running.dec();
            self.metrics.answer(&taken);
        }
        let level = match self.endpoint {
            // They are asked for every few seconds.
            "/health" | "/ready" | "/metrics" => log::Level::Debug,
            _ => log::Level::Info,
        };
        if log::log_enabled!(target: TARGET, level) {
            log::log!(target: TARGET, level, "{}", self.line(&rest, &taken, status));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_is_counted_when_it_is_over() {
        let metrics = Arc::new(Metrics::new());
        let text = || metrics.text(&Default::default(), 0);
        let record = |id: &str| Record::new(id.into(), "/v1/completions", metrics.clone(), false);
        let one = record("1");
        one.model("m");
        one.asks(10, 1);
        assert!(text().contains("qlora_requests_running 1"));
        (0..3).for_each(|_| one.token());
        one.prompt(b"secret");
        one.answer("secret");
        one.status(200, None);
        one.complete();
        let line = one.line(&one.rest(), &taken(), 200).to_string();
        assert!(
            line.starts_with(r#"{"id":"1","endpoint":"/v1/completions","model":"m","status":200,"tokens_in":"#),
            "{line}"
        );
        assert!(!line.contains("secret"), "{line}");
        drop(one);
        let all = text();
        assert!(all.contains(r#"qlora_requests_total{model="m",endpoint="/v1/completions",status="200"} 1"#), "{all}");
        assert!(
            all.contains(r#"qlora_tokens_out_total{model="m"} 3"#) && all.contains("qlora_requests_running 0"),
            "{all}"
        );
        assert!(!all.contains("cancelled_total{"), "{all}");
        // A client that goes away: before the status, and after it.
        let two = record("2");
        two.model("m");
        two.asks(10, 1);
        drop(two);
        let three = record("3");
        three.model("m");
        three.asks(10, 1);
        three.status(200, None);
        drop(three);
        let all = text();
        assert!(
            all.contains(r#"status="499"} 1"#) && all.contains(r#"qlora_requests_cancelled_total{model="m"} 2"#),
            "{all}"
        );
    }

    fn taken() -> Taken<'static> {
        let seconds = Duration::from_millis(5);
        Taken {
            model: "m",
            tokens_in: 10,
            tokens_out: 3,
            tokens_cached: 0,
            first_token: None,
            per_token: None,
            seconds,
            cancelled: false,
        }
    }

    #[test]
    fn prompts_stand_in_the_log_only_if_asked() {
        let record = Record::new("1".into(), "/answer", Arc::new(Metrics::new()), true);
        record.prompt(b"what\xff");
        record.answer("that");
        let line = record.line(&record.rest(), &taken(), 200);
        assert_eq!((line["prompt"].as_str(), line["answer"].as_str()), (Some("what\u{FFFD}"), Some("that")));
    }
}
