//! Files that are there whole or not at all: written beside their place, synced, then renamed over it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, BufWriter, Write};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// Writes `path` by way of a temporary file in the same folder: filled by `fill`, synced, renamed, the folder synced.
/// A crash or a full disk leaves what was at `path` before.
///
/// # Errors
/// [`Error::File`] if a step fails, and whatever `fill` returns; the temporary file is removed in both cases.
pub fn write_atomic(path: &Path, fill: impl FnOnce(&mut Sink) -> Result<()>) -> Result<()> {
    let mut guard = Temporary { path: temporary_path(path)?, keep: false };
    let file = OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .open(&guard.path)
        .map_err(|e| Error::io(&guard.path, "cannot create", &e))?;
    let mut sink = Sink { to: BufWriter::with_capacity(1 << 20, file), path: path.to_path_buf() };
    fill(&mut sink)?;
    let failed = |e: &io::Error| Error::io(path, "cannot write", e);
    sink.to.flush().map_err(|e| failed(&e))?;
    sink.to.get_ref().sync_all().map_err(|e| failed(&e))?;
    fs::rename(&guard.path, path).map_err(|e| failed(&e))?;
    guard.keep = true;
    sync_folder(path)
}

/// [`write_atomic`] of bytes at hand.
///
/// # Errors
/// [`Error::File`].
pub fn write_bytes_atomic(path: &Path, bytes: &[u8]) -> Result<()> {
    write_atomic(path, |sink| sink.bytes(bytes))
}

/// Where [`write_atomic`] writes to.
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

/// Removes the temporary file unless it was renamed.
struct Temporary {
    path: PathBuf,
    keep: bool,
}

impl Drop for Temporary {
    fn drop(&mut self) {
        if !self.keep {
            let _ = fs::remove_file(&self.path);
        }
    }
}

fn temporary_path(path: &Path) -> Result<PathBuf> {
    let name = path.file_name().ok_or_else(|| Error::file(path, "is no file name"))?;
    let mut hidden = std::ffi::OsString::from(".");
    hidden.push(name);
    hidden.push(format!(".{}.tmp", std::process::id()));
    Ok(path.with_file_name(hidden))
}

/// Makes the rename itself survive a crash.
fn sync_folder(path: &Path) -> Result<()> {
    let folder = match path.parent() {
        Some(p) if !p.as_os_str().is_empty() => p,
        _ => Path::new("."),
    };
    // A folder can be opened and synced on Unix only; elsewhere the rename is as durable as the system makes it.
    #[cfg(unix)]
    File::open(folder).and_then(|f| f.sync_all()).map_err(|e| Error::io(folder, "cannot sync", &e))?;
    #[cfg(not(unix))]
    let _ = folder;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_litter() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("x.json");
        write_bytes_atomic(&path, b"old").unwrap();
        let failed = write_atomic(&path, |sink| {
            sink.bytes(b"half of the n")?;
            Err(Error::file("x", "stopped"))
        });
        assert!(failed.is_err());
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
        write_bytes_atomic(&path, b"new").unwrap();
        assert_eq!(fs::read(&path).unwrap(), b"new");
        assert!(write_bytes_atomic(&dir.path().join("none/x"), b"").unwrap_err().to_string().contains("cannot create"));
    }
}
