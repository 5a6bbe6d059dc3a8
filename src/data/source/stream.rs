//! `streaming: true`: records in a stream's order, without holding the data: memory holds `buffer_size` of them.
//!
//! The order is that of `datasets` for one shard (`dataloader_num_workers` up to 1): data sets mixed, then shuffled
//! through a buffer, with another generator in each epoch. One difference: `datasets` splits the first `val_size` rows
//! off each epoch's order, so that from the second epoch on it trains on rows it evaluates; here they stay held out.

use std::collections::HashSet;

use super::align::Aligner;
use super::{Aligned, Record, names, specs, val_size};
use crate::config::{Config, MixStrategy};
use crate::data::order::{BufferShuffle, Mixer, stream_generator};
use crate::data::registry::DatasetSpec;
use crate::error::{Error, Result};

/// Rows after which a column that no row has had is an error.
const PATIENCE: usize = 1000;

/// Which row of which data set.
type Place = (usize, usize);

/// The training records of one epoch.
pub struct RecordStream {
    rows: BufferShuffle<Mixed, (Place, Aligned)>,
    held_out: HashSet<Place>,
    /// Whether a record came: an epoch without one is an error.
    any: bool,
    done: bool,
    names: String,
}

/// The training records of `epoch` (from 0), without the first `skip`: a resumed run goes on exactly where it was, by
/// reading up to there.
///
/// # Errors
/// As [`super::load`]; those of rows come as the stream reaches them, and end it.
pub fn stream(cfg: &Config, epoch: u64, skip: usize) -> Result<RecordStream> {
    let (train, _) = specs(cfg)?;
    for spec in train.iter().filter(|spec| spec.num_samples.is_some()) {
        log::warn!("data set `{}`: `num_samples` has no effect with `streaming`", spec.name);
    }
    let names = names(&train);
    let mut held_out = HashSet::new();
    for row in shuffled(train.clone(), cfg, 0)?.take(held(cfg)?) {
        held_out.insert(row?.0);
    }
    let mut records = RecordStream { rows: shuffled(train, cfg, epoch)?, held_out, any: false, done: false, names };
    for _ in 0..skip {
        match records.next() {
            Some(record) => _ = record?,
            None => break,
        }
    }
    Ok(records)
}

/// The evaluation records of a streamed run, named as in [`super::Splits`]: the first `val_size` rows of the stream,
/// or the `eval_dataset`s.
///
/// # Errors
/// As [`super::load`].
pub fn stream_eval(cfg: &Config) -> Result<Vec<(String, Vec<Record>)>> {
    let (train, eval) = specs(cfg)?;
    let collect = |name: &str, rows: &mut dyn Iterator<Item = Result<Aligned>>| {
        super::valid(rows.collect::<Result<_>>()?, name)
    };
    if val_size(cfg) {
        let mut rows = shuffled(train, cfg, 0)?.take(held(cfg)?).map(|row| Ok(row?.1));
        return Ok(vec![(String::new(), collect("validation split", &mut rows)?)]);
    }
    if cfg.data.eval_on_each_dataset {
        let one = |spec: &DatasetSpec| {
            let records = collect(&spec.name, &mut Aligner::new(spec, cfg.tune.stage, PATIENCE))?;
            Ok((spec.name.clone(), records))
        };
        return eval.iter().map(one).collect();
    }
    if eval.is_empty() {
        return Ok(Vec::new());
    }
    let names = names(&eval);
    let mut rows = shuffled(eval, cfg, 0)?.map(|row| Ok(row?.1));
    Ok(vec![(String::new(), collect(&names, &mut rows)?)])
}

/// Rows to hold out.
fn held(cfg: &Config) -> Result<usize> {
    match cfg.data.val_size {
        _ if !val_size(cfg) => Ok(0),
        size if size >= 1.0 => Ok(size as usize),
        size => Err(Error::config("val_size", format!("must be a whole number with `streaming`, got {size}"))),
    }
}

fn shuffled(specs: Vec<DatasetSpec>, cfg: &Config, epoch: u64) -> Result<BufferShuffle<Mixed, (Place, Aligned)>> {
    let rng = stream_generator(cfg.train.seed, epoch);
    let strategy = if specs.len() < 2 { MixStrategy::Concat } else { cfg.data.mix_strategy };
    let mixer = Mixer::new(specs.len(), cfg.data.interleave_probs.as_deref(), rng.clone(), strategy)?;
    let open = |spec: DatasetSpec| Open { rows: None, next: None, at: 0, spec };
    let mixed = Mixed { open: specs.into_iter().map(open).collect(), mixer, stage: cfg.tune.stage };
    Ok(BufferShuffle::new(mixed, cfg.data.buffer_size, rng))
}

/// Several data sets as one, read as they are needed.
struct Mixed {
    open: Vec<Open>,
    mixer: Mixer,
    stage: crate::config::Stage,
}

/// A data set being read, one row ahead: that its last row was taken must show at once.
struct Open {
    spec: DatasetSpec,
    rows: Option<Aligner>,
    next: Option<Result<Aligned>>,
    /// Number of the row in `next`.
    at: usize,
}

impl Mixed {
    fn take(&mut self, source: usize) -> Result<Option<(Place, Aligned)>> {
        let Some(open) = self.open.get_mut(source) else { return Ok(None) };
        if open.rows.is_none() {
            let mut rows = Aligner::new(&open.spec, self.stage, PATIENCE);
            open.next = rows.next();
            open.at = 0;
            open.rows = Some(rows);
        }
        let Some(row) = open.next.take() else {
            return Err(Error::Dataset { name: open.spec.name.clone(), why: "is empty: its files hold no rows".into() });
        };
        let place = (source, open.at);
        open.at += 1;
        if row.is_ok() {
            open.next = open.rows.as_mut().and_then(Iterator::next);
        }
        if open.next.is_none() {
            if let Some(rows) = open.rows.take() {
                rows.check_columns()?;
            }
            self.mixer.exhausted(source);
        }
        Ok(Some((place, row?)))
    }
}

impl Iterator for Mixed {
    type Item = Result<(Place, Aligned)>;

    fn next(&mut self) -> Option<Self::Item> {
        let source = self.mixer.next()?;
        self.take(source).transpose()
    }
}

impl Iterator for RecordStream {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        if self.done {
            return None;
        }
        loop {
            match self.rows.next() {
                Some(Ok((place, Some(record)))) if !self.held_out.contains(&place) => {
                    self.any = true;
                    return Some(Ok(record));
                }
                Some(Ok(_)) => {}
                Some(Err(e)) => {
                    self.done = true;
                    return Some(Err(e));
                }
                None => {
                    self.done = true;
                    let why = match self.held_out.len() {
                        0 => "holds no valid row".to_string(),
                        held => format!("`val_size` takes {held} rows and leaves no valid one to train on"),
                    };
                    return (!self.any).then(|| Err(Error::Dataset { name: self.names.clone(), why }));
                }
            }
        }
    }
}
