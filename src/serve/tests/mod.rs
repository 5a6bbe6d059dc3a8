//! The server without a model: a double says what each test wants, and requests go straight to the router.

mod answers;
mod bounds;

use std::path::Path;
use std::sync::Arc;

use axum::Router;
use axum::body::Body;
use axum::http::{Request, StatusCode};
use axum::response::Response;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};

use crate::config::{self, Format};
use crate::data::tokenizer::Tokenizer;
use crate::serve::adapters::Registry;
use crate::serve::app::{App, router};
use crate::serve::double::{Double, Script};
use crate::serve::engine::Engine;
use crate::serve::options::Options;
use crate::serve::voice::Voices;

struct Server {
    double: Arc<Double>,
    app: Arc<App>,
    router: Router,
    tokenizer: Tokenizer,
}

fn base() -> std::path::PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base")
}

impl Server {
    fn new(options: Options, script: &str) -> Server {
        let base = base();
        let text = format!("model_name_or_path: {}\ntemplate: qwen3_nothink\nmax_new_tokens: 64\n", base.display());
        let config = config::from_str(&text, Format::Yaml, &[]).unwrap();
        let tokenizer = Tokenizer::load(&base, false).unwrap();
        let double = Arc::new(Double::new(Script::Say(tokenizer.encode(script).unwrap())));
        let registry = Registry::new("base", Voices::new(&config, &base), options.adapters_dir.as_deref()).unwrap();
        registry.add("medical", Path::new("no/such/folder"), 3).unwrap();
        let app = App::new(options, Engine::Double(double.clone()), registry, config.generate, (512, 1 << 16));
        let app = Arc::new(app);
        Server { double, router: router(app.clone()).unwrap(), app, tokenizer }
    }

    fn script(&self, script: Script) {
        *self.double.script.lock().unwrap() = script;
    }

    fn ids(&self, text: &str) -> Vec<u32> {
        self.tokenizer.encode(text).unwrap()
    }

    async fn send(&self, request: Request<Body>) -> Response {
        TowerToHyperService::new(self.router.clone()).call(request).await.unwrap()
    }

    async fn post(&self, path: &str, body: Value) -> Response {
        self.send(json_request(path, body.to_string())).await
    }

    /// The status and the body of an answer.
    async fn told(&self, path: &str, body: Value) -> (u16, Value) {
        read(self.post(path, body).await).await
    }

    async fn get(&self, path: &str) -> (u16, Value) {
        read(self.send(Request::get(path).body(Body::empty()).unwrap()).await).await
    }

    /// The events of a stream, and whether it was brought to its end.
    async fn events(&self, path: &str, body: Value) -> (Vec<Value>, bool) {
        let response = self.post(path, body).await;
        assert_eq!(
            (response.status(), &response.headers()["content-type"]),
            (StatusCode::OK, &"text/event-stream".parse().unwrap())
        );
        let text = text_of(response).await;
        let mut lines: Vec<&str> =
            text.split("\n\n").filter(|l| !l.is_empty()).map(|l| l.strip_prefix("data: ").unwrap()).collect();
        let done = lines.last() == Some(&"[DONE]");
        if done {
            lines.pop();
        }
        (lines.iter().map(|l| serde_json::from_str(l).unwrap()).collect(), done)
    }
}

fn json_request(path: &str, body: impl Into<Body>) -> Request<Body> {
    Request::post(path).header("content-type", "application/json").body(body.into()).unwrap()
}

async fn text_of(response: Response) -> String {
    let bytes = axum::body::to_bytes(response.into_body(), 1 << 20).await.unwrap();
    String::from_utf8(bytes.to_vec()).unwrap()
}

async fn read(response: Response) -> (u16, Value) {
    let status = response.status().as_u16();
    assert!(response.headers().contains_key("x-request-id"));
    let text = text_of(response).await;
    (status, serde_json::from_str(&text).unwrap_or_else(|_| panic!("{text}")))
}

fn chat(extra: Value) -> Value {
    let mut body = json!({"model": "medical", "messages": [{"role": "user", "content": "What is it?"}]});
    body.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
    body
}

/// Runs a test.
fn run(test: impl Future<Output = ()>) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(test);
}

const CHAT: &str = "/v1/chat/completions";
