//! A GGUF file's key-value pairs, in their order, and typed access to them.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// One value.
#[derive(Debug, Clone, PartialEq)]
pub enum Value {
    U8(u8),
    I8(i8),
    U16(u16),
    I16(i16),
    U32(u32),
    I32(i32),
    F32(f32),
    Bool(bool),
    String(String),
    Array(Array),
    U64(u64),
    I64(i64),
    F64(f64),
}

/// Values of one kind. Arrays of arrays exist in the format, and no model has them: they are refused.
#[derive(Debug, Clone, PartialEq)]
pub enum Array {
    U8(Vec<u8>),
    I8(Vec<i8>),
    U16(Vec<u16>),
    I16(Vec<i16>),
    U32(Vec<u32>),
    I32(Vec<i32>),
    F32(Vec<f32>),
    Bool(Vec<bool>),
    String(Vec<String>),
    U64(Vec<u64>),
    I64(Vec<i64>),
    F64(Vec<f64>),
}

impl Value {
    /// A string value.
    pub fn string(text: impl Into<String>) -> Self {
        Value::String(text.into())
    }

    /// What it is, in words for messages.
    fn kind(&self) -> &'static str {
        match self {
            Value::U8(_) | Value::U16(_) | Value::U32(_) | Value::U64(_) => "an unsigned integer",
            Value::I8(_) | Value::I16(_) | Value::I32(_) | Value::I64(_) => "an integer",
            Value::F32(_) | Value::F64(_) => "a float",
            Value::Bool(_) => "a bool",
            Value::String(_) => "a string",
            Value::Array(Array::String(_)) => "an array of strings",
            Value::Array(Array::Bool(_)) => "an array of bools",
            Value::Array(Array::F32(_) | Array::F64(_)) => "an array of floats",
            Value::Array(_) => "an array of integers",
        }
    }

    fn integer(&self) -> Option<i128> {
        Some(match self {
            Value::U8(x) => i128::from(*x),
            Value::I8(x) => i128::from(*x),
            Value::U16(x) => i128::from(*x),
            Value::I16(x) => i128::from(*x),
            Value::U32(x) => i128::from(*x),
            Value::I32(x) => i128::from(*x),
            Value::U64(x) => i128::from(*x),
            Value::I64(x) => i128::from(*x),
            _ => return None,
        })
    }
}

/// The pairs of a file, or of one to be written, in order. Each key is there once.
#[derive(Debug, Clone, Default)]
pub struct Metadata {
    entries: Vec<(String, Value)>,
    index: HashMap<String, usize>,
    /// The file they were read from, for messages.
    file: PathBuf,
}

impl Metadata {
    /// Without any pair, for a file to be written.
    pub fn new() -> Self {
        Metadata::of_file(Path::new("GGUF to be written"))
    }

    /// Without any pair yet; messages will name `file`.
    pub(super) fn of_file(file: &Path) -> Self {
        Metadata { file: file.to_path_buf(), ..Metadata::default() }
    }

    /// The file named in messages.
    pub fn file(&self) -> &Path {
        &self.file
    }

    /// Appends the pair, or replaces the value where the key is already there.
    pub fn set(&mut self, key: impl Into<String>, value: Value) {
        let key = key.into();
        if let Some(&at) = self.index.get(&key) {
            self.entries[at].1 = value;
        } else {
            self.index.insert(key.clone(), self.entries.len());
            self.entries.push((key, value));
        }
    }

    /// The value of `key`.
    pub fn get(&self, key: &str) -> Option<&Value> {
        self.index.get(key).map(|&at| &self.entries[at].1)
    }

    /// All pairs, in the file's order.
    pub fn iter(&self) -> impl Iterator<Item = (&str, &Value)> {
        self.entries.iter().map(|(k, v)| (k.as_str(), v))
    }

    /// How many pairs there are.
    pub fn len(&self) -> usize {
        self.entries.len()
    }

    /// Whether there is no pair.
    pub fn is_empty(&self) -> bool {
        self.entries.is_empty()
    }

    /// "\<file\>: metadata \`key\` why".
    pub fn error(&self, key: &str, why: impl Into<String>) -> Error {
        Error::file(&self.file, format!("metadata `{}` {}", shown(key), why.into()))
    }

    /// `take` of the value, or an error that says what was expected.
    fn typed<'a, T>(&'a self, key: &str, want: &str, take: impl Fn(&'a Value) -> Option<T>) -> Result<Option<T>> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let taken = take(value).ok_or_else(|| self.error(key, format!("is {}, expected {want}", value.kind())))?;
        Ok(Some(taken))
    }

    /// A string; `None` where the key is missing.
    ///
    /// # Errors
    /// [`Error::File`] naming file and key, where it is something else; so with each method below.
    pub fn string(&self, key: &str) -> Result<Option<&str>> {
        self.typed(key, "a string", |v| if let Value::String(s) = v { Some(s.as_str()) } else { None })
    }

    /// A non-negative integer of any width.
    pub fn number(&self, key: &str) -> Result<Option<u64>> {
        let Some(x) = self.typed(key, "an integer", Value::integer)? else { return Ok(None) };
        u64::try_from(x).map(Some).map_err(|_| self.error(key, format!("is {x}, expected 0 or more")))
    }

    /// A float of either width.
    pub fn float(&self, key: &str) -> Result<Option<f64>> {
        self.typed(key, "a float", |v| match v {
            Value::F32(x) => Some(f64::from(*x)),
            Value::F64(x) => Some(*x),
            _ => None,
        })
    }

    /// A bool.
    pub fn flag(&self, key: &str) -> Result<Option<bool>> {
        self.typed(key, "a bool", |v| if let Value::Bool(b) = v { Some(*b) } else { None })
    }

    /// An array of strings.
    pub fn strings(&self, key: &str) -> Result<Option<&[String]>> {
        self.typed(key, "an array of strings", |v| match v {
            Value::Array(Array::String(s)) => Some(s.as_slice()),
            _ => None,
        })
    }

    /// An array of 32-bit floats.
    pub fn floats(&self, key: &str) -> Result<Option<&[f32]>> {
        self.typed(key, "an array of 32-bit floats", |v| match v {
            Value::Array(Array::F32(x)) => Some(x.as_slice()),
            _ => None,
        })
    }

    /// An array of integers of any width.
    pub fn integers(&self, key: &str) -> Result<Option<Vec<i64>>> {
        fn wide<T: Copy + Into<i64>>(x: &[T]) -> Option<Vec<i64>> {
            Some(x.iter().map(|&x| x.into()).collect())
        }
        self.typed(key, "an array of integers that fit into 64 bits with a sign", |v| match v {
            Value::Array(Array::U8(x)) => wide(x),
            Value::Array(Array::I8(x)) => wide(x),
            Value::Array(Array::U16(x)) => wide(x),
            Value::Array(Array::I16(x)) => wide(x),
            Value::Array(Array::U32(x)) => wide(x),
            Value::Array(Array::I32(x)) => wide(x),
            Value::Array(Array::I64(x)) => Some(x.clone()),
            Value::Array(Array::U64(x)) => x.iter().map(|&x| i64::try_from(x).ok()).collect(),
            _ => None,
        })
    }
}

/// A name from outside, fit for a message of one line: escaped, and cut where it is long.
pub(super) fn shown(name: &str) -> String {
    const MOST: usize = 100;
    let cut: String = name.chars().take(MOST).collect();
    let dots = if cut.len() < name.len() { "..." } else { "" };
    format!("{}{dots}", cut.escape_debug())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Metadata {
        let mut m = Metadata::of_file(Path::new("m.gguf"));
        m.set("text", Value::string("a"));
        m.set("u", Value::U16(7));
        m.set("minus", Value::I8(-1));
        m.set("f", Value::F32(0.5));
        m.set("b", Value::Bool(true));
        m.set("names", Value::Array(Array::String(vec!["x".into()])));
        m.set("floats", Value::Array(Array::F32(vec![1.5])));
        m.set("ints", Value::Array(Array::U8(vec![200])));
        m.set("huge", Value::Array(Array::U64(vec![u64::MAX])));
        m
    }

    #[test]
    fn typed_values() {
        let m = sample();
        assert_eq!(m.string("text").unwrap(), Some("a"));
        assert_eq!(m.number("u").unwrap(), Some(7));
        assert_eq!(m.float("f").unwrap(), Some(0.5));
        assert_eq!(m.flag("b").unwrap(), Some(true));
        assert_eq!(m.strings("names").unwrap(), Some(["x".to_string()].as_slice()));
        assert_eq!(m.floats("floats").unwrap(), Some([1.5].as_slice()));
        assert_eq!(m.integers("ints").unwrap(), Some(vec![200]));
        assert!(m.string("none").unwrap().is_none() && m.integers("none").unwrap().is_none());
    }

    #[test]
    fn another_kind_is_named() {
        let m = sample();
        let e = m.number("text").unwrap_err().to_string();
        assert_eq!(e, "m.gguf: metadata `text` is a string, expected an integer");
        assert!(m.number("minus").unwrap_err().to_string().contains("is -1, expected 0 or more"));
        assert!(m.string("u").unwrap_err().to_string().contains("is an unsigned integer, expected a string"));
        assert!(
            m.float("u").is_err() && m.flag("u").is_err() && m.strings("ints").is_err() && m.floats("ints").is_err()
        );
        assert!(m.integers("floats").unwrap_err().to_string().contains("is an array of floats"));
        assert!(m.integers("huge").unwrap_err().to_string().contains("that fit into 64 bits"));
        assert!(!m.error("a\nb", "c").to_string().contains('\n'));
        assert!(m.error(&"é".repeat(500), "c").to_string().len() < 300);
    }

    #[test]
    fn order_is_kept_and_keys_are_single() {
        let mut m = sample();
        m.set("u", Value::U64(8));
        assert_eq!(m.number("u").unwrap(), Some(8));
        assert_eq!(m.iter().map(|(k, _)| k).take(3).collect::<Vec<_>>(), ["text", "u", "minus"]);
        assert_eq!(m.len(), 9);
    }
}
