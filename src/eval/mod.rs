//! How good answers are: scores of texts, people's scores, and multiple-choice benchmarks.

mod bleu;
pub mod choice;
pub mod compare;
mod load;
pub mod predict;
mod rouge;
pub mod words;

#[cfg(test)]
mod tests;

use crate::train::json::round;

pub use bleu::bleu4;
pub use load::{Loaded, load};
pub use rouge::rouge;

/// Likeness of a prediction and its label, each in percent.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Scores {
    /// BLEU-4 by characters.
    pub bleu4: f64,
    /// F of ROUGE-1, -2 and -L by words.
    pub rouge1: f64,
    pub rouge2: f64,
    pub rouge_l: f64,
}

impl Scores {
    /// Of one pair, rounded to the 4th decimal as LLaMA-Factory does before it averages.
    pub fn of(prediction: &str, label: &str) -> Scores {
        let percent = |x: f64| round(x * 100.0, 4);
        let [rouge1, rouge2, rouge_l] = rouge(&words::cut(prediction), &words::cut(label)).map(percent);
        Scores { bleu4: percent(bleu4(prediction, label)), rouge1, rouge2, rouge_l }
    }

    /// Names as in LLaMA-Factory's result files, and values.
    pub fn named(&self) -> [(&'static str, f64); 4] {
        [("bleu-4", self.bleu4), ("rouge-1", self.rouge1), ("rouge-2", self.rouge2), ("rouge-l", self.rouge_l)]
    }
}

/// The mean over all pairs of (prediction, label); None without a pair.
pub fn score<'t>(pairs: impl IntoIterator<Item = (&'t str, &'t str)>) -> Option<Scores> {
    mean(pairs.into_iter().map(|(prediction, label)| Scores::of(prediction, label)))
}

/// The mean of each score; None of none.
fn mean(scores: impl IntoIterator<Item = Scores>) -> Option<Scores> {
    let all: Vec<Scores> = scores.into_iter().collect();
    let mean = |of: fn(&Scores) -> f64| all.iter().map(of).sum::<f64>() / all.len() as f64;
    (!all.is_empty()).then(|| Scores {
        bleu4: mean(|s| s.bleu4),
        rouge1: mean(|s| s.rouge1),
        rouge2: mean(|s| s.rouge2),
        rouge_l: mean(|s| s.rouge_l),
    })
}
