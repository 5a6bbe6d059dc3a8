//! Settings that are each right and wrong together, by the rules of LLaMA-Factory's `parser.py` and the
//! `__post_init__` of its and transformers' argument classes; then what each command needs.

use crate::config::run::{Config, ExportFormat, FinetuningType, MixStrategy, Stage, Strategy, TrainConfig};
use crate::config::settings::Settings;
use crate::error::{Error, Result};

/// What a config is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Command {
    Train,
    Inspect,
    Plan,
    Predict,
    Eval,
    Export,
}

/// Below this LLaMA-Factory takes `val_size` as nothing.
const NO_VALIDATION: f64 = 1e-6;

pub(super) fn check(s: &Settings, c: &Config) -> Result<()> {
    method(s, c)?;
    data(s, c)?;
    evaluation(s, c)?;
    best_model(s, &c.train)
}

fn method(s: &Settings, c: &Config) -> Result<()> {
    let lora = c.tune.finetuning_type == FinetuningType::Lora;
    let adapters = &c.model.adapter_name_or_path;
    if !lora {
        if !adapters.is_empty() {
            return Err(s.conflict("adapter_name_or_path", "is only for finetuning_type lora"));
        }
        if c.model.quantization_bit.is_some() {
            return Err(
                s.conflict("quantization_bit", "is only for finetuning_type lora: 4-bit weights cannot be trained")
            );
        }
        if c.tune.use_rslora {
            return Err(s.conflict("use_rslora", "is only for finetuning_type lora"));
        }
    }
    if c.model.quantization_bit.is_some() {
        if !adapters.is_empty() && c.tune.create_new_adapter {
            return Err(
                s.conflict("create_new_adapter", "cannot be used with `quantization_bit`: merge the adapter first")
            );
        }
        if adapters.len() > 1 {
            return Err(s.conflict(
                "adapter_name_or_path",
                "may hold one adapter only with `quantization_bit`: merge them first",
            ));
        }
        if c.model.train_from_scratch {
            return Err(s.conflict(
                "train_from_scratch",
                "cannot be used with `quantization_bit`: random weights are not worth quantising",
            ));
        }
    }
    if c.tune.stage != Stage::Sft {
        for (key, on) in [
            ("neat_packing", c.data.neat_packing),
            ("train_on_prompt", c.data.train_on_prompt),
            ("mask_history", c.data.mask_history),
            ("predict_with_generate", c.generate.predict_with_generate),
        ] {
            if on {
                return Err(s.conflict(key, "is only for stage sft"));
            }
        }
    }
    Ok(())
}

fn data(s: &Settings, c: &Config) -> Result<()> {
    let d = &c.data;
    let splits = d.val_size > NO_VALIDATION;
    if splits && d.dataset.is_empty() && d.tutorial.is_none() {
        return Err(s.conflict("val_size", "splits `dataset`, which is not given"));
    }
    if splits && !d.eval_dataset.is_empty() {
        return Err(s.conflict("val_size", "and `eval_dataset` both name the evaluation data: keep one of them"));
    }
    if let Some(probs) = &d.interleave_probs {
        if d.mix_strategy == MixStrategy::Concat {
            return Err(s.conflict("interleave_probs", "needs a `mix_strategy` that interleaves"));
        }
        for (key, sets) in [("dataset", &d.dataset), ("eval_dataset", &d.eval_dataset)] {
            if !sets.is_empty() && sets.len() != probs.len() {
                let why = format!("holds {} numbers for the {} sets of `{key}`", probs.len(), sets.len());
                return Err(s.conflict("interleave_probs", why));
            }
        }
    }
    if d.streaming {
        if splits && d.val_size < 1.0 {
            return Err(s.conflict("val_size", "must be a number of rows with `streaming`, not a share"));
        }
        if d.max_samples.is_some() {
            return Err(s.conflict("max_samples", "cannot be used with `streaming`; `max_steps` ends such a run"));
        }
        if c.train.max_steps.is_none() {
            return Err(s.conflict("max_steps", "is needed with `streaming`, whose number of rows is not known"));
        }
    }
    if d.mask_history && d.train_on_prompt {
        return Err(s.conflict("mask_history", "cannot be used with `train_on_prompt`"));
    }
    if d.neat_packing && s.maybe_flag("packing")? == Some(false) {
        log::warn!("`neat_packing` turns `packing` on, whatever it says");
    }
    Ok(())
}

fn evaluation(s: &Settings, c: &Config) -> Result<()> {
    let t = &c.train;
    let predict_with_generate = c.generate.predict_with_generate;
    if c.tune.stage == Stage::Sft && t.do_predict && !predict_with_generate {
        return Err(s.conflict("do_predict", "needs `predict_with_generate: true`"));
    }
    let has_data = !c.data.eval_dataset.is_empty() || c.data.val_size > NO_VALIDATION;
    let asked =
        [("do_predict", t.do_predict), ("predict_with_generate", predict_with_generate), ("do_eval", t.do_eval)];
    if let (false, Some(&(key, _))) = (has_data, asked.iter().find(|(_, on)| *on)) {
        let key = if key == "do_eval" && t.eval_strategy != Strategy::No { "eval_strategy" } else { key };
        return Err(s.conflict(key, "needs evaluation data: give `eval_dataset` or a `val_size` above 0"));
    }
    if t.eval_on_start && !has_data {
        return Err(s.conflict("eval_on_start", "needs evaluation data: give `eval_dataset` or a `val_size` above 0"));
    }
    Ok(())
}

fn best_model(s: &Settings, t: &TrainConfig) -> Result<()> {
    if let Some(metric) = &t.metric_for_best_model
        && !metric.ends_with("loss")
    {
        return Err(s.bad("metric_for_best_model", "a loss: evaluation computes `eval_loss` alone"));
    }
    if t.load_best_model_at_end && t.save_strategy != Strategy::Best {
        if t.eval_strategy != t.save_strategy {
            let why = "needs `eval_strategy` and `save_strategy` to be the same (or `save_strategy: best`)";
            return Err(s.conflict("load_best_model_at_end", why));
        }
        if let (Strategy::Steps, Some(eval_steps)) = (t.eval_strategy, t.eval_steps)
            && !is_multiple(t.save_steps, eval_steps)
        {
            let why = format!("needs `save_steps` ({}) to be a multiple of `eval_steps` ({eval_steps})", t.save_steps);
            return Err(s.conflict("load_best_model_at_end", why));
        }
    }
    if t.load_best_model_at_end && t.eval_strategy == Strategy::No {
        return Err(s.conflict("load_best_model_at_end", "needs an `eval_strategy`"));
    }
    if t.save_strategy == Strategy::Best && (t.metric_for_best_model.is_none() || t.eval_strategy == Strategy::No) {
        let why = "best needs an `eval_strategy` and `metric_for_best_model` (or `load_best_model_at_end: true`)";
        return Err(s.conflict("save_strategy", why));
    }
    if t.early_stopping_steps.is_some() && (t.metric_for_best_model.is_none() || t.eval_strategy == Strategy::No) {
        let why = "counts evaluations: it needs an `eval_strategy` and `load_best_model_at_end: true` (or `metric_for_best_model`)";
        return Err(s.conflict("early_stopping_steps", why));
    }
    Ok(())
}

/// Whether `save` is a multiple of `eval`; both are counts, or both shares of all steps.
fn is_multiple(save: f64, eval: f64) -> bool {
    let same_kind = (save < 1.0) == (eval < 1.0);
    // Shares are decimal fractions: their quotient is whole up to rounding, 1e-9 of it at most.
    let times = save / eval;
    same_kind && times >= 0.5 && (times - times.round()).abs() <= 1e-9 * times
}

impl Config {
    /// Checks what `command` needs beyond a sound config.
    ///
    /// # Errors
    /// [`Error::Config`] naming the key that is missing, or that asks for something this command does not do.
    pub fn validate_for(&self, command: Command) -> Result<()> {
        let has_dataset = !self.data.dataset.is_empty() || self.data.tutorial.is_some();
        let t = &self.train;
        let output_dir = || match self.written.iter().any(|(k, v)| k == "output_dir" && !v.is_null()) {
            true => Ok(()),
            false => Err(Error::config("output_dir", "is missing: name the folder for the result")),
        };
        if command != Command::Eval && self.data.template.as_deref() == Some("fewshot") {
            return Err(Error::config("template", "fewshot is for `eval` alone"));
        }
        if (t.do_predict || command == Command::Predict) && self.data.tokenized_path.is_some() {
            return Err(Error::config("tokenized_path", "holds data for training: leave it out to predict"));
        }
        match command {
            Command::Train => {
                let preprocess = self.data.tokenized_path.is_some();
                if !t.do_train && !t.do_eval && !t.do_predict && !preprocess {
                    return Err(Error::config("do_train", "is not true, so there is nothing to do"));
                }
                if t.do_train && !has_dataset && !preprocess {
                    return Err(Error::config("dataset", "is missing: name the data set to train on"));
                }
                if t.do_train || t.do_eval || t.do_predict {
                    output_dir()?;
                }
                if t.do_predict && self.data.streaming {
                    return Err(Error::config("do_predict", "cannot be used with `streaming`"));
                }
            }
            Command::Inspect | Command::Plan => {
                if !has_dataset && self.data.eval_dataset.is_empty() && self.data.tokenized_path.is_none() {
                    return Err(Error::config("dataset", "is missing: name the data set to look at"));
                }
            }
            Command::Predict => {
                if self.tune.stage != Stage::Sft {
                    return Err(Error::config("stage", "must be sft: a pretraining text has no question to answer"));
                }
                if self.data.eval_dataset.is_empty() && self.data.val_size <= NO_VALIDATION {
                    let why = "is missing: name the data set to answer (or give a `val_size` above 0)";
                    return Err(Error::config("eval_dataset", why));
                }
                if self.data.streaming {
                    return Err(Error::config("streaming", "cannot be used with predict"));
                }
                output_dir()?;
            }
            Command::Export => self.check_export()?,
            Command::Eval => {
                if self.benchmark.is_none() {
                    return Err(Error::config("task", "is missing: name a benchmark, such as mmlu_test"));
                }
            }
        }
        Ok(())
    }

    fn check_export(&self) -> Result<()> {
        let adapters = self.model.adapter_name_or_path.len();
        if self.export.dir.is_none() {
            return Err(Error::config("export_dir", "is missing: name the folder for the result"));
        }
        match self.export.format {
            ExportFormat::GgufLora if adapters != 1 => {
                let why = format!("must name one adapter for `export_format: gguf-lora`; it names {adapters}");
                Err(Error::config("adapter_name_or_path", why))
            }
            ExportFormat::GgufLora => Ok(()),
            _ if self.model.quantization_bit.is_some() && !self.export.dequantized => Err(Error::config(
                "quantization_bit",
                "would merge into 4-bit weights, which cannot hold what was learned: leave it out to merge into the \
                 16-bit base, or set `export_dequantized: true` to merge into the 4-bit weights dequantised",
            )),
            _ => Ok(()),
        }
    }
}
