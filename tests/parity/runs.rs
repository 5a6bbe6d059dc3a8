//! Whole trainings against LLaMA-Factory's own log, data and final weights: every `tests/golden/runs/*.yaml` with an
//! expected result, run as the command line runs it.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::atomic::{AtomicUsize, Ordering};

use qlora_engine::config;
use qlora_engine::data::template::Template;
use qlora_engine::data::tokenizer::Tokenizer;
use qlora_engine::data::{Sample, encode, source};
use qlora_engine::format::{Checkpoint, Dtype};
use serde_json::Value;

use super::common::{Failures, distance, golden, json, relative, rewritten, values, widen};

/// How far two runs may be apart.
///
/// A program that sums in another order rounds otherwise, at each of the about 30 steps between the embedding and a
/// gradient. How a run answers to one such rounding was measured: changing every starting value of an adapter by its last
/// bit moves no logged loss of these runs by more than 6e-8, no gradient norm by more than 3.5e-7. Thirty of them:
#[derive(Clone, Copy)]
struct Limits {
    loss: f64,
    grad_norm: f64,
    /// Each final tensor. AdamW divides by the gradient's size, so a tensor moves as the gradient does.
    tensors: f64,
}

const F32: Limits = Limits { loss: 2e-6, grad_norm: 1e-5, tensors: 1e-5 };

/// Runs in which LLaMA-Factory computes in bf16, because of `bf16: true` or because the checkpoint is.
const BF16: [&str; 4] = ["bf16", "bf16_of_bf16", "bf16_nf4", "pure_bf16_model"];

/// With a learning rate of 0.3 this run amplifies every rounding: what its starting values' last bits change is
/// measured with the run itself.
const UNSTABLE: &str = "early_stopping";

/// Keys of a log that hold times, or figures that depend on them.
const TIMES: [&str; 4] = ["runtime", "per_second", "total_flos", "throughput"];

fn runs() -> Vec<String> {
    let files = std::fs::read_dir(golden("runs/expected")).unwrap().map(|e| e.unwrap().path());
    let json = files.filter(|p| p.extension().is_some_and(|e| e == "json"));
    let mut names: Vec<String> = json.map(|p| p.file_stem().unwrap().to_str().unwrap().to_string()).collect();
    names.sort();
    assert!(names.len() >= 76, "{} expected results", names.len());
    names
}

fn expected(run: &str) -> Value {
    json(&golden(&format!("runs/expected/{run}.json")))
}

/// Trains as `qlora-engine train <run>.yaml output_dir=<out>` does, in `tests/golden/runs`.
fn train(run: &str, out: &Path, cache: &Path, more: &[String]) -> Result<(), String> {
    let done = Command::new(env!("CARGO_BIN_EXE_qlora-engine"))
        .args(["train".to_string(), format!("{run}.yaml"), format!("output_dir={}", out.display())])
        .args(more)
        .env("QLORA_CACHE", cache)
        .current_dir(golden("runs"))
        .output()
        .unwrap();
    if done.status.success() { Ok(()) } else { Err(String::from_utf8_lossy(&done.stderr).into_owned()) }
}

fn rows(log: &Value) -> &[Value] {
    log["log_history"].as_array().unwrap()
}

/// `work` over `items`, two at a time.
fn two_at_a_time<T: Sync>(items: &[T], work: impl Fn(&T, &mut Failures) + Sync) {
    let (next, failures) = (AtomicUsize::new(0), Mutex::new(Failures::default()));
    let one = || {
        let mut f = Failures::default();
        while let Some(item) = items.get(next.fetch_add(1, Ordering::Relaxed)) {
            work(item, &mut f);
        }
        failures.lock().unwrap().0.append(&mut f.0);
    };
    std::thread::scope(|s| {
        s.spawn(one);
        one();
    });
    let mut f = failures.into_inner().unwrap();
    f.0.sort();
    f.report();
}

/// Losses: what the project promises (the runs have so many labels a step that rounding stays below: "Rounding in bf16" in
/// tests/golden/README.md).
///
/// The others: D, the largest distance between what LLaMA-Factory itself gives for one run in its three ways to bf16: a
/// bf16 base with and without autocast, and an f32 base with it. Nothing that rounds to bf16 at other places can be held
/// to less. The distance of a tensor is over hundreds of values; that of a gradient norm is one number a step, and small
/// by luck in many. If none of the three is further than D from the exact norm, a fourth of that quality is up to 2 D
/// from each.
fn bf16_limits() -> Limits {
    let variants = ["bf16", "bf16_of_bf16", "pure_bf16_model"];
    let pairs = || variants.iter().flat_map(|a| variants.iter().map(move |b| (*a, *b)));
    let grad_norm = pairs().flat_map(|(a, b)| {
        let norms = |run| rows(&expected(run)).iter().filter_map(|r| r["grad_norm"].as_f64()).collect::<Vec<_>>();
        norms(a).into_iter().zip(norms(b)).map(|(a, b)| relative(a, b)).collect::<Vec<_>>()
    });
    let grad_norm = 2.0 * grad_norm.fold(0.0, f64::max);
    let open = |run: &str| Checkpoint::open_file(&golden(&format!("runs/expected/{run}.safetensors"))).unwrap();
    let tensors = pairs().flat_map(|(a, b)| {
        let (a, b) = (open(a), open(b));
        a.names().map(|n| distance(&widen(&values(&a, n)), &widen(&values(&b, n)))).collect::<Vec<_>>()
    });
    let tensors = tensors.fold(0.0, f64::max);
    assert!(grad_norm > 0.0 && grad_norm < 7e-3 && tensors > 0.0 && tensors < 3e-3, "{grad_norm:e} {tensors:e}");
    Limits { loss: 1e-3, grad_norm, tensors }
}

/// For each row and key of the unstable run, how far three runs from starting values changed in their last bit are
/// from the unchanged one, at most.
fn drift(scratch: &Path) -> Vec<HashMap<String, f64>> {
    let history = |out: &str, more: &[String]| {
        let out = scratch.join(out);
        train(UNSTABLE, &out, &scratch.join("cache"), more).unwrap();
        rows(&json(&out.join("trainer_state.json"))).to_vec()
    };
    let plain = history("plain", &[]);
    let mut largest = vec![HashMap::new(); plain.len()];
    for seed in 1..=3u64 {
        let adapter = scratch.join(format!("adapter{seed}"));
        let mut state = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15);
        rewritten(&golden("models/qwen3/adapter"), &adapter, "adapter_model.safetensors", Dtype::F32, |_, x| {
            for x in x {
                state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
                *x = if state >> 63 == 1 { x.next_up() } else { x.next_down() };
            }
        });
        let changed = history(&format!("out{seed}"), &[format!("adapter_name_or_path={}", adapter.display())]);
        assert_eq!(changed.len(), plain.len(), "rows");
        for (largest, (a, b)) in largest.iter_mut().zip(changed.iter().zip(&plain)) {
            for (key, b) in b.as_object().unwrap() {
                let off = relative(a[key].as_f64().unwrap(), b.as_f64().unwrap());
                let at: &mut f64 = largest.entry(key.clone()).or_default();
                *at = at.max(off);
            }
        }
    }
    largest
}

#[test]
fn every_run_is_llama_factorys() {
    let scratch = tempfile::tempdir().unwrap();
    let bf16 = bf16_limits();
    let drift = drift(&scratch.path().join("drift"));
    // Were the run stable, its limits would be the others'.
    assert!(drift.iter().any(|row| row.values().any(|&d| d > 1e-4)), "{UNSTABLE} is stable");
    two_at_a_time(&runs(), |run, f| {
        let out = scratch.path().join(run);
        if let Err(e) = train(run, &out, &scratch.path().join("cache"), &[]) {
            return f.0.push(format!("{run}: {e}"));
        }
        let limits = if BF16.contains(&run.as_str()) { bf16 } else { F32 };
        let (state, want) = (json(&out.join("trainer_state.json")), expected(run));
        compare_logs(f, run, &state, &want, limits, if run == UNSTABLE { Some(&drift) } else { None });
        // The results lie next to the last row of the log.
        let last = drift.last().filter(|_| run == UNSTABLE);
        for kind in ["train", "eval"] {
            let Some(want) = want.get(format!("{kind}_results")) else { continue };
            let got = json(&out.join(format!("{kind}_results.json")));
            let steady = |key: &str| !is_time(key) && key != "num_input_tokens_seen";
            for (key, want) in want.as_object().unwrap().iter().filter(|(k, _)| steady(k)) {
                let limit = limits.loss + 3.0 * last.and_then(|d| d.get(key)).copied().unwrap_or(0.0);
                let got = got[key].as_f64().unwrap_or(f64::NAN);
                f.at_most(&format!("{run} {kind}_results {key}"), relative(got, want.as_f64().unwrap()), limit);
            }
        }
        compare_tensors(f, run, &out, &want, limits);
        let _ = std::fs::remove_dir_all(&out);
    });
}

fn is_time(key: &str) -> bool {
    TIMES.iter().any(|t| key.contains(t))
}

fn compare_logs(
    f: &mut Failures,
    run: &str,
    state: &Value,
    want: &Value,
    limits: Limits,
    drift: Option<&Vec<HashMap<String, f64>>>,
) {
    f.equal(&format!("{run} max_steps"), &state["max_steps"], &want["max_steps"]);
    f.equal(&format!("{run} best step"), &state["best_global_step"], &want["best"][0]);
    if let Some(best) = want["best"][1].as_f64() {
        let got = state["best_metric"].as_f64().unwrap_or(f64::NAN);
        f.at_most(&format!("{run} best metric"), relative(got, best), limits.loss);
    }
    let (got, want) = (rows(state), rows(want));
    f.equal(&format!("{run} rows of the log"), &got.len(), &want.len());
    for (i, (got, want)) in got.iter().zip(want).enumerate() {
        for (key, want) in want.as_object().unwrap() {
            let what = format!("{run} row {i} (step {}) {key}", got["step"]);
            let want = want.as_f64().unwrap();
            // Losses compare like for like: in f32 their own last bit is 6e-8, far below every limit here.
            let limit = match key.as_str() {
                // We have no padding to count: a test of its own below.
                "num_input_tokens_seen" => continue,
                "step" | "epoch" => 0.0,
                "learning_rate" => 1e-12,
                "grad_norm" => limits.grad_norm,
                _ => limits.loss,
            };
            // Three changed runs show the size of the drift, not its bound: it may be three times as large.
            let amplified = drift.and_then(|d| d.get(i)?.get(key)).map_or(0.0, |d| 3.0 * d);
            f.at_most(&what, relative(got[key].as_f64().unwrap_or(f64::NAN), want), limit + amplified);
        }
        let extra: Vec<&String> = got.as_object().unwrap().keys().filter(|k| want.get(k).is_none()).collect();
        let unknown: Vec<_> = extra.iter().filter(|k| !is_time(k) && **k != "eval_token_loss").collect();
        f.equal(&format!("{run} row {i}: keys that LLaMA-Factory's has not"), &unknown, &Vec::new());
    }
}

fn compare_tensors(f: &mut Failures, run: &str, out: &Path, want: &Value, limits: Limits) {
    let adapter = out.join("adapter_model.safetensors");
    let file = if adapter.exists() { adapter } else { out.join("model.safetensors") };
    let got = match Checkpoint::open_file(&file) {
        Ok(got) => got,
        Err(e) => return f.0.push(format!("{run}: {e}")),
    };
    let (mut names, norms): (Vec<&str>, _) = (got.names().collect(), want["norms"].as_object().unwrap());
    // GPT-2's file has no `transformer.` before its names, as on the hub; ours keeps its names, transformers adds that.
    let stored =
        |name: &'_ str| if got.contains(name) { name } else { name.trim_start_matches("transformer.") }.to_string();
    let wanted: Vec<String> = norms.keys().map(|name| stored(name)).collect();
    let mut wanted: Vec<&str> = wanted.iter().map(String::as_str).collect();
    names.sort();
    wanted.sort();
    f.equal(&format!("{run} tensors"), &names, &wanted);
    for (name, norm) in norms {
        let name = &stored(name);
        if !got.contains(name) {
            continue;
        }
        let x = widen(&values(&got, name));
        let own = x.iter().map(|x| x * x).sum::<f64>().sqrt();
        let norm = norm.as_f64().unwrap();
        // GPT-2's bias of k adds the same to all scores of a query, so its gradient is what rounding leaves of 0, and AdamW
        // makes steps of the learning rate's size of that: each of the 32 values may have gone either way, both times.
        let limit = match name.ends_with("c_attn.bias") {
            true => 2.0 * 32f64.sqrt() * 5e-4 * want["max_steps"].as_f64().unwrap() / norm,
            false => limits.tensors,
        };
        f.at_most(&format!("{run} norm of {name}"), relative(own, norm), limit);
    }
    let whole = golden(&format!("runs/expected/{run}.safetensors"));
    if whole.exists() {
        let whole = Checkpoint::open_file(&whole).unwrap();
        for name in whole.names().filter(|n| got.contains(n)) {
            let off = distance(&widen(&values(&got, name)), &widen(&values(&whole, name)));
            f.at_most(&format!("{run} {name}"), off, limits.tensors);
        }
    }
}

/// The rows of a run's training set, tokenised and packed.
fn samples(run: &str) -> qlora_engine::Result<(Vec<Sample>, Tokenizer)> {
    let runs = golden("runs");
    let yaml = std::fs::read_to_string(runs.join(format!("{run}.yaml"))).unwrap();
    let line = yaml.lines().find_map(|l| l.strip_prefix("model_name_or_path: ")).unwrap();
    let folder: PathBuf = runs.join(line);
    let config = config::load(&[
        runs.join(format!("{run}.yaml")).display().to_string(),
        format!("dataset_dir={}", runs.join("data").display()),
        format!("model_name_or_path={}", folder.display()),
    ])?;
    let mut tokenizer = Tokenizer::load(&folder, false)?;
    let template = Template::load(&config.data, &mut tokenizer)?;
    let records = source::load(&config, &|_, _| {})?.train;
    let made = encode::tokenise(&records, &config, &tokenizer, &template, 1, &|_, _| {})?;
    Ok((made.samples, tokenizer))
}

/// Labels as the golden files have them: n masked ones in a row as [-100, n].
fn squeezed(sample: &Sample) -> Vec<Value> {
    let mut out: Vec<Value> = Vec::new();
    for (&id, &trained) in sample.ids.iter().zip(&sample.trained) {
        match out.last_mut() {
            _ if trained => out.push(id.into()),
            Some(Value::Array(run)) => run[1] = (run[1].as_u64().unwrap() + 1).into(),
            _ => out.push(vec![-100, 1].into()),
        }
    }
    out
}

/// Every row has LLaMA-Factory's tokens and labels; what it fills packed rows up with is not there.
#[test]
fn every_row_is_llama_factorys() {
    two_at_a_time(&runs(), |run, f| {
        let want = expected(run);
        let (got, tokenizer) = match samples(run) {
            Ok(made) => made,
            Err(e) => return f.0.push(format!("{run}: {e}")),
        };
        let numbers = |key: &str| -> Vec<usize> {
            want[key].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as usize).collect()
        };
        // Neat and plain packing fill rows up to cutoff_len (pretraining drops what does not fill one).
        let filled = run.contains("packing");
        let lengths: Vec<usize> = got.iter().map(|s| s.ids.len()).collect();
        if filled {
            let longer = lengths.iter().zip(numbers("lengths")).all(|(ours, theirs)| *ours < theirs);
            f.equal(&format!("{run} rows are at least one short"), &longer, &true);
            f.equal(&format!("{run} rows"), &lengths.len(), &numbers("lengths").len());
        } else {
            f.equal(&format!("{run} lengths"), &lengths, &numbers("lengths"));
        }
        let trained: Vec<usize> = got.iter().map(|s| s.trained.iter().filter(|t| **t).count()).collect();
        f.equal(&format!("{run} labels"), &trained, &numbers("trained"));
        for (i, (got, want)) in got.iter().zip(want["first"].as_array().unwrap()).enumerate() {
            let what = |part: &str| format!("{run} row {i} {part}");
            let ids: Vec<u32> =
                want["input_ids"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
            let (kept, filling) = ids.split_at(got.ids.len().min(ids.len()));
            f.equal(&what("ids"), &got.ids.as_slice(), &kept);
            let pad = tokenizer.pad_id().or(tokenizer.eos_id());
            f.equal(&what("filling"), &filling.iter().all(|id| Some(*id) == pad), &true);
            let mut labels = squeezed(got);
            if !filling.is_empty() {
                match labels.last_mut() {
                    Some(Value::Array(run)) => run[1] = (run[1].as_u64().unwrap() + filling.len() as u64).into(),
                    _ => labels.push(vec![-100, filling.len() as i64].into()),
                }
            }
            f.equal(&what("labels"), &labels, want["labels"].as_array().unwrap());
            if let Some(positions) = want.get("position_ids").filter(|_| filled) {
                let ours: Vec<Value> = got.pieces.iter().flat_map(|&n| 0..n).map(Value::from).collect();
                f.equal(&what("positions"), &ours.as_slice(), &&positions.as_array().unwrap()[..got.ids.len()]);
            }
        }
    });
}

/// LLaMA-Factory's count of tokens counts padding; there is none here, so ours is that of the rows.
#[test]
fn tokens_seen_are_those_of_the_rows() {
    let scratch = tempfile::tempdir().unwrap();
    train("logging_steps", &scratch.path().join("out"), &scratch.path().join("cache"), &[]).unwrap();
    let state = json(&scratch.path().join("out/trainer_state.json"));
    let want = expected("logging_steps");
    let row: u64 = want["lengths"].as_array().unwrap().iter().map(|x| x.as_u64().unwrap()).sum();
    let (got, padded) = (rows(&state).last().unwrap(), rows(&want).last().unwrap());
    assert_eq!(got["num_input_tokens_seen"].as_u64(), Some(2 * row), "two epochs");
    let results = json(&scratch.path().join("out/train_results.json"));
    assert_eq!(results["num_input_tokens_seen"].as_u64(), Some(2 * row), "train_results.json");
    assert!(padded["num_input_tokens_seen"].as_u64().unwrap() > 2 * row, "padding counts there");
}
