//! A GGUF file as the base model: it is trained on, asked and exported for as a checkpoint is, and blocks give the bits of
//! the numbers in them.

mod common;

use std::path::{Path, PathBuf};

use common::Place;
use qlora_engine::format::gguf::{GgmlType, Gguf, Writer};
use qlora_engine::format::safetensors::{TensorSpec, write_file};
use qlora_engine::format::{AdapterFile, Checkpoint, Dtype};
use qlora_engine::quant::ggml::Blocks;
use serde_json::{Value, json};

/// A model of random numbers whose matrices have whole K blocks: the golden Qwen3 or Llama 2 in all but its sizes.
fn wide(place: &Place, family: &str) -> PathBuf {
    let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(family);
    let to = place.path(family);
    std::fs::create_dir(&to).unwrap();
    for name in ["tokenizer.json", "tokenizer_config.json", "chat_template.jinja"] {
        std::fs::copy(golden.join(name), to.join(name)).unwrap();
    }
    let mut config: Value = serde_json::from_slice(&std::fs::read(golden.join("config.json")).unwrap()).unwrap();
    for (key, n) in [
        ("hidden_size", 256),
        ("intermediate_size", 512),
        ("num_attention_heads", 4),
        ("num_key_value_heads", 2),
        ("head_dim", 64),
    ] {
        config[key] = json!(n);
    }
    place.write(&format!("{family}/config.json"), config.to_string());
    let small = Checkpoint::open(&golden).unwrap();
    let (hidden, mlp, kv) = (256, 512, 128);
    let specs: Vec<TensorSpec> = small
        .names()
        .map(|name| {
            let old = small.get(name).unwrap().shape.to_vec();
            let shape = match name.rsplit('.').nth(1).unwrap() {
                "embed_tokens" | "lm_head" => vec![old[0], hidden],
                "q_proj" | "o_proj" => vec![hidden, hidden],
                "k_proj" | "v_proj" => vec![kv, hidden],
                "gate_proj" | "up_proj" => vec![mlp, hidden],
                "down_proj" => vec![hidden, mlp],
                "q_norm" | "k_norm" => vec![64],
                _ => vec![hidden],
            };
            TensorSpec::new(name, Dtype::F32, &shape)
        })
        .collect();
    let mut state = 1u64;
    let mut random = move || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        ((state >> 40) as f32 / (1 << 24) as f32) - 0.5
    };
    write_file(&to.join("model.safetensors"), &specs, |spec, sink| {
        let n: usize = spec.shape.iter().product();
        let norm = spec.shape.len() == 1;
        sink.f32(&(0..n).map(|_| if norm { 1.0 + random() } else { 0.2 * random() }).collect::<Vec<_>>())
    })
    .unwrap();
    to
}

/// `qlora-engine ARGS`, which must succeed; what it printed.
fn done(place: &Place, args: &[&str]) -> String {
    let ran = place.run(args);
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    ran.stdout
}

/// The model as a GGUF file of this type; its name.
fn exported(place: &Place, family: &str, outtype: &str) -> String {
    let (model, dir) = (format!("model_name_or_path={family}"), format!("export_dir={family}-{outtype}"));
    let outtype_key = format!("export_outtype={outtype}");
    done(place, &["export", &model, "template=empty", "use_cpu=true", "export_format=gguf", &dir, &outtype_key]);
    format!("{family}-{outtype}/{family}-{outtype}.gguf")
}

/// The same file with every block as the f32 numbers in it.
fn dequantised(place: &Place, file: &str) -> String {
    let from = Gguf::open(&place.path(file)).unwrap();
    let mut to = Writer::new(from.metadata().clone()).unwrap();
    for t in from.tensors() {
        to.tensor(&t.name, &t.dims, GgmlType::F32).unwrap();
    }
    let name = file.replace(".gguf", "-f32.gguf");
    to.write(&place.path(&name), |t, sink| {
        let blocks = Blocks::of_file(&from, from.find(&t.name).unwrap());
        let mut row = vec![0.0f32; blocks.cols];
        for i in 0..blocks.rows {
            blocks.dequantise_row(i, &mut row);
            sink.bytes(&row.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<_>>())?;
        }
        Ok(())
    })
    .unwrap();
    name
}

/// The losses of five steps on a base, whose adapter is left in `out`.
fn losses(place: &Place, base: &str, out: &str, more: &[&str]) -> Vec<f64> {
    let (model, dir) = (format!("model_name_or_path={base}"), format!("output_dir={out}"));
    let template = if base.starts_with("llama2") { "template=llama2" } else { "template=qwen3" };
    place.train(&[&[model.as_str(), dir.as_str(), template, "overwrite_output_dir=true"], more].concat());
    let state = place.json(&format!("{out}/trainer_state.json"));
    let history = state["log_history"].as_array().unwrap();
    history.iter().filter_map(|row| row["loss"].as_f64()).collect()
}

/// The types of the matrices of a file, each once.
fn types(place: &Place, file: &str) -> Vec<&'static str> {
    let mut types: Vec<_> = Gguf::open(&place.path(file)).unwrap().tensors().iter().map(|t| t.ty.name()).collect();
    types.sort_unstable();
    types.dedup();
    types
}

/// An adapter trained on blocks is, to the bit, the one trained on the numbers in them; in bf16 both round the same numbers.
/// Llama's q and k lie in the file in another order of rows, and Qwen3's do not.
#[test]
fn training_on_blocks_is_training_on_their_numbers() {
    let place = Place::new();
    for (family, outtype, all) in [
        ("qwen3", "q4_k_m", vec!["F32", "Q4_K", "Q6_K"]),
        ("llama2", "q4_k_m", vec!["F32", "Q4_K", "Q6_K"]),
        ("qwen3", "q5_k_m", vec!["F32", "Q5_K", "Q6_K"]),
        ("llama2", "q8_0", vec!["F32", "Q8_0"]),
        ("qwen3", "q4_0", vec!["F32", "Q4_0", "Q6_K"]),
    ] {
        if !place.path(family).exists() {
            wide(&place, family);
        }
        let file = exported(&place, family, outtype);
        assert_eq!(types(&place, &file), all, "{family} {outtype}");
        let plain = dequantised(&place, &file);
        for precision in ["bf16=false", "bf16=true"] {
            let want = losses(&place, &plain, "plain", &[precision]);
            let got = losses(&place, &file, "blocks", &[precision]);
            assert!(want.len() == 5 && want.iter().all(|l| l.is_finite() && *l > 0.0), "{want:?}");
            assert_eq!(got, want, "{family} {outtype} {precision}");
            let adapter = |out: &str| place.read(&format!("{out}/adapter_model.safetensors"));
            assert!(adapter("plain") == adapter("blocks"), "{family} {outtype} {precision}: the adapters differ");
        }
    }
}

/// An f32 file holds the checkpoint's very numbers: training on either gives the same.
#[test]
fn an_f32_file_is_the_checkpoint() {
    let place = Place::new();
    for family in ["qwen3", "llama2"] {
        wide(&place, family);
        let file = exported(&place, family, "f32");
        assert_eq!(losses(&place, &file, "a", &[]), losses(&place, family, "b", &[]));
        let of = |out: &str| Checkpoint::open_file(&place.path(&format!("{out}/adapter_model.safetensors"))).unwrap();
        let (a, b) = (of("a"), of("b"));
        assert!(a.names().count() > 0 && a.names().eq(b.names()), "{family}");
        for name in a.names() {
            assert!(a.get(name).unwrap().bytes == b.get(name).unwrap().bytes, "{family} {name}");
        }
    }
}

/// Chat, predictions and the adapter's export work on the file that was trained on.
#[test]
fn what_was_trained_on_a_file_is_used_with_it() {
    let place = Place::new();
    wide(&place, "qwen3");
    let file = exported(&place, "qwen3", "q4_k_m");
    losses(&place, &file, "out", &[]);
    let adapter = AdapterFile::open(&place.path("out")).unwrap();
    assert_eq!(adapter.config.base_model_name_or_path.as_deref(), Some(file.as_str()));
    let model = format!("model_name_or_path={file}");
    let common = [model.as_str(), "adapter_name_or_path=out", "template=qwen3", "use_cpu=true"];
    let ask = ["generate", "--prompt", "What is 1 plus 1?", "--greedy", "--max-new-tokens", "8", "--json"];
    let answer: Value = serde_json::from_str(done(&place, &[&ask[..], &common].concat()).trim()).unwrap();
    assert!(answer["tokens"].as_u64().unwrap() > 0, "{answer}");
    let export = ["export", "export_dir=lora", "export_format=gguf-lora"];
    let said = done(&place, &[&export[..], &common].concat());
    assert!(said.contains("read back"), "{said}");
    let lora = std::fs::read_dir(place.path("lora")).unwrap().map(|e| e.unwrap().path());
    let lora = lora.filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect::<Vec<_>>();
    let lora = Gguf::open(&lora[0]).unwrap();
    assert_eq!(lora.metadata().string("adapter.type").unwrap(), Some("lora"));
    assert!(lora.find("blk.0.attn_q.weight.lora_a").is_some());
}

#[test]
fn what_a_file_cannot_do_is_refused() {
    let place = Place::new();
    wide(&place, "qwen3");
    let file = exported(&place, "qwen3", "q4_0");
    let model = format!("model_name_or_path={file}");
    for (key, words) in [
        ("quantization_bit=4", ["quantization_bit", "GGUF"]),
        ("finetuning_type=full", ["finetuning_type", "lora"]),
        ("additional_target=lm_head", ["additional_target", "GGUF"]),
    ] {
        let ran = place.run(&["train", "run.yaml", &model, key]);
        assert_eq!(ran.code, Some(1), "{key}: {}", ran.stderr);
        assert!(words.iter().all(|w| ran.stderr.contains(w)) && !ran.stderr.contains("panicked"), "{}", ran.stderr);
    }
    let bytes = place.read(&file);
    place.write("cut.gguf", &bytes[..bytes.len() / 2]);
    let ran = place.run(&["train", "run.yaml", "model_name_or_path=cut.gguf"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("cut.gguf"), "{}", ran.stderr);
}
