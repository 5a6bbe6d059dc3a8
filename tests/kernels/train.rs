//! Whole training runs of the shipped tiny base on kernels: the CPU's losses, and the same bits however they are run.

use std::path::Path;

use crate::*;
use qlora_engine::config::{self, Config, Format};
use qlora_engine::data::batch::Padding;
use qlora_engine::data::{Batch, Sample};
use qlora_engine::device::{Card, Chip};
use qlora_engine::model::{self, Model, Pass, Policy};
use qlora_engine::train::{Control, Event, Target, plan, train_on};

/// Optimizer steps of a run; under AddressSanitizer, which is slow, fewer and smaller ones.
const STEPS: usize = if cfg!(feature = "host-asan") { 2 } else { 20 };
/// Rows of a batch, and tokens of a row.
const ROWS: usize = if cfg!(feature = "host-asan") { 1 } else { 4 };
const TOKENS: usize = 64;

/// A card on which everything is kept.
fn card() -> Target {
    Target::Gpu(Card { name: "test".into(), memory: 8 << 30, flops: 1e12, bandwidth: 1e11, chip: Chip::STAND_IN })
}

/// `extra` holds settings, a line each.
fn config(output: &Path, extra: &str) -> Config {
    let root = root();
    let text = format!(
        "model_name_or_path: {0}/assets/tiny-base\ndataset_dir: {0}/assets/data\ndataset: medical_demo\n\
         template: qwen3_nothink\ncutoff_len: {TOKENS}\nstage: sft\ndo_train: true\nfinetuning_type: lora\n\
         lora_target: all\nlora_rank: 8\nlearning_rate: 2.0e-3\nmax_steps: {STEPS}\n\
         per_device_train_batch_size: {ROWS}\nlogging_steps: 1\nreport_to: none\noutput_dir: {1}\n",
        root.display(),
        output.display(),
    );
    let settings: Vec<String> = extra.lines().map(|line| line.replacen(": ", "=", 1)).collect();
    let settings: Vec<&str> = settings.iter().map(String::as_str).collect();
    config::from_str(&text, Format::Yaml, &settings).unwrap()
}

/// The losses of a run, and the adapter that it leaves.
fn run(device: &Device, target: &Target, extra: &str) -> (Vec<f64>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let mut losses = Vec::new();
    let mut watch = |event: &Event<'_>| {
        if let Event::Step(step) = event {
            losses.push(step.loss);
        }
        Control::Continue
    };
    train_on(&config(dir.path(), extra), device, target, &mut watch).unwrap();
    assert_eq!(losses.len(), STEPS);
    (losses, std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap())
}

/// The kernels' losses may be off the f32 run's at most twice as far as those of plain bf16 arithmetic (the CPU's run in
/// bf16) ever are; dropout, NF4 and NEFTune take part, which all depend on the same random numbers. And a run is the same to
/// the bit in whatever order the kernels' threads go.
#[test]
fn losses_are_those_of_the_cpu() {
    let cpu = (Device::cpu(2), Target::Cpu { threads: 2 });
    let extra = "quantization_bit: 4\nlora_dropout: 0.1\nneftune_noise_alpha: 5\n";
    let (want, _) = run(&cpu.0, &cpu.1, extra);
    let (plain, _) = run(&cpu.0, &cpu.1, &format!("{extra}bf16: true\n"));
    let (got, adapter) = run(&kernel_devices()[0].1, &card(), extra);
    // The spread of plain arithmetic is known from many steps only, and as every step has other rows, single losses say
    // little of whether they fall.
    if STEPS > 10 {
        let limit = 2.0 * max_err(&plain, &want);
        let e = max_err(&got, &want);
        assert!(e <= limit, "error {e:.3e} > {limit:.3e}\nkernels {got:?}\ncpu {want:?}");
        let (first, last) = (got[..5].iter().sum::<f64>(), got[STEPS - 5..].iter().sum::<f64>());
        assert!(last < 0.9 * first, "the loss does not fall: {got:?}");
    }
    let (again, adapter_again) = run(&kernel_devices()[1].1, &card(), extra);
    assert_eq!(got, again);
    assert!(adapter == adapter_again, "the adapters differ");
}

/// Stopped after its first step and resumed, a run on kernels leaves the adapter of one that was not.
#[test]
fn a_resumed_run_equals_an_uninterrupted_one() {
    let extra =
        "quantization_bit: 4\nlora_dropout: 0.1\nper_device_train_batch_size: 1\ncutoff_len: 32\nmax_steps: 3\n";
    let device = &kernel_devices()[0].1;
    let dir = tempfile::tempdir().unwrap();
    let adapter = |name: &str, extra: &str, stop_at: u64| {
        let output = dir.path().join(name);
        let mut watch = |event: &Event<'_>| match event {
            Event::Step(step) if step.step == stop_at => Control::Stop,
            _ => Control::Continue,
        };
        train_on(&config(&output, extra), device, &card(), &mut watch).unwrap();
        std::fs::read(output.join("adapter_model.safetensors")).ok()
    };
    let whole = adapter("whole", extra, 0);
    assert!(adapter("parts", extra, 1).is_none(), "a run that was stopped has no final adapter");
    let parts = adapter("parts", &format!("{extra}resume_from_checkpoint: true\n"), 0);
    assert!(whole.is_some() && whole == parts, "the adapters differ");
}

fn tiny(device: &Device, config: &Config) -> Model {
    let options = plan::options(config, 2 * TOKENS, &card());
    model::load(&root().join("assets/tiny-base"), &options, device, &|_, _| {}).unwrap()
}

/// Two sequences, of which one is longer than a tile.
fn batch() -> Batch {
    let sample = |n: u32| Sample {
        ids: (0..n).map(|i| 7 + i * 31 % 3000).collect(),
        trained: vec![true; n as usize],
        pieces: vec![n],
        block_diagonal: false,
    };
    let samples = [sample(70), sample(23)];
    Batch::collate(&samples.iter().collect::<Vec<_>>(), Padding { multiple_of: 8, at_least: 0 })
}

#[test]
fn every_policy_gives_the_same_bits() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(dir.path(), "quantization_bit: 4\n");
    let device = &kernel_devices()[0].1;
    let model = tiny(device, &config);
    let bits = |policy: Policy| {
        let mut grads = model.params.zeros_like().unwrap();
        let mut loss = Tensor::zeros(1, 1, DType::F64, device).unwrap();
        let pass = Pass { policy: policy.into(), dropout: 0.1, neftune: None, seed: 1, micro_step: 3, scale: 0.01 };
        model.loss_and_grad(&batch(), pass, &mut loss, &mut grads).unwrap();
        (loss.to_f64(), grads.to_f64())
    };
    let kept = bits(Policy::KEEP);
    assert!(kept.1.iter().any(|&g| g != 0.0) && kept.1.iter().all(|g| g.is_finite()));
    for policy in &Policy::CHAIN[1..] {
        assert!(bits(*policy) == kept, "{policy} differs from keeping everything");
    }
}
