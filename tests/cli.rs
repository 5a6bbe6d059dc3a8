//! The program as its user meets it: what each command prints and leaves, and what bad input gets: one line that names
//! the culprit, exit code 1, nothing written over.

mod common;

use std::fs;

use common::{Place, Ran, ran};
use safetensors::tensor::{Dtype, TensorView};
use serde_json::{Value, json};

/// The error line of a run that must fail as every failure does.
fn error_of(ran: &Ran) -> String {
    let all = format!("{}\n{}", ran.stdout, ran.stderr);
    assert_eq!(ran.code, Some(1), "{all}");
    assert!(!all.contains("panicked") && !all.contains("RUST_BACKTRACE"), "{all}");
    let errors: Vec<&str> = ran.stderr.lines().filter(|l| l.starts_with("error")).collect();
    assert!(errors.len() == 1 && errors[0].starts_with("error: "), "{all}");
    assert_eq!(ran.stderr.lines().last(), Some(errors[0]), "the error comes last, and alone: {all}");
    errors[0].to_string()
}

/// Runs `args`, which must be refused in words that contain all of `words`, and without a trace on the disk.
fn refused(place: &Place, args: &[&str], words: &[&str]) {
    let before = place.files();
    let ran = place.run(args);
    let error = error_of(&ran);
    for word in words {
        assert!(error.contains(word), "{args:?}: `{word}` is not in: {error}");
    }
    let after = place.files();
    let changed: Vec<&String> = after.keys().filter(|name| before.get(*name) != after.get(*name)).collect();
    let gone: Vec<&String> = before.keys().filter(|name| !after.contains_key(*name)).collect();
    assert!(changed.is_empty() && gone.is_empty(), "{args:?}: changed {changed:?}, removed {gone:?}");
}

/// `train run.yaml` with settings is refused.
fn train_refused(place: &Place, settings: &[&str], words: &[&str]) {
    refused(place, &[&["train", "run.yaml"], settings].concat(), words);
}

// ---- what the commands print -----------------------------------------------------------------------------------------

#[test]
fn help_and_version() {
    let place = Place::new();
    for args in [&["--help"][..], &["help"], &["train", "--help"], &["plan", "-h"], &["inspect", "--help"]] {
        let ran = place.run(args);
        assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{args:?}");
        assert!(ran.stdout.contains("qlora-engine") && ran.stdout.contains("Usage"), "{args:?}: {}", ran.stdout);
    }
    let version = concat!("qlora-engine ", env!("CARGO_PKG_VERSION"), "\n");
    for args in [["version"], ["--version"]] {
        assert_eq!(place.run(&args).stdout, version, "{args:?}");
    }
    let bare = place.run(&[]);
    assert!(bare.code == Some(1) && bare.stderr.contains("First steps"), "{}", bare.stderr);
}

#[test]
fn env_names_the_machine() {
    let ran = Place::new().run(&["env"]);
    assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""));
    for name in ["qlora-engine", "instructions", "cores", "memory", "gpu"] {
        assert!(ran.stdout.lines().any(|l| l.starts_with(name)), "{name}: {}", ran.stdout);
    }
}

#[test]
fn misuse_is_one_line() {
    let place = Place::new();
    refused(&place, &["trian", "run.yaml"], &["trian", "train"]);
    refused(&place, &["train"], &["needs a config"]);
    refused(&place, &["train", "missing.yaml"], &["missing.yaml"]);
    refused(&place, &["plan", "model"], &["model"]);
    refused(&place, &["webui"], &["webui", "not built yet"]);
    refused(&place, &["api"], &["api", "needs a config"]);
    refused(&place, &["api", "run.yaml", "--port", "x"], &["--port", "65535"]);
}

#[test]
fn the_plan_adds_up() {
    let place = Place::new();
    let four_bits = &["quantization_bit=4", "bf16=true"][..];
    let on_a_card = &["quantization_bit=4", "--device", "rtx4090"];
    for more in [&[][..], four_bits, &["finetuning_type=full"], on_a_card] {
        let ran = place.run(&[&["plan", "run.yaml"], more].concat());
        assert_eq!(ran.code, Some(0), "{}", ran.stderr);
        let bytes = |name: &str| -> Option<u64> {
            let line = ran.stdout.lines().find(|l| l.trim_start().starts_with(name) && l.contains(" bytes"))?;
            line.split(" bytes").next()?.split_whitespace().next_back()?.parse().ok()
        };
        let parts = [
            "frozen weights, 16/32",
            "frozen weights, NF4",
            "table of rotations",
            "trained values",
            "gradient",
            "optimizer",
            "activations",
            "scratch",
        ];
        let sum: u64 = parts.iter().filter_map(|name| bytes(name)).sum();
        assert_eq!(bytes("in all"), Some(sum), "{}", ran.stdout);
        assert!(bytes("optimizer") == bytes("gradient").map(|n| 2 * n), "two moments: {}", ran.stdout);
        assert_eq!(bytes("frozen weights, NF4").is_some(), more.contains(&"quantization_bit=4"), "{}", ran.stdout);
        assert!(ran.stdout.contains("5 (5 an epoch; 2 rows x 1 micro-batches each)"), "{}", ran.stdout);
        assert!(!place.path("out").exists(), "a plan writes nothing");
    }
    // Rank 4 on the seven linears of two layers: r (in + out) each.
    let values = 2 * 4 * ((32 + 64) + 2 * (32 + 32) + (64 + 32) + 2 * (32 + 48) + (48 + 32));
    let plan = place.run(&["plan", "run.yaml"]).stdout;
    let line = plan.lines().find(|l| l.starts_with("trained values")).unwrap();
    assert_eq!(line.split_whitespace().last(), Some(values.to_string().as_str()));
}

#[test]
fn inspect_shows_what_is_trained() {
    let place = Place::new();
    let ran = place.run(&["inspect", "run.yaml", "template=qwen3_nothink"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    let want = "<|im_start|>user\nWhat is 0 plus 0?<|im_end|>\n<|im_start|>assistant\n⟦It is 0.<|im_end|>\n⟧";
    assert!(ran.stdout.contains(want), "{}", ran.stdout);
    assert!(ran.stdout.contains("template qwen3_nothink, 10 training samples"), "{}", ran.stdout);
    assert!(!place.path("out").exists(), "it only looks");
    let ran = place.run(&["inspect", "run.yaml", "train_on_prompt=true", "template=qwen3_nothink"]);
    assert!(ran.stdout.contains("⟦<|im_start|>user"), "{}", ran.stdout);
}

// ---- what a run leaves -----------------------------------------------------------------------------------------------

/// The files and fields of LLaMA-Factory's own output for the same config.
#[test]
fn a_run_leaves_llama_factorys_files() {
    let place = Place::new();
    let example = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/runs/example_output");
    let theirs = |name: &str| -> String { fs::read_to_string(example.join(name)).unwrap() };
    place.train(&[
        "val_size=0.4",
        "eval_strategy=steps",
        "eval_steps=1",
        "save_steps=1",
        "do_eval=true",
        "save_total_limit=2",
        "load_best_model_at_end=true",
        "plot_loss=true",
        "include_num_input_tokens_seen=true",
        "report_to=tensorboard",
        "overwrite_output_dir=true",
    ]);
    for name in theirs("FILES").lines().filter(|n| !n.starts_with("checkpoint-") && *n != "training_args.bin") {
        assert!(place.path("out").join(name).is_file(), "{name} is missing");
    }
    let checkpoints = ["adapter_config.json", "adapter_model.safetensors", "tokenizer.json", "tokenizer_config.json"];
    for name in checkpoints.into_iter().chain(["trainer_state.json", "chat_template.jinja", "optimizer.safetensors"]) {
        assert!(place.path("out/checkpoint-3").join(name).is_file(), "{name} is missing");
    }
    assert!(!place.path("out/checkpoint-1").exists(), "save_total_limit keeps two");

    let keys = |v: &Value| -> Vec<String> { v.as_object().unwrap().keys().cloned().collect() };
    let lacks = |ours: &Value, theirs: &Value| -> Vec<String> {
        let ours = keys(ours);
        keys(theirs).into_iter().filter(|k| !ours.contains(k)).collect()
    };
    for name in
        ["adapter_config.json", "train_results.json", "eval_results.json", "all_results.json", "trainer_state.json"]
    {
        let missing = lacks(&place.json(&format!("out/{name}")), &serde_json::from_str(&theirs(name)).unwrap());
        assert_eq!(missing, Vec::<String>::new(), "{name}");
    }
    let row = |text: &str, key: &str| -> Value {
        let mut rows = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
        rows.find(|row| row.get(key).is_some()).unwrap()
    };
    let log = String::from_utf8(place.read("out/trainer_log.jsonl")).unwrap();
    for key in ["loss", "eval_loss"] {
        assert_eq!(keys(&row(&log, key)), keys(&row(&theirs("trainer_log.jsonl"), key)), "trainer_log.jsonl, {key}");
    }
    // The losses fall, and the best of them is what stands at the end.
    let state = place.json("out/trainer_state.json");
    let history = state["log_history"].as_array().unwrap();
    let losses = |key: &str| history.iter().filter_map(|r| r.get(key)?.as_f64()).collect::<Vec<f64>>();
    let (loss, eval) = (losses("loss"), losses("eval_loss"));
    assert!(loss.len() == 3 && loss[2] < loss[0], "{loss:?}");
    let best = eval.iter().copied().fold(f64::INFINITY, f64::min);
    assert_eq!(state["best_metric"].as_f64(), Some(best), "{eval:?}");
    assert_eq!(place.json("out/eval_results.json")["eval_loss"].as_f64(), Some(best));
    assert!(history.iter().filter_map(|r| r.get("grad_norm")).all(|g| g.as_f64().is_some_and(|g| g > 0.0)));

    for name in ["training_loss.png", "training_eval_loss.png"] {
        assert!(place.read(&format!("out/{name}")).starts_with(b"\x89PNG\r\n\x1a\n"), "{name} is no PNG");
    }
    let card = String::from_utf8(place.read("out/README.md")).unwrap();
    for part in ["---\n", "library_name: peft", "base_model: model", "learning_rate: 0.01", "qwen3"] {
        assert!(card.contains(part), "{part} is not in the card:\n{card}");
    }
    let events: Vec<String> = place.files().into_keys().filter(|n| n.contains("events.out.tfevents")).collect();
    assert_eq!(events.len(), 1, "{events:?}");
    let events = place.read(&events[0]);
    for tag in ["train/loss", "eval/loss", "train/learning_rate"] {
        assert!(events.windows(tag.len()).any(|w| w == tag.as_bytes()), "no {tag} among the events");
    }
}

/// `tokenized_path` without `do_train`: the data are the result, and the last line says where they are. A run that
/// names the folder then trains on them without the rows.
#[test]
fn preprocessing_says_where_the_data_went() {
    let place = Place::new();
    for _ in ["written", "there already"] {
        let ran = place.train(&["do_train=false", "tokenized_path=tokens"]);
        assert_eq!(ran.stdout.lines().last(), Some("done: the tokenised data are in tokens"), "{}", ran.stdout);
        assert!(place.path("tokens").is_dir() && !place.path("out").exists());
    }
    place.write("data/rows.json", "[]");
    let ran = place.train(&["tokenized_path=tokens"]);
    assert!(ran.stdout.lines().last().unwrap().starts_with("done: 5 steps"), "{}", ran.stdout);
}

/// Read with the format's own crate, which this program does not write with.
#[test]
fn the_adapter_is_sound_safetensors() {
    let place = Place::new();
    place.train(&["lora_target=q_proj,down_proj"]);
    let bytes = place.read("out/adapter_model.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let shape = |name: &str| {
        let tensor = file.tensor(&format!("base_model.model.model.layers.{name}.weight")).unwrap();
        assert_eq!(tensor.dtype(), Dtype::F32);
        tensor.shape().to_vec()
    };
    assert_eq!(file.len(), 8);
    assert_eq!(shape("0.self_attn.q_proj.lora_A"), [4, 32]);
    assert_eq!(shape("0.self_attn.q_proj.lora_B"), [64, 4]);
    assert_eq!(shape("1.mlp.down_proj.lora_A"), [4, 48]);
    assert_eq!(shape("1.mlp.down_proj.lora_B"), [32, 4]);
    let trained = |x: &[u8]| x.chunks_exact(4).any(|b| f32::from_le_bytes(b.try_into().unwrap()) != 0.0);
    assert!(file.tensors().iter().all(|(_, t)| trained(t.data())), "a tensor is all zeros");
    let config = place.json("out/adapter_config.json");
    assert_eq!(config["peft_type"], "LORA");
    assert_eq!((config["r"].as_u64(), config["lora_alpha"].as_f64()), (Some(4), Some(8.0)));
    let mut targets: Vec<&str> =
        config["target_modules"].as_array().unwrap().iter().filter_map(Value::as_str).collect();
    targets.sort_unstable();
    assert_eq!(targets, ["down_proj", "q_proj"]);
    let ours = place.json("out/qlora_engine.json");
    assert_eq!((ours["template"].as_str(), ours["enable_thinking"].as_bool()), (Some("qwen3"), Some(true)));

    // A whole model goes out as it came in: every tensor, by name and shape.
    place.train(&["finetuning_type=full", "output_dir=full", "learning_rate=1e-4"]);
    let (base, full) = (place.read("model/model.safetensors"), place.read("full/model.safetensors"));
    let shapes = |bytes: &[u8]| {
        let file = safetensors::SafeTensors::deserialize(bytes).unwrap();
        let mut all: Vec<(String, Vec<usize>)> =
            file.tensors().iter().map(|(name, t)| (name.clone(), t.shape().to_vec())).collect();
        all.sort();
        all
    };
    assert_eq!(shapes(&base), shapes(&full));
    assert_eq!(place.json("full/config.json")["model_type"], "qwen3");
}

#[test]
fn settings_override_the_file_in_each_form() {
    let place = Place::new();
    for (dir, form) in [
        ("a", &["output_dir=a", "max_steps=3"][..]),
        ("b", &["--output_dir", "b", "--max_steps", "3"]),
        ("c", &["--output_dir=c", "--max_steps=3"]),
    ] {
        place.train(form);
        let state = place.json(&format!("{dir}/trainer_state.json"));
        assert_eq!(state["global_step"], 3, "{form:?}");
    }
    assert_eq!(place.read("a/adapter_model.safetensors"), place.read("b/adapter_model.safetensors"));
    assert_eq!(place.read("a/adapter_model.safetensors"), place.read("c/adapter_model.safetensors"));
    // A JSON file, and the file as `--config`.
    let yaml = String::from_utf8(place.read("run.yaml")).unwrap();
    let pairs = yaml.lines().map(|l| l.split_once(": ").unwrap());
    let value = |v: &str| serde_json::from_str(v).unwrap_or(json!(v));
    let map: serde_json::Map<_, _> = pairs.map(|(k, v)| (k.to_string(), value(v))).collect();
    place.write("run.json", Value::Object(map).to_string());
    let ran = place.run(&["train", "--config", "run.json", "output_dir=d", "max_steps=3"]);
    assert_eq!(ran.code, Some(0), "{}", ran.stderr);
    assert_eq!(place.read("a/adapter_model.safetensors"), place.read("d/adapter_model.safetensors"));
}

// ---- bad configs -----------------------------------------------------------------------------------------------------

#[test]
fn bad_settings() {
    let place = Place::new();
    train_refused(&place, &["learning_rte=1e-4"], &["`learning_rte`", "learning_rate"]);
    train_refused(&place, &["lora_rank=eight"], &["`lora_rank`", "eight"]);
    train_refused(&place, &["lora_dropout=nan"], &["`lora_dropout`"]);
    train_refused(&place, &["do_train=perhaps"], &["`do_train`", "perhaps"]);
    train_refused(&place, &["stage=rm"], &["`stage`", "rm"]);
    train_refused(&place, &["quantization_bit=8"], &["`quantization_bit`", "8"]);
    train_refused(&place, &["quantization_method=hqq"], &["`quantization_method`", "hqq"]);
    train_refused(&place, &["lora_target=q_porj"], &["`lora_target`", "q_porj", "q_proj"]);
    train_refused(&place, &["template=qwen33"], &["`template`", "qwen33", "qwen3"]);
    place.write("broken.yaml", "model_name_or_path: [model\nstage: sft\n");
    refused(&place, &["train", "broken.yaml"], &["broken.yaml"]);
    place.write("twice.yaml", "stage: sft\nstage: pt\n");
    refused(&place, &["train", "twice.yaml"], &["stage"]);
    place.write("binary.yaml", b"\xff\xfe\x00stage");
    refused(&place, &["train", "binary.yaml"], &["binary.yaml"]);
}

// ---- bad models ------------------------------------------------------------------------------------------------------

#[test]
fn missing_models() {
    let place = Place::new();
    train_refused(&place, &["model_name_or_path=./nowhere"], &["nowhere"]);
    train_refused(&place, &["model_name_or_path=org/Nowhere-1B"], &["org/Nowhere-1B"]);
    train_refused(&place, &["model_name_or_path=data"], &["config.json"]);
    place.write("base.gguf", "GGUF");
    train_refused(&place, &["model_name_or_path=base.gguf"], &["base.gguf", "truncated"]);
    for name in ["model.safetensors", "tokenizer.json", "config.json"] {
        let place = Place::new();
        fs::remove_file(place.path("model").join(name)).unwrap();
        train_refused(&place, &[], &["model", name]);
    }
    train_refused(&place, &["adapter_name_or_path=data"], &["data", "adapter_"]);
}

#[test]
fn models_of_another_kind() {
    let place = Place::new();
    let config = place.read("model/config.json");
    let try_with = |change: &dyn Fn(&mut Value), words: &[&str]| {
        place.edit("model/config.json", |c| change(c));
        train_refused(&place, &[], words);
        place.write("model/config.json", &config);
    };
    try_with(&|c| c["model_type"] = json!("mamba"), &["config.json", "mamba"]);
    try_with(&|c| c["quantization_config"] = json!({"quant_method": "gptq", "bits": 4}), &["config.json", "GPTQ"]);
    try_with(&|c| c["quantization_config"] = json!({"quant_method": "awq", "bits": 4}), &["config.json", "AWQ"]);
    try_with(&|c| c["hidden_size"] = json!(48), &["model.safetensors", "model.embed_tokens.weight", "48"]);
    try_with(&|c| c["num_hidden_layers"] = json!(3), &["model.safetensors", "model.layers.2."]);
    try_with(&|c| c["hidden_size"] = json!("wide"), &["config.json", "hidden_size"]);
    try_with(&|c| c["num_attention_heads"] = json!(0), &["config.json", "num_attention_heads"]);
    try_with(&|c| c["num_key_value_heads"] = json!(3), &["config.json", "num_key_value_heads"]);
    try_with(&|c| c["vocab_size"] = json!(u64::MAX), &["config.json"]);
    try_with(&|c| c["rms_norm_eps"] = json!(-1.0), &["config.json", "rms_norm_eps"]);
    place.write("model/config.json", "{");
    train_refused(&place, &[], &["config.json"]);
}

/// The tensors of the tiny model, changed, as a file written by the format's own crate.
fn rewrite(place: &Place, to: &str, change: impl Fn(&str, &mut Vec<usize>, &mut Vec<u8>) -> bool) {
    let bytes = place.read("model/model.safetensors");
    let file = safetensors::SafeTensors::deserialize(&bytes).unwrap();
    let mut kept = Vec::new();
    for (name, t) in file.tensors() {
        let (mut shape, mut data) = (t.shape().to_vec(), t.data().to_vec());
        if change(&name, &mut shape, &mut data) {
            kept.push((name, t.dtype(), shape, data));
        }
    }
    let views = kept
        .iter()
        .map(|(name, dtype, shape, data)| (name.as_str(), TensorView::new(*dtype, shape.clone(), data).unwrap()));
    place.write(to, safetensors::serialize(views, None).unwrap());
}

#[test]
fn broken_weights() {
    let place = Place::new();
    let good = place.read("model/model.safetensors");
    let header = u64::from_le_bytes(good[..8].try_into().unwrap());
    let with = |bytes: Vec<u8>| {
        place.write("model/model.safetensors", bytes);
        train_refused(&place, &[], &["model.safetensors"]);
        train_refused(&place, &["quantization_bit=4"], &["model.safetensors"]);
    };
    with(Vec::new());
    with(good[..5].to_vec());
    with(good[..good.len() / 2].to_vec());
    with(good[..good.len() - 1].to_vec());
    with([&good[..], b"tail"].concat());
    // A header that lies about its own size, from a little to all that 64 bits hold.
    for lie in [0, header - 1, header + 1, good.len() as u64, u64::MAX, u64::MAX - 7, 1 << 40] {
        with([&lie.to_le_bytes()[..], &good[8..]].concat());
    }
    let text = String::from_utf8(good[8..8 + header as usize].to_vec()).unwrap();
    for (from, to) in [("\"data_offsets\":[0,", "\"data_offsets\":[4,"), ("\"F32\"", "\"F99\""), ("\"F32\"", "\"F16\"")]
    {
        let changed = text.replacen(from, to, 1);
        assert_ne!(changed, text, "{from} is not in the header");
        let size = (changed.len() as u64).to_le_bytes();
        with([&size[..], changed.as_bytes(), &good[8 + header as usize..]].concat());
    }
    with([&2u64.to_le_bytes()[..], b"{}"].concat());
    with([&9u64.to_le_bytes()[..], b"not json!"].concat());

    place.write("model/model.safetensors", &good);
    let norm = "model.layers.1.mlp.up_proj.weight";
    rewrite(&place, "model/model.safetensors", |name, _, _| name != norm);
    train_refused(&place, &[], &["model.safetensors", norm]);
    place.write("model/model.safetensors", &good);
    rewrite(&place, "model/model.safetensors", |name, shape, _| {
        if name == norm {
            shape.reverse();
        }
        true
    });
    train_refused(&place, &[], &["model.safetensors", norm, "48", "32"]);
}

#[test]
fn shards() {
    let place = Place::new();
    let first = |name: &str| name.contains("layers.0");
    rewrite(&place, "model/one.safetensors", |name, _, _| first(name));
    rewrite(&place, "model/two.safetensors", |name, _, _| !first(name));
    let whole = place.read("model/model.safetensors");
    let file = safetensors::SafeTensors::deserialize(&whole).unwrap();
    let map: serde_json::Map<_, _> = file
        .names()
        .into_iter()
        .map(|name| (name.to_string(), json!(if first(name) { "one.safetensors" } else { "two.safetensors" })))
        .collect();
    place.write("model/model.safetensors.index.json", json!({"metadata": {}, "weight_map": map}).to_string());
    place.train(&["output_dir=whole", "max_steps=2"]);
    fs::remove_file(place.path("model/model.safetensors")).unwrap();
    place.train(&["output_dir=shards", "max_steps=2"]);
    assert_eq!(place.read("whole/adapter_model.safetensors"), place.read("shards/adapter_model.safetensors"));
    let bytes = place.read("model/two.safetensors");
    fs::remove_file(place.path("model/two.safetensors")).unwrap();
    train_refused(&place, &[], &["two.safetensors"]);
    place.write("model/two.safetensors", &bytes[..bytes.len() - 3]);
    train_refused(&place, &[], &["two.safetensors"]);
    place.write("model/two.safetensors", &bytes);
    let name = "model.norm.weight";
    place.edit("model/model.safetensors.index.json", |i| i["weight_map"][name] = json!("one.safetensors"));
    train_refused(&place, &[], &["one.safetensors", name]);
    place.edit("model/model.safetensors.index.json", |i| i["weight_map"][name] = json!("../../etc/passwd"));
    train_refused(&place, &[], &["index.json"]);
}

#[test]
fn tokenizers_that_do_not_fit() {
    let place = Place::new();
    let tokenizer = place.read("model/tokenizer.json");
    // The template's tokens were renamed: the model never saw those that the template would write.
    let config = String::from_utf8(place.read("model/tokenizer_config.json")).unwrap();
    let renamed = String::from_utf8(tokenizer.clone()).unwrap().replace("<|im_end|>", "<|other|>");
    let mut full: Value = serde_json::from_str(&renamed).unwrap();
    let more = |tokens: &mut Value, ids: std::ops::Range<u32>| {
        let mut token = tokens["added_tokens"][0].clone();
        for id in ids {
            (token["id"], token["content"]) = (json!(id), json!(format!("<|more {id}|>")));
            tokens["added_tokens"].as_array_mut().unwrap().push(token.clone());
        }
    };
    more(&mut full, 309..320);
    place.write("model/tokenizer.json", full.to_string());
    train_refused(&place, &[], &["tokenizer", "320"]);
    place.write("model/tokenizer_config.json", config.replace("<|im_end|>", "<|other|>"));
    train_refused(&place, &[], &["tokenizer", "`<|im_end|>`", "id 320", "320 rows"]);
    // Where the embedding has a row to spare it is added, as LLaMA-Factory adds it, and said.
    place.write("model/tokenizer.json", renamed);
    let ran = place.train(&["output_dir=added"]);
    assert!(ran.stderr.contains("the tokenizer lacks `<|im_end|>`"), "{}", ran.stderr);
    place.write("model/tokenizer_config.json", config);

    place.write("model/tokenizer.json", &tokenizer[..tokenizer.len() / 2]);
    train_refused(&place, &[], &["tokenizer.json"]);
    place.write("model/tokenizer.json", "[]");
    train_refused(&place, &[], &["tokenizer.json"]);
    // More tokens than the embedding has rows.
    let mut value: Value = serde_json::from_slice(&tokenizer).unwrap();
    more(&mut value, 309..321);
    place.write("model/tokenizer.json", value.to_string());
    train_refused(&place, &[], &["tokenizer.json", "ids up to 320", "320 rows"]);
}

// ---- bad data --------------------------------------------------------------------------------------------------------

#[test]
fn bad_data() {
    let place = Place::new();
    let rows = place.read("data/rows.json");
    let with = |content: &str, words: &[&str]| {
        place.write("data/rows.json", content);
        train_refused(&place, &[], words);
    };
    with("[]", &["rows"]);
    with("", &["rows"]);
    with("[{\"instruction\": \"a\", \"output\": \"b\"}", &["rows.json"]);
    with("[1, 2]", &["rows.json", "row 1"]);
    with(
        "[{\"instruction\": \"a\", \"output\": \"b\"}, {\"instruction\": 7, \"output\": \"b\"}]",
        &["rows.json", "row 2", "instruction"],
    );
    with("[{\"prompt\": \"a\", \"answer\": \"b\"}]", &["instruction"]);
    with("[{\"instruction\": \"a\", \"output\": null}]", &["rows"]);
    with("\u{0}\u{1}", &["rows.json"]);
    fs::remove_file(place.path("data/rows.json")).unwrap();
    train_refused(&place, &[], &["rows.json"]);

    place.write("data/rows.json", &rows);
    train_refused(&place, &["dataset=rwos"], &["rwos", "rows"]);
    train_refused(&place, &["dataset_dir=nowhere"], &["nowhere"]);
    train_refused(&place, &["val_size=10"], &["val_size"]);
    train_refused(&place, &["val_size=500"], &["val_size"]);
    place
        .edit("data/dataset_info.json", |i| i["rows"]["columns"] = json!({"prompt": "question", "response": "output"}));
    train_refused(&place, &[], &["question"]);
    place.edit("data/dataset_info.json", |i| i["rows"]["columns"] = json!({"promt": "instruction"}));
    train_refused(&place, &[], &["dataset_info.json", "promt", "prompt"]);
    place.write("data/dataset_info.json", "{");
    train_refused(&place, &[], &["dataset_info.json"]);
}

#[test]
fn jsonl_rows_are_named_by_their_number() {
    let place = Place::new();
    place.write("data/dataset_info.json", r#"{"rows": {"file_name": "rows.jsonl"}}"#);
    let row = |i: usize| format!("{{\"instruction\": \"What is {i}?\", \"output\": \"{i}.\"}}\n");
    let good: String = (0..6).map(row).collect();
    place.write("data/rows.jsonl", format!("{good}{{\"instruction\": \"x\", \"output\"\n{good}"));
    train_refused(&place, &[], &["rows.jsonl", "row 7"]);
    // What LLaMA-Factory leaves out is left out, and counted.
    let null = "{\"instruction\": \"x\", \"output\": null}\n";
    place.write("data/rows.jsonl", format!("{good}{null}{null}"));
    let ran = place.train(&[]);
    assert!(ran.stderr.contains("row 7") && ran.stderr.contains("2 of 8 rows skipped"), "{}", ran.stderr);
}

#[test]
fn truncated_to_nothing() {
    let place = Place::new();
    // One token of prompt and none of the answer.
    train_refused(&place, &["cutoff_len=1"], &["rows", "cutoff_len"]);
    train_refused(&place, &["cutoff_len=0"], &["`cutoff_len`"]);
}

// ---- what is in the way ----------------------------------------------------------------------------------------------

#[test]
fn a_folder_with_a_run_in_it_is_not_trained_over() {
    let place = Place::new();
    place.train(&[]);
    train_refused(&place, &[], &["`output_dir`", "checkpoint-5", "overwrite_output_dir", "resume_from_checkpoint"]);
    // With overwriting asked for, a mistake still removes nothing.
    for (settings, words) in [
        (["overwrite_output_dir=true", "dataset=rwos"], "rwos"),
        (["overwrite_output_dir=true", "model_name_or_path=data"], "config.json"),
        (["overwrite_output_dir=true", "max_memory=1MB"], "memory"),
        (["resume_from_checkpoint=out/checkpoint-9", "seed=42"], "checkpoint-9"),
    ] {
        train_refused(&place, &settings, &[words]);
    }
    place.train(&["overwrite_output_dir=true", "max_steps=1"]);
    assert_eq!(place.json("out/trainer_state.json")["global_step"], 1);
    assert!(!place.path("out/checkpoint-5").exists());
}

#[test]
fn llama_factorys_checkpoints_are_refused_for_resume() {
    let place = Place::new();
    place.write("out/checkpoint-5/optimizer.pt", "x");
    place.write("out/checkpoint-5/adapter_model.safetensors", "x");
    for settings in [
        &["resume_from_checkpoint=true"][..],
        &["resume_from_checkpoint=out/checkpoint-5"],
        &["overwrite_output_dir=true"],
    ] {
        train_refused(&place, settings, &["checkpoint-5", "LLaMA-Factory", "adapter_name_or_path"]);
    }
}

#[test]
fn too_little_memory_is_said_with_a_setting_that_fits() {
    let place = Place::new();
    let long = |i: usize| json!({"instruction": format!("{i} ").repeat(150), "output": "y ".repeat(150)});
    place.write("data/rows.json", serde_json::to_vec(&(0..16).map(long).collect::<Vec<_>>()).unwrap());
    let settings = ["cutoff_len=512", "per_device_train_batch_size=16", "threads=1", "max_steps=1"];
    let base = ["disable_gradient_checkpointing=true", "max_memory=20MB"];
    train_refused(&place, &[&settings[..], &base].concat(), &["memory", "MiB", "this fits: "]);
    let ran = place.run(&[&["train", "run.yaml"], &settings[..], &base].concat());
    let error = error_of(&ran);
    let advice = error.split("this fits: ").nth(1).unwrap();
    let advice: Vec<String> = advice.split(", ").map(|pair| pair.replace(": ", "=")).collect();
    assert!(advice.len() > 1 && advice.iter().all(|a| a.contains('=')), "{error}");
    let advice: Vec<&str> = advice.iter().map(String::as_str).collect();
    // What the message says fits, fits.
    place.train(&[&settings[..], &base, &advice].concat());
    // And the plan refuses what training refuses.
    let plan = place.run(&[&["plan", "run.yaml"], &settings[..], &base].concat());
    assert_eq!(error_of(&plan), error);
    // Nothing fits into nothing, and that is said too.
    train_refused(&place, &["output_dir=other", "max_memory=64KB"], &["memory", "no setting makes it fit"]);
}

// ---- a run that goes wrong on its way --------------------------------------------------------------------------------

#[test]
fn a_loss_that_is_no_number_stops_the_run() {
    let place = Place::new();
    place.train(&["output_dir=good", "max_steps=2"]);
    let ran = place.run(&["train", "run.yaml", "learning_rate=1e30", "lr_scheduler_type=constant", "save_steps=1"]);
    let error = error_of(&ran);
    assert!(error.starts_with("error: step ") && error.contains("learning_rate"), "{error}");
    // The step that failed left no checkpoint, and the one before it is whole and named.
    let step: u64 = error["error: step ".len()..].split(':').next().unwrap().parse().unwrap();
    assert!(step >= 2, "the first step is still sound: {error}");
    assert!(!place.path(&format!("out/checkpoint-{step}")).exists());
    assert!(error.contains(&format!("checkpoint-{}", step - 1)), "{error}");
    assert!(place.path(&format!("out/checkpoint-{}/qlora_engine_manifest.json", step - 1)).is_file());

    // Weights that hold a NaN fail at the first step; nothing of an earlier run is touched.
    rewrite(&place, "model/model.safetensors", |name, _, data| {
        if name == "model.norm.weight" {
            data[..4].copy_from_slice(&f32::NAN.to_le_bytes());
        }
        true
    });
    let good = place.files();
    let ran = place.run(&["train", "run.yaml", "output_dir=good", "resume_from_checkpoint=true", "max_steps=5"]);
    let error = error_of(&ran);
    assert!(error.starts_with("error: step 3: ") && error.contains("good/checkpoint-2"), "{error}");
    // The log begins again where the checkpoint stands; all else is as it was.
    let after = place.files();
    let changed =
        good.iter().find(|(name, bytes)| !name.ends_with("trainer_log.jsonl") && after.get(*name) != Some(bytes));
    assert!(changed.is_none(), "{:?} was changed", changed.map(|(name, _)| name));
    let ran = place.run(&["train", "run.yaml", "output_dir=new"]);
    let error = error_of(&ran);
    assert!(error.starts_with("error: step 1: "), "{error}");
    let left: Vec<String> =
        place.files().into_keys().filter(|n| n.starts_with("new/") && n.contains("safetensors")).collect();
    assert_eq!(left, Vec::<String>::new());
}

/// A limit on file sizes stands in for a disk that is full: the write fails in the same place.
#[cfg(unix)]
#[test]
fn a_full_disk_leaves_the_old_checkpoint() {
    let place = Place::new();
    place.train(&["max_steps=2", "save_strategy=steps"]);
    let before = place.files();
    let size = before["out/checkpoint-2/adapter_model.safetensors"].len();
    let blocks = size / 2 / 1024;
    assert!(blocks > 0);
    let program = env!("CARGO_BIN_EXE_qlora-engine");
    // SIGXFSZ is ignored, so that a write beyond the limit fails with an error as on a full disk.
    let script = format!("trap '' XFSZ; ulimit -f {blocks}; exec '{program}' train run.yaml \"$@\"");
    for settings in [&["resume_from_checkpoint=true", "max_steps=5"][..], &["output_dir=fresh"]] {
        let mut shell = std::process::Command::new("bash");
        shell.args(["-c", &script, "bash"]).args(settings);
        let like = place.program();
        shell.envs(like.get_envs().filter_map(|(k, v)| Some((k, v?)))).current_dir(place.path(""));
        let error = error_of(&ran(shell.output().unwrap()));
        assert!(error.contains("cannot write") && error.contains("checkpoint-"), "{error}");
    }
    let after = place.files();
    let kept = before.iter().filter(|(name, _)| name.starts_with("out/") && !name.ends_with("trainer_log.jsonl"));
    for (name, bytes) in kept {
        assert!(after.get(name) == Some(bytes), "{name} was changed");
    }
    let half: Vec<&String> = after.keys().filter(|n| n.contains(".tmp-")).collect();
    assert!(half.is_empty(), "{half:?}");
    // With room again the run goes on from there.
    place.train(&["resume_from_checkpoint=true", "max_steps=5"]);
    assert_eq!(place.json("out/trainer_state.json")["global_step"], 5);
}
