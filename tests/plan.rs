//! Plans for GPUs that are not here: real models by their config.json alone.

use std::path::Path;

use qlora_engine::config::{self, Config, Format};
use qlora_engine::device::Card;
use qlora_engine::model::Policy;
use qlora_engine::train::Target;
use qlora_engine::train::plan::{Bytes, Envelope, Plan, plan_shapes};

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
