//! BLEU-4 of two texts by characters, as NLTK's `sentence_bleu` computes it with smoothing method 3.
//!
//!   p_n   share of the prediction's n-grams that the label has too, each counted at most as often as there
//!   BLEU  bp * (p_1 p_2 p_3 p_4)^(1/4),  bp = 1 if the prediction is longer, else exp(1 - label / prediction)
//!
//! The k-th p_n that is 0 counts as 1 / (2^k * n-grams of the prediction); if p_1 is 0 so is BLEU.
//! Source: Papineni et al. 2002; Chen & Cherry 2014 (technique 3).

use std::collections::HashMap;

/// The longest n-gram.
const ORDERS: usize = 4;

/// BLEU-4 in [0, 1]; 0 where a text is empty.
pub fn bleu4(prediction: &str, label: &str) -> f64 {
    let (prediction, label): (Vec<char>, Vec<char>) = (prediction.chars().collect(), label.chars().collect());
    let mut log = 0.0;
    let mut misses = 0;
    for n in 1..=ORDERS {
        let (matched, all) = matches(&prediction, &label, n);
        if n == 1 && matched == 0 {
            return 0.0;
        }
        let precision = match matched {
            0 => {
                misses += 1;
                1.0 / (f64::from(1 << misses) * all as f64)
            }
            _ => matched as f64 / all as f64,
        };
        log += precision.ln() / ORDERS as f64;
    }
    let brevity = match prediction.len() > label.len() {
        true => 1.0,
        false => (1.0 - label.len() as f64 / prediction.len() as f64).exp(),
    };
    brevity * log.exp()
}

/// (n-grams of `prediction` that `label` has too, n-grams of `prediction`), the latter at least 1.
fn matches(prediction: &[char], label: &[char], n: usize) -> (usize, usize) {
    let mut left: HashMap<&[char], usize> = HashMap::new();
    label.windows(n).for_each(|gram| *left.entry(gram).or_default() += 1);
    let matched = prediction.windows(n).filter(|gram| match left.get_mut(gram) {
        Some(times) if *times > 0 => {
            *times -= 1;
            true
        }
        _ => false,
    });
    (matched.count(), prediction.windows(n).len().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        assert_eq!(bleu4("abcd", "abcd"), 1.0);
        assert_eq!((bleu4("", "a"), bleu4("a", ""), bleu4("", ""), bleu4("xyz", "abc")), (0.0, 0.0, 0.0, 0.0));
        // Precisions 1, 1, then 1/2 and 1/4 for what cannot match.
        assert!((bleu4("ab", "ab") - (0.125f64).powf(0.25)).abs() < 1e-15);
        // Counted once: p = 1/4, then three misses of 3, 2 and 1 n-grams.
        let want = (1.0 / 4.0 / 6.0 / 8.0 / 8.0f64).powf(0.25);
        assert!((bleu4("aaaa", "a") - want).abs() < 1e-15);
        // Half as long: brevity e^-1.
        assert!((bleu4("abcd", "abcdabcd") - (-1.0f64).exp()).abs() < 1e-15);
    }
}
