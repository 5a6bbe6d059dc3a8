//! The file of answers: a line an answer, whole or not there, and beside it the marks by which a run goes on.

use std::fs::{self, File, OpenOptions};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

use serde_json::{Map, Value};

use crate::error::{Error, Result};
use crate::eval::Scores;
use crate::train::json;

/// An answered question.
#[derive(Debug, Clone, PartialEq)]
pub(super) struct Row {
    pub prompt: String,
    pub predict: String,
    pub label: String,
    pub scores: Scores,
}

/// Answers in `generated_predictions.jsonl`, in LLaMA-Factory's form. While a run is not done, `<name>.state` beside it
/// holds the run's fingerprint and then the scores of each answer, a line each.
pub(super) struct Answers {
    path: PathBuf,
    state_path: PathBuf,
    file: File,
    state: File,
    rows: Vec<Row>,
}

impl Answers {
    /// Opens `dir`/`name`. Answers of a run with the same fingerprint are kept as far as they are whole; any others make
    /// way.
    ///
    /// # Errors
    /// [`Error::File`] if a file cannot be read or written.
    pub fn open(dir: &Path, name: &str, fingerprint: &str) -> Result<Answers> {
        let (path, state_path) = (dir.join(name), dir.join(format!("{name}.state")));
        let head = format!("{}\n", json::line(&serde_json::json!({ "fingerprint": fingerprint })));
        let (text, state_text) = (read(&path)?, read(&state_path)?);
        let (mut rows, mut kept, mut state_kept) = (Vec::new(), 0, 0);
        if let Some(marks) = state_text.strip_prefix(head.as_bytes()) {
            state_kept = head.len();
            for (line, mark) in whole_lines(&text).zip(whole_lines(marks)) {
                let Some(row) = parse(line, mark) else { break };
                rows.push(row);
                kept += line.len();
                state_kept += mark.len();
            }
        } else if !state_text.is_empty() {
            log::warn!("{}: the unfinished run was another one; it is begun anew", path.display());
        }
        // The old answers go first: marks without answers are of no use, but answers under another run's marks are wrong.
        let file = open_cut(&path, kept)?;
        let mut state = open_cut(&state_path, state_kept)?;
        if state_kept == 0 {
            state.write_all(head.as_bytes()).map_err(|e| Error::io(&state_path, "cannot write", &e))?;
        }
        Ok(Answers { path, state_path, file, state, rows })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// How many there are.
    pub fn done(&self) -> usize {
        self.rows.len()
    }

    /// Writes the next answer.
    ///
    /// # Errors
    /// [`Error::File`], for example when the disk is full; what was written before stays.
    pub fn push(&mut self, row: Row) -> Result<()> {
        let cannot = |path: &Path, e: std::io::Error| Error::io(path, "cannot write", &e);
        self.file.write_all(line(&row).as_bytes()).map_err(|e| cannot(&self.path, e))?;
        let marks: Map<String, Value> =
            row.scores.named().iter().map(|(name, x)| (name.to_string(), json::number(*x))).collect();
        let marks = json::line(&Value::Object(marks)) + "\n";
        self.state.write_all(marks.as_bytes()).map_err(|e| cannot(&self.state_path, e))?;
        self.rows.push(row);
        Ok(())
    }

    /// Those there are, in order.
    pub fn rows(&self) -> &[Row] {
        &self.rows
    }

    /// Removes the marks, once there is no answer to come and all that follows from them is written.
    ///
    /// # Errors
    /// [`Error::File`] if they cannot be removed.
    pub fn finish(self) -> Result<()> {
        self.file.sync_all().map_err(|e| Error::io(&self.path, "cannot write", &e))?;
        fs::remove_file(&self.state_path).map_err(|e| Error::io(&self.state_path, "cannot remove", &e))
    }
}

/// The content of a file; nothing if it is not there.
fn read(path: &Path) -> Result<Vec<u8>> {
    match fs::read(path) {
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(Vec::new()),
        other => other.map_err(|e| Error::io(path, "cannot read", &e)),
    }
}

/// A file to append to, cut to its first `len` bytes.
fn open_cut(path: &Path, len: usize) -> Result<File> {
    let open = || {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.set_len(len as u64)?;
        Ok(file)
    };
    open().map_err(|e| Error::io(path, "cannot write", &e))
}

/// Lines with their ends; what stands behind the last end is torn and left out.
fn whole_lines(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split_inclusive(|&b| b == b'\n').filter(|line| line.ends_with(b"\n"))
}

/// An answer as Python's `json.dumps(..., ensure_ascii=False)` writes it.
fn line(row: &Row) -> String {
    let text = |s: &str| Value::from(s).to_string();
    format!(
        "{{\"prompt\": {}, \"predict\": {}, \"label\": {}}}\n",
        text(&row.prompt),
        text(&row.predict),
        text(&row.label)
    )
}

fn parse(line: &[u8], marks: &[u8]) -> Option<Row> {
    let line: Map<String, Value> = serde_json::from_slice(line).ok()?;
    let marks: Map<String, Value> = serde_json::from_slice(marks).ok()?;
    let text = |key: &str| Some(line.get(key)?.as_str()?.to_string());
    let score = |key: &str| marks.get(key)?.as_f64();
    let scores = Scores {
        bleu4: score("bleu-4")?,
        rouge1: score("rouge-1")?,
        rouge2: score("rouge-2")?,
        rouge_l: score("rouge-l")?,
    };
    Some(Row { prompt: text("prompt")?, predict: text("predict")?, label: text("label")?, scores })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(i: usize) -> Row {
        let predict = format!("答 {i} \"quoted\"\n\t\u{1}é\u{7f}\u{2028}");
        let scores = Scores { bleu4: i as f64 / 3.0, rouge1: 100.0, rouge2: 0.0, rouge_l: 12.3457 };
        Row { prompt: format!("<|im_start|>{i}"), predict, label: "\\".into(), scores }
    }

    #[test]
    fn lines_are_python_s() {
        // Printed by CPython 3.11's json.dumps(..., ensure_ascii=False).
        let want = r#"{"prompt": "<|im_start|>0", "predict": "答 0 \"quoted\"\n\t\u0001éDELSEP", "label": "\\"}"#;
        let want = want.replace("DEL", "\u{7f}").replace("SEP", "\u{2028}") + "\n";
        assert_eq!(line(&row(0)), want);
    }

    /// Whatever is left of a run of three answers, the next ends up with the same file.
    #[test]
    fn a_run_goes_on_where_it_stopped() {
        let whole = tempfile::tempdir().unwrap();
        let mut a = Answers::open(whole.path(), "a.jsonl", "x").unwrap();
        (0..3).for_each(|i| a.push(row(i)).unwrap());
        let (text, state) = (read(a.path()).unwrap(), read(&a.state_path).unwrap());
        assert_eq!(a.rows(), [row(0), row(1), row(2)]);
        a.finish().unwrap();
        assert!(!whole.path().join("a.jsonl.state").exists());
        for cut in [0, 1, text.len() / 2, text.len() - 1, text.len()] {
            for state_cut in [0, 5, state.len() / 2, state.len() - 1, state.len()] {
                let dir = tempfile::tempdir().unwrap();
                fs::write(dir.path().join("a.jsonl"), &text[..cut]).unwrap();
                fs::write(dir.path().join("a.jsonl.state"), &state[..state_cut]).unwrap();
                let mut a = Answers::open(dir.path(), "a.jsonl", "x").unwrap();
                if (cut, state_cut) == (text.len(), state.len()) {
                    assert_eq!(a.done(), 3);
                }
                for i in a.done()..3 {
                    a.push(row(i)).unwrap();
                }
                assert_eq!(a.rows(), [row(0), row(1), row(2)], "{cut} {state_cut}");
                a.finish().unwrap();
                assert_eq!(read(&dir.path().join("a.jsonl")).unwrap(), text);
            }
        }
    }

    #[test]
    fn another_run_s_answers_make_way() {
        let dir = tempfile::tempdir().unwrap();
        let mut a = Answers::open(dir.path(), "a.jsonl", "x").unwrap();
        a.push(row(0)).unwrap();
        drop(a);
        assert_eq!(Answers::open(dir.path(), "a.jsonl", "x").unwrap().done(), 1);
        let a = Answers::open(dir.path(), "a.jsonl", "y").unwrap();
        assert_eq!((a.done(), read(a.path()).unwrap().len()), (0, 0));
        drop(a);
        // Answers of a run that was done have no marks, and are made anew.
        fs::remove_file(dir.path().join("a.jsonl.state")).unwrap();
        fs::write(dir.path().join("a.jsonl"), line(&row(0))).unwrap();
        assert_eq!(Answers::open(dir.path(), "a.jsonl", "y").unwrap().done(), 0);
    }
}
