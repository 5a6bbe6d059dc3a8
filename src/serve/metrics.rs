//! What Prometheus is told: https://prometheus.io/docs/instrumenting/exposition_formats, in OpenMetrics' text form.

use std::sync::atomic::AtomicU64;
use std::time::Duration;

use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::Registry;

use super::worker::Load;

/// The type of [`Metrics::text`].
pub(super) const CONTENT_TYPE: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Whose: (("model", name)).
type ByModel = [(&'static str, String); 1];
type Labels = Vec<(&'static str, String)>;
type Count = Counter<u64, AtomicU64>;
/// A figure of how much is going on.
type OfLoad = fn(&Load) -> usize;

/// Everything that is counted.
pub(super) struct Metrics {
    registry: Registry,
    requests: Family<Labels, Count>,
    cancelled: Family<ByModel, Count>,
    tokens_in: Family<ByModel, Count>,
    tokens_out: Family<ByModel, Count>,
    tokens_cached: Family<ByModel, Count>,
    first_token: Family<ByModel, Histogram>,
    per_token: Family<ByModel, Histogram>,
    seconds: Family<ByModel, Histogram>,
    /// Requests for answers that are under way here, whether they wait or run.
    pub running: Gauge,
    load: [(Gauge, OfLoad); 6],
    adapters: Gauge,
}

/// What one request for an answer took.
pub(super) struct Taken<'a> {
    pub model: &'a str,
    pub tokens_in: u64,
    pub tokens_out: u64,
    pub tokens_cached: u64,
    pub first_token: Option<Duration>,
    /// Of each token after the first, on average.
    pub per_token: Option<Duration>,
    pub seconds: Duration,
    pub cancelled: bool,
}

fn by(model: &str) -> ByModel {
    [("model", model.to_string())]
}

impl Metrics {
    pub fn new() -> Metrics {
        let mut registry = Registry::with_prefix("qlora");
        let r = &mut registry;
        let count = |r: &mut Registry, name: &str, help: &str| {
            let family = Family::<ByModel, Count>::default();
            r.register(name, help, family.clone());
            family
        };
        // From half a millisecond on, doubling: to 16 s, and to 17 minutes.
        let short: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 16));
        let long: fn() -> Histogram = || Histogram::new(exponential_buckets(0.0005, 2.0, 22));
        let timing = |r: &mut Registry, name: &str, help: &str, make: fn() -> Histogram| {
            let family = Family::<ByModel, Histogram>::new_with_constructor(make);
            r.register(name, help, family.clone());
            family
        };
        let gauge = |r: &mut Registry, name: &str, help: &str| {
            let gauge = Gauge::default();
            r.register(name, help, gauge.clone());
            gauge
        };
        let requests = Family::<Labels, Count>::default();
        r.register("requests", "Requests, by model, endpoint and HTTP status", requests.clone());
        let load: [(&str, &str, OfLoad); 6] = [
            ("queue_depth", "Sequences that wait", |l| l.waiting),
            ("batch_size", "Sequences that the last step read", |l| l.batch),
            ("sequences_running", "Sequences that hold a place in the batch", |l| l.running),
            ("cache_pages", "Pages of keys and values", |l| l.pages),
            ("cache_pages_used", "Pages that running sequences hold", |l| l.pages_used),
            ("cache_pages_kept", "Pages kept for prefixes to come", |l| l.pages_kept),
        ];
        Metrics {
            cancelled: count(r, "requests_cancelled", "Requests whose client went away"),
            tokens_in: count(r, "tokens_in", "Tokens of prompts"),
            tokens_out: count(r, "tokens_out", "Tokens of answers"),
            tokens_cached: count(r, "tokens_cached", "Tokens of prompts that were in the cache already"),
            first_token: timing(r, "time_to_first_token_seconds", "From a request to its first token", long),
            per_token: timing(r, "time_per_output_token_seconds", "Each token after the first", short),
            seconds: timing(r, "request_seconds", "From a request to the end of its answer", long),
            running: gauge(r, "requests_running", "Requests for answers under way"),
            load: load.map(|(name, help, of)| (gauge(r, name, help), of)),
            adapters: gauge(r, "adapters_loaded", "Adapters that are served"),
            requests,
            registry,
        }
    }

    /// Counts a request of any kind.
    pub fn request(&self, model: &str, endpoint: &str, status: &str) {
        let labels = [("model", model), ("endpoint", endpoint), ("status", status)];
        self.requests.get_or_create(&labels.map(|(k, v)| (k, v.to_string())).to_vec()).inc();
    }

    /// Counts what an answer took.
    pub fn answer(&self, taken: &Taken<'_>) {
        let model = by(taken.model);
        self.tokens_in.get_or_create(&model).inc_by(taken.tokens_in);
        self.tokens_out.get_or_create(&model).inc_by(taken.tokens_out);
        self.tokens_cached.get_or_create(&model).inc_by(taken.tokens_cached);
        self.seconds.get_or_create(&model).observe(taken.seconds.as_secs_f64());
        if let Some(time) = taken.first_token {
            self.first_token.get_or_create(&model).observe(time.as_secs_f64());
        }
        if let Some(time) = taken.per_token {
            self.per_token.get_or_create(&model).observe(time.as_secs_f64());
        }
        if taken.cancelled {
            self.cancelled.get_or_create(&model).inc();
        }
    }

    /// Every figure, with how much is going on now.
    pub fn text(&self, load: &Load, adapters: usize) -> String {
        let number = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        for (gauge, of) in &self.load {
            gauge.set(number(of(load)));
        }
        self.adapters.set(number(adapters));
        let mut text = String::new();
        match encode(&mut text, &self.registry) {
            Ok(()) => text,
            // Writing into a string does not fail.
            Err(std::fmt::Error) => String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_figures() {
        let metrics = Metrics::new();
        metrics.request("medical", "/v1/chat/completions", "200");
        metrics.request("medical", "/v1/chat/completions", "200");
        let ms = Duration::from_millis;
        metrics.answer(&Taken {
            model: "medical",
            tokens_in: 10,
            tokens_out: 5,
            tokens_cached: 4,
            first_token: Some(ms(30)),
            per_token: Some(ms(2)),
            seconds: ms(40),
            cancelled: true,
        });
        let text = metrics.text(&Load { running: 3, waiting: 2, pages: 100, ..Load::default() }, 7);
        for line in [
            r#"qlora_requests_total{model="medical",endpoint="/v1/chat/completions",status="200"} 2"#,
            r#"qlora_tokens_in_total{model="medical"} 10"#,
            r#"qlora_tokens_out_total{model="medical"} 5"#,
            r#"qlora_tokens_cached_total{model="medical"} 4"#,
            r#"qlora_requests_cancelled_total{model="medical"} 1"#,
            r#"qlora_time_to_first_token_seconds_count{model="medical"} 1"#,
            r#"qlora_time_per_output_token_seconds_count{model="medical"} 1"#,
            r#"qlora_request_seconds_count{model="medical"} 1"#,
            "qlora_queue_depth 2",
            "qlora_batch_size 3",
            "qlora_sequences_running 3",
            "qlora_cache_pages 100",
            "qlora_cache_pages_used 0",
            "qlora_cache_pages_kept 0",
            "qlora_requests_running 0",
            "qlora_adapters_loaded 7",
            "# EOF",
        ] {
            assert!(text.lines().any(|l| l == line), "{line} is missing:\n{text}");
        }
    }
}
