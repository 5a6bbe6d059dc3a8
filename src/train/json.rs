//! JSON laid out as Python's `json` writes it, so that our files and LLaMA-Factory's compare line by line.

use std::fmt::Write;

use serde_json::{Map, Number, Value};

/// One line, `", "` and `": "` between, keys in their order: a row of trainer_log.jsonl.
pub fn line(value: &Value) -> String {
    let mut out = String::new();
    write_value(&mut out, value, None, 0);
    out
}

/// Indented by `indent` spaces with keys sorted, and no newline at the end.
pub fn pretty(value: &Value, indent: usize) -> String {
    let mut out = String::new();
    write_value(&mut out, value, Some(indent), 0);
    out
}

/// `x` as a JSON number; null where it is not finite, for JSON has no other word for it.
pub fn number(x: f64) -> Value {
    Number::from_f64(x).map_or(Value::Null, Value::Number)
}

/// `x` as Python's `repr` writes it: the shortest digits that read back the same, an exponent of at least two
/// digits below 1e-4 and from 1e16 on, and ".0" after a whole number.
pub fn float_repr(x: f64) -> String {
    if x != 0.0 && x.is_finite() && !(1e-4..1e16).contains(&x.abs()) {
        let text = format!("{x:e}");
        let (digits, exponent) = text.split_once('e').unwrap_or((&text, "0"));
        let (sign, exponent) = exponent.strip_prefix('-').map_or(('+', exponent), |e| ('-', e));
        return format!("{digits}e{sign}{exponent:0>2}");
    }
    format!("{x:?}")
}

/// `x` rounded to `places` decimals as Python's `round` does: exactly, halves to even.
pub fn round(x: f64, places: usize) -> f64 {
    format!("{x:.places$}").parse().unwrap_or(x)
}

fn write_value(out: &mut String, value: &Value, indent: Option<usize>, depth: usize) {
    match value {
        Value::Null => out.push_str("null"),
        Value::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
        Value::Number(n) if n.is_f64() => out.push_str(&float_repr(n.as_f64().unwrap_or(f64::NAN))),
        Value::Number(n) => out.push_str(&n.to_string()),
        Value::String(s) => write_string(out, s),
        Value::Array(items) => {
            write_items(out, ['[', ']'], items.iter(), indent, depth, |out, item| {
                write_value(out, item, indent, depth + 1);
            });
        }
        Value::Object(map) => write_object(out, map, indent, depth),
    }
}

fn write_object(out: &mut String, map: &Map<String, Value>, indent: Option<usize>, depth: usize) {
    let mut entries: Vec<_> = map.iter().collect();
    if indent.is_some() {
        entries.sort_by_key(|&(key, _)| key);
    }
    write_items(out, ['{', '}'], entries.into_iter(), indent, depth, |out, (key, value)| {
        write_string(out, key);
        out.push_str(": ");
        write_value(out, value, indent, depth + 1);
    });
}

fn write_items<T>(
    out: &mut String,
    [open, close]: [char; 2],
    items: impl ExactSizeIterator<Item = T>,
    indent: Option<usize>,
    depth: usize,
    mut write_item: impl FnMut(&mut String, T),
) {
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = indent {
            out.push('\n');
            out.extend(std::iter::repeat_n(' ', indent * depth));
        }
    };
    let empty = items.len() == 0;
    out.push(open);
    for (i, item) in items.enumerate() {
        if i > 0 {
            out.push_str(if indent.is_some() { "," } else { ", " });
        }
        new_line(out, depth + 1);
        write_item(out, item);
    }
    if !empty {
        new_line(out, depth);
    }
    out.push(close);
}

/// ASCII only, as Python's default: everything else as UTF-16 escapes.
fn write_string(out: &mut String, s: &str) {
    out.push('"');
    for c in s.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            ' '..='~' => out.push(c),
            _ => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a String cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
        }
    }
    out.push('"');
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use serde_json::json;

    use super::*;

    /// Each text was printed by CPython 3.11's `repr`.
    #[test]
    fn floats_are_python_s() {
        for (x, want) in [
            (5e-5, "5e-05"),
            (1e-4, "0.0001"),
            (9.999999999999999e-5, "9.999999999999999e-05"),
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (3.0, "3.0"),
            (1e16, "1e+16"),
            (1.2345e22, "1.2345e+22"),
            (9007199254740993.0, "9007199254740992.0"),
            (1.5e-300, "1.5e-300"),
            (0.1 + 0.2, "0.30000000000000004"),
            (-2.5e-7, "-2.5e-07"),
        ] {
            assert_eq!(float_repr(x), want);
        }
        assert_eq!(round(2.675, 2), 2.67);
        assert_eq!(round(0.125, 2), 0.12);
        assert_eq!(round(66.66666, 2), 66.67);
    }

    #[test]
    fn layout_is_python_s() {
        let v = json!({"b": [1, 2.5, {}], "a": {"x": null, "é😀\"": true}, "c": []});
        assert_eq!(line(&v), r#"{"b": [1, 2.5, {}], "a": {"x": null, "\u00e9\ud83d\ude00\"": true}, "c": []}"#);
        let want = "{\n  \"a\": {\n    \"x\": null,\n    \"\\u00e9\\ud83d\\ude00\\\"\": true\n  },\n  \"b\": [\n    1,\n    2.5,\n    {}\n  ],\n  \"c\": []\n}";
        assert_eq!(pretty(&v, 2), want);
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        #[test]
        fn what_is_written_reads_back(x in any::<f64>(), s in any::<String>()) {
            let v = json!({"x": number(x), s.clone(): [s]});
            prop_assert_eq!(&serde_json::from_str::<Value>(&line(&v)).unwrap(), &v);
            prop_assert_eq!(&serde_json::from_str::<Value>(&pretty(&v, 4)).unwrap(), &v);
        }
    }
}
