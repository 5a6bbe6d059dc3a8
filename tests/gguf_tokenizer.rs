//! Tokenizers from and to GGUF metadata: ids against those of the Python packages (`tests/golden/gguf_tok/make.py`), and
//! the repository's own tokenizers there and back.

use std::fs;
use std::path::{Path, PathBuf};

use qlora_engine::data::gguf_tokenizer;
use qlora_engine::data::tokenizer::Tokenizer;
use qlora_engine::format::gguf::{Array, Gguf, Metadata, Value};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).to_path_buf()
}

fn golden(name: &str) -> Metadata {
    Gguf::open(&root().join("tests/golden/gguf_tok").join(name)).unwrap().metadata().clone()
}

/// The texts, and the ids under a key of `ids.json`.
fn want(key: &str) -> Vec<(String, Option<Vec<u32>>)> {
    let text = fs::read_to_string(root().join("tests/golden/gguf_tok/ids.json")).unwrap();
    let all: serde_json::Value = serde_json::from_str(&text).unwrap();
    let texts: Vec<String> = serde_json::from_value(all["texts"].clone()).unwrap();
    let ids: Vec<Option<Vec<u32>>> = serde_json::from_value(all[key].clone()).unwrap();
    assert_eq!(texts.len(), ids.len());
    texts.into_iter().zip(ids).collect()
}

fn check(t: &Tokenizer, key: &str) {
    let mut compared = 0;
    for (text, ids) in want(key) {
        let Some(ids) = ids else { continue };
        assert_eq!(t.encode(&text).unwrap(), ids, "{key}: {text:?}");
        compared += 1;
    }
    assert!(compared >= 20, "{key}: only {compared} texts");
}

#[test]
fn byte_level_ids_are_those_of_the_python_package_for_each_way_of_splitting() {
    let mut m = golden("bpe.gguf");
    for pre in ["gpt-2", "llama-bpe", "qwen2", "starcoder", "falcon", "deepseek-coder", "deepseek-v3"] {
        m.set("tokenizer.ggml.pre", Value::string(pre));
        check(&Tokenizer::from_gguf(&m, false).unwrap(), pre);
    }
}

#[test]
fn the_facts_around_the_vocabulary_are_read() {
    let t = Tokenizer::from_gguf(&golden("bpe.gguf"), false).unwrap();
    assert_eq!((t.bos(), t.eos()), (None, Some("<|im_end|>")));
    assert_eq!(t.pad_id(), t.id("<|endoftext|>"));
    assert_eq!(t.adds_around().unwrap(), (false, false));
    assert_eq!(t.vocab_size(), 505);
    let ids = t.encode("<|im_start|>hi<|im_end|><think>").unwrap();
    assert_eq!(t.decode(&ids, true).unwrap(), "hi<think>");
    let split = Tokenizer::from_gguf(&golden("bpe.gguf"), true).unwrap();
    assert!(split.encode("<|im_end|>").unwrap().len() > 3);

    let mut m = golden("spm.gguf");
    let t = Tokenizer::from_gguf(&m, false).unwrap();
    assert_eq!((t.bos_id(), t.eos_id(), t.unk_id()), (Some(1), Some(2), Some(0)));
    assert_eq!(t.adds_around().unwrap(), (true, false));
    assert_eq!(t.encode_with_specials("a").unwrap()[0], 1);
    m.set("tokenizer.ggml.add_bos_token", Value::Bool(false));
    m.set("tokenizer.ggml.add_space_prefix", Value::Bool(false));
    let bare = Tokenizer::from_gguf(&m, false).unwrap();
    assert_eq!(bare.encode_with_specials(" Hello").unwrap(), t.encode("Hello").unwrap());
}

#[test]
fn sentencepiece_ids_are_those_of_the_python_package() {
    let t = Tokenizer::from_gguf(&golden("spm.gguf"), false).unwrap();
    check(&t, "spm");
    for (text, _) in want("spm") {
        let ids = t.encode(&text).unwrap();
        let back = t.decode(&ids, false).unwrap();
        assert!(back == text || text.starts_with("<|"), "{text:?} became {back:?}");
    }
}

#[test]
fn what_is_missing_or_unknown_is_named_in_one_line() {
    let wrong = |file: &str, change: &dyn Fn(&mut Metadata)| {
        let mut m = golden(file);
        change(&mut m);
        let e = Tokenizer::from_gguf(&m, false).err().expect("it is refused").to_string();
        assert!(!e.contains('\n') && e.contains(file), "{e}");
        e
    };
    // What is of another kind is as good as gone, and the message names the file.
    let without = |file: &str, gone: &str| wrong(file, &|m| m.set(gone, Value::Bool(true)));
    assert!(without("bpe.gguf", "tokenizer.ggml.merges").contains("tokenizer.ggml.merges"));
    assert!(without("spm.gguf", "tokenizer.ggml.scores").contains("tokenizer.ggml.scores"));
    assert!(without("spm.gguf", "tokenizer.ggml.tokens").contains("tokenizer.ggml.tokens"));
    let e = wrong("bpe.gguf", &|m| m.set("tokenizer.ggml.pre", Value::string("klingon")));
    assert!(e.contains("klingon") && e.contains("llama-bpe") && e.contains("qwen2"), "{e}");
    let e = wrong("bpe.gguf", &|m| m.set("tokenizer.ggml.model", Value::string("bert")));
    assert!(e.contains("bert") && e.contains("gpt2"), "{e}");
    let e = wrong("bpe.gguf", &|m| m.set("tokenizer.ggml.eos_token_id", Value::U32(505)));
    assert!(e.contains("eos_token_id") && e.contains("505"), "{e}");
    let e = wrong("bpe.gguf", &|m| m.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1; 3]))));
    assert!(e.contains("token_type") && e.contains('3'), "{e}");
    let e = wrong("spm.gguf", &|m| m.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.0]))));
    assert!(e.contains("scores"), "{e}");
    let e = wrong("bpe.gguf", &|m| m.set("tokenizer.ggml.merges", Value::Array(Array::String(vec!["zz qq".into()]))));
    assert!(e.contains("zz qq"), "{e}");
    let e = Tokenizer::from_gguf(&Metadata::new(), false).err().unwrap().to_string();
    assert!(e.contains("tokenizer.ggml.model") && e.contains("missing"), "{e}");
    let mut bare = Metadata::new();
    bare.set("tokenizer.ggml.model", Value::string("gpt2"));
    bare.set("tokenizer.ggml.tokens", Value::Array(Array::String(vec!["a".into()])));
    let e = Tokenizer::from_gguf(&bare, false).err().unwrap().to_string();
    assert!(e.contains("tokenizer.ggml.merges") && e.contains("missing"), "{e}");
}

/// Texts that every tokenizer of the repository must split alike before and after.
fn texts() -> Vec<String> {
    let mut texts: Vec<String> = want("gpt-2").into_iter().map(|(text, _)| text).collect();
    texts.extend(
        ["<|endoftext|>", "a<|eot_id|>b <think>\nhm\n</think>", "<tool_call>{\"a\": 1}</tool_call>"].map(String::from),
    );
    texts
}

#[test]
fn the_repositorys_tokenizers_come_back_the_same() {
    for (name, rows, model, pre) in [
        ("tests/golden/models/qwen2", 320, "gpt2", "qwen2"),
        ("tests/golden/models/qwen3", 320, "gpt2", "qwen2"),
        ("tests/golden/models/llama3", 320, "gpt2", "smaug-bpe"),
        ("tests/golden/models/llama2", 320, "llama", "default"),
        ("tests/golden/models/mistral", 320, "llama", "default"),
        ("assets/tiny-base", 4096, "gpt2", "qwen2"),
    ] {
        let t = Tokenizer::load(&root().join(name), false).unwrap();
        let mut m = Metadata::new();
        for (key, value) in gguf_tokenizer::entries(&t, rows).unwrap() {
            m.set(key, value);
        }
        assert_eq!(m.string("tokenizer.ggml.model").unwrap(), Some(model), "{name}");
        assert_eq!(m.string("tokenizer.ggml.pre").unwrap(), Some(pre), "{name}");
        assert_eq!(m.strings("tokenizer.ggml.tokens").unwrap().unwrap().len(), rows, "{name}");
        let back = Tokenizer::from_gguf(&m, false).unwrap();
        assert_eq!((back.bos_id(), back.eos_id(), back.pad_id()), (t.bos_id(), t.eos_id(), t.pad_id()), "{name}");
        assert_eq!(back.adds_around().unwrap(), t.adds_around().unwrap(), "{name}");
        for text in texts() {
            assert_eq!(back.encode(&text).unwrap(), t.encode(&text).unwrap(), "{name}: {text:?}");
        }
        // And once more: what was read can be written.
        let again = gguf_tokenizer::entries(&back, rows).unwrap();
        let tokens = again.iter().find(|(k, _)| k == "tokenizer.ggml.tokens").map(|(_, v)| v);
        assert_eq!(tokens, m.get("tokenizer.ggml.tokens"), "{name}");
    }
}

#[test]
fn what_gguf_has_no_name_for_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |change: &dyn Fn(&mut serde_json::Value)| {
        let from = root().join("tests/golden/models/qwen2/tokenizer.json");
        let mut json: serde_json::Value = serde_json::from_slice(&fs::read(from).unwrap()).unwrap();
        change(&mut json);
        fs::write(folder.path().join("tokenizer.json"), json.to_string()).unwrap();
        let t = Tokenizer::load(folder.path(), false).unwrap();
        let e = gguf_tokenizer::entries(&t, 320).unwrap_err().to_string();
        assert!(e.contains("cannot be written as GGUF") && !e.contains('\n'), "{e}");
        e
    };
    let e = refused(&|j| j["pre_tokenizer"]["pretokenizers"][0]["pattern"]["Regex"] = r"\w+|\W+".into());
    assert!(e.contains(r"\\w+"), "{e}");
    let e = refused(&|j| j["normalizer"] = serde_json::json!({"type": "Lowercase"}));
    assert!(e.contains("Lowercase"), "{e}");
    let e = refused(&|j| j["pre_tokenizer"]["pretokenizers"][1]["add_prefix_space"] = true.into());
    assert!(e.contains("space"), "{e}");
    let t = Tokenizer::load(&root().join("tests/golden/models/qwen2"), false).unwrap();
    let e = gguf_tokenizer::entries(&t, 300).err().unwrap().to_string();
    assert!(e.contains("300 rows"), "{e}");
}
