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
    Chat {
        tools: bool,
    },
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
        let (message, finish) = match self.calls(&whole.text) {
            Some(calls) => {
                let before = self.served.voice.template.before_tool_calls(&whole.text).trim();
                let content = (!before.is_empty()).then_some(before);
                (json!({"role": "assistant", "content": content, "tool_calls": calls}), Some("tool_calls"))
            }
            None => (json!({"role": "assistant", "content": whole.text}), finish),
        };
        json!({"index": index, "message": message, "logprobs": logprobs, "finish_reason": finish})
    }

    /// The calls that a text holds, where there are tools.
    pub(super) fn calls(&self, text: &str) -> Option<Vec<Value>> {
        let Kind::Chat { tools: true } = self.kind else { return None };
        let calls = self.served.voice.template.tool_calls(text)?;
        let show = |call: ToolCall| {
            let id = format!("call_{}", self.ids.hex());
            json!({"id": id, "type": "function", "function": {"name": call.name, "arguments": call.arguments}})
        };
        Some(calls.into_iter().map(show).collect())
    }

    /// How many bytes of an answer may be shown while more is to come: what may become a call is held back.
    pub(super) fn showable(&self, text: &str) -> usize {
        match self.kind {
            Kind::Chat { tools: true } => self.served.voice.template.before_tool_calls(text).len(),
            _ => text.len(),
        }
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

    /// The chunks of a piece, if it says anything; `offset` is where its text begins in the answer.
    pub(super) fn pieces(&self, piece: &Piece, offset: usize, calls: Option<Vec<Value>>) -> Vec<Value> {
        let (index, finish) = (piece.index, piece.finish.map(Reason::name));
        let silent = piece.text.is_empty() && piece.logprobs.is_empty();
        if self.kind == Kind::Completion {
            let logprobs = self.logprobs.then(|| of_completion(&piece.logprobs, offset));
            let choice = json!([{"index": index, "text": piece.text, "logprobs": logprobs, "finish_reason": finish}]);
            return if silent && finish.is_none() { vec![] } else { vec![self.chunk(choice)] };
        }
        let chunk = |delta: Value, logprobs: Option<Value>, finish: Option<&str>| {
            self.chunk(json!([{"index": index, "delta": delta, "logprobs": logprobs, "finish_reason": finish}]))
        };
        let logprobs = (!piece.logprobs.is_empty()).then(|| of_chat(&piece.logprobs));
        let mut chunks = Vec::new();
        if !silent {
            chunks.push(chunk(json!({"content": piece.text}), logprobs, None));
        }
        let called = calls.is_some();
        if let Some(mut calls) = calls {
            for (i, call) in calls.iter_mut().enumerate() {
                call["index"] = json!(i);
            }
            chunks.push(chunk(json!({ "tool_calls": calls }), None, None));
        }
        if let Some(finish) = finish {
            chunks.push(chunk(json!({}), None, Some(if called { "tool_calls" } else { finish })));
        }
        chunks
    }

    /// The last chunk, where it was asked for.
    pub(super) fn closing(&self, u: Usage) -> Option<Value> {
        let mut chunk = self.chunk(json!([]));
        chunk["usage"] = usage(u);
        self.include_usage.then_some(chunk)
    }
}
