//! Files that appear whole or not at all: written beside their place, synced, then renamed over it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `bytes` to `path` so that after a crash at any moment the file holds either its old content or all of
/// the new one.
///
/// # Errors
/// [`Error::File`] naming `path`; the old file then still stands and nothing is left beside it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_stream(path, |sink| sink.bytes(bytes))
}

/// As [`write_atomic`], for content that `fill` hands on piece by piece.
///
/// # Errors
/// As [`write_atomic`], and whatever `fill` returns.
pub fn write_stream(path: &Path, fill: impl FnOnce(&mut Sink) -> Result<()>) -> Result<()> {
    replace(path, |temp| {
        let file = File::create(temp).map_err(|e| Error::io(temp, "cannot create", &e))?;
        let mut sink = Sink { to: BufWriter::with_capacity(1 << 20, file), path: path.to_path_buf() };
        fill(&mut sink)?;
        sink.to.flush().map_err(|e| Error::io(path, "cannot write", &e))
    })
}

/// As [`write_atomic`], for content that `fill` writes itself into the temporary path it is given. That path ends as
/// `path` does, so that a writer which looks at the extension chooses the same format.
///
/// # Errors
/// As [`write_atomic`].
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    replace(path, |temp| fill(temp).map_err(|e| Error::io(path, "cannot write", &e)))
}

/// Where [`write_stream`] writes to.
pub struct Sink {
    to: BufWriter<File>,
    /// The file's final name, for messages.
    path: PathBuf,
}

impl Sink {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::File`], for example when the disk is full.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.to.write_all(bytes).map_err(|e| Error::io(&self.path, "cannot write", &e))
    }
}

/// `fill` makes the temporary file; it is then synced and takes the place of `path`, or is removed.
fn replace(path: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let temp = beside(path, "tmp").ok_or_else(|| Error::file(path, "cannot write: not a file name"))?;
    let swap = || {
        File::open(&temp)?.sync_all()?;
        fs::rename(&temp, path)?;
        sync_dir(path.parent().unwrap_or(Path::new("")))
    };
    let written = fill(&temp).and_then(|()| swap().map_err(|e| Error::io(path, "cannot write", &e)));
    if written.is_err() {
        // What could not be written must not stay; that it was never made is no further error.
        let _ = fs::remove_file(&temp);
    }
    written
}

/// Makes renames and new names inside `dir` durable. Empty means the current folder.
///
/// # Errors
/// What the operating system says. Where folders cannot be opened as files (Windows) this does nothing.
pub fn sync_dir(dir: &Path) -> io::Result<()> {
    if cfg!(windows) {
        return Ok(());
    }
    let dir = if dir.as_os_str().is_empty() { Path::new(".") } else { dir };
    File::open(dir)?.sync_all()
}

/// `.<what>-<process>-<name>` in the same folder: renames are atomic only within one file system. None if `path` ends in no
/// name.
pub fn beside(path: &Path, what: &str) -> Option<PathBuf> {
    let mut temp = OsString::from(format!(".{what}-{}-", std::process::id()));
    temp.push(path.file_name()?);
    Some(path.with_file_name(temp))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    #[test]
    fn replaces_whole_and_leaves_nothing_beside() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"old, and longer").unwrap();
        write_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_failed_write_keeps_the_old_file() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a.json");
        write_atomic(&path, b"old").unwrap();
        let full = |temp: &Path| {
            fs::write(temp, b"half")?;
            Err(io::Error::new(io::ErrorKind::StorageFull, "no space left"))
        };
        let e = write_atomic_with(&path, full).unwrap_err().to_string();
        assert!(e.contains("a.json") && e.contains("no space left"), "{e}");
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(names(dir.path()), ["a.json"]);
    }

    #[test]
    fn a_folder_in_the_way_is_an_error() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("taken");
        fs::create_dir(&path).unwrap();
        assert!(write_atomic(&path, b"x").is_err());
        assert_eq!(names(dir.path()), ["taken"]);
        assert!(write_atomic(&dir.path().join("missing/a"), b"x").is_err());
        assert!(write_atomic(Path::new(".."), b"x").is_err());
    }
}
