//! Training passes of the families whose blocks differ in more than numbers, on kernels: fused layers, layer norms,
//! learned positions, GELU.

use std::path::{Path, PathBuf};

use crate::*;
use qlora_engine::config::{self, Config, Format};
use qlora_engine::data::batch::Padding;
use qlora_engine::data::{Batch, Sample};
use qlora_engine::model::{self, Pass, Policy};
use qlora_engine::train::{Target, plan};

fn folder(family: &str) -> PathBuf {
    root().join("tests/golden/models").join(family)
}

fn config(base: &Path, lines: &str) -> Config {
    let text = format!("model_name_or_path: {}\ndataset: x\noutput_dir: x\ndo_train: true\n{lines}", base.display());
    config::from_str(&text, Format::Yaml, &[]).unwrap()
}

/// Two sequences within 64 positions, which is what the models have.
fn batch() -> Batch {
    let sample = |n: u32| Sample {
        ids: (0..n).map(|i| 7 + i * 31 % 300).collect(),
        trained: vec![true; n as usize],
        pieces: vec![n],
        block_diagonal: false,
    };
    let samples = [sample(41), sample(23)];
    Batch::collate(&samples.iter().collect::<Vec<_>>(), Padding { multiple_of: 8, at_least: 0 })
}

/// The loss, and the gradient of each trained parameter.
fn pass(family: &str, lines: &str, dtype: DType, nf4: Option<bool>, device: &Device) -> Vec<Vec<f64>> {
    let base = folder(family);
    let config = config(&base, lines);
    let mut options = plan::options(&config, 64, &Target::Cpu { threads: 2 });
    (options.dtype, options.nf4) = (dtype, nf4);
    let model = model::load(&base, &options, device, &|_, _| {}).unwrap();
    let of = |policy: Policy| {
        let mut grads = model.params.zeros_like().unwrap();
        let mut loss = Tensor::zeros(1, 1, DType::F64, device).unwrap();
        let pass =
            Pass { policy: policy.into(), dropout: 0.1, neftune: Some(5.0), seed: 1, micro_step: 3, scale: 0.01 };
        model.loss_and_grad(&batch(), pass, &mut loss, &mut grads).unwrap();
        let grads = grads.to_f64();
        let each = model.params.entries.iter().map(|e| grads[e.range()].to_vec());
        std::iter::once(loss.to_f64()).chain(each).collect::<Vec<_>>()
    };
    let kept = of(Policy::KEEP);
    assert!(of(Policy::RECOMPUTE) == kept, "{family} on {dtype:?}: rebuilding gives other bits");
    kept
}

/// A kernel's pass may be off the f32 one at most twice as far as plain bf16 arithmetic (the CPU's) is, in the 2-norm of
/// each gradient. The loss is one number, which plain arithmetic may hit by chance: half a unit of bf16 more.
#[test]
fn passes_are_those_of_the_cpu() {
    let adapter = |family: &str| {
        format!("finetuning_type: lora\nadapter_name_or_path: {}", folder(family).join("adapter").display())
    };
    for (family, lines, nf4) in [
        ("phi3", adapter("phi3"), Some(true)),
        ("gpt2", adapter("gpt2"), Some(true)),
        ("phi3", "finetuning_type: full".into(), None),
        ("gpt2", "finetuning_type: full".into(), None),
    ] {
        let cpu = Device::cpu(2);
        let (want, plain) = (pass(family, &lines, DType::F32, nf4, &cpu), pass(family, &lines, DType::Bf16, nf4, &cpu));
        let got = on_each(|device| pass(family, &lines, DType::Bf16, nf4, device));
        let norm = |x: &[f64], y: &[f64]| x.iter().zip(y).map(|(x, y)| (x - y) * (x - y)).sum::<f64>().sqrt();
        for (i, want) in want.iter().enumerate() {
            let size = norm(want, &vec![0.0; want.len()]);
            assert!(size > 0.0, "{family}: parameter {i} has no gradient");
            let rounding = if i == 0 { 2f64.powi(-9) * size } else { 0.0 };
            let (e, limit) = (norm(&got[i], want), 2.0 * norm(&plain[i], want) + rounding);
            assert!(e <= limit, "{family} {lines}: parameter {i} is off by {e:.3e} > {limit:.3e} of {size:.3e}");
        }
    }
}
