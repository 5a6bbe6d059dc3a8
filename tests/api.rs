//! The server as a program, over real sockets: answers are those of `generate`, whatever else is asked at the same time;
//! adapters come and go; what a client leaves behind is freed; a signal ends it in order.

mod common;

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStderr, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use serde_json::{Value, json};

use common::Place;

fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen3").join(path)
}

struct Server {
    child: Child,
    address: String,
    /// What it says after its first line.
    log: Option<BufReader<ChildStderr>>,
}

impl Server {
    fn start(place: &Place, more: &[&str]) -> Server {
        let mut command = place.program();
        command.args(["api", "run.yaml", "--port", "0"]).args(more).stderr(Stdio::piped());
        let mut child = command.spawn().unwrap();
        let mut log = BufReader::new(child.stderr.take().unwrap());
        let (mut line, mut said) = (String::new(), String::new());
        let address = loop {
            line.clear();
            assert!(log.read_line(&mut line).unwrap() > 0, "it did not start:\n{said}");
            said.push_str(&line);
            if let Some(rest) = line.strip_prefix("listening on http://") {
                break rest.split_whitespace().next().unwrap().to_string();
            }
        };
        Server { child, address, log: Some(log) }
    }

    fn ask(&self, path: &str, body: &Value) -> (u16, Value) {
        let agent: ureq::Agent = ureq::Agent::config_builder().http_status_as_error(false).build().into();
        let url = format!("http://{}{path}", self.address);
        let request = agent.post(&url).header("content-type", "application/json");
        let mut response = request.send(body.to_string()).unwrap();
        (response.status().as_u16(), serde_json::from_str(&response.body_mut().read_to_string().unwrap()).unwrap())
    }

    fn get(&self, path: &str) -> String {
        ureq::get(format!("http://{}{path}", self.address)).call().unwrap().body_mut().read_to_string().unwrap()
    }

    /// A figure of /metrics.
    fn metric(&self, name: &str) -> f64 {
        let text = self.get("/metrics");
        let line = text.lines().find_map(|l| l.strip_prefix(name)?.strip_prefix(' '));
        line.unwrap_or_else(|| panic!("{name} is missing:\n{text}")).parse().unwrap()
    }

    /// Requests of a kind that are over.
    fn over(&self, endpoint: &str) -> u64 {
        let text = self.get("/metrics");
        let of = |l: &&str| l.starts_with("qlora_requests_total{") && l.contains(&format!("\"{endpoint}\""));
        text.lines().filter(of).map(|l| l.rsplit(' ').next().unwrap().parse::<u64>().unwrap()).sum()
    }

    fn until(&self, what: &str, done: impl Fn(&Server) -> bool) {
        let began = Instant::now();
        while !done(self) {
            assert!(began.elapsed() < Duration::from_secs(60), "{what}: not after a minute");
            thread::yield_now();
        }
    }

    /// Sends SIGTERM; the exit code, and all that it logged.
    fn stop(mut self) -> (Option<i32>, String) {
        let killed = Command::new("kill").arg("-TERM").arg(self.child.id().to_string()).status().unwrap();
        assert!(killed.success());
        let mut log = String::new();
        self.log.take().unwrap().read_to_string(&mut log).unwrap();
        (self.child.wait().unwrap().code(), log)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Where a test has failed before it stopped it.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn chat(model: &str, prompt: &str) -> Value {
    json!({"model": model, "messages": [{"role": "user", "content": prompt}], "temperature": 0, "max_tokens": 12})
}

#[test]
fn answers_are_those_of_generate_whatever_else_is_asked() {
    let place = Place::new();
    let (a, b) = (golden("adapter").display().to_string(), golden("adapter_rslora").display().to_string());
    let server =
        Server::start(&place, &["--adapter", &format!("a={a}"), "--adapter", &format!("b={b}"), "--max-batch", "8"]);
    let models: Value = serde_json::from_str(&server.get("/v1/models")).unwrap();
    let names: Vec<&str> = models["data"].as_array().unwrap().iter().map(|m| m["id"].as_str().unwrap()).collect();
    assert_eq!(names, ["model", "a", "b"]);
    let prompts = ["What is it?", "Who?", "a long question about the people of the world and their houses"];
    let mut wanted = Vec::new();
    for (model, adapter) in [("model", None), ("a", Some(&a)), ("b", Some(&b))] {
        let mut args = vec![
            "generate".to_string(),
            "run.yaml".into(),
            "--greedy".into(),
            "--json".into(),
            "--max-new-tokens".into(),
            "12".into(),
        ];
        args.extend(prompts.iter().flat_map(|p| ["--prompt".to_string(), p.to_string()]));
        args.extend(adapter.map(|path| format!("adapter_name_or_path={path}")));
        let ran = place.run(&args.iter().map(String::as_str).collect::<Vec<_>>());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        for (line, prompt) in ran.stdout.lines().zip(prompts) {
            let line: Value = serde_json::from_str(line).unwrap();
            wanted.push((chat(model, prompt), line["answer"].clone(), line["tokens"].clone()));
        }
    }
    let check = |(body, answer, tokens): &(Value, Value, Value)| {
        let (status, whole) = server.ask("/v1/chat/completions", body);
        assert_eq!(status, 200, "{whole}");
        assert_eq!(
            (&whole["choices"][0]["message"]["content"], &whole["usage"]["completion_tokens"]),
            (answer, tokens),
            "{body}"
        );
    };
    wanted.iter().for_each(check);
    let answers: std::collections::BTreeSet<String> = wanted.iter().map(|w| w.1.to_string()).collect();
    assert!(answers.len() > 3, "the adapters change nothing: {answers:?}");
    thread::scope(|scope| {
        for client in 0..6 {
            let (wanted, check) = (&wanted, &check);
            scope.spawn(move || (0..wanted.len()).for_each(|i| check(&wanted[(i * 5 + client) % wanted.len()])));
        }
    });
    server.until("everything is given back", |s| {
        s.metric("qlora_sequences_running") == 0.0 && s.metric("qlora_cache_pages_used") == 0.0
    });
    let (code, log) = server.stop();
    assert_eq!(code, Some(0), "{log}");
    let lines: Vec<Value> = log
        .lines()
        .filter_map(|l| serde_json::from_str(l).ok())
        .filter(|v: &Value| v["endpoint"] == "/v1/chat/completions")
        .collect();
    assert_eq!(lines.len(), wanted.len() * 7);
    assert!(
        lines.iter().all(|l| l["status"] == 200 && l["tokens_out"].as_u64() > Some(0) && l["seconds"].is_number()),
        "{log}"
    );
    assert!(!log.contains("people of the world"), "a prompt stands in the log");
}

#[test]
fn adapters_come_and_go_and_clients_leave_nothing_behind() {
    let place = Place::new();
    std::fs::create_dir(place.path("saves")).unwrap();
    for (name, from) in [("one", "adapter"), ("two", "adapter_rslora")] {
        let to = place.path("saves").join(name);
        std::fs::create_dir(&to).unwrap();
        for file in std::fs::read_dir(golden(from)).unwrap() {
            let file = file.unwrap().path();
            std::fs::copy(&file, to.join(file.file_name().unwrap())).unwrap();
        }
    }
    let server = Server::start(&place, &["--adapters-dir", "saves", "--max-queue", "2", "--max-batch", "1"]);
    let load =
        |name: &str, path: &str| server.ask("/v1/load_lora_adapter", &json!({"lora_name": name, "lora_path": path}));
    assert_eq!(load("one", "one").0, 200);
    assert_eq!((load("two", "../model").0, load("two", "nothing").0, load("one", "two").0), (403, 400, 400));
    assert_eq!(server.ask("/v1/chat/completions", &chat("one", "What?")).0, 200);

    // A stream that is long, and whose client goes away after its first words.
    let long = |stream: bool| {
        json!({"model": "one", "prompt": "a", "max_tokens": 200, "stream": stream, "logit_bias": {}}).to_string()
    };
    let request = |stream: bool| {
        let body = long(stream);
        format!(
            "POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        )
    };
    for stream in [true, false] {
        let mut client = TcpStream::connect(&server.address).unwrap();
        client.write_all(request(stream).as_bytes()).unwrap();
        if stream {
            let mut head = [0; 15];
            client.read_exact(&mut head).unwrap();
            assert_eq!(&head, b"HTTP/1.1 200 OK");
        } else {
            server.until("it runs", |s| s.metric("qlora_requests_running") > 0.0 || s.over("/v1/completions") > 1);
        }
        drop(client);
        server.until("it is freed", |s| {
            s.metric("qlora_sequences_running") == 0.0 && s.metric("qlora_requests_running") == 0.0
        });
    }
    assert_eq!(server.ask("/v1/unload_lora_adapter", &json!({"lora_name": "one"})).0, 200);
    assert_eq!(server.ask("/v1/chat/completions", &chat("one", "What?")).0, 404);
    assert_eq!(load("one", "two").0, 200);
    assert_eq!(server.ask("/v1/chat/completions", &chat("one", "What?")).0, 200);
    // A head that never ends, and bytes that are no HTTP, trouble nobody.
    let mut slow = TcpStream::connect(&server.address).unwrap();
    slow.write_all(b"POST /v1/completions HTTP/1.1\r\nhost:").unwrap();
    let mut wrong = TcpStream::connect(&server.address).unwrap();
    wrong.write_all(b"\x16\x03\x01\xff\xff\r\n\r\n").unwrap();
    assert_eq!(server.get("/health"), "{\"status\":\"ok\"}");
    let (code, log) = server.stop();
    assert_eq!(code, Some(0), "{log}");
}
