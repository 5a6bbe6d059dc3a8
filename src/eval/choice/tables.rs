//! The questions of a benchmark: CSV files, one a subject, in the folders `dev`, `val` and `test`.
//!
//! MMLU's have no header: question, A, B, C, D, answer. C-Eval's and CMMLU's name these columns among others.

use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use super::CHOICES;
use crate::config::{BenchmarkConfig, Split};
use crate::error::{Error, Result};

/// A question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Item {
    pub question: String,
    pub choices: [String; 4],
    /// The number of the right choice.
    pub answer: usize,
}

/// A subject's questions.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Subject {
    /// As its files are called.
    pub id: String,
    /// As prompts call it.
    pub name: String,
    /// The group that it counts in, where mapping.json says so.
    pub category: Option<String>,
    /// Solved examples, as many as are to be shown.
    pub shots: Vec<Item>,
    pub items: Vec<Item>,
}

/// Reads a benchmark: the subjects of its mapping.json in that order, then those that it lacks by name.
///
/// # Errors
/// [`Error::Config`] for a folder without the questions asked for, or without examples where there should be some;
/// [`Error::File`] naming the line of a malformed question.
pub fn read(benchmark: &BenchmarkConfig) -> Result<Vec<Subject>> {
    let (split, suffix) = match benchmark.split {
        Split::Test => ("test", "_test"),
        Split::Validation => ("val", "_val"),
    };
    let root = root(benchmark, split)?;
    let mapping = mapping(&root, benchmark)?;
    let questions = tables(&root.join(split), suffix)?;
    let examples = if benchmark.n_shot > 0 { tables(&root.join("dev"), "_dev")? } else { Vec::new() };

    let mut subjects = Vec::with_capacity(questions.len());
    for (id, path) in &questions {
        let entry = mapping.iter().position(|(name, _)| name == id);
        let of = |key: &str| Some(mapping.get(id)?.get(key)?.as_str()?.to_string());
        let mut shots = Vec::new();
        if benchmark.n_shot > 0 {
            let found = examples.iter().find(|(name, _)| name == id);
            let (_, path) = found.ok_or_else(|| {
                let why = format!("asks for examples, but {} has no file for `{id}`", root.join("dev").display());
                Error::config("n_shot", why)
            })?;
            shots = items(path)?;
            shots.truncate(benchmark.n_shot);
        }
        let name = of("name").unwrap_or_else(|| id.replace('_', " "));
        let subject = Subject { id: id.clone(), name, category: of("category"), shots, items: items(path)? };
        subjects.push((entry.unwrap_or(usize::MAX), subject));
    }
    for (id, _) in mapping.iter().filter(|(id, _)| !questions.iter().any(|(name, _)| name == *id)) {
        log::warn!("{}: has no questions of `{id}`, which mapping.json names", root.join(split).display());
    }
    if subjects.iter().all(|(_, s)| s.items.is_empty()) {
        return Err(Error::config("task", format!("has no question in {}", root.join(split).display())));
    }
    subjects.sort_by_key(|(place, _)| *place);
    Ok(subjects.into_iter().map(|(_, subject)| subject).collect())
}

/// The folder that holds `split`: that of the task, `data` in it, or `task_dir` itself.
fn root(benchmark: &BenchmarkConfig, split: &str) -> Result<PathBuf> {
    let task = benchmark.task_dir.join(&benchmark.task);
    let places = [task.clone(), task.join("data"), benchmark.task_dir.clone()];
    let found = places.iter().find(|place| place.join(split).is_dir()).cloned();
    found.ok_or_else(|| {
        let why = format!("has no folder {} with the questions of `task`", task.join(split).display());
        Error::config("task_dir", why)
    })
}

/// mapping.json, of the folder or of the task's: {subject: {"name": .., "category": ..}}. Empty if there is none.
fn mapping(root: &Path, benchmark: &BenchmarkConfig) -> Result<Map<String, Value>> {
    let places = [root.join("mapping.json"), benchmark.task_dir.join(&benchmark.task).join("mapping.json")];
    let Some(path) = places.iter().find(|path| path.is_file()) else { return Ok(Map::new()) };
    let bytes = fs::read(path).map_err(|e| Error::io(path, "cannot read", &e))?;
    serde_json::from_slice(&bytes).map_err(|e| Error::file(path, format!("is not a mapping of subjects: {e}")))
}

/// The CSV files of a folder by their subject, in its order.
fn tables(folder: &Path, suffix: &str) -> Result<Vec<(String, PathBuf)>> {
    let listed = fs::read_dir(folder).map_err(|e| Error::io(folder, "cannot read", &e))?;
    let mut found = Vec::new();
    for entry in listed {
        let path = entry.map_err(|e| Error::io(folder, "cannot read", &e))?.path();
        let stem = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
        // macOS leaves `._x.csv` beside `x.csv` in archives.
        if path.extension().is_some_and(|e| e == "csv") && !stem.starts_with('.') {
            found.push((stem.strip_suffix(suffix).unwrap_or(&stem).to_string(), path));
        }
    }
    found.sort();
    Ok(found)
}

/// Where a table has its columns.
struct Columns {
    question: usize,
    choices: [usize; 4],
    answer: usize,
}

const NO_HEADER: Columns = Columns { question: 0, choices: [1, 2, 3, 4], answer: 5 };

/// The questions of a file.
fn items(path: &Path) -> Result<Vec<Item>> {
    let bytes = fs::read(path).map_err(|e| Error::io(path, "cannot read", &e))?;
    let bytes = bytes.strip_prefix("\u{feff}".as_bytes()).unwrap_or(&bytes);
    let mut reader = csv::ReaderBuilder::new().has_headers(false).flexible(true).from_reader(bytes);
    let mut columns = None;
    let mut items = Vec::new();
    for record in reader.records() {
        let record = record.map_err(|e| Error::file(path, format!("cannot be read: {e}")))?;
        if columns.is_none() {
            let header = header(&record, path)?;
            let is_header = header.is_some();
            columns = Some(header.unwrap_or(NO_HEADER));
            if is_header {
                continue;
            }
        }
        let Some(columns) = &columns else { unreachable!("set by the first record") };
        let line = record.position().map_or(0, csv::Position::line);
        let bad = |why: String| Error::file(path, format!("line {line}: {why}"));
        let cell = |at: usize| record.get(at).ok_or_else(|| bad(format!("has {} cells, too few", record.len())));
        let mut choices = [const { String::new() }; 4];
        for (choice, &at) in choices.iter_mut().zip(&columns.choices) {
            *choice = cell(at)?.to_string();
        }
        let answer = cell(columns.answer)?.trim();
        let Some(answer) = CHOICES.iter().position(|c| *c == answer) else {
            let given: String = answer.chars().take(40).flat_map(char::escape_debug).collect();
            return Err(bad(format!("the answer must be A, B, C or D; it is `{given}`")));
        };
        items.push(Item { question: cell(columns.question)?.to_string(), choices, answer });
    }
    Ok(items)
}

/// The columns that a first row names; None if it is no header.
fn header(record: &csv::StringRecord, path: &Path) -> Result<Option<Columns>> {
    let find = |name: &str| record.iter().position(|cell| cell.trim().eq_ignore_ascii_case(name));
    let (Some(question), [Some(a), Some(b), Some(c), Some(d)]) = (find("question"), CHOICES.map(find)) else {
        return Ok(None);
    };
    let answer = find("answer").ok_or_else(|| {
        Error::file(
            path,
            "has no column `answer`: the answers of some test sets are not public, see the validation set",
        )
    })?;
    Ok(Some(Columns { question, choices: [a, b, c, d], answer }))
}
