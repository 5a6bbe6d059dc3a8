//! A whole training step, forward, backward and optimizer, of a random model of 29 M parameters (`shapes.rs`): f32, bf16
//! and 4-bit, on the CPU; and on the GPU, where one is here. Element throughput is tokens/s.
//!
//! `cargo bench --bench step`. The same model against LLaMA-Factory: `benches/peers/compare.py`.

mod shapes;

use std::fs;
use std::path::Path;
use std::time::Duration;

use criterion::{Criterion, Throughput, criterion_group, criterion_main};
use qlora_engine::config::{self, Config, Format};
use qlora_engine::data::Batch;
use qlora_engine::device::Device;
use qlora_engine::format::{Dtype, TensorSpec, safetensors};
use qlora_engine::model;
use qlora_engine::ops::philox::{Stream, normal};
use qlora_engine::train::plan::{self, Envelope};
use qlora_engine::train::{Engine, StepResult, Target, target};
use shapes::{LAYERS, TOKENS};

const BLOCKS: usize = 8;
const ROWS: usize = 4;

/// A checkpoint of random weights with the shape of the first of `LAYERS`.
fn checkpoint(dir: &Path) {
    let (_, hidden, mlp, heads, kv_heads, head_dim, vocab) = LAYERS[0];
    let config = serde_json::json!({
        "architectures": ["Qwen3ForCausalLM"], "model_type": "qwen3", "hidden_size": hidden, "intermediate_size": mlp,
        "num_hidden_layers": BLOCKS, "num_attention_heads": heads, "num_key_value_heads": kv_heads,
        "head_dim": head_dim, "vocab_size": vocab, "tie_word_embeddings": true, "rms_norm_eps": 1e-6,
        "rope_theta": 1e6, "max_position_embeddings": 4096, "hidden_act": "silu", "torch_dtype": "bfloat16",
    });
    fs::write(dir.join("config.json"), config.to_string()).unwrap();
    let mut specs = vec![
        TensorSpec::new("model.embed_tokens.weight", Dtype::BF16, &[vocab, hidden]),
        TensorSpec::new("model.norm.weight", Dtype::BF16, &[hidden]),
    ];
    let (q, kv) = (heads * head_dim, kv_heads * head_dim);
    for i in 0..BLOCKS {
        let mut add = |name: &str, shape: &[usize]| {
            specs.push(TensorSpec::new(format!("model.layers.{i}.{name}.weight"), Dtype::BF16, shape));
        };
        for norm in ["input_layernorm", "post_attention_layernorm"] {
            add(norm, &[hidden]);
        }
        add("self_attn.q_norm", &[head_dim]);
        add("self_attn.k_norm", &[head_dim]);
        add("self_attn.q_proj", &[q, hidden]);
        add("self_attn.k_proj", &[kv, hidden]);
        add("self_attn.v_proj", &[kv, hidden]);
        add("self_attn.o_proj", &[hidden, q]);
        add("mlp.gate_proj", &[mlp, hidden]);
        add("mlp.up_proj", &[mlp, hidden]);
        add("mlp.down_proj", &[hidden, mlp]);
    }
    let mut module = 0;
    safetensors::write_model(dir, &specs, 1 << 40, |spec, sink| {
        module += 1;
        let stream = Stream { seed: 1, step: 0, module };
        let norm = spec.shape.len() == 1;
        let value = |i| if norm { 1.0 } else { 0.02 * normal(stream, i) };
        let n: usize = spec.shape.iter().product();
        sink.bf16(&(0..n as u64).map(|i| half::bf16::from_f32(value(i))).collect::<Vec<_>>())
    })
    .unwrap();
}

fn config(dir: &Path, extra: &str) -> Config {
    let text = format!(
        "model_name_or_path: {}\nstage: sft\ndo_train: true\nfinetuning_type: lora\ndataset: none\noutput_dir: none\n\
         disable_gradient_checkpointing: true\n{extra}",
        dir.display()
    );
    config::from_str(&text, Format::Yaml, &[]).unwrap()
}

/// Four rows of equal length, half of each trained on.
fn batch() -> Batch {
    let vocab = LAYERS[0].6 as u32;
    let len = (TOKENS / ROWS) as u32;
    let trained = |i: &u32| i % len >= len / 2;
    let rows: Vec<u32> = (0..TOKENS as u32).filter(trained).collect();
    Batch {
        ids: (0..TOKENS as u32).map(|i| i * 7919 % vocab).collect(),
        positions: (0..TOKENS as u32).map(|i| i % len).collect(),
        cu_seqlens: (0..=ROWS as u32).map(|i| i * len).collect(),
        targets: rows.iter().map(|i| i * 31 % vocab).collect(),
        labels: rows.len(),
        loss_rows: rows,
        rows: ROWS,
        padded_len: len as usize,
        ..Batch::default()
    }
}

/// A step and its result, which on a GPU is waited for.
fn step_now(engine: &mut Engine, window: &[Batch], step: u64) -> StepResult {
    match engine.step(window, step, step, 1e-3).unwrap() {
        Some(result) => result,
        None => engine.settle().unwrap(),
    }
}

fn steps(c: &mut Criterion) {
    let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
    let cases = [("f32", ""), ("bf16", "bf16: true"), ("nf4", "bf16: true\nquantization_bit: 4")];
    time(c, "step 29M", &cases, &Device::cpu(threads), &Target::Cpu { threads });
    match Device::cuda(0) {
        Ok(gpu) => {
            let target = Target::Gpu(target::card_of(&gpu).unwrap());
            time(c, "step 29M on the GPU", &cases[1..], &gpu, &target);
        }
        Err(e) => println!("no steps on a GPU: {e}"),
    }
}

fn time(c: &mut Criterion, title: &str, cases: &[(&str, &str)], device: &Device, target: &Target) {
    let dir = tempfile::tempdir().unwrap();
    checkpoint(dir.path());
    let mut group = c.benchmark_group(title);
    group.throughput(Throughput::Elements(TOKENS as u64));
    group.sample_size(10).warm_up_time(Duration::from_secs(1)).measurement_time(Duration::from_secs(5));
    for &(name, extra) in cases {
        let config = config(dir.path(), extra);
        let envelope = Envelope { lengths: vec![TOKENS / ROWS; ROWS], loss_rows: TOKENS };
        let plan = plan::plan(dir.path(), &config, &envelope, &Envelope::default(), target).unwrap();
        let options = plan::options(&config, TOKENS, target);
        let model = model::load(dir.path(), &options, device, &|_, _| {}).unwrap();
        let mut engine = Engine::new(model, &plan, &config).unwrap();
        let window = [batch()];
        // Checked before it is timed: the loss of a random model is close to that of guessing, and falls.
        let first = step_now(&mut engine, &window, 1).loss;
        let guess = (LAYERS[0].6 as f64).ln();
        assert!((first - guess).abs() < 1.0, "{name}: loss {first}, guessing gives {guess}");
        let mut step = 1;
        group.bench_function(name, |b| {
            b.iter(|| {
                step += 1;
                step_now(&mut engine, &window, step)
            })
        });
        assert!(step_now(&mut engine, &window, step + 1).loss < first, "{name}: the loss did not fall");
    }
    group.finish();
}

criterion_group!(benches, steps);
criterion_main!(benches);
