//! `bench-serve` and `health` against a server that is a few lines here and answers as it is told.

mod common;

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::Duration;

use common::{Place, Ran, ran};
use serde_json::{Value, json};

/// What came in: path, authorization, body.
type Asked = Arc<Mutex<Vec<(String, String, Value)>>>;

/// Serves on a free port until the test ends; its address, and what it was asked.
fn server() -> (String, Asked) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    let asked = Asked::default();
    let seen = asked.clone();
    thread::spawn(move || {
        for stream in listener.incoming() {
            let seen = seen.clone();
            thread::spawn(move || connection(stream.unwrap(), &seen));
        }
    });
    (url, asked)
}

/// Answers requests on one connection, as long as there are any.
fn connection(stream: TcpStream, asked: &Asked) {
    let mut reader = BufReader::new(stream.try_clone().unwrap());
    let mut stream = stream;
    loop {
        let mut line = String::new();
        if reader.read_line(&mut line).unwrap_or(0) == 0 {
            return;
        }
        let path = line.split(' ').nth(1).unwrap().to_string();
        let mut headers = BTreeMap::new();
        loop {
            let mut line = String::new();
            reader.read_line(&mut line).unwrap();
            let Some((name, value)) = line.trim().split_once(": ") else { break };
            headers.insert(name.to_ascii_lowercase(), value.to_string());
        }
        let mut body = vec![0; headers.get("content-length").map_or(0, |n| n.parse().unwrap())];
        reader.read_exact(&mut body).unwrap();
        let body: Value = serde_json::from_slice(&body).unwrap_or_default();
        let key = headers.get("authorization").cloned().unwrap_or_default();
        let (status, text) = answer(&path, &body);
        asked.lock().unwrap().push((path, key, body));
        let head = format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n", text.len());
        stream.write_all(head.as_bytes()).unwrap();
        // In two parts with a pause between, as tokens come.
        let half = text.find("data: [DONE]").unwrap_or(0);
        stream.write_all(&text.as_bytes()[..half]).unwrap();
        thread::sleep(Duration::from_millis(5));
        stream.write_all(&text.as_bytes()[half..]).unwrap();
    }
}

fn answer(path: &str, body: &Value) -> (&'static str, String) {
    match path {
        "/v1/models" => ("200 OK", json!({"data": [{"id": "base"}, {"id": "other"}]}).to_string()),
        "/health" => ("200 OK", "ok".into()),
        "/ready" => ("503 Service Unavailable", "stopping".into()),
        _ if body["model"] == "full" => {
            ("429 Too Many Requests", json!({"error": {"message": "the queue is full"}}).to_string())
        }
        _ => {
            let pieces = ["a", "b", "c"].map(|t| json!({"choices": [{"delta": {"content": t}}]}));
            let usage = json!({"choices": [], "usage": {"prompt_tokens": 11, "completion_tokens": 3}});
            let events = pieces.iter().chain([&usage]).map(|e| format!("data: {e}\n\n"));
            ("200 OK", events.chain(["data: [DONE]\n\n".to_string()]).collect())
        }
    }
}

fn bench(args: &[&str]) -> Ran {
    ran(Place::new().program().env_remove("API_KEY").args(["bench-serve"]).args(args).output().unwrap())
}

#[test]
fn a_server_is_measured() {
    let (url, asked) = server();
    let options = ["--requests", "40", "--concurrency", "4", "--max-tokens", "3", "--prompt-tokens", "9", "--json"];
    let more = [
        "--model",
        "base",
        "--model",
        "full",
        "--probe",
        "/health",
        "--api-key",
        "sesame",
        "--extra",
        "{\"top_k\": 3}",
    ];
    let ran = bench(&[&[url.as_str()][..], &options, &more].concat());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let told: Value = serde_json::from_str(&ran.stdout).unwrap();
    assert_eq!((&told["requests"], &told["answered"]), (&json!(40), &json!(20)), "{told}");
    assert_eq!(told["failed"], json!({"status 429": {"count": 20, "first": "the queue is full"}}));
    assert_eq!((&told["prompt_tokens"], &told["output_tokens"]), (&json!(220), &json!(60)));
    assert_eq!(told["tokens_are_pieces"], false);
    assert!(told["times"]["time to first token ms"]["p50"].as_f64().unwrap() > 0.0, "{told}");
    assert!(told["times"]["/health ms"]["p99"].as_f64().unwrap() >= 5.0, "{told}");

    let asked = asked.lock().unwrap();
    let chats: Vec<_> = asked.iter().filter(|(path, ..)| path == "/v1/chat/completions").collect();
    assert_eq!(chats.len(), 40);
    assert!(chats.iter().all(|(_, key, _)| key == "Bearer sesame"));
    let body = &chats[0].2;
    assert_eq!((&body["max_tokens"], &body["stream"], &body["temperature"]), (&json!(3), &json!(true), &json!(0.0)));
    assert!(chats.iter().all(|(_, _, body)| body["top_k"] == 3));
    let mut prompts: Vec<&str> = chats.iter().map(|c| c.2["messages"][0]["content"].as_str().unwrap()).collect();
    assert!(prompts.iter().all(|p| p.split(' ').count() == 9), "{prompts:?}");
    prompts.sort_unstable();
    prompts.dedup();
    assert_eq!(prompts.len(), 40, "every prompt is another");
}

#[test]
fn prompts_from_a_file_at_a_rate() {
    let (url, asked) = server();
    let place = Place::new();
    place.write("asked.jsonl", "{\"prompt\": \"one\", \"system\": \"be brief\"}\n{\"messages\": [{\"role\": \"user\", \"content\": \"two\"}]}\n");
    let args =
        ["bench-serve", &format!("{url}/v1/"), "--requests", "6", "--rate", "200", "--prompt-file", "asked.jsonl"];
    let ran = ran(place.program().env("API_KEY", "of the environment").args(args).output().unwrap());
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert!(ran.stdout.contains("6 requests, 200 a second, of base\n"), "{}", ran.stdout);
    assert!(ran.stdout.contains("6 of 6 answered") && ran.stdout.contains("time to first token"), "{}", ran.stdout);
    let asked = asked.lock().unwrap();
    let chats = asked.iter().filter(|(path, ..)| path == "/v1/chat/completions");
    let mut messages: Vec<String> = chats.map(|(_, _, body)| body["messages"].to_string()).collect();
    messages.sort();
    let of = |turns: Value| vec![turns.to_string(); 3];
    let user = |text: &str| json!({"role": "user", "content": text});
    let system = json!({"role": "system", "content": "be brief"});
    assert_eq!(messages, [of(json!([system, user("one")])), of(json!([user("two")]))].concat());
    assert!(asked.iter().all(|(_, key, _)| key == "Bearer of the environment"));
}

#[test]
fn what_cannot_work_is_one_line() {
    let (url, _) = server();
    let ran = bench(&[&url, "--model", "full", "--requests", "2"]);
    assert_eq!(ran.code, Some(1));
    assert!(ran.stderr.contains("every request failed: status 429: 2 (the queue is full)"), "{}", ran.stderr);
    // Nothing listens there: the port was free a moment ago.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let bad: [&[&str]; 6] = [
        &[&url, "--extra", "[1]"],
        &[&format!("http://{free}")],
        &[&url, "--rate", "NaN"],
        &[&url, "--rate", "-1"],
        &[&url, "--concurrency", "0"],
        &[&url, "--prompt-file", "none.txt"],
    ];
    for args in bad {
        let ran = bench(args);
        assert_eq!(ran.code, Some(1), "{args:?}");
        assert!(ran.stderr.starts_with("error: ") && ran.stderr.lines().count() == 1, "{args:?}: {}", ran.stderr);
        assert!(ran.stdout.is_empty(), "{}", ran.stdout);
    }
}

#[test]
fn health_is_an_exit_code() {
    let (url, _) = server();
    let place = Place::new();
    let well = place.run(&["health", &format!("{url}/health")]);
    assert_eq!((well.code, well.stdout.as_str()), (Some(0), "ok\n"));
    let stopping = place.run(&["health", &format!("{url}/ready")]);
    assert_eq!(stopping.code, Some(1));
    assert!(stopping.stderr.contains("answers with status 503"), "{}", stopping.stderr);
}
