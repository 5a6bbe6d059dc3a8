//! JSON: an array of objects, or one object a line. Which of the two shows in the first character, not in the name.

use serde_json::{Map, Value};

use super::{Row, Rows, Source, until_error};
use crate::error::{Error, Result};

pub(super) fn rows(mut source: Source) -> Result<Rows> {
    match source.peek_past_space()? {
        None => Ok(Box::new(std::iter::empty())),
        Some(b'{') => Ok(until_error(move || next_line(&mut source))),
        Some(b'[') => {
            source.reader.consume(1);
            let mut started = false;
            Ok(until_error(move || next_element(&mut source, &mut started)))
        }
        Some(_) => Err(Error::file(&source.path, "is neither an array of rows nor one row a line")),
    }
}

fn next_line(source: &mut Source) -> Result<Option<Row>> {
    let Some(first) = source.peek_past_space()? else { return Ok(None) };
    if first != b'{' {
        return Err(source.error("must be an object, such as {\"instruction\": \"..\", \"output\": \"..\"}"));
    }
    let mut line = Vec::new();
    source.take_until(&mut line, |byte| byte == b'\n')?;
    parse(source, &line).map(Some)
}

/// The next element of the array, of which `[` was read; `started` tells whether an element was.
fn next_element(source: &mut Source, started: &mut bool) -> Result<Option<Row>> {
    let ends = |source: &Source| Err(source.error("the file ends before the array does; a `]` is missing"));
    let mut next = source.peek_past_space()?;
    if *started && next == Some(b',') {
        source.reader.consume(1);
        next = source.peek_past_space()?;
        if next == Some(b']') {
            log::warn!("{}: a comma follows the last row; it is passed over", source.path.display());
        }
    } else if *started && !matches!(next, Some(b']') | None) {
        return Err(source.error("expected `,` or `]` before it"));
    }
    match next {
        Some(b'{') => {}
        Some(b']') => {
            source.reader.consume(1);
            return match source.peek_past_space()? {
                None => Ok(None),
                Some(_) => Err(source.error("text after the end of the array")),
            };
        }
        None => return ends(source),
        Some(_) => {
            return Err(source.error("must be an object, such as {\"instruction\": \"..\", \"output\": \"..\"}"));
        }
    }
    *started = true;
    let (mut depth, mut in_string, mut escaped) = (0usize, false, false);
    let mut object = Vec::new();
    let whole = source.take_until(&mut object, |byte| {
        match byte {
            _ if escaped => escaped = false,
            b'\\' if in_string => escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
        depth == 0
    })?;
    if !whole {
        return Err(source.error("the file ends inside it"));
    }
    parse(source, &object).map(Some)
}

fn parse(source: &mut Source, object: &[u8]) -> Result<Row> {
    match serde_json::from_slice::<Map<String, Value>>(object) {
        Ok(columns) => Ok(source.row(columns)),
        Err(e) => {
            let e = e.to_string();
            let why = e.strip_suffix(&format!(" at line 1 column {}", object.len())).unwrap_or(&e);
            Err(source.error(format!("is not valid JSON: {why}")))
        }
    }
}
