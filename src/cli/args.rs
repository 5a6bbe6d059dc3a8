//! The commands and their help.

use clap::Parser;

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
    /// Not yet: talk to a model on the terminal
    Chat(Raw),
    /// Merge adapters into their base, or write them as GGUF
    ///
    /// Writes `export_dir`: a Hugging Face folder, or with `export_format: gguf` one file for llama.cpp and Ollama, its
    /// numbers as `export_outtype` says (f32, f16, bf16, q8_0, q4_0, q4_k_m, q5_k_m, q6_k); `gguf-lora` writes the adapter
    /// alone. The result is read back and compared before it is put into its place.
    #[command(override_usage = "qlora-engine export FILE [KEY=VALUE]...", after_help = format!("{CONFIG}\n\nExample:\n  qlora-engine export file.yaml export_dir=merged export_format=gguf export_outtype=q4_k_m"))]
    Export(Raw),
    /// Not yet: serve the OpenAI API
    Api(Raw),
    /// Not yet: the board in a browser
    Webui(Raw),
    /// Not yet: chat in a browser
    #[command(hide = true)]
    Webchat(Raw),
    /// Not yet: benchmarks
    Eval(Raw),
    /// Not yet: answers for a data set, with scores
    Predict(Raw),
    /// Answer one question, to see what a model has learned
    ///
    /// The config names the base model, template and adapters; the answer is the most likely one, of 128 tokens at most.
    ///
    /// Example: qlora-engine generate --prompt "What is anemia?" configs/medical_qlora.yaml
    /// adapter_name_or_path=saves/tiny/qlora/medical
    Generate {
        /// The question.
        #[arg(long)]
        prompt: String,
        #[command(flatten)]
        raw: Raw,
    },
}

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
}
