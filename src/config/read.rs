//! Files and arguments as written -> an ordered list of keys and values. Nothing is judged here but the form.

use std::fmt;
use std::path::{Path, PathBuf};

use serde::Deserialize;
use serde::de::{DeserializeOwned, Deserializer, Error as _, MapAccess, Visitor};
use serde_json::{Map, Value};

use super::{dialect, table};
use crate::error::{Error, Result};

/// How a config is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Format {
    Yaml,
    Json,
}

/// One setting as the user wrote it.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Entry {
    /// The key as typed, for messages.
    pub typed: String,
    /// The key it stands for: differs from `typed` only in the small-tutorial dialect.
    pub key: String,
    pub value: Value,
    /// The value's own text where it came from the command line: `run_name=2024` is meant as a text.
    pub text: Option<String>,
}

/// A key and the text of its value, from the command line.
pub(super) type Pair = (String, String);

/// A config is a page of settings: beyond this size it is something else.
const MAX_BYTES: u64 = 1 << 20;
/// The deepest value anyone nests (`deepspeed` given in place) has half of this.
const MAX_DEPTH: usize = 32;

/// Splits command-line arguments into the config file and `key=value` pairs, in order.
///
/// Taken: the file first or after `--config`, then `key=value`, `--key=value`, `--key value`, and `--key` alone,
/// which means `true`. Dashes inside a `--key` count as underscores.
///
/// # Errors
/// [`Error::Config`] for a token that is none of these, or a second file.
pub(super) fn split_args(args: &[String]) -> Result<(Option<PathBuf>, Vec<Pair>)> {
    let mut file: Option<PathBuf> = None;
    let mut pairs = Vec::new();
    let mut tokens = args.iter().peekable();
    let mut first = true;
    while let Some(token) = tokens.next() {
        let mut new_file = None;
        if let Some(flag) = token.strip_prefix("--") {
            let (key, value) = match flag.split_once('=') {
                Some((key, value)) => (key, Some(value.to_string())),
                None => (flag, tokens.next_if(|next| is_value(next)).cloned()),
            };
            let key = key.replace('-', "_");
            if key == "config" {
                let value = value.ok_or_else(|| Error::config("--config", "needs the name of a file after it"))?;
                new_file = Some(value);
            } else {
                pairs.push((key, value.unwrap_or_else(|| "true".to_string())));
            }
        } else if let Some((key, value)) = token.split_once('=') {
            pairs.push((key.trim().to_string(), value.to_string()));
        } else if first || (file.is_none() && format_of(Path::new(token)).is_some()) {
            new_file = Some(token.clone());
        } else {
            return Err(Error::config(
                printable(token),
                "is not understood: after the file come `key=value` or `--key value`",
            ));
        }
        if let Some(new) = new_file
            && let Some(old) = file.replace(PathBuf::from(&new))
        {
            return Err(Error::config(
                printable(&new),
                format!("is a second config file; the first is {}", old.display()),
            ));
        }
        first = false;
    }
    Ok((file, pairs))
}

/// Whether the token after a `--key` is its value: not another flag, not the setting of another key.
fn is_value(token: &str) -> bool {
    let other_key = token.split_once('=').is_some_and(|(key, _)| table::status(root(key)).is_some());
    !token.starts_with("--") && !other_key
}

/// The format by extension, if it is one of ours.
fn format_of(path: &Path) -> Option<Format> {
    match path.extension()?.to_str()?.to_ascii_lowercase().as_str() {
        "yaml" | "yml" => Some(Format::Yaml),
        "json" => Some(Format::Json),
        _ => None,
    }
}

/// Reads a config file, `.yaml`, `.yml` or `.json`.
///
/// # Errors
/// [`Error::File`] if it cannot be read or is not such a file.
pub(super) fn file(path: &Path) -> Result<Vec<Entry>> {
    let format = format_of(path)
        .ok_or_else(|| Error::file(path, "is no config file: its name must end in .yaml, .yml or .json"))?;
    let meta = std::fs::metadata(path).map_err(|e| Error::io(path, "cannot read the config", &e))?;
    if !meta.is_file() {
        return Err(Error::file(path, "is no file"));
    }
    if meta.len() > MAX_BYTES {
        return Err(Error::file(path, format!("is too large for a config ({} bytes)", meta.len())));
    }
    let bytes = std::fs::read(path).map_err(|e| Error::io(path, "cannot read the config", &e))?;
    let text = String::from_utf8(bytes).map_err(|_| Error::file(path, "is not UTF-8 text"))?;
    parse(path, &text, format)
}

/// Parses the text of a config; `name` stands for it in messages.
///
/// # Errors
/// [`Error::File`] with the place if the text is malformed, holds a key twice, more than one document, or
/// something else than keys with values.
pub(super) fn parse(name: &Path, text: &str, format: Format) -> Result<Vec<Entry>> {
    let text = text.strip_prefix('\u{feff}').unwrap_or(text);
    let rows: Rows = match format {
        Format::Yaml => yaml(text).map_err(|why| Error::file(name, format!("is not valid YAML: {why}")))?,
        Format::Json => serde_json::from_str(text)
            .map_err(|e| Error::file(name, format!("is not valid JSON: {}", one_line(&e.to_string()))))?,
    };
    let mut entries: Vec<Entry> = Vec::with_capacity(rows.0.len());
    for (typed, value) in rows.0 {
        let key = dialect::canonical(&typed).to_string();
        if let Some(other) = entries.iter().find(|e| e.key == key) {
            return Err(Error::config(
                printable(&typed),
                format!("says the same as `{}`: keep one of them", printable(&other.typed)),
            ));
        }
        entries.push(Entry { typed, key, value, text: None });
    }
    Ok(entries)
}

/// Puts `key=value` pairs over what the file said. Values are YAML scalars, lists or mappings; what is no YAML
/// is a text. `a.b=c` sets one entry of a mapping.
pub(super) fn override_with(entries: &mut Vec<Entry>, pairs: &[Pair]) {
    for (typed, text) in pairs {
        let mut value = yaml(text).unwrap_or_else(|_| Value::String(text.clone()));
        let (name, path) = match typed.split_once('.') {
            Some((name, path)) => (name, Some(path)),
            None => (typed.as_str(), None),
        };
        for part in path.iter().flat_map(|p| p.rsplit('.')) {
            value = Value::Object(Map::from_iter([(part.to_string(), value)]));
        }
        let key = dialect::canonical(name).to_string();
        let text = path.is_none().then(|| text.clone());
        match entries.iter_mut().find(|e| e.key == key) {
            Some(entry) => {
                merge(&mut entry.value, value);
                (entry.typed, entry.text) = (name.to_string(), text);
            }
            None => entries.push(Entry { typed: name.to_string(), key, value, text }),
        }
    }
}

/// Mappings are merged entry by entry, everything else is replaced.
fn merge(old: &mut Value, new: Value) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key).or_insert(Value::Null), value);
            }
        }
        (old, new) => *old = new,
    }
}

fn root(key: &str) -> &str {
    key.split_once('.').map_or(key, |(root, _)| root)
}

/// YAML with OmegaConf's reading of scalars: `yes`/`on` are booleans, `1e-4` is a float, `017` is nothing anyone
/// means. Anchors work within a budget; `.nan` and `.inf` come as texts, which no number accepts.
fn yaml<T: DeserializeOwned>(text: &str) -> std::result::Result<T, String> {
    let options = serde_saphyr::options! {
        budget: serde_saphyr::budget! {
            max_depth: MAX_DEPTH,
            flow_nesting_limit: MAX_DEPTH,
            max_events: 50_000,
            max_nodes: 50_000,
            max_aliases: 100,
            max_anchors: 100,
        },
        merge_keys: serde_saphyr::MergeKeyPolicy::Error,
        non_finite_float_policy: serde_saphyr::NonFiniteFloatPolicy::AsString,
        with_snippet: false,
    };
    serde_saphyr::from_str_with_options(text, options).map_err(|e| one_line(&e.to_string()))
}

/// A message on one line, and not a long one: parsers quote their input.
fn one_line(message: &str) -> String {
    let flat = printable(&message.split_whitespace().collect::<Vec<_>>().join(" "));
    match flat.char_indices().nth(240) {
        Some((cut, _)) => format!("{}...", &flat[..cut]),
        None => flat,
    }
}

/// A text fit for a line of output: control characters escaped, cut after 80 characters.
pub(super) fn printable(text: &str) -> String {
    let mut out: String = text
        .chars()
        .take(240)
        .flat_map(|c| if c.is_control() { c.escape_debug().collect() } else { vec![c] })
        .collect();
    if text.chars().nth(240).is_some() {
        out.push_str("...");
    }
    out
}

/// The top level of a config: keys in order, none twice.
struct Rows(Vec<(String, Value)>);

impl<'de> Deserialize<'de> for Rows {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Self, D::Error> {
        deserializer.deserialize_any(RowsVisitor)
    }
}

struct RowsVisitor;

impl<'de> Visitor<'de> for RowsVisitor {
    type Value = Rows;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("keys with values (`key: value`)")
    }

    fn visit_unit<E>(self) -> std::result::Result<Rows, E> {
        Ok(Rows(Vec::new()))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> std::result::Result<Rows, A::Error> {
        let mut rows: Vec<(String, Value)> = Vec::new();
        while let Some((key, value)) = map.next_entry::<String, Value>()? {
            if rows.iter().any(|(k, _)| *k == key) {
                return Err(A::Error::custom(format!("the key `{}` stands twice", printable(&key))));
            }
            rows.push((key, value));
        }
        Ok(Rows(rows))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn yaml_rows(text: &str) -> Result<Vec<(String, Value)>> {
        let entries = parse(Path::new("c.yaml"), text, Format::Yaml)?;
        Ok(entries.into_iter().map(|e| (e.typed, e.value)).collect())
    }

    fn scalar(text: &str) -> Value {
        let mut entries = Vec::new();
        override_with(&mut entries, &[("k".to_string(), text.to_string())]);
        entries.remove(0).value
    }

    /// What OmegaConf 2.4 makes of the same texts.
    #[test]
    fn scalars_read_as_omegaconf_does() {
        for (text, want) in [
            ("1e-4", json!(1e-4)),
            ("1.0e-4", json!(1e-4)),
            ("1E-4", json!(1e-4)),
            (".5", json!(0.5)),
            ("1_000", json!(1000)),
            ("0x10", json!(16)),
            ("-5", json!(-5)),
            ("+3", json!(3)),
            ("yes", json!(true)),
            ("on", json!(true)),
            ("TRUE", json!(true)),
            ("off", json!(false)),
            ("No", json!(false)),
            ("null", Value::Null),
            ("~", Value::Null),
            ("", Value::Null),
            ("None", json!("None")),
            ("none", json!("none")),
            ("nan", json!("nan")),
            ("inf", json!("inf")),
            ("1.5.2", json!("1.5.2")),
            ("'1'", json!("1")),
            ("~/x", json!("~/x")),
            ("2024-01-01", json!("2024-01-01")),
            ("a,b", json!("a,b")),
            ("[a, b]", json!(["a", "b"])),
            ("{a: 1}", json!({"a": 1})),
        ] {
            assert_eq!(scalar(text), want, "{text:?}");
        }
        // Not finite: never a number, so that no key can accept it.
        for text in [".nan", ".inf", "-.inf", "1e999"] {
            assert!(scalar(text).is_string(), "{text:?} became {:?}", scalar(text));
        }
        // No YAML at all is a text.
        assert_eq!(scalar("@x: ["), json!("@x: ["));
    }

    #[test]
    fn yaml_keeps_order_and_ignores_comments() {
        let rows = yaml_rows("### model\nb: 1 # one\na: x\n\n# c: 3\nlist: [p, q]\n").unwrap();
        assert_eq!(rows, [("b".into(), json!(1)), ("a".into(), json!("x")), ("list".into(), json!(["p", "q"]))]);
        assert_eq!(yaml_rows("").unwrap(), []);
        assert_eq!(yaml_rows("# nothing\n").unwrap(), []);
        assert_eq!(yaml_rows("\u{feff}a: 1").unwrap(), [("a".into(), json!(1))]);
        assert_eq!(yaml_rows("a: &x [1]\nb: *x").unwrap(), [("a".into(), json!([1])), ("b".into(), json!([1]))]);
    }

    #[test]
    fn malformed_yaml_is_one_line() {
        let bomb = (1..30).fold("a0: &a0 [x]\n".to_string(), |s, i| {
            let refs = vec![format!("*a{}", i - 1); 9].join(",");
            format!("{s}a{i}: &a{i} [{refs}]\n")
        });
        let deep = format!("a: {}{}", "[".repeat(50_000), "]".repeat(50_000));
        let deep_block: String = (0..3000).map(|i| format!("{}a:\n", " ".repeat(i))).collect();
        for text in [
            "a: 1\na: 2",
            "a: 1\n---\nb: 2",
            "- a",
            "just text",
            "a: [1",
            "a: b: c",
            "a:\n  b: 1\n\tc: 2",
            "a: *nowhere",
            "a: {b: 1, b: 2}",
            "<<: {a: 1}",
            "{[a]: 1}",
            &bomb,
            &deep,
            &deep_block,
        ] {
            let Err(e) = yaml_rows(text) else { panic!("accepted: {text:.60}") };
            let said = e.to_string();
            assert!(said.starts_with("c.yaml: ") && !said.contains('\n') && said.len() < 600, "{said}");
        }
    }

    #[test]
    fn json_is_read_with_the_same_rules() {
        let parse = |text: &str| parse(Path::new("c.json"), text, Format::Json);
        let rows = parse(r#"{"lora_rank": 8, "bf16": true, "report_to": ["none"]}"#).unwrap();
        assert_eq!(rows[0].value, json!(8));
        assert_eq!(rows.len(), 3);
        let deep = format!("{{\"a\": {}1{}}}", "[".repeat(5000), "]".repeat(5000));
        for text in [r#"{"a": 1, "a": 2}"#, "{", "[1]", "3", "{\"a\": NaN}", "", &deep] {
            let Err(e) = parse(text) else { panic!("accepted: {text:.40}") };
            assert!(!e.to_string().contains('\n'), "{e}");
        }
    }

    #[test]
    fn arguments_as_users_type_them() {
        let split = |line: &str| split_args(&line.split(' ').map(String::from).collect::<Vec<_>>());
        let (file, pairs) =
            split("a.yaml learning_rate=1e-4 --output-dir=x --bf16 --max_steps -1 --do_train lora_rank=4").unwrap();
        assert_eq!(file, Some(PathBuf::from("a.yaml")));
        let want = [
            ("learning_rate", "1e-4"),
            ("output_dir", "x"),
            ("bf16", "true"),
            ("max_steps", "-1"),
            ("do_train", "true"),
            ("lora_rank", "4"),
        ];
        assert_eq!(pairs, want.map(|(k, v)| (k.to_string(), v.to_string())));
        assert_eq!(split("lora_rank=4 --config b.json").unwrap().0, Some(PathBuf::from("b.json")));
        assert_eq!(split("--config=b.json").unwrap().0, Some(PathBuf::from("b.json")));
        assert_eq!(split_args(&[]).unwrap(), (None, vec![]));
        for line in ["a.yaml b.yaml", "a.yaml word", "a.yaml --config b.yaml", "--config", "a.yaml -x"] {
            let Err(e) = split(line) else { panic!("accepted: {line}") };
            assert!(!e.to_string().contains('\n'), "{e}");
        }
    }

    #[test]
    fn overrides_replace_merge_and_follow_the_dialect() {
        let mut entries =
            parse(Path::new("c"), "batch_size: 4\nlr_scheduler_kwargs: {num_cycles: 2}", Format::Yaml).unwrap();
        let pairs =
            [("per_device_train_batch_size", "8"), ("lr_scheduler_kwargs.power", "2.0"), ("seed", "1"), ("seed", "7")];
        override_with(&mut entries, &pairs.map(|(k, v)| (k.to_string(), v.to_string())));
        let got: Vec<_> = entries.iter().map(|e| (e.typed.as_str(), e.value.clone())).collect();
        assert_eq!(
            got,
            [
                ("per_device_train_batch_size", json!(8)),
                ("lr_scheduler_kwargs", json!({"num_cycles": 2, "power": 2.0})),
                ("seed", json!(7)),
            ]
        );
        assert!(parse(Path::new("c"), "epochs: 1\nnum_train_epochs: 1", Format::Yaml).is_err());
    }

    proptest! {
        #![proptest_config(ProptestConfig { cases: 200, failure_persistence: None, ..ProptestConfig::default() })]

        #[test]
        fn no_text_panics(text in "[-a-c:{}\\[\\]&*!|>'\"#%@`,?0-9.~ \n\t]{0,60}") {
            for format in [Format::Yaml, Format::Json] {
                if let Err(e) = parse(Path::new("c"), &text, format) {
                    prop_assert!(!e.to_string().contains('\n'), "{e}");
                }
            }
        }

        #[test]
        fn no_argument_panics(args in prop::collection::vec("[-a-z=.{}0-9 \n]{0,12}", 0..6)) {
            if let Ok((_, pairs)) = split_args(&args) {
                override_with(&mut Vec::new(), &pairs);
            }
        }
    }
}
