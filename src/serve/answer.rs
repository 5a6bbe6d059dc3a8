//! `POST /answer`: a question in, an answer out, as the tutorials have it.

use std::sync::Arc;

use axum::Extension;
use axum::body::Body;
use axum::extract::State;
use axum::http::{HeaderMap, Uri};
use axum::response::Response;
use serde_json::json;

use super::app::App;
use super::handlers::{Job, ask, respond};
use super::log::Record;
use super::openai::chat::Chat;
use super::openai::common::Common;
use super::openai::error::ApiError;
use super::openai::fields::{Fields, object};
use super::openai::messages::Conversation;
use super::openai::reply::Kind;
use crate::data::{Message, Role};

/// The question, of the query or of a body `{"question": ..}`. The first adapter answers, with the config's sampling.
pub(super) async fn answer(
    State(app): State<Arc<App>>,
    Extension(record): Extension<Arc<Record>>,
    uri: Uri,
    headers: HeaderMap,
    body: Body,
) -> Result<Response, ApiError> {
    let question = match in_query(&uri) {
        Some(question) => question,
        None => in_body(&app, &headers, body).await?,
    };
    record.prompt(question.as_bytes());
    let served = app.registry.first().ok_or_else(|| ApiError::failed("nothing is served"))?;
    record.model(&served.name);
    let job = app
        .prepare(move |_| {
            let common = Common::plain(&served.name);
            let messages = vec![Message { role: Role::User, content: question }];
            let conversation = Conversation { system: String::new(), messages };
            let chat = Chat { common, conversation, tools: String::new(), thinking: None, logprobs: None };
            let prompts = vec![chat.prompt(&served.voice)?];
            let kind = Kind::Chat { tools: false };
            Ok(Job { served, common: chat.common, kind, logprobs: None, prompts, field: "question" })
        })
        .await?;
    let mut answers = ask(&app, &job, record)?;
    let mut text = String::new();
    while let Some(piece) = answers.next().await {
        text.push_str(&piece?.text);
    }
    Ok(respond(&json!({ "answer": text })))
}

fn in_query(uri: &Uri) -> Option<String> {
    let mut pairs = form_urlencoded::parse(uri.query().unwrap_or_default().as_bytes());
    pairs.find(|(key, _)| key == "question").map(|(_, value)| value.into_owned())
}

async fn in_body(app: &App, headers: &HeaderMap, body: Body) -> Result<String, ApiError> {
    let missing = || {
        ApiError::invalid("question", "`question` is missing: POST /answer?question=.. or a body {\"question\": ..}")
    };
    if hyper::body::Body::is_end_stream(&body) {
        return Err(missing());
    }
    let body = object(&app.json(headers, body).await?)?;
    Fields::of(&body).text("question")?.map(str::to_string).ok_or_else(missing)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_question_in_the_query() {
        let of = |uri: &str| in_query(&uri.parse().unwrap());
        assert_eq!(of("/answer?question=What+is%20it%3F&x=1").as_deref(), Some("What is it?"));
        assert_eq!(of("/answer?x=1&question=%E7%89%99").as_deref(), Some("牙"));
        assert_eq!(of("/answer?question=%ff%fe").as_deref(), Some("\u{FFFD}\u{FFFD}"));
        assert_eq!((of("/answer"), of("/answer?q=1")), (None, None));
        assert_eq!(of("/answer?question=").as_deref(), Some(""));
    }
}
