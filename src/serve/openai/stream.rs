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
use super::reply::{Reply, Whole};

/// A comment keeps connections open on which nothing else is said for so long: proxies close silent ones.
const SILENCE: Duration = Duration::from_secs(15);

/// The events of a request.
struct Events {
    reply: Reply,
    answers: Answers,
    /// Of each answer: characters sent, and what is held back.
    sent: Vec<(usize, Whole)>,
    ready: VecDeque<Bytes>,
    comment: Interval,
    over: bool,
}

/// A response that says what `answers` give as it comes.
pub(in crate::serve) fn response(reply: Reply, answers: Answers) -> Response {
    let ready = (0..answers.len()).filter_map(|i| reply.opening(i)).map(|v| event(&v)).collect();
    let sent = (0..answers.len()).map(|_| Default::default()).collect();
    let comment = interval_at(Instant::now() + SILENCE, SILENCE);
    let events = Events { reply, answers, sent, ready, comment, over: false };
    // nginx passes on at once what it is told not to buffer.
    let headers = [(CONTENT_TYPE.as_str(), "text/event-stream"), (CACHE_CONTROL.as_str(), "no-cache"), ("x-accel-buffering", "no")];
    (headers, Body::from_stream(events)).into_response()
}

fn event(value: &Value) -> Bytes {
    Bytes::from(format!("data: {value}\n\n"))
}

impl Events {
    fn hear(&mut self, piece: Piece) {
        let Some((sent, held)) = self.sent.get_mut(piece.index) else { return };
        let (index, ends) = (piece.index, piece.finish.is_some());
        let piece = match self.reply.holds_back() {
            false => piece,
            true => {
                held.add(piece);
                if !ends {
                    return;
                }
                let whole = std::mem::take(held);
                Piece { index, text: whole.text, logprobs: whole.logprobs, finish: whole.finish }
            }
        };
        let chunks = self.reply.pieces(&piece, *sent);
        *sent += piece.text.chars().count();
        self.ready.extend(chunks.iter().map(event));
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
