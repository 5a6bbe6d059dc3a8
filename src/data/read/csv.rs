//! Comma-separated values with a header, as pandas reads them for `datasets`: a short row is filled with nulls, and the
//! spellings below are null. Every other cell stays text (pandas makes a column of numbers numbers, and LLaMA-Factory
//! then drops every row whose answer is one).

use std::cell::Cell;
use std::io::Read;
use std::rc::Rc;

use csv::{ByteRecord, ErrorKind, ReaderBuilder};
use serde_json::{Map, Value};

use super::{Rows, Source, until_error};
use crate::error::{Error, Result};

/// Pandas' default `na_values`.
const NULLS: [&str; 19] = [
    "", "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA",
    "NULL", "NaN", "None", "n/a", "nan", "null",
];

/// Passes bytes on and remembers whether the last one that is no line end was a quote.
struct LastQuote {
    reader: Box<dyn Read>,
    quote: Rc<Cell<bool>>,
}

impl Read for LastQuote {
    fn read(&mut self, into: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reader.read(into)?;
        let last = into.iter().take(n).rev().find(|byte| !matches!(byte, b'\r' | b'\n'));
        if let Some(last) = last {
            self.quote.set(*last == b'"');
        }
        Ok(n)
    }
}

pub(super) fn rows(mut source: Source) -> Result<Rows> {
    let ends_in_quote = Rc::new(Cell::new(false));
    let bytes = std::mem::replace(&mut source.reader, Box::new(std::io::empty()));
    let bytes = LastQuote { reader: Box::new(bytes), quote: ends_in_quote.clone() };
    let mut reader = ReaderBuilder::new().flexible(true).from_reader(bytes);
    let mut header: Vec<String> = Vec::new();
    let names = reader.byte_headers().map_err(|e| failed(&source, &e))?;
    for name in names {
        let Ok(name) = std::str::from_utf8(name) else { return Err(Error::file(&source.path, "its header is not UTF-8")) };
        if header.iter().any(|other| other == name) {
            return Err(Error::file(&source.path, format!("its header names the column `{name}` twice")));
        }
        header.push(name.into());
    }
    let mut record = ByteRecord::new();
    let mut swallowed = false;
    Ok(until_error(move || {
        if !reader.read_byte_record(&mut record).map_err(|e| failed(&source, &e))? {
            if swallowed && !ends_in_quote.get() {
                let why = "a quote is opened and never closed".into();
                return Err(Error::Row { file: source.path.to_path_buf(), row: source.read, why });
            }
            return Ok(None);
        }
        // If this turns out to be the last row and the file does not end in a quote, a stray quote opened its last cell
        // and swallowed the rows after it.
        swallowed = record.iter().last().is_some_and(|cell| cell.contains(&b'\n'));
        if record.len() > header.len() {
            let why = format!("has {} fields, the header {}; quote cells that hold commas", record.len(), header.len());
            return Err(source.error(why));
        }
        let mut columns = Map::new();
        for (i, name) in header.iter().enumerate() {
            let Ok(cell) = std::str::from_utf8(record.get(i).unwrap_or_default()) else {
                return Err(source.error("is not UTF-8"));
            };
            let value = if NULLS.contains(&cell) { Value::Null } else { Value::String(cell.into()) };
            columns.insert(name.clone(), value);
        }
        Ok(Some(source.row(columns)))
    }))
}

fn failed(source: &Source, e: &csv::Error) -> Error {
    match e.kind() {
        ErrorKind::Io(e) => Error::io(&source.path, "cannot read", e),
        _ => source.error(format!("is not valid CSV: {e}")),
    }
}
