//! The keys of the loop.

use std::path::PathBuf;

use serde_json::Value;

use crate::config::dialect;
use crate::config::run::{Precision, Resume, SchedulerType, Strategy, TrainConfig};
use crate::config::settings::{Settings, expand_home};
use crate::error::{Error, Result};

/// Where results go if nobody says: transformers' own default. `train` insists on being told.
const OUTPUT_DIR: &str = "trainer_output";

pub(super) fn read(s: &Settings, no_effect: &mut Vec<(String, String)>) -> Result<TrainConfig> {
    let tutorial = s.tutorial;
    let max_steps = s.maybe_whole("max_steps", -MANY)?.and_then(positive);
    let save_total_limit = s.maybe_whole("save_total_limit", -MANY)?.and_then(positive);
    let (warmup_ratio, warmup_steps) = warmup(s)?;
    let lr_scheduler_type = scheduler(s)?;
    let logging_strategy = strategy(s, "logging_strategy", Strategy::Steps)?;
    let logging_default = if tutorial { dialect::LOGGING_STEPS } else { 500.0 };
    let logging_steps = interval(s, "logging_steps", logging_strategy)?.unwrap_or(logging_default);
    let eval_strategy = strategy(s, "eval_strategy", Strategy::No)?;
    let eval_steps = match (interval(s, "eval_steps", eval_strategy)?, eval_strategy) {
        (None | Some(0.0), Strategy::Steps) => Some(logging_steps),
        (given, _) => given,
    };
    let save_strategy = save_strategy(s)?;
    let save_steps = interval(s, "save_steps", save_strategy)?.unwrap_or(500.0);
    let load_best_model_at_end = s.flag("load_best_model_at_end", false)?;
    let metric_for_best_model =
        s.text("metric_for_best_model")?.or_else(|| load_best_model_at_end.then(|| "loss".to_string()));
    Ok(TrainConfig {
        do_train: s.flag("do_train", tutorial)?,
        // Asking when to evaluate is asking to evaluate.
        do_eval: s.flag("do_eval", false)? || eval_strategy != Strategy::No,
        do_predict: s.flag("do_predict", false)?,
        compute_accuracy: s.flag("compute_accuracy", false)?,
        output_dir: s.path("output_dir")?.unwrap_or_else(|| PathBuf::from(OUTPUT_DIR)),
        overwrite_output_dir: s.flag("overwrite_output_dir", false)?,
        resume_from_checkpoint: resume(s)?,
        per_device_train_batch_size: s.count("per_device_train_batch_size", 8, 1)?,
        per_device_eval_batch_size: s.count("per_device_eval_batch_size", 8, 1)?,
        gradient_accumulation_steps: s.count("gradient_accumulation_steps", 1, 1)?,
        num_train_epochs: s.number("num_train_epochs", 3.0, |x| x > 0.0, "a number above 0")?,
        max_steps,
        learning_rate: s.number("learning_rate", 5e-5, |x| x >= 0.0, "a number, 0 or more")?,
        lr_scheduler_type,
        lr_scheduler_kwargs: scheduler_kwargs(s, lr_scheduler_type)?,
        warmup_ratio,
        warmup_steps,
        weight_decay: s.number("weight_decay", 0.0, |x| x >= 0.0, "a number, 0 or more")?,
        adam_beta1: s.number("adam_beta1", 0.9, |x| (0.0..1.0).contains(&x), "a number in [0, 1)")?,
        adam_beta2: s.number("adam_beta2", 0.999, |x| (0.0..1.0).contains(&x), "a number in [0, 1)")?,
        adam_epsilon: s.number("adam_epsilon", 1e-8, |x| x >= 0.0, "a number, 0 or more")?,
        adam_8bit: eight_bit(s)?,
        max_grad_norm: s.number("max_grad_norm", 1.0, |x| x >= 0.0, "a number, 0 (no clipping) or more")?,
        neftune_noise_alpha: s
            .maybe_number("neftune_noise_alpha", |x| x >= 0.0, "a number, 0 or more")?
            .filter(|alpha| *alpha > 0.0),
        precision: precision(s, no_effect)?,
        seed: seed(s, "seed")?.unwrap_or(42),
        data_seed: seed(s, "data_seed")?,
        disable_shuffling: s.flag("disable_shuffling", false)?,
        dataloader_drop_last: s.flag("dataloader_drop_last", false)?,
        logging_strategy,
        logging_steps,
        logging_first_step: s.flag("logging_first_step", false)?,
        eval_strategy,
        eval_steps,
        eval_on_start: s.flag("eval_on_start", false)?,
        // transformers takes every 0 steps as never.
        save_strategy: if save_strategy == Strategy::Steps && save_steps == 0.0 { Strategy::No } else { save_strategy },
        save_steps,
        save_total_limit,
        save_only_model: s.flag("save_only_model", false)?,
        load_best_model_at_end,
        greater_is_better: s.maybe_flag("greater_is_better")?.or(metric_for_best_model.as_ref().map(|_| false)),
        metric_for_best_model,
        early_stopping_steps: s.maybe_count("early_stopping_steps", 1)?,
        plot_loss: s.flag("plot_loss", false)?,
        report_to_tensorboard: report_to_tensorboard(s, tutorial)?,
        run_name: s.text("run_name")?,
        logging_dir: s.path("logging_dir")?,
        include_num_input_tokens_seen: tokens_seen(s)?,
        disable_tqdm: s.flag("disable_tqdm", false)?,
        threads: s.maybe_count("threads", 1)?,
    })
}

/// A bound for whole numbers that may be negative.
const MANY: i64 = 1 << 40;

/// -1 and 0 mean "no such limit".
fn positive(n: i64) -> Option<usize> {
    usize::try_from(n).ok().filter(|n| *n > 0)
}

/// Whether AdamW, under one of its names, keeps its moments in 8 bits; transformers' default is the fused one, which does
/// not.
fn eight_bit(s: &Settings) -> Result<bool> {
    match s.text("optim")?.as_deref() {
        None | Some("adamw_torch" | "adamw_torch_fused" | "adamw_hf") => Ok(false),
        Some("adamw_8bit" | "adamw_bnb_8bit") => Ok(true),
        Some(_) => {
            let built = "adamw_torch, adamw_torch_fused, adamw_hf or adamw_8bit; other optimizers are not built";
            Err(s.bad("optim", built))
        }
    }
}

/// (warmup_ratio, warmup_steps). A ratio that is given replaces the steps, even where it is 0.
fn warmup(s: &Settings) -> Result<(f64, f64)> {
    let ratio = s.maybe_number("warmup_ratio", |x| (0.0..=1.0).contains(&x), "a share of all steps in [0, 1]")?;
    let steps = s.number(
        "warmup_steps",
        0.0,
        |x| x >= 0.0 && (x < 1.0 || x.fract() == 0.0),
        "a whole number of steps, or a share of them in [0, 1)",
    )?;
    Ok(match ratio {
        Some(ratio) => (ratio, 0.0),
        None => (0.0, steps),
    })
}

fn scheduler(s: &Settings) -> Result<SchedulerType> {
    s.choice(
        "lr_scheduler_type",
        SchedulerType::Linear,
        &[
            ("linear", SchedulerType::Linear),
            ("cosine", SchedulerType::Cosine),
            ("cosine_with_restarts", SchedulerType::CosineWithRestarts),
            ("polynomial", SchedulerType::Polynomial),
            ("constant", SchedulerType::Constant),
            ("constant_with_warmup", SchedulerType::ConstantWithWarmup),
            ("inverse_sqrt", SchedulerType::InverseSqrt),
            ("cosine_with_min_lr", SchedulerType::CosineWithMinLr),
        ],
        &["reduce_lr_on_plateau", "cosine_warmup_with_min_lr", "warmup_stable_decay", "greedy"],
    )
}

/// The arguments each schedule takes in transformers' `optimization.py`.
fn scheduler_arguments(scheduler: SchedulerType) -> &'static [&'static str] {
    match scheduler {
        SchedulerType::Cosine | SchedulerType::CosineWithRestarts => &["num_cycles"],
        SchedulerType::Polynomial => &["lr_end", "power"],
        SchedulerType::InverseSqrt => &["timescale"],
        SchedulerType::CosineWithMinLr => &["num_cycles", "min_lr", "min_lr_rate"],
        SchedulerType::Linear | SchedulerType::Constant | SchedulerType::ConstantWithWarmup => &[],
    }
}

fn scheduler_kwargs(s: &Settings, scheduler: SchedulerType) -> Result<Vec<(String, f64)>> {
    const KEY: &str = "lr_scheduler_kwargs";
    const EXPECTED: &str = "a mapping of names to numbers, such as {num_cycles: 2}";
    let parsed;
    let map = match s.entry(KEY).map(|e| &e.value) {
        None | Some(Value::Null) => None,
        Some(Value::Object(map)) => Some(map),
        // As an argument it may come as JSON.
        Some(Value::String(text)) => {
            parsed = serde_json::from_str(text).map_err(|_| s.bad(KEY, EXPECTED))?;
            Some(&parsed)
        }
        Some(_) => return Err(s.bad(KEY, EXPECTED)),
    };
    let allowed = scheduler_arguments(scheduler);
    let mut kwargs = Vec::new();
    for (name, value) in map.into_iter().flatten().filter(|(_, v)| !v.is_null()) {
        if !allowed.contains(&name.as_str()) {
            let takes = if allowed.is_empty() { "nothing".to_string() } else { allowed.join(", ") };
            let why = format!("holds `{}`, but this lr_scheduler_type takes {takes}", name.escape_debug());
            return Err(Error::config(KEY, why));
        }
        let least = if name == "timescale" || (name == "num_cycles" && scheduler == SchedulerType::CosineWithRestarts) {
            1.0
        } else {
            0.0
        };
        match value.as_f64() {
            Some(x) if x.is_finite() && x >= least => kwargs.push((name.clone(), x)),
            _ => return Err(Error::config(KEY, format!("`{name}` must be a number, {least} or more"))),
        }
    }
    if scheduler == SchedulerType::CosineWithMinLr {
        let floors = kwargs.iter().filter(|(name, _)| name.starts_with("min_lr")).count();
        if floors != 1 {
            return Err(Error::config(KEY, "must hold `min_lr` or `min_lr_rate`, one of them, for cosine_with_min_lr"));
        }
    }
    Ok(kwargs)
}

fn strategy(s: &Settings, key: &str, default: Strategy) -> Result<Strategy> {
    s.choice(key, default, &[("no", Strategy::No), ("steps", Strategy::Steps), ("epoch", Strategy::Epoch)], &[])
}

fn save_strategy(s: &Settings) -> Result<Strategy> {
    const BUILT: [(&str, Strategy); 4] =
        [("no", Strategy::No), ("steps", Strategy::Steps), ("epoch", Strategy::Epoch), ("best", Strategy::Best)];
    s.choice("save_strategy", Strategy::Steps, &BUILT, &[])
}

/// An interval in steps, or below 1 as a share of all steps. Only logging may not be 0, and only by steps.
fn interval(s: &Settings, key: &str, strategy: Strategy) -> Result<Option<f64>> {
    let by_steps = strategy == Strategy::Steps;
    let zero_is_fine = !(by_steps && key == "logging_steps");
    s.maybe_number(
        key,
        |x| (x > 0.0 || (x == 0.0 && zero_is_fine)) && (x < 1.0 || x.fract() == 0.0 || !by_steps),
        "a whole number of steps, or a share of all steps below 1",
    )
}

fn resume(s: &Settings) -> Result<Resume> {
    const KEY: &str = "resume_from_checkpoint";
    Ok(match s.entry(KEY).map(|e| &e.value) {
        None | Some(Value::Null | Value::Bool(false)) => Resume::No,
        Some(Value::Bool(true)) => Resume::Latest,
        Some(Value::String(path)) if !path.trim().is_empty() => Resume::From(expand_home(path)),
        Some(_) => return Err(s.bad(KEY, "true, false or the path of a checkpoint")),
    })
}

/// bf16 if asked for under any name. f16 needs loss scaling for no gain: it runs as bf16, and the user is told.
fn precision(s: &Settings, no_effect: &mut Vec<(String, String)>) -> Result<Precision> {
    let (bf16, fp16) = (s.flag("bf16", false)?, s.flag("fp16", false)?);
    if bf16 && fp16 {
        return Err(s.conflict("fp16", "and `bf16` cannot both be true"));
    }
    if fp16 {
        no_effect.push(("fp16".to_string(), "it runs as bf16".to_string()));
    }
    let half = bf16 || fp16 || s.flag("pure_bf16", false)?;
    Ok(if half { Precision::Bf16 } else { Precision::F32 })
}

/// NumPy's generator, which every order of rows comes from, takes 32 bits.
fn seed(s: &Settings, key: &str) -> Result<Option<u64>> {
    let fits = |x: f64| x.fract() == 0.0 && (0.0..=f64::from(u32::MAX)).contains(&x);
    Ok(s.maybe_number(key, fits, "a whole number from 0 to 4294967295")?.map(|x| x as u64))
}

fn report_to_tensorboard(s: &Settings, default: bool) -> Result<bool> {
    const KEY: &str = "report_to";
    let loggers = match s.entry(KEY).map(|e| &e.value) {
        Some(Value::Bool(false)) => vec!["none".to_string()],
        Some(Value::Array(items)) if items.is_empty() => vec!["none".to_string()],
        _ => s.words(KEY)?,
    };
    let mut on = default && loggers.is_empty();
    for logger in &loggers {
        match logger.as_str() {
            "none" => {}
            "tensorboard" | "all" => on = true,
            _ => return Err(s.bad(KEY, "none, tensorboard or all; other loggers are not built")),
        }
    }
    Ok(on)
}

fn tokens_seen(s: &Settings) -> Result<bool> {
    const KEY: &str = "include_num_input_tokens_seen";
    Ok(match s.entry(KEY).map(|e| &e.value) {
        None | Some(Value::Null) => false,
        Some(Value::Bool(on)) => *on,
        Some(Value::String(word)) if word == "no" => false,
        // Without padding the two are the same count.
        Some(Value::String(word)) if word == "all" || word == "non_padding" => true,
        Some(_) => return Err(s.bad(KEY, "true, false, all, non_padding or no")),
    })
}
