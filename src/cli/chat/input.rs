//! Lines from the user: edited on a terminal, with a history that is kept, or read as they come from a script.

use std::fs;
use std::io::{self, BufRead, IsTerminal};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use rustyline::error::ReadlineError;
use rustyline::{Config, DefaultEditor};

use crate::error::{Error, Result};

/// Lines of history kept.
const HISTORY: usize = 1000;

/// Two Ctrl-C within this leave.
const TWICE: Duration = Duration::from_secs(2);

pub(super) enum Input {
    Terminal(Box<Terminal>),
    Script(Script<Box<dyn BufRead>>),
}

impl Input {
    /// Of the terminal if input and output both are one, else of whatever standard input is.
    pub fn open() -> Input {
        if io::stdin().is_terminal() && io::stdout().is_terminal() {
            match Terminal::open() {
                Ok(t) => return Input::Terminal(Box::new(t)),
                Err(e) => log::warn!("no line editing on this terminal: {e}"),
            }
        }
        Input::Script(Script { from: Box::new(io::stdin().lock()), line: 0 })
    }

    pub fn is_terminal(&self) -> bool {
        matches!(self, Input::Terminal(_))
    }

    /// The next line, without its line break; None at the end.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read or is not UTF-8.
    pub fn next(&mut self) -> Result<Option<String>> {
        match self {
            Input::Terminal(t) => t.next(),
            Input::Script(s) => s.next(),
        }
    }
}

pub(super) struct Terminal {
    editor: DefaultEditor,
    /// None once it cannot be written.
    history: Option<PathBuf>,
}

impl Terminal {
    fn open() -> rustyline::Result<Terminal> {
        let config = Config::builder().max_history_size(HISTORY)?.history_ignore_dups(true)?.build();
        let mut editor = DefaultEditor::with_config(config)?;
        let history = history_file();
        if let Some(path) = history.as_deref().filter(|p| p.exists())
            && let Err(e) = editor.load_history(path)
        {
            log::warn!("the history in {} cannot be read: {e}", path.display());
        }
        Ok(Terminal { editor, history })
    }

    /// Ctrl-C clears the line; twice within a moment it leaves, as Ctrl-D does.
    fn next(&mut self) -> Result<Option<String>> {
        let mut cleared: Option<Instant> = None;
        loop {
            match self.editor.readline("User: ") {
                Ok(line) => {
                    self.remember(&line);
                    return Ok(Some(line));
                }
                Err(ReadlineError::Interrupted) if cleared.is_some_and(|at| at.elapsed() < TWICE) => return Ok(None),
                Err(ReadlineError::Interrupted) => {
                    cleared = Some(Instant::now());
                    eprintln!("(Ctrl-C again or Ctrl-D leaves)");
                }
                Err(ReadlineError::Eof) => return Ok(None),
                Err(ReadlineError::Io(e)) => return Err(Error::io("standard input", "cannot read", &e)),
                Err(e) => return Err(Error::file("standard input", format!("cannot read: {e}"))),
            }
        }
    }

    /// Adds to the history at once, so that a killed program loses nothing.
    fn remember(&mut self, line: &str) {
        if line.trim().is_empty() || !self.editor.add_history_entry(line).unwrap_or(false) {
            return;
        }
        let Some(path) = &self.history else { return };
        let made = path.parent().map_or(Ok(()), fs::create_dir_all).map_err(ReadlineError::Io);
        if let Err(e) = made.and_then(|()| self.editor.append_history(path)) {
            log::warn!("the history in {} cannot be written: {e}", path.display());
            self.history = None;
        }
    }
}

/// `chat_history` in the user's state folder; None without a home.
fn history_file() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    let state = if cfg!(windows) {
        set("LOCALAPPDATA")
    } else {
        set("XDG_STATE_HOME").or_else(|| set("HOME").map(|home| home.join(".local").join("state")))
    };
    state.map(|dir| dir.join("qlora-engine").join("chat_history"))
}

/// Lines of a file or a pipe.
pub(super) struct Script<R> {
    from: R,
    line: usize,
}

impl<R: BufRead> Script<R> {
    fn next(&mut self) -> Result<Option<String>> {
        let path = Path::new("standard input");
        let mut bytes = Vec::new();
        let n = self.from.read_until(b'\n', &mut bytes).map_err(|e| Error::io(path, "cannot read", &e))?;
        if n == 0 {
            return Ok(None);
        }
        self.line += 1;
        let text = String::from_utf8(bytes).map_err(|_| Error::Row {
            file: path.to_path_buf(),
            row: self.line,
            why: "is not UTF-8".into(),
        })?;
        Ok(Some(text.trim_end_matches(['\r', '\n']).to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_script_is_read_line_by_line() {
        let mut s = Script { from: "一\r\n\nlast".as_bytes(), line: 0 };
        let lines: Vec<String> = std::iter::from_fn(|| s.next().unwrap()).collect();
        assert_eq!(lines, ["一", "", "last"]);
        let mut s = Script { from: &b"a\n\xff\n"[..], line: 0 };
        assert_eq!(s.next().unwrap().as_deref(), Some("a"));
        let e = s.next().unwrap_err().to_string();
        assert!(e.contains("row 2") && e.contains("UTF-8"), "{e}");
    }
}
