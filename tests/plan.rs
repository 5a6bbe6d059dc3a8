//! Plans for GPUs that are not here: real models by their config.json alone.

use std::path::Path;

use qlora_engine::config::{self, Config, Format};
use qlora_engine::device::Card;
use qlora_engine::model::Policy;
use qlora_engine::train::plan::{Bytes, Envelope, Plan, human, plan_shapes};
use qlora_engine::train::{Target, fit};
use qlora_engine::{Error, Result};

/// Llama-2-7B, as its config.json says (meta-llama/Llama-2-7b-hf).
const LLAMA2_7B: &str = r#"{"model_type": "llama", "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008,
  "num_hidden_layers": 32, "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 4096,
  "rms_norm_eps": 1e-5, "tie_word_embeddings": false, "torch_dtype": "float16", "hidden_act": "silu",
  "bos_token_id": 1, "eos_token_id": 2}"#;

/// Qwen3-8B (Qwen/Qwen3-8B).
const QWEN3_8B: &str = r#"{"model_type": "qwen3", "vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 12288,
  "num_hidden_layers": 36, "num_attention_heads": 32, "num_key_value_heads": 8, "head_dim": 128,
  "max_position_embeddings": 40960, "rms_norm_eps": 1e-6, "rope_theta": 1000000, "tie_word_embeddings": false,
  "attention_bias": false, "torch_dtype": "bfloat16", "hidden_act": "silu", "eos_token_id": 151645}"#;

const GIB: f64 = (1u64 << 30) as f64;

fn folder(json: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    std::fs::write(dir.path().join("config.json"), json).unwrap();
    dir
}

/// QLoRA of rank 16 on all linear layers.
fn config(base: &Path) -> Config {
    let text = format!(
        "model_name_or_path: {}\ndataset: x\noutput_dir: x\ndo_train: true\nfinetuning_type: lora\nlora_rank: 16\n\
         lora_target: all\nquantization_bit: 4\n",
        base.display()
    );
    config::from_str(&text, Format::Yaml, &[]).unwrap()
}

fn planned(json: &str, tokens: usize, card: &str) -> (Plan, u64) {
    let dir = folder(json);
    let config = config(dir.path());
    let card = Card::known(card).unwrap();
    let memory = card.memory;
    let plan =
        plan_shapes(dir.path(), &config, &Envelope::uniform(tokens, 1), &Envelope::default(), &Target::Gpu(card));
    (plan.unwrap(), memory)
}

#[test]
fn llama2_7b_with_1024_tokens_trains_in_10_gb() {
    let (plan, memory) = planned(LLAMA2_7B, 1024, "rtx3080");
    assert!(plan.bytes.total() <= memory, "{} of {memory}", plan.bytes.total());
    // 6.476e9 weights in the linear layers, 4 + 1/8 + 4/(64 * 256) * 8 bits each; the embedding and the head in 16 bits.
    let nf4 = 6_476_005_376.0 * (0.5 + 1.0 / 64.0 + 4.0 / (64.0 * 256.0));
    assert!((plan.bytes.nf4 as f64 - nf4).abs() < 4.0 * 224.0 + 1.0, "{} for {nf4}", plan.bytes.nf4);
    assert_eq!(plan.bytes.dense, 2 * (32_000 * 4096 + (2 * 32 + 1) * 4096));
    // Only rows of the embedding are read.
    assert_eq!(plan.bytes.pinned, 2 * 32_000 * 4096);
    // cos and sin of 64 angles, 1024 times.
    assert_eq!(plan.bytes.table, 1024 * 128 * 4);
    // While loading: a piece in f32, and the absmax of the largest matrix.
    assert_eq!(plan.bytes.loading, 4 * (4 << 20) + 4 * 4096 * 11_008 / 64);
    // r * (in + out) of seven layers, 32 times.
    assert_eq!(plan.trained, 32 * 16 * (4 * (4096 + 4096) + 3 * (4096 + 11_008)));
}

#[test]
fn qwen3_8b_with_4096_tokens_trains_in_24_gb() {
    let (plan, memory) = planned(QWEN3_8B, 4096, "rtx4090");
    assert!(plan.bytes.total() <= memory, "{} of {memory}", plan.bytes.total());
    assert!(plan.bytes.total() as f64 > 12.0 * GIB, "the plan lost something: {}", plan.bytes.total());
    // Embedding and head are apart: the embedding's 1.24 GB are not the card's.
    let table = 2 * 151_936 * 4096;
    assert_eq!(plan.bytes.pinned, table);
    let norms = 36 * (2 * 4096 + 2 * 128) + 4096;
    assert_eq!(plan.bytes.dense, table + 2 * norms);
    assert_eq!(plan.bytes.table, 4096 * 128 * 4);
}

/// A head that is the embedding is multiplied by, and stays on the card; so does one that is trained.
#[test]
fn an_embedding_that_is_more_than_gathered_stays_on_the_card() {
    let tied = QWEN3_8B.replace(r#""tie_word_embeddings": false"#, r#""tie_word_embeddings": true"#);
    let dir = folder(&tied);
    let one = Envelope::uniform(512, 1);
    let target = Target::Gpu(Card::known("h100").unwrap());
    let bytes = |dir: &Path, more: &str| {
        let mut config = config(dir);
        config.tune.additional_target = more.split_whitespace().map(String::from).collect();
        plan_shapes(dir, &config, &one, &Envelope::default(), &target).unwrap().bytes
    };
    let (table, norms) = (2 * 151_936 * 4096, 2 * (36 * (2 * 4096 + 2 * 128) + 4096));
    let b = bytes(dir.path(), "");
    assert_eq!((b.pinned, b.dense), (0, table + norms));
    // The tie is broken: the head is trained, and the embedding only gathered.
    let b = bytes(dir.path(), "lm_head");
    assert_eq!((b.pinned, b.dense), (table, norms));
    let apart = folder(QWEN3_8B);
    let b = bytes(apart.path(), "embed_tokens");
    assert_eq!((b.pinned, b.dense), (0, table + norms));
    // On the CPU everything lies in one memory.
    let cpu = Target::Cpu { threads: 2 };
    let b = plan_shapes(apart.path(), &config(apart.path()), &one, &Envelope::default(), &cpu).unwrap().bytes;
    assert_eq!((b.pinned, b.loading), (0, 0));
    assert_eq!(b.table, 512 * 64 * 2 * 8);
}

/// Loading comes before the run, whose memory is not there yet: the larger of the two counts.
#[test]
fn what_loading_takes_is_counted() {
    let (plan, _) = planned(LLAMA2_7B, 8, "rtx3080");
    let b = plan.bytes;
    let run = b.trained + b.gradient + b.optimizer + b.step + b.scratch;
    assert_eq!(b.total(), b.dense + b.nf4 + b.table + run.max(b.loading));
    let alone = Bytes { nf4: 100, loading: 50, step: 20, trained: 10, ..Bytes::default() };
    assert_eq!(alone.total(), 150);
    let under = Bytes { step: 45, ..alone };
    assert_eq!(under.total(), 155);
}

/// A refusal names the larger of the two: a setting of the run cannot help where loading is what does not fit.
#[test]
fn a_refusal_says_whether_loading_or_the_run_is_too_large() {
    // One layer, whose matrices are as large as the pieces in which they are quantised: few other things are as large.
    let mut json = LLAMA2_7B.replace("4096", "2048").replace("11008", "2048").replace("32000", "1000");
    for (key, number) in [("num_hidden_layers", 1), ("num_attention_heads", 16), ("num_key_value_heads", 16)] {
        json = json.replace(&format!("\"{key}\": 32"), &format!("\"{key}\": {number}"));
    }
    let dir = folder(&json);
    let mut config = config(dir.path());
    (config.tune.lora_rank, config.tune.lora_target) = (1, vec!["q_proj".into()]);
    let target = Target::Gpu(Card::known("rtx3080").unwrap());
    let none = Envelope::default();
    let (folder, none, target) = (dir.path(), &none, &target);
    let planned = |config: &Config, tokens| {
        let one = Envelope::uniform(tokens, 1);
        let plan = plan_shapes(folder, config, &one, none, target).unwrap();
        (plan.bytes, move |limit, config: &Config| fit::check(&plan, limit, folder, config, &one, none, target))
    };
    let refused = |fits: Result<()>| match fits {
        Err(Error::Memory(why)) => why,
        other => panic!("{other:?}"),
    };

    let (b, check) = planned(&config, 1);
    assert!(b.loading > b.run(), "{b:?}");
    let need = b.total();
    assert!(check(need, &config).is_ok());
    let why = refused(check(need - 3 * 1024, &config));
    let figures = [need, b.weights(), b.loading, b.run(), need - 3 * 1024, 3 * 1024].map(human);
    assert!(figures.iter().all(|figure| why.contains(figure)), "{why}");
    assert!(why.contains("to quantise") && why.contains("3.0 KiB more of the card's memory"), "{why}");
    // What a person has set is named with the value that is enough.
    let mut bounded = config.clone();
    bounded.model.max_memory = Some(need - 1);
    assert!(refused(check(need - 1, &bounded)).contains(&format!("`max_memory: {need}`")));

    let (b, check) = planned(&config, 2048);
    assert!(b.loading < b.run(), "{b:?}");
    let why = refused(check(b.total() - 1, &config));
    assert!(why.contains("a step ") && !why.contains("quantise"), "{why}");
}

/// More memory keeps more, and what is kept never passes the limit.
#[test]
fn a_plan_keeps_what_fits() {
    let (small, small_memory) = planned(LLAMA2_7B, 4096, "rtx3080");
    let (large, large_memory) = planned(LLAMA2_7B, 4096, "rtx4090");
    let (huge, _) = planned(LLAMA2_7B, 4096, "h100");
    assert!(small.bytes.total() <= small_memory && large.bytes.total() <= large_memory);
    assert!(small.bytes.step < large.bytes.step, "{} {}", small.bytes.step, large.bytes.step);
    assert_eq!(huge.policies, Policy::KEEP.into());
    assert_ne!(small.policies, Policy::KEEP.into());
}

#[test]
fn what_does_not_fit_at_all_keeps_least() {
    let (plan, memory) = planned(QWEN3_8B, 65_536, "rtx3080");
    assert!(plan.bytes.total() > memory);
    assert_eq!(plan.policies.of(0), Policy::RECOMPUTE);
    assert!(Card::known("rtx9999").is_none());
}
