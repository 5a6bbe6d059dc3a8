//! The sheet for people: both answers of each question in an order that does not give them away.

use std::path::Path;

use serde_json::json;

use super::Pair;
use crate::error::{Error, Result};

/// The sheet's columns.
pub(super) const COLUMNS: [&str; 7] = ["id", "prompt", "label", "answer A", "answer B", "score A", "score B"];

/// For each of `n` rows, numbered from 1, whether the base's answer comes first.
pub(super) fn order(n: usize, seed: u64) -> Vec<bool> {
    let coin = |i: usize| {
        let mut hash = blake3::Hasher::new();
        hash.update(&seed.to_le_bytes());
        hash.update(&(i as u64).to_le_bytes());
        hash.finalize().as_bytes()[0] & 1 == 0
    };
    (0..n).map(coin).collect()
}

/// The sheet, with the mark by which spreadsheets know UTF-8. `path` is for errors.
///
/// # Errors
/// [`Error::File`] if the rows cannot be written.
pub(super) fn csv(path: &Path, pairs: &[Pair], base_first: &[bool]) -> Result<Vec<u8>> {
    let mut writer = csv::WriterBuilder::new().from_writer("\u{feff}".as_bytes().to_vec());
    let write = |writer: &mut csv::Writer<Vec<u8>>| -> csv::Result<()> {
        writer.write_record(COLUMNS)?;
        for (i, (pair, &base_first)) in pairs.iter().zip(base_first).enumerate() {
            let (a, b) = if base_first { (&pair.base, &pair.tuned) } else { (&pair.tuned, &pair.base) };
            let id = (i + 1).to_string();
            writer.write_record([&id, &cell(&pair.prompt), &cell(&pair.label), &cell(a), &cell(b), "", ""])?;
        }
        Ok(writer.flush()?)
    };
    write(&mut writer).map_err(|e| Error::file(path, format!("cannot write: {e}")))?;
    writer.into_inner().map_err(|e| Error::file(path, format!("cannot write: {e}")))
}

/// A text that no spreadsheet takes for a formula: a space before the signs that begin one.
fn cell(text: &str) -> String {
    match text.starts_with(['=', '+', '-', '@', '\t', '\r']) {
        true => format!(" {text}"),
        false => text.to_string(),
    }
}

/// Which answer is whose, by row.
pub(super) fn key(base_first: &[bool]) -> String {
    let of = |base_first: bool| if base_first { ["base", "adapter"] } else { ["adapter", "base"] };
    let rows: serde_json::Map<_, _> = (1..)
        .zip(base_first)
        .map(|(id, &first)| (id.to_string(), json!({"A": of(first)[0], "B": of(first)[1]})))
        .collect();
    format!("{:#}\n", json!({ "sheet": super::SHEET, "rows": rows }))
}

#[cfg(test)]
mod tests {
    use super::super::tests::pairs;
    use super::*;

    #[test]
    fn the_order_is_mixed_and_the_seed_s() {
        let all = order(1000, 42);
        assert_eq!(all, order(1000, 42));
        assert_ne!(all, order(1000, 43));
        let first = all.iter().filter(|&&b| b).count();
        // Four standard deviations of 1000 fair coins are 63.
        assert!((437..=563).contains(&first), "{first}");
    }

    #[test]
    fn answers_stand_where_the_key_says() {
        let (pairs, order) = (pairs(40), order(40, 1));
        let bytes = csv(Path::new("x.csv"), &pairs, &order).unwrap();
        assert_eq!(&bytes[..3], "\u{feff}".as_bytes());
        let key: serde_json::Value = serde_json::from_str(&key(&order)).unwrap();
        let mut reader = csv::Reader::from_reader(&bytes[3..]);
        let mut seen = 0;
        for (record, pair) in reader.records().zip(&pairs) {
            let record = record.unwrap();
            for (side, answer) in [("A", &record[3]), ("B", &record[4])] {
                let want = if key["rows"][&record[0]][side] == "base" { cell(&pair.base) } else { pair.tuned.clone() };
                assert_eq!(answer, want);
            }
            assert_eq!((&record[2], &record[5], &record[6]), (pair.label.as_str(), "", ""));
            seen += 1;
        }
        assert_eq!(seen, 40);
        assert!(!String::from_utf8(bytes).unwrap().contains("adapter"), "the sheet must not give it away");
    }
}
