//! Templates, truncation, masks and packing against ids and labels that LLaMA-Factory 0.9.5 made: every token of every
//! row. tests/golden/template/make.py makes the cases.

use std::fs;
use std::path::{Path, PathBuf};

use qlora_engine::config::{self, Config, Format};
use qlora_engine::data::ask::questions;
use qlora_engine::data::encode::tokenise;
use qlora_engine::data::template::{Template, ToolFormat};
use qlora_engine::data::tokenizer::Tokenizer;
use qlora_engine::data::{Message, Record, Role, Sample};
use serde_json::Value;

fn golden() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/template")
}

/// The date that make.py gives to LLaMA-Factory.
const TODAY: &str = "05 Mar 2026";

fn records(cases: &Value) -> Vec<Record> {
    let text = |v: &Value, key: &str| v[key].as_str().unwrap().to_string();
    let message = |m: &Value| Message {
        role: match m["role"].as_str().unwrap() {
            "user" => Role::User,
            "assistant" => Role::Assistant,
            "observation" => Role::Observation,
            "function" => Role::Function,
            other => panic!("role {other}"),
        },
        content: text(m, "content"),
    };
    let all = cases["records"].as_array().unwrap().iter();
    all.map(|r| Record {
        messages: r["messages"].as_array().unwrap().iter().map(message).collect(),
        system: text(r, "system"),
        tools: text(r, "tools"),
    })
    .collect()
}

/// Two base-36 digits a number.
fn ids(text: &str) -> Vec<u32> {
    text.as_bytes().chunks(2).map(|c| u32::from_str_radix(std::str::from_utf8(c).unwrap(), 36).unwrap()).collect()
}

fn numbers(v: &Value) -> Vec<u32> {
    v.as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect()
}

/// A run's settings as a config, and a folder with its tokenizer.
fn set_up(run: &Value) -> (Config, tempfile::TempDir) {
    let text = |key: &str| run[key].as_str();
    let folder = tempfile::tempdir().unwrap();
    let source = golden().join("tokenizers").join(text("tokenizer").unwrap());
    for file in ["tokenizer.json", "tokenizer_config.json"] {
        fs::copy(source.join(file), folder.path().join(file)).unwrap();
    }
    if let Some(chat) = text("chat") {
        let from = golden().join("tokenizers").join(format!("{chat}.jinja"));
        fs::copy(from, folder.path().join("chat_template.jinja")).unwrap();
    }
    let mut yaml = serde_json::Map::new();
    for (key, value) in [("model_name_or_path", "m"), ("dataset", "d"), ("output_dir", "o"), ("stage", "sft")] {
        yaml.insert(key.into(), value.into());
    }
    yaml.insert("do_train".into(), true.into());
    for (key, value) in run.as_object().unwrap() {
        match key.as_str() {
            "tokenizer" | "chat" | "rows" | "records" | "jinja" | "stop" | "prompts" | "questions" => {}
            "split" => drop(yaml.insert("split_special_tokens".into(), value.clone())),
            _ => drop(yaml.insert(key.clone(), value.clone())),
        }
    }
    let config = config::from_str(&Value::Object(yaml).to_string(), Format::Json, &[]).unwrap();
    (config, folder)
}

fn name(run: &Value) -> String {
    let mut run = run.as_object().unwrap().clone();
    for key in ["rows", "records", "jinja", "stop", "prompts", "questions"] {
        run.remove(key);
    }
    Value::Object(run).to_string()
}

#[test]
fn every_token_and_label_is_llama_factorys() {
    let cases: Value = serde_json::from_slice(&fs::read(golden().join("cases.json")).unwrap()).unwrap();
    let all = records(&cases);
    let (mut wrong, mut rows) = (Vec::new(), 0);
    for run in cases["runs"].as_array().unwrap() {
        let what = name(run);
        let (config, folder) = set_up(run);
        let mut tokenizer = Tokenizer::load(folder.path(), config.model.split_special_tokens).unwrap();
        let template = Template::load(&config.data, &mut tokenizer).unwrap().with_date(TODAY);
        let given: Vec<Record> = numbers(&run["records"]).iter().map(|&i| all[i as usize].clone()).collect();

        if numbers(&run["stop"]) != template.stop_ids(&tokenizer) {
            wrong.push(format!("{what}: stop ids {:?}", template.stop_ids(&tokenizer)));
        }
        if let Some(jinja) = run.get("jinja")
            && jinja.as_str() != template.jinja(&tokenizer)
        {
            wrong.push(format!("{what}: jinja {:?}", template.jinja(&tokenizer)));
        }
        if let Some(prompts) = run.get("prompts") {
            for (i, want) in prompts.as_array().unwrap().iter().enumerate() {
                let r = &given[7 + i];
                let past = &r.messages[..r.messages.len() - 1];
                let thinking = Some(true);
                let got = template.chat_prompt(&tokenizer, past, &r.system, &r.tools, thinking).unwrap();
                if got != ids(want.as_str().unwrap()) {
                    wrong.push(format!("{what}: prompt {i}"));
                }
            }
        }

        let got = tokenise(&given, &config, &tokenizer, &template, 2, &|_, _| {}).unwrap();
        let again = tokenise(&given, &config, &tokenizer, &template, 1, &|_, _| {}).unwrap();
        assert_eq!(got, again, "{what}: depends on the number of threads");
        // A row without a single token (nothing asked, nothing answered, template `empty`) is left out here and counted.
        let want: Vec<&Value> = run["rows"].as_array().unwrap().iter().filter(|r| r[0] != "").collect();
        if got.samples.len() != want.len() {
            wrong.push(format!("{what}: {} rows instead of {}", got.samples.len(), want.len()));
        }
        for (i, (got, want)) in got.samples.iter().zip(&want).enumerate() {
            rows += 1;
            let mut expected = Sample { ids: ids(want[0].as_str().unwrap()), ..Sample::default() };
            for (j, n) in numbers(&want[1]).into_iter().enumerate() {
                expected.trained.extend(std::iter::repeat_n(j % 2 == 1, n as usize));
            }
            expected.pieces = match want.get(2) {
                Some(pieces) => numbers(pieces),
                None => vec![expected.ids.len() as u32],
            };
            expected.block_diagonal = config.data.neat_packing;
            if *got != expected {
                let at = got.ids.iter().zip(&expected.ids).position(|(a, b)| a != b);
                let text = |s: &Sample| qlora_engine::data::inspect::render(s, &tokenizer, false);
                wrong.push(format!(
                    "{what}: row {i}: first differing id at {at:?}\n got {:?} {}\nwant {:?} {}",
                    got.pieces,
                    text(got),
                    expected.pieces,
                    text(&expected)
                ));
            }
        }
    }
    assert!(rows > 500, "only {rows} rows were compared");
    assert!(wrong.is_empty(), "{} of {rows} differ:\n{}", wrong.len(), wrong[..wrong.len().min(8)].join("\n"));
}

#[test]
fn what_cannot_be_encoded_is_named() {
    let run = serde_json::json!({"tokenizer": "byte", "template": "qwen3"});
    let (config, folder) = set_up(&run);
    let mut tokenizer = Tokenizer::load(folder.path(), false).unwrap();
    let template = Template::load(&config.data, &mut tokenizer).unwrap();
    let turn = |role, content: &str| Message { role, content: content.into() };
    let good = Record {
        messages: vec![turn(Role::User, "a"), turn(Role::Assistant, "b")],
        system: String::new(),
        tools: String::new(),
    };
    let prepare = |records: &[Record], config: &Config| {
        tokenise(records, config, &tokenizer, &template, 1, &|_, _| {}).map_err(|e| e.to_string())
    };

    let bad = Record { tools: "[{".into(), ..good.clone() };
    let e = prepare(&[good.clone(), bad], &config).unwrap_err();
    assert!(e.contains("row 2") && e.contains("tools"), "{e}");

    let odd = Record { messages: good.messages[..1].to_vec(), ..good.clone() };
    let got = prepare(&[odd.clone(), good.clone(), odd.clone()], &config).unwrap();
    assert_eq!((got.samples.len(), got.dropped[0].1), (1, 2));
    let e = prepare(&[odd], &config).unwrap_err();
    assert!(e.contains("`d`") && e.contains("no sample is left"), "{e}");
    let e = prepare(&[], &config).unwrap_err();
    assert!(e.contains("no rows"), "{e}");

    let mut short = config.clone();
    short.data.cutoff_len = 1;
    let long = Record { messages: vec![turn(Role::User, &"long ".repeat(50)), turn(Role::Assistant, "b")], ..good };
    let e = prepare(&[long], &short).unwrap_err();
    assert!(e.contains("truncated") && e.contains("cutoff_len"), "{e}");

    let mut unknown = config.data.clone();
    unknown.template = Some("qwen3_nothinking".into());
    let e = Template::load(&unknown, &mut tokenizer.clone()).unwrap_err().to_string();
    assert!(e.contains("qwen3_nothink`") && e.contains("llama3"), "{e}");
}

/// What prediction asks, and what it compares answers with; tests/golden/eval/questions.py makes the cases.
#[test]
fn every_question_and_label_is_llama_factorys() {
    let read = |path: PathBuf| -> Value { serde_json::from_slice(&fs::read(path).unwrap()).unwrap() };
    let all = records(&read(golden().join("cases.json")));
    let runs = read(golden().join("../eval/questions.json"));
    let mut compared = 0;
    for run in runs.as_array().unwrap() {
        let what = name(run);
        let (config, folder) = set_up(run);
        let mut tokenizer = Tokenizer::load(folder.path(), false).unwrap();
        let template = Template::load(&config.data, &mut tokenizer).unwrap().with_date(TODAY);
        let given: Vec<Record> = numbers(&run["records"]).iter().map(|&i| all[i as usize].clone()).collect();
        let (got, left_out) = questions("x", &given, config.data.cutoff_len, &tokenizer, &template).unwrap();
        let want = run["questions"].as_array().unwrap();
        assert_eq!((got.len(), left_out), (want.len(), given.len() - want.len()), "{what}");
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            let text = |ids: &[u32]| tokenizer.decode(ids, false).unwrap();
            assert_eq!(text(&got.prompt), text(&ids(want[0].as_str().unwrap())), "{what}: row {i}");
            assert_eq!(got.prompt, ids(want[0].as_str().unwrap()), "{what}: row {i}");
            if let Some(label) = want[1].as_str() {
                assert_eq!(text(&got.label), text(&ids(label)), "{what}: row {i}");
                assert_eq!(got.label, ids(label), "{what}: row {i}");
            }
            compared += 1;
        }
    }
    assert!(compared > 100, "{compared}");
}

/// A template that reads and writes calls as `format` says.
fn with_tools(format: &str) -> Template {
    let (config, folder) =
        set_up(&serde_json::json!({"tokenizer": "byte", "template": "qwen3", "tool_format": format}));
    Template::load(&config.data, &mut Tokenizer::load(folder.path(), false).unwrap()).unwrap()
}

fn calls(t: &Template, text: &str) -> Option<Vec<(String, String)>> {
    t.tool_calls(text).map(|calls| calls.into_iter().map(|c| (c.name, c.arguments)).collect())
}

/// tests/golden/tools/make.py makes the answers, and says where the two differ on purpose.
#[test]
fn every_call_in_an_answer_is_llama_factorys_and_is_never_shown_as_text() {
    let formats: Value = serde_json::from_slice(&fs::read(golden().join("../tools/calls.json")).unwrap()).unwrap();
    let (mut wrong, mut found) = (Vec::new(), 0);
    assert_eq!(formats.as_object().unwrap().len(), ToolFormat::NAMES.len());
    for (format, answers) in formats.as_object().unwrap() {
        let template = with_tools(format);
        for answer in answers.as_array().unwrap() {
            let text = answer[0].as_str().unwrap();
            let want: Option<Vec<(String, String)>> = serde_json::from_value(answer[1].clone()).unwrap();
            let got = calls(&template, text);
            if got != want {
                wrong.push(format!("{format}: {text:?}\n got {got:?}\nwant {want:?}"));
            }
            // As the answer grows, what has been shown stays shown, and the calls are all in the rest.
            let mut shown = 0;
            for end in text.char_indices().map(|(i, _)| i).chain([text.len()]) {
                let now = template.before_tool_calls(&text[..end]);
                assert!(text.starts_with(now) && now.len() >= shown, "{format}: {text:?} at {end}: {now:?}");
                assert_eq!(template.may_be_tool_call(&text[..end]), now.len() < end, "{format}: {text:?}");
                shown = now.len();
            }
            if want.is_some() {
                found += 1;
                assert_eq!(
                    calls(&template, &text[shown..]),
                    want,
                    "{format}: of {text:?} {:?} was shown",
                    &text[..shown]
                );
            }
        }
    }
    assert!(found > 500, "{found}");
    assert!(wrong.is_empty(), "{} differ:\n{}", wrong.len(), wrong[..wrong.len().min(8)].join("\n"));
}

#[test]
fn an_answer_is_held_back_only_where_a_call_may_begin() {
    let shown = |format: &str, text: &str| with_tools(format).before_tool_calls(text).to_string();
    for (format, text, want) in [
        ("qwen", "It is sunny.", "It is sunny."),
        ("qwen", "a < b and <tool", "a < b and "),
        ("qwen", "a <tools", "a <tools"),
        ("qwen", "Let me see.\n<tool_call>\n{", "Let me see.\n"),
        ("default", "Action is needed. A", "Action is needed. "),
        ("default", "I look.\nAction: f", "I look.\n"),
        ("llama3", "It is {\"name\"", "It is {\"name\""),
        ("llama3", " \n", ""),
        ("llama3", "[ {\"na", ""),
        ("llama3", "[1] says so", "[1] says so"),
        ("llama3", "{x | x > 0}", "{x | x > 0}"),
        ("mistral", "[TOOL", ""),
        ("mistral", "[TOOL_CALLS] [{", ""),
        ("mistral", "[TOOLS", "[TOOLS"),
    ] {
        assert_eq!(shown(format, text), want, "{format}: {text:?}");
    }
    // The one place where more is taken for a call than LLaMA-Factory takes.
    let call = ("f".to_string(), "{\"a\": 1}".to_string());
    let text = " [TOOL_CALLS] [{\"name\": \"f\", \"arguments\": {\"a\":1}}]";
    assert_eq!(calls(&with_tools("mistral"), text), Some(vec![call]));
}

/// An answer of a megabyte takes linear time: each of these would take minutes if it took quadratic time.
#[test]
fn long_answers_are_searched_in_linear_time() {
    let n = 200_000;
    let many_keys = || (0..n).map(|i| format!("\"k{i}\": 0")).collect::<Vec<_>>().join(", ");
    let hostile = [
        "<tool_call>".repeat(n),
        "</tool_call>".repeat(n),
        "<tool_call>x</tool_call>y".repeat(n),
        format!("<tool_call>{}", " </tool_call> x".repeat(n)),
        format!("<tool_call>{}</tool_call>", " ".repeat(4 * n)),
        "Action: ".repeat(n),
        format!("Action:{}", " ".repeat(4 * n)),
        format!("Action: f Action Input:{}", " \n".repeat(2 * n)),
        "Action: f Action Input: {} ".repeat(n),
        format!("Action: {}", "A".repeat(4 * n)),
        "[{".repeat(n),
        "[".repeat(4 * n),
        format!("[{}]", "{\"name\": \"f\", \"arguments\": 1, \"parameters\": 1}, ".repeat(n)),
        format!("<tool_call>{{\"name\": \"f\", \"arguments\": {{{}}}}}</tool_call>", many_keys()),
    ];
    for format in ToolFormat::NAMES {
        let template = with_tools(format);
        for text in &hostile {
            let start = std::time::Instant::now();
            template.tool_calls(text);
            template.before_tool_calls(text);
            let took = start.elapsed().as_secs_f64();
            assert!(took < 10.0, "{format}: {took:.1} s for {:?}..", &text[..40]);
        }
    }
}
