//! Several data sets as one: `datasets.interleave_datasets`.

use super::Generator;
use crate::config::MixStrategy;
use crate::error::{Error, Result};

/// One row of the mixed data set: row `row` of data set `source`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Pick {
    pub source: usize,
    pub row: usize,
}

/// Most rows an interleaved data set may have. A tiny probability under `interleave_over` asks for absurd numbers.
const MOST_ROWS: usize = 1 << 31;

/// Order of data sets of `lengths` rows, mixed. Without probabilities they take turns; with them each row's data set is
/// drawn from `default_rng(seed)`. `interleave_under` stops when the first data set is used up, `interleave_over` when
/// each was used up once (the short ones start again), `interleave_once` takes each row once.
///
/// Turns under `interleave_under` come in whole rounds, and under `interleave_over` as many rounds as the longest data
/// set has rows: a stream, which cannot know lengths, stops within the round instead (see [`Mixer`]).
///
/// # Errors
/// [`Error::Config`] for probabilities that are not one per data set, or can never use every data set up.
pub fn interleave(lengths: &[usize], probs: Option<&[f64]>, seed: u64, strategy: MixStrategy) -> Result<Vec<Pick>> {
    if strategy == MixStrategy::Concat {
        let rows = |(source, &length): (usize, &usize)| (0..length).map(move |row| Pick { source, row });
        return Ok(lengths.iter().enumerate().flat_map(rows).collect());
    }
    if lengths.contains(&0) {
        return Err(Error::config("mix_strategy", "cannot interleave a data set without rows"));
    }
    if probs.is_none() {
        let rounds = match strategy {
            MixStrategy::InterleaveUnder => lengths.iter().min(),
            _ => lengths.iter().max(),
        };
        let once = strategy == MixStrategy::InterleaveOnce;
        let turns = |round: usize| {
            let row = move |(source, &length): (usize, &usize)| {
                (round < length || !once).then(|| Pick { source, row: round % length })
            };
            lengths.iter().enumerate().filter_map(row)
        };
        return Ok((0..rounds.copied().unwrap_or(0)).flat_map(turns).collect());
    }
    let mut mixer = Mixer::new(lengths.len(), probs, Generator::new(seed), strategy)?;
    let mut next = vec![0; lengths.len()];
    let mut picks = Vec::new();
    while let Some(source) = mixer.next() {
        picks.push(Pick { source, row: next[source] });
        if picks.len() > MOST_ROWS {
            return Err(Error::config("interleave_probs", "asks for more than 2^31 rows: raise the smallest of them"));
        }
        next[source] += 1;
        if next[source] == lengths[source] {
            mixer.exhausted(source);
            next[source] = 0;
        }
    }
    Ok(picks)
}

/// Which data set the next row comes from, for data sets whose length shows only at their end. Tell it by
/// [`Mixer::exhausted`] as soon as the last row of one was taken.
pub struct Mixer {
    strategy: MixStrategy,
    exhausted: Vec<bool>,
    /// Cumulated probabilities, the last exactly 1.
    cumulated: Option<Vec<f64>>,
    rng: Generator,
    /// Draws are made a thousand at a time: the generator's state shows it, where a shuffle shares it.
    drawn: std::vec::IntoIter<usize>,
    turn: usize,
    /// Concatenated data sets are streamed one after another in random order.
    order: Vec<usize>,
}

impl Mixer {
    /// # Errors
    /// [`Error::Config`] for probabilities that are not one per data set, or can never use every data set up.
    pub fn new(sources: usize, probs: Option<&[f64]>, rng: Generator, strategy: MixStrategy) -> Result<Self> {
        let refuse = |why: String| Err(Error::config("interleave_probs", why));
        let mut cumulated = None;
        if let (Some(probs), true) = (probs, strategy != MixStrategy::Concat) {
            if probs.len() != sources {
                return refuse(format!("has {} numbers for {sources} data sets", probs.len()));
            }
            // NumPy's tolerance: the root of f64's epsilon.
            let sum: f64 = probs.iter().sum();
            if !(probs.iter().all(|p| (0.0..=1.0).contains(p)) && (sum - 1.0).abs() <= f64::EPSILON.sqrt()) {
                return refuse(format!("must be in [0, 1] and sum to 1, got {probs:?}"));
            }
            if strategy != MixStrategy::InterleaveUnder && probs.contains(&0.0) {
                return refuse("has a 0: that data set would never be used up, which this strategy waits for".into());
            }
            let mut running = 0.0;
            let mut edges: Vec<f64> = Vec::with_capacity(sources);
            for p in probs {
                running += p;
                edges.push(running);
            }
            edges.iter_mut().for_each(|edge| *edge /= running);
            cumulated = Some(edges);
        }
        let order = rng.clone().permutation(sources);
        let drawn = Vec::new().into_iter();
        Ok(Self { strategy, exhausted: vec![false; sources], cumulated, rng, drawn, turn: 0, order })
    }

    /// The data set to take a row from, or `None` at the end.
    #[allow(clippy::should_implement_trait)] // an iterator that must be told things between two calls is none
    pub fn next(&mut self) -> Option<usize> {
        let over = match self.strategy {
            MixStrategy::InterleaveUnder => self.exhausted.iter().any(|&e| e),
            _ => self.exhausted.iter().all(|&e| e),
        };
        if over {
            return None;
        }
        if self.strategy == MixStrategy::Concat {
            return self.order.iter().copied().find(|&source| self.exhausted.get(source) == Some(&false));
        }
        loop {
            let source = self.draw();
            if self.strategy != MixStrategy::InterleaveOnce || !*self.exhausted.get(source)? {
                return Some(source);
            }
        }
    }

    /// The last row of `source` was taken. Where the strategy takes more from it, it starts again.
    pub fn exhausted(&mut self, source: usize) {
        if let Some(exhausted) = self.exhausted.get_mut(source) {
            *exhausted = true;
        }
    }

    fn draw(&mut self) -> usize {
        let Some(cumulated) = &self.cumulated else {
            let source = self.turn;
            self.turn = (self.turn + 1) % self.exhausted.len();
            return source;
        };
        if let Some(source) = self.drawn.next() {
            return source;
        }
        let rng = &mut self.rng;
        let draws: Vec<usize> = (0..1000)
            .map(|_| {
                let u = rng.uniform();
                cumulated.partition_point(|&edge| edge <= u)
            })
            .collect();
        self.drawn = draws.into_iter();
        self.drawn.next().unwrap_or(0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn once_without_probabilities_takes_each_row_once() {
        let picks = interleave(&[1, 3, 2], None, 7, MixStrategy::InterleaveOnce).unwrap();
        let flat: Vec<(usize, usize)> = picks.iter().map(|p| (p.source, p.row)).collect();
        assert_eq!(flat, [(0, 0), (1, 0), (2, 0), (1, 1), (2, 1), (1, 2)]);
    }

    #[test]
    fn impossible_probabilities_are_refused() {
        let over = |probs: &[f64]| interleave(&[2, 2], Some(probs), 1, MixStrategy::InterleaveOver).unwrap_err().to_string();
        assert!(over(&[1.0]).contains("1 numbers for 2 data sets"));
        assert!(over(&[0.5, 0.4]).contains("sum to 1"));
        assert!(over(&[f64::NAN, 0.5]).contains("sum to 1"));
        assert!(over(&[1.0, 0.0]).contains("has a 0"));
        assert!(interleave(&[2, 0], None, 1, MixStrategy::InterleaveUnder).is_err());
    }
}
