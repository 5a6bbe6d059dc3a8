//! Samples for people to look at: each token, and whether it is trained.

use super::Sample;
use super::tokenizer::Tokenizer;

/// For each token its id, its text and whether it is trained. A token that is no text by itself, such as a part of a
/// Chinese character, is shown as the vocabulary spells it.
pub fn describe(sample: &Sample, tokenizer: &Tokenizer) -> Vec<(u32, String, bool)> {
    let text = |id: u32| {
        let spelt = tokenizer.token(id).unwrap_or_else(|| "?".into());
        if spelt.contains('▁') {
            return spelt.replace('▁', " ");
        }
        match tokenizer.decode(&[id], false) {
            Ok(t) if !t.is_empty() && !t.contains('\u{fffd}') => t,
            _ => spelt,
        }
    };
    sample.ids.iter().zip(&sample.trained).map(|(&id, &trained)| (id, text(id), trained)).collect()
}

/// The sample as text, its trained stretches green (`ansi`) or between `⟦` and `⟧`, under a line of counts. Each piece of
/// a packed row starts on its own line. Control characters other than line feed and tab are shown escaped.
pub fn render(sample: &Sample, tokenizer: &Tokenizer, ansi: bool) -> String {
    let (open, close) = if ansi { ("\x1b[32m", "\x1b[0m") } else { ("⟦", "⟧") };
    let trained = sample.trained.iter().filter(|t| **t).count();
    let mut out = format!("{} tokens, {trained} trained", sample.ids.len());
    if sample.pieces.len() > 1 {
        out += &format!(", {} sequences in one row", sample.pieces.len());
    }
    out.push('\n');
    let mut start = 0;
    for &n in &sample.pieces {
        let end = sample.ids.len().min(start + n as usize);
        while start < end {
            let flag = sample.trained.get(start).copied().unwrap_or(false);
            let len = sample
                .trained
                .get(start..end)
                .map_or(end - start, |t| t.iter().position(|&f| f != flag).unwrap_or(end - start));
            let ids = sample.ids.get(start..start + len).unwrap_or_default();
            let text = tokenizer.decode(ids, false).unwrap_or_else(|e| e.to_string());
            if flag {
                out += open;
            }
            for c in text.chars() {
                match c {
                    '\n' | '\t' => out.push(c),
                    c if c.is_control() => out.extend(c.escape_default()),
                    c => out.push(c),
                }
            }
            if flag {
                out += close;
            }
            start += len;
        }
        if !out.ends_with('\n') {
            out.push('\n');
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn trained_stretches_are_marked() {
        let dir = crate::data::tokenizer::tests::tiny_folder(&["</s>"], json!({"eos_token": "</s>"}));
        let t = Tokenizer::load(dir.path(), false).unwrap();
        let ids = t.encode("ab cd</s>").unwrap();
        let trained = vec![false, false, false, true, true, true];
        let s = Sample { ids, trained, pieces: vec![6], block_diagonal: false };
        assert_eq!(render(&s, &t, false), "6 tokens, 3 trained\nab ⟦cd</s>⟧\n");
        assert!(render(&s, &t, true).contains("\x1b[32mcd</s>\x1b[0m"));
        let d = describe(&s, &t);
        assert_eq!((d[2].1.as_str(), d[5].1.as_str(), d[5].2), (" ", "</s>", true));
    }
}
