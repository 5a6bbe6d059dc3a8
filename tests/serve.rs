//! The server end to end: the real program, trained adapters, real sockets, the official `openai` client. What is asked, and
//! what must come back, stands in tests/serve/*.py; each function here runs one scenario of it.

mod common;

use std::path::Path;
use std::process::Command;
use std::sync::OnceLock;

use common::{Place, ran};

/// A run on the tiny base; what follows says of which questions and for how long.
const TRAIN: &str = "\
stage: sft
do_train: true
finetuning_type: lora
template: qwen3_nothink
cutoff_len: 64
per_device_train_batch_size: 2
learning_rate: 1.0e-2
lr_scheduler_type: constant
logging_steps: 1
save_only_model: true
report_to: none
use_cpu: true
overwrite_output_dir: true
";

/// Trained adapters, made once for all tests: two of different layers and rank, and one on its way.
fn adapters() -> &'static Place {
    static PLACE: OnceLock<Place> = OnceLock::new();
    PLACE.get_or_init(|| {
        let place = Place::new();
        let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets");
        let base = format!("model_name_or_path: {0}/tiny-base\ndataset_dir: {0}/data\n", root.display());
        let run = |name: &str, more: &str| place.write(name, format!("{base}{TRAIN}{more}"));
        run(
            "medical.yaml",
            "dataset: medical_demo\nlora_rank: 16\nmax_steps: 12\nsave_steps: 4\noutput_dir: medical\n",
        );
        run(
            "legal.yaml",
            "dataset: legal\nlora_rank: 8\nlora_target: q_proj,v_proj\nmax_steps: 12\noutput_dir: legal\n",
        );
        for run in ["medical.yaml", "legal.yaml"] {
            let ran = place.run(&["train", run]);
            assert_eq!(ran.code, Some(0), "{run}: {}", ran.stderr);
        }
        for (from, to) in [("medical", "medical"), ("legal", "legal"), ("medical/checkpoint-4", "early")] {
            for name in ["adapter_config.json", "adapter_model.safetensors"] {
                place.write(&format!("adapters/{to}/{name}"), place.read(&format!("{from}/{name}")));
            }
        }
        place
    })
}

/// A folder of its own for each: the adapters, what is served, and a run that can be started.
fn place() -> Place {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let place = Place::new();
    for name in ["medical", "legal", "early"] {
        for file in ["adapter_config.json", "adapter_model.safetensors"] {
            let path = format!("adapters/{name}/{file}");
            place.write(&path, adapters().read(&path));
        }
    }
    let base = format!("model_name_or_path: {}/assets/tiny-base\n", root.display());
    let serve = "template: qwen3_nothink\nfinetuning_type: lora\nuse_cpu: true\ndo_sample: false\nmax_new_tokens: 24\n";
    place.write("serve.yaml", format!("{base}{serve}"));
    let endless = "dataset: medical_demo\nlora_rank: 16\nmax_steps: 100000\nsave_steps: 2\nsave_total_limit: 100\noutput_dir: run\n";
    place.write("train.yaml", format!("{base}dataset_dir: {}/assets/data\n{TRAIN}{endless}", root.display()));
    place
}

/// Runs a scenario of tests/serve.
fn scenario(name: &str) {
    python(&place(), "client.py", &[name]);
}

/// `python3 tests/serve/SCRIPT ARGS`, which must succeed.
fn python(place: &Place, script: &str, args: &[&str]) {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let packages = root.join(".toolchain/python");
    let mut command = Command::new("python3");
    command.arg(root.join("tests/serve").join(script)).args(args);
    command.args(["--binary", env!("CARGO_BIN_EXE_qlora-engine"), "--place"]).arg(place.path(""));
    command.env("PYTHONPATH", packages).env("PYTHONDONTWRITEBYTECODE", "1").env("QLORA_CACHE", place.path("cache"));
    let ran = ran(command.output().unwrap());
    assert_eq!(ran.code, Some(0), "{script} {args:?}:\n{}{}", ran.stdout, ran.stderr);
}

/// A quarter of a minute of what `make soak` does for ten.
#[test]
fn soak() {
    let place = place();
    python(&place, "soak.py", &["--seconds", "15", "--clients", "8"]);
}

macro_rules! scenarios {
    ($($name:ident),* $(,)?) => {$(
        #[test]
        fn $name() {
            scenario(stringify!($name));
        }
    )*};
}

scenarios!(
    endpoints, fields, together, left, fair, keys, jail, poisoned, overload, late, swap, checkpoint, shutdown, cut,
    refuses
);
