//! Exports of the golden tiny models with their adapters: what is written gives the logits of base and adapter, files hold
//! what their formats ask for, and nothing is left of an export that fails.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use qlora_engine::config::{self, Command, Format};
use qlora_engine::data::tokenizer::Tokenizer;
use qlora_engine::error::Result;
use qlora_engine::export::{self, Job, Merged, gguf_lora, hf, verify};
use qlora_engine::format::adapter::Part;
use qlora_engine::format::gguf::{GgmlType, Gguf};
use qlora_engine::format::{AdapterFile, Checkpoint, HfConfig};
use qlora_engine::quant::ggml::dequantise;
use qlora_engine::train::{Control, Event, Inputs};
use serde_json::Value;

/// Two f32 products in another order: (W + B A) x against W x + B A x, over two layers of width 32.
const F32: f64 = 1e-4;

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models").join(name)
}

/// Runs an export of the golden model with these adapters of its; the largest difference that was read back.
fn run(model: &str, adapters: &[&str], dir: &Path, keys: &[&str]) -> Result<f64> {
    let base = golden(model);
    let mut yaml = format!("model_name_or_path: {}\nexport_dir: {}\nuse_cpu: true\n", base.display(), dir.display());
    if !keys.iter().any(|k| k.starts_with("template")) {
        yaml += "template: empty\n";
    }
    if !adapters.is_empty() {
        let paths: Vec<String> = adapters.iter().map(|a| base.join(a).display().to_string()).collect();
        yaml += &format!("adapter_name_or_path: {}\n", paths.join(","));
    }
    keys.iter().for_each(|k| yaml += &format!("{k}\n"));
    let config = config::from_str(&yaml, Format::Yaml, &[])?;
    config.validate_for(Command::Export)?;
    let (base, tokenizer, template) = Inputs::model(&config, &mut |_: &Event<'_>| Control::Continue)?;
    let job = Job { config: &config, base: &base, tokenizer: &tokenizer, template: &template };
    let mut worst = f64::NAN;
    let made = export::export(&job, &mut |_, _| {}, &mut |made| {
        worst = verify::read_back(&job, made)?;
        Ok(())
    })?;
    assert_eq!(made, dir);
    Ok(worst)
}

fn names(dir: &Path) -> Vec<String> {
    let mut names: Vec<_> = fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

fn json(path: &Path) -> Value {
    serde_json::from_slice(&fs::read(path).unwrap()).unwrap()
}

#[test]
fn a_merged_folder_gives_the_logits_of_base_and_adapter() {
    let place = tempfile::tempdir().unwrap();
    for (i, (model, adapters)) in [
        ("llama2", &["adapter"][..]),
        ("llama3", &["adapter"]),
        ("llama3", &["adapter_lm_head"]),
        ("mistral", &["adapter"]),
        ("qwen2", &["adapter"]),
        ("qwen3", &["adapter_embed_tokens"]),
        ("qwen3", &["adapter_rslora"]),
        ("qwen3", &["adapter", "adapter_rslora"]),
        ("phi3", &["adapter"]),
        ("gpt2", &["adapter"]),
    ]
    .into_iter()
    .enumerate()
    {
        let dir = place.path().join(i.to_string());
        let worst = run(model, adapters, &dir, &[]).unwrap();
        assert!(worst <= F32, "{model} {adapters:?}: {worst:.3e}");
        let tied = json(&golden(model).join("config.json"))["tie_word_embeddings"] == true;
        let untied = tied && adapters == ["adapter_embed_tokens"];
        assert_eq!(json(&dir.join("config.json"))["tie_word_embeddings"], tied && !untied, "{model}");
        let weights = Checkpoint::open(&dir).unwrap();
        assert_eq!(weights.contains("lm_head.weight"), !tied || untied, "{model} {adapters:?}");
        let before = Tokenizer::load(&golden(model), false).unwrap();
        let after = Tokenizer::load(&dir, false).unwrap();
        let text = "Merged: 北京 42 <|im_end|>";
        assert_eq!(after.encode(text).unwrap(), before.encode(text).unwrap());
        assert!(!names(&dir).iter().any(|n| n.starts_with('.')));
    }
    // The merge is not nothing.
    let (base, made) = (Checkpoint::open(golden("qwen2")).unwrap(), Checkpoint::open(place.path().join("4")).unwrap());
    let name = "model.layers.1.mlp.down_proj.weight";
    assert_ne!(base.get(name).unwrap().bytes, made.get(name).unwrap().bytes);
    assert_eq!(base.get("model.norm.weight").unwrap().bytes, made.get("model.norm.weight").unwrap().bytes);
}

#[test]
fn merging_into_dequantised_weights_gives_the_logits_of_the_4_bit_base() {
    let place = tempfile::tempdir().unwrap();
    let keys = ["quantization_bit: 4", "export_dequantized: true"];
    let worst = run("qwen3", &["adapter"], &place.path().join("a"), &keys).unwrap();
    assert!(worst <= F32, "{worst:.3e}");
    let plain = run("qwen3", &["adapter"], &place.path().join("b"), &[]).unwrap();
    assert!(plain <= F32);
    let weights = |name: &str| {
        let c = Checkpoint::open(place.path().join(name)).unwrap();
        c.get("model.layers.0.mlp.up_proj.weight").unwrap().bytes.to_vec()
    };
    assert_ne!(weights("a"), weights("b"));
    let e = run("qwen3", &["adapter"], &place.path().join("c"), &["quantization_bit: 4"]).unwrap_err().to_string();
    assert!(e.contains("quantization_bit") && e.contains("export_dequantized"), "{e}");
}

#[test]
fn shards_have_an_index_and_hold_every_tensor_once() {
    let place = tempfile::tempdir().unwrap();
    let merged = Merged::open(&golden("qwen3"), &[golden("qwen3/adapter")], None).unwrap();
    let tokenizer = Tokenizer::load(&golden("qwen3"), false).unwrap();
    hf::write(place.path(), &golden("qwen3"), &merged, &tokenizer, 30_000, &mut |_, _| {}).unwrap();
    let index = json(&place.path().join("model.safetensors.index.json"));
    let map: BTreeMap<String, String> = serde_json::from_value(index["weight_map"].clone()).unwrap();
    let base = Checkpoint::open(golden("qwen3")).unwrap();
    assert_eq!(map.keys().map(String::as_str).collect::<Vec<_>>(), base.names().collect::<Vec<_>>());
    assert_eq!(index["metadata"]["total_size"], base.total_bytes());
    let shards: Vec<_> = names(place.path()).into_iter().filter(|n| n.ends_with(".safetensors")).collect();
    assert!(shards.len() > 2 && shards[0] == format!("model-00001-of-{:05}.safetensors", shards.len()), "{shards:?}");
}

#[test]
fn a_gguf_file_gives_the_logits_of_base_and_adapter() {
    let place = tempfile::tempdir().unwrap();
    for (model, adapter, arch) in [
        ("llama2", "adapter", "llama"),
        ("llama3", "adapter", "llama"),
        ("llama3", "adapter_lm_head", "llama"),
        ("mistral", "adapter", "llama"),
        ("qwen2", "adapter", "qwen2"),
        ("qwen3", "adapter", "qwen3"),
        ("qwen3", "adapter_embed_tokens", "qwen3"),
        ("gpt2", "adapter", "gpt2"),
    ] {
        let dir = place.path().join(format!("{model}-{adapter}"));
        let worst = run(model, &[adapter], &dir, &["export_format: gguf", "export_outtype: f32"]).unwrap();
        assert!(worst <= F32, "{model} {adapter}: {worst:.3e}");
        let file = Gguf::open(&dir.join(format!("{model}-f32.gguf"))).unwrap();
        let m = file.metadata();
        let c = HfConfig::open(&golden(model)).unwrap();
        assert_eq!(m.string("general.architecture").unwrap(), Some(arch));
        assert_eq!(m.number("general.file_type").unwrap(), Some(0));
        assert_eq!(m.number(&format!("{arch}.block_count")).unwrap(), Some(c.num_hidden_layers as u64));
        assert_eq!(m.number(&format!("{arch}.context_length")).unwrap(), Some(c.max_position_embeddings as u64));
        assert_eq!(file.find("token_embd.weight").unwrap().dims, [c.hidden_size, c.vocab_size]);
        assert_eq!(file.find("rope_freqs.weight").is_some(), model == "llama3", "{model}");
        let tokenizer = Tokenizer::from_gguf(m, false).unwrap();
        let before = Tokenizer::load(&golden(model), false).unwrap();
        assert_eq!(tokenizer.encode("It's 42.\n北京").unwrap(), before.encode("It's 42.\n北京").unwrap(), "{model}");
    }
    let e = run("phi3", &["adapter"], &place.path().join("phi3"), &["export_format: gguf"]).unwrap_err().to_string();
    assert!(e.contains("longrope"), "{e}");
}

#[test]
fn types_of_a_gguf_file_follow_the_recipe_and_its_values_are_the_merged_ones() {
    let place = tempfile::tempdir().unwrap();
    for (outtype, id, linear) in [
        ("f16", 1, GgmlType::F16),
        ("bf16", 32, GgmlType::Bf16),
        ("q8_0", 7, GgmlType::Q8_0),
        ("q4_0", 2, GgmlType::Q4_0),
        ("q4_k_m", 15, GgmlType::Q5_0), // rows of 32 hold no block of 256
        ("q6_k", 18, GgmlType::Q8_0),
    ] {
        let dir = place.path().join(outtype);
        let keys = ["export_format: gguf".to_string(), format!("export_outtype: {outtype}")];
        let worst = run("llama2", &["adapter"], &dir, &keys.each_ref().map(String::as_str)).unwrap();
        // Weights at random double what 4 bits lose from layer to layer: their values are what is held to a bound, below.
        let limit = if outtype.starts_with("q4") { f64::MAX } else { 0.5 };
        assert!(worst > 0.0 && worst <= limit, "{outtype}: {worst:.3e}");
        let file = Gguf::open(&dir.join(format!("llama2-{outtype}.gguf"))).unwrap();
        assert_eq!(file.metadata().number("general.file_type").unwrap(), Some(id));
        let v = file.find("blk.1.attn_output.weight").unwrap();
        assert_eq!(v.ty, linear, "{outtype}");
        assert_eq!(file.find("blk.0.attn_norm.weight").unwrap().ty, GgmlType::F32);
        // Against the merged folder: at most a step of the coarsest type, whose 16 steps of most / 8 end one short of the top.
        let folder = place.path().join("hf");
        run("llama2", &["adapter"], &folder, &[]).unwrap();
        let mut want = vec![0.0f32; 32 * 32];
        let merged = Checkpoint::open(&folder).unwrap();
        merged.get("model.layers.1.self_attn.o_proj.weight").unwrap().read_f32(&mut want).unwrap();
        let mut got = vec![f32::NAN; 32 * 32];
        dequantise(v.ty, file.bytes(v), &mut got);
        let most = want.iter().fold(0.0f32, |m, x| m.max(x.abs()));
        assert!(want.iter().zip(&got).all(|(x, y)| (x - y).abs() <= most / 7.0), "{outtype}");
        let modelfile = fs::read_to_string(dir.join("Modelfile")).unwrap();
        assert!(modelfile.starts_with(&format!("FROM ./llama2-{outtype}.gguf\n")), "{modelfile}");
    }
}

#[test]
fn an_adapter_in_gguf_has_the_scale_and_the_rows_that_llama_cpp_expects() {
    let place = tempfile::tempdir().unwrap();
    let worst = run("llama2", &["adapter"], &place.path().join("a"), &["export_format: gguf-lora"]).unwrap();
    assert!(worst <= 1e-7, "{worst:.3e}");
    let adapter = AdapterFile::open(&golden("llama2/adapter")).unwrap();
    let file = Gguf::open(&place.path().join("a/llama2-lora-f32.gguf")).unwrap();
    let m = file.metadata();
    for (key, value) in [("general.type", "adapter"), ("adapter.type", "lora"), ("general.architecture", "llama")] {
        assert_eq!(m.string(key).unwrap(), Some(value));
    }
    assert_eq!(m.float("adapter.lora.alpha").unwrap(), Some(adapter.config.lora_alpha));
    // The converter's own words: B.reshape(heads, 2, d / 2, r).swapaxes(1, 2).
    let r = adapter.config.r;
    let mut b = vec![0.0f32; 32 * r];
    let name = adapter.tensor_of("model.layers.0.self_attn.q_proj", Part::B).unwrap();
    adapter.tensors.get(name).unwrap().read_f32(&mut b).unwrap();
    let t = file.find("blk.0.attn_q.weight.lora_b").unwrap();
    assert_eq!((t.dims.as_slice(), t.ty), (&[r, 32][..], GgmlType::F32));
    let mut got = vec![f32::NAN; 32 * r];
    dequantise(t.ty, file.bytes(t), &mut got);
    let (heads, d) = (4, 8);
    let mut at = 0;
    for h in 0..heads {
        for j in 0..d / 2 {
            for half in 0..2 {
                let from = h * d + half * d / 2 + j;
                assert_eq!(got[at * r..(at + 1) * r], b[from * r..(from + 1) * r], "row {at}");
                at += 1;
            }
        }
    }
    assert_eq!(file.find("blk.0.ffn_down.weight.lora_a").unwrap().dims, [48, r]);
    let modelfile = fs::read_to_string(place.path().join("a/Modelfile")).unwrap();
    assert!(modelfile.contains("ADAPTER ./llama2-lora-f32.gguf\n"), "{modelfile}");

    // rsLoRA: llama.cpp divides by r, so alpha carries the root.
    run("qwen3", &["adapter_rslora"], &place.path().join("b"), &["export_format: gguf-lora"]).unwrap();
    let c = AdapterFile::open(&golden("qwen3/adapter_rslora")).unwrap().config;
    let file = Gguf::open(&place.path().join("b/qwen3-lora-f32.gguf")).unwrap();
    let alpha = file.metadata().float("adapter.lora.alpha").unwrap().unwrap();
    let scale = c.scale_of("model.layers.0.self_attn.q_proj");
    assert!(c.use_rslora && (alpha / c.r as f64 - scale).abs() <= 1e-6 * scale, "{alpha}");
    // Another adapter's numbers are another's.
    let path = place.path().join("b/qwen3-lora-f32.gguf");
    let other = AdapterFile::open(&golden("qwen3/adapter")).unwrap();
    let config = HfConfig::open(&golden("qwen3")).unwrap();
    let d = gguf_lora::difference(&path, &other, &config);
    assert!(d.is_err() || d.is_ok_and(|d| d > 1e-3));

    let keys = ["export_format: gguf-lora"];
    let e = run("qwen3", &["adapter_embed_tokens"], &place.path().join("c"), &keys).unwrap_err().to_string();
    assert!(e.contains("embed_tokens") && e.contains("modules_to_save"), "{e}");
    let e = run("qwen3", &["adapter", "adapter_rslora"], &place.path().join("c"), &keys).unwrap_err().to_string();
    assert!(e.contains("adapter_name_or_path") && e.contains("one adapter"), "{e}");
    assert_eq!(names(place.path()), ["a", "b"]);
}

#[test]
fn template_and_thinking_travel() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("out");
    let keys = ["template: qwen3", "enable_thinking: false", "export_format: gguf", "export_outtype: q8_0"];
    run("qwen3", &["adapter"], &dir, &keys).unwrap();
    let modelfile = fs::read_to_string(dir.join("Modelfile")).unwrap();
    let want = "TEMPLATE \"\"\"{{ if .System }}<|im_start|>system\n{{ .System }}<|im_end|>\n{{ end }}{{ if .Prompt }}\
                <|im_start|>user\n{{ .Prompt }}<|im_end|>\n<|im_start|>assistant\n{{ end }}<think>\n\n</think>\n\n\
                {{ .Response }}<|im_end|>\n\"\"\"\n";
    assert!(modelfile.contains(want), "{modelfile}");
    assert!(modelfile.contains("PARAMETER stop \"<|im_end|>\"\n") && modelfile.contains("PARAMETER num_ctx 512\n"));
    let sidecar = json(&dir.join("qlora_engine.json"));
    assert_eq!((&sidecar["template"], &sidecar["enable_thinking"]), (&"qwen3".into(), &false.into()));
}

#[test]
fn a_failed_export_leaves_nothing_and_other_folders_are_safe() {
    let place = tempfile::tempdir().unwrap();
    let dir = place.path().join("out");
    // An adapter of another model is named, with the tensor.
    let other = golden("llama3/adapter");
    let relative = format!("../llama3/{}", other.file_name().unwrap().to_str().unwrap());
    let e = run("qwen3", &[&relative], &dir, &[]).unwrap_err().to_string();
    assert!(e.contains("another model") && e.contains("lora_") && !e.contains('\n'), "{e}");
    assert!(names(place.path()).is_empty());
    // A folder with something else in it stays as it is; an earlier export is replaced.
    fs::create_dir(&dir).unwrap();
    fs::write(dir.join("thesis.txt"), "mine").unwrap();
    let e = run("qwen3", &["adapter"], &dir, &[]).unwrap_err().to_string();
    assert!(e.contains("export_dir") && e.contains("something else"), "{e}");
    assert_eq!(names(&dir), ["thesis.txt"]);
    fs::remove_file(dir.join("thesis.txt")).unwrap();
    run("qwen3", &["adapter"], &dir, &[]).unwrap();
    run("qwen3", &[], &dir, &["export_format: gguf"]).unwrap();
    assert!(dir.join("qwen3-f16.gguf").is_file() && !dir.join("model.safetensors").exists());
    assert_eq!(names(place.path()), ["out"]);
    for (key, named) in [
        ("export_outtype: q8_0", "export_outtype"),
        ("export_legacy_format: true", "export_legacy_format"),
        ("export_format: onnx", "export_format"),
        ("export_size: 0", "export_size"),
    ] {
        let e = run("qwen3", &["adapter"], &dir, &[key]).unwrap_err().to_string();
        assert!(e.contains(named), "{e}");
    }
}
