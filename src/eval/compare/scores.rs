//! People's scores of a sheet, summed up.

use std::collections::HashSet;
use std::fmt;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::KEY;
use super::sheet::COLUMNS;
use crate::error::{Error, Result};

/// What the scores of a sheet say.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Verdict {
    /// Rows with both scores.
    pub scored: usize,
    /// Rows without both.
    pub unscored: usize,
    /// Sums of the scores, over the scored rows.
    base: f64,
    tuned: f64,
    /// Rows in which the adapter's answer has the higher score, the same, the lower.
    pub wins: usize,
    pub ties: usize,
    pub losses: usize,
}

impl Verdict {
    /// Mean scores (base, adapter); None if nothing is scored.
    pub fn means(&self) -> Option<(f64, f64)> {
        let n = self.scored as f64;
        (self.scored > 0).then(|| (self.base / n, self.tuned / n))
    }
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.means() {
            Some((base, tuned)) => {
                writeln!(f, "mean score    base {base:.2}, adapter {tuned:.2} (of {} rows)", self.scored)?
            }
            None => writeln!(f, "mean score    none: no row has both scores")?,
        }
        writeln!(f, "adapter       {} wins, {} ties, {} losses", self.wins, self.ties, self.losses)?;
        writeln!(f, "unscored      {}", self.unscored)
    }
}

/// Sums up a sheet that people filled in: scores from 1 to 5, empty where there is none. The key lies beside it. Commas,
/// semicolons and tabs part the columns, as spreadsheets save them.
///
/// # Errors
/// [`Error::File`] naming the line of a score that is none, of an id that the key lacks or that comes twice, and for a
/// sheet or a key that cannot be read.
pub fn sum_up(sheet: &Path) -> Result<Verdict> {
    let key = Key::beside(sheet)?;
    let bytes = fs::read(sheet).map_err(|e| Error::io(sheet, "cannot read", &e))?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter(bytes)).flexible(true).from_reader(bytes);
    let header = reader.headers().map_err(|e| Error::file(sheet, format!("its header cannot be read: {e}")))?.clone();
    let column = |name: &str| {
        let found = header.iter().position(|h| h.trim().eq_ignore_ascii_case(name));
        found.ok_or_else(|| Error::file(sheet, format!("has no column `{name}`; it has {}", COLUMNS.join(", "))))
    };
    let (id, a, b) = (column("id")?, column("score A")?, column("score B")?);

    let mut verdict = Verdict::default();
    let mut seen = HashSet::new();
    for record in reader.records() {
        let record = record.map_err(|e| Error::file(sheet, format!("cannot be read: {e}")))?;
        let line = record.position().map_or(0, csv::Position::line);
        let bad = |why: String| Error::file(sheet, format!("line {line}: {why}"));
        let cell = |at: usize| record.get(at).unwrap_or("").trim();
        if record.iter().all(|cell| cell.trim().is_empty()) {
            continue;
        }
        let Some(base_first) = key.base_first(cell(id)) else {
            return Err(bad(format!("id `{}` is not in {}", printable(cell(id)), key.path.display())));
        };
        if !seen.insert(cell(id).to_string()) {
            return Err(bad(format!("id `{}` comes twice", printable(cell(id)))));
        }
        let score = |at: usize, name: &str| score(cell(at)).map_err(|why| bad(format!("{name} {why}")));
        match (score(a, "score A")?, score(b, "score B")?) {
            (Some(a), Some(b)) => verdict.add(if base_first { (a, b) } else { (b, a) }),
            _ => verdict.unscored += 1,
        }
    }
    // Rows that were deleted from the sheet are as good as unscored.
    verdict.unscored += key.rows.len().saturating_sub(seen.len());
    Ok(verdict)
}

/// Whether people have written into a sheet, or it is not one of ours: then it is not to be written over.
pub(super) fn is_filled(sheet: &Path) -> bool {
    let Ok(bytes) = fs::read(sheet) else { return sheet.exists() };
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new().delimiter(delimiter(bytes)).flexible(true).from_reader(bytes);
    let columns = |header: &csv::StringRecord| -> Option<Vec<usize>> {
        COLUMNS[5..].iter().map(|name| header.iter().position(|h| h.trim().eq_ignore_ascii_case(name))).collect()
    };
    let Some(columns) = reader.headers().ok().and_then(columns) else { return true };
    let empty = |record: csv::StringRecord| columns.iter().all(|&at| record.get(at).unwrap_or("").trim().is_empty());
    !reader.records().all(|record| record.is_ok_and(empty))
}

impl Verdict {
    fn add(&mut self, (base, tuned): (f64, f64)) {
        self.scored += 1;
        self.base += base;
        self.tuned += tuned;
        self.wins += usize::from(tuned > base);
        self.ties += usize::from(tuned == base);
        self.losses += usize::from(tuned < base);
    }
}

/// What parts the columns: the first such sign of the header, in which nothing else is one.
fn delimiter(bytes: &[u8]) -> u8 {
    bytes.iter().copied().find(|b| matches!(b, b',' | b';' | b'\t' | b'\n')).filter(|b| *b != b'\n').unwrap_or(b',')
}

/// A score, None where the cell is empty; why it is none. A comma may stand for the point.
fn score(cell: &str) -> std::result::Result<Option<f64>, String> {
    if cell.is_empty() {
        return Ok(None);
    }
    match cell.replacen(',', ".", 1).parse::<f64>() {
        Ok(x) if (1.0..=5.0).contains(&x) => Ok(Some(x)),
        _ => Err(format!("must be a number from 1 to 5, or empty; it is `{}`", printable(cell))),
    }
}

/// At most 40 characters, on one line.
fn printable(text: &str) -> String {
    text.chars().take(40).flat_map(char::escape_debug).collect()
}

/// Which answer is whose.
struct Key {
    path: PathBuf,
    rows: serde_json::Map<String, Value>,
}

impl Key {
    /// The key of `sheet`: `<its name>_key.json`, or else that of the sheet as it was written, if a copy was filled in.
    fn beside(sheet: &Path) -> Result<Key> {
        let stem = sheet.file_stem().unwrap_or_default().to_string_lossy();
        let own = sheet.with_file_name(format!("{stem}_key.json"));
        let path = if own.is_file() { own } else { sheet.with_file_name(KEY) };
        let bytes = fs::read(&path)
            .map_err(|e| Error::io(&path, &format!("cannot read the key of {}", sheet.display()), &e))?;
        let why = |e: String| Error::file(&path, format!("is not the key of a sheet: {e}"));
        let mut key: Value = serde_json::from_slice(&bytes).map_err(|e| why(e.to_string()))?;
        match key.get_mut("rows").map(Value::take) {
            Some(Value::Object(rows)) => Ok(Key { path, rows }),
            _ => Err(why("it has no `rows`".into())),
        }
    }

    /// Whether A is the base's; None for an id that is not there.
    fn base_first(&self, id: &str) -> Option<bool> {
        match self.rows.get(id)?.get("A")?.as_str()? {
            "base" => Some(true),
            "adapter" => Some(false),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::sheet;
    use super::super::tests::pairs;
    use super::*;

    /// A folder with the key of five rows, and a sheet with these lines below its header.
    fn place(lines: &str, header: &str) -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(KEY), sheet::key(&[true, false, true, false, true])).unwrap();
        let path = dir.path().join("filled.csv");
        fs::write(&path, format!("\u{feff}{header}\n{lines}")).unwrap();
        (dir, path)
    }

    fn summed(lines: &str) -> Result<Verdict> {
        let (_dir, path) = place(lines, "id,prompt,label,answer A,answer B,score A,score B");
        sum_up(&path)
    }

    #[test]
    fn scores_go_to_whose_they_are() {
        // Base 1, 4, 3; adapter 5, 2, 3. Row 4 lacks a score, row 5 is gone.
        let v = summed("1,p,l,a,b,1,5\n2,p,l,\"a\nb\",b,2,4.0\n3,p,l,a,b,3,3\n4,p,l,a,b,5,\n,,,,,,\n").unwrap();
        assert_eq!((v.scored, v.unscored, v.wins, v.ties, v.losses), (3, 2, 1, 1, 1));
        assert_eq!(v.means(), Some((8.0 / 3.0, 10.0 / 3.0)));
        let text = v.to_string();
        assert!(text.contains("base 2.67, adapter 3.33 (of 3 rows)") && text.contains("unscored      2"), "{text}");
        assert_eq!(summed("").unwrap().means(), None);
    }

    #[test]
    fn sheets_as_spreadsheets_save_them() {
        for (header, row) in [("id;score B;score A", "1;5;\"2,5\"\r\n"), ("ID\tScore A\tScore B", "1\t2.5\t5\n")] {
            let (_dir, path) = place(row, header);
            assert_eq!(sum_up(&path).unwrap().means(), Some((2.5, 5.0)), "{header}");
        }
    }

    #[test]
    fn what_is_wrong_is_named_by_its_line() {
        for (lines, words) in [
            ("1,p,l,a,b,6,1\n", "line 2: score A must be a number from 1 to 5, or empty; it is `6`"),
            ("1,p,l,\"a\nb\",b,1,1\n2,p,l,a,b,1,good\n", "line 4: score B"),
            ("1,p,l,a,b,NaN,1\n", "line 2: score A"),
            ("1,p,l,a,b,0,1\n", "line 2: score A"),
            ("9,p,l,a,b,1,1\n", "line 2: id `9` is not in"),
            ("1,p,l,a,b,1,1\n1,p,l,a,b,1,1\n", "line 3: id `1` comes twice"),
        ] {
            let said = summed(lines).unwrap_err().to_string();
            assert!(said.contains(words) && said.contains("filled.csv") && !said.contains('\n'), "{said}");
        }
        let (_dir, path) = place("1,1\n", "id,score A");
        assert!(sum_up(&path).unwrap_err().to_string().contains("no column `score B`"));
        let (dir, path) = place("1,p,l,a,b,1,1\n", "id,prompt,label,answer A,answer B,score A,score B");
        fs::write(dir.path().join(KEY), "[]").unwrap();
        assert!(sum_up(&path).unwrap_err().to_string().contains("not the key"));
        fs::remove_file(dir.path().join(KEY)).unwrap();
        assert!(sum_up(&path).unwrap_err().to_string().contains(KEY));
    }

    #[test]
    fn a_sheet_as_written_has_no_scores_yet() {
        let dir = tempfile::tempdir().unwrap();
        let (pairs, order) = (pairs(7), sheet::order(7, 3));
        let path = dir.path().join(super::super::SHEET);
        fs::write(&path, sheet::csv(&path, &pairs, &order).unwrap()).unwrap();
        fs::write(dir.path().join(KEY), sheet::key(&order)).unwrap();
        assert_eq!(sum_up(&path).unwrap(), Verdict { unscored: 7, ..Verdict::default() });
        assert!(!is_filled(&path) && !is_filled(&dir.path().join("none.csv")));
        for filled in ["id,score A,score B\n1,,3\n", "another,table\n", ""] {
            fs::write(&path, filled).unwrap();
            assert!(is_filled(&path), "{filled:?}");
        }
    }
}
