//! How far an exported model is from the one it was made from.

use std::path::{Path, PathBuf};

use super::{Job, gguf_lora};
use crate::config::{ExportFormat, NOTHING_TRAINED, TuneConfig};
use crate::data::batch::Padding;
use crate::data::tokenizer::Tokenizer;
use crate::data::{Batch, Sample};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{AdapterFile, Checkpoint, HfConfig};
use crate::model::{self, Model};
use crate::tensor::DType;
use crate::train::{plan, target};

/// Tokens of each sequence at most.
pub const LONGEST: usize = 32;

/// Some sequences to compare on: ordinary text, cut to [`LONGEST`] tokens, and ids from all over the vocabulary.
///
/// # Errors
/// As [`Tokenizer::encode`].
pub fn sequences(tokenizer: &Tokenizer, vocab: usize) -> Result<Vec<Vec<u32>>> {
    let texts = ["The capital of France is Paris, and 2 + 2 = 4.", "北京是中国的首都。今天天气很好。"];
    let mut all = Vec::new();
    for text in texts {
        let mut ids = tokenizer.encode(text)?;
        ids.truncate(LONGEST);
        ids.retain(|id| (*id as usize) < vocab);
        all.push(ids);
    }
    all.push((1..=LONGEST).map(|i| (i * 2_654_435_761 % vocab.max(1)) as u32).collect());
    all.retain(|ids| !ids.is_empty());
    Ok(all)
}

/// The logits after every token of each sequence.
///
/// # Errors
/// As [`Model::logits`].
pub fn logits(model: &Model, sequences: &[Vec<u32>]) -> Result<Vec<Vec<f64>>> {
    let of = |ids: &Vec<u32>| {
        let tokens = ids.len() as u32;
        let sample =
            Sample { ids: ids.clone(), trained: vec![false; ids.len()], pieces: vec![tokens], ..Sample::default() };
        let batch = Batch::collate(&[&sample], Padding { multiple_of: 1, at_least: 0 });
        Ok(model.logits(&batch, &(0..tokens).collect::<Vec<_>>())?.to_f64())
    };
    sequences.iter().map(of).collect()
}

/// The largest absolute difference; NaN if there is one, or if the shapes differ.
pub fn difference(a: &[Vec<f64>], b: &[Vec<f64>]) -> f64 {
    let lengths = |x: &[Vec<f64>]| x.iter().map(Vec::len).collect::<Vec<_>>();
    if lengths(a) != lengths(b) {
        return f64::NAN;
    }
    a.iter().flatten().zip(b.iter().flatten()).fold(0.0, |worst, (x, y)| larger(worst, (x - y).abs()))
}

/// The larger one; NaN stays.
pub(super) fn larger(worst: f64, d: f64) -> f64 {
    if worst.is_nan() || d <= worst { worst } else { d }
}

/// The largest absolute difference of two models' logits over `sequences`; NaN if one of them is no number. Where both do
/// not fit into memory together: [`logits`] of one after the other, and [`difference`].
///
/// # Errors
/// As [`Model::logits`].
pub fn verify(a: &Model, b: &Model, sequences: &[Vec<u32>]) -> Result<f64> {
    Ok(difference(&logits(a, sequences)?, &logits(b, sequences)?))
}

/// Reads back what [`super::export`] has written to `made` and compares it with base and adapter: the largest difference of
/// a logit, or, of an adapter in GGUF, of a number in it. One model is in memory at a time: in f32, or in bf16 where f32
/// would not fit.
///
/// # Errors
/// Whatever loading either of them gives; [`Error::File`] if a logit is no number.
pub fn read_back(job: &Job<'_>, made: &Path) -> Result<f64> {
    let (e, m) = (&job.config.export, &job.config.model);
    let adapters = &m.adapter_name_or_path;
    let base = HfConfig::open(job.base)?;
    let worst = match (e.format, &adapters[..]) {
        (ExportFormat::GgufLora, [adapter]) => {
            let adapter = AdapterFile::open_for(adapter, base.num_attention_heads, base.num_key_value_heads)?;
            gguf_lora::difference(made, &adapter, &base)?
        }
        _ => {
            let sequences = sequences(job.tokenizer, base.vocab_size.min(job.tokenizer.vocab_size()))?;
            let dtype = dtype_that_fits(job.base)?;
            let nf4 = (e.dequantized && m.quantization_bit.is_some()).then_some(m.double_quantization);
            let threads = target::threads(job.config);
            // The last adapter is used as it is, not merged.
            let method = TuneConfig { create_new_adapter: false, ..NOTHING_TRAINED.clone() };
            let logits_of = |path: &Path, adapters: &[PathBuf], nf4: Option<bool>| {
                let options = model::Options {
                    method: &method,
                    dtype,
                    nf4,
                    max_positions: LONGEST.min(base.max_position_embeddings),
                    rope_scaling: None,
                    adapters,
                    from_scratch: false,
                    config_only: false,
                    seed: 0,
                    threads,
                };
                logits(&model::load(path, &options, &Device::cpu(threads), &|_, _| {})?, &sequences)
            };
            difference(&logits_of(job.base, adapters, nf4)?, &logits_of(made, &[], None)?)
        }
    };
    match worst.is_finite() {
        true => Ok(worst),
        false => Err(Error::file(made, "was read back and does not give the numbers of base and adapter")),
    }
}

fn dtype_that_fits(base: &Path) -> Result<DType> {
    // Twice a 16-bit checkpoint, and some room.
    let bytes = Checkpoint::open(base)?.total_bytes().saturating_mul(5) / 2;
    let fits = plan::available_memory().is_none_or(|available| bytes < available);
    Ok(if fits { DType::F32 } else { DType::Bf16 })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_a_number_is_a_difference() {
        let d = |a: &[f64], b: &[f64]| difference(&[a.to_vec()], &[b.to_vec()]);
        assert_eq!(d(&[1.0, 2.0], &[1.5, 2.0]), 0.5);
        assert!(d(&[f64::NAN, 2.0], &[1.5, 1.0]).is_nan());
        assert!(d(&[1.0], &[1.0, 2.0]).is_nan());
        assert!(d(&[f64::INFINITY, 0.0], &[f64::INFINITY, 0.0]).is_nan());
    }
}
