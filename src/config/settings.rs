//! Typed access to settings. Each error names the key as typed, what it must be, and what was given.

use std::path::PathBuf;

use serde_json::Value;

use super::read::{Entry, printable};
use crate::error::{Error, Result};

/// Whole numbers beyond this are not exact as floats, and nothing here counts so far.
const MAX_COUNT: f64 = 9_007_199_254_740_992.0; // 2^53

/// The settings of a run, by key. A key that is absent or `null` has its default.
pub(super) struct Settings {
    entries: Vec<Entry>,
    /// Whether they are written in the small-tutorial dialect.
    pub tutorial: bool,
}

impl Settings {
    pub fn new(entries: Vec<Entry>, tutorial: bool) -> Self {
        Settings { entries, tutorial }
    }

    pub fn entries(&self) -> &[Entry] {
        &self.entries
    }

    /// The entry of `key`, whatever its value.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries.iter().find(|e| e.key == key)
    }

    fn given(&self, key: &str) -> Option<&Entry> {
        self.entry(key).filter(|e| !e.value.is_null())
    }

    /// Whether `key` has a value other than `null`.
    pub fn is_set(&self, key: &str) -> bool {
        self.given(key).is_some()
    }

    /// `key` as the user typed it: another name in the small-tutorial dialect.
    pub fn typed<'a>(&'a self, key: &'a str) -> &'a str {
        self.entry(key).map_or(key, |e| &e.typed)
    }

    /// An error about a combination of keys, under `key`'s name as typed.
    pub fn conflict(&self, key: &str, why: impl Into<String>) -> Error {
        Error::config(self.typed(key), why)
    }

    /// The error for a value that is not as `expected` says.
    pub fn bad(&self, key: &str, expected: &str) -> Error {
        let given = self.entry(key).map_or("nothing".to_string(), |e| describe(&e.value));
        Error::config(self.typed(key), format!("must be {expected}; got {given}"))
    }

    /// `true` or `false`.
    pub fn flag(&self, key: &str, default: bool) -> Result<bool> {
        Ok(self.maybe_flag(key)?.unwrap_or(default))
    }

    pub fn maybe_flag(&self, key: &str) -> Result<Option<bool>> {
        match self.given(key).map(|e| &e.value) {
            None => Ok(None),
            Some(Value::Bool(b)) => Ok(Some(*b)),
            Some(_) => Err(self.bad(key, "true or false")),
        }
    }

    /// A finite number for which `allowed` holds; `expected` says so in words.
    pub fn maybe_number(&self, key: &str, allowed: impl Fn(f64) -> bool, expected: &str) -> Result<Option<f64>> {
        let Some(entry) = self.given(key) else { return Ok(None) };
        match entry.value.as_f64() {
            // NaN fails `is_finite`, so `allowed` never sees it.
            Some(x) if x.is_finite() && allowed(x) => Ok(Some(x)),
            _ => Err(self.bad(key, expected)),
        }
    }

    pub fn number(&self, key: &str, default: f64, allowed: impl Fn(f64) -> bool, expected: &str) -> Result<f64> {
        Ok(self.maybe_number(key, allowed, expected)?.unwrap_or(default))
    }

    /// A whole number of at least `least`; `8.0` counts as 8.
    pub fn maybe_whole(&self, key: &str, least: i64) -> Result<Option<i64>> {
        let expected = match least {
            0 | 1 => format!("a whole number, {least} or more"),
            _ => "a whole number".to_string(),
        };
        let whole = |x: f64| x.fract() == 0.0 && x.abs() <= MAX_COUNT && x >= least as f64;
        Ok(self.maybe_number(key, whole, &expected)?.map(|x| x as i64))
    }

    /// A count of at least `least`.
    pub fn maybe_count(&self, key: &str, least: u32) -> Result<Option<usize>> {
        match self.maybe_whole(key, i64::from(least))? {
            None => Ok(None),
            Some(n) => usize::try_from(n).map(Some).map_err(|_| self.bad(key, "a smaller number")),
        }
    }

    pub fn count(&self, key: &str, default: usize, least: u32) -> Result<usize> {
        Ok(self.maybe_count(key, least)?.unwrap_or(default))
    }

    /// A text that is not empty. On the command line anything is a text; in a file a number or a boolean is not,
    /// because `1e5` or `no` would come out other than written.
    pub fn text(&self, key: &str) -> Result<Option<String>> {
        let text = self.text_or_empty(key)?;
        if text.as_deref().is_some_and(|t| t.trim().is_empty()) {
            return Err(self.bad(key, "a text that is not empty"));
        }
        Ok(text)
    }

    /// As [`Settings::text`], where an empty text has a meaning of its own.
    pub fn text_or_empty(&self, key: &str) -> Result<Option<String>> {
        let Some(entry) = self.given(key) else { return Ok(None) };
        match (&entry.value, &entry.text) {
            (Value::String(s), _) => Ok(Some(s.clone())),
            (_, Some(text)) => Ok(Some(text.clone())),
            _ => Err(self.bad(key, "a text (put quotes around it if it is meant as one)")),
        }
    }

    /// A path; `~/` is the user's home.
    pub fn path(&self, key: &str) -> Result<Option<PathBuf>> {
        Ok(self.text(key)?.map(|t| expand_home(&t)))
    }

    /// Words: `a,b`, or a YAML list. Empty when absent.
    pub fn words(&self, key: &str) -> Result<Vec<String>> {
        const EXPECTED: &str = "one or more names, as `a,b` or a list";
        let words: Vec<String> = match self.given(key).map(|e| (&e.value, &e.text)) {
            None => return Ok(Vec::new()),
            Some((Value::Array(items), _)) => {
                let texts = items.iter().map(|v| v.as_str().map(|s| s.trim().to_string()));
                texts.collect::<Option<_>>().ok_or_else(|| self.bad(key, EXPECTED))?
            }
            Some((Value::String(s), _)) | Some((_, Some(s))) => s.split(',').map(|w| w.trim().to_string()).collect(),
            Some(_) => return Err(self.bad(key, EXPECTED)),
        };
        if words.is_empty() || words.iter().any(String::is_empty) {
            return Err(self.bad(key, EXPECTED));
        }
        Ok(words)
    }

    /// One of `built`. `no` may come as the boolean that YAML makes of it. Words in `unbuilt` are known to
    /// LLaMA-Factory and refused as such.
    pub fn choice<T: Copy>(&self, key: &str, default: T, built: &[(&str, T)], unbuilt: &[&str]) -> Result<T> {
        Ok(self.maybe_choice(key, built, unbuilt)?.unwrap_or(default))
    }

    pub fn maybe_choice<T: Copy>(&self, key: &str, built: &[(&str, T)], unbuilt: &[&str]) -> Result<Option<T>> {
        let Some(entry) = self.given(key) else { return Ok(None) };
        let word = match &entry.value {
            Value::Bool(false) => "no",
            Value::String(s) => s.as_str(),
            _ => "",
        };
        if let Some((_, value)) = built.iter().find(|(name, _)| *name == word) {
            return Ok(Some(*value));
        }
        let names = built.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(", ");
        if unbuilt.contains(&word) {
            let why = format!("`{word}` is not built; these are: {names}");
            return Err(Error::config(&entry.typed, why));
        }
        Err(self.bad(key, &format!("one of {names}")))
    }
}

/// `~/x` -> the user's home and `x`; anything else as it is.
pub(super) fn expand_home(text: &str) -> PathBuf {
    match (text.strip_prefix("~/"), std::env::var_os("HOME")) {
        (Some(rest), Some(home)) => PathBuf::from(home).join(rest),
        _ => PathBuf::from(text),
    }
}

/// A value as an error message shows it, on one line.
pub(super) fn describe(value: &Value) -> String {
    match value {
        Value::Null => "null".to_string(),
        Value::Bool(b) => b.to_string(),
        Value::Number(n) => n.to_string(),
        Value::String(s) if matches!(s.as_str(), ".nan" | ".inf" | "-.inf") => s.clone(),
        Value::String(s) => format!("the text \"{}\"", printable(s)),
        Value::Array(_) => "a list".to_string(),
        Value::Object(_) => "a mapping".to_string(),
    }
}
