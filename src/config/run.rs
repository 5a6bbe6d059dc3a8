//! [`Config`]: a run's settings after every check. Names, defaults and meanings are LLaMA-Factory's.

use std::path::PathBuf;

/// A validated run. Nothing below may be out of its documented bounds.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub model: ModelConfig,
    pub data: DataConfig,
    pub tune: TuneConfig,
    pub train: TrainConfig,
    pub generate: GenerateConfig,
    pub export: ExportConfig,
    /// The multiple-choice benchmark, where `task` names one.
    pub benchmark: Option<BenchmarkConfig>,
    /// What the user wrote, key by key, in order, after overrides: what is recorded beside the result.
    pub written: Vec<(String, serde_json::Value)>,
    /// Keys that were accepted and have no effect here, with the reason; said once at the start.
    pub no_effect: Vec<(String, String)>,
}

/// What is trained.
#[derive(Debug, Clone, PartialEq)]
pub struct ModelConfig {
    /// A folder, or the name of a hub repository.
    pub model_name_or_path: String,
    /// Adapters to start from, in order.
    pub adapter_name_or_path: Vec<PathBuf>,
    /// Hub revision; "main" by default.
    pub model_revision: String,
    /// Where downloads are kept; None: the hub's own cache.
    pub cache_dir: Option<PathBuf>,
    pub hf_hub_token: Option<String>,
    /// 4, or None for the checkpoint's own precision.
    pub quantization_bit: Option<u8>,
    /// Whether the absmax of the NF4 blocks is itself quantised (default true).
    pub double_quantization: bool,
    /// Literal special tokens in user text are split as plain text (default false).
    pub split_special_tokens: bool,
    /// Keep every activation instead of recomputing (default false).
    pub disable_gradient_checkpointing: bool,
    /// rope_scaling asked for: None leaves the checkpoint's.
    pub rope_scaling: Option<RopeScalingChoice>,
    /// Initialise weights at random instead of reading them (default false).
    pub train_from_scratch: bool,
    /// Run on the CPU even where there is a GPU (default false).
    pub use_cpu: bool,
    /// Bytes the run may use; None: what the device has. Ours, not LLaMA-Factory's.
    pub max_memory: Option<u64>,
}

/// `rope_scaling` as LLaMA-Factory names it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RopeScalingChoice {
    Linear,
    Dynamic,
    Yarn,
    Llama3,
}

/// What it is trained on.
#[derive(Debug, Clone, PartialEq)]
pub struct DataConfig {
    /// Names in dataset_info.json, or paths.
    pub dataset: Vec<String>,
    pub eval_dataset: Vec<String>,
    /// Folder of dataset_info.json (default "data").
    pub dataset_dir: PathBuf,
    /// None: derived from the tokenizer's chat template.
    pub template: Option<String>,
    /// Most tokens of a sample (default 2048), at least 1.
    pub cutoff_len: usize,
    pub train_on_prompt: bool,
    pub mask_history: bool,
    pub streaming: bool,
    /// Rows of the shuffle buffer when streaming (default 16384).
    pub buffer_size: usize,
    pub mix_strategy: MixStrategy,
    /// One probability a data set; sums to 1.
    pub interleave_probs: Option<Vec<f64>>,
    pub overwrite_cache: bool,
    /// Rows per packing group (default 1000).
    pub preprocessing_batch_size: usize,
    /// The first N rows of each data set.
    pub max_samples: Option<usize>,
    /// Above 1 a count, else a fraction in [0, 1).
    pub val_size: f64,
    pub eval_on_each_dataset: bool,
    pub packing: bool,
    /// Implies packing.
    pub neat_packing: bool,
    /// Name of the tool format; None: the template's own.
    pub tool_format: Option<String>,
    /// Overrides the template's default system prompt.
    pub default_system: Option<String>,
    /// true (default): an empty thought is prepended to the answer and trained; false: to the prompt, masked;
    /// None: thoughts are kept as they are.
    pub enable_thinking: Option<bool>,
    pub preserve_thinking: bool,
    /// Where the tokenised data are written or read.
    pub tokenized_path: Option<PathBuf>,
    /// Whether labels of padding are ignored; only true is accepted.
    pub ignore_pad_token_for_loss: bool,
    /// Small-tutorial dialect: a data file or folder given directly (`train_data_dir`, `metadata_path`).
    pub tutorial: Option<TutorialData>,
}

/// The data of a small-tutorial config.
#[derive(Debug, Clone, PartialEq)]
pub struct TutorialData {
    pub train_data_dir: PathBuf,
    pub metadata_path: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum MixStrategy {
    Concat,
    InterleaveUnder,
    InterleaveOver,
    InterleaveOnce,
}

/// The method.
#[derive(Debug, Clone, PartialEq)]
pub struct TuneConfig {
    pub stage: Stage,
    pub finetuning_type: FinetuningType,
    /// Rank of A and B, at least 1 (default 8).
    pub lora_rank: usize,
    /// Scale numerator (default 2 * rank), above 0.
    pub lora_alpha: f64,
    /// Probability of zeroing an element of x before A; 0 is off. `[0, 1)`.
    pub lora_dropout: f64,
    /// Module names; `["all"]` is every linear except the head.
    pub lora_target: Vec<String>,
    /// alpha / sqrt(r) instead of alpha / r.
    pub use_rslora: bool,
    /// Merge the given adapters and train a new one.
    pub create_new_adapter: bool,
    /// Modules trained whole beside the adapter (PEFT's modules_to_save).
    pub additional_target: Vec<String>,
    /// Layers trained with `freeze`: n > 0 the last n, n < 0 the first -n. Default 2.
    pub freeze_trainable_layers: i64,
    /// Names of hidden modules trained with `freeze`; `["all"]`.
    pub freeze_trainable_modules: Vec<String>,
    /// Non-hidden modules trained with `freeze`, such as `embed_tokens`.
    pub freeze_extra_modules: Vec<String>,
    /// Keep full-tuned weights in bf16 (LLaMA-Factory's pure_bf16).
    pub pure_bf16: bool,
}

/// What a model is loaded with that is only used: nothing is trained, and every adapter given is merged.
pub static NOTHING_TRAINED: TuneConfig = TuneConfig {
    stage: Stage::Sft,
    finetuning_type: FinetuningType::Lora,
    lora_rank: 1,
    lora_alpha: 1.0,
    lora_dropout: 0.0,
    lora_target: Vec::new(),
    use_rslora: false,
    create_new_adapter: true,
    additional_target: Vec::new(),
    freeze_trainable_layers: 1,
    freeze_trainable_modules: Vec::new(),
    freeze_extra_modules: Vec::new(),
    pure_bf16: false,
};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    Sft,
    Pt,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FinetuningType {
    Lora,
    Freeze,
    Full,
}

/// The loop.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainConfig {
    pub do_train: bool,
    pub do_eval: bool,
    pub do_predict: bool,
    /// Evaluation also gives the share of tokens that are guessed right (default false).
    pub compute_accuracy: bool,
    pub output_dir: PathBuf,
    pub overwrite_output_dir: bool,
    pub resume_from_checkpoint: Resume,
    pub per_device_train_batch_size: usize,
    pub per_device_eval_batch_size: usize,
    pub gradient_accumulation_steps: usize,
    pub num_train_epochs: f64,
    /// Above 0 replaces num_train_epochs.
    pub max_steps: Option<usize>,
    /// Finite, at least 0 (default 5e-5).
    pub learning_rate: f64,
    pub lr_scheduler_type: SchedulerType,
    /// `lr_scheduler_kwargs`: num_cycles, power, lr_end, min_lr, min_lr_rate, timescale.
    pub lr_scheduler_kwargs: Vec<(String, f64)>,
    /// Share of all steps, in [0, 1]; above 0 it replaces warmup_steps.
    pub warmup_ratio: f64,
    /// A count, or below 1 a share of all steps.
    pub warmup_steps: f64,
    pub weight_decay: f64,
    pub adam_beta1: f64,
    pub adam_beta2: f64,
    pub adam_epsilon: f64,
    /// `optim: adamw_8bit`: moments in 8 bits.
    pub adam_8bit: bool,
    /// 0: no clipping.
    pub max_grad_norm: f64,
    pub neftune_noise_alpha: Option<f64>,
    pub precision: Precision,
    pub seed: u64,
    pub data_seed: Option<u64>,
    pub disable_shuffling: bool,
    pub dataloader_drop_last: bool,
    /// Logging, in optimizer steps; below 1 a share of all steps. With its strategy.
    pub logging_strategy: Strategy,
    pub logging_steps: f64,
    pub logging_first_step: bool,
    pub eval_strategy: Strategy,
    /// None: logging_steps.
    pub eval_steps: Option<f64>,
    pub eval_on_start: bool,
    pub save_strategy: Strategy,
    pub save_steps: f64,
    pub save_total_limit: Option<usize>,
    pub save_only_model: bool,
    pub load_best_model_at_end: bool,
    pub metric_for_best_model: Option<String>,
    pub greater_is_better: Option<bool>,
    pub early_stopping_steps: Option<usize>,
    pub plot_loss: bool,
    pub report_to_tensorboard: bool,
    pub run_name: Option<String>,
    pub logging_dir: Option<PathBuf>,
    pub include_num_input_tokens_seen: bool,
    pub disable_tqdm: bool,
    /// Threads of the CPU backend; None: as many as there are cores. Ours. The bits do not depend on it.
    pub threads: Option<usize>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Resume {
    No,
    Latest,
    From(PathBuf),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Strategy {
    No,
    Steps,
    Epoch,
    /** Only for saving: at each new best. */
    Best,
}

/// Storage of weights and activations. Sums, adapters and optimizer are f32 in each.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Precision {
    /// Neither `bf16` nor `fp16` was asked for: f32 throughout.
    F32,
    Bf16,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SchedulerType {
    Linear,
    Cosine,
    CosineWithRestarts,
    Polynomial,
    Constant,
    ConstantWithWarmup,
    InverseSqrt,
    CosineWithMinLr,
}

/// How text is generated. The seed is [`TrainConfig::seed`].
#[derive(Debug, Clone, PartialEq)]
pub struct GenerateConfig {
    /// `do_predict` writes answers and scores them. Prediction is done in no other way.
    pub predict_with_generate: bool,
    /// Draw tokens by their probability; false: always the most likely. False also where `temperature` is 0.
    pub do_sample: bool,
    /// Finite, at least 0 (default 0.95).
    pub temperature: f64,
    /// The fewest likely tokens whose probabilities reach this are kept. `[0, 1]` (default 0.7); 1 keeps all.
    pub top_p: f64,
    /// The most likely tokens kept (default 50); 0 keeps all.
    pub top_k: usize,
    /// Tokens less likely than this share of the likeliest are left out. `[0, 1]`; 0 (default) is off. Ours.
    pub min_p: f64,
    /// Above 0; 1 (default) is off.
    pub repetition_penalty: f64,
    /// Taken off the logit of each token that was generated already. `[-2, 2]`; 0 (default) is off. Ours.
    pub presence_penalty: f64,
    /// As `presence_penalty`, for each time it was. Ours.
    pub frequency_penalty: f64,
    /// Most tokens of an answer (default 1024), at least 1. Read it through [`GenerateConfig::room_after`].
    pub max_new_tokens: usize,
    /// Most tokens of prompt and answer together, in place of `max_new_tokens`: where that was set to 0 or less.
    pub max_length: Option<usize>,
    /// Answers and labels are written without special tokens (default true).
    pub skip_special_tokens: bool,
}

impl GenerateConfig {
    /// Most tokens of the answer to a prompt of so many; 0 if `max_length` leaves no room.
    pub fn room_after(&self, prompt: usize) -> usize {
        self.max_length.map_or(self.max_new_tokens, |all| all.saturating_sub(prompt))
    }
}

/// A multiple-choice benchmark, by the keys of LLaMA-Factory's `eval`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct BenchmarkConfig {
    /// Name of its folder in `task_dir`: "mmlu" of `task: mmlu_test`.
    pub task: String,
    /// The questions asked: "test" of `task: mmlu_test`.
    pub split: Split,
    /// Default "evaluation".
    pub task_dir: PathBuf,
    /// Solved examples before each question (default 5).
    pub n_shot: usize,
    pub lang: Lang,
    /// Where results are written; it must not exist yet.
    pub save_dir: Option<PathBuf>,
}

/// The part of a benchmark whose questions are asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Split {
    Validation,
    Test,
}

/// The language of a benchmark's instructions.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Lang {
    En,
    Zh,
}

/// What `export` writes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ExportConfig {
    /// The folder of the result.
    pub dir: Option<PathBuf>,
    /// Bytes of a shard at most; written in GB of 10^9 (default 5).
    pub shard_bytes: u64,
    pub format: ExportFormat,
    /// Ours: how numbers are stored in a GGUF file. Not set for `hf`, where they stay as the base has them.
    pub outtype: Option<OutType>,
    /// Ours: with `quantization_bit`, merge into the 4-bit base as it is after dequantising (default false).
    pub dequantized: bool,
}

/// Ours: what kind of file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ExportFormat {
    /// A merged model as a Hugging Face folder.
    Hf,
    /// A merged model as a GGUF file.
    Gguf,
    /// The adapter alone as a GGUF file.
    GgufLora,
}

/// Types of numbers in a GGUF file, by llama.cpp's names: of most matrices; some get more bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OutType {
    F32,
    F16,
    Bf16,
    Q8_0,
    Q4_0,
    Q4KM,
    Q5KM,
    Q6K,
}

impl OutType {
    /// All, with their names in a config.
    pub const NAMES: [(&'static str, OutType); 8] = [
        ("f32", OutType::F32),
        ("f16", OutType::F16),
        ("bf16", OutType::Bf16),
        ("q8_0", OutType::Q8_0),
        ("q4_0", OutType::Q4_0),
        ("q4_k_m", OutType::Q4KM),
        ("q5_k_m", OutType::Q5KM),
        ("q6_k", OutType::Q6K),
    ];

    /// Its name in a config.
    pub fn name(self) -> &'static str {
        Self::NAMES.iter().find(|(_, t)| *t == self).map_or("?", |(name, _)| name)
    }
}
