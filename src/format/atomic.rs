//! Files that appear whole or not at all: written beside their place, synced, then renamed over it.

use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `bytes` to `path` so that after a crash at any moment the file holds either its old content or all of
/// the new one.
///
/// # Errors
/// [`Error::File`] naming `path`; the old file then still stands and nothing is left beside it.
pub fn write_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic_with(path, |temp| {
        let mut file = File::create(temp)?;
        file.write_all(bytes)
    })
}

/// As [`write_atomic`], for content that `fill` writes itself into the temporary path it is given. That path ends as
/// `path` does, so that a writer which looks at the extension chooses the same format.
///
/// # Errors
/// [`Error::File`] naming `path`; the old file then still stands and nothing is left beside it.
pub fn write_atomic_with(path: &Path, fill: impl FnOnce(&Path) -> io::Result<()>) -> Result<()> {
    let temp = beside(path)?;
    let written = fill(&temp)
        .and_then(|()| File::open(&temp)?.sync_all())
        .and_then(|()| fs::rename(&temp, path))
        .and_then(|()| sync_dir(path.parent().unwrap_or(Path::new(""))));
    written.map_err(|e| {
        // What could not be written must not stay; that it was never made is no further error.
        let _ = fs::remove_file(&temp);
        Error::io(path, "cannot write", &e)
    })
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

/// `.tmp-<process>-<name>` in the same folder: renames are atomic only within one file system.
fn beside(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "cannot write: not a file name"))?;
    let mut temp = OsString::from(format!(".tmp-{}-", std::process::id()));
    temp.push(name);
    Ok(path.with_file_name(temp))
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
