//! Answers as server-sent events. The client's going drops the stream, and with it every sequence.

use std::collections::VecDeque;
use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::header::{CACHE_CONTROL, CONTENT_TYPE};
use axum::response::{IntoResponse, Response};
use serde_json::Value;
use tokio::time::{Instant, Interval, interval_at};
use tokio_stream::Stream;

use super::answers::{Answers, Piece};
use super::reply::{Kind, Reply, Whole};

/// A comment keeps connections open on which nothing else is said for so long: proxies close silent ones.
const SILENCE: Duration = Duration::from_secs(15);

/// The events of a request.
struct Events {
    reply: Reply,
    answers: Answers,
    sent: Vec<Sent>,
    ready: VecDeque<Bytes>,
    comment: Interval,
    over: bool,
}

/// One answer: all that came, and how much of it was sent, in bytes and in characters.
#[derive(Default)]
struct Sent {
    whole: Whole,
    bytes: usize,
    chars: usize,
}

/// A response that says what `answers` give as it comes.
pub(in crate::serve) fn response(reply: Reply, answers: Answers) -> Response {
    let ready = (0..answers.len()).filter_map(|i| reply.opening(i)).map(|v| event(&v)).collect();
    let sent = (0..answers.len()).map(|_| Default::default()).collect();
    let comment = interval_at(Instant::now() + SILENCE, SILENCE);
    let events = Events { reply, answers, sent, ready, comment, over: false };
    // nginx passes on at once what it is told not to buffer.
    let headers = [
        (CONTENT_TYPE.as_str(), "text/event-stream"),
        (CACHE_CONTROL.as_str(), "no-cache"),
        ("x-accel-buffering", "no"),
    ];
    (headers, Body::from_stream(events)).into_response()
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

impl Events {
    fn hear(&mut self, piece: Piece) {
        let Some(sent) = self.sent.get_mut(piece.index) else { return };
        let (index, finish) = (piece.index, piece.finish);
        sent.whole.add(piece);
        let text = sent.whole.text.as_str();
        let calls = finish.and_then(|_| self.reply.calls(text));
        let upto = if finish.is_some() && calls.is_none() { text.len() } else { self.reply.showable(text) };
        let new = text.get(sent.bytes..upto).unwrap_or_default().to_string();
        // Probabilities go with the text, or with the end.
        let logprobs = match new.is_empty() && finish.is_none() {
            true => Vec::new(),
            false => std::mem::take(&mut sent.whole.logprobs),
        };
        let piece = Piece { index, text: new, logprobs, finish };
        self.ready.extend(self.reply.pieces(&piece, sent.chars, calls).iter().map(event));
        sent.bytes += piece.text.len();
        sent.chars += piece.text.chars().count();
        if self.reply.kind != (Kind::Chat { tools: true }) {
            // Nothing is held back, so nothing has to be kept.
            sent.whole.text.clear();
            sent.bytes = 0;
        }
    }
}

impl Stream for Events {
    type Item = Result<Bytes, Infallible>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = self.get_mut();
        loop {
            if let Some(bytes) = this.ready.pop_front() {
                this.comment.reset();
                return Poll::Ready(Some(Ok(bytes)));
            }
            if this.over {
                return Poll::Ready(None);
            }
            match this.answers.poll_next(cx) {
                Poll::Ready(Some(Ok(piece))) => this.hear(piece),
                Poll::Ready(Some(Err(e))) => {
                    // No `[DONE]` follows: what came is not the whole.
                    this.ready.push_back(event(&e.body()));
                    this.over = true;
                }
                Poll::Ready(None) => {
                    this.ready.extend(this.reply.closing(this.answers.usage()).iter().map(event));
                    this.ready.push_back(Bytes::from_static(b"data: [DONE]\n\n"));
                    this.over = true;
                }
                Poll::Pending => match this.comment.poll_tick(cx) {
                    Poll::Ready(_) => return Poll::Ready(Some(Ok(Bytes::from_static(b": waiting\n\n")))),
                    Poll::Pending => return Poll::Pending,
                },
            }
        }
    }
}
