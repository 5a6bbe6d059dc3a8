//! The server without a model: a double says what each test wants, and requests go straight to the router.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::http::{Request, StatusCode};
use axum::response::Response;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::adapters::Registry;
use super::app::{App, Engine, router};
use super::double::{Double, Script};
use super::options::Options;
use super::voice::Voices;
use crate::config::{self, Format};
use crate::data::tokenizer::Tokenizer;

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

#[test]
fn a_chat_is_answered_whole_and_streamed_alike() {
    run(async {
        let s = Server::new(Options::default(), "the people of the world");
        let (status, whole) = s.told(CHAT, chat(json!({"n": 2, "seed": 5}))).await;
        assert_eq!((status, &whole["object"], &whole["model"]), (200, &json!("chat.completion"), &json!("medical")));
        for i in 0..2 {
            let choice = &whole["choices"][i];
            assert_eq!((&choice["index"], &choice["finish_reason"]), (&json!(i), &json!("stop")));
            assert_eq!(choice["message"], json!({"role": "assistant", "content": "the people of the world"}));
        }
        let tokens = s.ids("the people of the world").len();
        let asked = s.double.asked.lock().unwrap().clone();
        assert_eq!(
            (asked[0].sampling.seed, asked[1].sampling.seed, asked[0].adapter, asked[0].max_new_tokens),
            (5, 6, Some(3), 64)
        );
        let prompt = asked[0].prompt.len();
        assert_eq!(
            whole["usage"],
            json!({
                "prompt_tokens": prompt, "completion_tokens": 2 * tokens, "total_tokens": prompt + 2 * tokens,
                "prompt_tokens_details": {"cached_tokens": 2},
            })
        );

        let (events, done) =
            s.events(CHAT, chat(json!({"stream": true, "stream_options": {"include_usage": true}}))).await;
        assert!(done);
        assert_eq!(events[0]["choices"][0]["delta"], json!({"role": "assistant", "content": ""}));
        let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!(text, "the people of the world");
        let [.., finish, usage] = events.as_slice() else { panic!("{events:?}") };
        assert_eq!((&finish["choices"][0]["finish_reason"], &finish["usage"]), (&json!("stop"), &Value::Null));
        assert_eq!((&usage["choices"], &usage["usage"]["completion_tokens"]), (&json!([]), &json!(tokens)));
        let ids: Vec<&Value> = events.iter().map(|e| &e["id"]).collect();
        assert!(ids.iter().all(|id| *id == ids[0] && id.as_str().unwrap().starts_with("chatcmpl-")));
    });
}

#[test]
fn stop_strings_end_an_answer_and_its_sequence() {
    run(async {
        let s = Server::new(Options::default(), "");
        s.script(Script::Wait(s.ids("the people of the world are in the house")));
        let (_, whole) = s.told(CHAT, chat(json!({"stop": ["world", "xyz"]}))).await;
        assert_eq!(whole["choices"][0]["message"]["content"], "the people of the ");
        assert_eq!((&whole["choices"][0]["finish_reason"], s.double.wanted()), (&json!("stop"), 0));
        let (events, done) = s.events(CHAT, chat(json!({"stop": "world", "stream": true}))).await;
        let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert_eq!((text.as_str(), done, s.double.wanted()), ("the people of the ", true, 0));
        // Cut at the length asked for.
        s.script(Script::Say(s.ids("the people of the world")));
        let (_, whole) = s.told(CHAT, chat(json!({"max_tokens": 2}))).await;
        assert_eq!(
            (&whole["choices"][0]["finish_reason"], &whole["usage"]["completion_tokens"]),
            (&json!("length"), &json!(2))
        );
    });
}

#[test]
fn calls_of_tools_are_taken_apart() {
    run(async {
        let call = "<tool_call>\n{\"name\": \"f\", \"arguments\": {\"x\": 1}}\n</tool_call>";
        let s = Server::new(Options::default(), &format!("I look. {call}"));
        let tool = json!({"type": "function", "function": {"name": "f", "parameters": {"properties": {}}}});
        let (_, whole) = s.told(CHAT, chat(json!({"tools": [tool]}))).await;
        let choice = &whole["choices"][0];
        assert_eq!(
            (&choice["finish_reason"], &choice["message"]["content"]),
            (&json!("tool_calls"), &json!("I look.")),
            "{whole}"
        );
        let made = &choice["message"]["tool_calls"][0];
        assert_eq!(
            (&made["type"], &made["function"]),
            (&json!("function"), &json!({"name": "f", "arguments": "{\"x\": 1}"}))
        );
        assert!(made["id"].as_str().unwrap().starts_with("call_"));
        let (events, done) = s.events(CHAT, chat(json!({"tools": [tool], "stream": true}))).await;
        let text: String = events.iter().filter_map(|e| e["choices"][0]["delta"]["content"].as_str()).collect();
        assert!(done && text.trim() == "I look.", "{text:?}");
        let calls: Vec<&Value> =
            events.iter().map(|e| &e["choices"][0]["delta"]["tool_calls"]).filter(|c| !c.is_null()).collect();
        assert_eq!((calls.len(), &calls[0][0]["index"], &calls[0][0]["function"]["name"]), (1, &json!(0), &json!("f")));
        assert_eq!(events.last().unwrap()["choices"][0]["finish_reason"], "tool_calls");
        // Nobody asked for tools: it is text.
        let (_, whole) = s.told(CHAT, chat(json!({}))).await;
        assert!(whole["choices"][0]["message"]["content"].as_str().unwrap().contains("<tool_call>"));
        assert_eq!(whole["choices"][0]["finish_reason"], "stop");
    });
}

#[test]
fn completions_of_texts_and_of_ids() {
    run(async {
        let s = Server::new(Options::default(), "the world");
        let ids = s.ids("the world");
        let body = json!({"model": "base", "prompt": ["a house", "b"], "n": 2, "logprobs": 2, "temperature": 0});
        let (status, whole) = s.told("/v1/completions", body.clone()).await;
        assert_eq!(
            (status, whole["choices"].as_array().unwrap().len(), &whole["object"]),
            (200, 4, &json!("text_completion"))
        );
        let choice = &whole["choices"][3];
        assert_eq!((&choice["index"], &choice["text"]), (&json!(3), &json!("the world")));
        let logprobs = &choice["logprobs"];
        assert_eq!(logprobs["token_logprobs"], json!(vec![-0.5; ids.len()]));
        let tokens: String = logprobs["tokens"].as_array().unwrap().iter().map(|t| t.as_str().unwrap()).collect();
        assert_eq!((tokens.as_str(), &logprobs["text_offset"][0]), ("the world", &json!(0)));
        assert_eq!(logprobs["top_logprobs"][0].as_object().unwrap().len(), 2);
        let asked = s.double.asked.lock().unwrap().clone();
        assert!(asked.iter().all(|r| r.adapter.is_none() && r.sampling.is_greedy() && r.logprobs == Some(2)));
        assert_eq!((&asked[0].prompt, &asked[2].prompt), (&s.ids("a house"), &s.ids("b")));

        let (events, done) = s
            .events("/v1/completions", json!({"model": "base", "prompt": [5, 6], "stream": true, "logprobs": 0}))
            .await;
        let text: String = events.iter().map(|e| e["choices"][0]["text"].as_str().unwrap()).collect();
        assert_eq!((text.as_str(), done), ("the world", true));
        let scored: usize =
            events.iter().map(|e| e["choices"][0]["logprobs"]["tokens"].as_array().unwrap().len()).sum();
        assert_eq!(scored, ids.len());
        assert_eq!(s.double.asked.lock().unwrap().last().unwrap().prompt, [5, 6]);
        let (status, e) = s.told("/v1/completions", json!({"model": "base", "prompt": [5, 1 << 16]})).await;
        assert_eq!((status, &e["error"]["param"]), (400, &json!("prompt")));
    });
}

#[test]
fn chat_logprobs_are_complete() {
    run(async {
        let s = Server::new(Options::default(), "the people of the world");
        let n = s.ids("the people of the world").len();
        let wanted = json!({"logprobs": true, "top_logprobs": 1});
        let (_, whole) = s.told(CHAT, chat(wanted.clone())).await;
        let content = whole["choices"][0]["logprobs"]["content"].as_array().unwrap();
        let text: String = content.iter().map(|t| t["token"].as_str().unwrap()).collect();
        assert_eq!((content.len(), text.as_str()), (n, "the people of the world"));
        assert_eq!(content[0]["top_logprobs"].as_array().unwrap().len(), 1);
        let mut body = chat(wanted);
        body["stream"] = json!(true);
        let (events, _) = s.events(CHAT, body).await;
        let lists = events.iter().filter_map(|e| e["choices"][0]["logprobs"]["content"].as_array());
        assert_eq!(lists.map(Vec::len).sum::<usize>(), n);
    });
}

#[test]
fn what_goes_wrong_has_its_status() {
    run(async {
        let s = Server::new(Options { max_body: 4096, ..Options::default() }, "x");
        for (path, body, status, code) in [
            (CHAT, chat(json!({"model": "nobody"})), 404, json!("model_not_found")),
            (CHAT, chat(json!({"temperature": -1})), 400, json!(null)),
            (CHAT, chat(json!({"max_tokens": 600})), 400, json!("context_length_exceeded")),
            (
                CHAT,
                chat(json!({"messages": [{"role": "user", "content": "the world ".repeat(300)}]})),
                400,
                json!("context_length_exceeded"),
            ),
            (CHAT, chat(json!({"user": "x".repeat(5000)})), 413, json!("body_too_large")),
            ("/v1/load_lora_adapter", json!({"lora_name": "x", "lora_path": "x"}), 403, json!("loading_is_off")),
            ("/v1/embeddings", json!({}), 404, json!("not_found")),
            ("/health", json!({}), 405, json!("method_not_allowed")),
            ("/answer", json!({}), 400, json!(null)),
        ] {
            let (got, e) = s.told(path, body).await;
            assert_eq!((got, &e["error"]["code"]), (status, &code), "{path}: {e}");
            assert!(e["error"]["message"].as_str().unwrap().len() > 10 && e["error"]["type"].is_string());
        }
        let plain = Request::post(CHAT)
            .header("content-type", "text/plain")
            .body(Body::from(chat(json!({})).to_string()))
            .unwrap();
        assert_eq!(read(s.send(plain).await).await.0, 415);
        for bad in [&b"\xff\xfe{}"[..], b"{", &b"[".repeat(4000)] {
            let (status, e) = read(s.send(json_request(CHAT, bad.to_vec())).await).await;
            assert_eq!((status, &e["error"]["type"]), (400, &json!("invalid_request_error")), "{e}");
        }
        // A body of unknown length is counted as it comes.
        let endless = tokio_stream::iter((0..10).map(|_| Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 1000]))));
        assert_eq!(read(s.send(json_request(CHAT, Body::from_stream(endless))).await).await.0, 413);
        s.script(Script::Full);
        let full = s.post(CHAT, chat(json!({}))).await;
        assert_eq!((full.status().as_u16(), &full.headers()["retry-after"]), (429, &"1".parse().unwrap()));
        s.script(Script::Fail(s.ids("the people")));
        let (status, e) = s.told(CHAT, chat(json!({}))).await;
        assert_eq!((status, &e["error"]["type"]), (500, &json!("server_error")));
        let (events, done) = s.events(CHAT, chat(json!({"stream": true}))).await;
        assert!(
            !done && events.last().unwrap()["error"]["message"].as_str().unwrap().contains("not finite"),
            "{events:?}"
        );
        assert_eq!(s.get("/health").await.0, 200);
    });
}

#[test]
fn a_request_ends_in_time_and_with_its_client() {
    run(async {
        let s = Server::new(Options { request_timeout: Duration::from_millis(50), ..Options::default() }, "");
        s.script(Script::Wait(s.ids("the people")));
        let (status, e) = s.told(CHAT, chat(json!({}))).await;
        assert_eq!((status, &e["error"]["code"], s.double.wanted()), (504, &json!("timeout"), 0));
        let (events, done) = s.events(CHAT, chat(json!({"stream": true}))).await;
        assert!(!done && events.last().unwrap()["error"]["code"] == "timeout" && s.double.wanted() == 0);

        let s = Server::new(Options::default(), "");
        s.script(Script::Wait(s.ids("the people")));
        let response = s.post(CHAT, chat(json!({"stream": true, "n": 3}))).await;
        let mut body = response.into_body().into_data_stream();
        assert!(body.next().await.unwrap().is_ok());
        assert_eq!(s.double.wanted(), 3);
        drop(body);
        assert_eq!(s.double.wanted(), 0);
        // Not streamed: the handler itself is dropped.
        let asked = s.double.asked.lock().unwrap().len();
        let mut waiting = Box::pin(s.post(CHAT, chat(json!({}))));
        while s.double.asked.lock().unwrap().len() == asked {
            let ready = tokio::time::timeout(Duration::from_millis(1), &mut waiting).await;
            assert!(ready.is_err());
        }
        assert_eq!(s.double.wanted(), 1);
        drop(waiting);
        assert_eq!(s.double.wanted(), 0);
        let text = s.app.metrics.text(&Default::default(), 0);
        assert!(text.contains(r#"qlora_requests_cancelled_total{model="medical"} 2"#), "{text}");
        assert!(text.contains("qlora_requests_running 0"), "{text}");
    });
}

#[test]
fn keys_open_what_is_locked() {
    run(async {
        let mut options = Options::default();
        options.keys.add("sk-1");
        let s = Server::new(options, "the world");
        let ask = |key: Option<&str>| {
            let mut request = json_request(CHAT, chat(json!({})).to_string());
            if let Some(key) = key {
                request.headers_mut().insert("authorization", format!("Bearer {key}").parse().unwrap());
            }
            s.send(request)
        };
        assert_eq!(ask(Some("sk-1")).await.status(), 200);
        for wrong in [None, Some("sk-2"), Some("")] {
            let (status, e) = read(ask(wrong).await).await;
            assert_eq!((status, &e["error"]["type"]), (401, &json!("authentication_error")));
        }
        assert_eq!((s.get("/v1/models").await.0, s.get("/health").await.0, s.get("/nothing").await.0), (401, 200, 401));
        assert_eq!(s.send(Request::get("/metrics").body(Body::empty()).unwrap()).await.status(), 200);
    });
}

#[test]
fn models_come_and_go() {
    run(async {
        let dir = tempfile::tempdir().unwrap();
        std::fs::create_dir_all(dir.path().join("new/checkpoint-5")).unwrap();
        std::fs::create_dir_all(dir.path().join("empty")).unwrap();
        std::fs::write(dir.path().join("new/checkpoint-5/adapter_config.json"), "{}").unwrap();
        let s = Server::new(Options { adapters_dir: Some(dir.path().into()), ..Options::default() }, "the world");
        let load =
            |name: &str, path: &str| s.told("/v1/load_lora_adapter", json!({"lora_name": name, "lora_path": path}));
        assert_eq!(load("a/new", "new/checkpoint-5").await.0, 200);
        let (_, models) = s.get("/v1/models").await;
        let shown: Vec<(&str, &Value)> =
            models["data"].as_array().unwrap().iter().map(|m| (m["id"].as_str().unwrap(), &m["parent"])).collect();
        assert_eq!(shown, [("base", &json!(null)), ("medical", &json!("base")), ("a/new", &json!("base"))]);
        assert_eq!((s.get("/v1/models/a/new").await.0, s.get("/v1/models/b").await.0), (200, 404));
        assert_eq!(s.told(CHAT, chat(json!({"model": "a/new"}))).await.0, 200);
        assert_eq!(s.double.asked.lock().unwrap().last().unwrap().adapter, Some(7));
        for (name, path, status) in [
            ("a/new", "new/checkpoint-5", 400),
            ("b", "../x", 403),
            ("b", "/etc", 403),
            ("b", "empty", 400),
            ("b c", "new", 400),
        ] {
            let (got, e) = load(name, path).await;
            assert_eq!(got, status, "{name} {path}: {e}");
            assert!(!e.to_string().contains(dir.path().to_str().unwrap()), "{e}");
        }
        let unload = |name: &str| s.told("/v1/unload_lora_adapter", json!({"lora_name": name}));
        assert_eq!((unload("a/new").await.0, unload("a/new").await.0, unload("base").await.0), (200, 404, 400));
        assert_eq!(*s.double.unloaded.lock().unwrap(), [7]);
        assert_eq!(s.told(CHAT, chat(json!({"model": "a/new"}))).await.0, 404);
    });
}

#[test]
fn questions_of_the_tutorial_are_answered() {
    run(async {
        let s = Server::new(Options::default(), "the world");
        let by_query = Request::post("/answer?question=What+is+it%3F").body(Body::empty()).unwrap();
        assert_eq!(read(s.send(by_query).await).await, (200, json!({"answer": "the world"})));
        assert_eq!(s.told("/answer", json!({"question": "What is it?"})).await, (200, json!({"answer": "the world"})));
        let asked = s.double.asked.lock().unwrap().clone();
        assert_eq!(asked[0].prompt, asked[1].prompt);
        assert_eq!((asked[0].adapter, asked[0].sampling.do_sample), (Some(3), true));
    });
}

#[test]
fn pages_of_other_origins_may_ask_only_if_allowed() {
    run(async {
        let ask = |s: &Server| {
            let request = Request::get("/v1/models").header("origin", "https://a.example").body(Body::empty()).unwrap();
            let sent = TowerToHyperService::new(s.router.clone()).call(request);
            async { sent.await.unwrap().headers().get("access-control-allow-origin").cloned() }
        };
        assert_eq!(ask(&Server::new(Options::default(), "x")).await, None);
        let cors = |origin: &str| Options { cors: vec![origin.into()], ..Options::default() };
        assert_eq!(ask(&Server::new(cors("https://a.example"), "x")).await.unwrap(), "https://a.example");
        assert_eq!(ask(&Server::new(cors("https://b.example"), "x")).await, None);
        assert_eq!(ask(&Server::new(cors("*"), "x")).await.unwrap(), "*");
    });
}

#[test]
fn a_stop_finishes_what_runs_and_refuses_the_rest() {
    run(async {
        let s = Server::new(Options::default(), "");
        assert_eq!(s.get("/ready").await.0, 200);
        s.app.close();
        let (status, e) = s.told(CHAT, chat(json!({}))).await;
        assert_eq!((status, &e["error"]["code"]), (503, &json!("stopping")));
        assert_eq!((s.get("/ready").await.0, s.get("/health").await.0), (503, 200));
    });
}
