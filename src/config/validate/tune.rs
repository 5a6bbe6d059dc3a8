//! The keys that say by which method.

use crate::config::run::{FinetuningType, Stage, TuneConfig};
use crate::config::settings::Settings;
use crate::error::Result;

pub(super) fn read(s: &Settings) -> Result<TuneConfig> {
    let stage =
        s.choice("stage", Stage::Sft, &[("sft", Stage::Sft), ("pt", Stage::Pt)], &["rm", "ppo", "dpo", "kto"])?;
    let finetuning_type = s.choice(
        "finetuning_type",
        FinetuningType::Lora,
        &[("lora", FinetuningType::Lora), ("freeze", FinetuningType::Freeze), ("full", FinetuningType::Full)],
        &["oft"],
    )?;
    // The largest rank anyone can mean; it bounds every product of rank and width.
    let rank = s.maybe_whole("lora_rank", 1)?.unwrap_or(8);
    let lora_rank = match usize::try_from(rank) {
        Ok(r) if r <= 65_536 => r,
        _ => return Err(s.bad("lora_rank", "at most 65536")),
    };
    let alpha = s.maybe_number("lora_alpha", |x| (0.0..1e9).contains(&x), "a number above 0")?;
    Ok(TuneConfig {
        stage,
        finetuning_type,
        lora_rank,
        // 0 counts as left out, as in LLaMA-Factory.
        lora_alpha: alpha.filter(|a| *a > 0.0).unwrap_or(2.0 * lora_rank as f64),
        lora_dropout: s.number("lora_dropout", 0.0, |x| (0.0..1.0).contains(&x), "a number in [0, 1)")?,
        lora_target: all_unless(s.words("lora_target")?),
        use_rslora: s.flag("use_rslora", false)?,
        create_new_adapter: s.flag("create_new_adapter", false)?,
        additional_target: s.words("additional_target")?,
        freeze_trainable_layers: s.maybe_whole("freeze_trainable_layers", -1_000_000)?.unwrap_or(2),
        freeze_trainable_modules: all_unless(s.words("freeze_trainable_modules")?),
        freeze_extra_modules: s.words("freeze_extra_modules")?,
        pure_bf16: s.flag("pure_bf16", false)?,
    })
}

/// No names, or `all` among them, mean all.
fn all_unless(words: Vec<String>) -> Vec<String> {
    if words.is_empty() || words.iter().any(|w| w == "all") { vec!["all".to_string()] } else { words }
}
