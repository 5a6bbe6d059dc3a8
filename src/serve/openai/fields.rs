//! The fields of a JSON object from outside: each is what it should be, or named.

use std::ops::RangeInclusive;

use serde_json::{Map, Value};

use super::error::ApiError;

/// An object's fields. `null` is as good as nothing, as in OpenAI's API.
#[derive(Clone, Copy)]
pub(in crate::serve) struct Fields<'a> {
    map: &'a Map<String, Value>,
}

/// What a JSON value is, in words.
pub(super) fn kind(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "an array",
        Value::Object(_) => "an object",
    }
}

/// A body as JSON.
///
/// # Errors
/// 400 for what is no JSON, or no object: also for invalid UTF-8, for numbers beyond a float and for deep nesting.
pub(in crate::serve) fn object(body: &[u8]) -> Result<Value, ApiError> {
    match serde_json::from_slice(body) {
        Ok(value @ Value::Object(_)) => Ok(value),
        Ok(other) => Err(ApiError::bad(format!("the body must be a JSON object, is {}", kind(&other)))),
        Err(e) => Err(ApiError::bad(format!("the body is not JSON: {e}"))),
    }
}

impl<'a> Fields<'a> {
    /// The fields of a value that [`object`] gave; none of any other.
    pub fn of(value: &'a Value) -> Fields<'a> {
        static NONE: std::sync::LazyLock<Map<String, Value>> = std::sync::LazyLock::new(Map::new);
        Fields { map: value.as_object().unwrap_or(&NONE) }
    }

    pub fn get(self, key: &str) -> Option<&'a Value> {
        self.map.get(key).filter(|v| !v.is_null())
    }

    pub fn text(self, key: &str) -> Result<Option<&'a str>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(wrong(key, "a string", other)),
        }
    }

    pub fn needed_text(self, key: &str) -> Result<&'a str, ApiError> {
        self.text(key)?.ok_or_else(|| ApiError::invalid(key, format!("`{key}` is missing")))
    }

    pub fn flag(self, key: &str) -> Result<Option<bool>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Bool(on)) => Ok(Some(*on)),
            Some(other) => Err(wrong(key, "a boolean", other)),
        }
    }

    /// A number in `bounds`; JSON knows no NaN, and infinities are no JSON either.
    pub fn number(self, key: &str, bounds: RangeInclusive<f64>) -> Result<Option<f64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let x = value.as_f64().ok_or_else(|| wrong(key, "a number", value))?;
        match bounds.contains(&x) {
            true => Ok(Some(x)),
            false => Err(out_of(key, &format!("[{}, {}]", bounds.start(), bounds.end()), value)),
        }
    }

    /// A whole number in `bounds`; `8.0` counts as 8.
    pub fn whole(self, key: &str, bounds: RangeInclusive<i64>) -> Result<Option<i64>, ApiError> {
        let Some(value) = self.get(key) else { return Ok(None) };
        let Value::Number(number) = value else { return Err(wrong(key, "a whole number", value)) };
        // A float counts exactly up to 2^53.
        let of_float = |x: f64| (x.fract() == 0.0 && x.abs() < 9.0e15).then_some(x as i64);
        let whole = number.as_i64().or_else(|| number.as_f64().filter(|_| number.is_f64()).and_then(of_float));
        match whole.filter(|n| bounds.contains(n)) {
            Some(n) => Ok(Some(n)),
            None => {
                let upper = if *bounds.end() == i64::MAX { "2^63 - 1".to_string() } else { bounds.end().to_string() };
                let lower = if *bounds.start() == i64::MIN { "-2^63".to_string() } else { bounds.start().to_string() };
                Err(out_of(key, &format!("a whole number in [{lower}, {upper}]"), value))
            }
        }
    }

    /// As [`Fields::whole`], for counts.
    pub fn count(self, key: &str, bounds: RangeInclusive<usize>) -> Result<Option<usize>, ApiError> {
        let bound = |n: usize| i64::try_from(n).unwrap_or(i64::MAX);
        let n = self.whole(key, bound(*bounds.start())..=bound(*bounds.end()))?;
        Ok(n.and_then(|n| usize::try_from(n).ok()))
    }

    /// An inner object.
    pub fn object(self, key: &str) -> Result<Option<Fields<'a>>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Object(map)) => Ok(Some(Fields { map })),
            Some(other) => Err(wrong(key, "an object", other)),
        }
    }

    pub fn list(self, key: &str) -> Result<Option<&'a [Value]>, ApiError> {
        match self.get(key) {
            None => Ok(None),
            Some(Value::Array(items)) => Ok(Some(items)),
            Some(other) => Err(wrong(key, "an array", other)),
        }
    }

    /// # Errors
    /// 400 with `why` if `key` asks for anything: neither null nor false, nor empty.
    pub fn refuse(self, key: &str, why: &str) -> Result<(), ApiError> {
        let asks = match self.get(key) {
            None | Some(Value::Bool(false)) => false,
            Some(Value::String(s)) => !s.is_empty(),
            Some(Value::Array(a)) => !a.is_empty(),
            Some(Value::Object(o)) => !o.is_empty(),
            Some(_) => true,
        };
        if asks { Err(ApiError::invalid(key, format!("`{key}` {why}"))) } else { Ok(()) }
    }
}

pub(super) fn wrong(param: &str, expected: &str, got: &Value) -> ApiError {
    ApiError::invalid(param, format!("`{param}` must be {expected}, is {}", kind(got)))
}

fn out_of(key: &str, expected: &str, got: &Value) -> ApiError {
    let shown: String = got.to_string().chars().take(40).collect();
    ApiError::invalid(
        key,
        format!(
            "`{key}` must be {}; got {shown}",
            match expected.starts_with('[') {
                true => format!("in {expected}"),
                false => expected.to_string(),
            }
        ),
    )
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_is_no_object_is_refused() {
        let deep = "[".repeat(100_000);
        let deep_object = "{\"a\":".repeat(100_000);
        for bad in [
            &b"\xff\xfe"[..],
            b"",
            b"[]",
            b"\"x\"",
            b"{\"a\": NaN}",
            b"{\"a\": 1e999}",
            b"{\"a\": \"\xff\"}",
            b"{} x",
            deep.as_bytes(),
            deep_object.as_bytes(),
        ] {
            let e = object(bad).unwrap_err();
            assert_eq!(e.status.as_u16(), 400);
            assert!(e.message.starts_with("the body ") && e.message.len() < 200, "{}", e.message);
        }
        assert!(object(b"{}").is_ok());
    }

    #[test]
    fn each_field_is_checked_and_named() {
        let value = json!({"t": "x", "f": 1.5, "n": 8.0, "big": 1e300, "huge": u64::MAX, "b": true, "nil": null, "o": {"a": 1}, "l": [1]});
        let f = Fields::of(&value);
        assert_eq!(f.text("t").unwrap(), Some("x"));
        assert_eq!((f.text("nil").unwrap(), f.text("none").unwrap()), (None, None));
        assert_eq!((f.number("f", 0.0..=2.0).unwrap(), f.whole("n", 1..=8).unwrap()), (Some(1.5), Some(8)));
        assert_eq!(
            (f.flag("b").unwrap(), f.object("o").unwrap().unwrap().whole("a", 0..=1).unwrap()),
            (Some(true), Some(1))
        );
        for e in [
            f.text("f").unwrap_err(),
            f.number("t", 0.0..=1.0).unwrap_err(),
            f.number("f", 0.0..=1.0).unwrap_err(),
            f.whole("f", 0..=9).unwrap_err(),
            f.whole("big", i64::MIN..=i64::MAX).unwrap_err(),
            f.whole("huge", i64::MIN..=i64::MAX).unwrap_err(),
            f.count("n", 0..=7).unwrap_err(),
            f.flag("t").unwrap_err(),
            f.object("l").err().unwrap(),
            f.list("o").unwrap_err(),
            f.needed_text("none").unwrap_err(),
            f.refuse("b", "is not built").unwrap_err(),
        ] {
            let param = e.param.clone().unwrap();
            assert!(e.message.starts_with(&format!("`{param}` ")), "{}", e.message);
        }
    }
}
