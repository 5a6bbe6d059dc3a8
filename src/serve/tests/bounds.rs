//! What is refused, what ends early, and who may do what.

use std::time::Duration;

use axum::body::{Body, Bytes};
use axum::http::Request;
use hyper::service::Service;
use hyper_util::service::TowerToHyperService;
use serde_json::{Value, json};
use tokio_stream::StreamExt;

use super::{CHAT, Server, chat, json_request, read, run};
use crate::serve::double::Script;
use crate::serve::options::Options;

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
