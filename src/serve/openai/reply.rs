//! Answers as JSON: whole, or a chunk for each piece.

use std::collections::BTreeMap;
use std::sync::Arc;

use serde_json::{Value, json};

use super::answers::{Answers, Piece, Reason, Usage};
use super::error::ApiError;
use super::logprobs::{Scored, of_chat, of_completion};
use crate::data::template::ToolCall;
use crate::serve::adapters::Served;
use crate::serve::ids::Ids;

/// Which of the two shapes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::serve) enum Kind {
    /// With `tools`, what is answered may be calls of them.
    Chat { tools: bool },
    Completion,
}

/// What all replies to a request have in common.
pub(in crate::serve) struct Reply {
    pub kind: Kind,
    pub id: String,
    pub created: u64,
    pub served: Arc<Served>,
    pub ids: Arc<Ids>,
    pub logprobs: bool,
    pub include_usage: bool,
}

/// An answer so far.
#[derive(Debug, Default)]
pub(super) struct Whole {
    pub text: String,
    pub logprobs: Vec<Scored>,
    pub finish: Option<Reason>,
}

impl Whole {
    pub fn add(&mut self, piece: Piece) {
        self.text.push_str(&piece.text);
        self.logprobs.extend(piece.logprobs);
        self.finish = piece.finish.or(self.finish);
    }
}

pub(super) fn usage(u: Usage) -> Value {
    json!({
        "prompt_tokens": u.prompt, "completion_tokens": u.completion, "total_tokens": u.prompt + u.completion,
        "prompt_tokens_details": {"cached_tokens": u.cached},
    })
}

impl Reply {
    /// Waits for every answer to end.
    ///
    /// # Errors
    /// The first failure: a part is not given out as the whole.
    pub async fn whole(&self, mut answers: Answers) -> Result<Value, ApiError> {
        let mut wholes: BTreeMap<usize, Whole> = BTreeMap::new();
        while let Some(piece) = answers.next().await {
            let piece = piece?;
            wholes.entry(piece.index).or_default().add(piece);
        }
        let choices: Vec<Value> = wholes.into_iter().map(|(index, whole)| self.choice(index, whole)).collect();
        let object = if self.kind == Kind::Completion { "text_completion" } else { "chat.completion" };
        Ok(json!({
            "id": self.id, "object": object, "created": self.created, "model": self.served.name,
            "choices": choices, "usage": usage(answers.usage()),
        }))
    }

    fn choice(&self, index: usize, whole: Whole) -> Value {
        let finish = whole.finish.map(Reason::name);
        if self.kind == Kind::Completion {
            let logprobs = self.logprobs.then(|| of_completion(&whole.logprobs, 0));
            return json!({"index": index, "text": whole.text, "logprobs": logprobs, "finish_reason": finish});
        }
        let logprobs = self.logprobs.then(|| of_chat(&whole.logprobs));
        match self.calls(&whole.text) {
            Some(calls) => json!({
                "index": index, "message": {"role": "assistant", "content": null, "tool_calls": calls},
                "logprobs": logprobs, "finish_reason": "tool_calls",
            }),
            None => json!({
                "index": index, "message": {"role": "assistant", "content": whole.text},
                "logprobs": logprobs, "finish_reason": finish,
            }),
        }
    }

    /// The calls that a text holds, where there are tools.
    fn calls(&self, text: &str) -> Option<Vec<Value>> {
        let Kind::Chat { tools: true } = self.kind else { return None };
        let calls = self.served.voice.template.tool_calls(text)?;
        let show = |call: ToolCall| {
            let id = format!("call_{}", self.ids.hex());
            json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
        };
        Some(calls.into_iter().map(show).collect())
    }

    /// Whether text is held back until its answer has ended.
    pub(super) fn holds_back(&self) -> bool {
        self.kind == Kind::Chat { tools: true }
    }

    /// A chunk of a stream around `choices`.
    pub(super) fn chunk(&self, choices: Value) -> Value {
        let object = if self.kind == Kind::Completion { "text_completion" } else { "chat.completion.chunk" };
        let mut chunk = json!({
            "id": self.id, "object": object, "created": self.created, "model": self.served.name, "choices": choices,
        });
        if self.include_usage {
            chunk["usage"] = Value::Null;
        }
        chunk
    }

    /// The first chunk of an answer: who speaks. Completions have none.
    pub(super) fn opening(&self, index: usize) -> Option<Value> {
        let delta = json!({"role": "assistant", "content": ""});
        let choice = json!([{"index": index, "delta": delta, "logprobs": null, "finish_reason": null}]);
        (self.kind != Kind::Completion).then(|| self.chunk(choice))
    }

    /// The chunks of a piece; `offset` is where its text begins in the answer.
    pub(super) fn pieces(&self, piece: &Piece, offset: usize) -> Vec<Value> {
        let (index, finish) = (piece.index, piece.finish.map(Reason::name));
        if self.kind == Kind::Completion {
            let logprobs = self.logprobs.then(|| of_completion(&piece.logprobs, offset));
            return vec![self.chunk(json!([{"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": finish}]))];
        }
        let logprobs = self.logprobs.then(|| of_chat(&piece.logprobs)).filter(|_| !piece.logprobs.is_empty());
        let chunk = |delta: Value, logprobs: Option<Value>, finish: Option<&str>| {
            self.chunk(json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]))
        };
        let calls = if self.holds_back() { self.calls(&piece.text) } else { None };
        let (delta, finish) = match calls {
            Some(mut calls) => {
                for (i, call) in calls.iter_mut().enumerate() {
                    call["index"] = json!(i);
                }
                (Some(json!({ "tool_calls": calls })), Some("tool_calls"))
            }
            None => ((!piece.text.is_empty() || logprobs.is_some()).then(|| json!({"content": piece.text})), finish),
        };
        let ends = finish.map(|finish| chunk(json!({}), None, Some(finish)));
        delta.map(|delta| chunk(delta, logprobs, None)).into_iter().chain(ends).collect()
    }

    /// The last chunk, where it was asked for.
    pub(super) fn closing(&self, u: Usage) -> Option<Value> {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage(u);
        self.include_usage.then_some(chunk)
    }
}
