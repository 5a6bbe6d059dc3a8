//! `json.dumps(value, ensure_ascii=False)`, letter for letter: tool calls are trained on in this spelling.

use serde_json::{Number, Value};

/// ", " and ": " between items, non-ASCII letters as they are.
pub fn dumps(value: &Value) -> String {
    match value {
        Value::Array(items) => format!("[{}]", items.iter().map(dumps).collect::<Vec<_>>().join(", ")),
        Value::Object(items) => {
            let items: Vec<_> = items.iter().map(|(key, value)| format!("{}: {}", string(key), dumps(value))).collect();
            format!("{{{}}}", items.join(", "))
        }
        Value::String(text) => string(text),
        Value::Number(number) => self::number(number),
        other => other.to_string(),
    }
}

/// Python escapes the same characters as serde_json does: quote, backslash and those below U+0020.
fn string(text: &str) -> String {
    Value::String(text.into()).to_string()
}

/// `repr` of a float: shortest digits that read back, with an exponent below 1e-4 and from 1e16 on.
fn number(number: &Number) -> String {
    let float = match number.as_f64() {
        Some(float) if number.is_f64() => float,
        _ => return number.to_string(),
    };
    let scientific = format!("{float:e}");
    let Some((digits, exponent)) = scientific.split_once('e') else { return scientific };
    match exponent.parse::<i32>() {
        Ok(exponent) if !(-4..16).contains(&exponent) => {
            let sign = if exponent < 0 { '-' } else { '+' };
            format!("{digits}e{sign}{:02}", exponent.abs())
        }
        _ => format!("{float:?}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn spelled_as_python_does() {
        let value: Value = serde_json::from_str(
            r#"{"a": [1, -2.0, 1e16, 1.5e-7, 0.0001, 123456789012345.6, 1e22], "ü\n\u0001\u007f\"": [null, true, {}, []], "/": ""}"#,
        )
        .unwrap();
        // Printed by Python 3.12: json.dumps(json.loads(text), ensure_ascii=False)
        let want = "{\"a\": [1, -2.0, 1e+16, 1.5e-07, 0.0001, 123456789012345.6, 1e+22], \
                    \"ü\\n\\u0001\u{7f}\\\"\": [null, true, {}, []], \"/\": \"\"}";
        assert_eq!(dumps(&value), want);
    }
}
