//! Data sets by name: `dataset_info.json`, or a file or folder given directly.
//!
//! An entry means what it means to LLaMA-Factory, with two differences: what cannot be honoured is refused by name
//! instead of being ignored (an unknown key, a column nobody reads), and a name may be a path.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};

/// Name of the registry's file inside `dataset_dir`.
pub const DATASET_INFO: &str = "dataset_info.json";

/// A data set, found but not yet read.
#[derive(Debug, Clone, PartialEq)]
pub struct DatasetSpec {
    /// As the user named it.
    pub name: String,
    /// All of one kind; in a folder, by name.
    pub files: Vec<PathBuf>,
    pub kind: FileKind,
    /// Rows to pick at random; more than there are repeats some.
    pub num_samples: Option<usize>,
    /// None: to be guessed from the first row.
    pub format: Option<Format>,
}

/// How rows lie in a file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum FileKind {
    /// An array of objects, or one object a line.
    Json,
    /// Comma-separated, with a header.
    Csv,
    Parquet,
    /// One row a line, in a column `text`.
    Text,
}

/// What a row's columns mean.
#[derive(Debug, Clone, PartialEq)]
pub struct Format {
    pub formatting: Formatting,
    pub columns: Columns,
    pub tags: Tags,
    /// Columns the data must have: those the entry names, and the required ones.
    pub expected: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Formatting {
    Alpaca,
    Sharegpt,
    Openai {
        /// Whether "detailed thinking off" is added to system prompts that do not speak of it, as LLaMA-Factory's
        /// `openai` format does. Off for data whose format was guessed.
        thinking_note: bool,
    },
}

/// Names of the columns; None: not read.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Columns {
    pub prompt: Option<String>,
    pub query: Option<String>,
    pub response: Option<String>,
    pub history: Option<String>,
    pub messages: Option<String>,
    pub system: Option<String>,
    pub tools: Option<String>,
}

/// Keys and values inside the messages of `sharegpt` and `openai`; a role of None never matches.
#[derive(Debug, Clone, PartialEq)]
pub struct Tags {
    pub role: String,
    pub content: String,
    pub user: Option<String>,
    pub assistant: Option<String>,
    pub observation: Option<String>,
    pub function: Option<String>,
    pub system: Option<String>,
}

impl Default for Tags {
    fn default() -> Self {
        let some = |tag: &str| Some(tag.to_string());
        Self {
            role: "from".into(),
            content: "value".into(),
            user: some("human"),
            assistant: some("gpt"),
            observation: some("observation"),
            function: some("function_call"),
            system: some("system"),
        }
    }
}

const ENTRY_KEYS: [&str; 14] = [
    "file_name",
    "formatting",
    "columns",
    "tags",
    "num_samples",
    "ranking",
    "split",
    "subset",
    "folder",
    "hf_hub_url",
    "ms_hub_url",
    "om_hub_url",
    "script_url",
    "cloud_file_name",
];
const COLUMN_KEYS: [&str; 13] = [
    "prompt", "query", "response", "history", "messages", "system", "tools", "images", "videos", "audios", "chosen",
    "rejected", "kto_tag",
];
const TAG_KEYS: [&str; 7] =
    ["role_tag", "content_tag", "user_tag", "assistant_tag", "observation_tag", "function_tag", "system_tag"];

/// Finds the data sets `names`, in order. A name stands in `dataset_dir`'s registry, or is a path (from the working
/// folder, else from `dataset_dir`). A name given twice counts once.
///
/// # Errors
/// [`Error::Dataset`] for a name that is neither, with the nearest one, and for an entry that asks for what is not
/// built; [`Error::File`] for a registry that cannot be read or an entry that is wrong.
pub fn find(names: &[String], dataset_dir: &Path) -> Result<Vec<DatasetSpec>> {
    if let Some(text) = dataset_dir.to_str().filter(|dir| *dir == "ONLINE" || dir.starts_with("REMOTE:")) {
        return Err(Error::config(
            "dataset_dir",
            format!("is {text}: data sets of a hub are not read; download the files and give their folder"),
        ));
    }
    let registry = Registry::open(dataset_dir);
    let mut specs: Vec<DatasetSpec> = Vec::new();
    for name in names {
        if specs.iter().any(|spec| spec.name == *name) {
            log::warn!("data set `{name}` is named twice and counts once");
            continue;
        }
        let entry = registry.as_ref().ok().and_then(|registry| Some((registry, registry.entries.get(name)?)));
        let path = || [PathBuf::from(name), dataset_dir.join(name)].into_iter().find(|path| path.exists());
        let spec = match (entry, &registry) {
            (Some((registry, entry)), _) => registry.spec(name, entry, dataset_dir)?,
            (None, registry) => match (path(), registry) {
                (Some(path), _) => from_path(name, &path, false)?,
                (None, Ok(registry)) => return Err(registry.unknown(name)),
                (None, Err(Error::File { path, why })) => {
                    return Err(Error::file(path, format!("{why}; and `{name}` is no file or folder")));
                }
                (None, Err(e)) => return Err(Error::file(dataset_dir, e.to_string())),
            },
        };
        specs.push(spec);
    }
    Ok(specs)
}

/// The data set at `path`, its format yet to be guessed. With `only_data`, files of other types in a folder are passed
/// over (a read-me, pictures); otherwise they are refused.
///
/// # Errors
/// [`Error::File`] unless it is a data file, or a folder of data files of one type.
pub fn from_path(name: &str, path: &Path, only_data: bool) -> Result<DatasetSpec> {
    let (files, kind) = data_files(path, only_data)?;
    Ok(DatasetSpec { name: name.into(), files, kind, num_samples: None, format: None })
}

/// The data files at `path`, which is one or a folder of them.
fn data_files(path: &Path, only_data: bool) -> Result<(Vec<PathBuf>, FileKind)> {
    let mut files = vec![path.to_path_buf()];
    if path.is_dir() {
        let failed = |e: std::io::Error| Error::io(path, "cannot list", &e);
        files = std::fs::read_dir(path)
            .map_err(failed)?
            .map(|entry| entry.map(|entry| entry.path()).map_err(failed))
            .collect::<Result<_>>()?;
        let hidden = |file: &PathBuf| file.file_name().is_some_and(|name| name.to_string_lossy().starts_with('.'));
        files.retain(|file| !hidden(file) && !(only_data && (file.is_dir() || kind_of(file).is_err())));
        files.sort();
    } else if !path.is_file() {
        return Err(Error::file(path, "no such file"));
    }
    let Some(first) = files.first() else {
        return Err(Error::file(path, "holds no data files (.json, .jsonl, .csv, .parquet, .txt)"));
    };
    let kind = kind_of(first)?;
    for file in &files {
        if kind_of(file)? != kind {
            let why = format!("is not of the same type as {}; a data set's files must be", first.display());
            return Err(Error::file(file, why));
        }
    }
    Ok((files, kind))
}

fn kind_of(file: &Path) -> Result<FileKind> {
    let extension = file.extension().map(|e| e.to_string_lossy().to_lowercase());
    match extension.as_deref() {
        Some("json" | "jsonl") => Ok(FileKind::Json),
        Some("csv") => Ok(FileKind::Csv),
        Some("parquet") => Ok(FileKind::Parquet),
        Some("txt") => Ok(FileKind::Text),
        Some("arrow") => Err(Error::file(file, "Arrow files are not read; save it as Parquet or JSON lines")),
        _ => Err(Error::file(file, "is no data file: its name must end in .json, .jsonl, .csv, .parquet or .txt")),
    }
}

/// A `dataset_info.json` as written.
struct Registry {
    file: PathBuf,
    entries: Map<String, Value>,
}

impl Registry {
    fn open(dataset_dir: &Path) -> Result<Self> {
        let file = dataset_dir.join(DATASET_INFO);
        let bytes = std::fs::read(&file).map_err(|e| Error::io(&file, "cannot read", &e))?;
        let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(&bytes);
        let entries = serde_json::from_slice(bytes).map_err(|e| {
            Error::file(&file, format!("must be a JSON object of data set names and their descriptions: {e}"))
        })?;
        Ok(Self { file, entries })
    }

    fn unknown(&self, name: &str) -> Error {
        let known = self.entries.keys().map(String::as_str);
        let hint = match nearest(name, known) {
            Some(near) => format!("; did you mean `{near}`?"),
            None => String::new(),
        };
        Error::Dataset {
            name: name.into(),
            why: format!("is neither in {} nor a file or folder{hint}", self.file.display()),
        }
    }

    /// A wrong entry: what is wrong and what would be right.
    fn wrong(&self, name: &str, why: impl std::fmt::Display) -> Error {
        Error::file(&self.file, format!("entry `{name}`: {why}"))
    }

    fn spec(&self, name: &str, entry: &Value, dataset_dir: &Path) -> Result<DatasetSpec> {
        let Value::Object(entry) = entry else {
            return Err(self.wrong(name, "must be an object such as {\"file_name\": \"data.json\"}"));
        };
        self.known_keys(name, "", entry, &ENTRY_KEYS)?;
        let not_built = |why: String| Err(Error::Dataset { name: name.into(), why });
        for hub in ["hf_hub_url", "ms_hub_url", "om_hub_url"] {
            if let Some(repo) = self.text(name, entry, hub)? {
                return not_built(format!(
                    "has `{hub}`: data sets of a hub are not read; download {repo}'s file and name it as `file_name`"
                ));
            }
        }
        if entry.contains_key("script_url") {
            return not_built("has `script_url`: Python scripts are not run; save its rows and give `file_name`".into());
        }
        if entry.contains_key("cloud_file_name") {
            return not_built("has `cloud_file_name`: clouds are not read; download it and give `file_name`".into());
        }
        match entry.get("ranking") {
            None | Some(Value::Null | Value::Bool(false)) => {}
            Some(Value::Bool(true)) => {
                return not_built("has `ranking: true`: such pairs are for stage dpo or rm, which is not built".into());
            }
            Some(other) => return Err(self.wrong(name, format!("`ranking` must be true or false, got {other}"))),
        }
        for key in ["subset", "folder"] {
            if self.text(name, entry, key)?.is_some() {
                log::warn!("{}: entry `{name}`: `{key}` has no effect on a file", self.file.display());
            }
        }
        if let Some(split) = self.text(name, entry, "split")?.filter(|split| *split != "train") {
            return Err(self.wrong(name, format!("`split` of a file is always \"train\", got \"{split}\"")));
        }
        let num_samples = match entry.get("num_samples") {
            None | Some(Value::Null) => None,
            Some(value) => match value.as_u64().and_then(|n| usize::try_from(n).ok()) {
                Some(n) if n > 0 => Some(n),
                _ => return Err(self.wrong(name, format!("`num_samples` must be a whole number above 0, got {value}"))),
            },
        };
        let Some(file_name) = self.text(name, entry, "file_name")? else {
            return Err(self.wrong(name, "lacks `file_name`, the file or folder with the rows"));
        };
        let (files, kind) = data_files(&dataset_dir.join(file_name), false)?;
        let format = Some(self.format(name, entry)?);
        Ok(DatasetSpec { name: name.into(), files, kind, num_samples, format })
    }

    fn format(&self, name: &str, entry: &Map<String, Value>) -> Result<Format> {
        let formatting = match self.text(name, entry, "formatting")?.unwrap_or("alpaca") {
            "alpaca" => Formatting::Alpaca,
            "sharegpt" => Formatting::Sharegpt,
            "openai" => Formatting::Openai { thinking_note: true },
            other => {
                let why = format!("`formatting` must be alpaca, sharegpt or openai, got \"{other}\"");
                return Err(self.wrong(name, why));
            }
        };
        if matches!(formatting, Formatting::Openai { .. }) {
            log::warn!(
                "data set `{name}`: `formatting: openai` adds \"detailed thinking off\" to its system prompts, as \
                 LLaMA-Factory does; `sharegpt` with tags for role, content, user, assistant and system does not"
            );
        }
        let (columns, mut expected) = self.columns(name, entry)?;
        let required = match formatting {
            Formatting::Alpaca => ("prompt", &columns.prompt),
            _ => ("messages", &columns.messages),
        };
        match required {
            (_, Some(column)) => expected.push(column.clone()),
            (key, None) => {
                let why = format!("`columns` does not name `{key}`: a `columns` block replaces all defaults");
                return Err(self.wrong(name, why));
            }
        }
        let tags = self.tags(name, entry)?;
        expected.sort();
        expected.dedup();
        Ok(Format { formatting, columns, tags, expected })
    }

    /// A `columns` block replaces all the defaults: what it does not name is not read.
    fn columns(&self, name: &str, entry: &Map<String, Value>) -> Result<(Columns, Vec<String>)> {
        let Some(block) = self.block(name, entry, "columns", &COLUMN_KEYS)? else {
            let some = |column: &str| Some(column.to_string());
            let columns = Columns {
                prompt: some("instruction"),
                query: some("input"),
                response: some("output"),
                messages: some("conversations"),
                ..Columns::default()
            };
            return Ok((columns, Vec::new()));
        };
        let get = |key: &str| Ok::<_, Error>(self.text(name, block, key)?.map(str::to_string));
        for media in ["images", "videos", "audios"] {
            if let Some(column) = get(media)? {
                let why = format!("reads `{media}` from column `{column}`: only text is trained on");
                return Err(Error::Dataset { name: name.into(), why });
            }
        }
        for (key, stage) in [("chosen", "dpo or rm"), ("rejected", "dpo or rm"), ("kto_tag", "kto")] {
            if let Some(column) = get(key)? {
                let why = format!("reads `{key}` from column `{column}`, for stage {stage}, which is not built");
                return Err(Error::Dataset { name: name.into(), why });
            }
        }
        let columns = Columns {
            prompt: get("prompt")?,
            query: get("query")?,
            response: get("response")?,
            history: get("history")?,
            messages: get("messages")?,
            system: get("system")?,
            tools: get("tools")?,
        };
        let expected = block.values().filter_map(Value::as_str).filter(|c| !c.is_empty()).map(str::to_string).collect();
        Ok((columns, expected))
    }

    /// A `tags` block, too, replaces all the defaults: a role it does not name is not recognised.
    fn tags(&self, name: &str, entry: &Map<String, Value>) -> Result<Tags> {
        let Some(block) = self.block(name, entry, "tags", &TAG_KEYS)? else { return Ok(Tags::default()) };
        let get = |key: &str| Ok::<_, Error>(self.text(name, block, key)?.map(str::to_string));
        let need = |key: &str| {
            get(key)?.ok_or_else(|| self.wrong(name, format!("`tags` does not name `{key}`: the block replaces all defaults")))
        };
        Ok(Tags {
            role: need("role_tag")?,
            content: need("content_tag")?,
            user: Some(need("user_tag")?),
            assistant: Some(need("assistant_tag")?),
            observation: get("observation_tag")?,
            function: get("function_tag")?,
            system: get("system_tag")?,
        })
    }

    fn block<'a>(
        &self,
        name: &str,
        entry: &'a Map<String, Value>,
        key: &str,
        known: &[&str],
    ) -> Result<Option<&'a Map<String, Value>>> {
        match entry.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::Object(block)) => {
                self.known_keys(name, &format!("{key}: "), block, known)?;
                Ok(Some(block))
            }
            Some(other) => Err(self.wrong(name, format!("`{key}` must be an object, got {other}"))),
        }
    }

    fn known_keys(&self, name: &str, within: &str, keys: &Map<String, Value>, known: &[&str]) -> Result<()> {
        match keys.keys().find(|key| !known.contains(&key.as_str())) {
            None => Ok(()),
            Some(key) => {
                let hint = match nearest(key, known.iter().copied()) {
                    Some(near) => format!("did you mean `{near}`?"),
                    None => format!("known are {}", known.join(", ")),
                };
                Err(self.wrong(name, format!("{within}unknown key `{key}`; {hint}")))
            }
        }
    }

    /// A text; null and "" count as not given.
    fn text<'a>(&self, name: &str, keys: &'a Map<String, Value>, key: &str) -> Result<Option<&'a str>> {
        match keys.get(key) {
            None | Some(Value::Null) => Ok(None),
            Some(Value::String(text)) => Ok(Some(text.as_str()).filter(|text| !text.is_empty())),
            Some(other) => Err(self.wrong(name, format!("`{key}` must be a text, got {other}"))),
        }
    }
}

/// The known spelling nearest to `word`, if any is near.
fn nearest<'a>(word: &str, known: impl Iterator<Item = &'a str>) -> Option<&'a str> {
    let near = |k: &'a str| {
        let similar = strsim::jaro_winkler(word, k);
        (similar > 0.75).then_some((similar, k))
    };
    known.filter_map(near).max_by(|a, b| a.0.total_cmp(&b.0)).map(|(_, k)| k)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn folder(info: &str) -> tempfile::TempDir {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join(DATASET_INFO), info).unwrap();
        fs::write(dir.path().join("a.json"), "[]").unwrap();
        dir
    }

    fn one(info: &str) -> Result<DatasetSpec> {
        let dir = folder(info);
        find(&["x".into()], dir.path()).map(|mut specs| specs.remove(0))
    }

    #[test]
    fn defaults_are_alpaca() {
        let spec = one(r#"{"x": {"file_name": "a.json"}}"#).unwrap();
        let format = spec.format.unwrap();
        assert_eq!(format.formatting, Formatting::Alpaca);
        assert_eq!(format.columns.query.as_deref(), Some("input"));
        assert_eq!(format.expected, ["instruction"]);
        assert_eq!(format.tags, Tags::default());
    }

    #[test]
    fn a_columns_block_replaces_all_defaults() {
        let spec = one(r#"{"x": {"file_name": "a.json", "columns": {"prompt": "q", "response": "a"}}}"#).unwrap();
        let format = spec.format.unwrap();
        assert_eq!((format.columns.query, format.columns.response.as_deref()), (None, Some("a")));
        assert_eq!(format.expected, ["a", "q"]);
    }

    #[test]
    fn a_tags_block_replaces_all_defaults() {
        let tags = r#"{"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant"}"#;
        let spec = one(&format!(r#"{{"x": {{"file_name": "a.json", "formatting": "sharegpt", "tags": {tags}}}}}"#));
        assert_eq!(spec.unwrap().format.unwrap().tags.system, None);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        for (entry, said) in [
            (r#"{"file_name": "a.json", "format": "sharegpt"}"#, "did you mean `formatting`?"),
            (r#"{"file_name": "a.json", "columns": {"promt": "q"}}"#, "did you mean `prompt`?"),
            (r#"{"file_name": "a.json", "tags": {"role": "q"}}"#, "did you mean `role_tag`?"),
            (r#"{"file_name": "a.json", "tags": {"role_tag": "q"}}"#, "content_tag"),
            (r#"{"hf_hub_url": "me/data"}"#, "download me/data"),
            (r#"{"script_url": "s"}"#, "script_url"),
            (r#"{"cloud_file_name": "s3://x"}"#, "cloud_file_name"),
            (r#"{"file_name": "a.json", "ranking": true}"#, "stage dpo"),
            (r#"{"file_name": "a.json", "columns": {"prompt": "q", "images": "i"}}"#, "`images`"),
            (r#"{"file_name": "a.json", "columns": {"prompt": "q", "kto_tag": "i"}}"#, "stage kto"),
            (r#"{"file_name": "a.json", "columns": {"response": "q"}}"#, "does not name `prompt`"),
            (r#"{"file_name": "a.json", "formatting": "chatml"}"#, "got \"chatml\""),
            (r#"{"file_name": "a.json", "split": "test"}"#, "split"),
            (r#"{"file_name": "a.json", "num_samples": 0}"#, "num_samples"),
            (r#"{"file_name": 3}"#, "must be a text"),
            (r#"{"file_name": "b.json"}"#, "no such file"),
            ("{}", "lacks `file_name`"),
            ("[]", "must be an object"),
        ] {
            let error = one(&format!(r#"{{"x": {entry}}}"#)).unwrap_err().to_string();
            assert!(error.contains(said) && !error.contains('\n'), "{entry}: {error}");
        }
    }

    #[test]
    fn names_are_entries_or_paths() {
        let dir = folder(r#"{"identity": {"file_name": "a.json"}}"#);
        let find = |name: &str| find(&[name.to_string()], dir.path());
        assert_eq!(find("a.json").unwrap()[0].format, None);
        let absolute = dir.path().join("a.json");
        assert_eq!(find(absolute.to_str().unwrap()).unwrap()[0].files, [absolute]);
        assert!(find("identiti").unwrap_err().to_string().contains("did you mean `identity`?"));
        fs::create_dir(dir.path().join("many")).unwrap();
        assert!(find("many").unwrap_err().to_string().contains("no data files"));
        for file in ["2.csv", "1.csv", ".hidden"] {
            fs::write(dir.path().join("many").join(file), "").unwrap();
        }
        let files = find("many").unwrap().remove(0).files;
        assert!(files[0].ends_with("1.csv") && files[1].ends_with("2.csv") && files.len() == 2);
        fs::write(dir.path().join("many/3.txt"), "").unwrap();
        assert!(find("many").unwrap_err().to_string().contains("same type"));
        fs::remove_file(dir.path().join("many/3.txt")).unwrap();
        fs::write(dir.path().join("many/README.md"), "").unwrap();
        assert_eq!(from_path("x", &dir.path().join("many"), true).unwrap().files, files);
    }

    #[test]
    fn a_registry_that_cannot_be_read_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let error = || find(&["x".into()], dir.path()).unwrap_err().to_string();
        assert!(error().contains("cannot read"));
        for broken in ["", "[]", "{\"x\": ", "\u{0}"] {
            fs::write(dir.path().join(DATASET_INFO), broken).unwrap();
            assert!(error().contains(DATASET_INFO) && !error().contains('\n'), "{}", error());
        }
    }

    proptest::proptest! {
        #[test]
        fn any_entry_is_read_or_refused(entry in "\\{(\"(file_name|columns|tags|split|x)\": ?(\"a.json\"|\\{\\}|null|3|\\[\\]),?){0,4}\\}") {
            let _ = one(&format!("{{\"x\": {entry}}}"));
        }
    }
}
