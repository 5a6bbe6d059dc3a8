//! The keys of generated text, and of the benchmarks.

use crate::config::run::{BenchmarkConfig, GenerateConfig, Lang, Split};
use crate::config::settings::Settings;
use crate::error::{Error, Result};

pub(super) fn read(s: &Settings) -> Result<GenerateConfig> {
    let temperature = s.number("temperature", 0.95, |x| (0.0..=100.0).contains(&x), "a number in [0, 100]")?;
    let penalty = |key| s.number(key, 0.0, |x| (-2.0..=2.0).contains(&x), "a number in [-2, 2]");
    // 0 or less hands over to `max_length`, as in LLaMA-Factory; an explicit `null` is as good as nothing.
    let max_new_tokens = s.maybe_whole("max_new_tokens", -MANY)?.unwrap_or(1024);
    let max_length = s.count("max_length", 1024, 1)?;
    let max_new = usize::try_from(max_new_tokens).ok().filter(|n| *n > 0);
    Ok(GenerateConfig {
        predict_with_generate: s.flag("predict_with_generate", false)?,
        do_sample: s.flag("do_sample", true)? && temperature > 0.0,
        temperature,
        top_p: s.number("top_p", 0.7, |x| (0.0..=1.0).contains(&x), "a number in [0, 1]")?,
        top_k: s.count("top_k", 50, 0)?,
        min_p: s.number("min_p", 0.0, |x| (0.0..=1.0).contains(&x), "a number in [0, 1]")?,
        repetition_penalty: s.number(
            "repetition_penalty",
            1.0,
            |x| x > 0.0 && x <= 100.0,
            "a number above 0, 100 at most",
        )?,
        presence_penalty: penalty("presence_penalty")?,
        frequency_penalty: penalty("frequency_penalty")?,
        max_new_tokens: max_new.unwrap_or(max_length),
        max_length: max_new.is_none().then_some(max_length),
        skip_special_tokens: s.flag("skip_special_tokens", true)?,
    })
}

/// A bound for whole numbers that may be negative.
const MANY: i64 = 1 << 40;

/// `task` and what belongs to it; None without a `task`.
pub(super) fn benchmark(s: &Settings, no_effect: &mut Vec<(String, String)>) -> Result<Option<BenchmarkConfig>> {
    const EXPECTED: &str =
        "a folder of `task_dir`, an underscore and a split, such as mmlu_test, ceval_validation or cmmlu_test";
    let task = s.text("task")?;
    // Read, and so checked, even where there is no task.
    let task_dir = s.path("task_dir")?.unwrap_or_else(|| "evaluation".into());
    let n_shot = s.count("n_shot", 5, 0)?;
    let lang = s.choice("lang", Lang::En, &[("en", Lang::En), ("zh", Lang::Zh)], &[])?;
    let save_dir = s.path("save_dir")?;
    let Some(task) = task else {
        return match ["task_dir", "n_shot", "lang", "save_dir"].into_iter().find(|key| s.is_set(key)) {
            Some(key) => Err(Error::config(key, "belongs to a benchmark: name it with `task`, such as mmlu_test")),
            None => Ok(None),
        };
    };
    let (name, split) = task.rsplit_once('_').ok_or_else(|| s.bad("task", EXPECTED))?;
    let split = match split {
        "test" => Split::Test,
        "validation" | "val" => Split::Validation,
        _ => return Err(s.bad("task", EXPECTED)),
    };
    // It becomes a path below `task_dir`, and is to stay there.
    if name.is_empty() || name.contains(['/', '\\']) || name.starts_with('.') {
        return Err(s.bad("task", EXPECTED));
    }
    // Also the small-tutorial dialect's name of another key.
    if s.entry("per_device_train_batch_size").is_some_and(|e| e.typed == "batch_size") {
        no_effect.push((
            "batch_size".into(),
            "prompts are read one by one, each from where it differs from the last".into(),
        ));
    }
    Ok(Some(BenchmarkConfig { task: name.to_string(), split, task_dir, n_shot, lang, save_dir }))
}
