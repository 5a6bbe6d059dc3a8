//! Files to rows, one at a time: memory holds one row (Parquet: one row group's page), whatever the file's size.

mod csv;
mod json;
mod parquet;
mod text;

use std::fs::File;
use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use super::registry::FileKind;
use crate::error::{Error, Result};

/// A row as it lies in its file.
#[derive(Debug, Clone, PartialEq)]
pub struct Row {
    pub file: Arc<Path>,
    /// From 1, within the file, blank lines not counted.
    pub number: usize,
    /// Column names and values, in the file's order.
    pub columns: Map<String, Value>,
}

impl Row {
    /// An error about this row.
    pub fn error(&self, why: impl Into<String>) -> Error {
        Error::Row { file: self.file.to_path_buf(), row: self.number, why: why.into() }
    }
}

/// The rows of one or several files. The first error ends it.
pub type Rows = Box<dyn Iterator<Item = Result<Row>>>;

/// The rows of `files`, one file after another.
pub fn rows(files: Vec<PathBuf>, kind: FileKind) -> Rows {
    let mut failed = false;
    let all = files.into_iter().flat_map(move |file| match open(&file, kind) {
        Ok(rows) => rows,
        Err(e) => Box::new(std::iter::once(Err(e))),
    });
    Box::new(all.take_while(move |row| !std::mem::replace(&mut failed, row.is_err())))
}

fn open(path: &Path, kind: FileKind) -> Result<Rows> {
    let source = Source::open(path)?;
    match kind {
        FileKind::Json => json::rows(source),
        FileKind::Csv => csv::rows(source),
        FileKind::Text => Ok(text::rows(source)),
        FileKind::Parquet => parquet::rows(source),
    }
}

/// Longest row, in bytes. A file that is not what its name says should not be read into memory whole to find out.
const LONGEST_ROW: usize = 1 << 28;

/// An open file and how many of its rows were read.
struct Source {
    path: Arc<Path>,
    reader: Box<dyn BufRead>,
    read: usize,
}

impl Source {
    fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "cannot read", &e))?;
        Self::new(path, BufReader::with_capacity(1 << 17, file))
    }

    /// Passes over a byte-order mark.
    fn new(path: &Path, mut reader: impl BufRead + 'static) -> Result<Self> {
        let start = reader.fill_buf().map_err(|e| Error::io(path, "cannot read", &e))?;
        if start.starts_with(b"\xFF\xFE") || start.starts_with(b"\xFE\xFF") {
            return Err(Error::file(path, "is UTF-16; save it as UTF-8"));
        }
        if start.starts_with(b"\xEF\xBB\xBF") {
            reader.consume(3);
        }
        Ok(Self { path: path.into(), reader: Box::new(reader), read: 0 })
    }

    /// The row after the last one read.
    fn row(&mut self, columns: Map<String, Value>) -> Row {
        self.read += 1;
        Row { file: self.path.clone(), number: self.read, columns }
    }

    /// An error about the row after the last one read.
    fn error(&self, why: impl Into<String>) -> Error {
        Error::Row { file: self.path.to_path_buf(), row: self.read + 1, why: why.into() }
    }

    fn peek(&mut self) -> Result<Option<u8>> {
        match self.reader.fill_buf() {
            Ok(bytes) => Ok(bytes.first().copied()),
            Err(e) => Err(Error::io(&self.path, "cannot read", &e)),
        }
    }

    /// The next byte that is no white space, not consumed.
    fn peek_past_space(&mut self) -> Result<Option<u8>> {
        loop {
            match self.peek()? {
                Some(b' ' | b'\t' | b'\r' | b'\n') => self.reader.consume(1),
                other => return Ok(other),
            }
        }
    }

    /// Consumes bytes into `into` up to and including the first at which `ends` says true. Returns whether one did,
    /// rather than the file ending.
    fn take_until(&mut self, into: &mut Vec<u8>, mut ends: impl FnMut(u8) -> bool) -> Result<bool> {
        loop {
            let bytes = match self.reader.fill_buf() {
                Ok(bytes) => bytes,
                Err(e) => return Err(Error::io(&self.path, "cannot read", &e)),
            };
            if bytes.is_empty() {
                return Ok(false);
            }
            let end = bytes.iter().position(|&byte| ends(byte));
            let taken = end.map_or(bytes.len(), |end| end + 1);
            into.extend_from_slice(bytes.get(..taken).unwrap_or(bytes));
            self.reader.consume(taken);
            if into.len() > LONGEST_ROW {
                return Err(self.error(format!("is longer than {} MiB, or never ends", LONGEST_ROW >> 20)));
            }
            if end.is_some() {
                return Ok(true);
            }
        }
    }
}

/// Makes an iterator of `next`, which ends at its first `None` or error.
fn until_error(mut next: impl FnMut() -> Result<Option<Row>> + 'static) -> Rows {
    let mut done = false;
    Box::new(std::iter::from_fn(move || {
        if done {
            return None;
        }
        let row = next().transpose();
        done = !matches!(row, Some(Ok(_)));
        row
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::io::Cursor;

    /// Rows of `bytes` read as `kind`, through a buffer of 3 bytes so that every boundary is met.
    fn read(bytes: &[u8], kind: FileKind) -> Result<Vec<String>> {
        let reader = BufReader::with_capacity(3, Cursor::new(bytes.to_vec()));
        let source = Source::new(Path::new("f"), reader)?;
        let rows = match kind {
            FileKind::Json => json::rows(source)?,
            FileKind::Csv => csv::rows(source)?,
            _ => text::rows(source),
        };
        rows.enumerate()
            .map(|(i, row)| {
                let row = row?;
                assert_eq!(row.number, i + 1);
                Ok(serde_json::to_string(&row.columns).unwrap())
            })
            .collect()
    }

    fn said(bytes: &[u8], kind: FileKind) -> String {
        read(bytes, kind).unwrap_err().to_string()
    }

    #[test]
    fn json_arrays_and_lines() {
        let want = [r#"{"a":"}\"]"}"#, r#"{"b":[{}]}"#];
        for text in [
            "[{\"a\": \"}\\\"]\"}, {\"b\": [{}]}]",
            " [\n{\"a\": \"}\\\"]\"},\r\n {\"b\": [{}]}\n,\n]\n",
            "\u{feff}[{\"a\": \"}\\\"]\"}, {\"b\": [{}]},]",
            "{\"a\": \"}\\\"]\"}\n{\"b\": [{}]}",
            "\r\n{\"a\": \"}\\\"]\"}\r\n\r\n  {\"b\": [{}]}\r\n",
        ] {
            assert_eq!(read(text.as_bytes(), FileKind::Json).unwrap(), want, "{text}");
        }
        assert!(read(b"[]", FileKind::Json).unwrap().is_empty());
        assert!(read(b" ", FileKind::Json).unwrap().is_empty());
    }

    #[test]
    fn malformed_json_names_the_row() {
        let deep = format!("[{{\"a\": {}{}}}]", "[".repeat(5000), "]".repeat(5000));
        for (text, want) in [
            ("[{\"a\": 1}, {\"a\": }]", "row 2"),
            ("[{\"a\": 1} {\"a\": 1}]", "row 2: expected `,` or `]`"),
            ("[{\"a\": 1},, {\"a\": 1}]", "row 2"),
            ("[{\"a\": 1},,]", "row 2"),
            ("[,]", "row 1"),
            ("[{\"a\": 1}", "row 2: the file ends before the array does"),
            ("[{\"a\": \"1}]", "row 1: the file ends inside it"),
            ("[{\"a\": 1}] x", "row 2: text after the end"),
            ("[1]", "row 1: must be an object"),
            ("[null]", "row 1: must be an object"),
            ("[{\"a\": 1e999}]", "row 1"),
            ("[{\"a\": \"\\ud800\"}]", "row 1"),
            ("[{\"a\": \"\u{0}\"}]", "row 1"),
            ("{\"a\": 1}\n{\"a\": \n1}", "row 2"),
            ("{\"a\": 1}\n[]", "row 2: must be an object"),
            ("{\n\"a\": 1\n}", "row 1"),
            ("\"x\"", "neither"),
            (deep.as_str(), "row 1"),
        ] {
            let error = said(text.as_bytes(), FileKind::Json);
            assert!(error.contains(want) && !error.contains('\n'), "{text}: {error}");
        }
        assert!(said(b"[{\"a\": \"\xff\"}]", FileKind::Json).contains("row 1"));
        assert!(said(b"\xff\xfe[\0", FileKind::Json).contains("UTF-16"));
        assert!(read(br#"[{"a": "\u0000", "b": 99999999999999999999999}]"#, FileKind::Json).is_ok());
    }

    #[test]
    fn csv_has_a_header_and_nulls() {
        let text = "\u{feff}q,a\r\n\"x, \"\"y\"\"\nz\",1\r\n\r\n,NA\nlast\n";
        let want = [r#"{"q":"x, \"y\"\nz","a":"1"}"#, r#"{"q":null,"a":null}"#, r#"{"q":"last","a":null}"#];
        assert_eq!(read(text.as_bytes(), FileKind::Csv).unwrap(), want);
        assert!(said(b"q,a\n1,2,3\n", FileKind::Csv).contains("row 1: has 3 fields"));
        assert!(said(b"q,q\n1,2\n", FileKind::Csv).contains("twice"));
        assert!(said(b"q\nx\n\xff\n", FileKind::Csv).contains("row 2: is not UTF-8"));
        assert!(said(b"\xff\nx\n", FileKind::Csv).contains("UTF-8"));
        assert!(said(b"q,a\nx,1\n\"y,2\nz,3\n", FileKind::Csv).contains("row 2: a quote is opened and never closed"));
        assert!(read(b"q,a\n5\" pipe,1\n", FileKind::Csv).is_ok());
    }

    #[test]
    fn text_lines_end_in_any_of_three_ways() {
        let want = [r#"{"text":"a"}"#, r#"{"text":""}"#, r#"{"text":"b"}"#, r#"{"text":"c"}"#];
        assert_eq!(read(b"a\n\nb\r\nc", FileKind::Text).unwrap(), want);
        assert_eq!(read(b"a\r\rb\nc\n", FileKind::Text).unwrap(), want);
        assert!(said(b"a\n\xc3\n", FileKind::Text).contains("row 2"));
    }

    #[test]
    fn the_first_error_ends_it() {
        let dir = tempfile::tempdir().unwrap();
        let files = ["[{}, 1]", "[{}]"].into_iter().enumerate().map(|(i, text)| {
            let file = dir.path().join(format!("{i}.json"));
            std::fs::write(&file, text).unwrap();
            file
        });
        let got: Vec<bool> = rows(files.collect(), FileKind::Json).map(|row| row.is_ok()).collect();
        assert_eq!(got, [true, false]);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(300))]
        #[test]
        fn any_bytes_are_rows_or_an_error(bytes in proptest::collection::vec(any::<u8>(), 0..80)) {
            for kind in [FileKind::Json, FileKind::Csv, FileKind::Text] {
                let _ = read(&bytes, kind);
            }
        }

        #[test]
        fn anything_like_json_is_rows_or_an_error(text in "[\\[{]([\\[\\]{},:\"\\\\ \n1a]|\"a\":){0,40}") {
            let _ = read(text.as_bytes(), FileKind::Json);
        }

        #[test]
        fn json_round_trips(texts in proptest::collection::vec(".{0,20}", 0..5)) {
            let rows: Vec<String> = texts.iter().map(|t| serde_json::json!({ "a": t }).to_string()).collect();
            prop_assert_eq!(&read(format!("[{}]", rows.join(",")).as_bytes(), FileKind::Json).unwrap(), &rows);
            prop_assert_eq!(&read(rows.join("\n").as_bytes(), FileKind::Json).unwrap(), &rows);
        }
    }
}
