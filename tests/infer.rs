//! Generation: reading with a cache gives what a whole pass gives, a sequence's tokens do not depend on the batch, and
//! each sequence may have an adapter of its own.

use std::path::{Path, PathBuf};

use qlora_engine::config::{self, Config, Format, OutType};
use qlora_engine::data::batch::Padding;
use qlora_engine::data::{Batch, Sample};
use qlora_engine::device::Device;
use qlora_engine::export::gguf_lora;
use qlora_engine::format::{AdapterFile, HfConfig};
use qlora_engine::infer::{Answer, Control, Finish, Request, Sampling, Session, generate};
use qlora_engine::model::{self, Cache, Model, PAGE};
use qlora_engine::tensor::DType;
use qlora_engine::train::{Target, plan};

/// Positions that the models are loaded for: more than a page.
const POSITIONS: usize = 2 * PAGE + 5;

fn golden(family: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(family)
}

fn config(base: &Path, lines: &str) -> Config {
    let text = format!("model_name_or_path: {}\ndataset: x\noutput_dir: x\ndo_train: true\n{lines}", base.display());
    config::from_str(&text, Format::Yaml, &[]).unwrap()
}

/// All that the golden GPT-2 has learned, and Phi-3 before its scaling.
const SHORT: usize = 64;

/// The model without an adapter, as commands that use it load it.
fn load(family: &str, dtype: DType, threads: usize) -> Model {
    let folder = golden(family);
    let c = config(&folder, "");
    let target = Target::Cpu { threads };
    let positions = if ["gpt2", "phi3"].contains(&family) { SHORT } else { POSITIONS };
    let options = model::Options { dtype, ..plan::use_options(&c, &[], positions, &target) };
    model::load(&folder, &options, &Device::cpu(threads), &|_, _| {}).unwrap()
}

/// Ids that do not repeat soon.
fn ids(model: &Model, n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % model.spec.vocab) as u32).collect()
}

fn batch(ids: &[u32]) -> Batch {
    let pieces = vec![ids.len() as u32];
    let sample = Sample { ids: ids.to_vec(), trained: vec![false; ids.len()], pieces, ..Sample::default() };
    Batch::collate(&[&sample], Padding { multiple_of: 1, at_least: 0 })
}

/// Logits after the last of `ids`, by a whole pass.
fn whole(model: &Model, ids: &[u32]) -> Vec<f64> {
    model.logits(&batch(ids), &[ids.len() as u32 - 1]).unwrap().to_f64()
}

/// Logits after the last of `ids`, of which `first` are read at once and the others in steps of `step`.
fn cached(model: &Model, adapter: Option<usize>, ids: &[u32], first: usize, step: usize) -> Vec<f64> {
    let mut cache = Cache::new(model, &[ids.len()]).unwrap();
    let mut sequence = cache.take(ids.len()).unwrap();
    let mut logits = model.read(&mut cache, adapter, &mut sequence, &ids[..first]).unwrap();
    for ids in ids[first..].chunks(step) {
        logits = model.read(&mut cache, adapter, &mut sequence, ids).unwrap();
    }
    logits.of_f64(0)
}

fn distance(got: &[f64], want: &[f64]) -> f64 {
    let size = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
    let off =
        got.iter().zip(want).map(|(g, w)| (g - w).abs()).fold(0.0, |m: f64, x| if x > m || x.is_nan() { x } else { m });
    assert_eq!(got.len(), want.len());
    off / size
}

/// On the CPU a sequence has the bits of one whole pass, training's own, in whatever pieces it is read.
#[test]
fn a_cache_changes_nothing() {
    for family in ["llama2", "llama3", "mistral", "qwen2", "qwen3"] {
        for dtype in [DType::F32, DType::F64, DType::Bf16] {
            let model = load(family, dtype, 2);
            let ids = ids(&model, PAGE + 9, 1);
            let want = whole(&model, &ids);
            for (first, step) in [(ids.len(), 1), (1, 1), (PAGE - 1, 1), (PAGE, 3), (5, 7), (5, 64)] {
                assert_eq!(cached(&model, None, &ids, first, step), want, "{family} {dtype:?}: {first}, then {step}");
            }
        }
    }
}

fn request(prompt: Vec<u32>, max_new_tokens: usize, seed: u64) -> Request {
    let sampling = Sampling { do_sample: true, temperature: 1.5, top_k: 40, seed, ..Sampling::greedy() };
    Request { prompt, max_new_tokens, stops: vec![3], sampling, adapter: None, logprobs: None }
}

fn answers(model: &Model, requests: &[Request], batch: usize) -> Vec<Answer> {
    let mut told: Vec<Vec<u32>> = vec![Vec::new(); requests.len()];
    let answers = generate(model, requests, batch, &mut |i, token| {
        told[i].push(token);
        Control::Continue
    })
    .unwrap();
    assert_eq!(told, answers.iter().map(|a| a.ids.clone()).collect::<Vec<_>>(), "every token is told once");
    answers
}

/// Requests of many lengths, settings and adapters: alone, in batches of any size and on any number of threads they have the
/// same answers, in f32 and in bf16.
#[test]
fn answers_do_not_depend_on_the_batch() {
    for dtype in [DType::F32, DType::Bf16] {
        let mut model = load("qwen3", dtype, 1);
        let adapter = model.attach(&golden("qwen3/adapter")).unwrap();
        let other = model.attach(&golden("qwen3/adapter_rslora")).unwrap();
        let requests: Vec<Request> = [1, 9, PAGE - 2, 30, 3, PAGE + 1, 17]
            .into_iter()
            .enumerate()
            .map(|(i, n)| Request {
                adapter: [None, Some(adapter), Some(other)][i % 3],
                ..request(ids(&model, n, i), 5 + 9 * i % 40, i as u64)
            })
            .collect();
        let alone: Vec<Answer> = requests.iter().flat_map(|r| answers(&model, std::slice::from_ref(r), 1)).collect();
        for batch in [1, 2, 3, 7, 20] {
            assert_eq!(answers(&model, &requests, batch), alone, "{dtype:?}, batches of {batch}");
        }
        let mut threads = load("qwen3", dtype, 3);
        threads.attach(&golden("qwen3/adapter")).unwrap();
        threads.attach(&golden("qwen3/adapter_rslora")).unwrap();
        assert_eq!(answers(&threads, &requests, 3), alone, "{dtype:?}, three threads");
        let lengths: Vec<usize> = alone.iter().map(|a| a.ids.len()).collect();
        assert!(lengths.iter().any(|&n| n > 20), "the answers are too short to tell: {lengths:?}");
    }
}

/// An attached adapter is the one that training would continue, also where it holds whole modules.
#[test]
fn attached_adapters_are_those_of_training() {
    for (family, adapter) in [
        ("qwen3", "adapter"),
        ("qwen3", "adapter_rslora"),
        ("qwen3", "adapter_embed_tokens"),
        ("llama3", "adapter_lm_head"),
        ("llama2", "adapter"),
    ] {
        let (folder, path) = (golden(family), golden(family).join(adapter));
        let mut model = load(family, DType::F32, 1);
        let ids = ids(&model, 12, 2);
        let base = cached(&model, None, &ids, ids.len(), 1);
        let index = model.attach(&path).unwrap();
        let got = cached(&model, Some(index), &ids, ids.len(), 1);
        let c = config(&folder, &format!("finetuning_type: lora\nadapter_name_or_path: {}", path.display()));
        let trained = plan::options(&c, POSITIONS, &Target::Cpu { threads: 1 });
        let trained = model::load(&folder, &trained, &Device::cpu(1), &|_, _| {}).unwrap();
        assert_eq!(got, whole(&trained, &ids), "{family} {adapter}");
        assert_ne!(got, base, "{family} {adapter}");
        assert_eq!(cached(&model, None, &ids, ids.len(), 1), base, "{family}: the base beside {adapter}");
    }
}

/// A LoRA in a GGUF file, as our export (and llama.cpp's converter) writes it, is the adapter that it was made from: Llama's
/// with rows of q and k in another order, one with rank-stabilised scaling, whose alpha the file has times sqrt(r).
#[test]
fn a_lora_in_gguf_is_the_adapter() {
    let place = tempfile::tempdir().unwrap();
    for (family, adapter) in [
        ("llama2", "adapter"),
        ("llama3", "adapter"),
        ("qwen3", "adapter_rslora"),
        ("phi3", "adapter"),
        ("gpt2", "adapter"),
    ] {
        let (folder, path) = (golden(family), golden(family).join(adapter));
        let file = place.path().join(format!("{family}.gguf"));
        let heads = HfConfig::open(&folder).unwrap();
        gguf_lora::write(&file, &AdapterFile::open(&path).unwrap(), &heads, (OutType::F32, "x")).unwrap();
        let mut model = load(family, DType::F64, 1);
        let (whole, from_file) = (model.attach(&path).unwrap(), model.attach(&file).unwrap());
        let ids = ids(&model, 12, 2);
        let logits = |adapter| cached(&model, adapter, &ids, ids.len(), 1);
        // alpha * sqrt(r) / r in the file's f32 is what alpha / sqrt(r) is but for a rounding.
        let e = distance(&logits(Some(from_file)), &logits(Some(whole)));
        assert!(e <= 2f64.powi(-22), "{family}: {e:.1e}");
        assert!(distance(&logits(None), &logits(Some(whole))) > 1e-4, "{family}: the adapter changes nothing");
    }
    let base = place.path().join("base.gguf");
    std::fs::copy(place.path().join("llama2.gguf"), &base).unwrap();
    let mut other = load("qwen2", DType::F32, 1);
    assert!(other.attach(&base).unwrap_err().to_string().contains("shape"));
    std::fs::write(&base, "GGUF").unwrap();
    assert!(other.attach(&base).unwrap_err().to_string().contains("base.gguf"));
}

#[test]
fn a_foreign_adapter_is_named() {
    let mut model = load("qwen2", DType::F32, 1);
    let path = golden("llama2/adapter");
    let error = model.attach(&path).unwrap_err().to_string();
    assert!(error.contains("lora_") && (error.contains("shape") || error.contains("no module")), "{error}");
    assert_eq!(model.attached(), 0);
}

/// A conversation answers as a request of its own would, whatever of it was read before.
#[test]
fn a_session_answers_as_a_new_request() {
    let mut model = load("qwen3", DType::F32, 2);
    let adapter = model.attach(&golden("qwen3/adapter")).unwrap();
    let mut session = Session::new(&model).unwrap();
    let mut prompt = ids(&model, 20, 5);
    for (turn, adapter) in [None, None, Some(adapter), Some(adapter), None].into_iter().enumerate() {
        let request = Request { adapter, sampling: Sampling::greedy(), ..request(prompt.clone(), 8, 0) };
        let got = session.answer(&request, &mut |_| Control::Continue).unwrap();
        assert_eq!(vec![got.clone()], answers(&model, &[request], 1), "turn {turn}");
        prompt.extend(got.ids);
        prompt.extend(ids(&model, 6, turn));
    }
    // Another conversation begins in the same place.
    let request = Request { sampling: Sampling::greedy(), ..request(ids(&model, 30, 9), 8, 0) };
    let got = session.answer(&request, &mut |_| Control::Continue).unwrap();
    assert_eq!(vec![got], answers(&model, &[request], 1));
}

#[test]
fn answers_end_as_asked() {
    let model = load("qwen3", DType::F32, 1);
    let greedy = |max: usize, stops: Vec<u32>| Request {
        stops,
        sampling: Sampling::greedy(),
        ..request(ids(&model, 10, 3), max, 0)
    };
    let free = answers(&model, &[greedy(12, vec![])], 1).remove(0);
    assert_eq!((free.ids.len(), free.finish), (12, Finish::Length));
    let stop = free.ids[5];
    let first = free.ids.iter().position(|&t| t == stop).unwrap();
    let stopped = answers(&model, &[greedy(12, vec![stop])], 1).remove(0);
    assert_eq!((stopped.ids.as_slice(), stopped.finish), (&free.ids[..first], Finish::Stop));
    let told = generate(&model, &[greedy(12, vec![])], 1, &mut |_, _| Control::Stop).unwrap().remove(0);
    assert_eq!((told.ids.as_slice(), told.finish), (&free.ids[..1], Finish::Stopped));
}

#[test]
fn what_does_not_fit_is_refused() {
    let model = load("qwen3", DType::F32, 1);
    let refused = |r: Request| generate(&model, &[r], 1, &mut |_, _| Control::Continue).unwrap_err().to_string();
    let fits = request(ids(&model, POSITIONS - 4, 0), 4, 0);
    assert_eq!(answers(&model, std::slice::from_ref(&fits), 1).len(), 1);
    let error = refused(Request { max_new_tokens: 5, ..fits.clone() });
    assert!(error.contains(&format!("{POSITIONS} of the context")), "{error}");
    assert!(refused(Request { prompt: vec![], ..fits.clone() }).contains("0 tokens of prompt"));
    assert!(refused(Request { max_new_tokens: 0, ..fits.clone() }).contains("asks for 0"));
    assert!(refused(Request { max_new_tokens: usize::MAX, ..fits.clone() }).contains("passes"));
    let vocab = model.spec.vocab as u32;
    assert!(refused(Request { prompt: vec![1, vocab], ..fits.clone() }).contains(&format!("{vocab}")));
    assert!(refused(Request { adapter: Some(0), ..fits }).contains("0 attached"));
}
