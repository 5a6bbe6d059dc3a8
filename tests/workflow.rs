//! The whole way of a user on the tiny base: train, chat, predict, score, merge, export, and use what was exported.

mod common;

use std::io::Write;
use std::path::Path;
use std::process::Stdio;

use common::{Place, ran};
use qlora_engine::format::gguf::Gguf;
use serde_json::Value;

/// Where the commands run.
#[derive(Clone, Copy, PartialEq)]
enum On {
    Cpu,
    /// Host-run, which is slow: everything is shorter.
    #[cfg(feature = "host-kernels")]
    Kernels,
}

/// `qlora-engine ARGS` with `input` piped in, which must succeed; what it printed.
fn done_on(on: On, place: &Place, args: &[&str], input: &str) -> String {
    let mut program = place.program();
    if on != On::Cpu {
        program.env("QLORA_HOST_KERNELS", "1");
    }
    let mut child = program.args(args).stdin(Stdio::piped()).spawn().unwrap();
    // A program that has no question does not read.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    let ran = ran(child.wait_with_output().unwrap());
    assert_eq!(ran.code, Some(0), "{args:?}: {}", ran.stderr);
    ran.stdout
}

/// The file of that ending in a folder.
fn file_in(place: &Place, folder: &str, ending: &str) -> String {
    let entries = std::fs::read_dir(place.path(folder)).unwrap();
    let mut names = entries.map(|e| e.unwrap().file_name().into_string().unwrap());
    let name = names.find(|n| n.ends_with(ending)).unwrap_or_else(|| panic!("no {ending} in {folder}"));
    format!("{folder}/{name}")
}

#[test]
fn from_questions_to_a_model_that_others_run() {
    workflow(On::Cpu, [40, 128, 24, 6]);
}

#[cfg(feature = "host-kernels")]
#[test]
fn the_same_on_kernels() {
    workflow(On::Kernels, [8, 48, 5, 2]);
}

fn workflow(on: On, [steps, cutoff, new, rows]: [usize; 4]) {
    let place = Place::new();
    let done = |place: &Place, args: &[&str], input: &str| done_on(on, place, args, input);
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let yaml = format!(
        "model_name_or_path: {0}/assets/tiny-base\ndataset_dir: {0}/assets/data\ndataset: medical_demo\n\
         template: qwen3_nothink\ncutoff_len: {cutoff}\nstage: sft\ndo_train: true\nfinetuning_type: lora\nlora_rank: 32\n\
         learning_rate: 5.0e-3\nmax_steps: {steps}\nper_device_train_batch_size: 4\nreport_to: none\nuse_cpu: {1}\n\
         do_sample: false\nmax_new_tokens: {new}\noutput_dir: out\n",
        root.display(),
        on == On::Cpu
    );
    place.write("run.yaml", yaml);
    done(&place, &["train", "run.yaml"], "");

    // The adapter brings its template: a file without one asks as the training did.
    let plain: String = String::from_utf8(place.read("run.yaml")).unwrap();
    let plain: Vec<&str> = plain.lines().filter(|l| !l.starts_with("template") && !l.starts_with("do_train")).collect();
    place.write("use.yaml", format!("{}\nadapter_name_or_path: out\n", plain.join("\n")));
    let question = "What does HbA1c measure?";
    let ask = |yaml: &str, more: &[&str]| {
        let args = [&["generate", yaml, "--prompt", question], more].concat();
        done(&place, &args, "").trim().to_string()
    };
    let answer = ask("use.yaml", &[]);
    assert!(!answer.is_empty());
    let base = ask("run.yaml", &[]);
    assert_ne!(answer, base, "the adapter says nothing of its own");

    let chat = done(&place, &["chat", "use.yaml"], &format!("{question}\n/adapter base\n{question}\nexit\n"));
    assert!(chat.starts_with(&answer), "{chat}");

    let samples = format!("max_samples={rows}");
    let predict =
        ["predict", "use.yaml", "--compare", "base", "eval_dataset=medical_demo", &samples, "output_dir=predicted"];
    done(&place, &predict, "");
    let results = place.json("predicted/predict_results.json");
    for key in ["predict_bleu-4", "predict_rouge-1", "predict_rouge-2", "predict_rouge-l"] {
        assert!(results[key].as_f64().is_some_and(|x| (0.0..=100.0).contains(&x)), "{key}: {results}");
    }
    let lines = String::from_utf8(place.read("predicted/generated_predictions.jsonl")).unwrap();
    assert_eq!(lines.lines().filter(|l| serde_json::from_str::<Value>(l).is_ok()).count(), rows);
    let summed = done(&place, &["predict", "--scores", "predicted/comparison.csv"], "");
    assert!(summed.contains(&rows.to_string()), "{summed}");

    // Merged and read by Hugging Face's names: the same answer without an adapter.
    let merged = done(&place, &["export", "use.yaml", "export_dir=merged"], "");
    assert!(merged.contains("read back"), "{merged}");
    let alone = "adapter_name_or_path=null";
    // Kernels compute in bf16, where a merged weight is another number than its parts.
    let same =
        |got: String| assert!(if on == On::Cpu { got == answer } else { !got.is_empty() }, "{got}, not {answer}");
    same(ask("use.yaml", &[alone, "model_name_or_path=merged", "template=qwen3_nothink"]));

    // As GGUF, whole: the same answer from the file alone, whose template it brings.
    done(&place, &["export", "use.yaml", "export_dir=file", "export_format=gguf", "export_outtype=f16"], "");
    let file = file_in(&place, "file", ".gguf");
    let model = format!("model_name_or_path={file}");
    same(ask("use.yaml", &[alone, &model, "template=qwen3_nothink"]));
    assert!(Gguf::open(&place.path(&file)).unwrap().metadata().string("tokenizer.chat_template").unwrap().is_some());

    // And as an adapter for the base's file.
    done(&place, &["export", "use.yaml", "export_dir=lora", "export_format=gguf-lora"], "");
    let lora = Gguf::open(&place.path(&file_in(&place, "lora", ".gguf"))).unwrap();
    assert_eq!(lora.metadata().string("general.type").unwrap(), Some("adapter"));
    assert_eq!(lora.tensors().len(), 2 * 7 * 6, "A and B of seven layers in six blocks");
    let lora = format!("adapter_name_or_path={}", file_in(&place, "lora", ".gguf"));
    assert_eq!(ask("use.yaml", &[&lora, "template=qwen3_nothink"]), answer, "the adapter from its GGUF file");
}
