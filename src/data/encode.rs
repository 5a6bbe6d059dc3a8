//! From records to samples: tokens, truncation, and which tokens are trained.

use std::sync::Mutex;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use super::cache;
use super::pack;
use super::template::Template;
use super::tokenizer::Tokenizer;
use super::{Record, Role, Sample};
use crate::config::{Config, DataConfig, Stage};
use crate::error::{Error, Result};

/// Called with (rows done, rows in all), from any thread.
pub type Progress<'a> = &'a (dyn Fn(usize, usize) + Sync);

/// Rows that a thread takes at a time.
const CHUNK: usize = 64;

/// What [`prepare`] made.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Prepared {
    pub samples: Vec<Sample>,
    /// Why rows were left out, and how many for each reason.
    pub dropped: Vec<(String, usize)>,
    /// Whether the samples were read from the cache.
    pub from_cache: bool,
}

/// Tokenises `records` by the config's stage, cutoff, masks and packing, on all cores; the result is the same for any
/// number of threads. Results are kept in the cache folder under a key made of `digest` (which stands for the records),
/// the tokenizer, the template and every setting that matters.
///
/// # Errors
/// [`Error::Dataset`] if nothing is left, if no token is left to train, or a row's tools or function call are malformed;
/// [`Error::Config`] if `cutoff_len` leaves no room.
pub fn prepare(
    records: Vec<Record>,
    config: &Config,
    tokenizer: &Tokenizer,
    template: &Template,
    digest: &[u8],
    progress: Progress<'_>,
) -> Result<Prepared> {
    let key = cache::key(&records, config, tokenizer, template, digest);
    if !config.data.overwrite_cache
        && let Some(found) = cache::read(&key)
    {
        progress(records.len(), records.len());
        return Ok(found);
    }
    let threads = config.train.threads.unwrap_or_else(|| std::thread::available_parallelism().map_or(1, |n| n.get()));
    let made = tokenise(&records, config, tokenizer, template, threads, progress)?;
    cache::write(&key, &made);
    Ok(made)
}

/// [`prepare`] without a cache, on `threads` threads.
///
/// # Errors
/// As [`prepare`].
pub fn tokenise(
    records: &[Record],
    config: &Config,
    tokenizer: &Tokenizer,
    template: &Template,
    threads: usize,
    progress: Progress<'_>,
) -> Result<Prepared> {
    let name = || config.data.dataset.join(",");
    let cutoff = cutoff(config)?;
    let encoded: Vec<Encoded> = match config.tune.stage {
        Stage::Sft => on_threads(records, threads, progress, |row, record| {
            supervised(record, tokenizer, template, &config.data, cutoff).map_err(|e| match e {
                Error::Tokenizer(why) => Error::Dataset { name: name(), why: format!("row {}: {why}", row + 1) },
                e => e,
            })
        })?,
        Stage::Pt => {
            let end = end_of_text(tokenizer, &config.data)?;
            on_threads(records, threads, progress, |_, record| pretrain(record, tokenizer, &end, &config.data, cutoff))?
        }
    };
    let mut dropped = Vec::new();
    let mut samples = Vec::with_capacity(encoded.len());
    for rows in groups(encoded.len(), workers(config), config.data.preprocessing_batch_size) {
        let mut kept: Vec<Sample> = Vec::new();
        for e in encoded.get(rows).unwrap_or_default() {
            match e {
                Encoded::Kept(s) => kept.push(s.clone()),
                Encoded::Dropped(why) => count(&mut dropped, why),
            }
        }
        match (config.tune.stage, config.data.packing) {
            (_, false) => samples.append(&mut kept),
            (Stage::Sft, true) => {
                let (mut rows, too_long) = pack::knapsack(kept, cutoff, config.data.neat_packing);
                samples.append(&mut rows);
                (0..too_long).for_each(|_| count(&mut dropped, "longer than cutoff_len"));
            }
            (Stage::Pt, true) => samples.append(&mut pack::blocks(&kept, cutoff)),
        }
    }
    for s in &samples {
        let pieces: u64 = s.pieces.iter().map(|&n| u64::from(n)).sum();
        assert!(s.ids.len() == s.trained.len() && pieces == s.ids.len() as u64, "a sample is inconsistent");
    }
    if samples.is_empty() {
        let reasons: Vec<String> = dropped.iter().map(|(why, n)| format!("{n} {why}")).collect();
        let why = match (config.tune.stage, reasons.is_empty()) {
            _ if records.is_empty() => "it has no rows".to_string(),
            (Stage::Pt, true) => format!("its texts do not fill one block of cutoff_len {}", config.data.cutoff_len),
            _ => format!("no sample is left of {} rows: {}", records.len(), reasons.join(", ")),
        };
        return Err(Error::Dataset { name: name(), why });
    }
    if !samples.iter().any(|s| s.trained.contains(&true)) {
        let why = format!(
            "every sample was truncated to a prompt without an answer; raise cutoff_len (it is {})",
            config.data.cutoff_len
        );
        return Err(Error::Dataset { name: name(), why });
    }
    for (why, n) in &dropped {
        log::warn!("data set `{}`: {n} rows were left out: {why}", name());
    }
    Ok(Prepared { samples, dropped, from_cache: false })
}

fn count(dropped: &mut Vec<(String, usize)>, why: &str) {
    match dropped.iter_mut().find(|(w, _)| w == why) {
        Some((_, n)) => *n += 1,
        None => dropped.push((why.to_string(), 1)),
    }
}

/// What became of a record.
enum Encoded {
    Kept(Sample),
    Dropped(&'static str),
}

/// Most tokens of a row. One less than `cutoff_len` if the user asked for packing: LLaMA-Factory keeps a place for a pad
/// token then, but not where packing is only pretraining's default.
fn cutoff(config: &Config) -> Result<usize> {
    let asked = |key: &str| config.written.iter().any(|(k, v)| k == key && truthy(v));
    let packed = config.data.packing && (config.tune.stage == Stage::Sft || asked("packing") || asked("neat_packing"));
    match config.data.cutoff_len - usize::from(packed).min(config.data.cutoff_len) {
        0 => Err(Error::config("cutoff_len", "must be at least 2 with packing")),
        n => Ok(n),
    }
}

fn truthy(v: &serde_json::Value) -> bool {
    match v {
        serde_json::Value::Bool(b) => *b,
        serde_json::Value::String(s) => matches!(s.to_lowercase().as_str(), "true" | "yes" | "on" | "y"),
        _ => false,
    }
}

/// `preprocessing_num_workers` as written: it decides which rows can be packed together.
fn workers(config: &Config) -> usize {
    let n = config.written.iter().rev().find(|(k, _)| k == "preprocessing_num_workers").map(|(_, v)| v);
    let n = n.and_then(|v| v.as_u64().or_else(|| v.as_str()?.trim().parse().ok())).unwrap_or(1);
    if config.data.streaming { 1 } else { usize::try_from(n).unwrap_or(1).max(1) }
}

/// The rows that LLaMA-Factory hands to its processor at a time: `n` rows in `workers` contiguous shares, the first ones
/// longer by one, each in batches. (The `datasets` library's `map` with `num_proc`.)
pub(super) fn groups(n: usize, workers: usize, batch: usize) -> Vec<std::ops::Range<usize>> {
    let (workers, batch) = (workers.clamp(1, n.max(1)), batch.max(1));
    let mut out = Vec::new();
    let mut start = 0;
    for w in 0..workers {
        let end = start + n / workers + usize::from(w < n % workers);
        while start < end {
            let stop = end.min(start + batch);
            out.push(start..stop);
            start = stop;
        }
    }
    out
}

/// A conversation: each turn's prompt and answer cut to what room is left, answers trained.
fn supervised(
    record: &Record,
    tokenizer: &Tokenizer,
    template: &Template,
    data: &DataConfig,
    cutoff: usize,
) -> Result<Encoded> {
    if record.messages.is_empty() || !record.messages.len().is_multiple_of(2) {
        return Ok(Encoded::Dropped("with turns that do not come in pairs of question and answer"));
    }
    let discard = data.mask_history && !template.preserve_thinking;
    let mut pairs = template.encode_multiturn(tokenizer, &record.messages, &record.system, &record.tools, discard)?;
    if data.mask_history {
        pairs.reverse(); // room goes to the last turn first
    }
    let mut used = 0;
    let mut turns: Vec<(Vec<u32>, Vec<bool>)> = Vec::with_capacity(pairs.len());
    for (i, (mut prompt, mut answer)) in pairs.into_iter().enumerate() {
        if used >= cutoff {
            break;
        }
        let (prompt_len, answer_len) = infer_seqlen(prompt.len(), answer.len(), cutoff - used);
        prompt.truncate(prompt_len);
        answer.truncate(answer_len);
        used += prompt_len + answer_len;
        let mut trained = vec![data.train_on_prompt; prompt_len];
        trained.resize(prompt_len + answer_len, !data.mask_history || i == 0);
        prompt.append(&mut answer);
        turns.push((prompt, trained));
    }
    if data.mask_history {
        turns.reverse();
    }
    let (ids, trained): (Vec<_>, Vec<_>) = turns.into_iter().unzip();
    Ok(sample(ids.concat(), trained.concat()))
}

/// Lengths of prompt and answer within `cutoff` tokens: a side that takes less than half is kept whole, otherwise both
/// are cut in proportion.
pub(super) fn infer_seqlen(prompt: usize, answer: usize, cutoff: usize) -> (usize, usize) {
    let most = if answer * 2 < cutoff {
        cutoff
    } else if prompt * 2 < cutoff {
        cutoff - prompt
    } else {
        // In floating point and truncated, as LLaMA-Factory computes it.
        (cutoff as f64 * (answer as f64 / (prompt + answer) as f64)) as usize
    };
    let answer = answer.min(most);
    (prompt.min(cutoff.saturating_sub(answer)), answer)
}

/// What ends each text of pretraining.
fn end_of_text(tokenizer: &Tokenizer, data: &DataConfig) -> Result<String> {
    if data.template.as_deref() == Some("llama3") {
        return Ok("<|end_of_text|>".into());
    }
    tokenizer.eos().map(str::to_string).ok_or_else(|| Error::Tokenizer("has no eos token to end a text with".into()))
}

/// A text and its end, every token trained but those equal to the pad token, as LLaMA-Factory's collator labels them.
fn pretrain(record: &Record, tokenizer: &Tokenizer, end: &str, data: &DataConfig, cutoff: usize) -> Result<Encoded> {
    let Some(first) = record.messages.first().filter(|m| m.role == Role::User) else {
        return Ok(Encoded::Dropped("without a text"));
    };
    let mut ids = tokenizer.encode(&format!("{}{end}", first.content))?;
    if !data.packing {
        ids.truncate(cutoff);
    }
    let pad = tokenizer.pad_id();
    let trained = ids.iter().map(|id| Some(*id) != pad).collect();
    Ok(sample(ids, trained))
}

fn sample(ids: Vec<u32>, trained: Vec<bool>) -> Encoded {
    match u32::try_from(ids.len()) {
        Ok(0) => Encoded::Dropped("without a single token"),
        Ok(n) => Encoded::Kept(Sample { ids, trained, pieces: vec![n], block_diagonal: false }),
        Err(_) => Encoded::Dropped("longer than 4294967295 tokens"),
    }
}

/// `f` over every record (with its index) on `threads` threads; results in order. Of several errors the first row's counts.
fn on_threads<T: Send>(
    records: &[Record],
    threads: usize,
    progress: Progress<'_>,
    f: impl Fn(usize, &Record) -> Result<T> + Sync,
) -> Result<Vec<T>> {
    let chunks: Vec<&[Record]> = records.chunks(CHUNK).collect();
    let (next, done, failed) = (AtomicUsize::new(0), AtomicUsize::new(0), AtomicBool::new(false));
    let results: Mutex<Vec<(usize, Result<Vec<T>>)>> = Mutex::new(Vec::with_capacity(chunks.len()));
    let work = || {
        // Chunks are taken in order, so when one fails every chunk before it has been taken and will be finished.
        while !failed.load(Ordering::Relaxed) {
            let c = next.fetch_add(1, Ordering::Relaxed);
            let Some(chunk) = chunks.get(c) else { break };
            let out: Result<Vec<T>> = chunk.iter().enumerate().map(|(i, r)| f(c * CHUNK + i, r)).collect();
            if out.is_err() {
                failed.store(true, Ordering::Relaxed);
            }
            results.lock().unwrap_or_else(|e| e.into_inner()).push((c, out));
            progress(done.fetch_add(chunk.len(), Ordering::Relaxed) + chunk.len(), records.len());
        }
    };
    std::thread::scope(|s| {
        for _ in 1..threads.clamp(1, chunks.len().max(1)) {
            s.spawn(work);
        }
        work();
    });
    let mut results = results.into_inner().unwrap_or_else(|e| e.into_inner());
    results.sort_by_key(|(c, _)| *c);
    let mut all = Vec::with_capacity(records.len());
    for (_, out) in results {
        all.append(&mut out?);
    }
    Ok(all)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longer_side_is_cut() {
        assert_eq!(infer_seqlen(3000, 100, 2048), (1948, 100));
        assert_eq!(infer_seqlen(3000, 3000, 2048), (1024, 1024));
        assert_eq!(infer_seqlen(100, 3000, 2048), (100, 1948));
        assert_eq!(infer_seqlen(10, 10, 2048), (10, 10));
        assert_eq!(infer_seqlen(1, 1, 1), (1, 0));
        assert_eq!(infer_seqlen(0, 0, 1), (0, 0));
    }

    #[test]
    fn groups_are_contiguous_shares_in_batches() {
        assert_eq!(groups(7, 1, 3), [0..3, 3..6, 6..7]);
        assert_eq!(groups(7, 3, 2), [0..2, 2..3, 3..5, 5..7]);
        assert_eq!(groups(2, 16, 1000), [0..1, 1..2]);
        assert!(groups(0, 4, 10).is_empty());
    }

    #[test]
    fn order_and_first_error_do_not_depend_on_threads() {
        let records = vec![Record { messages: vec![], system: String::new(), tools: String::new() }; 1000];
        for threads in [1, 3, 8] {
            let got = on_threads(&records, threads, &|_, _| {}, |i, _| Ok(i)).unwrap();
            assert_eq!(got, (0..1000).collect::<Vec<_>>());
            let e = on_threads(&records, threads, &|_, _| {}, |i, _| {
                if i % 200 == 199 { Err(Error::Tokenizer(i.to_string())) } else { Ok(()) }
            });
            assert_eq!(e.unwrap_err().to_string(), "tokenizer: 199", "{threads} threads");
        }
    }
}
