//! What a model's weights become on a device that runs kernels, against what they become on the CPU.

use std::path::{Path, PathBuf};

use super::decoder::Model;
use super::load::{Options, load};
use super::weights::Weight;
use crate::config::NOTHING_TRAINED;
use crate::device::Device;
use crate::error::{Error, Result};
use crate::quant::Nf4;
use crate::tensor::{DType, Tensor};

fn golden(family: &str) -> PathBuf {
    let root = std::env::var_os("QLORA_TEST_ROOT").map_or(env!("CARGO_MANIFEST_DIR").into(), PathBuf::from);
    root.join("tests/golden/models").join(family)
}

fn loaded(folder: &Path, nf4: Option<bool>, device: &Device) -> Result<Model> {
    let options = Options {
        method: &NOTHING_TRAINED,
        dtype: DType::Bf16,
        nf4,
        max_positions: 16,
        rope_scaling: None,
        adapters: &[],
        from_scratch: false,
        config_only: false,
        seed: 0,
        threads: 2,
    };
    load(folder, &options, device, &|_, _| {})
}

/// Each weight's quantised parts or dense bits, in order.
#[derive(Debug, PartialEq)]
enum Held {
    Nf4(Nf4),
    Dense(Vec<f64>),
}

fn held(model: &Model) -> Vec<Held> {
    let dense = |t: &Tensor| Held::Dense(t.to_f64());
    let outside = [&model.embed].into_iter().chain(&model.head).chain(&model.positions);
    let all = outside.chain(model.blocks.iter().flat_map(|b| b.weights()));
    all.map(|w| match w {
        Weight::Frozen(t) | Weight::Pinned(t) => dense(t),
        Weight::Nf4(q) => Held::Nf4(q.clone()),
        Weight::DeviceNf4(q) => Held::Nf4(q.download()),
        _ => panic!("nothing else is loaded here"),
    })
    .collect()
}

/// Quantised by kernels on the way in: the bits of the CPU, for layers that are fused, transposed or apart; and the embedding
/// lies where it may.
#[test]
fn weights_are_the_same_on_kernels() {
    for family in ["llama2", "qwen3", "gpt2", "phi3"] {
        let folder = golden(family);
        for nf4 in [None, Some(false), Some(true)] {
            let cpu = loaded(&folder, nf4, &Device::cpu(2)).unwrap();
            let want = held(&cpu);
            assert_eq!(want.iter().any(|w| matches!(w, Held::Nf4(_))), nf4.is_some());
            for reversed in [false, true] {
                let kernels = loaded(&folder, nf4, &Device::host_kernels(2, reversed).unwrap()).unwrap();
                assert!(held(&kernels) == want, "{family} {nf4:?}, reversed {reversed}");
                let (here, there) = (kernels.frozen_bytes(), cpu.frozen_bytes());
                assert_eq!((here.dense + here.pinned, here.quantised), (there.dense, there.quantised), "{family}");
                assert_eq!(matches!(kernels.embed, Weight::Pinned(_)), kernels.head.is_some(), "{family}");
                assert_eq!(here.pinned > 0, kernels.head.is_some(), "{family}");
            }
        }
    }
}

#[test]
fn a_weight_that_is_no_number_is_named() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(golden("llama2").join(name), dir.path().join(name)).unwrap();
    }
    let file = dir.path().join("model.safetensors");
    let mut bytes = std::fs::read(&file).unwrap();
    let header = u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let tensors: serde_json::Value = serde_json::from_slice(&bytes[8..8 + header]).unwrap();
    let name = "model.layers.1.mlp.up_proj.weight";
    let tensor = &tensors[name];
    assert_eq!(tensor["dtype"], "F32");
    let at = 8 + header + tensor["data_offsets"][0].as_u64().unwrap() as usize + 4 * 200;
    bytes[at..at + 4].copy_from_slice(&f32::NAN.to_le_bytes());
    std::fs::write(&file, bytes).unwrap();
    for device in [Device::cpu(2), Device::host_kernels(2, false).unwrap()] {
        let why = loaded(dir.path(), Some(true), &device).map(drop).unwrap_err();
        assert!(matches!(why, Error::Weights { .. }), "{why:?}");
        let why = why.to_string();
        assert!(why.contains(name) && why.contains("NaN or infinity near element 192"), "{why}");
    }
}
