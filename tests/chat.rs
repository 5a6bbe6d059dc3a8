//! `chat` and `generate` as a script meets them, on the tiny base: answers on standard output and nothing else, the same
//! whatever way they are asked for, and one line for what is wrong.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::{Place, Ran, ran};
use serde_json::Value;

/// Greedy, short, on the tiny base.
const BASE: &str = "template: qwen3_nothink\ndo_sample: false\nmax_new_tokens: 16\nuse_cpu: true\ncutoff_len: 512\n";

/// The tiny base, whose answers are words in English and Chinese.
fn place() -> Place {
    let place = Place::new();
    let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
    place.write("tiny.yaml", format!("model_name_or_path: {}\n{BASE}", base.display()));
    place
}

/// Runs `args` with `input` piped in.
fn piped(place: &Place, args: &[&str], input: &str) -> Ran {
    let mut child = place.program().args(args).stdin(Stdio::piped()).spawn().unwrap();
    // A program that refuses its arguments does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    ran(child.wait_with_output().unwrap())
}

fn done(ran: Ran) -> Ran {
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    ran
}

/// Exit code 1, and one line of error with all of `words`.
fn refused(ran: &Ran, words: &[&str]) {
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    let errors: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("error")).collect();
    assert!(errors.len() == 1 && !ran.stderr.contains("panicked"), "{}", ran.stderr);
    for word in words {
        assert!(errors[0].contains(word), "`{word}` is not in: {}", errors[0]);
    }
}

/// The objects that `generate --json` prints for the lines of `file`.
fn generated(place: &Place, args: &[&str], file: &str) -> Vec<Value> {
    place.write("asked.jsonl", file);
    let ran = done(place.run(&[&["generate", "--json", "--prompt-file", "asked.jsonl"], args].concat()));
    ran.stdout.lines().map(|l| serde_json::from_str(l).unwrap()).collect()
}

fn answers(lines: &[Value]) -> Vec<&str> {
    lines.iter().map(|l| l["answer"].as_str().unwrap()).collect()
}

fn turn(role: &str, content: &str) -> Value {
    serde_json::json!({"role": role, "content": content})
}

fn asked(messages: &[Value]) -> String {
    serde_json::json!({ "messages": messages }).to_string()
}

const FIRST: &str = "What does HbA1c measure?";
const SECOND: &str = "多久洗一次牙？";

#[test]
fn a_script_talks_and_gets_what_generate_gives() {
    let place = place();
    let lines =
        format!("{FIRST}\n\n{SECOND}\n/adapters\nclear\n{SECOND}\n/system Be brief.\n{FIRST}\nexit\nnever asked\n");
    let ran = done(piped(&place, &["chat", "tiny.yaml"], &lines));
    assert!(!ran.stdout.contains("User") && !ran.stdout.contains("Assistant"), "{}", ran.stdout);
    assert_eq!(ran.stderr.lines().filter(|l| l.starts_with('[') && l.contains(" token")).count(), 4, "{}", ran.stderr);
    assert!(ran.stderr.contains("* base"), "{}", ran.stderr);

    // Each answer alone, as a conversation that is given whole.
    let mut said: Vec<Value> = Vec::new();
    let mut want = Vec::new();
    for (system, question) in [("", FIRST), ("", SECOND), ("clear", SECOND), ("Be brief.", FIRST)] {
        match system {
            "" => {}
            "clear" => said.clear(),
            text => said.insert(0, turn("system", text)),
        }
        said.push(turn("user", question));
        let lines = generated(&place, &["tiny.yaml"], &asked(&said));
        want.push(answers(&lines)[0].to_string());
        said.push(turn("assistant", want.last().unwrap()));
    }
    assert_eq!(ran.stdout, want.iter().map(|a| format!("{a}\n")).collect::<String>());
    assert!(want.iter().all(|a| !a.is_empty()) && want[1] != want[2], "the conversation makes no difference: {want:?}");
}

#[test]
fn adapters_answer_in_turn() {
    let place = place();
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen3");
    let [one, two] = ["adapter", "adapter_rslora"].map(|n| golden.join(n).display().to_string());
    place.write("tiny.yaml", format!("model_name_or_path: model\nadapter_name_or_path: {one}\n{BASE}"));
    let lines = format!(
        "{FIRST}\nclear\n/adapter adapter_rslora\n{FIRST}\nclear\n/adapter base\n{FIRST}\nclear\n/adapter adapter\n{FIRST}\n"
    );
    let ran = done(piped(&place, &["chat", "tiny.yaml", "--adapter", &two], &lines));
    let alone = |adapter: &[&str]| {
        let ran = done(place.run(&[&["generate", "tiny.yaml", "--prompt", FIRST, "--json"], adapter].concat()));
        serde_json::from_str::<Value>(&ran.stdout).unwrap()["answer"].as_str().unwrap().to_string()
    };
    let (one, two) = (alone(&[]), alone(&["--adapter", &two]));
    let base = alone(&["adapter_name_or_path=null"]);
    assert!(one != two && one != base, "the adapters make no difference: {one:?}");
    assert_eq!(ran.stdout, format!("{one}\n{two}\n{base}\n{one}\n"));

    let ran = piped(&place, &["chat", "tiny.yaml"], "/adapter law\n");
    refused(&ran, &["/adapter", "`law`", "adapter, base"]);
    refused(&piped(&place, &["chat", "tiny.yaml", "--adapter"], ""), &["--adapter"]);
    refused(&piped(&place, &["chat", "tiny.yaml", "--adapter", "no/such"], ""), &["no/such"]);
}

#[test]
fn a_full_context_forgets_and_a_long_message_is_refused() {
    let place = place();
    let args = ["chat", "tiny.yaml", "cutoff_len=48", "max_new_tokens=8"];
    let ran = done(piped(&place, &args, &format!("{FIRST}\n{SECOND}\n{FIRST}\n{SECOND}\n")));
    assert!(ran.stderr.contains("the context is full"), "{}", ran.stderr);
    assert_eq!(ran.stderr.lines().filter(|l| l.starts_with('[')).count(), 4, "{}", ran.stderr);
    let ran = piped(&place, &args, &format!("{}\n{FIRST}\n", "one two three four ".repeat(30)));
    refused(&ran, &["message", "48 are allowed", "context of 56", "cutoff_len"]);
    assert_eq!(ran.stdout, "");
}

#[test]
fn chat_misuse_is_one_line() {
    let place = place();
    refused(&piped(&place, &["chat"], ""), &["chat", "needs a config"]);
    refused(&piped(&place, &["chat", "missing.yaml"], ""), &["missing.yaml"]);
    refused(&piped(&place, &["chat", "tiny.yaml"], "/adaptor x\n"), &["/adaptor", "/help"]);
    assert!(done(place.run(&["chat", "--help"])).stdout.contains("--adapter"));
    // No line at all is no error, nor is a last one without a line break.
    assert_eq!(done(piped(&place, &["chat", "tiny.yaml"], "")).stdout, "");
    assert!(done(piped(&place, &["chat", "tiny.yaml"], FIRST)).stdout.ends_with('\n'));
}

#[test]
fn an_answer_does_not_depend_on_the_batch() {
    let place = place();
    let file: String = [FIRST, SECOND, "Hello", "What is anemia?", FIRST]
        .iter()
        .map(|p| serde_json::json!({ "prompt": p }).to_string() + "\n")
        .collect();
    let drawn =
        ["tiny.yaml", "do_sample=true", "temperature=1.2", "top_p=0.95", "--max-new-tokens", "12", "--seed", "7"];
    let with = |more: &[&str]| generated(&place, &[&drawn[..], more].concat(), &file);
    let (one, many) = (with(&["per_device_eval_batch_size=1"]), with(&["per_device_eval_batch_size=4"]));
    assert_eq!(answers(&one), answers(&many));
    assert_eq!(one.len(), 5);
    assert_eq!(one[0]["answer"], one[4]["answer"], "the same prompt and seed");
    for line in &one {
        let (tokens, finish) = (line["tokens"].as_u64().unwrap(), line["finish"].as_str().unwrap());
        assert!(tokens <= 12 && (finish == "length") == (tokens == 12), "{line}");
        assert!(line["seconds"].as_f64().unwrap() >= 0.0 && line["prompt"].is_string(), "{line}");
    }
    let other = with(&["--seed", "8"]);
    assert_ne!(answers(&one), answers(&other));
}

#[test]
fn prompts_come_from_everywhere_and_give_the_same() {
    let place = place();
    // The form in which it was first there: options before the file.
    let one = done(place.run(&["generate", "--prompt", FIRST, "tiny.yaml", "--greedy"])).stdout;
    let two = done(place.run(&["generate", "tiny.yaml", "--prompt", SECOND])).stdout;
    assert!(one.lines().count() == 1 && two.lines().count() == 1, "{one:?} {two:?}");
    let both = format!("{one}{two}");
    place.write("p.txt", format!("{FIRST}\n\n{SECOND}"));
    assert_eq!(done(place.run(&["generate", "tiny.yaml", "--prompt-file", "p.txt"])).stdout, both);
    assert_eq!(done(place.run(&["generate", "tiny.yaml", "--prompt", FIRST, "--prompt", SECOND])).stdout, both);
    for args in [["generate", "tiny.yaml", "--prompt-file", "-"], ["generate", "tiny.yaml", "--prompt", "-"]] {
        assert_eq!(done(piped(&place, &args, &format!("{FIRST}\n{SECOND}\n"))).stdout, both);
    }
    // A stop string ends the answer before it.
    let word = one.split_whitespace().nth(1).unwrap();
    let stopped = done(place.run(&["generate", "tiny.yaml", "--prompt", FIRST, "--stop", word, "--json"])).stdout;
    let line: Value = serde_json::from_str(&stopped).unwrap();
    let answer = line["answer"].as_str().unwrap();
    assert!(one.starts_with(answer.trim_end()) && !answer.contains(word), "{answer:?} of {one:?}, before {word:?}");
    assert_eq!(line["finish"], "stop");
}

#[test]
fn generate_misuse_is_one_line() {
    let place = place();
    place.write("bad.jsonl", "{\"prompt\": \"a\"}\n{\"question\": \"b\"}\n");
    place.write("long.txt", "one two three four ".repeat(2000));
    for (args, words) in [
        (&["generate"][..], &["generate", "needs a config"][..]),
        (&["generate", "tiny.yaml"], &["--prompt"]),
        (&["generate", "tiny.yaml", "--prompt"], &["--prompt"]),
        (&["generate", "tiny.yaml", "--prompt-file", "none.txt"], &["none.txt"]),
        (&["generate", "tiny.yaml", "--prompt-file", "bad.jsonl"], &["bad.jsonl: row 2", "`prompt`"]),
        (&["generate", "tiny.yaml", "--prompt-file", "long.txt"], &["prompt", "1 has", "tokens"]),
        (&["generate", "tiny.yaml", "--prompt", "a", "temperature=-1"], &["temperature"]),
        (&["generate", "tiny.yaml", "--prompt", "a", "--stop", ""], &["stop"]),
        (&["generate", "tiny.yaml", "--prompt", "a", "--adapter", "no/such"], &["no/such"]),
        (&["generate", "tiny.yaml", "--prompt", "a", "--adapter", "x", "--adapter", "y"], &["--adapter", "twice"]),
    ] {
        refused(&place.run(args), words);
    }
    assert!(done(place.run(&["generate", "--help"])).stdout.contains("--prompt-file"));
}
