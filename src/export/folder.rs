//! A folder that appears whole or not at all.

use std::fs;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::format::atomic::{self, sync_dir};

/// The file by which an export is known as one, and may be replaced by the next.
pub(super) const MARK: &str = "qlora_export.json";

/// Lets `fill` make a folder beside `dir`, then puts it into `dir`'s place. `kept`: folders that must survive.
///
/// # Errors
/// [`Error::Config`] if `dir` holds something that is no earlier export, or is one of `kept`; [`Error::File`] when the disk
/// refuses, and what `fill` returns. Then `dir` is as it was, and nothing is left beside it.
pub(super) fn replace(dir: &Path, kept: &[&Path], fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let real = |p: &Path| fs::canonicalize(p).ok();
    if let Some(here) = real(dir)
        && kept.iter().any(|k| real(k).as_ref() == Some(&here))
    {
        let why = format!("is {}, from which the export is made: name another folder", dir.display());
        return Err(Error::config("export_dir", why));
    }
    check_old(dir)?;
    let temp = beside(dir, "tmp")?;
    if let Some(parent) = temp.parent().filter(|p| !p.as_os_str().is_empty()) {
        fs::create_dir_all(parent).map_err(|e| Error::io(parent, "cannot create", &e))?;
    }
    // Left by a process of the same number that was killed.
    let _ = fs::remove_dir_all(&temp);
    fs::create_dir(&temp).map_err(|e| Error::io(&temp, "cannot create", &e))?;
    let done = fill(&temp).and_then(|()| swap(&temp, dir));
    if done.is_err() {
        // What could not be finished must not stay; that it cannot be removed is no further error.
        let _ = fs::remove_dir_all(&temp);
    }
    done
}

/// Whether `dir` may be replaced.
fn check_old(dir: &Path) -> Result<()> {
    let entries = match fs::read_dir(dir) {
        Ok(entries) => entries,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(e) => return Err(Error::io(dir, "cannot list", &e)),
    };
    if entries.count() > 0 && !dir.join(MARK).is_file() {
        let why =
            format!("is {}, which holds something else than an earlier export: name another folder", dir.display());
        return Err(Error::config("export_dir", why));
    }
    Ok(())
}

fn swap(temp: &Path, dir: &Path) -> Result<()> {
    let failed = |e: std::io::Error| Error::io(dir, "cannot put the export into its place", &e);
    sync_dir(temp).map_err(failed)?;
    let old = beside(dir, "old")?;
    let there = dir.exists();
    if there {
        fs::rename(dir, &old).map_err(failed)?;
    }
    if let Err(e) = fs::rename(temp, dir) {
        if there {
            fs::rename(&old, dir).map_err(failed)?;
        }
        return Err(failed(e));
    }
    if there {
        fs::remove_dir_all(&old).map_err(|e| Error::io(&old, "cannot remove the earlier export", &e))?;
    }
    let parent = dir.parent().unwrap_or(Path::new(""));
    sync_dir(parent).map_err(failed)
}

/// A place for `what` beside `dir`.
fn beside(dir: &Path, what: &str) -> Result<PathBuf> {
    let why = || Error::config("export_dir", format!("`{}` is no name of a folder", dir.display()));
    atomic::beside(dir, what).ok_or_else(why)
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

    fn make(text: &'static str) -> impl FnOnce(&Path) -> Result<()> {
        move |d: &Path| {
            fs::write(d.join("text"), text).unwrap();
            fs::write(d.join(MARK), "{}").unwrap();
            Ok(())
        }
    }

    #[test]
    fn only_an_earlier_export_is_replaced_and_only_by_a_whole_one() {
        let place = tempfile::tempdir().unwrap();
        let dir = place.path().join("out");
        replace(&dir, &[], make("one")).unwrap();
        replace(&dir, &[], make("two")).unwrap();
        assert_eq!(fs::read_to_string(dir.join("text")).unwrap(), "two");
        let broken = |d: &Path| {
            fs::write(d.join("text"), "half").unwrap();
            Err(Error::file(d, "no space left"))
        };
        assert!(replace(&dir, &[], broken).unwrap_err().to_string().contains("no space"));
        assert_eq!(fs::read_to_string(dir.join("text")).unwrap(), "two");
        let fresh = place.path().join("never");
        assert!(replace(&fresh, &[], broken).is_err());
        assert_eq!(names(place.path()), ["out"]);

        let e = replace(&dir, &[&dir], make("three")).unwrap_err().to_string();
        assert!(e.contains("export_dir") && e.contains("from which"), "{e}");
        let other = place.path().join("other");
        fs::create_dir(&other).unwrap();
        replace(&other, &[], make("empty is fine")).unwrap();
        fs::remove_file(other.join(MARK)).unwrap();
        let e = replace(&other, &[], make("four")).unwrap_err().to_string();
        assert!(e.contains("something else"), "{e}");
        assert_eq!(fs::read_to_string(other.join("text")).unwrap(), "empty is fine");
    }
}
