//! What the handlers share, and which path leads to which.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::header::{AUTHORIZATION, CONTENT_LENGTH, CONTENT_TYPE};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method, StatusCode};
use axum::middleware::{Next, from_fn_with_state};
use axum::response::{IntoResponse, Response};
use axum::routing::{get, post};
use tokio::sync::{Semaphore, watch};
use tokio_stream::StreamExt;
use tower_http::cors::{AllowOrigin, CorsLayer};

use super::adapters::Registry;
use super::engine::Engine;
use super::handlers;
use super::ids::Ids;
use super::log::Record;
use super::metrics::Metrics;
use super::openai::common::Bounds;
use super::openai::error::{ApiError, Code};
use super::options::Options;
use crate::config::GenerateConfig;
use crate::error::{Error, Result};

/// A body must have come within this time.
const BODY_TIME: Duration = Duration::from_secs(30);
/// A body that is too large by no more than this factor is read to its end: a client hears nothing while it sends.
const PATIENCE: usize = 8;

/// A model being served. Made by [`super::open`].
pub struct App {
    pub(super) options: Options,
    pub(super) engine: Engine,
    pub(super) registry: Registry,
    pub(super) generate: GenerateConfig,
    /// Tokens of a prompt and its answer at most.
    pub(super) context: usize,
    /// Ids run below this.
    pub(super) vocab: usize,
    pub(super) metrics: Arc<Metrics>,
    pub(super) ids: Arc<Ids>,
    pub(super) stopping: AtomicBool,
    /// Closed while no request is under way.
    pub(super) live: watch::Sender<()>,
    /// Requests that are read and tokenised: as many wait for it as may wait for the model, and a core works on each.
    preparing: Arc<Semaphore>,
    cores: Arc<Semaphore>,
    /// One adapter is loaded at a time.
    loading: Arc<Semaphore>,
}

impl App {
    pub(super) fn new(
        options: Options,
        engine: Engine,
        registry: Registry,
        generate: GenerateConfig,
        (context, vocab): (usize, usize),
    ) -> App {
        let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
        let waiting = options.max_queue.saturating_add(options.max_batch).min(Semaphore::MAX_PERMITS);
        App {
            options,
            engine,
            registry,
            generate,
            context,
            vocab,
            metrics: Arc::new(Metrics::new()),
            ids: Arc::new(Ids::new()),
            stopping: AtomicBool::new(false),
            live: watch::Sender::new(()),
            preparing: Arc::new(Semaphore::new(waiting)),
            cores: Arc::new(Semaphore::new(cores)),
            loading: Arc::new(Semaphore::new(1)),
        }
    }

    /// The names of all that is served, the base first.
    pub fn models(&self) -> Vec<String> {
        self.registry.names()
    }

    pub(super) fn bounds(&self) -> Bounds {
        Bounds { n: self.options.max_n, answers: self.options.max_queue.max(1) }
    }

    /// Runs `work`, which takes the processor's time, beside the threads that answer.
    ///
    /// # Errors
    /// 429 if too many do so already, and what `work` returns.
    pub(super) async fn prepare<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> std::result::Result<T, ApiError> + Send + 'static,
    ) -> std::result::Result<T, ApiError> {
        let Ok(waiting) = self.preparing.clone().try_acquire_owned() else {
            return Err(ApiError::busy("too many requests are being read; try again"));
        };
        let core = self.cores.clone().acquire_owned().await;
        self.blocking(move |app| {
            let done = work(app);
            drop((waiting, core));
            done
        })
        .await
    }

    /// Runs `work`, which loads an adapter or the like, one at a time. It goes on if the client goes away.
    pub(super) async fn exclusive<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> std::result::Result<T, ApiError> + Send + 'static,
    ) -> std::result::Result<T, ApiError> {
        let one = self.loading.clone().acquire_owned().await;
        self.blocking(move |app| {
            let done = work(app);
            drop(one);
            done
        })
        .await
    }

    async fn blocking<T: Send + 'static>(
        self: &Arc<Self>,
        work: impl FnOnce(&App) -> std::result::Result<T, ApiError> + Send + 'static,
    ) -> std::result::Result<T, ApiError> {
        let app = self.clone();
        let done = tokio::task::spawn_blocking(move || work(&app)).await;
        done.unwrap_or_else(|_| Err(ApiError::failed("the request could not be handled")))
    }

    /// A request's body.
    ///
    /// # Errors
    /// 413 if it is too large, 408 if it does not come, 400 if it breaks off.
    pub(super) async fn body(&self, headers: &HeaderMap, body: Body) -> std::result::Result<Bytes, ApiError> {
        let most = self.options.max_body;
        let too_large = || {
            let why = format!("the body is larger than the {most} bytes that are allowed");
            ApiError::refused(StatusCode::PAYLOAD_TOO_LARGE, "body_too_large", why)
        };
        let bears = most.saturating_mul(PATIENCE);
        let length = headers.get(CONTENT_LENGTH).and_then(|v| v.to_str().ok()?.parse::<u64>().ok());
        if length.is_some_and(|n| n > bears as u64) {
            return Err(too_large());
        }
        let mut pieces = body.into_data_stream();
        let read = async {
            let (mut whole, mut size) = (Vec::new(), 0usize);
            while let Some(piece) = pieces.next().await {
                let piece = piece.map_err(|_| ApiError::bad("the body broke off"))?;
                size = size.saturating_add(piece.len());
                match size {
                    size if size <= most => whole.extend_from_slice(&piece),
                    size if size <= bears => whole = Vec::new(),
                    _ => break,
                }
            }
            if size <= most { Ok(Bytes::from(whole)) } else { Err(too_large()) }
        };
        tokio::time::timeout(BODY_TIME, read).await.unwrap_or_else(|_| {
            let why = format!("the body did not come within {} seconds", BODY_TIME.as_secs());
            Err(ApiError::refused(StatusCode::REQUEST_TIMEOUT, "body_timeout", why))
        })
    }

    /// A body of JSON. Only what says so is taken: that keeps web pages, which may send plain text anywhere, outside.
    ///
    /// # Errors
    /// 415, and as [`App::body`].
    pub(super) async fn json(&self, headers: &HeaderMap, body: Body) -> std::result::Result<Bytes, ApiError> {
        let kind = headers.get(CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        let kind = kind.split(';').next().unwrap_or_default().trim();
        if !kind.eq_ignore_ascii_case("application/json") {
            let why = "the body must be JSON, with the header `Content-Type: application/json`";
            return Err(ApiError::refused(StatusCode::UNSUPPORTED_MEDIA_TYPE, "not_json", why));
        }
        self.body(headers, body).await
    }
}

/// Everything that is answered.
///
/// # Errors
/// [`Error::Config`] for an origin that is none.
pub(super) fn router(app: Arc<App>) -> Result<Router> {
    let mut router = Router::new()
        .route("/health", get(handlers::health))
        .route("/ready", get(handlers::ready))
        .route("/metrics", get(handlers::metrics))
        .route("/v1/models", get(handlers::models))
        .route("/v1/models/{*name}", get(handlers::model))
        .route("/v1/chat/completions", post(handlers::chat))
        .route("/v1/completions", post(handlers::completion))
        .route("/v1/load_lora_adapter", post(handlers::load))
        .route("/v1/unload_lora_adapter", post(handlers::unload))
        .route("/answer", post(handlers::answer))
        .fallback(handlers::nothing)
        .method_not_allowed_fallback(handlers::wrong_method)
        .layer(from_fn_with_state(app.clone(), around));
    if !app.options.cors.is_empty() {
        router = router.layer(cors(&app.options.cors)?);
    }
    Ok(router.with_state(app))
}

fn cors(origins: &[String]) -> Result<CorsLayer> {
    let allowed = if origins.iter().any(|o| o == "*") {
        AllowOrigin::any()
    } else {
        let parse = |o: &String| {
            let origin = (o.starts_with("http://") || o.starts_with("https://")).then(|| o.trim_end_matches('/'));
            let value = origin.and_then(|o| HeaderValue::from_str(o).ok());
            value.ok_or_else(|| Error::config("--cors", format!("`{o}` is no origin such as https://example.org")))
        };
        AllowOrigin::list(origins.iter().map(parse).collect::<Result<Vec<_>>>()?)
    };
    let methods = [Method::GET, Method::POST];
    Ok(CorsLayer::new().allow_origin(allowed).allow_methods(methods).allow_headers([AUTHORIZATION, CONTENT_TYPE]))
}

/// The path as it is counted: whoever asks for random ones must not make metrics grow.
fn endpoint(path: &str) -> &'static str {
    const ALL: [&str; 9] = [
        "/health",
        "/ready",
        "/metrics",
        "/v1/models",
        "/v1/chat/completions",
        "/v1/completions",
        "/v1/load_lora_adapter",
        "/v1/unload_lora_adapter",
        "/answer",
    ];
    match ALL.iter().find(|known| **known == path) {
        Some(known) => known,
        None if path.starts_with("/v1/models/") => "/v1/models",
        None => "other",
    }
}

/// What happens around every request: an id, the key, a line of log.
async fn around(State(app): State<Arc<App>>, mut request: Request, next: Next) -> Response {
    let endpoint = endpoint(request.uri().path());
    let id = app.ids.hex();
    let mut record = Record::new(id.clone(), endpoint, app.metrics.clone(), app.options.log_prompts);
    record.live = Some(app.live.subscribe());
    let record = Arc::new(record);
    let open = matches!(endpoint, "/health" | "/ready" | "/metrics");
    let allowed = if open { Ok(()) } else { app.options.keys.check(request.headers()) };
    request.extensions_mut().insert(record.clone());
    let mut response = match allowed {
        Ok(()) => next.run(request).await,
        Err(e) => e.into_response(),
    };
    record.status(response.status().as_u16(), response.extensions().get::<Code>().map(|c| c.0));
    if let Ok(id) = HeaderValue::from_str(&id) {
        response.headers_mut().insert(HeaderName::from_static("x-request-id"), id);
    }
    response
}

impl App {
    /// From now on requests for answers are refused.
    pub(super) fn close(&self) {
        self.stopping.store(true, Relaxed);
    }
}
