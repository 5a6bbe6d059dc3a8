//! Multiple choice: the questions of a benchmark, asked with solved examples before them, and which of A, B, C, D the model
//! holds for likeliest. Prompts and scores are those of LLaMA-Factory's `eval`; the solved examples are the first ones, in
//! their order, where it shuffles them anew for each question.

mod prompt;
mod results;
mod tables;

use std::path::Path;

use super::load::{self, Loaded};
use crate::config::{BenchmarkConfig, Config};
use crate::data::template::Template;
use crate::data::tokenizer::Tokenizer;
use crate::error::{Error, Result};
use crate::model::{Cache, Model, Sequence};
use crate::train::{Event, Inputs, Observer, plan};

pub use results::Results;
pub use tables::{Item, Subject, read};

/// The answers there are.
pub const CHOICES: [&str; 4] = ["A", "B", "C", "D"];

/// How far a benchmark is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Progress<'a> {
    /// As the mapping names it.
    pub subject: &'a str,
    /// Of all subjects.
    pub done: usize,
    pub total: usize,
    /// Right among those done.
    pub right: usize,
}

/// Runs the benchmark that `config` names, and writes what came out to its `save_dir`.
///
/// # Errors
/// Whatever is wrong with model, files or settings; [`Error::Config`] if `save_dir` is there already.
pub fn run(config: &Config, observer: &mut dyn Observer, watch: &mut dyn FnMut(Progress<'_>)) -> Result<Results> {
    let Some(benchmark) = &config.benchmark else { return Err(Error::config("task", "is missing")) };
    if let Some(dir) = benchmark.save_dir.as_ref().filter(|dir| dir.exists()) {
        return Err(Error::config("save_dir", format!("names {}, which exists already", dir.display())));
    }
    let subjects = tables::read(benchmark)?;
    let (folder, tokenizer, template) = Inputs::model(config, observer)?;
    observer.observe(&Event::Preparing { what: "reading the questions" })?;
    let asked = prompts(config, benchmark, &folder, &tokenizer, &template, &subjects)?;
    let choices = choice_ids(&tokenizer)?;
    observer.observe(&Event::Preparing { what: "loading the model" })?;
    let longest = asked.iter().flatten().map(Vec::len).max().unwrap_or(1);
    let loaded = load::load(config, &folder, longest)?;
    let mut reader = Reader::new(&loaded, longest)?;
    let results = ask_all(&subjects, &asked, &mut |ids| reader.choose(ids, choices), watch)?;
    if let Some(dir) = &benchmark.save_dir {
        results.write(dir)?;
    }
    Ok(results)
}

/// Asks every prompt of every subject; `choose` gives the number of the choice that a prompt is answered with.
///
/// # Errors
/// Those of `choose`.
fn ask_all(
    subjects: &[Subject],
    asked: &[Vec<Vec<u32>>],
    choose: &mut dyn FnMut(&[u32]) -> Result<usize>,
    watch: &mut dyn FnMut(Progress<'_>),
) -> Result<Results> {
    let total = subjects.iter().map(|s| s.items.len()).sum();
    let (mut results, mut done, mut right) = (Results::default(), 0, 0);
    for (subject, prompts) in subjects.iter().zip(asked) {
        let mut chosen = Vec::with_capacity(prompts.len());
        for (item, ids) in subject.items.iter().zip(prompts) {
            let choice = choose(ids)?;
            done += 1;
            right += usize::from(choice == item.answer);
            chosen.push(choice);
            watch(Progress { subject: &subject.name, done, total, right });
        }
        results.add(subject, chosen);
    }
    Ok(results)
}

/// The prompts of each subject. One that is too long for the model goes with fewer examples.
fn prompts(
    config: &Config,
    benchmark: &BenchmarkConfig,
    folder: &Path,
    tokenizer: &Tokenizer,
    template: &Template,
    subjects: &[Subject],
) -> Result<Vec<Vec<Vec<u32>>>> {
    let context = plan::context(config, folder)?;
    let mut shortened = 0;
    let mut prompt = |subject: &Subject, item: &Item| -> Result<Vec<u32>> {
        for shots in (0..=subject.shots.len()).rev() {
            let messages = prompt::messages(item, &subject.shots[..shots], &subject.name, benchmark.lang);
            let ids = template.encode_oneturn(tokenizer, &messages, "", "")?.0;
            if !ids.is_empty() && ids.len() <= context {
                shortened += usize::from(shots < subject.shots.len());
                return Ok(ids);
            }
        }
        let why = format!("a question is longer than the {context} tokens that the model was made for");
        Err(Error::Dataset { name: subject.id.clone(), why })
    };
    let all = subjects.iter().map(|s| s.items.iter().map(|item| prompt(s, item)).collect()).collect();
    if shortened > 0 {
        log::warn!("{shortened} questions were asked with fewer examples: the model was made for {context} tokens");
    }
    all
}

/// The token that each choice is answered with: the last, where a letter has several.
fn choice_ids(tokenizer: &Tokenizer) -> Result<[u32; 4]> {
    let mut ids = [0; 4];
    for (id, choice) in ids.iter_mut().zip(CHOICES) {
        let last = tokenizer.encode(choice)?.last().copied();
        *id = last.ok_or_else(|| Error::Tokenizer(format!("has no token for `{choice}`")))?;
    }
    Ok(ids)
}

/// The engine: reads prompts one after the other, and each only from where it differs from the one before.
struct Reader<'a> {
    model: &'a Model,
    adapter: Option<usize>,
    cache: Cache,
    sequence: Sequence,
    /// What the sequence holds.
    held: Vec<u32>,
}

impl<'a> Reader<'a> {
    /// For prompts of up to `longest` tokens.
    fn new(loaded: &'a Loaded, longest: usize) -> Result<Self> {
        let mut cache = Cache::new(&loaded.model, &[longest])?;
        let Some(sequence) = cache.take(longest) else { unreachable!("the cache was made for it") };
        Ok(Reader { model: &loaded.model, adapter: loaded.adapter, cache, sequence, held: Vec::new() })
    }

    /// The likeliest of `choices` after `ids`; the first of several.
    fn choose(&mut self, ids: &[u32], choices: [u32; 4]) -> Result<usize> {
        let same = self.held.iter().zip(ids).take_while(|(a, b)| a == b).count();
        // The last token is read again: its logits are what is asked for.
        let same = same.min(ids.len().saturating_sub(1));
        self.sequence.truncate(same);
        self.held.truncate(same);
        let logits = self.model.read(&mut self.cache, self.adapter, &mut self.sequence, &ids[same..])?.of_f64(0);
        self.held = ids.to_vec();
        likeliest(choices.map(|id| logits.get(id as usize).copied().unwrap_or(f64::NAN)))
    }
}

/// The number of the largest; the first of several.
fn likeliest(logits: [f64; 4]) -> Result<usize> {
    if let Some(odd) = logits.iter().find(|x| !x.is_finite()) {
        return Err(Error::Diverged { step: 0, why: format!("the model's logit of a choice is {odd}") });
    }
    Ok((0..4).fold(0, |best, i| if logits[i] > logits[best] { i } else { best }))
}

#[cfg(test)]
mod tests;
