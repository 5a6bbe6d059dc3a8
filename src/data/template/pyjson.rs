//! JSON as Python's `json` module reads and writes it, because tool descriptions and calls become text in a prompt:
//! the order of keys, integers of any size and the spelling of floats have to survive the way there and back.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::fmt::Write;

/// Deepest nesting that is read; Python gives up near 1000.
const MAX_DEPTH: usize = 200;

/// A JSON value.
#[derive(Debug, Clone, PartialEq)]
pub enum Json {
    Null,
    Bool(bool),
    /// An integer's digits, of any length.
    Int(String),
    Float(f64),
    Str(String),
    List(Vec<Json>),
    /// Keys in the order of their first appearance; the last value of a repeated key counts.
    Dict(Vec<(String, Json)>),
}

impl Json {
    /// Reads what `json.loads` reads: RFC 8259 and the words `NaN`, `Infinity`, `-Infinity`.
    ///
    /// # Errors
    /// What is wrong and at which byte, as a phrase. Lone surrogates (`\ud800`) are refused: no tokenizer takes them.
    pub fn parse(text: &str) -> Result<Json, String> {
        let mut p = Parser { text, at: 0 };
        p.space();
        let v = p.value(0)?;
        p.space();
        if p.at < text.len() { Err(p.err("expected the end")) } else { Ok(v) }
    }

    /// The value of `key`, if this is an object that has it.
    pub fn get(&self, key: &str) -> Option<&Json> {
        match self {
            Json::Dict(items) => items.iter().find(|(k, _)| k == key).map(|(_, v)| v),
            _ => None,
        }
    }

    /// The text, if this is one.
    pub fn as_str(&self) -> Option<&str> {
        match self {
            Json::Str(s) => Some(s),
            _ => None,
        }
    }

    /// `json.dumps(self, ensure_ascii=False, indent=indent)`.
    pub fn dumps(&self, indent: Option<usize>) -> String {
        let mut out = String::new();
        self.write(&mut out, indent, 0, false);
        out
    }

    /// `json.dumps(self, ensure_ascii=True, indent=indent)`.
    pub fn dumps_ascii(&self, indent: Option<usize>) -> String {
        let mut out = String::new();
        self.write(&mut out, indent, 0, true);
        out
    }

    fn write(&self, out: &mut String, indent: Option<usize>, depth: usize, ascii: bool) {
        let newline = |out: &mut String, depth: usize| {
            if let Some(n) = indent {
                out.push('\n');
                out.extend(std::iter::repeat_n(' ', n * depth));
            }
        };
        let comma = if indent.is_some() { "," } else { ", " };
        match self {
            Json::Null => out.push_str("null"),
            Json::Bool(b) => out.push_str(if *b { "true" } else { "false" }),
            Json::Int(s) => out.push_str(s),
            Json::Float(f) => out.push_str(&match f {
                f if f.is_nan() => "NaN".to_string(),
                f if f.is_infinite() => (if *f > 0.0 { "Infinity" } else { "-Infinity" }).to_string(),
                f => float_repr(*f),
            }),
            Json::Str(s) => write_string(out, s, ascii),
            Json::List(items) if items.is_empty() => out.push_str("[]"),
            Json::Dict(items) if items.is_empty() => out.push_str("{}"),
            Json::List(items) => {
                out.push('[');
                for (i, v) in items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(comma);
                    }
                    newline(out, depth + 1);
                    v.write(out, indent, depth + 1, ascii);
                }
                newline(out, depth);
                out.push(']');
            }
            Json::Dict(items) => {
                out.push('{');
                for (i, (k, v)) in items.iter().enumerate() {
                    if i > 0 {
                        out.push_str(comma);
                    }
                    newline(out, depth + 1);
                    write_string(out, k, ascii);
                    out.push_str(": ");
                    v.write(out, indent, depth + 1, ascii);
                }
                newline(out, depth);
                out.push('}');
            }
        }
    }

    /// Python's `str()` of the value: a string is itself, everything else its `repr`.
    pub fn py_str(&self) -> String {
        match self {
            Json::Str(s) => s.clone(),
            other => other.py_repr(),
        }
    }

    fn py_repr(&self) -> String {
        match self {
            Json::Null => "None".into(),
            Json::Bool(b) => (if *b { "True" } else { "False" }).into(),
            Json::Int(s) => s.clone(),
            Json::Float(f) if f.is_nan() => "nan".into(),
            Json::Float(f) if f.is_infinite() => (if *f > 0.0 { "inf" } else { "-inf" }).into(),
            Json::Float(f) => float_repr(*f),
            Json::Str(s) => {
                let quote = if s.contains('\'') && !s.contains('"') { '"' } else { '\'' };
                let mut out = String::from(quote);
                for c in s.chars() {
                    match c {
                        '\n' => out.push_str("\\n"),
                        '\r' => out.push_str("\\r"),
                        '\t' => out.push_str("\\t"),
                        '\\' => out.push_str("\\\\"),
                        c if c == quote => {
                            out.push('\\');
                            out.push(c);
                        }
                        c if (c as u32) < 0x20 || c as u32 == 0x7f => out.push_str(&format!("\\x{:02x}", c as u32)),
                        c => out.push(c),
                    }
                }
                out.push(quote);
                out
            }
            Json::List(v) => format!("[{}]", v.iter().map(Json::py_repr).collect::<Vec<_>>().join(", ")),
            Json::Dict(v) => {
                let items: Vec<_> =
                    v.iter().map(|(k, v)| format!("{}: {}", Json::Str(k.clone()).py_repr(), v.py_repr())).collect();
                format!("{{{}}}", items.join(", "))
            }
        }
    }
}

/// `repr` of a finite float: the shortest digits that read back, as a plain decimal for 1e-4 <= |f| < 1e16.
fn float_repr(f: f64) -> String {
    let sci = format!("{f:e}");
    let (mantissa, exp) = sci.split_once('e').unwrap_or((&sci, "0"));
    let exp: i32 = exp.parse().unwrap_or(0);
    if f == 0.0 || (-4..16).contains(&exp) {
        let plain = format!("{f}");
        if plain.contains('.') { plain } else { plain + ".0" }
    } else {
        format!("{mantissa}e{}{:02}", if exp < 0 { '-' } else { '+' }, exp.abs())
    }
}

fn write_string(out: &mut String, s: &str, ascii: bool) {
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
            c if (c as u32) < 0x20 || (ascii && !(' '..='~').contains(&c)) => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

struct Parser<'a> {
    text: &'a str,
    at: usize,
}

impl Parser<'_> {
    fn err(&self, what: &str) -> String {
        format!("{what} at byte {}", self.at)
    }

    fn peek(&self) -> Option<u8> {
        self.text.as_bytes().get(self.at).copied()
    }

    fn space(&mut self) {
        while matches!(self.peek(), Some(b' ' | b'\t' | b'\n' | b'\r')) {
            self.at += 1;
        }
    }

    fn word(&mut self, word: &str) -> bool {
        let found = self.text.as_bytes().get(self.at..).is_some_and(|rest| rest.starts_with(word.as_bytes()));
        if found {
            self.at += word.len();
        }
        found
    }

    fn value(&mut self, depth: usize) -> Result<Json, String> {
        if depth > MAX_DEPTH {
            return Err(self.err("nested too deeply"));
        }
        match self.peek() {
            Some(b'{') => {
                self.at += 1;
                let mut items: Vec<(String, Json)> = Vec::new();
                let mut places: HashMap<String, usize> = HashMap::new();
                self.space();
                if self.word("}") {
                    return Ok(Json::Dict(items));
                }
                loop {
                    self.space();
                    if self.peek() != Some(b'"') {
                        return Err(self.err("expected a key in double quotes"));
                    }
                    let key = self.string()?;
                    self.space();
                    if !self.word(":") {
                        return Err(self.err("expected ':'"));
                    }
                    self.space();
                    let v = self.value(depth + 1)?;
                    match places.entry(key.clone()) {
                        Entry::Occupied(place) => {
                            if let Some(slot) = items.get_mut(*place.get()) {
                                slot.1 = v;
                            }
                        }
                        Entry::Vacant(place) => {
                            place.insert(items.len());
                            items.push((key, v));
                        }
                    }
                    self.space();
                    if self.word("}") {
                        return Ok(Json::Dict(items));
                    }
                    if !self.word(",") {
                        return Err(self.err("expected ',' or '}'"));
                    }
                }
            }
            Some(b'[') => {
                self.at += 1;
                let mut items = Vec::new();
                self.space();
                if self.word("]") {
                    return Ok(Json::List(items));
                }
                loop {
                    self.space();
                    items.push(self.value(depth + 1)?);
                    self.space();
                    if self.word("]") {
                        return Ok(Json::List(items));
                    }
                    if !self.word(",") {
                        return Err(self.err("expected ',' or ']'"));
                    }
                }
            }
            Some(b'"') => Ok(Json::Str(self.string()?)),
            _ if self.word("null") => Ok(Json::Null),
            _ if self.word("true") => Ok(Json::Bool(true)),
            _ if self.word("false") => Ok(Json::Bool(false)),
            _ if self.word("NaN") => Ok(Json::Float(f64::NAN)),
            _ if self.word("Infinity") => Ok(Json::Float(f64::INFINITY)),
            _ if self.word("-Infinity") => Ok(Json::Float(f64::NEG_INFINITY)),
            Some(b'-' | b'0'..=b'9') => self.number(),
            _ => Err(self.err("expected a value")),
        }
    }

    fn digits(&mut self) -> usize {
        let start = self.at;
        while matches!(self.peek(), Some(b'0'..=b'9')) {
            self.at += 1;
        }
        self.at - start
    }

    fn number(&mut self) -> Result<Json, String> {
        let start = self.at;
        self.word("-");
        let int_start = self.at;
        let n = self.digits();
        if n == 0 || (n > 1 && self.text.as_bytes().get(int_start) == Some(&b'0')) {
            return Err(self.err("malformed number"));
        }
        let mut float = false;
        // A dot or an exponent without digits ends the number before it, and the caller then trips over it.
        let before = self.at;
        if self.word(".") {
            if self.digits() > 0 {
                float = true;
            } else {
                self.at = before;
            }
        }
        let before = self.at;
        if self.word("e") || self.word("E") {
            let _ = self.word("+") || self.word("-");
            if self.digits() > 0 {
                float = true;
            } else {
                self.at = before;
            }
        }
        let text = self.text.get(start..self.at).unwrap_or("0");
        if float {
            text.parse().map(Json::Float).map_err(|_| self.err("malformed number"))
        } else {
            Ok(Json::Int(if text == "-0" { "0".into() } else { text.into() }))
        }
    }

    fn hex4(&mut self) -> Result<u32, String> {
        let digits = self.text.get(self.at..self.at + 4).filter(|d| d.bytes().all(|b| b.is_ascii_hexdigit()));
        let v = digits.and_then(|d| u32::from_str_radix(d, 16).ok()).ok_or_else(|| self.err("malformed \\u escape"))?;
        self.at += 4;
        Ok(v)
    }

    fn string(&mut self) -> Result<String, String> {
        self.at += 1; // the opening quote
        let mut out = String::new();
        loop {
            let rest = self.text.get(self.at..).unwrap_or("");
            let Some(c) = rest.chars().next() else { return Err(self.err("unterminated string")) };
            self.at += c.len_utf8();
            match c {
                '"' => return Ok(out),
                '\\' => {
                    let e = self.peek().ok_or_else(|| self.err("unterminated string"))?;
                    self.at += 1;
                    match e {
                        b'"' => out.push('"'),
                        b'\\' => out.push('\\'),
                        b'/' => out.push('/'),
                        b'b' => out.push('\u{8}'),
                        b'f' => out.push('\u{c}'),
                        b'n' => out.push('\n'),
                        b'r' => out.push('\r'),
                        b't' => out.push('\t'),
                        b'u' => {
                            let mut code = self.hex4()?;
                            if (0xd800..0xdc00).contains(&code) && self.word("\\u") {
                                let low = self.hex4()?;
                                if !(0xdc00..0xe000).contains(&low) {
                                    return Err(self.err("lone surrogate"));
                                }
                                code = 0x10000 + ((code - 0xd800) << 10) + (low - 0xdc00);
                            }
                            out.push(char::from_u32(code).ok_or_else(|| self.err("lone surrogate"))?);
                        }
                        _ => return Err(self.err("unknown escape")),
                    }
                }
                c if (c as u32) < 0x20 => return Err(self.err("raw control character in a string")),
                c => out.push(c),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn floats_are_spelt_as_python_does() {
        for (text, want) in [
            ("1e5", "100000.0"),
            ("1e16", "1e+16"),
            ("123456789012345680.0", "1.2345678901234568e+17"),
            ("0.0001", "0.0001"),
            ("0.00001", "1e-05"),
            ("-0.0", "-0.0"),
            ("1.5E-10", "1.5e-10"),
            ("-0", "0"),
            ("123456789012345678901234567890", "123456789012345678901234567890"),
            ("1e999", "Infinity"),
        ] {
            assert_eq!(Json::parse(text).unwrap().dumps(None), want, "{text}");
        }
    }

    #[test]
    fn objects_keep_order_and_the_last_of_repeated_keys() {
        let v = Json::parse(r#" {"b": 1, "a": [], "b": {"c": "é\u00e9\ud83d\ude00\n/"}} "#).unwrap();
        assert_eq!(v.dumps(None), "{\"b\": {\"c\": \"éé😀\\n/\"}, \"a\": []}");
        assert_eq!(v.dumps_ascii(None), "{\"b\": {\"c\": \"\\u00e9\\u00e9\\ud83d\\ude00\\n/\"}, \"a\": []}");
        assert_eq!(v.dumps(Some(4)), "{\n    \"b\": {\n        \"c\": \"éé😀\\n/\"\n    },\n    \"a\": []\n}");
        assert_eq!(v.py_str(), "{'b': {'c': 'éé😀\\n/'}, 'a': []}");
    }

    #[test]
    fn malformed_text_is_refused() {
        for bad in
            ["", "{", "[1,]", "{\"a\":1,}", "01", "1.", "\"\\ud800\"", "\"a\nb\"", "{a:1}", "'a'", "1 2", "\"\\u+123\""]
        {
            assert!(Json::parse(bad).is_err(), "{bad}");
        }
        assert!(Json::parse(&"[".repeat(100_000)).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]

        #[test]
        fn any_text_is_read_or_refused(s in "[\\[\\]{}\",:0-9eE.+\\-\\\\untrfa é]{0,40}") {
            if let Ok(v) = Json::parse(&s) {
                let again = Json::parse(&v.dumps(None)).unwrap();
                prop_assert_eq!(again.dumps(None), v.dumps(None));
            }
        }
    }
}
