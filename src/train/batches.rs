//! Which samples each optimizer step sees.

use super::inputs::{Inputs, SampleStream, TrainData};
use super::plan::Envelope;
use super::schedule::{Steps, Window};
use crate::config::Config;
use crate::data::batch::Padding;
use crate::data::order::epoch_order;
use crate::data::{Batch, Sample};
use crate::error::Result;

/// The micro-batches of a run, in order.
pub struct Batches<'a> {
    config: &'a Config,
    padding: Padding,
    source: Source<'a>,
}

enum Source<'a> {
    /// All samples, and the order of an epoch.
    Whole { samples: &'a [Sample], epoch: Option<u64>, order: Vec<usize> },
    /// A stream, and how many samples were taken from it.
    Stream { stream: Box<SampleStream<'a>>, taken: u64 },
}

impl<'a> Batches<'a> {
    /// # Errors
    /// Those of opening a stream.
    pub fn new(config: &'a Config, inputs: &'a Inputs) -> Result<Self> {
        let source = match &inputs.train {
            TrainData::Whole(samples) => Source::Whole { samples, epoch: None, order: Vec::new() },
            TrainData::Streamed => Source::Stream { stream: Box::new(SampleStream::new(config, inputs)?), taken: 0 },
        };
        Ok(Batches { config, padding: Padding::of(config), source })
    }

    /// The micro-batches of `window`.
    ///
    /// # Errors
    /// A malformed row of a stream.
    pub fn window(&mut self, window: Window) -> Result<Vec<Batch>> {
        let (size, padding) = (self.config.train.per_device_train_batch_size, self.padding);
        let numbers = window.first_batch..window.first_batch + window.batches;
        match &mut self.source {
            Source::Whole { samples, epoch, order } => {
                if *epoch != Some(window.epoch) {
                    *epoch = Some(window.epoch);
                    let seed = self.config.train.data_seed.unwrap_or(self.config.train.seed);
                    *order = match self.config.train.disable_shuffling {
                        true => (0..samples.len()).collect(),
                        false => epoch_order(samples.len(), seed, window.epoch),
                    };
                }
                let batch = |k: u64| {
                    let from = k as usize * size;
                    let rows: Vec<&Sample> =
                        order[from..(from + size).min(order.len())].iter().map(|&i| &samples[i]).collect();
                    Batch::collate(&rows, padding)
                };
                Ok(numbers.map(batch).collect())
            }
            Source::Stream { stream, taken } => {
                // A resumed run reads up to where it was: the same rows then give the same samples.
                while *taken < window.first_batch * size as u64 {
                    stream.next_sample()?;
                    *taken += 1;
                }
                numbers
                    .map(|_| {
                        let rows = (0..size).map(|_| stream.next_sample()).collect::<Result<Vec<_>>>()?;
                        *taken += size as u64;
                        Ok(Batch::collate(&rows.iter().collect::<Vec<_>>(), padding))
                    })
                    .collect()
            }
        }
    }
}

/// The steps of a run over these inputs.
///
/// # Errors
/// As [`Steps::plan`].
pub fn steps(config: &Config, inputs: &Inputs) -> Result<Steps> {
    let t = &config.train;
    match (&inputs.train, t.max_steps) {
        // A stream has no known length: the run is one long epoch, as transformers counts it.
        (TrainData::Streamed, Some(max)) => Steps::of(
            t,
            max.saturating_mul(t.per_device_train_batch_size).saturating_mul(t.gradient_accumulation_steps),
        ),
        (data, _) => Steps::of(t, data.samples().len()),
    }
}

/// The largest training and the largest evaluation batch of a run.
pub fn envelopes(config: &Config, inputs: &Inputs) -> (Envelope, Envelope) {
    let sizes = |s: &Sample| (s.ids.len(), s.trained.iter().skip(1).filter(|&&t| t).count());
    let size = config.train.per_device_train_batch_size;
    let train = match &inputs.train {
        TrainData::Whole(samples) => Envelope::of(samples.iter().map(sizes), size),
        TrainData::Streamed => Envelope::uniform(config.data.cutoff_len, size),
    };
    let eval = inputs.eval.iter().flat_map(|(_, samples)| samples);
    (train, Envelope::of(eval.map(sizes), config.train.per_device_eval_batch_size))
}
