//! Words as Python's `jieba.cut` gives them: the `jieba-rs` crate where the two agree, our own rules where they do not.
//!
//! Both look for the likeliest path through the same dictionary, and both leave what it lacks to the same hidden Markov
//! model. They differ in two things. Which characters are text at all: Python's are the ideographs up to U+9FD5, ASCII
//! letters and digits and a few signs; each other character is a word of its own. And where a run of letters and digits
//! ends: the crate keeps `well-known` and `1.2.3` whole, Python does not.

use std::sync::OnceLock;

use jieba_rs::Jieba;

/// The words of `text`, in order; together they are `text`.
pub fn cut(text: &str) -> Vec<&str> {
    let mut words = Vec::with_capacity(text.len() / 3 + 1);
    let mut rest = text;
    while let Some(first) = rest.chars().next() {
        let block = match is_text(first) {
            true => rest.find(|c| !is_text(c)).unwrap_or(rest.len()),
            false => first.len_utf8(),
        };
        let (block, after) = rest.split_at(block);
        match is_text(first) {
            true => cut_block(block, &mut words),
            false => words.push(block),
        }
        rest = after;
    }
    words
}

/// Characters that `jieba.cut` hands to its dictionary.
fn is_text(c: char) -> bool {
    matches!(c, '\u{4E00}'..='\u{9FD5}' | 'a'..='z' | 'A'..='Z' | '0'..='9' | '+' | '#' | '&' | '.' | '_' | '%' | '-')
}

/// A block of such characters.
fn cut_block<'t>(block: &'t str, words: &mut Vec<&'t str>) {
    let jieba = dictionary();
    for token in jieba.cut(block, true) {
        let word = token.word;
        // ASCII outside the dictionary comes from the crate's own rule for letters and digits.
        match word.len() > 1 && word.is_ascii() && !jieba.has_word(word) {
            true => cut_ascii(word, words),
            false => words.push(word),
        }
    }
}

/// Splits ASCII into numbers and names, `[a-zA-Z0-9]+(\.\d+)?%?`, and what stands between them.
fn cut_ascii<'t>(text: &'t str, words: &mut Vec<&'t str>) {
    let mut rest = text;
    while !rest.is_empty() {
        let run = match leading(rest, |b| b.is_ascii_alphanumeric()) {
            0 => leading(rest, |b| !b.is_ascii_alphanumeric()),
            n => n + after_name(&rest[n..]),
        };
        let (word, after) = rest.split_at(run);
        words.push(word);
        rest = after;
    }
}

/// Bytes of `(\.\d+)?%?` at the start of ASCII `text`.
fn after_name(text: &str) -> usize {
    let decimals = match text.strip_prefix('.') {
        Some(after) => leading(after, |b| b.is_ascii_digit()),
        None => 0,
    };
    let number = if decimals > 0 { 1 + decimals } else { 0 };
    number + usize::from(text[number..].starts_with('%'))
}

/// How many bytes at the start of `text` are so.
fn leading(text: &str, is: impl Fn(u8) -> bool) -> usize {
    text.bytes().take_while(|&b| is(b)).count()
}

/// jieba's default dictionary, unpacked when it is first asked for.
fn dictionary() -> &'static Jieba {
    static DICTIONARY: OnceLock<Jieba> = OnceLock::new();
    DICTIONARY.get_or_init(Jieba::new)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_numbers_end_as_in_python() {
        let split = |text| {
            let mut words = Vec::new();
            cut_ascii(text, &mut words);
            words
        };
        assert_eq!(split("well-known"), ["well", "-", "known"]);
        assert_eq!(split("1.2.3"), ["1.2", ".", "3"]);
        assert_eq!(split("v1.5%%"), ["v1.5%", "%"]);
        assert_eq!(split("a.b"), ["a", ".", "b"]);
        assert_eq!(split("....5"), ["....", "5"]);
        assert_eq!(split("50%-60%"), ["50%", "-", "60%"]);
    }

    #[test]
    fn words_make_up_the_text() {
        for text in ["", " ", "\r\n", "我来到北京清华大学", "AT&T 的 C++ 和 c#。\n3.14%", "𠀀𠀁鿿!", "e\u{301}👩‍👩‍👧"]
        {
            assert_eq!(cut(text).concat(), text);
        }
    }
}
