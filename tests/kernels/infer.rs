//! Generation on kernels: reading with a cache, batches, adapters and ggml blocks.

use std::path::{Path, PathBuf};

use crate::*;
use qlora_engine::config::{self, Config, Format};
use qlora_engine::data::batch::Padding;
use qlora_engine::data::{Batch, Sample};
use qlora_engine::device::{Card, Chip};
use qlora_engine::export::{self, Job};
use qlora_engine::infer::sample::Sampler;
use qlora_engine::infer::{Answer, Control, Request, Sampling, Session, generate};
use qlora_engine::model::{self, Cache, Model, PAGE, PIECE};
use qlora_engine::train::{self, Event, Inputs, Target, plan, train_on};

/// Positions that the models are loaded for: more than a page.
const POSITIONS: usize = PIECE + 21;
/// All that the golden GPT-2 has learned, and Phi-3 before its scaling.
const SHORT: usize = 64;

fn golden(name: &str) -> PathBuf {
    root().join("tests/golden/models").join(name)
}

fn card() -> Target {
    Target::Gpu(Card { name: "test".into(), memory: 8 << 30, flops: 1e12, bandwidth: 1e11, chip: Chip::STAND_IN })
}

fn config(base: &Path, lines: &str) -> Config {
    let text = format!("model_name_or_path: {}\ndataset: x\noutput_dir: x\ndo_train: true\n{lines}", base.display());
    config::from_str(&text, Format::Yaml, &[]).unwrap()
}

fn load(base: &Path, device: &Device, target: &Target, dtype: DType, lines: &str) -> Model {
    let c = config(base, lines);
    let short = base.ends_with("gpt2") || base.ends_with("phi3");
    let positions = if short { SHORT } else { POSITIONS };
    let options = model::Options { dtype, ..plan::use_options(&c, &[], positions, target) };
    model::load(base, &options, device, &|_, _| {}).unwrap()
}

fn ids(model: &Model, n: usize, seed: usize) -> Vec<u32> {
    (0..n).map(|i| ((i * 7919 + seed * 104_729 + i * i * 31) % model.spec.vocab) as u32).collect()
}

fn whole(model: &Model, ids: &[u32]) -> Vec<f64> {
    let pieces = vec![ids.len() as u32];
    let sample = Sample { ids: ids.to_vec(), trained: vec![false; ids.len()], pieces, ..Sample::default() };
    let batch = Batch::collate(&[&sample], Padding { multiple_of: 1, at_least: 0 });
    model.logits(&batch, &[ids.len() as u32 - 1]).unwrap().to_f64()
}

/// Logits after the last of `ids`, of which `first` are read at once and the others in steps of `step`.
fn cached(model: &Model, ids: &[u32], first: usize, step: usize) -> Vec<f64> {
    let mut cache = Cache::new(model, &[ids.len()]).unwrap();
    let mut sequence = cache.take(ids.len()).unwrap();
    let mut logits = model.read(&mut cache, None, &mut sequence, &ids[..first]).unwrap();
    for ids in ids[first..].chunks(step) {
        logits = model.read(&mut cache, None, &mut sequence, ids).unwrap();
    }
    logits.of_f64(0)
}

/// Kernels with a cache may be off the f64 pass at most twice as far as plain bf16 arithmetic (the CPU's whole pass in bf16);
/// in what steps the rows come does not change a bit, nor does the order of the kernels' threads. With NF4 too, where f32
/// takes the place of f64.
#[test]
fn a_cache_changes_nothing() {
    let cpu = Target::Cpu { threads: 2 };
    for (family, lines, exact) in [
        ("llama3", "", DType::F64),
        ("mistral", "", DType::F64),
        ("qwen3", "quantization_bit: 4", DType::F32),
        ("gpt2", "", DType::F64),
        ("phi3", "quantization_bit: 4", DType::F32),
    ] {
        let base = golden(family);
        let exact = load(&base, &Device::cpu(2), &cpu, exact, lines);
        let plain = load(&base, &Device::cpu(2), &cpu, DType::Bf16, lines);
        let ids = ids(&exact, (PAGE + 9).min(exact.max_positions()), 1);
        let want = whole(&exact, &ids);
        let limit = 2.0 * max_err(&whole(&plain, &ids), &want);
        let mut seen: Option<Vec<f64>> = None;
        for (name, device) in kernel_devices() {
            let model = load(&base, &device, &card(), DType::Bf16, lines);
            for (first, step) in [(ids.len(), 1), (5, 1), (5, 40)] {
                let got = cached(&model, &ids, first, step);
                let e = max_err(&got, &want);
                assert!(e <= limit, "{family} {name} {first} then {step}: {e:.2e} > {limit:.2e}");
                if first == 5 {
                    let before = seen.get_or_insert_with(|| got.clone());
                    assert_eq!(*before, got, "{family} {name}, steps of {step}");
                }
            }
        }
    }
}

fn answers(model: &Model, requests: &[Request], batch: usize) -> Vec<Answer> {
    generate(model, requests, batch, &mut |_, _| Control::Continue).unwrap()
}

/// As tests/infer.rs on the CPU: requests of many lengths and adapters have the answers that they have alone; also those whose
/// beginning another has read.
#[test]
fn answers_do_not_depend_on_the_batch() {
    for (name, device) in kernel_devices() {
        let mut model = load(&golden("qwen3"), &device, &card(), DType::Bf16, "quantization_bit: 4");
        let adapter = model.attach(&golden("qwen3/adapter")).unwrap();
        let lengths =
            if cfg!(feature = "host-asan") { vec![1, 9] } else { vec![1, 9, PAGE - 2, 30, 3, PIECE + 5, PIECE + 5] };
        let requests: Vec<Request> = lengths
            .into_iter()
            .enumerate()
            .map(|(i, n)| Request {
                prompt: ids(&model, n, n),
                max_new_tokens: 4 + 3 * i % 9,
                stops: vec![],
                sampling: Sampling { do_sample: true, temperature: 1.5, seed: i as u64, ..Sampling::greedy() },
                adapter: (i % 2 == 1 && n <= PIECE).then_some(adapter),
                logprobs: None,
            })
            .collect();
        let alone: Vec<Answer> = requests.iter().flat_map(|r| answers(&model, std::slice::from_ref(r), 1)).collect();
        for batch in [2, 5] {
            assert_eq!(answers(&model, &requests, batch), alone, "{name}, batches of {batch}");
        }
    }
}

/// The tokens that a sampler takes from whole rows of logits are those of answers of which kernels pick: alone and in a batch.
#[test]
fn kernels_pick_what_the_sampler_would() {
    let greedy = Sampling::greedy();
    let drawn = |seed| Sampling { do_sample: true, temperature: 1.5, seed, ..Sampling::greedy() };
    let penalised =
        Sampling { repetition_penalty: 1.3, presence_penalty: 0.5, frequency_penalty: 0.25, ..Sampling::greedy() };
    let samplings = [
        (greedy.clone(), None),
        (greedy, Some(2)),
        (penalised.clone(), None),
        (Sampling { frequency_penalty: -0.5, ..penalised.clone() }, None),
        (Sampling { top_k: 5, ..drawn(1) }, None),
        (Sampling { top_k: 40, top_p: 0.8, min_p: 0.02, ..drawn(2) }, None),
        (Sampling { do_sample: true, temperature: 2.0, top_k: 30, top_p: 0.9, seed: 3, ..penalised }, None),
        (Sampling { top_p: 0.9, ..drawn(4) }, None),
        (Sampling { top_k: 1_000_000, ..drawn(5) }, None),
    ];
    for (name, device) in kernel_devices() {
        let model = load(&golden("qwen3"), &device, &card(), DType::Bf16, "quantization_bit: 4");
        let new = if cfg!(feature = "host-asan") { 2 } else { 9 };
        let request = |i: usize, (sampling, logprobs): &(Sampling, Option<usize>)| Request {
            prompt: ids(&model, 3 + 5 * i, i),
            max_new_tokens: new,
            stops: vec![],
            sampling: sampling.clone(),
            adapter: None,
            logprobs: *logprobs,
        };
        let requests: Vec<Request> = samplings.iter().enumerate().map(|(i, s)| request(i, s)).collect();
        let whole_rows = |r: &Request| {
            let (mut ids, prompt) = (r.prompt.clone(), r.prompt.len());
            let mut cache = Cache::new(&model, &[prompt + new]).unwrap();
            let mut sequence = cache.take(prompt + new).unwrap();
            let mut sampler = Sampler::new(r.sampling.clone()).unwrap();
            while ids.len() < prompt + new {
                let read = sequence.len();
                let logits = model.read(&mut cache, None, &mut sequence, &ids[read..]).unwrap();
                ids.push(sampler.pick(&mut logits.of(0), &ids, prompt, ids.len()).unwrap());
            }
            ids.split_off(prompt)
        };
        let want: Vec<Vec<u32>> = requests.iter().map(whole_rows).collect();
        for batch in [1, 4, requests.len()] {
            let got: Vec<Vec<u32>> = answers(&model, &requests, batch).into_iter().map(|a| a.ids).collect();
            assert_eq!(got, want, "{name}, batches of {batch}");
        }
        let mut session = Session::new(&model).unwrap();
        for (request, want) in requests.iter().zip(&want) {
            assert_eq!(
                session.answer(request, &mut |_| Control::Continue).unwrap().ids,
                *want,
                "{name}, a conversation"
            );
        }
        // And that is what happens: the rows are picked by kernels.
        let mut cache = Cache::new(&model, &[4]).unwrap();
        let mut sequence = cache.take(4).unwrap();
        let logits = model.read(&mut cache, None, &mut sequence, &[1, 2]).unwrap();
        let mut sampler = Sampler::new(samplings[5].0.clone()).unwrap();
        let ask = sampler.ask(model.spec.vocab, &[1, 2], 2).unwrap().unwrap();
        let picked = logits.pick(&[(0, ask)]).unwrap();
        assert!(picked[0].as_ref().is_some_and(|p| p.candidates.len() >= 40), "{picked:?}");
        assert!(logits.pick(&[(1, ask)]).is_err());
    }
}

/// Trained on kernels, the tiny base answers with its adapter otherwise than without; merged into a folder and into a file of
/// 8-bit blocks it still answers on kernels; and all the same whatever the order of their threads.
#[test]
fn what_was_trained_on_kernels_answers_on_them() {
    let dir = tempfile::tempdir().unwrap();
    let base = root().join("assets/tiny-base");
    let steps = if cfg!(feature = "host-asan") { 1 } else { 6 };
    let text = format!(
        "model_name_or_path: {}\ndataset_dir: {}\ndataset: medical_demo\ntemplate: qwen3_nothink\ncutoff_len: 64\n\
         stage: sft\ndo_train: true\nlora_rank: 8\nlearning_rate: 1.0e-2\nmax_steps: {steps}\nquantization_bit: 4\n\
         per_device_train_batch_size: 4\nreport_to: none\noutput_dir: {}\n",
        base.display(),
        root().join("assets/data").display(),
        dir.path().display(),
    );
    let c = config::from_str(&text, Format::Yaml, &[]).unwrap();
    train_on(&c, &kernel_devices()[0].1, &card(), &mut |_: &Event<'_>| train::Control::Continue).unwrap();
    let exported = |format: &str| {
        let to = dir.path().join(format.replace([':', ' ', '\n'], "-"));
        let text = format!(
            "model_name_or_path: {}\nadapter_name_or_path: {}\ntemplate: qwen3_nothink\nuse_cpu: true\n\
             export_dir: {}\nexport_format: {format}\n",
            base.display(),
            dir.path().display(),
            to.display(),
        );
        let c = config::from_str(&text, Format::Yaml, &[]).unwrap();
        let (base, tokenizer, template) = Inputs::model(&c, &mut |_: &Event<'_>| train::Control::Continue).unwrap();
        let job = Job { config: &c, base: &base, tokenizer: &tokenizer, template: &template };
        let mut made = to.clone();
        export::export(&job, &mut |_, _| {}, &mut |path| {
            made = to.join(path.strip_prefix(path.parent().unwrap()).unwrap());
            Ok(())
        })
        .unwrap();
        if format == "hf" { to.clone() } else { made }
    };
    let (merged, file) = (exported("hf"), exported("gguf\nexport_outtype: q8_0"));
    let mut all = Vec::new();
    for (_, device) in kernel_devices() {
        let mut model = load(&base, &device, &card(), DType::Bf16, "quantization_bit: 4");
        let adapter = model.attach(dir.path()).unwrap();
        let request = |adapter| Request {
            prompt: ids(&model, 12, 4),
            max_new_tokens: 8,
            stops: vec![],
            sampling: Sampling::greedy(),
            adapter,
            logprobs: None,
        };
        let mut got = answers(&model, &[request(Some(adapter)), request(None)], 2);
        for path in [&merged, &file] {
            let model = load(path, &device, &card(), DType::Bf16, "");
            got.extend(answers(&model, &[request(None)], 1));
        }
        all.push(got);
    }
    assert_eq!(all[0], all[1]);
    assert!(all[0].iter().all(|a| !a.ids.is_empty()));
    assert!(cfg!(feature = "host-asan") || all[0][0] != all[0][1], "the adapter changes nothing: {:?}", all[0]);
}
