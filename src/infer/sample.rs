//! From logits to the next token: penalties, temperature, top-k, top-p, min-p, then a draw.
//!
//! Order and formulas are those of transformers' `generate` (its logits processors and warpers); presence and frequency
//! penalties, which it lacks, are OpenAI's and come right after the repetition penalty, as in vLLM. Probabilities are
//! computed in f64, so a sum at the border of top-p is decided by the logits and not by rounding.

use crate::config::GenerateConfig;
use crate::error::{Error, Result};
use crate::ops::philox::{Stream, words};
use crate::ops::sample::{self, Ask, Mark, Penalties, Picked, cpu};

/// The stream of random numbers that draws come from; training counts its modules up from 0.
const MODULE: u32 = 0xD4A3_0000;

/// So many candidates are looked at first for top-p; eight times as many each time that they do not reach it.
const TOP_P_START: usize = 64;

/// How the next token is chosen.
#[derive(Debug, Clone, PartialEq)]
pub struct Sampling {
    /// false: always the most likely token, and only the penalties below count.
    pub do_sample: bool,
    /// Divides the logits; 0 is greedy. `[0, inf)`.
    pub temperature: f64,
    /// Keeps the k most likely tokens (and those as likely as the last of them); 0 is off.
    pub top_k: usize,
    /// Keeps the fewest most likely tokens whose probabilities reach this; 1 is off. `[0, 1]`.
    pub top_p: f64,
    /// Keeps tokens at least this many times as likely as the most likely one; 0 is off. `[0, 1]`.
    pub min_p: f64,
    /// Divides the positive logits of tokens in prompt or answer and multiplies their negative ones; 1 is off. Above 0.
    pub repetition_penalty: f64,
    /// Taken from the logits of tokens in the answer, once; 0 is off. `[-2, 2]`.
    pub presence_penalty: f64,
    /// Taken from the logits of tokens in the answer, for each time they stand there; 0 is off. `[-2, 2]`.
    pub frequency_penalty: f64,
    /// Of the draws. The same seed, prompt and settings give the same answer, alone or in a batch.
    pub seed: u64,
}

impl Sampling {
    /// As a config's generation keys say.
    pub fn of(config: &GenerateConfig, seed: u64) -> Sampling {
        Sampling {
            do_sample: config.do_sample,
            temperature: config.temperature,
            top_k: config.top_k,
            top_p: config.top_p,
            min_p: config.min_p,
            repetition_penalty: config.repetition_penalty,
            presence_penalty: config.presence_penalty,
            frequency_penalty: config.frequency_penalty,
            seed,
        }
    }

    /// The most likely token each time, without penalties.
    pub fn greedy() -> Sampling {
        Sampling {
            do_sample: false,
            temperature: 1.0,
            top_k: 0,
            top_p: 1.0,
            min_p: 0.0,
            repetition_penalty: 1.0,
            presence_penalty: 0.0,
            frequency_penalty: 0.0,
            seed: 0,
        }
    }

    /// Whether no random number is ever drawn.
    pub fn is_greedy(&self) -> bool {
        !self.do_sample || self.temperature == 0.0
    }

    /// # Errors
    /// [`Error::Config`] naming the setting that is out of its bounds.
    pub fn check(&self) -> Result<()> {
        // What is allowed is tested, so that a NaN fails.
        let bounds: [(&str, f64, bool, &str); 6] = [
            ("temperature", self.temperature, (0.0..f64::INFINITY).contains(&self.temperature), "0 or more"),
            ("top_p", self.top_p, (0.0..=1.0).contains(&self.top_p), "in [0, 1]"),
            ("min_p", self.min_p, (0.0..=1.0).contains(&self.min_p), "in [0, 1]"),
            (
                "repetition_penalty",
                self.repetition_penalty,
                self.repetition_penalty > 0.0 && self.repetition_penalty.is_finite(),
                "above 0",
            ),
            ("presence_penalty", self.presence_penalty, (-2.0..=2.0).contains(&self.presence_penalty), "in [-2, 2]"),
            ("frequency_penalty", self.frequency_penalty, (-2.0..=2.0).contains(&self.frequency_penalty), "in [-2, 2]"),
        ];
        match bounds.into_iter().find(|(_, _, fits, _)| !fits) {
            Some((key, got, _, expected)) => Err(Error::config(key, format!("must be {expected}; got {got}"))),
            None => Ok(()),
        }
    }
}

/// A token that can still be drawn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Candidate {
    pub id: u32,
    /// In proportion to its probability; the most likely token's is 1.
    pub weight: f64,
}

/// Chooses the tokens of one request. What it holds besides the settings is scratch, so that a step allocates nothing.
#[derive(Debug, Clone)]
pub struct Sampler {
    sampling: Sampling,
    candidates: Vec<Candidate>,
    /// The largest logits, while the k-th is looked for.
    top: Vec<f32>,
    /// Tokens that are penalised.
    marks: Vec<Mark>,
    /// A bit per id: whether it is marked already.
    seen: Vec<u64>,
    /// Ids of the answer, sorted to be counted.
    answer: Vec<u32>,
}

impl Sampler {
    /// # Errors
    /// Those of [`Sampling::check`].
    pub fn new(sampling: Sampling) -> Result<Sampler> {
        sampling.check()?;
        let (candidates, top, marks) = (Vec::new(), Vec::new(), Vec::new());
        Ok(Sampler { sampling, candidates, top, marks, seen: Vec::new(), answer: Vec::new() })
    }

    /// The token to stand at `position` (counted from the prompt's first token) after `history`, prompt and answer so
    /// far, of which `prompt_len` tokens are the prompt. `logits` (vocabulary) are changed by the penalties.
    ///
    /// Greedy takes the lowest id among equals. A draw depends on the logits, the seed and `position` alone.
    ///
    /// # Errors
    /// [`Error::Diverged`] if a logit is not a finite number; [`Error::Shape`] if there are none, or an id of `history`
    /// lies beyond them.
    pub fn pick(&mut self, logits: &mut [f32], history: &[u32], prompt_len: usize, position: usize) -> Result<u32> {
        if self.sampling.is_greedy() {
            let max = self.penalised_max(logits, history, prompt_len, position)?;
            // The maximum is one of them, and no NaN is: there is such a place.
            return Ok(logits.iter().position(|&x| x == max).unwrap_or(0) as u32);
        }
        self.distribution(logits, history, prompt_len, position)?;
        self.draw(position)
    }

    /// What [`Sampler::pick`] needs of `vocab` logits, with penalties by `history`, for [`Sampler::pick_from`]; None if that is all
    /// of them.
    ///
    /// # Errors
    /// [`Error::Shape`] if an id of `history` lies beyond them.
    pub fn ask(&mut self, vocab: usize, history: &[u32], prompt_len: usize) -> Result<Option<Ask<'_>>> {
        let greedy = self.sampling.is_greedy();
        let top_k = if greedy { 0 } else { self.sampling.top_k };
        if !greedy && !(1..vocab.min(sample::CANDIDATES + 1)).contains(&top_k) {
            return Ok(None);
        }
        self.mark(vocab, history, prompt_len)?;
        Ok(Some(Ask { penalties: self.penalties(), marks: &self.marks, top_k }))
    }

    /// As [`Sampler::pick`], from what was asked for.
    ///
    /// # Errors
    /// [`Error::Shape`] if there is no candidate.
    pub fn pick_from(&mut self, picked: &Picked, position: usize) -> Result<u32> {
        if self.sampling.is_greedy() {
            return Ok(picked.id);
        }
        self.weigh(picked.max, picked.candidates.iter().copied());
        self.draw(position)
    }

    /// One of the candidates.
    fn draw(&self, position: usize) -> Result<u32> {
        let (u, candidates) = (draw(self.sampling.seed, position as u64), &self.candidates);
        let target = u * candidates.iter().map(|c| c.weight).sum::<f64>();
        let mut sum = 0.0;
        let found = candidates.iter().find(|c| {
            sum += c.weight;
            sum > target
        });
        // u * total may round up to the total: then the last that can be drawn is meant.
        let chosen = found.or_else(|| candidates.iter().rev().find(|c| c.weight > 0.0));
        chosen.map(|c| c.id).ok_or_else(|| Error::shape("logits", "leave no token to draw from"))
    }

    /// What [`Sampler::pick`] would draw from, in no particular order: never empty, weights not divided by their sum.
    ///
    /// # Errors
    /// As [`Sampler::pick`].
    pub fn distribution(
        &mut self,
        logits: &mut [f32],
        history: &[u32],
        prompt_len: usize,
        position: usize,
    ) -> Result<&[Candidate]> {
        let max = self.penalised_max(logits, history, prompt_len, position)?;
        let least = if (1..logits.len()).contains(&self.sampling.top_k) {
            cpu::kth_largest(logits, self.sampling.top_k, &mut self.top)
        } else {
            f32::NEG_INFINITY
        };
        self.weigh(max, cpu::at_least(logits, least));
        Ok(&self.candidates)
    }

    /// Makes candidates of (id, logit), ascending by id, and drops those that top-p and min-p leave out. `max` is the largest logit.
    fn weigh(&mut self, max: f32, logits: impl Iterator<Item = (u32, f32)>) {
        let max = f64::from(max);
        let temperature = if self.sampling.temperature > 0.0 { self.sampling.temperature } else { 1.0 };
        let weight = |x: f32| ((f64::from(x) - max) / temperature).exp();
        self.candidates.clear();
        self.candidates.extend(logits.map(|(id, x)| Candidate { id, weight: weight(x) }));
        if self.sampling.top_p < 1.0 {
            keep_top_p(&mut self.candidates, self.sampling.top_p);
        }
        if self.sampling.min_p > 0.0 {
            // The most likely token weighs 1.
            let min_p = self.sampling.min_p;
            self.candidates.retain(|c| c.weight >= min_p);
        }
    }

    /// Applies the penalties and returns the largest logit.
    fn penalised_max(
        &mut self,
        logits: &mut [f32],
        history: &[u32],
        prompt_len: usize,
        position: usize,
    ) -> Result<f32> {
        if logits.is_empty() || u32::try_from(logits.len()).is_err() {
            return Err(Error::shape("logits", format!("has {} values; one for each token is needed", logits.len())));
        }
        check_finite(logits, position)?;
        self.mark(logits.len(), history, prompt_len)?;
        if !self.marks.is_empty() {
            cpu::penalise(logits, &self.penalties(), &self.marks);
            // A penalty near 0 can take a logit out of range.
            check_finite(logits, position)?;
        }
        Ok(cpu::max(logits))
    }

    fn penalties(&self) -> Penalties {
        let s = &self.sampling;
        Penalties { repetition: s.repetition_penalty, presence: s.presence_penalty, frequency: s.frequency_penalty }
    }

    /// Collects the tokens whose logits, of `vocab`, are penalised, each once.
    fn mark(&mut self, vocab: usize, history: &[u32], prompt_len: usize) -> Result<()> {
        let s = &self.sampling;
        let (repeated, counted) =
            (s.repetition_penalty != 1.0, s.presence_penalty != 0.0 || s.frequency_penalty != 0.0);
        self.marks.clear();
        if !repeated && !counted {
            return Ok(());
        }
        if let Some(id) = history.iter().find(|id| **id as usize >= vocab) {
            let why = format!("holds the id {id}, but there are logits for {vocab} tokens");
            return Err(Error::shape("history", why));
        }
        if counted {
            self.answer.clear();
            self.answer.extend_from_slice(history.get(prompt_len..).unwrap_or(&[]));
            self.answer.sort_unstable();
            let runs = self.answer.chunk_by(|a, b| a == b);
            self.marks.extend(runs.map(|same| Mark { id: same[0], count: same.len() as u32 }));
        }
        if repeated {
            self.seen.clear();
            self.seen.resize(vocab.div_ceil(64), 0);
            let seen = &mut self.seen;
            let mut is_new = |id: u32| {
                let (word, bit) = (&mut seen[id as usize / 64], 1 << (id % 64));
                let new = *word & bit == 0;
                *word |= bit;
                new
            };
            self.marks.iter().for_each(|m| _ = is_new(m.id));
            self.marks.extend(history.iter().filter(|id| is_new(**id)).map(|&id| Mark { id, count: 0 }));
        }
        Ok(())
    }
}

/// The uniform number for `position`, in [0, 1), with 53 bits.
fn draw(seed: u64, position: u64) -> f64 {
    let [a, b, ..] = words(Stream { seed, step: 0, module: MODULE }, position);
    ((u64::from(a) << 32 | u64::from(b)) >> 11) as f64 / (1u64 << 53) as f64
}

fn check_finite(logits: &[f32], step: usize) -> Result<()> {
    if cpu::all_finite(logits) {
        return Ok(());
    }
    let (id, x) = logits.iter().enumerate().find(|(_, x)| !x.is_finite()).unwrap_or((0, &f32::NAN));
    let why = format!("the logit of token {id} is {x}: the model's weights or an adapter are broken, or it diverged");
    Err(Error::Diverged { step, why })
}

/// Keeps a candidate if those before it, in descending order, have less than `top_p` of the weight: so that what is kept
/// reaches it, and the one that crosses the border stays. Among equals the higher ids come first, as a stable ascending
/// sort (transformers') leaves them. The first always stays.
fn keep_top_p(candidates: &mut Vec<Candidate>, top_p: f64) {
    let order = |a: &Candidate, b: &Candidate| b.weight.total_cmp(&a.weight).then(b.id.cmp(&a.id));
    let limit = top_p * candidates.iter().map(|c| c.weight).sum::<f64>();
    let mut looked_at = TOP_P_START;
    loop {
        let n = looked_at.min(candidates.len());
        if n < candidates.len() {
            candidates.select_nth_unstable_by(n, order);
        }
        candidates[..n].sort_unstable_by(order);
        let mut before = 0.0;
        let kept = candidates[..n].iter().take_while(|c| {
            let keep = before < limit;
            before += c.weight;
            keep
        });
        let kept = kept.count().max(1);
        if kept < n || n == candidates.len() {
            candidates.truncate(kept);
            return;
        }
        looked_at = looked_at.saturating_mul(8);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::Value;

    use super::*;

    fn sampled() -> Sampling {
        Sampling { do_sample: true, ..Sampling::greedy() }
    }

    fn pick(sampling: &Sampling, logits: &[f32], position: usize) -> u32 {
        Sampler::new(sampling.clone()).unwrap().pick(&mut logits.to_vec(), &[], 0, position).unwrap()
    }

    /// tests/golden/infer/make.py: transformers' processors in f64.
    #[test]
    fn distributions_are_transformers() {
        let cases: Vec<Value> = serde_json::from_str(include_str!("../../tests/golden/infer/sampling.json")).unwrap();
        assert!(cases.len() > 20);
        for (i, case) in cases.iter().enumerate() {
            let s = &case["settings"];
            let number = |key: &str| s[key].as_f64().unwrap();
            let sampling = Sampling {
                do_sample: true,
                temperature: number("temperature"),
                top_k: s["top_k"].as_u64().unwrap() as usize,
                top_p: number("top_p"),
                min_p: number("min_p"),
                repetition_penalty: number("repetition_penalty"),
                presence_penalty: number("presence_penalty"),
                frequency_penalty: number("frequency_penalty"),
                seed: 0,
            };
            let list = |key: &str| case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap());
            let history: Vec<u32> = list("history").map(|x| x as u32).collect();
            let mut logits: Vec<f32> = list("logits").map(|x| x as f32).collect();
            let prompt_len = case["prompt_len"].as_u64().unwrap() as usize;
            let largest = f64::from(logits.iter().fold(0.0f32, |m, x| m.max(x.abs())));
            let mut sampler = Sampler::new(sampling).unwrap();
            let got = sampler.distribution(&mut logits, &history, prompt_len, 0).unwrap();
            let total: f64 = got.iter().map(|c| c.weight).sum();
            let mut p = vec![0.0; logits.len()];
            for c in got {
                p[c.id as usize] = c.weight / total;
            }
            // A penalised logit is rounded to f32 at most twice, by 2^-24 of what it was or became (penalties make it at
            // most 1.3 times as large and then 4 larger); so is the maximum that it is compared with. An exponential
            // turns that into a relative error, and the division by the sum doubles it.
            let limit = 8.0 * (1.3 * largest + 4.0) / 16_777_216.0 / number("temperature") + 1e-12;
            for (id, want) in list("probabilities").enumerate() {
                let error = (p[id] - want).abs();
                assert!(error <= limit * want, "case {i} ({s}), id {id}: {} for {want}", p[id]);
            }
        }
    }

    /// How far `counts` are from `p`, and what that is below but for one time in 1e9 if they were drawn from it: Laurent
    /// and Massart's bound for a chi-square variable of d degrees of freedom, d + 2 sqrt(d t) + 2 t with t = ln 1e9.
    fn chi_square(counts: &[usize], p: &[f64]) -> (f64, f64) {
        let n: usize = counts.iter().sum();
        let chi = counts.iter().zip(p).map(|(&c, p)| (c as f64 - n as f64 * p).powi(2) / (n as f64 * p)).sum();
        let (d, t) = ((p.len() - 1) as f64, 1e9f64.ln());
        (chi, d + 2.0 * (d * t).sqrt() + 2.0 * t)
    }

    #[test]
    fn draws_follow_the_distribution() {
        let p = [0.02, 0.4, 0.08, 0.3, 0.15, 0.05];
        let logits: Vec<f32> = p.iter().map(|p| f64::ln(*p) as f32).collect();
        for seed in [0, 1, u64::MAX] {
            let mut sampler = Sampler::new(Sampling { seed, ..sampled() }).unwrap();
            let mut counts = [0; 6];
            for position in 0..50_000 {
                counts[sampler.pick(&mut logits.clone(), &[], 0, position).unwrap() as usize] += 1;
            }
            let (chi, limit) = chi_square(&counts, &p);
            assert!(chi <= limit, "seed {seed}: {counts:?}: {chi} > {limit}");
            // The test would see a shift of two hundredths.
            let (chi, limit) = chi_square(&counts, &[0.02, 0.38, 0.08, 0.32, 0.15, 0.05]);
            assert!(chi > limit, "seed {seed}: {chi} <= {limit}");
        }
    }

    #[test]
    fn a_draw_depends_on_seed_and_position_alone() {
        let logits: Vec<f32> = (0..1000).map(|i| (i * 37 % 101) as f32 / 50.0).collect();
        let sampling = Sampling { seed: 9, top_k: 200, top_p: 0.9, ..sampled() };
        let alone: Vec<u32> = (0..50).map(|i| pick(&sampling, &logits, i)).collect();
        let mut sampler = Sampler::new(sampling.clone()).unwrap();
        let mut used: Vec<u32> = (0..50).rev().map(|i| sampler.pick(&mut logits.clone(), &[], 0, i).unwrap()).collect();
        used.reverse();
        assert_eq!(alone, used);
        let other: Vec<u32> = (0..50).map(|i| pick(&Sampling { seed: 10, ..sampling.clone() }, &logits, i)).collect();
        assert_ne!(alone, other);
    }

    #[test]
    fn greedy_takes_the_lowest_of_equals() {
        let mut logits = vec![0.5; 40];
        (logits[17], logits[33]) = (2.0, 2.0);
        assert_eq!(pick(&Sampling::greedy(), &logits, 3), 17);
        assert_eq!(pick(&Sampling { temperature: 0.0, ..sampled() }, &logits, 3), 17);
        assert_eq!(pick(&Sampling { top_k: 1, seed: 4, ..sampled() }, &logits[..30], 3), 17);
        // Penalties count for greedy too.
        let mut sampler = Sampler::new(Sampling { presence_penalty: 0.1, ..Sampling::greedy() }).unwrap();
        assert_eq!(sampler.pick(&mut logits.clone(), &[33, 17], 1, 2).unwrap(), 33);
        assert_eq!(sampler.pick(&mut logits.clone(), &[33, 17], 2, 2).unwrap(), 17, "the prompt is not the answer");
        assert_eq!(pick(&Sampling { temperature: 1e-300, ..sampled() }, &[1.0, 3.0, 2.0], 0), 1);
    }

    /// A large vocabulary in every order: what is kept equals what a full sort keeps.
    #[test]
    fn partial_selection_equals_a_sort() {
        for (n, turn) in [(150_000usize, 7919usize), (150_000, 1), (5000, 4999), (65, 1), (64, 3)] {
            let logits: Vec<f32> = (0..n).map(|i| ((i * turn) % n / 3) as f32 * (20.0 / n as f32)).collect();
            let mut sorted: Vec<usize> = (0..n).collect();
            sorted.sort_by(|&a, &b| logits[b].total_cmp(&logits[a]).then(b.cmp(&a)));
            for k in [1, 2, 50, 64, n / 2, n - 1] {
                let least = cpu::kth_largest(&logits, k, &mut Vec::new());
                assert_eq!(least, logits[sorted[k - 1]], "{n} {turn} {k}");
            }
            for top_p in [0.1, 0.5, 0.97] {
                let mut sampler = Sampler::new(Sampling { top_p, ..sampled() }).unwrap();
                let got: Vec<usize> = sampler
                    .distribution(&mut logits.clone(), &[], 0, 0)
                    .unwrap()
                    .iter()
                    .map(|c| c.id as usize)
                    .collect();
                assert_eq!(got, sorted[..got.len()], "{n} {turn} {top_p}");
                let weight = |ids: &[usize]| ids.iter().map(|&i| f64::from(logits[i] - logits[sorted[0]]).exp()).sum();
                let (all, kept, less): (f64, f64, f64) = (weight(&sorted), weight(&got), weight(&got[..got.len() - 1]));
                // Sums of 150,000 f64 values in two orders.
                assert!(kept >= (top_p - 1e-10) * all && less < (top_p + 1e-10) * all, "{n} {turn} {top_p}");
            }
        }
    }

    #[test]
    fn what_is_no_number_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for sampling in [Sampling::greedy(), Sampling { top_k: 2, ..sampled() }] {
                let mut logits = vec![0.0; 100];
                logits[71] = bad;
                let e = Sampler::new(sampling).unwrap().pick(&mut logits, &[], 0, 12).unwrap_err().to_string();
                assert!(e.contains("step 12") && e.contains("token 71") && !e.contains('\n'), "{e}");
            }
        }
        // Made by a penalty, not by the model.
        let mut sampler = Sampler::new(Sampling { repetition_penalty: 1e-40, ..sampled() }).unwrap();
        assert!(sampler.pick(&mut [1.0, 2.0], &[1], 1, 0).is_err());
        assert!(sampler.pick(&mut [], &[], 0, 0).is_err());
        let e = sampler.pick(&mut [1.0, 2.0], &[2], 1, 0).unwrap_err().to_string();
        assert!(e.contains("id 2"), "{e}");
    }

    #[test]
    fn settings_out_of_bounds_are_refused_by_name() {
        let s = sampled;
        for (key, sampling) in [
            ("temperature", Sampling { temperature: -1.0, ..s() }),
            ("temperature", Sampling { temperature: f64::NAN, ..s() }),
            ("temperature", Sampling { temperature: f64::INFINITY, ..s() }),
            ("top_p", Sampling { top_p: 1.1, ..s() }),
            ("top_p", Sampling { top_p: f64::NAN, ..s() }),
            ("min_p", Sampling { min_p: -0.1, ..s() }),
            ("repetition_penalty", Sampling { repetition_penalty: 0.0, ..s() }),
            ("repetition_penalty", Sampling { repetition_penalty: f64::INFINITY, ..s() }),
            ("presence_penalty", Sampling { presence_penalty: 3.0, ..s() }),
            ("frequency_penalty", Sampling { frequency_penalty: f64::NAN, ..s() }),
        ] {
            let e = Sampler::new(sampling).unwrap_err().to_string();
            assert!(e.contains(&format!("`{key}`")), "{e}");
        }
    }
}
