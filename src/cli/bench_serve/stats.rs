//! Many requests summed up: percentiles, rates, what failed and why.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Map, Value, json};

use super::target::{Fate, Outcome};

/// What stands between mean and maximum.
const PERCENTILES: [f64; 4] = [50.0, 90.0, 95.0, 99.0];

/// Some durations, sorted.
#[derive(Debug, Default, PartialEq)]
pub(super) struct Times(Vec<Duration>);

impl Times {
    pub fn of(times: impl IntoIterator<Item = Duration>) -> Times {
        let mut times: Vec<Duration> = times.into_iter().collect();
        times.sort_unstable();
        Times(times)
    }

    /// The least of the times that at least `percent` of them do not exceed (nearest rank); 0 if there are none.
    pub fn percentile(&self, percent: f64) -> Duration {
        let rank = (percent / 100.0 * self.0.len() as f64).ceil() as usize;
        self.0.get(rank.clamp(1, self.0.len().max(1)) - 1).copied().unwrap_or_default()
    }

    fn mean(&self) -> Duration {
        self.0.iter().sum::<Duration>() / u32::try_from(self.0.len().max(1)).unwrap_or(u32::MAX)
    }

    /// Mean, percentiles and maximum by name, in milliseconds.
    fn columns(&self) -> [(String, f64); 6] {
        let [p50, p90, p95, p99] = PERCENTILES.map(|p| (format!("p{p}"), self.percentile(p)));
        let all = [("mean".into(), self.mean()), p50, p90, p95, p99, ("max".into(), self.percentile(100.0))];
        all.map(|(name, time)| (name, time.as_secs_f64() * 1e3))
    }

    fn json(&self) -> Value {
        let column = |(name, ms): (String, f64)| (name, Value::from((ms * 1e3).round() / 1e3));
        Value::Object(self.columns().into_iter().map(column).collect())
    }
}

/// A whole run.
#[derive(Debug, Default)]
pub(super) struct Summary {
    requests: usize,
    answered: usize,
    seconds: f64,
    prompt_tokens: u64,
    cached_tokens: u64,
    tokens: u64,
    /// Whether some server sent no `usage`, so that pieces of text were counted in place of tokens.
    estimated: bool,
    /// How many failed in each way, and what the first of them said.
    failed: BTreeMap<String, (usize, String)>,
    /// By name: the first token, each further one, the longest pause within an answer, the whole answer.
    times: Vec<(String, Times)>,
}

impl Summary {
    /// `probes`: what was asked beside the load, and how long each answer took; None for one that failed.
    pub fn of(outcomes: &[Outcome], probes: Option<(&str, &[Option<Duration>])>) -> Summary {
        let mut sum = Summary { requests: outcomes.len(), ..Summary::default() };
        let mut answered = Vec::new();
        for outcome in outcomes {
            sum.seconds = sum.seconds.max(outcome.end.as_secs_f64());
            let (kind, said) = match &outcome.fate {
                Fate::Done => {
                    answered.push(outcome);
                    continue;
                }
                Fate::Status(status, said) => (format!("status {status}"), said),
                Fate::Broken(why) => ("broken off".to_string(), why),
            };
            sum.failed.entry(kind).or_insert((0, said.clone())).0 += 1;
        }
        sum.answered = answered.len();
        for outcome in &answered {
            sum.prompt_tokens += outcome.prompt_tokens;
            sum.cached_tokens += outcome.cached_tokens;
            sum.tokens += outcome.tokens;
            sum.estimated |= outcome.estimated;
        }
        let first = |o: &&Outcome| Some(o.first? - o.due);
        let each = |o: &&Outcome| Some((o.last? - o.first?) / u32::try_from(o.tokens).ok()?.checked_sub(1)?.max(1));
        let several = answered.iter().filter(|o| o.tokens > 1);
        sum.times.push(("time to first token".into(), Times::of(answered.iter().filter_map(first))));
        sum.times.push(("time per output token".into(), Times::of(several.clone().filter_map(each))));
        sum.times.push(("longest pause".into(), Times::of(several.filter_map(|o| o.pause))));
        sum.times.push(("whole answer".into(), Times::of(answered.iter().map(|o| o.end - o.due))));
        if let Some((name, probes)) = probes {
            sum.times.push((name.to_string(), Times::of(probes.iter().copied().flatten())));
            let failed = probes.iter().filter(|p| p.is_none()).count();
            if failed > 0 {
                sum.failed.insert(name.to_string(), (failed, "no answer".into()));
            }
        }
        sum
    }

    /// None if every request failed: then the ways in which they did.
    pub fn worked(&self) -> Result<(), String> {
        if self.answered > 0 { Ok(()) } else { Err(self.failures().join("; ")) }
    }

    fn failures(&self) -> Vec<String> {
        let line = |(kind, (n, said)): (&String, &(usize, String))| format!("{kind}: {n} ({said})");
        self.failed.iter().map(line).collect()
    }

    fn per_second(&self, n: u64) -> f64 {
        if self.seconds > 0.0 { n as f64 / self.seconds } else { 0.0 }
    }

    pub fn text(&self) -> String {
        let of = |n: u64| format!("{n} ({:.1}/s)", self.per_second(n));
        let counted = if self.estimated { ", pieces of text counted: the server sends no usage" } else { "" };
        let mut text = format!(
            "requests  {} of {} answered in {:.1} s ({:.2}/s)\ntokens    {} in, of them {} cached; {} out{counted}\n",
            self.answered,
            self.requests,
            self.seconds,
            self.per_second(self.answered as u64),
            of(self.prompt_tokens),
            self.cached_tokens,
            of(self.tokens),
        );
        for line in self.failures() {
            text.push_str(&format!("failed    {line}\n"));
        }
        let names = Times::default().columns().map(|(name, _)| format!("{name:>10}"));
        text.push_str(&format!("\n{:24}{}\n", "milliseconds", names.concat()));
        for (name, times) in &self.times {
            let cells = times.columns().map(|(_, ms)| format!("{ms:>10.2}"));
            let cells = if times.0.is_empty() { format!("{:>10}", "-") } else { cells.concat() };
            text.push_str(&format!("{name:24}{cells}\n"));
        }
        text
    }

    pub fn json(&self) -> Value {
        let failed = self.failed.iter().map(|(kind, (n, said))| (kind.clone(), json!({"count": n, "first": said})));
        let times = self.times.iter().map(|(name, times)| (format!("{} ms", name), times.json()));
        json!({
            "requests": self.requests,
            "answered": self.answered,
            "failed": failed.collect::<Map<String, Value>>(),
            "seconds": self.seconds,
            "requests_per_second": self.per_second(self.answered as u64),
            "prompt_tokens": self.prompt_tokens,
            "cached_tokens": self.cached_tokens,
            "output_tokens": self.tokens,
            "prompt_tokens_per_second": self.per_second(self.prompt_tokens),
            "output_tokens_per_second": self.per_second(self.tokens),
            "tokens_are_pieces": self.estimated,
            "times": times.collect::<Map<String, Value>>(),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ms(n: u64) -> Duration {
        Duration::from_millis(n)
    }

    #[test]
    fn percentiles_by_nearest_rank() {
        let none = Times::of([]);
        assert_eq!((none.percentile(50.0), none.percentile(100.0), none.mean()), (ms(0), ms(0), ms(0)));
        let one = Times::of([ms(7)]);
        for p in [0.0, 1.0, 50.0, 99.0, 100.0] {
            assert_eq!(one.percentile(p), ms(7), "{p}");
        }
        // 1 to 100 in another order: the p-th percentile is p.
        let hundred = Times::of((0..100).map(|i| ms(i * 37 % 100 + 1)));
        for p in [1u32, 50, 90, 95, 99, 100] {
            assert_eq!(hundred.percentile(f64::from(p)), ms(u64::from(p)), "{p}");
        }
        assert_eq!(hundred.mean(), Duration::from_micros(50_500));
        // Of five, the third is the median, and the ninth tenth lies within the last.
        let five = Times::of([5, 1, 4, 2, 3].map(ms));
        assert_eq!((five.percentile(50.0), five.percentile(80.0), five.percentile(81.0)), (ms(3), ms(4), ms(5)));
    }

    fn outcome(fate: Fate, due: u64, first: u64, last: u64, tokens: u64) -> Outcome {
        Outcome {
            fate,
            due: ms(due),
            first: Some(ms(first)),
            last: Some(ms(last)),
            end: ms(last),
            pause: Some(ms(9)),
            prompt_tokens: 10,
            cached_tokens: 4,
            tokens,
            estimated: false,
        }
    }

    #[test]
    fn a_run_is_summed_up() {
        let full = || Fate::Status(429, "the queue is full".into());
        let outcomes = [
            outcome(Fate::Done, 100, 150, 550, 5),
            outcome(full(), 100, 110, 110, 0),
            outcome(Fate::Done, 200, 300, 2000, 1),
            outcome(full(), 100, 110, 110, 0),
            outcome(Fate::Broken("reset".into()), 100, 110, 110, 3),
        ];
        let probes = [Some(ms(2)), None, Some(ms(4))];
        let sum = Summary::of(&outcomes, Some(("/health", &probes)));
        assert_eq!(sum.worked(), Ok(()));
        let json = sum.json();
        assert_eq!((&json["requests"], &json["answered"]), (&json!(5), &json!(2)));
        assert_eq!(json["failed"]["status 429"], json!({"count": 2, "first": "the queue is full"}));
        assert_eq!(json["failed"]["broken off"]["count"], 1);
        assert_eq!(json["failed"]["/health"]["count"], 1);
        // Over the two seconds until the last end: what failed does not count.
        assert_eq!(json["output_tokens_per_second"], 3.0);
        assert_eq!((&json["prompt_tokens"], &json["cached_tokens"]), (&json!(20), &json!(8)));
        assert_eq!(json["times"]["time to first token ms"]["max"], 100.0, "{json}");
        // Four steps of 100 ms; an answer of one token has none.
        assert_eq!(json["times"]["time per output token ms"]["p50"], 100.0);
        assert_eq!(json["times"]["whole answer ms"]["p99"], 1800.0);
        assert_eq!(json["times"]["/health ms"]["p50"], 2.0);
        let text = sum.text();
        assert!(text.contains("failed    status 429: 2 (the queue is full)"), "{text}");
        assert!(text.contains("2 of 5 answered in 2.0 s (1.00/s)"), "{text}");

        let sum = Summary::of(&outcomes[1..2], None);
        assert_eq!(sum.worked(), Err("status 429: 1 (the queue is full)".into()));
    }
}
