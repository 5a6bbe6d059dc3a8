//! From a config to the [`Record`]s it trains and evaluates on, in LLaMA-Factory's order: each data set is read,
//! converted, sampled (`num_samples`) and cut (`max_samples`); all are mixed; `val_size` is split off; and only then
//! are the rows dropped that hold no valid sample.

mod align;
mod digest;
mod stream;

use std::collections::BTreeMap;

pub use digest::digest;
pub use stream::{RecordStream, stream, stream_eval};

use super::Record;
use super::order::{LegacyRandom, interleave, sample, split};
use super::registry::{self, DatasetSpec};
use crate::config::Config;
use crate::error::{Error, Result};
use align::Aligner;

/// The data of a run.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Splits {
    pub train: Vec<Record>,
    /// For each of `train`, its row among the rows before those without a valid sample were dropped. Packing groups
    /// are made over these: row / `preprocessing_batch_size`.
    pub train_rows: Vec<usize>,
    /// Named where each data set is evaluated on its own (`eval_on_each_dataset`); else one, with an empty name.
    pub eval: Vec<(String, Vec<Record>)>,
    /// What was read, per data set: first those of training, then those of evaluation.
    pub report: Vec<DatasetReport>,
}

/// What was read of one data set.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct DatasetReport {
    pub name: String,
    /// Rows read from its files.
    pub rows: usize,
    /// Rows read that hold no valid sample, by reason.
    pub skipped: BTreeMap<&'static str, usize>,
}

impl DatasetReport {
    fn valid(&self) -> usize {
        self.rows.saturating_sub(self.skipped.values().sum())
    }
}

/// A row in the common form; None: it holds no valid sample, but counts in every order.
type Aligned = Option<Record>;

/// Reads all the data of a run. `progress` is called now and then with a data set's name and the rows read of it.
///
/// # Errors
/// What [`registry::find`] refuses; [`Error::Row`] for a malformed row; [`Error::Dataset`] for a data set that is empty,
/// lacks a column or holds no valid row; [`Error::Config`] for a `val_size` that leaves nothing to train on.
pub fn load(cfg: &Config, progress: &dyn Fn(&str, usize)) -> Result<Splits> {
    let (train, eval) = specs(cfg)?;
    // One generator for the whole run, as np.random is.
    let seed = u32::try_from(cfg.train.seed).map_err(|_| Error::config("seed", "must be below 2^32"))?;
    let mut rng = LegacyRandom::new(seed);
    let mut splits = Splits::default();
    let mut read = |specs: &[DatasetSpec], report: &mut Vec<DatasetReport>| -> Result<Vec<Vec<Aligned>>> {
        let mut all = Vec::new();
        for spec in specs {
            let (rows, read) = load_one(spec, cfg, &mut rng, progress)?;
            all.push(rows);
            report.push(read);
        }
        Ok(all)
    };
    let train_rows = read(&train, &mut splits.report)?;
    let eval_rows = read(&eval, &mut splits.report)?;

    let mut train_rows = merge(train_rows, cfg)?;
    if val_size(cfg) {
        let (train_order, eval_order) = split(train_rows.len(), cfg.data.val_size, cfg.train.seed)?;
        let mut pick = |order: Vec<usize>| -> Vec<Aligned> {
            order.into_iter().map(|row| train_rows.get_mut(row).and_then(Option::take)).collect()
        };
        let (kept, held) = (pick(train_order), pick(eval_order));
        train_rows = kept;
        splits.eval.push((String::new(), valid(held, "validation split")?));
    }
    if !train.is_empty() {
        let rows = train_rows.iter().enumerate().filter(|(_, row)| row.is_some()).map(|(row, _)| row);
        splits.train_rows = rows.collect();
        splits.train = valid(train_rows, &names(&train))?;
    }
    if cfg.data.eval_on_each_dataset {
        for (spec, rows) in eval.iter().zip(eval_rows) {
            splits.eval.push((spec.name.clone(), valid(rows, &spec.name)?));
        }
    } else if !eval.is_empty() {
        splits.eval.push((String::new(), valid(merge(eval_rows, cfg)?, &names(&eval))?));
    }
    Ok(splits)
}

/// Whether part of the training data is split off.
fn val_size(cfg: &Config) -> bool {
    cfg.data.val_size > 1e-6
}

fn names(specs: &[DatasetSpec]) -> String {
    specs.iter().map(|spec| spec.name.as_str()).collect::<Vec<_>>().join(",")
}

/// The data sets of training and of evaluation.
fn specs(cfg: &Config) -> Result<(Vec<DatasetSpec>, Vec<DatasetSpec>)> {
    let data = &cfg.data;
    if val_size(cfg) && !data.eval_dataset.is_empty() {
        return Err(Error::config("val_size", "cannot be given together with `eval_dataset`"));
    }
    if data.dataset.is_empty() && data.eval_dataset.is_empty() && data.tutorial.is_none() {
        return Err(Error::config("dataset", "is not given: name a data set or a file"));
    }
    let mut train = registry::find(&data.dataset, &data.dataset_dir)?;
    if let Some(tutorial) = data.tutorial.as_ref().filter(|_| train.is_empty()) {
        let path = match &tutorial.metadata_path {
            // A relative path that is not there may be meant inside the data folder.
            Some(file) if !file.exists() => tutorial.train_data_dir.join(file),
            Some(file) => file.clone(),
            None => tutorial.train_data_dir.clone(),
        };
        let name = path.file_stem().map_or_else(|| "train".into(), |stem| stem.to_string_lossy().into_owned());
        train.push(registry::from_path(&name, &path, true)?);
    }
    Ok((train, registry::find(&data.eval_dataset, &data.dataset_dir)?))
}

fn load_one(
    spec: &DatasetSpec,
    cfg: &Config,
    rng: &mut LegacyRandom,
    progress: &dyn Fn(&str, usize),
) -> Result<(Vec<Aligned>, DatasetReport)> {
    let mut aligner = Aligner::new(spec, cfg.tune.stage, usize::MAX);
    // With `num_samples` the cut comes after the picking.
    let most = cfg.data.max_samples.filter(|_| spec.num_samples.is_none()).unwrap_or(usize::MAX);
    let mut rows: Vec<Aligned> = Vec::new();
    while rows.len() < most
        && let Some(row) = aligner.next()
    {
        rows.push(row?);
        if rows.len().is_multiple_of(1000) {
            progress(&spec.name, rows.len());
        }
    }
    aligner.check_columns()?;
    progress(&spec.name, rows.len());
    let report = aligner.report();
    let wrong = |why: String| Err(Error::Dataset { name: spec.name.clone(), why });
    if rows.is_empty() {
        return wrong("is empty: its files hold no rows".into());
    }
    if report.valid() == 0 {
        let reasons: Vec<String> = report.skipped.iter().map(|(why, rows)| format!("{why} ({rows})")).collect();
        return wrong(format!("holds no valid row; of {} were skipped: {}", report.rows, reasons.join(", ")));
    }
    if !report.skipped.is_empty() {
        for (why, count) in &report.skipped {
            log::warn!("data set `{}`: {count} of {} rows skipped: {why}", spec.name, report.rows);
        }
    }
    if let Some(num_samples) = spec.num_samples {
        let mut picked = sample(rng, rows.len(), num_samples);
        picked.truncate(cfg.data.max_samples.unwrap_or(usize::MAX));
        rows = picked.into_iter().map(|row| rows.get(row).cloned().flatten()).collect();
    }
    Ok((rows, report))
}

/// Several data sets as one.
fn merge(mut all: Vec<Vec<Aligned>>, cfg: &Config) -> Result<Vec<Aligned>> {
    use crate::config::MixStrategy::Concat;
    if all.len() < 2 {
        return Ok(all.pop().unwrap_or_default());
    }
    if cfg.data.mix_strategy == Concat {
        return Ok(all.into_iter().flatten().collect());
    }
    let lengths: Vec<usize> = all.iter().map(Vec::len).collect();
    let picks = interleave(&lengths, cfg.data.interleave_probs.as_deref(), cfg.train.seed, cfg.data.mix_strategy)?;
    Ok(picks.into_iter().map(|pick| all.get(pick.source)?.get(pick.row)?.clone()).collect())
}

/// The valid rows.
fn valid(rows: Vec<Aligned>, name: &str) -> Result<Vec<Record>> {
    let total = rows.len();
    let valid: Vec<Record> = rows.into_iter().flatten().collect();
    if valid.is_empty() {
        return Err(Error::Dataset { name: name.into(), why: format!("none of its {total} rows holds a valid sample") });
    }
    Ok(valid)
}
