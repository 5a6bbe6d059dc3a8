//! README.md of the output folder: a model card that the Hugging Face hub can read.
//!
//! Front matter, hyperparameters and the results table have the fields of LLaMA-Factory's and PEFT's cards; the
//! sentences are our own and only say what is known.

use std::path::Path;

use serde_json::{Map, Value};

use super::json::{float_repr, round};
use super::state::TrainerState;
use crate::config::Config;
use crate::config::{FinetuningType, Precision, SchedulerType, Stage};
use crate::error::Result;
use crate::format::atomic::write_atomic;

/// Writes `output_dir`/README.md. `template` is the one the samples were rendered with, if any.
///
/// # Errors
/// [`crate::Error::File`] if it cannot be written.
pub fn write_card(output_dir: &Path, config: &Config, state: &TrainerState, template: Option<&str>) -> Result<()> {
    write_atomic(&output_dir.join("README.md"), card(config, state, template).as_bytes())
}

/// The card's text.
pub fn card(config: &Config, state: &TrainerState, template: Option<&str>) -> String {
    let base = config.model.model_name_or_path.as_str();
    let method = match config.tune.finetuning_type {
        FinetuningType::Lora => "lora",
        FinetuningType::Freeze => "freeze",
        FinetuningType::Full => "full",
    };
    let name = config.train.output_dir.file_name().map_or(base.into(), |n| n.to_string_lossy());
    let results = evaluations(state);
    let mut text = front_matter(base, method, &name);
    let datasets = if config.data.dataset.is_empty() {
        "its own data".to_string()
    } else {
        config.data.dataset.iter().map(|d| format!("`{d}`")).collect::<Vec<_>>().join(", ")
    };
    // Only a hub name can be linked to.
    let is_hub_name = base.split('/').count() == 2 && !base.starts_with(['.', '/', '~']) && !Path::new(base).exists();
    let link = if is_hub_name { format!("[{base}](https://huggingface.co/{base})") } else { format!("`{base}`") };
    let what = match config.tune.finetuning_type {
        FinetuningType::Lora => "A LoRA adapter for",
        FinetuningType::Freeze | FinetuningType::Full => "Fine-tuned from",
    };
    text += &format!("\n# {}\n\n{what} {link}, trained on {datasets} with qlora-engine.\n", one_line(&name));
    if let Some(loss) = results.last().and_then(|row| row.loss) {
        text += &format!("Its loss on the evaluation set is {}.\n", shown(loss));
    }
    if let Some(template) = template {
        text += &format!("Prompts were rendered with the template `{template}`.\n");
    }
    text += "\n## Training procedure\n\n### Training hyperparameters\n\n";
    for (key, value) in hyperparameters(config) {
        text += &format!("- {key}: {value}\n");
    }
    if !results.is_empty() {
        text += "\n### Training results\n\n";
        text += &table(&results);
    }
    text + &format!("\n### Framework versions\n\n- qlora-engine {}\n", env!("CARGO_PKG_VERSION"))
}

fn front_matter(base: &str, method: &str, name: &str) -> String {
    let lora = method == "lora";
    let library = if lora { "peft" } else { "transformers" };
    let mut text = format!("---\nlibrary_name: {library}\nlicense: other\nbase_model: {}\ntags:\n", yaml(base));
    if lora {
        text += &format!("- {}\n", yaml(&format!("base_model:adapter:{base}")));
    }
    text += &format!("- qlora-engine\n- {method}\n- transformers\npipeline_tag: text-generation\n");
    text + &format!("model-index:\n- name: {}\n  results: []\n---\n", yaml(name))
}

/// A YAML scalar: plain where that is safe, else in double quotes, where JSON's escapes are valid.
fn yaml(text: &str) -> String {
    let plain = |c: char| c.is_ascii_alphanumeric() || "/._-".contains(c);
    // A colon is plain inside a word; a word that could be a number, a bool or null is not a plain string.
    let safe = text.starts_with(|c: char| c.is_ascii_alphabetic() || c == '/')
        && text.chars().all(|c| plain(c) || c == ':')
        && !text.ends_with(':')
        && !["true", "false", "yes", "no", "on", "off", "null", "y", "n"].contains(&text.to_lowercase().as_str());
    if safe { text.into() } else { Value::String(text.into()).to_string() }
}

fn one_line(text: &str) -> String {
    text.split_whitespace().collect::<Vec<_>>().join(" ")
}

fn hyperparameters(config: &Config) -> Vec<(&'static str, String)> {
    let (t, tune) = (&config.train, &config.tune);
    let scheduler = match t.lr_scheduler_type {
        SchedulerType::Linear => "linear",
        SchedulerType::Cosine => "cosine",
        SchedulerType::CosineWithRestarts => "cosine_with_restarts",
        SchedulerType::Polynomial => "polynomial",
        SchedulerType::Constant => "constant",
        SchedulerType::ConstantWithWarmup => "constant_with_warmup",
        SchedulerType::InverseSqrt => "inverse_sqrt",
        SchedulerType::CosineWithMinLr => "cosine_with_min_lr",
    };
    let total = t.per_device_train_batch_size * t.gradient_accumulation_steps;
    let (beta1, beta2, eps) = (float_repr(t.adam_beta1), float_repr(t.adam_beta2), float_repr(t.adam_epsilon));
    let adamw = if t.adam_8bit { "8-bit AdamW" } else { "AdamW" };
    let mut rows = vec![
        ("stage", if tune.stage == Stage::Pt { "pt" } else { "sft" }.to_string()),
        ("learning_rate", float_repr(t.learning_rate)),
        ("train_batch_size", t.per_device_train_batch_size.to_string()),
        ("eval_batch_size", t.per_device_eval_batch_size.to_string()),
        ("seed", t.seed.to_string()),
        ("gradient_accumulation_steps", t.gradient_accumulation_steps.to_string()),
        ("total_train_batch_size", total.to_string()),
        ("optimizer", format!("{adamw} with betas=({beta1},{beta2}), epsilon={eps}, weight_decay={}", t.weight_decay)),
        ("lr_scheduler_type", scheduler.to_string()),
    ];
    let warmup = if t.warmup_ratio > 0.0 { t.warmup_ratio } else { t.warmup_steps };
    if warmup > 0.0 {
        rows.push(("lr_scheduler_warmup_steps", warmup.to_string()));
    }
    match t.max_steps {
        Some(steps) => rows.push(("training_steps", steps.to_string())),
        None => rows.push(("num_epochs", float_repr(t.num_train_epochs))),
    }
    rows.push(("precision", if t.precision == Precision::Bf16 { "bf16" } else { "f32" }.to_string()));
    rows.push(("cutoff_len", config.data.cutoff_len.to_string()));
    if tune.finetuning_type == FinetuningType::Lora {
        rows.push(("lora_rank", tune.lora_rank.to_string()));
        rows.push(("lora_alpha", tune.lora_alpha.to_string()));
        rows.push(("lora_dropout", tune.lora_dropout.to_string()));
        rows.push(("lora_target", tune.lora_target.join(", ")));
    }
    if let Some(bits) = config.model.quantization_bit {
        let double = if config.model.double_quantization { ", double quantisation" } else { "" };
        rows.push(("quantization", format!("{bits}-bit NF4{double}")));
    }
    rows
}

/// An evaluation and the training loss logged before it.
struct Evaluation {
    training_loss: Option<f64>,
    epoch: Option<f64>,
    step: Option<f64>,
    loss: Option<f64>,
}

fn evaluations(state: &TrainerState) -> Vec<Evaluation> {
    let mut training_loss = None;
    let mut rows: Vec<Evaluation> = Vec::new();
    for row in &state.log_history {
        let get = |name: &str| Map::get(row, name).and_then(Value::as_f64);
        training_loss = get("loss").or(training_loss);
        if row.contains_key("eval_loss") {
            rows.push(Evaluation { training_loss, epoch: get("epoch"), step: get("step"), loss: get("eval_loss") });
        }
    }
    rows
}

fn table(rows: &[Evaluation]) -> String {
    let cell = |x: Option<f64>| x.map_or("No log".into(), shown);
    let mut text = String::from("| Training Loss | Epoch | Step | Validation Loss |\n|---:|---:|---:|---:|\n");
    for row in rows {
        let step = row.step.unwrap_or(0.0);
        text += &format!("| {} | {} | {step} | {} |\n", cell(row.training_loss), cell(row.epoch), cell(row.loss));
    }
    text
}

/// Four decimals at most.
fn shown(x: f64) -> String {
    float_repr(round(x, 4))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn front_matter_is_yaml_whatever_the_names() {
        for base in ["Qwen/Qwen3-0.6B", "/models/a b", "yes", "123", "a: b", "模型", "x\n- y", "a:"] {
            let text = front_matter(base, "lora", base);
            let body = text.strip_prefix("---\n").and_then(|t| t.strip_suffix("---\n")).unwrap();
            let value: Value = serde_saphyr::from_str(body).unwrap();
            assert_eq!(value["base_model"], base, "{text}");
            assert_eq!(value["library_name"], "peft");
            assert_eq!(value["tags"][0], format!("base_model:adapter:{base}"));
            assert_eq!(value["model-index"][0]["name"], base);
        }
        let full = front_matter("a/b", "full", "x");
        assert!(full.contains("library_name: transformers") && !full.contains("adapter"), "{full}");
    }

    #[test]
    fn results_table() {
        let rows = [
            Evaluation { training_loss: None, epoch: Some(0.5), step: Some(10.0), loss: Some(2.123456) },
            Evaluation { training_loss: Some(1.5), epoch: Some(1.0), step: Some(20.0), loss: Some(1.75) },
        ];
        assert_eq!(
            table(&rows),
            "| Training Loss | Epoch | Step | Validation Loss |\n|---:|---:|---:|---:|\n\
             | No log | 0.5 | 10 | 2.1235 |\n| 1.5 | 1.0 | 20 | 1.75 |\n"
        );
    }
}
