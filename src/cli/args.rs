//! The commands and their help.

use clap::Parser;

use crate::error::{Error, Result};

/// Fine-tune language models with LoRA and QLoRA: one program, no Python.
///
/// It reads the YAML files of LLaMA-Factory, with the same keys, defaults and data sets, and writes an adapter that
/// PEFT loads.
#[derive(Debug, Parser)]
#[command(name = "qlora-engine", version, arg_required_else_help = true, after_help = FIRST_STEPS)]
pub(super) struct Args {
    #[command(subcommand)]
    pub command: Subcommand,
}

const FIRST_STEPS: &str = "\
First steps:
  qlora-engine plan file.yaml       what a run would cost, before anything is loaded
  qlora-engine inspect file.yaml    the exact tokens it would train on
  qlora-engine train file.yaml      the run itself
  qlora-engine chat file.yaml       a conversation with the result
  qlora-engine predict file.yaml    its answers to a data set, and their scores

QLORA_LOG=info shows more of what happens; HF_ENDPOINT and HF_TOKEN are respected for downloads.";

const CONFIG: &str = "\
A config is a LLaMA-Factory file, .yaml or .json. Settings after it override it, in any of these forms:
  learning_rate=1e-4    --learning_rate 1e-4    --learning_rate=1e-4    --bf16 (true)";

#[derive(Debug, clap::Subcommand)]
pub(super) enum Subcommand {
    /// Fine-tune (or pretrain) as a config says
    ///
    /// Writes the adapter, logs and checkpoints to `output_dir`. Ctrl-C saves a checkpoint and leaves;
    /// `resume_from_checkpoint=true` goes on from it.
    #[command(override_usage = "qlora-engine train FILE [KEY=VALUE]...", after_help = format!("{CONFIG}\n\nExample:\n  qlora-engine train file.yaml learning_rate=1e-4 output_dir=saves/mine"))]
    Train(Raw),
    /// Show the exact tokens of the first samples, with the trained ones marked
    #[command(override_usage = "qlora-engine inspect FILE [KEY=VALUE]...", after_help = format!("{CONFIG}\n\nExample:\n  qlora-engine inspect file.yaml template=qwen3"))]
    Inspect(Raw),
    /// Show samples, steps, tokens and bytes by purpose, before anything is loaded
    ///
    /// With `--device rtx3080` (or rtx4090, h100) for a GPU that need not be here: what would be kept for the backward
    /// pass, the largest batch that fits, and the least time a step can take on it.
    #[command(override_usage = "qlora-engine plan FILE [--device NAME] [KEY=VALUE]...", after_help = format!("{CONFIG}\n\nExamples:\n  qlora-engine plan file.yaml cutoff_len=4096 max_memory=8GB\n  qlora-engine plan file.yaml --device rtx3080"))]
    Plan(Raw),
    /// Show what this machine offers: instruction set, cores, memory, GPU
    ///
    /// Example: qlora-engine env
    Env,
    /// Show the version
    ///
    /// Example: qlora-engine version
    Version,
    /// Talk to a model on the terminal
    ///
    /// The config names the base model, its template and its adapter; `--adapter FOLDER`, more than once, loads others
    /// beside it, and `/adapter NAME` switches in the middle. `clear` forgets the conversation, `exit` leaves, Ctrl-C stops an
    /// answer, `/help` lists the rest. Answers are drawn by the config's temperature, top_p, top_k, ... and seed.
    /// With lines piped in, each is a message, and only answers go to standard output.
    #[command(override_usage = "qlora-engine chat FILE [--adapter FOLDER]... [KEY=VALUE]...", after_help = format!("{CONFIG}\n\nExamples:\n  qlora-engine chat file.yaml adapter_name_or_path=saves/mine temperature=0.7\n  qlora-engine chat file.yaml --adapter saves/medical --adapter saves/law\n  printf 'Hello\\nAnd you?\\n' | qlora-engine chat file.yaml do_sample=false"))]
    Chat(Raw),
    /// Merge adapters into their base, or write them as GGUF
    ///
    /// Writes `export_dir`: a Hugging Face folder, or with `export_format: gguf` one file for llama.cpp and Ollama, its
    /// numbers as `export_outtype` says (f32, f16, bf16, q8_0, q4_0, q4_k_m, q5_k_m, q6_k); `gguf-lora` writes the adapter
    /// alone. The result is read back and compared before it is put into its place.
    #[command(override_usage = "qlora-engine export FILE [KEY=VALUE]...", after_help = format!("{CONFIG}\n\nExample:\n  qlora-engine export file.yaml export_dir=merged export_format=gguf export_outtype=q4_k_m"))]
    Export(Raw),
    /// Serve the OpenAI API: one base, many adapters
    ///
    /// The config names the base, its template and its adapter; `--adapter NAME=PATH`, more than once, serves others beside
    /// it. A request chooses by `model`: an adapter's name, or the base's. Many are answered at a time, in one batch.
    /// Where a request says nothing else, tokens are drawn by the config's temperature, top_p, top_k, ...
    #[command(override_usage = "qlora-engine api FILE [OPTION]... [KEY=VALUE]...", after_help = format!("{API}\n\n{CONFIG}"))]
    Api(Raw),
    /// Not yet: the board in a browser
    Webui(Raw),
    /// Not yet: chat in a browser
    #[command(hide = true)]
    Webchat(Raw),
    /// Ask the questions of a benchmark: MMLU, C-Eval, CMMLU or others in their layout
    ///
    /// `task` names the benchmark and its split (mmlu_test, ceval_validation), `task_dir` the folder that holds it: CSV
    /// files in dev/, val/ and test/, and a mapping.json if subjects are to be counted by category. `n_shot`, `lang` and
    /// `save_dir` are LLaMA-Factory's too.
    #[command(override_usage = "qlora-engine eval FILE [KEY=VALUE]...", after_help = format!("{CONFIG}\n\nExample:\n  qlora-engine eval file.yaml task=mmlu_test task_dir=evaluation template=fewshot save_dir=saves/mmlu"))]
    Eval(Raw),
    /// Answer a data set and score the answers
    ///
    /// Writes generated_predictions.jsonl as the answers come, and predict_results.json (BLEU-4, ROUGE) to `output_dir`. A
    /// run that was stopped goes on where it was. With `--compare base` the base answers too: both side by side in
    /// comparison.md, and in comparison.csv for people to score from 1 to 5; `--scores` sums up such a sheet. `--adapter`
    /// names the adapter that answers, in place of the config's own.
    #[command(override_usage = "qlora-engine predict FILE [--adapter FOLDER] [--compare base] [KEY=VALUE]...\n       qlora-engine predict --scores SHEET", after_help = format!("{CONFIG}\n\nExamples:\n  qlora-engine predict file.yaml eval_dataset=test max_new_tokens=128 --compare base\n  qlora-engine predict --scores saves/mine/comparison.csv"))]
    Predict(Raw),
    /// Answer one prompt or a file of them
    ///
    /// The config names the base model, its template and its adapter, and how tokens are drawn (temperature, top_p, top_k,
    /// min_p, repetition_penalty, ...). Answers are printed in the order of the prompts, computed
    /// `per_device_eval_batch_size` at a time; a prompt's answer does not depend on the others.
    #[command(override_usage = "qlora-engine generate FILE --prompt TEXT [OPTION]... [KEY=VALUE]...", after_help = format!("{GENERATE}\n\n{CONFIG}"))]
    Generate(Raw),
    /// Load a running server and tell how fast it answers
    ///
    /// Sends streamed requests to a server that speaks OpenAI's API and prints the time to the first token, the time per
    /// output token, whole latencies by percentile, tokens and requests per second, and what failed. With `--rate`
    /// requests come at random times whether or not the server keeps up, and their time counts from when they were due.
    #[command(after_help = super::bench_serve::EXAMPLES)]
    BenchServe(Box<super::bench_serve::Options>),
    /// Ask a running server whether it is well; exit code 0 if so
    #[command(hide = true)]
    Health(super::health::Options),
}

const GENERATE: &str = "\
Options:
  --prompt TEXT         what is asked; more than once for more of them
  --prompt-file FILE    a .txt with a prompt a line, a .jsonl with {\"prompt\": ..} or {\"messages\": [..]} a line, or -
                        for standard input
  --adapter FOLDER      the adapter that answers, in place of the config's own
  --greedy              always the most likely token (do_sample=false)
  --max-new-tokens N    tokens of an answer at most (1024 unless the config says otherwise)
  --seed N              of the draws; the same seed gives the same answers
  --stop TEXT           end an answer before this text; more than once for more of them
  --json                a line of JSON for each answer: prompt, answer, finish, tokens, seconds

Examples:
  qlora-engine generate file.yaml --prompt \"What is anemia?\" --greedy
  qlora-engine generate file.yaml --prompt-file questions.jsonl --json --max-new-tokens 256 > answers.jsonl
  cat questions.txt | qlora-engine generate file.yaml --prompt-file -";

const API: &str = "\
Options (and their environment variables):
  --host ADDR             address to listen on (127.0.0.1: this machine alone; API_HOST)
  --port N                port (8000; 0: any free one; API_PORT)
  --adapter NAME=PATH     serve this adapter as NAME; PATH alone is named by its last part; more than once for more
  --model-name NAME       what the base is called (the last part of model_name_or_path; API_MODEL_NAME)
  --api-key-file FILE     take requests with one of these keys only, one a line (also API_KEY, and API_KEYS=a,b)
  --adapters-dir DIR      let clients load and unload adapters from DIR, and from nowhere else, while it runs
  --cors ORIGIN           let pages of this origin ask, * for all; more than once for more of them
  --max-batch N           sequences computed at a time (32)
  --cache-tokens N        tokens whose keys and values are kept (what fits max_memory, at most 2048 a sequence)
  --max-queue N           requests that wait; one more gets 429 (128)
  --max-body BYTES        of a request (1MiB)
  --max-n N               answers to one prompt (8)
  --request-timeout S     seconds a request may take (600)
  --shutdown-timeout S    seconds that a stop waits for what runs (30)
  --log-prompts           write requests and answers to the log

It answers POST /v1/chat/completions, /v1/completions, /v1/load_lora_adapter, /v1/unload_lora_adapter, /answer and
GET /v1/models, /health, /ready, /metrics. The log goes to standard error, a line of JSON for each request. SIGTERM or
Ctrl-C finishes what runs and leaves; a second one leaves at once.

Examples:
  qlora-engine api file.yaml --adapter medical=saves/medical --adapter legal=saves/legal
  curl http://127.0.0.1:8000/v1/chat/completions -H 'Content-Type: application/json' \\
    -d '{\"model\": \"medical\", \"messages\": [{\"role\": \"user\", \"content\": \"What is anemia?\"}]}'
  API_KEY=secret qlora-engine api file.yaml --host 0.0.0.0 --port 80 --adapters-dir saves";

/// Everything after the command, untouched: it is for `config::load`.
#[derive(Debug, clap::Args)]
pub(super) struct Raw {
    /// The config file, then settings that override it.
    #[arg(value_name = "FILE, KEY=VALUE", trailing_var_arg = true, allow_hyphen_values = true)]
    pub args: Vec<String>,
}

impl Raw {
    /// Whether `--help` stands among the settings.
    pub fn asks_for_help(&self) -> bool {
        self.args.iter().any(|a| a == "--help" || a == "-h")
    }

    /// Takes every `name VALUE` and `name=VALUE` out of the arguments.
    ///
    /// # Errors
    /// [`Error::Config`] if the last has no value.
    pub fn take_values(&mut self, name: &str) -> Result<Vec<String>> {
        let (mut values, mut rest) = (Vec::new(), Vec::new());
        let mut args = std::mem::take(&mut self.args).into_iter();
        while let Some(arg) = args.next() {
            match arg.strip_prefix(name) {
                Some("") => values.push(args.next().ok_or_else(|| Error::config(name, "needs a value after it"))?),
                Some(value) if value.starts_with('=') => values.push(value[1..].to_string()),
                _ => rest.push(arg),
            }
        }
        self.args = rest;
        Ok(values)
    }

    /// Makes `--adapter FOLDER` the setting that it stands for: the adapter takes the place of the config's own.
    ///
    /// # Errors
    /// [`Error::Config`] if it has no value, or if there are several: one answers.
    pub fn take_adapter(&mut self) -> Result<()> {
        match self.take_values("--adapter")?.as_slice() {
            [] => {}
            // As a list: a folder's name may have a comma in it.
            [folder] => self.args.push(format!("adapter_name_or_path={}", serde_json::json!([folder]))),
            [_, second, ..] => {
                let why = format!("is given twice, but only one answers (`chat` loads several): leave out {second}");
                return Err(Error::config("--adapter", why));
            }
        }
        Ok(())
    }

    /// Takes `name` out of the arguments; whether it stood there.
    pub fn take_flag(&mut self, name: &str) -> bool {
        let before = self.args.len();
        self.args.retain(|a| a != name);
        self.args.len() < before
    }
}
