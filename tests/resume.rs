//! A run that is killed, stopped or given other threads ends with the same bits as one that is left alone.

#![cfg(unix)]

mod common;

use std::io::{BufRead, BufReader};
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command};
use std::time::Duration;

use common::Place;
use serde_json::{Map, Value};

/// What two runs must have in common: trained weights to the byte, and every logged figure but times.
#[derive(Debug, PartialEq)]
struct Result {
    weights: Vec<u8>,
    history: Vec<Map<String, Value>>,
    log: Vec<Map<String, Value>>,
    best: Value,
}

fn result(place: &Place, dir: &str) -> Result {
    let weights = ["adapter_model.safetensors", "model.safetensors"].map(|name| place.path(dir).join(name));
    let weights = weights.iter().find(|path| path.is_file()).expect("no weights");
    let state = place.json(&format!("{dir}/trainer_state.json"));
    let rows = |text: &Value| text.as_object().cloned().unwrap();
    let history: Vec<_> = state["log_history"].as_array().unwrap().iter().map(rows).collect();
    let log = String::from_utf8(place.read(&format!("{dir}/trainer_log.jsonl"))).unwrap();
    let log: Vec<_> = log.lines().map(|l| rows(&serde_json::from_str(l).unwrap())).collect();
    Result {
        weights: std::fs::read(weights).unwrap(),
        history: history.into_iter().map(without_times).collect(),
        log: log.into_iter().map(without_times).collect(),
        best: state["best_metric"].clone(),
    }
}

fn without_times(mut row: Map<String, Value>) -> Map<String, Value> {
    row.retain(|name, _| !["_runtime", "_per_second", "_time", "throughput"].iter().any(|end| name.ends_with(end)));
    row
}

/// The same, said without printing kilobytes of weights.
fn assert_same(got: &Result, want: &Result, what: &str) {
    assert_eq!(got.history, want.history, "{what}: log_history");
    assert_eq!(got.log, want.log, "{what}: trainer_log.jsonl");
    assert_eq!(got.best, want.best, "{what}: best_metric");
    assert!(got.weights == want.weights, "{what}: the weights differ");
}

/// Numbers for where to kill: SplitMix64 (Steele, Lea, Flood 2014), so that a failure repeats.
struct Random(u64);

impl Random {
    fn below(&mut self, n: u64) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (z ^ (z >> 31)) % n
    }
}

fn start(place: &Place, settings: &[&str]) -> Child {
    place.program().args(["train", "run.yaml"]).args(settings).spawn().unwrap()
}

/// Reads what `child` prints until `stop` says so of a line, and hands the rest back to be read.
fn read_until(child: &mut Child, mut stop: impl FnMut(&str) -> bool) -> BufReader<std::process::ChildStdout> {
    let mut out = BufReader::new(child.stdout.take().unwrap());
    let mut line = String::new();
    while out.read_line(&mut line).unwrap() > 0 && !stop(&line) {
        line.clear();
    }
    out
}

/// Trains in `dir`, killed `kills` times at random places, and resumed each time until it is done.
fn train_with_kills(place: &Place, settings: &[&str], dir: &str, kills: usize, random: &mut Random) {
    let out = format!("output_dir={dir}");
    let settings = [settings, &[&out, "resume_from_checkpoint=true"]].concat();
    let mut killed = 0;
    while killed < kills {
        let mut child = start(place, &settings);
        // A step prints a line, a checkpoint another; the two before the first step count too.
        let mut lines = random.below(9);
        let out = read_until(&mut child, |_| {
            lines = lines.saturating_sub(1);
            lines == 0
        });
        std::thread::sleep(Duration::from_micros(random.below(4000)));
        child.kill().unwrap();
        drop(out);
        let status = child.wait_with_output().unwrap().status;
        if status.signal() != Some(9) {
            break; // it was done before
        }
        killed += 1;
    }
    assert!(killed >= 2, "the run was over before it could be killed twice: make it longer");
    place.train(&settings);
}

/// 16 steps of 2 rows, saved at each or each third.
const LONG: [&str; 2] = ["max_steps=16", "save_steps=1"];

fn killed_equals_uninterrupted(seed: u64, settings: &[&str]) {
    let place = Place::new();
    let mut random = Random(seed);
    let settings = [&LONG[..], settings].concat();
    place.train(&[&settings[..], &["output_dir=whole"]].concat());
    let want = result(&place, "whole");
    assert!(want.history.len() > 4, "too little is compared: {:?}", want.history);
    train_with_kills(&place, &settings, "killed", 4, &mut random);
    assert_same(&result(&place, "killed"), &want, &format!("{settings:?}, seed {seed}"));
}

#[test]
fn killed_with_everything_random_on() {
    let settings = ["lora_dropout=0.2", "neftune_noise_alpha=5", "gradient_accumulation_steps=2", "warmup_ratio=0.2"];
    killed_equals_uninterrupted(1, &settings);
    // Saved seldom: what came after the last checkpoint is done again.
    killed_equals_uninterrupted(2, &[&settings[..], &["save_steps=3", "logging_steps=2", "weight_decay=0.1"]].concat());
}

#[test]
fn killed_amid_evaluations() {
    let eval = ["val_size=0.3", "do_eval=true", "load_best_model_at_end=true", "save_total_limit=2", "plot_loss=true"];
    killed_equals_uninterrupted(3, &[&eval[..], &["eval_strategy=steps", "eval_steps=2", "save_steps=2"]].concat());
    let epochs = ["eval_strategy=epoch", "val_size=0.3", "logging_steps=3", "include_num_input_tokens_seen=true"];
    killed_equals_uninterrupted(4, &epochs);
}

#[test]
fn killed_while_streaming() {
    killed_equals_uninterrupted(
        5,
        &["streaming=true", "buffer_size=4", "lora_dropout=0.1", "preprocessing_batch_size=3"],
    );
}

#[test]
fn killed_with_a_quantised_base() {
    killed_equals_uninterrupted(6, &["quantization_bit=4", "bf16=true", "packing=true", "cutoff_len=64"]);
}

#[test]
fn killed_with_whole_weights() {
    killed_equals_uninterrupted(7, &["finetuning_type=full", "learning_rate=1e-3"]);
    killed_equals_uninterrupted(8, &["finetuning_type=freeze", "freeze_trainable_layers=1", "save_steps=2"]);
    killed_equals_uninterrupted(9, &["finetuning_type=full", "pure_bf16=true", "learning_rate=1e-3", "save_steps=2"]);
}

#[test]
fn killed_with_moments_in_8_bits() {
    killed_equals_uninterrupted(10, &["optim=adamw_8bit", "save_steps=2"]);
}

/// A run that ended early and was killed before it had written its results does not train on.
#[test]
fn killed_after_stopping_early() {
    let place = Place::new();
    let stopping = [
        "val_size=0.3",
        "eval_strategy=steps",
        "eval_steps=1",
        "save_steps=1",
        "early_stopping_steps=2",
        "metric_for_best_model=eval_loss",
        "load_best_model_at_end=true",
        // Nothing changes, so nothing improves.
        "learning_rate=0",
        "max_steps=16",
    ];
    place.train(&stopping);
    let want = result(&place, "out");
    let steps = place.json("out/trainer_state.json")["global_step"].as_u64().unwrap();
    assert!(steps < 16, "it was to stop early");
    for name in ["adapter_model.safetensors", "trainer_state.json", "all_results.json"] {
        std::fs::remove_file(place.path("out").join(name)).unwrap();
    }
    place.train(&[&stopping[..], &["resume_from_checkpoint=true"]].concat());
    assert_same(&result(&place, "out"), &want, "stopped early");
}

/// Sends SIGINT after the line that says step 3, and returns what the program said.
fn interrupt(place: &Place, settings: &[&str]) -> common::Ran {
    let mut child = start(place, settings);
    let out = read_until(&mut child, |line| line.contains("step 3/"));
    let sent = Command::new("sh").args(["-c", &format!("kill -INT {}", child.id())]).status().unwrap();
    assert!(sent.success());
    for line in out.lines() {
        line.unwrap();
    }
    common::ran(child.wait_with_output().unwrap())
}

#[test]
fn ctrl_c_saves_and_leaves() {
    let place = Place::new();
    let settings = ["max_steps=400", "save_steps=1000", "logging_steps=1", "lora_dropout=0.1"];
    let short = [&settings[..], &["output_dir=whole"]].concat();
    place.train(&short);
    let ran = interrupt(&place, &settings);
    assert_eq!(ran.code, Some(130), "{}", ran.stderr);
    let last = ran.stderr.lines().last().unwrap();
    assert!(last.starts_with("error: stopped at step ") && last.contains("state saved in out/checkpoint-"), "{last}");
    let saved = last.rsplit(' ').next().unwrap();
    assert!(place.path(saved).join("qlora_engine_manifest.json").is_file(), "{saved}");
    assert!(!place.path("out/adapter_model.safetensors").exists(), "only a finished run leaves its result");
    place.train(&[&settings[..], &["resume_from_checkpoint=true"]].concat());
    assert_same(&result(&place, "out"), &result(&place, "whole"), "after Ctrl-C");
}

#[test]
fn a_damaged_checkpoint_is_passed_over() {
    let place = Place::new();
    let settings = ["max_steps=8", "save_steps=2"];
    place.train(&[&settings[..], &["output_dir=whole"]].concat());
    let want = result(&place, "whole");
    type Damage<'a> = (&'a str, &'a dyn Fn(&Place));
    let damages: [Damage<'_>; 4] = [
        ("a file cut short", &|p| {
            let bytes = p.read("out/checkpoint-8/optimizer.safetensors");
            p.write("out/checkpoint-8/optimizer.safetensors", &bytes[..bytes.len() - 1]);
        }),
        ("one bit changed", &|p| {
            let mut bytes = p.read("out/checkpoint-8/adapter_model.safetensors");
            *bytes.last_mut().unwrap() ^= 1;
            p.write("out/checkpoint-8/adapter_model.safetensors", bytes);
        }),
        ("a file gone", &|p| std::fs::remove_file(p.path("out/checkpoint-8/trainer_state.json")).unwrap()),
        ("no manifest", &|p| std::fs::remove_file(p.path("out/checkpoint-8/qlora_engine_manifest.json")).unwrap()),
    ];
    for (what, damage) in damages {
        place.train(&[&settings[..], &["overwrite_output_dir=true"]].concat());
        damage(&place);
        // What a kill amid writing leaves.
        place.write("out/.tmp-checkpoint-9/adapter_model.safetensors", "half");
        let ran = place.train(&[&settings[..], &["resume_from_checkpoint=true"]].concat());
        assert!(ran.stderr.contains("checkpoint-8") && ran.stderr.contains("passed over"), "{what}: {}", ran.stderr);
        assert!(ran.stdout.contains("resumed at step 6 of 8"), "{what}: {}", ran.stdout);
        assert_same(&result(&place, "out"), &want, what);
        assert!(!place.path("out/.tmp-checkpoint-9").exists(), "{what}");
    }
    // Named outright, a damaged one is refused, not passed over.
    std::fs::remove_file(place.path("out/checkpoint-4/qlora_engine_manifest.json")).unwrap();
    let ran = place.run(&["train", "run.yaml", "max_steps=8", "resume_from_checkpoint=out/checkpoint-4"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("checkpoint-4"), "{}", ran.stderr);
}

#[test]
fn the_number_of_threads_changes_no_bit() {
    let place = Place::new();
    for settings in [
        &["lora_dropout=0.1", "per_device_train_batch_size=4"][..],
        &["quantization_bit=4", "bf16=true", "disable_gradient_checkpointing=true"],
        &["finetuning_type=full", "neftune_noise_alpha=5", "gradient_accumulation_steps=2"],
    ] {
        let results: Vec<Result> = (1..=3)
            .map(|n| {
                let threads = [format!("threads={n}"), format!("output_dir=t{n}")];
                let threads: Vec<&str> = threads.iter().map(String::as_str).collect();
                place.train(&[settings, &threads, &["overwrite_output_dir=true", "max_steps=6"]].concat());
                result(&place, &format!("t{n}"))
            })
            .collect();
        assert_same(&results[1], &results[0], &format!("{settings:?}, 2 threads"));
        assert_same(&results[2], &results[0], &format!("{settings:?}, 3 threads"));
    }
}
