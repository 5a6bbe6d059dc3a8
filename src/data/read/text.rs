//! Plain text: each line is a row with the column `text`, empty lines too. Lines end in LF, CR LF or CR.

use serde_json::{Map, Value};

use super::{Row, Rows, Source, until_error};
use crate::error::Result;

pub(super) fn rows(mut source: Source) -> Rows {
    until_error(move || next(&mut source))
}

fn next(source: &mut Source) -> Result<Option<Row>> {
    if source.peek()?.is_none() {
        return Ok(None);
    }
    let mut line = Vec::new();
    source.take_until(&mut line, |byte| byte == b'\n' || byte == b'\r')?;
    match line.last() {
        Some(b'\n') => _ = line.pop(),
        Some(b'\r') => {
            line.pop();
            if source.peek()? == Some(b'\n') {
                source.reader.consume(1);
            }
        }
        _ => {}
    }
    let Ok(text) = String::from_utf8(line) else { return Err(source.error("is not UTF-8")) };
    Ok(Some(source.row(Map::from_iter([("text".to_string(), Value::String(text))]))))
}
