//! The fields that chat and completions share.

use super::error::ApiError;
use super::fields::{Fields, kind};
use crate::config::GenerateConfig;
use crate::infer::Sampling;
use serde_json::Value;

/// Stop strings of a request, and all their bytes, at most.
const STOPS: usize = 16;
const STOP_BYTES: usize = 4096;
/// The most alternatives that a token's probabilities are given for.
pub(super) const TOP_LOGPROBS: usize = 20;

/// What a server allows a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) struct Bounds {
    /// Answers to a prompt.
    pub n: usize,
    /// Answers to all prompts of a request.
    pub answers: usize,
}

/// What both kinds of request say alike.
#[derive(Debug, Clone, PartialEq)]
pub(in crate::serve) struct Common {
    pub model: String,
    pub stream: bool,
    pub include_usage: bool,
    /// Answers to each prompt.
    pub n: usize,
    pub stop: Vec<String>,
    /// The model's own end does not end an answer (vLLM's): to measure a server.
    pub ignore_eos: bool,
    /// Of the first answer; None: a fresh one.
    pub seed: Option<u64>,
    /// Of an answer at most; None: as the config says.
    pub max_tokens: Option<usize>,
    /// The field that said so.
    pub max_param: &'static str,
    pub draws: Draws,
}

impl Common {
    /// One answer of `model`, everything as the config says.
    pub fn plain(model: &str) -> Common {
        Common {
            model: model.to_string(),
            stream: false,
            include_usage: false,
            n: 1,
            stop: Vec::new(),
            ignore_eos: false,
            seed: None,
            max_tokens: None,
            max_param: "max_tokens",
            draws: Draws::default(),
        }
    }
}

/// How tokens are drawn; None: as the config says.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(in crate::serve) struct Draws {
    temperature: Option<f64>,
    top_p: Option<f64>,
    top_k: Option<usize>,
    min_p: Option<f64>,
    repetition_penalty: Option<f64>,
    presence_penalty: Option<f64>,
    frequency_penalty: Option<f64>,
}

/// # Errors
/// 400 naming the field.
pub(super) fn parse(f: Fields<'_>, bounds: Bounds) -> Result<Common, ApiError> {
    let model = f.needed_text("model")?.to_string();
    let options = f.object("stream_options")?;
    let ignore_eos = f.flag("ignore_eos")?.unwrap_or(false);
    let include_usage = options.map(|o| o.flag("include_usage")).transpose()?.flatten().unwrap_or(false);
    // The newer name counts where both are given.
    let newer = f.count("max_completion_tokens", 1..=usize::MAX)?;
    let max_tokens = newer.or(f.count("max_tokens", 1..=usize::MAX)?);
    f.refuse("logit_bias", "is not built")?;
    response_format(f)?;
    let n = f.count("n", 1..=bounds.n)?.unwrap_or(1);
    if let Some(best_of) = f.whole("best_of", 1..=i64::MAX)?.filter(|b| usize::try_from(*b) != Ok(n)) {
        return Err(ApiError::invalid("best_of", format!("`best_of` is not built; leave it out (got {best_of})")));
    }
    Ok(Common {
        model,
        ignore_eos,
        stream: f.flag("stream")?.unwrap_or(false),
        include_usage,
        n,
        stop: stops(f)?,
        seed: f.whole("seed", i64::MIN..=i64::MAX)?.map(i64::cast_unsigned),
        max_tokens,
        max_param: if newer.is_some() { "max_completion_tokens" } else { "max_tokens" },
        draws: Draws {
            temperature: f.number("temperature", 0.0..=100.0)?,
            top_p: f.number("top_p", 0.0..=1.0)?,
            // -1 is vLLM's way to say all.
            top_k: f.whole("top_k", -1..=1 << 32)?.map(|k| usize::try_from(k).unwrap_or(0)),
            min_p: f.number("min_p", 0.0..=1.0)?,
            repetition_penalty: f.number("repetition_penalty", 0.01..=100.0)?,
            presence_penalty: f.number("presence_penalty", -2.0..=2.0)?,
            frequency_penalty: f.number("frequency_penalty", -2.0..=2.0)?,
        },
    })
}

fn stops(f: Fields<'_>) -> Result<Vec<String>, ApiError> {
    let refuse = |why: String| Err(ApiError::invalid("stop", format!("`stop` {why}")));
    let list = match f.get("stop") {
        None => return Ok(Vec::new()),
        Some(one @ Value::String(_)) => std::slice::from_ref(one),
        Some(Value::Array(list)) => list.as_slice(),
        Some(other) => return refuse(format!("must be a string or an array of them, is {}", kind(other))),
    };
    if list.len() > STOPS {
        return refuse(format!("holds {} strings; {STOPS} are allowed", list.len()));
    }
    let mut stops = Vec::with_capacity(list.len());
    for item in list {
        match item {
            Value::String(text) if !text.is_empty() => stops.push(text.clone()),
            Value::String(_) => return refuse("holds an empty string, at which every answer would end".into()),
            other => return refuse(format!("must hold strings, holds {}", kind(other))),
        }
    }
    let bytes: usize = stops.iter().map(String::len).sum();
    match bytes <= STOP_BYTES {
        true => Ok(stops),
        false => refuse(format!("has {bytes} bytes in all; {STOP_BYTES} are allowed")),
    }
}

fn response_format(f: Fields<'_>) -> Result<(), ApiError> {
    match f.object("response_format")?.map(|o| o.text("type")).transpose()?.flatten() {
        None | Some("text") => Ok(()),
        Some(other) => {
            let other: String = other.chars().take(40).collect();
            let why = format!("`response_format` {other} is not built; `text` is");
            Err(ApiError::invalid("response_format", why))
        }
    }
}

impl Draws {
    /// The config's settings with the request's over them.
    pub fn over(&self, config: &GenerateConfig, seed: u64) -> Sampling {
        let mut s = Sampling::of(config, seed);
        if let Some(t) = self.temperature {
            // Whoever names a temperature wants tokens drawn, whatever the config says.
            (s.temperature, s.do_sample) = (t, t > 0.0);
        }
        s.top_p = self.top_p.unwrap_or(s.top_p);
        s.top_k = self.top_k.unwrap_or(s.top_k);
        s.min_p = self.min_p.unwrap_or(s.min_p);
        s.repetition_penalty = self.repetition_penalty.unwrap_or(s.repetition_penalty);
        s.presence_penalty = self.presence_penalty.unwrap_or(s.presence_penalty);
        s.frequency_penalty = self.frequency_penalty.unwrap_or(s.frequency_penalty);
        s
    }
}

/// Tokens that the answer to a prompt of `prompt` tokens may have, in a context of `context`.
///
/// # Errors
/// 400 `context_length_exceeded`.
pub(in crate::serve) fn room(
    asked: (Option<usize>, &str),
    prompt: (usize, &str),
    context: usize,
    config: &GenerateConfig,
) -> Result<usize, ApiError> {
    let ((asked, asked_param), (prompt, prompt_param)) = (asked, prompt);
    let left = context.saturating_sub(prompt);
    if left == 0 {
        let why = format!(
            "the context is {context} tokens; `{prompt_param}` has {prompt}, which leaves no room for an answer"
        );
        return Err(ApiError::too_long(prompt_param, why));
    }
    match asked {
        Some(n) if n > left => {
            let why = format!(
                "the context is {context} tokens; `{prompt_param}` has {prompt} and `{asked_param}` asks for {n}: {left} are left"
            );
            Err(ApiError::too_long(asked_param, why))
        }
        Some(n) => Ok(n),
        None => match config.room_after(prompt).min(left) {
            0 => {
                let why = format!(
                    "`{prompt_param}` has {prompt} tokens, which leaves nothing of the config's `max_length` for an answer"
                );
                Err(ApiError::too_long(prompt_param, why))
            }
            n => Ok(n),
        },
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const BOUNDS: Bounds = Bounds { n: 8, answers: 128 };

    fn read(extra: Value) -> Result<Common, ApiError> {
        let mut all = json!({"model": "m"});
        all.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        parse(Fields::of(&all), BOUNDS)
    }

    fn config() -> GenerateConfig {
        crate::config::from_str("model_name_or_path: x", crate::config::Format::Yaml, &["do_sample=false"])
            .unwrap()
            .generate
    }

    #[test]
    fn what_is_left_out_is_the_config_s() {
        let c = read(json!({"seed": -1, "stop": "x", "user": 3, "unheard_of": {}, "n": null})).unwrap();
        assert_eq!((c.n, c.seed, c.max_tokens, c.stream), (1, Some(u64::MAX), None, false));
        assert_eq!(c.stop, ["x"]);
        assert_eq!(c.draws.over(&config(), 7), Sampling::of(&config(), 7));
        assert!(!c.draws.over(&config(), 7).do_sample);
        let c = read(json!({"temperature": 0.5, "top_k": -1, "max_tokens": 3, "max_completion_tokens": 5})).unwrap();
        let s = c.draws.over(&config(), 7);
        assert!(s.do_sample && s.temperature == 0.5 && s.top_k == 0 && c.max_tokens == Some(5));
        let s = read(json!({"temperature": 0})).unwrap().draws.over(&config(), 7);
        assert!(s.is_greedy());
        assert_eq!(read(json!({"seed": i64::MIN})).unwrap().seed, Some(1 << 63));
    }

    #[test]
    fn what_is_wrong_is_named() {
        let many: Vec<String> = (0..17).map(|i| i.to_string()).collect();
        for (field, value) in [
            ("model", json!(3)),
            ("temperature", json!(-1)),
            ("temperature", json!("hot")),
            ("top_p", json!(1.5)),
            ("n", json!(0)),
            ("n", json!(9)),
            ("n", json!(1.5)),
            ("seed", json!(1e300)),
            ("stop", json!(many)),
            ("stop", json!([""])),
            ("stop", json!([1])),
            ("stop", json!("x".repeat(5000))),
            ("stop", json!({})),
            ("max_tokens", json!(0)),
            ("max_tokens", json!(-5)),
            ("logit_bias", json!({"5": 1})),
            ("stream", json!("yes")),
            ("presence_penalty", json!(3)),
            ("repetition_penalty", json!(0)),
            ("stream_options", json!(true)),
            ("response_format", json!({"type": "json_object"})),
            ("best_of", json!(3)),
        ] {
            let e = read(json!({field: value})).unwrap_err();
            assert_eq!((e.status.as_u16(), e.param.as_deref()), (400, Some(field)), "{field}: {}", e.message);
        }
        assert!(read(json!({"logit_bias": {}, "response_format": {"type": "text"}, "best_of": 1})).is_ok());
    }

    #[test]
    fn an_answer_must_fit() {
        let left = |asked, prompt| room((asked, "max_tokens"), (prompt, "messages"), 100, &config());
        assert_eq!(left(None, 60), Ok(40));
        assert_eq!(left(Some(40), 60), Ok(40));
        let e = left(Some(41), 60).unwrap_err();
        assert_eq!((e.code, e.param.as_deref()), (Some("context_length_exceeded"), Some("max_tokens")));
        assert!(e.message.contains("100") && e.message.contains("40 are left"), "{}", e.message);
        assert_eq!(left(None, 100).unwrap_err().param.as_deref(), Some("messages"));
        assert!(left(Some(1), usize::MAX).is_err());
    }
}
