//! Checkpoint folders that are whole or not there, and what a run finds in output_dir when it starts.
//!
//! `checkpoint-N` is written as `.tmp-checkpoint-N`: every file synced, then a manifest with their sizes and BLAKE3
//! sums, then the folder renamed. A folder without a manifest that checks is never taken for a checkpoint.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fs::{self, File};
use std::io::{self, BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::log_files::TRAINER_LOG;
use super::state::TRAINER_STATE;
use super::tensorboard;
use crate::config::Resume;
use crate::error::{Error, Result};
use crate::format::atomic::sync_dir;

/// The manifest's name in a checkpoint folder.
pub const MANIFEST: &str = "qlora_engine_manifest.json";
/// No manifest of ours comes near this size, in bytes.
const LARGEST_MANIFEST: u64 = 1 << 20;

/// Files of a run in output_dir beside the weights, which `overwrite_output_dir` removes.
const RUN_FILES: [&str; 10] = [
    TRAINER_LOG,
    TRAINER_STATE,
    "train_results.json",
    "eval_results.json",
    "predict_results.json",
    "generated_predictions.jsonl",
    "generated_predictions.jsonl.state",
    "all_results.json",
    "training_loss.png",
    "training_eval_loss.png",
];

/// Weights that only a finished run leaves in output_dir.
const FINAL_WEIGHTS: [&str; 3] = ["adapter_model.safetensors", "model.safetensors", "model.safetensors.index.json"];

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Optimizer steps done.
    step: u64,
    files: BTreeMap<String, Sum>,
}

#[derive(Serialize, Deserialize, Clone, PartialEq)]
#[serde(deny_unknown_fields)]
struct Sum {
    /// Bytes.
    size: u64,
    /// BLAKE3, in hexadecimal.
    blake3: String,
}

/// A checkpoint being written. Dropped without [`Staged::commit`] it leaves nothing, and older checkpoints as they
/// were.
pub struct Staged {
    step: u64,
    temp: PathBuf,
    target: PathBuf,
    files: BTreeMap<String, Sum>,
}

impl Staged {
    /// Begins `output_dir`/checkpoint-`step`.
    ///
    /// # Errors
    /// [`Error::File`] if the temporary folder cannot be made, or if a checkpoint of that name is another program's.
    pub fn begin(output_dir: &Path, step: u64) -> Result<Staged> {
        let target = output_dir.join(format!("checkpoint-{step}"));
        if target.symlink_metadata().is_ok() && !is_ours(&target) {
            return Err(Error::file(&target, "is not a checkpoint of this program; move it away"));
        }
        let temp = output_dir.join(format!(".tmp-checkpoint-{step}"));
        remove_if_there(&temp)?;
        fs::create_dir_all(output_dir)
            .and_then(|()| fs::create_dir(&temp))
            .map_err(|e| Error::io(&temp, "cannot create", &e))?;
        Ok(Staged { step, temp, target, files: BTreeMap::new() })
    }

    /// The temporary folder, for writers that make their own files. What lies there at the commit belongs to the
    /// checkpoint.
    pub fn path(&self) -> &Path {
        &self.temp
    }

    /// Writes the file `name`.
    ///
    /// # Errors
    /// [`Error::File`], for example when the disk is full.
    pub fn write(&mut self, name: &str, bytes: &[u8]) -> Result<()> {
        self.write_with(name, |out| out.write_all(bytes))
    }

    /// Writes the file `name` through `fill`, buffered. Errors as [`Staged::write`].
    pub fn write_with(&mut self, name: &str, fill: impl FnOnce(&mut dyn Write) -> io::Result<()>) -> Result<()> {
        let path = self.temp.join(name);
        let sum = File::create_new(&path).and_then(|file| {
            let mut out = BufWriter::with_capacity(1 << 16, Summing { file, hasher: blake3::Hasher::new(), size: 0 });
            fill(&mut out)?;
            let out = out.into_inner().map_err(io::IntoInnerError::into_error)?;
            out.file.sync_all()?;
            Ok(Sum { size: out.size, blake3: out.hasher.finalize().to_hex().to_string() })
        });
        let sum = sum.map_err(|e| Error::io(&path, "cannot write", &e))?;
        self.files.insert(name.to_string(), sum);
        Ok(())
    }

    /// Makes the checkpoint real, in place of an older one of the same step; returns its path.
    ///
    /// # Errors
    /// [`Error::File`]; an older checkpoint of the step then still stands, and what was written is removed.
    pub fn commit(mut self) -> Result<PathBuf> {
        for entry in entries(&self.temp)? {
            if let Entry::Vacant(unknown) = self.files.entry(file_name(&entry)) {
                unknown.insert(sum_file(&entry, true).map_err(|e| Error::io(&entry, "cannot sync", &e))?);
            }
        }
        let manifest = Manifest { step: self.step, files: std::mem::take(&mut self.files) };
        let text = serde_json::to_vec_pretty(&manifest).map_err(|e| Error::file(&self.temp, e.to_string()))?;
        self.write(MANIFEST, &text)?;
        let parent = self.target.parent().unwrap_or(Path::new(""));
        let old = parent.join(format!(".tmp-old-checkpoint-{}", self.step));
        let swap = || {
            sync_dir(&self.temp)?;
            let replaces = self.target.exists();
            if replaces {
                // A crash from here to the next rename is mended by `recover`.
                fs::rename(&self.target, &old)?;
            }
            if let Err(e) = fs::rename(&self.temp, &self.target) {
                if replaces {
                    fs::rename(&old, &self.target)?;
                }
                return Err(e);
            }
            sync_dir(parent)
        };
        remove_if_there(&old)?;
        swap().map_err(|e| Error::io(&self.target, "cannot write", &e))?;
        remove_if_there(&old)?;
        Ok(self.target.clone())
    }
}

impl Drop for Staged {
    fn drop(&mut self) {
        // After a commit the folder is gone already; an error here has no one to go to, and `recover` comes back.
        let _ = fs::remove_dir_all(&self.temp);
    }
}

/// A file that counts and sums what goes into it.
struct Summing {
    file: File,
    hasher: blake3::Hasher,
    size: u64,
}

impl Write for Summing {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let n = self.file.write(bytes)?;
        self.hasher.update(&bytes[..n]);
        self.size += n as u64;
        Ok(n)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.flush()
    }
}

fn sum_file(path: &Path, sync: bool) -> io::Result<Sum> {
    let mut file = File::open(path)?;
    let mut hasher = blake3::Hasher::new();
    let mut buffer = vec![0; 1 << 16];
    let mut size = 0;
    loop {
        let n = file.read(&mut buffer)?;
        if n == 0 {
            break;
        }
        size += n as u64;
        hasher.update(&buffer[..n]);
    }
    if sync {
        file.sync_all()?;
    }
    Ok(Sum { size, blake3: hasher.finalize().to_hex().to_string() })
}

/// Reads a checkpoint folder through and returns its step.
///
/// # Errors
/// [`Error::File`] naming the file that is missing, has another size or other bytes than the manifest says; or in
/// words, if the checkpoint is LLaMA-Factory's.
pub fn verify(checkpoint: &Path) -> Result<u64> {
    if let Some(why) = foreign(checkpoint) {
        return Err(Error::file(checkpoint, why));
    }
    let path = checkpoint.join(MANIFEST);
    let mut text = Vec::new();
    File::open(&path)
        .and_then(|file| file.take(LARGEST_MANIFEST).read_to_end(&mut text))
        .map_err(|e| Error::file(checkpoint, format!("is no whole checkpoint: cannot read {MANIFEST}: {e}")))?;
    let manifest: Manifest =
        serde_json::from_slice(&text).map_err(|e| Error::file(&path, format!("is not a manifest: {e}")))?;
    for (name, want) in &manifest.files {
        if Path::new(name).components().count() != 1 || Path::new(name).file_name().is_none_or(|n| n != name.as_str()) {
            return Err(Error::file(&path, format!("names {name:?}, which is not a plain file name")));
        }
        let file = checkpoint.join(name);
        let size = fs::metadata(&file).map_err(|e| Error::io(&file, "is part of the checkpoint, but", &e))?.len();
        if size != want.size {
            return Err(Error::file(&file, format!("should have {} bytes, has {size}", want.size)));
        }
        let got = sum_file(&file, false).map_err(|e| Error::io(&file, "cannot read", &e))?;
        if got != *want {
            return Err(Error::file(&file, "was changed or damaged: its checksum is not the manifest's"));
        }
    }
    Ok(manifest.step)
}

/// The folders `checkpoint-<N>` of `dir`, by step. A missing `dir` holds none.
///
/// # Errors
/// [`Error::File`] if `dir` cannot be read.
pub fn list(dir: &Path) -> Result<Vec<(u64, PathBuf)>> {
    let all = entries(dir)?.into_iter().filter(|path| path.is_dir());
    let mut found: Vec<_> = all.filter_map(|path| Some((step_of(&file_name(&path), "checkpoint-")?, path))).collect();
    found.sort();
    Ok(found)
}

/// The newest whole checkpoint in `dir`. Others are passed over with a warning.
///
/// # Errors
/// [`Error::File`] if `dir` cannot be read.
pub fn latest(dir: &Path) -> Result<Option<PathBuf>> {
    for (_, path) in list(dir)?.into_iter().rev() {
        match verify(&path) {
            Ok(_) => return Ok(Some(path)),
            Err(e) => log::warn!("{e}; passed over"),
        }
    }
    Ok(None)
}

/// Removes a checkpoint such that a crash amid it leaves none that looks whole.
///
/// # Errors
/// [`Error::File`] if the system does not let it go.
pub fn remove(checkpoint: &Path) -> Result<()> {
    let gone = checkpoint.with_file_name(format!(".tmp-gone-{}", file_name(checkpoint)));
    remove_if_there(&gone)?;
    fs::rename(checkpoint, &gone).map_err(|e| Error::io(checkpoint, "cannot remove", &e))?;
    remove_if_there(&gone)
}

/// How a run starts.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Start {
    /// From step 0.
    Fresh,
    /// From this whole checkpoint.
    Resume(PathBuf),
}

/// Readies `output_dir` and decides how the run starts. Checkpoints newer than the one resumed from are set aside
/// as `replaced-checkpoint-N`, so that a later resume cannot mix two runs.
///
/// # Errors
/// [`Error::Config`] naming the keys that help, if neither `overwrite_output_dir` nor `resume_from_checkpoint` is
/// given and the folder holds a run, or if there is nothing whole to resume from; [`Error::File`] if a checkpoint
/// is another program's or cannot be read.
pub fn prepare(output_dir: &Path, overwrite: bool, resume: &Resume) -> Result<Start> {
    fs::create_dir_all(output_dir).map_err(|e| Error::io(output_dir, "cannot create", &e))?;
    recover(output_dir)?;
    let from = match resume {
        Resume::From(path) => {
            verify(path)?;
            path.clone()
        }
        Resume::Latest => match latest(output_dir)? {
            Some(path) => path,
            None => {
                refuse_foreign(output_dir)?;
                if let Some((_, path)) = list(output_dir)?.pop() {
                    let why = format!("finds no whole checkpoint in {}", output_dir.display());
                    verify(&path).map_err(|e| Error::config("resume_from_checkpoint", format!("{why}: {e}")))?;
                }
                log::warn!("{}: no checkpoint to resume from, starting at step 0", output_dir.display());
                return Ok(Start::Fresh);
            }
        },
        Resume::No if overwrite => {
            refuse_foreign(output_dir)?;
            remove_ours(output_dir)?;
            set_aside(output_dir, 0)?;
            return Ok(Start::Fresh);
        }
        Resume::No => {
            let checkpoint = list(output_dir)?.pop().map(|(_, path)| file_name(&path));
            let weights = FINAL_WEIGHTS.iter().find(|name| output_dir.join(name).exists()).map(|n| n.to_string());
            if let Some(found) = checkpoint.or(weights) {
                let why = format!(
                    "{} already holds {found}: set overwrite_output_dir: true to start anew, \
                     resume_from_checkpoint: true to go on, or choose another folder",
                    output_dir.display()
                );
                return Err(Error::config("output_dir", why));
            }
            return Ok(Start::Fresh);
        }
    };
    set_aside(output_dir, verify(&from)? + 1)?;
    Ok(Start::Resume(from))
}

/// Renames every folder `checkpoint-N` with N >= `from` to `replaced-checkpoint-N`: the run is going to write its own,
/// and must not find out at step N that the name is taken.
fn set_aside(dir: &Path, from: u64) -> Result<()> {
    for (step, path) in list(dir)?.into_iter().filter(|(step, _)| *step >= from) {
        let aside = dir.join(format!("replaced-checkpoint-{step}"));
        if is_ours(&aside) {
            remove(&aside)?;
        }
        fs::rename(&path, &aside).map_err(|e| Error::io(&path, "cannot set aside", &e))?;
        log::warn!("{}: stands in the way of this run's own, now {}", path.display(), aside.display());
    }
    Ok(())
}

/// Removes what an earlier run of this program left in `dir`: its checkpoints, logs, results and event files.
/// Nothing else, the final weights included, which the new run replaces only when it has its own.
///
/// # Errors
/// [`Error::File`] naming what cannot be removed.
pub fn remove_ours(dir: &Path) -> Result<()> {
    for path in entries(dir)? {
        let name = file_name(&path);
        let checkpoint = ["checkpoint-", "replaced-checkpoint-"].iter().any(|p| step_of(&name, p).is_some());
        if checkpoint && is_ours(&path) {
            remove(&path)?;
        } else if RUN_FILES.contains(&name.as_str()) {
            remove_if_there(&path)?;
        }
    }
    for run in entries(&dir.join("runs"))?.iter().filter(|path| path.is_dir()) {
        for events in entries(run)?.iter().filter(|path| tensorboard::is_ours(path)) {
            remove_if_there(events)?;
        }
        // Fails, as it should, unless the folder is now empty.
        let _ = fs::remove_dir(run);
    }
    Ok(())
}

/// Clears away what a killed run left half-done, and puts back a checkpoint that was just being replaced.
fn recover(dir: &Path) -> Result<()> {
    for path in entries(dir)? {
        let name = file_name(&path);
        if let Some(step) = step_of(&name, ".tmp-old-checkpoint-") {
            let place = dir.join(format!("checkpoint-{step}"));
            if !place.exists() {
                fs::rename(&path, &place).map_err(|e| Error::io(&path, "cannot put back", &e))?;
                continue;
            }
            remove_if_there(&path)?;
        }
        let gone = name.strip_prefix(".tmp-gone-").is_some_and(|n| n.contains("checkpoint-"));
        let file = name.strip_prefix(".tmp-").and_then(|n| n.split_once('-')).is_some_and(|(process, _)| {
            process.bytes().all(|b| b.is_ascii_digit()) && !process.is_empty() && path.is_file()
        });
        if gone || file || step_of(&name, ".tmp-checkpoint-").is_some() {
            remove_if_there(&path)?;
        }
    }
    Ok(())
}

/// Whether the folder was written, wholly, by this program; says nothing of its files' sums.
fn is_ours(checkpoint: &Path) -> bool {
    checkpoint.join(MANIFEST).is_file()
}

/// In words, if the checkpoint is transformers' (LLaMA-Factory's).
fn foreign(checkpoint: &Path) -> Option<String> {
    let marks = ["optimizer.pt", "scheduler.pt", "rng_state.pth", "training_args.bin"];
    let mark = marks.iter().find(|mark| checkpoint.join(mark).exists()).filter(|_| !is_ours(checkpoint))?;
    Some(format!(
        "is a checkpoint of LLaMA-Factory (it holds {mark}), whose optimizer state this program cannot go on from; \
         to train its adapter further, name the folder in adapter_name_or_path and choose another output_dir"
    ))
}

fn refuse_foreign(output_dir: &Path) -> Result<()> {
    match list(output_dir)?.into_iter().find_map(|(_, path)| foreign(&path).map(|why| (path, why))) {
        Some((path, why)) => Err(Error::file(path, why)),
        None => Ok(()),
    }
}

/// N of `<prefix>N`, written without leading zeros.
fn step_of(name: &str, prefix: &str) -> Option<u64> {
    let digits = name.strip_prefix(prefix)?;
    digits.parse().ok().filter(|n: &u64| n.to_string() == digits)
}

/// The name as text; one that is not UTF-8 is none of ours and may come out changed.
fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// What lies in `dir`; nothing where there is no such folder.
fn entries(dir: &Path) -> Result<Vec<PathBuf>> {
    let read = match fs::read_dir(dir) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        read => read.and_then(|all| all.map(|entry| Ok(entry?.path())).collect::<io::Result<Vec<_>>>()),
    };
    read.map_err(|e| Error::io(dir, "cannot read", &e))
}

/// Removes a file, a link or a whole folder.
fn remove_if_there(path: &Path) -> Result<()> {
    let removed = match path.symlink_metadata() {
        Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
        Ok(_) => fs::remove_file(path),
        Err(e) => Err(e),
    };
    match removed {
        Err(e) if e.kind() != io::ErrorKind::NotFound => Err(Error::io(path, "cannot remove", &e)),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use std::process::Command;

    use super::*;

    fn save(dir: &Path, step: u64, text: &str) -> PathBuf {
        let mut staged = Staged::begin(dir, step).unwrap();
        staged.write("adapter_model.safetensors", text.as_bytes()).unwrap();
        fs::write(staged.path().join("tokenizer.json"), "{}").unwrap();
        staged.commit().unwrap()
    }

    fn names(dir: &Path) -> Vec<String> {
        let mut names: Vec<_> = entries(dir).unwrap().iter().map(|p| file_name(p)).collect();
        names.sort();
        names
    }

    #[test]
    fn a_checkpoint_appears_whole() {
        let dir = tempfile::tempdir().unwrap();
        let path = save(dir.path(), 5, "five");
        assert_eq!(names(dir.path()), ["checkpoint-5"]);
        assert_eq!(names(&path), ["adapter_model.safetensors", MANIFEST, "tokenizer.json"]);
        assert_eq!(verify(&path).unwrap(), 5);
        save(dir.path(), 10, "ten");
        // The same step again replaces it.
        save(dir.path(), 5, "again");
        assert_eq!(fs::read_to_string(path.join("adapter_model.safetensors")).unwrap(), "again");
        assert_eq!(list(dir.path()).unwrap().iter().map(|c| c.0).collect::<Vec<_>>(), [5, 10]);
        assert_eq!(latest(dir.path()).unwrap().unwrap(), dir.path().join("checkpoint-10"));
        remove(&path).unwrap();
        assert_eq!(names(dir.path()), ["checkpoint-10"]);
    }

    #[test]
    fn half_written_or_damaged_ones_are_never_taken() {
        let weights = "adapter_model.safetensors";
        type Damage = fn(&Path, &str) -> io::Result<()>;
        let damages: [(Damage, &str); 7] = [
            (|p, _| fs::remove_file(p.join(MANIFEST)), "no whole checkpoint"),
            (|p, w| fs::remove_file(p.join(w)), "is part of the checkpoint"),
            (|p, w| fs::write(p.join(w), "te"), "should have 3 bytes, has 2"),
            (|p, w| fs::write(p.join(w), "tfn"), "checksum"),
            (|p, _| fs::write(p.join(MANIFEST), "{\"step\": 10"), "not a manifest"),
            (|p, _| fs::write(p.join(MANIFEST), r#"{"step":1,"files":{"../x":{"size":0,"blake3":""}}}"#), "plain file"),
            (|p, _| fs::write(p.join(MANIFEST), r#"{"step":1,"files":{"..":{"size":0,"blake3":""}}}"#), "plain file"),
        ];
        for (damage, want) in damages {
            let dir = tempfile::tempdir().unwrap();
            let good = save(dir.path(), 9, "nine");
            let bad = save(dir.path(), 10, "ten");
            damage(&bad, weights).unwrap();
            let e = verify(&bad).unwrap_err().to_string();
            assert!(e.contains(want) && !e.contains('\n'), "{e}");
            assert_eq!(latest(dir.path()).unwrap(), Some(good));
        }
    }

    #[test]
    fn what_a_kill_leaves_is_mended() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        save(d, 5, "five");
        fs::rename(d.join("checkpoint-5"), d.join(".tmp-old-checkpoint-5")).unwrap();
        save(d, 10, "ten");
        fs::create_dir(d.join(".tmp-old-checkpoint-10")).unwrap();
        fs::create_dir(d.join(".tmp-checkpoint-15")).unwrap();
        fs::write(d.join(".tmp-checkpoint-15/adapter_model.safetensors"), "half").unwrap();
        fs::create_dir(d.join(".tmp-gone-checkpoint-1")).unwrap();
        fs::write(d.join(".tmp-123-trainer_state.json"), "half").unwrap();
        fs::write(d.join(".tmp-notes"), "the user's own").unwrap();
        assert_eq!(prepare(d, false, &Resume::Latest).unwrap(), Start::Resume(d.join("checkpoint-10")));
        assert_eq!(names(d), [".tmp-notes", "checkpoint-10", "checkpoint-5"]);
        assert_eq!(verify(&d.join("checkpoint-5")).unwrap(), 5);
    }

    #[test]
    fn a_failed_write_leaves_the_old_ones() {
        let dir = tempfile::tempdir().unwrap();
        let old = save(dir.path(), 5, "five");
        for step in [5, 6] {
            let mut staged = Staged::begin(dir.path(), step).unwrap();
            staged.write("a", b"fits").unwrap();
            let full = |out: &mut dyn Write| {
                out.write_all(b"half")?;
                Err(io::Error::new(io::ErrorKind::StorageFull, "no space left on device"))
            };
            let e = staged.write_with("b", full).unwrap_err().to_string();
            assert!(e.contains("no space left"), "{e}");
            drop(staged);
            // A folder where a file belongs.
            let mut staged = Staged::begin(dir.path(), step).unwrap();
            fs::create_dir(staged.path().join("b")).unwrap();
            assert!(staged.write("b", b"x").is_err());
            assert!(staged.commit().is_err());
            assert_eq!(names(dir.path()), ["checkpoint-5"]);
            assert_eq!(verify(&old).unwrap(), 5);
        }
    }

    /// The system itself refuses the write: this test runs itself again with files limited to a few KB.
    #[test]
    #[cfg(unix)]
    fn a_full_disk_leaves_the_old_checkpoint() {
        const CHILD: &str = "QLORA_ENGINE_TEST_FULL_DISK";
        if let Some(dir) = std::env::var_os(CHILD) {
            let mut staged = Staged::begin(Path::new(&dir), 5).unwrap();
            let e = staged.write("adapter_model.safetensors", &vec![1; 1 << 20]).unwrap_err().to_string();
            assert!(e.contains("adapter_model.safetensors: cannot write: "), "{e}");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let old = save(dir.path(), 5, "five");
        let this = "train::checkpoint_dir::tests::a_full_disk_leaves_the_old_checkpoint";
        let status = Command::new("sh")
            .args(["-c", "trap '' XFSZ; ulimit -f 16; exec \"$0\" --exact \"$1\" >/dev/null 2>&1"])
            .arg(std::env::current_exe().unwrap())
            .arg(this)
            .env(CHILD, dir.path())
            .status()
            .unwrap();
        assert!(status.success(), "{status}");
        assert_eq!(names(dir.path()), ["checkpoint-5"]);
        assert_eq!(verify(&old).unwrap(), 5);
    }

    #[test]
    fn neither_key_refuses_a_used_folder_and_names_both() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(prepare(&dir.path().join("new"), false, &Resume::No).unwrap(), Start::Fresh);
        save(dir.path(), 5, "five");
        let e = prepare(dir.path(), false, &Resume::No).unwrap_err().to_string();
        assert!(
            e.contains("checkpoint-5") && e.contains("overwrite_output_dir") && e.contains("resume_from_checkpoint")
        );
        let other = tempfile::tempdir().unwrap();
        fs::write(other.path().join("adapter_model.safetensors"), "").unwrap();
        assert!(prepare(other.path(), false, &Resume::No).is_err());
        let file = other.path().join("adapter_model.safetensors");
        assert!(prepare(&file, false, &Resume::No).unwrap_err().to_string().contains("cannot create"));
    }

    #[test]
    fn overwriting_removes_ours_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        save(d, 5, "five");
        save(d, 10, "ten");
        for name in RUN_FILES.into_iter().chain(["adapter_model.safetensors", "notes.txt", "checkpoint-7"]) {
            fs::write(d.join(name), "x").unwrap();
        }
        fs::create_dir_all(d.join("runs/theirs")).unwrap();
        fs::write(d.join("runs/theirs/events.out.tfevents.1.h.1.0"), "x").unwrap();
        fs::create_dir(d.join("checkpoint-007")).unwrap();
        assert_eq!(prepare(d, true, &Resume::No).unwrap(), Start::Fresh);
        assert_eq!(names(d), ["adapter_model.safetensors", "checkpoint-007", "checkpoint-7", "notes.txt", "runs"]);
        assert_eq!(names(&d.join("runs/theirs")).len(), 1);
    }

    #[test]
    fn llama_factory_s_checkpoints_are_refused_in_words() {
        let dir = tempfile::tempdir().unwrap();
        let theirs = dir.path().join("checkpoint-5");
        fs::create_dir(&theirs).unwrap();
        fs::write(theirs.join("optimizer.pt"), "x").unwrap();
        for (overwrite, resume) in
            [(false, Resume::Latest), (true, Resume::Latest), (false, Resume::From(theirs.clone())), (true, Resume::No)]
        {
            let e = prepare(dir.path(), overwrite, &resume).unwrap_err().to_string();
            assert!(e.contains("LLaMA-Factory") && e.contains("adapter_name_or_path"), "{e}");
        }
        assert!(prepare(dir.path(), false, &Resume::No).is_err());
        assert!(Staged::begin(dir.path(), 5).is_err());
        assert_eq!(names(&theirs), ["optimizer.pt"]);
    }

    #[test]
    fn resuming_sets_newer_checkpoints_aside() {
        let dir = tempfile::tempdir().unwrap();
        let d = dir.path();
        // Killed before its first checkpoint: nothing to resume from is a start.
        assert_eq!(prepare(d, false, &Resume::Latest).unwrap(), Start::Fresh);
        for step in [5, 10, 15] {
            save(d, step, "x");
        }
        let from = d.join("checkpoint-5");
        assert_eq!(prepare(d, false, &Resume::From(from.clone())).unwrap(), Start::Resume(from.clone()));
        assert_eq!(names(d), ["checkpoint-5", "replaced-checkpoint-10", "replaced-checkpoint-15"]);
        save(d, 10, "y");
        assert_eq!(prepare(d, false, &Resume::From(from)).unwrap(), Start::Resume(d.join("checkpoint-5")));
        assert_eq!(fs::read_to_string(d.join("replaced-checkpoint-10/adapter_model.safetensors")).unwrap(), "y");
        // Checkpoints that are all damaged are not silently trained over.
        fs::remove_file(d.join("checkpoint-5").join(MANIFEST)).unwrap();
        let e = prepare(d, false, &Resume::Latest).unwrap_err().to_string();
        assert!(e.contains("`resume_from_checkpoint` finds no whole checkpoint"), "{e}");
    }
}
