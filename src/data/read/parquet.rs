//! Parquet, by the record interface: a row at a time, without Arrow.

use std::panic::{AssertUnwindSafe, catch_unwind};

use parquet::file::reader::SerializedFileReader;
use parquet::record::reader::RowIter;
use parquet::record::{Field, Row as Record};
use serde_json::{Map, Number, Value};

use super::{Rows, Source, until_error};
use crate::error::{Error, Result};

pub(super) fn rows(mut source: Source) -> Result<Rows> {
    let path = source.path.clone();
    let unreadable = |why: String| Error::file(&path, format!("is not a readable Parquet file: {why}"));
    let file = std::fs::File::open(&path).map_err(|e| Error::io(&path, "cannot read", &e))?;
    let mut records = guarded(|| SerializedFileReader::new(file).map(|reader| RowIter::from_file_into(Box::new(reader))))
        .map_err(unreadable)?
        .map_err(|e| unreadable(e.to_string()))?;
    Ok(until_error(move || {
        let wrong = |why: String| source.error(format!("cannot be decoded: {why}"));
        match guarded(|| records.next()).map_err(&wrong)? {
            None => Ok(None),
            Some(record) => {
                let columns = object(record.map_err(|e| wrong(e.to_string()))?);
                Ok(Some(source.row(columns)))
            }
        }
    }))
}

/// The parquet crate panics on some corrupt files; to the user that is an error like any other.
fn guarded<T>(read: impl FnOnce() -> T) -> std::result::Result<T, String> {
    catch_unwind(AssertUnwindSafe(read)).map_err(|_| "the file is corrupt".to_string())
}

fn object(row: Record) -> Map<String, Value> {
    row.into_columns().into_iter().map(|(name, field)| (name, value(&field))).collect()
}

fn value(field: &Field) -> Value {
    match field {
        Field::Null => Value::Null,
        Field::Bool(x) => Value::Bool(*x),
        Field::Str(x) => Value::String(x.clone()),
        Field::Byte(x) => (*x).into(),
        Field::Short(x) => (*x).into(),
        Field::Int(x) => (*x).into(),
        Field::Long(x) => (*x).into(),
        Field::UByte(x) => (*x).into(),
        Field::UShort(x) => (*x).into(),
        Field::UInt(x) => (*x).into(),
        Field::ULong(x) => (*x).into(),
        Field::Float(x) => Number::from_f64(f64::from(*x)).map_or(Value::Null, Value::Number),
        Field::Double(x) => Number::from_f64(*x).map_or(Value::Null, Value::Number),
        // A text column whose writer did not mark it as text.
        Field::Bytes(x) => x.as_utf8().map_or(Value::Null, |x| Value::String(x.into())),
        Field::Group(row) => Value::Object(row.get_column_iter().map(|(k, v)| (k.clone(), value(v))).collect()),
        Field::ListInternal(list) => Value::Array(list.elements().iter().map(value).collect()),
        Field::MapInternal(map) => {
            let key = |k: &Field| match value(k) {
                Value::String(k) => k,
                other => other.to_string(),
            };
            Value::Object(map.entries().iter().map(|(k, v)| (key(k), value(v))).collect())
        }
        // Dates, decimals and the like: never a column that is read.
        other => Value::String(other.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::super::{FileKind, rows};
    use parquet::data_type::ByteArrayType;
    use parquet::file::properties::WriterProperties;
    use parquet::file::writer::SerializedFileWriter;
    use parquet::schema::parser::parse_message_type;
    use std::sync::Arc;

    /// Two rows of a text column with a null, in a file.
    fn file() -> Vec<u8> {
        let schema = parse_message_type("message m { OPTIONAL BYTE_ARRAY q (UTF8); OPTIONAL BYTE_ARRAY a (UTF8); }");
        let mut bytes = Vec::new();
        let properties = Arc::new(WriterProperties::builder().build());
        let mut writer = SerializedFileWriter::new(&mut bytes, Arc::new(schema.unwrap()), properties).unwrap();
        let mut group = writer.next_row_group().unwrap();
        for (values, levels) in [(vec!["x", "y"], [1, 1]), (vec!["z"], [0, 1])] {
            let mut column = group.next_column().unwrap().unwrap();
            let values: Vec<_> = values.into_iter().map(|v| v.as_bytes().to_vec().into()).collect();
            column.typed::<ByteArrayType>().write_batch(&values, Some(&levels), None).unwrap();
            column.close().unwrap();
        }
        group.close().unwrap();
        writer.close().unwrap();
        bytes
    }

    #[test]
    fn rows_come_with_nulls_and_corruption_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("f.parquet");
        let whole = file();
        let read = |bytes: &[u8]| {
            std::fs::write(&path, bytes).unwrap();
            let columns = |row: crate::Result<super::super::Row>| Ok(serde_json::Value::Object(row?.columns).to_string());
            rows(vec![path.clone()], FileKind::Parquet).map(columns).collect::<crate::Result<Vec<_>>>()
        };
        assert_eq!(read(&whole).unwrap(), [r#"{"q":"x","a":null}"#, r#"{"q":"y","a":"z"}"#]);
        for end in (0..whole.len()).step_by(7) {
            assert!(read(&whole[..end]).unwrap_err().to_string().contains("f.parquet"));
        }
        for at in (0..whole.len()).step_by(5) {
            let mut bytes = whole.clone();
            bytes[at] ^= 0x55;
            let _ = read(&bytes); // whatever comes, it is no panic
        }
    }
}
