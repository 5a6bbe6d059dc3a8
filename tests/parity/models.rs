//! One forward and backward pass of each family: logits, loss and every gradient.

use std::path::{Path, PathBuf};

use qlora_engine::config::{self, Config, Format};
use qlora_engine::data::batch::Padding;
use qlora_engine::data::{Batch, Sample};
use qlora_engine::device::Device;
use qlora_engine::format::{Checkpoint, Dtype};
use qlora_engine::model::{self, Model, Pass, Policy};
use qlora_engine::quant::nf4::{Absmax, Nf4, double_quantise};
use qlora_engine::tensor::{DType, Tensor};
use qlora_engine::train::{Target, plan};

use super::common::{
    Failures, distance, golden, json, lies_transposed, relative, rewritten, transposed, values, widen, with_matrix,
};

pub const FAMILIES: [&str; 7] = ["llama2", "llama3", "mistral", "qwen2", "qwen3", "phi3", "gpt2"];

/// How far an f64 pass may be from the golden one. That was rounded to f32 once, by 2^-24; and its tables of sines and
/// cosines are those of f32 angles: below 8 radians they are off by up to 2^-22, which turns q and k by as much, and a
/// score by twice that.
const ORACLE: f64 = 5.4e-7;

/// How far an f32 pass may be. Each of some 30 steps on the way from the embedding to a gradient rounds by at most
/// 2^-24 a value, sums of 32 to 64 products among them; independent roundings add as the root of their number:
/// 2^-24 * sqrt(30 * 64) = 2.6e-6.
const F32: f64 = 2.6e-6;

/// The sequences of the golden batch.
fn batch() -> Batch {
    let file = json(&golden("models/batch.json"));
    let samples: Vec<Sample> = file["sequences"]
        .as_array()
        .unwrap()
        .iter()
        .zip(file["labels"].as_array().unwrap())
        .map(|(ids, labels)| {
            let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|x| x.as_u64().unwrap() as u32).collect();
            let labels = labels.as_array().unwrap().iter().map(|x| x.as_i64().unwrap());
            let trained = labels.map(|label| label != -100).collect();
            Sample { trained, pieces: vec![ids.len() as u32], ids, block_diagonal: false }
        })
        .collect();
    let batch = Batch::collate(&samples.iter().collect::<Vec<_>>(), Padding { multiple_of: 8, at_least: 0 });
    assert_eq!((batch.ids.len(), batch.labels), (16, 11), "the golden batch");
    batch
}

/// A run's settings with these lines of YAML.
fn config(base: &Path, lines: &str) -> Config {
    let text = format!("model_name_or_path: {}\ndataset: x\noutput_dir: x\ndo_train: true\n{lines}", base.display());
    config::from_str(&text, Format::Yaml, &[]).unwrap()
}

fn lora(base: &Path, adapter: &Path) -> Config {
    config(base, &format!("finetuning_type: lora\nadapter_name_or_path: {}", adapter.display()))
}

fn load(base: &Path, config: &Config, dtype: DType, nf4: Option<bool>) -> Model {
    let mut options = plan::options(config, 16, &Target::Cpu { threads: 2 });
    options.dtype = dtype;
    options.nf4 = nf4;
    model::load(base, &options, &Device::cpu(2), &|_, _| {}).unwrap()
}

/// What a pass gives.
struct Passed {
    /// Empty if not asked for.
    logits: Vec<f64>,
    /// Per label.
    loss: f64,
    /// By the names of the model's entries.
    grads: Vec<(String, Vec<f64>)>,
}

fn pass(model: &Model, policy: Policy) -> Passed {
    let batch = batch();
    let rows: Vec<u32> = (0..batch.ids.len() as u32).collect();
    let logits = model.logits(&batch, &rows).unwrap().to_f64();
    let mut flat = model.params.zeros_like().unwrap();
    let scale = 1.0 / batch.labels as f64;
    let p = Pass { policy: policy.into(), dropout: 0.0, neftune: None, seed: 0, micro_step: 0, scale };
    let mut loss = Tensor::zeros(1, 1, DType::F64, &model.device).unwrap();
    model.loss_and_grad(&batch, p, &mut loss, &mut flat).unwrap();
    let loss = loss.to_f64()[0] * scale;
    let flat = flat.to_f64();
    let grads = model.params.entries.iter().map(|e| (e.name.clone(), e.as_saved(flat[e.range()].to_vec()))).collect();
    Passed { logits, loss, grads }
}

/// Compares a pass with `models/<family>/golden/<case>`; `prefix` is what PEFT puts before a tensor's name. Every
/// golden gradient must be found.
fn compare(f: &mut Failures, family: &str, case: &str, prefix: &str, got: &Passed, limit: f64) {
    let file = Checkpoint::open_file(&golden(&format!("models/{family}/golden/{case}.safetensors"))).unwrap();
    let losses = json(&golden(&format!("models/{family}/golden/losses.json")));
    let what = |part: &str| format!("{family} {case} {part} (limit {limit:.0e})");
    f.at_most(&what("loss"), relative(got.loss, losses[case].as_f64().unwrap()), limit);
    if file.contains("logits") {
        f.at_most(&what("logits"), distance(&got.logits, &widen(&values(&file, "logits"))), limit);
    }
    let mut wanted: Vec<&str> = file.names().filter_map(|n| n.strip_prefix("grad.")).collect();
    for (name, grad) in &got.grads {
        let stored = format!("{prefix}{name}");
        let Some(at) = wanted.iter().position(|w| *w == stored) else { continue };
        wanted.swap_remove(at);
        f.at_most(&what(name), distance(grad, &widen(&values(&file, &format!("grad.{stored}")))), limit);
    }
    f.equal(&what("gradients that we have not"), &wanted, &Vec::new());
}

const PEFT: &str = "base_model.model.";

fn folder(family: &str) -> PathBuf {
    golden(&format!("models/{family}"))
}

/// The f64 oracle and f32, for an adapter, for all weights, for modules trained beside an adapter and for rank-stabilised
/// scaling.
#[test]
fn dense() {
    let mut f = Failures::default();
    let scratch = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let base = folder(family);
        let mut cases = vec![("f32", PEFT, lora(&base, &base.join("adapter")))];
        if ["llama2", "qwen3"].contains(&family) {
            // The same adapter, its configuration saying use_rslora.
            let stable = scratch.path().join(family);
            rewritten(&base.join("adapter"), &stable, "adapter_model.safetensors", Dtype::F32, |_, _| {});
            let path = stable.join("adapter_config.json");
            let mut c = json(&path);
            c["use_rslora"] = true.into();
            std::fs::write(&path, c.to_string()).unwrap();
            cases.push(("rslora", PEFT, lora(&base, &stable)));
            cases.push(("full", "", config(&base, "finetuning_type: full")));
        }
        if family == "gpt2" {
            // Its tensors are called as on the hub, without `transformer.`
            cases.push(("full", "transformer.", config(&base, "finetuning_type: full")));
        }
        for (of, module) in [("llama3", "lm_head"), ("qwen3", "embed_tokens")] {
            if of == family {
                cases.push((module, PEFT, lora(&base, &base.join(format!("adapter_{module}")))));
            }
        }
        for (case, prefix, config) in cases {
            for (dtype, limit) in [(DType::F64, ORACLE), (DType::F32, F32)] {
                let model = load(&base, &config, dtype, None);
                compare(&mut f, family, case, prefix, &pass(&model, Policy::KEEP), limit);
            }
        }
    }
    f.report();
}

/// Trained matrices that lie transposed in the checkpoint are read and given back as they lie there.
#[test]
fn transposed_matrices_come_back() {
    let base = folder("gpt2");
    let file = Checkpoint::open(&base).unwrap();
    let model = load(&base, &config(&base, "finetuning_type: full"), DType::F32, None);
    let turned = model.params.entries.iter().filter(|e| e.turned).count();
    assert_eq!((turned, model.params.entries.len()), (8, 28));
    for (i, e) in model.params.entries.iter().enumerate() {
        assert_eq!(e.shape, file.get(&e.name).unwrap().shape, "{}", e.name);
        assert!(model.params.values(i) == values(&file, &e.name), "{}", e.name);
    }
}

/// A copy of `base` whose linear layers hold what their NF4 stands for; `offset` gives the mean that was subtracted from
/// absmax, where it is quantised too.
fn dequantised(base: &Path, to: &Path, dtype: Dtype, double: bool, offset: &dyn Fn(&str) -> Option<f32>) {
    let source = Checkpoint::open(base).unwrap();
    rewritten(base, to, "model.safetensors", dtype, |name, x| {
        if ![".c_attn.weight", ".c_fc.weight", "_proj.weight"].iter().any(|end| name.ends_with(end)) {
            return;
        }
        let mut q = with_matrix(&source, name, |view| Nf4::from_view(view, false, 1).unwrap());
        if double {
            let given = offset(name.trim_end_matches(".weight"));
            let Absmax::Plain(absmax) = &q.absmax else { panic!("not asked to double") };
            q.absmax = match given {
                Some(offset) => double_quantise(absmax, offset),
                None => with_matrix(&source, name, |view| Nf4::from_view(view, true, 1).unwrap().absmax),
            };
        }
        q.dequantise_f32(x).unwrap();
        if lies_transposed(name) {
            *x = transposed(x, q.rows, q.cols);
        }
    });
}

/// A 4-bit base: the oracle on the values that the codes stand for, and f32 on the codes themselves.
#[test]
fn nf4() {
    let mut f = Failures::default();
    let scratch = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let base = folder(family);
        let config = lora(&base, &base.join("adapter"));
        for (case, double) in [("nf4", true), ("nf4_single", false)] {
            let path = golden(&format!("models/{family}/golden/{case}.safetensors"));
            if !path.exists() {
                continue;
            }
            let file = Checkpoint::open_file(&path).unwrap();
            let to = scratch.path().join(format!("{family}_{case}"));
            let prefix = if family == "gpt2" { "transformer." } else { "" };
            let offset = |linear: &str| Some(values(&file, &format!("{prefix}{linear}.offset"))[0]);
            dequantised(&base, &to, Dtype::F32, double, &offset);
            let oracle = load(&to, &config, DType::F64, None);
            compare(&mut f, family, case, PEFT, &pass(&oracle, Policy::KEEP), ORACLE);
            // Our own offset differs from theirs in its last bit at most, which is within F32.
            let model = load(&base, &config, DType::F32, Some(double));
            compare(&mut f, family, case, PEFT, &pass(&model, Policy::KEEP), F32);
        }
    }
    f.report();
}

/// In bf16 nobody is right to the last bit; ours may err at most twice as much as PyTorch's, both against the same pass
/// in f64 on the same bf16 weights.
#[test]
fn bf16() {
    let mut f = Failures::default();
    let scratch = tempfile::tempdir().unwrap();
    for family in FAMILIES {
        let base = folder(family);
        let config = lora(&base, &base.join("adapter"));
        let rounded = scratch.path().join(format!("{family}_bf16"));
        rewritten(&base, &rounded, "model.safetensors", Dtype::BF16, |_, _| {});
        let codes = scratch.path().join(format!("{family}_nf4_bf16"));
        dequantised(&rounded, &codes, Dtype::BF16, true, &|_| None);
        for (case, exact, ours, nf4) in [
            ("bf16", &rounded, &rounded, None),
            // We keep a bf16 copy of f32 weights, so that is the pass it is held to; PyTorch casts as it multiplies.
            ("bf16_of_f32", &rounded, &base, None),
            ("nf4_bf16", &codes, &rounded, Some(true)),
        ] {
            let file = Checkpoint::open_file(&golden(&format!("models/{family}/golden/{case}.safetensors"))).unwrap();
            let theirs = widen(&values(&file, "logits"));
            let exact = pass(&load(exact, &config, DType::F64, None), Policy::KEEP);
            let ours = pass(&load(ours, &config, DType::Bf16, nf4), Policy::KEEP);
            let limit = 2.0 * distance(&theirs, &exact.logits);
            assert!(limit < 0.05, "{family} {case}: PyTorch itself is off by {limit}");
            f.at_most(&format!("{family} {case} logits"), distance(&ours.logits, &exact.logits), limit);
            let loss = json(&golden(&format!("models/{family}/golden/losses.json")))[case].as_f64().unwrap();
            // A loss is a mean over 11 labels of what the logits are off by; logits of 320 ids with a spread near 1 move it
            // by no more than they move themselves.
            f.at_most(&format!("{family} {case} loss"), relative(ours.loss, loss), 2.0 * limit);
        }
    }
    f.report();
}

/// Whatever is kept and whatever is rebuilt, the loss and every gradient have the same bits.
#[test]
fn every_policy_gives_the_same_bits() {
    for family in FAMILIES {
        let base = folder(family);
        let config = lora(&base, &base.join("adapter"));
        for (dtype, nf4) in
            [(DType::F32, None), (DType::F32, Some(true)), (DType::Bf16, None), (DType::Bf16, Some(true))]
        {
            let model = load(&base, &config, dtype, nf4);
            let bits = |policy: Policy| {
                let p = pass(&model, policy);
                let grads: Vec<u64> = p.grads.iter().flat_map(|(_, g)| g).map(|x| x.to_bits()).collect();
                (p.loss.to_bits(), grads)
            };
            let kept = bits(Policy::KEEP);
            assert!(kept.1.iter().all(|&b| f64::from_bits(b).is_finite()), "{family} {dtype:?} {nf4:?}: not finite");
            for n in 0..16 {
                let on = |bit: i32| n >> bit & 1 == 1;
                let policy = Policy { qkv: on(0), attention: on(1), mid: on(2), gate_up: on(3) };
                assert!(bits(policy) == kept, "{family} {dtype:?} {nf4:?}: {policy:?} differs from KEEP");
            }
            assert!(bits(Policy::RECOMPUTE) == kept, "{family} {dtype:?} {nf4:?}: RECOMPUTE differs from KEEP");
        }
    }
}
