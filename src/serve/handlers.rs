//! One function for each path.

use std::sync::Arc;
use std::sync::atomic::Ordering::Relaxed;

use axum::Extension;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::header::CONTENT_TYPE;
use axum::http::{HeaderMap, Method, StatusCode, Uri};
use axum::response::{IntoResponse, Response};
use serde_json::{Value, json};

use super::adapters::{Served, now};
use super::app::App;
use super::log::Record;
use super::metrics::CONTENT_TYPE as METRICS_TYPE;
use super::openai::answers::Answers;
use super::openai::common::{Common, room};
use super::openai::error::ApiError;
use super::openai::fields::{Fields, object};
use super::openai::reply::{Kind, Reply};
use super::openai::{chat as chats, completion as completions, stream};
use super::worker::{Refused, Ticket};
use crate::infer::Request;

type Shared = State<Arc<App>>;
type Recorded = Extension<Arc<Record>>;
type Answered = Result<Response, ApiError>;

/// A response of JSON.
pub(super) fn respond(value: &Value) -> Response {
    ([(CONTENT_TYPE, "application/json")], value.to_string()).into_response()
}

/// The process runs.
pub(super) async fn health() -> Response {
    respond(&json!({"status": "ok"}))
}

/// Requests are taken.
pub(super) async fn ready(State(app): Shared) -> Answered {
    match app.engine.is_ready() && !app.stopping.load(Relaxed) {
        true => Ok(respond(&json!({"status": "ready"}))),
        false => Err(ApiError::stopping()),
    }
}

pub(super) async fn metrics(State(app): Shared) -> Response {
    let adapters = app.registry.names().len().saturating_sub(1);
    ([(CONTENT_TYPE, METRICS_TYPE)], app.metrics.text(&app.engine.now(), adapters)).into_response()
}

fn shown(app: &App, served: &Served, base: &str) -> Value {
    json!({
        "id": served.name, "object": "model", "created": served.created, "owned_by": "qlora-engine",
        "parent": served.adapter.map(|_| base), "max_model_len": app.context,
    })
}

pub(super) async fn models(State(app): Shared) -> Response {
    let all = app.registry.list();
    let base = all.first().map(|s| s.name.clone()).unwrap_or_default();
    let data: Vec<Value> = all.iter().map(|s| shown(&app, s, &base)).collect();
    respond(&json!({"object": "list", "data": data}))
}

pub(super) async fn model(State(app): Shared, Path(name): Path<String>) -> Answered {
    let served = app.registry.find(&name)?;
    let base = app.registry.names().into_iter().next().unwrap_or_default();
    Ok(respond(&shown(&app, &served, &base)))
}

pub(super) async fn nothing(uri: Uri) -> ApiError {
    let path: String = uri.path().chars().take(100).collect();
    ApiError::refused(StatusCode::NOT_FOUND, "not_found", format!("there is nothing at {path}"))
}

pub(super) async fn wrong_method(method: Method, uri: Uri) -> ApiError {
    let why = format!("{} does not take {method}", uri.path().chars().take(100).collect::<String>());
    ApiError::refused(StatusCode::METHOD_NOT_ALLOWED, "method_not_allowed", why)
}

/// A request that was understood.
pub(super) struct Job {
    pub served: Arc<Served>,
    pub common: Common,
    pub kind: Kind,
    pub logprobs: Option<usize>,
    pub prompts: Vec<Vec<u32>>,
    /// The field that they came from.
    pub field: &'static str,
}

pub(super) async fn chat(State(app): Shared, Extension(record): Recorded, headers: HeaderMap, body: Body) -> Answered {
    let body = app.json(&headers, body).await?;
    record.prompt(&body);
    let about = record.clone();
    let job = app
        .prepare(move |app| {
            let chat = chats::parse(&body, app.bounds())?;
            let served = app.registry.find(&chat.common.model)?;
            about.model(&served.name);
            let prompts = vec![chat.prompt(&served.voice)?];
            let kind = Kind::Chat { tools: !chat.tools.is_empty() };
            Ok(Job { served, kind, logprobs: chat.logprobs, common: chat.common, prompts, field: "messages" })
        })
        .await?;
    reply(&app, job, record).await
}

pub(super) async fn completion(
    State(app): Shared,
    Extension(record): Recorded,
    headers: HeaderMap,
    body: Body,
) -> Answered {
    let body = app.json(&headers, body).await?;
    record.prompt(&body);
    let about = record.clone();
    let job = app
        .prepare(move |app| {
            let asked = completions::parse(&body, app.bounds())?;
            let served = app.registry.find(&asked.common.model)?;
            about.model(&served.name);
            let tokens = |p: &completions::Prompt| p.ids(&served.voice.tokenizer, app.vocab);
            let prompts = asked.prompts.iter().map(tokens).collect::<Result<_, _>>()?;
            Ok(Job {
                served,
                kind: Kind::Completion,
                logprobs: asked.logprobs,
                common: asked.common,
                prompts,
                field: "prompt",
            })
        })
        .await?;
    reply(&app, job, record).await
}

pub(super) use super::answer::answer;

async fn reply(app: &Arc<App>, job: Job, record: Arc<Record>) -> Answered {
    let answers = ask(app, &job, record)?;
    let prefix = if job.kind == Kind::Completion { "cmpl" } else { "chatcmpl" };
    let reply = Reply {
        kind: job.kind,
        id: format!("{prefix}-{}", answers.record().id),
        created: now(),
        served: job.served,
        ids: app.ids.clone(),
        logprobs: job.logprobs.is_some(),
        include_usage: job.common.include_usage,
    };
    match job.common.stream {
        true => Ok(stream::response(reply, answers)),
        false => Ok(respond(&reply.whole(answers).await?)),
    }
}

/// Hands a request's prompts to the model, each as often as answers are asked for.
///
/// # Errors
/// 400 if they do not fit the context, 429 if too many wait, 503 if the server is stopping. None is under way then.
pub(super) fn ask(app: &App, job: &Job, record: Arc<Record>) -> Result<Answers, ApiError> {
    if app.stopping.load(Relaxed) {
        return Err(ApiError::stopping());
    }
    let c = &job.common;
    let rooms =
        job.prompts.iter().map(|p| room((c.max_tokens, c.max_param), (p.len(), job.field), app.context, &app.generate));
    let rooms = rooms.collect::<Result<Vec<usize>, ApiError>>()?;
    let seed = c.seed.unwrap_or_else(|| app.ids.seed());
    let submit = |prompt: &Vec<u32>, room: usize, i: usize| {
        let request = Request {
            prompt: prompt.clone(),
            max_new_tokens: room,
            stops: if c.ignore_eos { Vec::new() } else { job.served.voice.stops.clone() },
            sampling: c.draws.over(&app.generate, seed.wrapping_add(i as u64)),
            adapter: job.served.adapter,
            logprobs: job.logprobs,
        };
        app.engine.submit(request).map_err(|refused| match refused {
            Refused::Full => ApiError::busy(format!("{} requests wait already; try again", app.options.max_queue)),
            Refused::Stopping => ApiError::stopping(),
            Refused::Wrong(e) => ApiError::of(job.field, &e),
        })
    };
    let each = job.prompts.iter().zip(rooms).flat_map(|(prompt, room)| (0..c.n).map(move |i| (prompt, room, i)));
    // On a refusal those that were taken are dropped, and so ended.
    let all = || each.map(|(prompt, room, i)| submit(prompt, room, i)).collect::<Result<Vec<Ticket>, ApiError>>();
    let tickets = app.registry.while_served(&job.served, all)?;
    let prompt = job.prompts.iter().map(Vec::len).sum();
    record.asks(prompt, tickets.len());
    let limit = app.options.request_timeout;
    let answers = Answers::new(tickets, (c.n, prompt), &c.stop, &job.served.voice.tokenizer, limit, record);
    answers.map_err(|e| ApiError::of("stop", &e))
}

/// `{lora_name, lora_path}`
pub(super) async fn load(State(app): Shared, Extension(record): Recorded, headers: HeaderMap, body: Body) -> Answered {
    let body = object(&app.json(&headers, body).await?)?;
    let f = Fields::of(&body);
    let (name, path) = (f.needed_text("lora_name")?.to_string(), f.needed_text("lora_path")?.to_string());
    app.exclusive(move |app| {
        app.registry.load(&app.engine, &name, &path)?;
        record.model(&name);
        log::info!("adapter {name} is loaded");
        Ok(respond(&json!({"status": "loaded", "lora_name": name})))
    })
    .await
}

/// `{lora_name}`
pub(super) async fn unload(
    State(app): Shared,
    Extension(record): Recorded,
    headers: HeaderMap,
    body: Body,
) -> Answered {
    let body = object(&app.json(&headers, body).await?)?;
    let name = Fields::of(&body).needed_text("lora_name")?.to_string();
    app.exclusive(move |app| {
        app.registry.unload(&app.engine, &name)?;
        record.model(&name);
        log::info!("adapter {name} is unloaded");
        Ok(respond(&json!({"status": "unloaded", "lora_name": name})))
    })
    .await
}
