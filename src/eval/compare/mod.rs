//! Base and adapter side by side: for reading, and for people to score without knowing which is which.

mod scores;
mod sheet;

use std::path::Path;

use super::Scores;
use super::predict::Compared;
use crate::error::{Error, Result};
use crate::format::atomic::write_atomic;

pub use scores::{Verdict, sum_up};

/// What people read.
pub const COMPARISON: &str = "comparison.md";
/// What people score.
pub const SHEET: &str = "comparison.csv";
/// Which answer of the sheet is whose.
pub const KEY: &str = "comparison_key.json";

/// A question with both answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pair {
    pub prompt: String,
    pub label: String,
    /// The base's answer.
    pub base: String,
    /// The adapter's.
    pub tuned: String,
}

/// Whether [`write`] may write into `dir`: people's scores are not written over.
///
/// # Errors
/// [`Error::File`] naming the sheet.
pub fn check(dir: &Path) -> Result<()> {
    let sheet = dir.join(SHEET);
    match scores::is_filled(&sheet) {
        true => Err(Error::file(sheet, "holds scores, or is no sheet of this program: move it away to compare again")),
        false => Ok(()),
    }
}

/// Writes [`COMPARISON`], [`SHEET`] and [`KEY`] into `dir`. `seed` decides which answer comes first in which row.
///
/// # Errors
/// [`crate::Error::File`] if one cannot be written.
pub fn write(dir: &Path, compared: &Compared, seed: u64) -> Result<()> {
    write_atomic(&dir.join(COMPARISON), markdown(compared).as_bytes())?;
    let order = sheet::order(compared.pairs.len(), seed);
    write_atomic(&dir.join(SHEET), &sheet::csv(&dir.join(SHEET), &compared.pairs, &order)?)?;
    write_atomic(&dir.join(KEY), sheet::key(&order).as_bytes())
}

/// Scores and every pair, for people.
fn markdown(compared: &Compared) -> String {
    let mut text = String::from("# Base and adapter\n\n| | base | adapter |\n|---|---:|---:|\n");
    for (name, base, tuned) in rows_of_scores(compared.base, compared.tuned) {
        text += &format!("| {name} | {base:.4} | {tuned:.4} |\n");
    }
    for (i, pair) in compared.pairs.iter().enumerate() {
        text += &format!("\n## {}\n", i + 1);
        for (name, body) in
            [("Prompt", &pair.prompt), ("Label", &pair.label), ("Base", &pair.base), ("Adapter", &pair.tuned)]
        {
            text += &format!("\n**{name}**\n\n{}", fenced(body));
        }
    }
    text
}

fn rows_of_scores(base: Scores, tuned: Scores) -> impl Iterator<Item = (&'static str, f64, f64)> {
    base.named().into_iter().zip(tuned.named()).map(|((name, b), (_, t))| (name, b, t))
}

/// A text as it is, whatever it holds: the fence is longer than any in it.
fn fenced(body: &str) -> String {
    let longest = body.split(|c| c != '`').map(str::len).max().unwrap_or(0);
    let fence = "`".repeat(longest.max(2) + 1);
    format!("{fence}text\n{}\n{fence}\n", body.trim_end_matches('\n'))
}

/// The first `rows` pairs in columns of `width` cells each, and the scores, for a terminal.
pub fn table(compared: &Compared, rows: usize, width: usize) -> String {
    let line = |cells: [&str; 4]| {
        let cells: Vec<String> = cells.iter().map(|cell| fit(cell, width)).collect();
        format!("{}\n", cells.join("  ").trim_end())
    };
    let mut text = line(["prompt", "label", "base", "adapter"]);
    for p in compared.pairs.iter().take(rows) {
        // The end of a prompt is the question; its beginning is the system prompt, the same in each.
        text += &line([&last_line(&p.prompt), &p.label, &p.base, &p.tuned]);
    }
    if compared.pairs.len() > rows {
        text += &format!("... and {} more\n", compared.pairs.len() - rows);
    }
    text += "\n";
    text += &line(["", "", "base", "adapter"]);
    for (name, base, tuned) in rows_of_scores(compared.base, compared.tuned) {
        text += &line(["", name, &format!("{base:.4}"), &format!("{tuned:.4}")]);
    }
    text
}

/// The last line that says more than who speaks.
fn last_line(prompt: &str) -> String {
    let lines: Vec<&str> = prompt.lines().map(str::trim).filter(|l| !l.is_empty() && *l != "assistant").collect();
    lines.last().unwrap_or(&"").to_string()
}

/// `text` on one line in exactly `width` cells of a terminal, cut with an ellipsis where it is longer.
fn fit(text: &str, width: usize) -> String {
    let mut out = String::new();
    let mut used = 0;
    let mut chars = text.trim().chars().map(|c| if c.is_whitespace() { ' ' } else { c }).filter(|c| !c.is_control());
    let mut rest = chars.by_ref().peekable();
    while let Some(c) = rest.next() {
        let room = if rest.peek().is_some() { width.saturating_sub(1) } else { width };
        if used + cells(c) > room {
            out.push('…');
            used += 1;
            break;
        }
        out.push(c);
        used += cells(c);
    }
    out.extend(std::iter::repeat_n(' ', width.saturating_sub(used)));
    out
}

/// Cells that a terminal gives a character: two for East Asian wide ones and emoji, by their largest blocks.
fn cells(c: char) -> usize {
    let wide = matches!(c, '\u{1100}'..='\u{115F}' | '\u{2E80}'..='\u{A4CF}' | '\u{AC00}'..='\u{D7A3}'
        | '\u{F900}'..='\u{FAFF}' | '\u{FE30}'..='\u{FE6F}' | '\u{FF00}'..='\u{FF60}' | '\u{FFE0}'..='\u{FFE6}'
        | '\u{1F300}'..='\u{1FAFF}' | '\u{20000}'..='\u{3FFFD}');
    if wide { 2 } else { 1 }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;

    pub fn pairs(n: usize) -> Vec<Pair> {
        let pair = |i: usize| Pair {
            prompt: format!("user\n问题 {i}\nassistant\n"),
            label: "l,\"q\"\nsecond".into(),
            base: format!("=base {i}"),
            tuned: format!("```tuned``` {i}"),
        };
        (0..n).map(pair).collect()
    }

    fn compared(n: usize) -> Compared {
        let base = Scores { bleu4: 1.5, ..Scores::default() };
        Compared { pairs: pairs(n), base, tuned: Scores { bleu4: 20.25, ..base } }
    }

    #[test]
    fn a_text_keeps_its_place() {
        assert_eq!(fit("abc", 5), "abc  ");
        assert_eq!(fit("abcdef", 5), "abcd…");
        assert_eq!(fit("abcde", 5), "abcde");
        assert_eq!(fit("a\nb\u{1b}[31m", 9), "a b[31m  ");
        assert_eq!(fit("贫血的", 6), "贫血的");
        assert_eq!(fit("贫血的", 5), "贫血…");
        assert_eq!(fit("贫血的", 4), "贫… ");
        for width in [1, 2, 7] {
            assert_eq!(fit("贫血 and more 👍", width).chars().map(cells).sum::<usize>(), width);
        }
    }

    #[test]
    fn the_table_shows_questions_and_scores() {
        let text = table(&compared(3), 2, 12);
        let lines: Vec<&str> = text.lines().collect();
        assert!(
            lines[1].starts_with("问题 0") && lines[1].contains("=base 0") && lines[3] == "... and 1 more",
            "{text}"
        );
        assert!(lines.iter().any(|l| l.contains("bleu-4") && l.contains("1.5000") && l.ends_with("20.2500")), "{text}");
    }

    #[test]
    fn the_document_holds_every_answer_as_it_is() {
        let text = markdown(&compared(2));
        assert!(text.contains("| bleu-4 | 1.5000 | 20.2500 |"), "{text}");
        assert!(text.contains("````text\n```tuned``` 1\n````\n") && text.contains("```text\n=base 0\n```\n"), "{text}");
    }
}
