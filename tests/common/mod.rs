//! A working place for tests of the program: the tiny Qwen3 of the golden files, a few rows, and a config, in a
//! temporary folder that the program is run in.

// Each test file uses a part of it.
#![allow(dead_code)]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::Value;

/// A LoRA run of 5 steps over 10 rows.
const CONFIG: &str = "\
model_name_or_path: model
stage: sft
do_train: true
finetuning_type: lora
lora_target: all
lora_rank: 4
dataset: rows
dataset_dir: data
template: qwen3
cutoff_len: 96
per_device_train_batch_size: 2
learning_rate: 0.01
num_train_epochs: 1.0
logging_steps: 1
save_steps: 2
report_to: none
use_cpu: true
output_dir: out
";

pub struct Place {
    dir: tempfile::TempDir,
}

/// What a run of the program gave.
pub struct Ran {
    /// None after a signal.
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Place {
    /// `model/`, `data/rows.json` of 10 rows, `data/dataset_info.json` and `run.yaml`.
    pub fn new() -> Place {
        let place = Place { dir: tempfile::tempdir().unwrap() };
        let golden = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/models/qwen3");
        fs::create_dir(place.path("model")).unwrap();
        for name in
            ["config.json", "model.safetensors", "tokenizer.json", "tokenizer_config.json", "chat_template.jinja"]
        {
            fs::copy(golden.join(name), place.path("model").join(name)).unwrap();
        }
        let row = |i: usize| {
            let (a, b) = (i % 4, i % 3);
            serde_json::json!({"instruction": format!("What is {a} plus {b}?"), "input": "", "output": format!("It is {}.", a + b)})
        };
        place.write("data/rows.json", serde_json::to_vec(&(0..10).map(row).collect::<Vec<_>>()).unwrap());
        place.write("data/dataset_info.json", r#"{"rows": {"file_name": "rows.json"}}"#);
        place.write("run.yaml", CONFIG);
        place
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn read(&self, name: &str) -> Vec<u8> {
        fs::read(self.path(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    pub fn write(&self, name: &str, bytes: impl AsRef<[u8]>) {
        let path = self.path(name);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, bytes).unwrap();
    }

    pub fn json(&self, name: &str) -> Value {
        serde_json::from_slice(&self.read(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
    }

    /// Rewrites a JSON file.
    pub fn edit(&self, name: &str, change: impl FnOnce(&mut Value)) {
        let mut value = self.json(name);
        change(&mut value);
        self.write(name, serde_json::to_vec(&value).unwrap());
    }

    /// Every file below the folder but the program's cache, with its content.
    pub fn files(&self) -> BTreeMap<String, Vec<u8>> {
        fn walk(dir: &Path, prefix: &str, files: &mut BTreeMap<String, Vec<u8>>) {
            for entry in fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
                if name == "cache" {
                } else if path.is_dir() {
                    walk(&path, &format!("{name}/"), files);
                } else {
                    files.insert(name, fs::read(path).unwrap());
                }
            }
        }
        let mut files = BTreeMap::new();
        walk(self.dir.path(), "", &mut files);
        files
    }

    /// The program, to be run here: nothing of the user's own settings reaches it, nor the network.
    pub fn program(&self) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_qlora-engine"));
        for name in ["HF_ENDPOINT", "HF_TOKEN", "HF_HOME", "HF_HUB_CACHE", "QLORA_LOG", "QLORA_ISA"] {
            command.env_remove(name);
        }
        command.env("QLORA_CACHE", self.path("cache")).env("HOME", self.path("cache")).env("HF_HUB_OFFLINE", "1");
        command.current_dir(self.dir.path()).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    }

    /// Runs the program to its end.
    pub fn run(&self, args: &[&str]) -> Ran {
        ran(self.program().args(args).output().unwrap())
    }

    /// `train run.yaml`, which must succeed.
    pub fn train(&self, settings: &[&str]) -> Ran {
        let ran = self.run(&[&["train", "run.yaml"], settings].concat());
        assert_eq!(ran.code, Some(0), "{settings:?}: {}", ran.stderr);
        ran
    }
}

pub fn ran(output: std::process::Output) -> Ran {
    Ran {
        code: output.status.code(),
        stdout: String::from_utf8(output.stdout).unwrap(),
        stderr: String::from_utf8(output.stderr).unwrap(),
    }
}
