//! ROUGE-1, -2 and -L of two texts by words, as the Python package `rouge-chinese` computes it.
//!
//!   ROUGE-n  over the sets of n-grams (each counts once):  P = both / prediction's,  R = both / label's
//!   ROUGE-L  P and R from the longest common subsequence of all words
//!   F        2 P R / (P + R + 1e-8)
//!
//! The package breaks a text into sentences first. What is left of that in its figures: a line of nothing but white
//! space is a word, the empty one. (Words are put together with spaces between, so an empty line inside a text is such a
//! line.)
//! Source: Lin 2004; `rouge-chinese` 1.0.3 for the empty words and the 1e-8.

use std::collections::HashSet;

/// F of ROUGE-1, ROUGE-2 and ROUGE-L, each in [0, 1]; 0 where a text has nothing but white space.
pub fn rouge(prediction: &[&str], label: &[&str]) -> [f64; 3] {
    let blank = |words: &[&str]| words.iter().all(|w| w.chars().all(is_space));
    if blank(prediction) || blank(label) {
        return [0.0; 3];
    }
    let (prediction, label) = (counted_words(prediction), counted_words(label));
    [overlap(&prediction, &label, 1), overlap(&prediction, &label, 2), longest_common(&prediction, &label)]
}

/// ROUGE-n.
fn overlap(prediction: &[String], label: &[String], n: usize) -> f64 {
    let grams = |words: &[String]| words.windows(n).map(<[String]>::to_vec).collect::<HashSet<_>>();
    let (prediction, label) = (grams(prediction), grams(label));
    let both = prediction.intersection(&label).count();
    f(both, prediction.len(), label.len())
}

/// ROUGE-L.
fn longest_common(prediction: &[String], label: &[String]) -> f64 {
    // best[j]: the longest of what came so far of `prediction` with the first j words of `label`.
    let mut best = vec![0usize; label.len() + 1];
    for word in prediction {
        let mut diagonal = 0;
        for (j, other) in label.iter().enumerate() {
            let above = best[j + 1];
            best[j + 1] = if word == other { diagonal + 1 } else { above.max(best[j]) };
            diagonal = above;
        }
    }
    f(best[label.len()], prediction.len(), label.len())
}

/// F from counts; a side without n-grams has precision or recall 0.
fn f(both: usize, prediction: usize, label: usize) -> f64 {
    let share = |all: usize| if all == 0 { 0.0 } else { both as f64 / all as f64 };
    let (p, r) = (share(prediction), share(label));
    2.0 * ((p * r) / (p + r + 1e-8))
}

/// The words that count: those of the text put together with spaces, sentence by sentence.
fn counted_words(words: &[&str]) -> Vec<String> {
    let text: Vec<char> = words.join(" ").chars().collect();
    let text = break_after(text, 1, |head| ENDS.contains(&head[0]), |c| !CLOSING.contains(&c));
    let text = break_after(text, 6, |head| head == ['.'; 6], |c| !CLOSING.contains(&c));
    let text = break_after(text, 2, |head| head == ['…'; 2], |c| !CLOSING.contains(&c));
    let quoted = |head: &[char]| ENDS.contains(&head[0]) && CLOSING.contains(&head[1]);
    let text: String = break_after(text, 2, quoted, |c| c != '，' && !ENDS.contains(&c)).into_iter().collect();
    let mut counted = Vec::with_capacity(words.len());
    for line in text.trim_end_matches(is_space).split('\n').filter(|line| !line.is_empty()) {
        let before = counted.len();
        counted.extend(line.split(is_space).filter(|w| !w.is_empty()).map(str::to_string));
        if counted.len() == before {
            counted.push(String::new());
        }
    }
    counted
}

const ENDS: [char; 4] = ['。', '！', '？', '?'];
const CLOSING: [char; 2] = ['”', '’'];

/// Puts a line break between each head of `length` characters and the character after it, where both are as asked; the
/// search goes on after that character.
fn break_after(
    text: Vec<char>,
    length: usize,
    head: impl Fn(&[char]) -> bool,
    next: impl Fn(char) -> bool,
) -> Vec<char> {
    let mut out = Vec::with_capacity(text.len() + text.len() / 8);
    let mut i = 0;
    while i < text.len() {
        match text.get(i..=i + length) {
            Some([matched @ .., after]) if head(matched) && next(*after) => {
                out.extend_from_slice(matched);
                out.extend(['\n', *after]);
                i += length + 1;
            }
            _ => {
                out.push(text[i]);
                i += 1;
            }
        }
    }
    out
}

/// White space as Python's `str.split` sees it: Unicode's, and four separators of ASCII.
fn is_space(c: char) -> bool {
    c.is_whitespace() || matches!(c, '\u{1c}'..='\u{1f}')
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn by_hand() {
        let close = |got: [f64; 3], want: [f64; 3]| {
            for (g, w) in got.iter().zip(want) {
                assert!((g - w).abs() < 1e-8, "{got:?} {want:?}");
            }
        };
        close(rouge(&["a", "b"], &["a", "b"]), [1.0, 1.0, 1.0]);
        close(rouge(&["a"], &["b"]), [0.0; 3]);
        close(rouge(&[], &["b"]), [0.0; 3]);
        close(rouge(&[" ", "\n"], &["b"]), [0.0; 3]);
        // {a, b} and {a, c}; no pair in common; "a a" is common to both in order.
        close(rouge(&["a", "b", "a"], &["a", "c", "a"]), [0.5, 0.0, 2.0 / 3.0]);
        // One word: no pairs at all.
        close(rouge(&["a"], &["a"]), [1.0, 0.0, 1.0]);
    }

    #[test]
    fn empty_lines_are_words() {
        assert_eq!(counted_words(&["a", "\n", "\n", "b"]), ["a", "", "b"]);
        assert_eq!(counted_words(&["\n", "a", "\n"]), ["a"]);
        assert_eq!(counted_words(&["是", "。", "\n", "b"]), ["是", "。", "", "b"]);
        assert_eq!(counted_words(&["？", "”", "，", "好"]), ["？", "”", "，", "好"]);
        assert_eq!(counted_words(&["a\u{1c}b"]), ["a", "b"]);
    }
}
