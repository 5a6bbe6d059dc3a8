//! What a run works on: the model's folder, its tokenizer and template, and the tokenised data.

use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use super::progress::{Control, Event, Observer};
use crate::config::{Config, DataConfig};
use crate::data::encode::{self, Prepared};
use crate::data::template::Template;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Sample, cache, source};
use crate::error::{Error, Result};
use crate::format::adapter::Sidecar;
use crate::format::{HfConfig, hub};

/// Everything that a run reads before it starts.
pub struct Inputs {
    /// The base model's folder.
    pub folder: PathBuf,
    pub tokenizer: Tokenizer,
    pub template: Template,
    pub train: TrainData,
    /// Evaluation sets; the name is empty unless each is evaluated on its own.
    pub eval: Vec<(String, Vec<Sample>)>,
    /// What was left out, a line each, for the person at the terminal.
    pub notices: Vec<String>,
}

/// Where training samples come from.
pub enum TrainData {
    /// All of them, in memory.
    Whole(Vec<Sample>),
    /// Read again each epoch (`streaming`).
    Streamed,
}

impl TrainData {
    /// The samples at hand.
    pub fn samples(&self) -> &[Sample] {
        match self {
            TrainData::Whole(samples) => samples,
            TrainData::Streamed => &[],
        }
    }
}

impl Inputs {
    /// The base model's folder (downloaded if it is a hub name) or GGUF file, tokenizer and template.
    ///
    /// # Errors
    /// Whatever is wrong with them, or if they do not belong together.
    pub fn model(config: &Config, observer: &mut dyn Observer) -> Result<(PathBuf, Tokenizer, Template)> {
        let folder = model_folder(config, observer)?;
        // First: a folder without config.json is no model at all, whatever else it lacks.
        let vocab = HfConfig::open(&folder)?.vocab_size;
        let mut tokenizer = Tokenizer::load(&folder, config.model.split_special_tokens)?;
        let template = Template::load(&config.data, &mut tokenizer)?;
        tokenizer.check_vocab(vocab)?;
        Ok((folder, tokenizer, template))
    }

    /// The template's name and the thinking mode of answers by `adapter`: they travel with it, and count unless the config says
    /// otherwise.
    ///
    /// # Errors
    /// [`Error::File`] for what lies beside the adapter and cannot be read.
    pub fn manner(config: &Config, adapter: Option<&Path>) -> Result<(Option<String>, Option<bool>)> {
        let DataConfig { template, enable_thinking, .. } = &config.data;
        let sidecar = adapter.map(Sidecar::open).transpose()?.flatten();
        match sidecar.filter(|s| template.is_none() && s.template.is_some()) {
            Some(sidecar) => {
                let written = config.written.iter().any(|(k, v)| k == "enable_thinking" && !v.is_null());
                Ok((sidecar.template, if written { *enable_thinking } else { sidecar.enable_thinking }))
            }
            None => Ok((template.clone(), *enable_thinking)),
        }
    }

    /// Reads and tokenises. With `tokenized_path` the tokenised data are read from there, or written there.
    ///
    /// # Errors
    /// Whatever is wrong with model, tokenizer, template or data.
    pub fn prepare(config: &Config, observer: &mut dyn Observer) -> Result<Self> {
        let (folder, tokenizer, template) = Inputs::model(config, observer)?;
        if let Some(path) = &config.data.tokenized_path
            && let Some(splits) = cache::read_tokenized(path, &tokenizer)?
        {
            let mut inputs = Inputs {
                folder,
                tokenizer,
                template,
                train: TrainData::Whole(Vec::new()),
                eval: Vec::new(),
                notices: Vec::new(),
            };
            for (name, data) in splits {
                match name.as_str() {
                    "train" => inputs.train = TrainData::Whole(data.samples),
                    "validation" => inputs.eval.push((String::new(), data.samples)),
                    other => inputs.eval.push((other.to_string(), data.samples)),
                }
            }
            return Ok(inputs);
        }

        let mut notices = Vec::new();
        let digest = source::digest(config)?;
        let mut encode = |name: &str, records| -> Result<Prepared> {
            let key = format!("{digest} {name}");
            let what = if name.is_empty() { "evaluation data" } else { name };
            observer.observe(&Event::Preparing { what: &format!("tokenising {what}") })?;
            let made = watched(observer, |progress| {
                encode::prepare(records, config, &tokenizer, &template, key.as_bytes(), progress)
            })?;
            for (why, n) in &made.dropped {
                notices.push(format!("{what}: {n} rows left out: {why}"));
            }
            Ok(made)
        };
        let (train, eval_records) = if config.data.streaming {
            (None, source::stream_eval(config)?)
        } else {
            let splits = source::load(config, &|_, _| {})?;
            (Some(splits.train), splits.eval)
        };
        let train = train.map(|records| encode("train", records)).transpose()?;
        let mut eval = Vec::new();
        for (name, records) in eval_records {
            let made = encode(&name, records)?;
            eval.push((name, made));
        }
        if let Some(path) = &config.data.tokenized_path {
            let named = |name: &str| if name.is_empty() { "validation".to_string() } else { name.to_string() };
            let names: Vec<String> = eval.iter().map(|(name, _)| named(name)).collect();
            let mut splits: Vec<(&str, &Prepared)> = train.iter().map(|t| ("train", t)).collect();
            splits.extend(names.iter().map(String::as_str).zip(eval.iter().map(|(_, e)| e)));
            cache::write_tokenized(path, &splits, &tokenizer)?;
            notices.push(format!("tokenised data are in {}", path.display()));
        }
        let train = match train {
            Some(made) => TrainData::Whole(made.samples),
            None => TrainData::Streamed,
        };
        let eval = eval.into_iter().map(|(name, made)| (name, made.samples)).collect();
        Ok(Inputs { folder, tokenizer, template, train, eval, notices })
    }
}

/// Runs `work` on a thread of its own and tells the observer, who belongs to this one, how far it is.
fn watched<T: Send>(
    observer: &mut dyn Observer,
    work: impl FnOnce(encode::Progress<'_>) -> Result<T> + Send,
) -> Result<T> {
    let (done, total) = (AtomicUsize::new(0), AtomicUsize::new(0));
    let count = |d: usize, t: usize| {
        total.store(t, Ordering::Relaxed);
        done.fetch_max(d, Ordering::Relaxed);
    };
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| work(&count));
        let mut told = Ok(Control::Continue);
        while !worker.is_finished() && told.is_ok() {
            std::thread::sleep(Duration::from_millis(20));
            let (done, total) = (done.load(Ordering::Relaxed) as u64, total.load(Ordering::Relaxed) as u64);
            told = observer.observe(&Event::Tokenising { done, total });
        }
        let result = worker.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        told.and(result)
    })
}

/// The base model's folder or GGUF file; a folder is downloaded if it is a hub name.
fn model_folder(config: &Config, observer: &mut dyn Observer) -> Result<PathBuf> {
    let m = &config.model;
    let folder = PathBuf::from(&m.model_name_or_path);
    if folder.is_dir() || folder.is_file() {
        return Ok(folder);
    }
    observer.observe(&Event::Preparing { what: &format!("fetching {}", m.model_name_or_path) })?;
    let token = m.hf_hub_token.as_deref();
    let mut tell = |event: hub::Event<'_>| {
        // What an observer answers to a download is not asked: it is over when it is over.
        let _ = observer.observe(&Event::Download(event));
    };
    hub::resolve(&m.model_name_or_path, &m.model_revision, m.cache_dir.as_deref(), token, &mut tell)
}

/// Samples of a streamed run, one epoch after the other.
pub struct SampleStream<'a> {
    config: &'a Config,
    inputs: &'a Inputs,
    epoch: u64,
    records: source::RecordStream,
    ready: std::collections::VecDeque<Sample>,
}

impl<'a> SampleStream<'a> {
    /// From the start of the first epoch.
    ///
    /// # Errors
    /// As [`source::stream`].
    pub fn new(config: &'a Config, inputs: &'a Inputs) -> Result<Self> {
        let records = source::stream(config, 0, 0)?;
        Ok(SampleStream { config, inputs, epoch: 0, records, ready: Default::default() })
    }

    /// The next sample; epochs follow each other without end.
    ///
    /// # Errors
    /// A malformed row, or a whole epoch without a sample.
    pub fn next_sample(&mut self) -> Result<Sample> {
        let mut fresh = false;
        loop {
            if let Some(sample) = self.ready.pop_front() {
                return Ok(sample);
            }
            // A group at a time, which is also what packing works on.
            let group = self.config.data.preprocessing_batch_size;
            let records = self.records.by_ref().take(group).collect::<Result<Vec<_>>>()?;
            if records.is_empty() {
                if fresh {
                    let name = self.config.data.dataset.join(",");
                    return Err(Error::Dataset { name, why: "a whole epoch holds no sample".into() });
                }
                fresh = true;
                self.epoch += 1;
                self.records = source::stream(self.config, self.epoch, 0)?;
                continue;
            }
            match encode::tokenise(&records, self.config, &self.inputs.tokenizer, &self.inputs.template, 1, &|_, _| {})
            {
                Ok(made) => self.ready.extend(made.samples),
                // A group of which nothing is left is no error while others follow.
                Err(Error::Dataset { why, .. }) => log::warn!("a group of {} rows was left out: {why}", records.len()),
                Err(e) => return Err(e),
            }
        }
    }
}
