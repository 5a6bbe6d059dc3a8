//! Tokenised data on disk, so that a second run does not tokenise again.
//!
//! A file is: 8 bytes of magic, the format version (u32), the length of the body (u64), the body's blake3 (32 bytes), the
//! body. All numbers are little-endian. A body is: the rows left out (count u32; each reason's length u32, text, rows u64),
//! then the samples (count u64), each as flags (u8, 1: block-diagonal), its number of pieces (u32), their lengths (u32), the
//! ids (u32) and one bit an id for `trained`, the lowest first.

use std::collections::hash_map::RandomState;
use std::fs;
use std::hash::{BuildHasher, Hasher};
use std::path::{Path, PathBuf};

use super::encode::Prepared;
use super::template::Template;
use super::tokenizer::Tokenizer;
use super::{Record, Sample};
use crate::config::Config;
use crate::error::{Error, Result};

const MAGIC: &[u8; 8] = b"qe-token";
const VERSION: u32 = 1;
const HEADER: usize = 8 + 4 + 8 + 32;
/// The list of the splits in a `tokenized_path`.
const INDEX: &str = "qlora_engine_tokenized.json";

/// Where cached data lie: `QLORA_CACHE`, else `qlora-engine` in `XDG_CACHE_HOME` or `~/.cache`. None without a home.
pub fn folder() -> Option<PathBuf> {
    let set = |name: &str| std::env::var_os(name).filter(|v| !v.is_empty()).map(PathBuf::from);
    set("QLORA_CACHE")
        .or_else(|| set("XDG_CACHE_HOME").map(|d| d.join("qlora-engine")))
        .or_else(|| set("HOME").map(|d| d.join(".cache").join("qlora-engine")))
}

/// Stands for everything that the samples depend on. `digest` stands for the records.
pub(super) fn key(
    records: &[Record],
    config: &Config,
    tokenizer: &Tokenizer,
    template: &Template,
    digest: &[u8],
) -> String {
    let mut h = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        h.update(&(bytes.len() as u64).to_le_bytes());
        h.update(bytes);
    };
    part(&VERSION.to_le_bytes());
    part(digest);
    part(&(records.len() as u64).to_le_bytes());
    part(tokenizer.key().as_bytes());
    let dated = template.depends_on_date() && records.iter().any(|r| !r.tools.is_empty());
    let template = if dated { template.clone() } else { template.clone().with_date("") };
    part(format!("{template:?}").as_bytes());
    let d = &config.data;
    let settings = (config.tune.stage, d.cutoff_len, d.train_on_prompt, d.mask_history, d.packing, d.neat_packing);
    part(format!("{settings:?} {} {:?}", d.preprocessing_batch_size, d.template).as_bytes());
    // These two are only in what the user wrote: they decide how rows are grouped for packing and how long a row is.
    for (k, v) in &config.written {
        if matches!(k.as_str(), "preprocessing_num_workers" | "packing" | "neat_packing" | "streaming") {
            part(format!("{k}={v}").as_bytes());
        }
    }
    h.finalize().to_hex().to_string()
}

/// The samples under `key`, if they are there and whole. A damaged file is said to be so and made again.
pub(super) fn read(key: &str) -> Option<Prepared> {
    let path = folder()?.join(format!("{key}.tokens"));
    match read_file(&path) {
        Ok(found) => found.map(|p| Prepared { from_cache: true, ..p }),
        Err(e) => {
            log::warn!("{e}; it is made again");
            None
        }
    }
}

/// Keeps `data` under `key`. A cache that cannot be written costs time and nothing else, so that is only a warning.
pub(super) fn write(key: &str, data: &Prepared) {
    let Some(folder) = folder() else { return };
    if let Err(e) = write_file(&folder.join(format!("{key}.tokens")), data) {
        log::warn!("tokenised data are not cached: {e}");
    }
}

/// Writes the splits ("train", "validation", ...) of a run into `folder`, for `tokenized_path`.
///
/// # Errors
/// [`Error::File`] if the folder cannot be made or written.
pub fn write_tokenized(folder: &Path, splits: &[(&str, &Prepared)], tokenizer: &Tokenizer) -> Result<()> {
    let mut names = Vec::new();
    for (i, (name, data)) in splits.iter().enumerate() {
        let file = format!("{i}.tokens");
        write_file(&folder.join(&file), data)?;
        names.push(serde_json::json!({"split": name, "file": file}));
    }
    let index =
        serde_json::json!({"version": VERSION, "tokenizer": tokenizer.key().to_hex().as_str(), "splits": names});
    // Last, so that a folder with an index is whole.
    write_atomically(&folder.join(INDEX), index.to_string().as_bytes())
}

/// The splits that lie in `folder`; None if it holds no tokenised data.
///
/// # Errors
/// [`Error::File`] if the folder holds something else, such as LLaMA-Factory's own, or a file of it is damaged.
pub fn read_tokenized(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<Vec<(String, Prepared)>>> {
    let index = folder.join(INDEX);
    let text = match fs::read(&index) {
        Ok(t) => t,
        Err(_) if folder.join("dataset_dict.json").exists() || folder.join("state.json").exists() => {
            return Err(Error::file(
                folder,
                "holds data tokenised by LLaMA-Factory, which are not read; name another folder for tokenized_path",
            ));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {
            // LLaMA-Factory also starts afresh in a missing or an empty folder.
            let empty = fs::read_dir(folder).map_or(true, |mut d| d.next().is_none());
            if empty {
                return Ok(None);
            }
            return Err(Error::file(folder, format!("is not empty and has no {INDEX}; name another folder")));
        }
        Err(e) => return Err(Error::io(&index, "cannot read", &e)),
    };
    let bad = || Error::file(&index, "is damaged; remove the folder and tokenise again");
    let v: serde_json::Value = serde_json::from_slice(&text).map_err(|_| bad())?;
    if v.get("version").and_then(|v| v.as_u64()) != Some(u64::from(VERSION)) {
        return Err(Error::file(&index, format!("is of another version than {VERSION}; tokenise again")));
    }
    if v.get("tokenizer").and_then(|t| t.as_str()) != Some(tokenizer.key().to_hex().as_str()) {
        log::warn!("{} was made with another tokenizer or template", folder.display());
    }
    log::warn!("data are read from tokenized_path {}: other data settings are ignored", folder.display());
    let mut out = Vec::new();
    for split in v.get("splits").and_then(|s| s.as_array()).ok_or_else(bad)? {
        let text = |key: &str| split.get(key).and_then(|s| s.as_str()).ok_or_else(bad);
        let (name, file) = (text("split")?, text("file")?);
        if file.contains(['/', '\\']) {
            return Err(bad());
        }
        let path = folder.join(file);
        let data = read_file(&path)?.ok_or_else(|| Error::file(&path, "is missing; tokenise again"))?;
        out.push((name.to_string(), data));
    }
    Ok(Some(out))
}

fn write_file(path: &Path, data: &Prepared) -> Result<()> {
    let body = body(data);
    let mut bytes = Vec::with_capacity(HEADER + body.len());
    bytes.extend(MAGIC);
    bytes.extend(VERSION.to_le_bytes());
    bytes.extend((body.len() as u64).to_le_bytes());
    bytes.extend(blake3::hash(&body).as_bytes());
    bytes.extend(body);
    write_atomically(path, &bytes)
}

/// Under another name first, and renamed when it is whole.
fn write_atomically(path: &Path, bytes: &[u8]) -> Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create the folder", &e))?;
    // Two runs may write the same file at once: each needs a temporary name of its own.
    let unique = RandomState::new().build_hasher().finish();
    let temporary = path.with_extension(format!("{unique:016x}.tmp"));
    let result = fs::write(&temporary, bytes).and_then(|()| fs::rename(&temporary, path));
    result.map_err(|e| {
        let _ = fs::remove_file(&temporary);
        Error::io(path, "cannot write", &e)
    })
}

fn read_file(path: &Path) -> Result<Option<Prepared>> {
    let bytes = match fs::read(path) {
        Ok(b) => b,
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(e) => return Err(Error::io(path, "cannot read", &e)),
    };
    parse(&bytes).map(Some).ok_or_else(|| Error::file(path, "is damaged: its checksum or its lengths are wrong"))
}

fn body(data: &Prepared) -> Vec<u8> {
    let mut out = Vec::new();
    out.extend((data.dropped.len() as u32).to_le_bytes());
    for (why, n) in &data.dropped {
        out.extend((why.len() as u32).to_le_bytes());
        out.extend(why.as_bytes());
        out.extend((*n as u64).to_le_bytes());
    }
    out.extend((data.samples.len() as u64).to_le_bytes());
    for s in &data.samples {
        out.push(u8::from(s.block_diagonal));
        out.extend((s.pieces.len() as u32).to_le_bytes());
        s.pieces.iter().chain(&s.ids).for_each(|n| out.extend(n.to_le_bytes()));
        for bits in s.trained.chunks(8) {
            out.push(bits.iter().enumerate().fold(0, |b, (i, &t)| b | (u8::from(t) << i)));
        }
    }
    out
}

/// None if anything about `bytes` is wrong.
fn parse(bytes: &[u8]) -> Option<Prepared> {
    let mut header = Reader(bytes);
    if header.take(8)? != MAGIC || header.u32()? != VERSION {
        return None;
    }
    let length = header.u64()?;
    let checksum = header.take(32)?;
    let body = header.0;
    if body.len() as u64 != length || blake3::hash(body).as_bytes() != checksum {
        return None;
    }
    let mut r = Reader(body);
    let mut dropped = Vec::new();
    for _ in 0..r.u32()? {
        let n = r.u32()? as usize;
        let why = std::str::from_utf8(r.take(n)?).ok()?.to_string();
        dropped.push((why, usize::try_from(r.u64()?).ok()?));
    }
    let mut samples = Vec::new();
    for _ in 0..r.u64()? {
        let block_diagonal = match r.take(1)? {
            [0] => false,
            [1] => true,
            _ => return None,
        };
        let n = r.u32()? as usize;
        let pieces = r.u32s(n)?;
        let tokens = pieces.iter().try_fold(0_usize, |sum, &n| sum.checked_add(n as usize))?;
        let ids = r.u32s(tokens)?;
        let bits = r.take(tokens.div_ceil(8))?;
        let trained = bits.iter().flat_map(|b| (0..8).map(move |i| b >> i & 1 == 1)).take(tokens).collect();
        samples.push(Sample { ids, trained, pieces, block_diagonal });
    }
    r.0.is_empty().then_some(Prepared { samples, dropped, from_cache: false })
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, n: usize) -> Option<&'a [u8]> {
        let (head, rest) = self.0.split_at_checked(n)?;
        self.0 = rest;
        Some(head)
    }

    fn u32(&mut self) -> Option<u32> {
        Some(u32::from_le_bytes(self.take(4)?.try_into().ok()?))
    }

    fn u64(&mut self) -> Option<u64> {
        Some(u64::from_le_bytes(self.take(8)?.try_into().ok()?))
    }

    fn u32s(&mut self, n: usize) -> Option<Vec<u32>> {
        let bytes = self.take(n.checked_mul(4)?)?;
        Some(bytes.chunks_exact(4).map(|b| u32::from_le_bytes([b[0], b[1], b[2], b[3]])).collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn data() -> Prepared {
        let s = |n: u32, cut: u32, block_diagonal| Sample {
            ids: (7..7 + n).collect(),
            trained: (0..n).map(|i| i % 3 == 1).collect(),
            pieces: vec![cut, n - cut],
            block_diagonal,
        };
        Prepared { samples: vec![s(9, 4, true), s(16, 1, false)], dropped: vec![("ü".into(), 3)], from_cache: false }
    }

    #[test]
    fn what_is_written_reads_back_and_any_damage_is_seen() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a").join("x.tokens");
        assert_eq!(read_file(&path).unwrap(), None);
        write_file(&path, &data()).unwrap();
        assert_eq!(read_file(&path).unwrap(), Some(data()));
        let good = fs::read(&path).unwrap();
        for at in 0..good.len() {
            let mut bad = good.clone();
            bad[at] ^= 0x10;
            assert_eq!(parse(&bad), None, "byte {at}");
            assert_eq!(parse(&good[..at]), None, "cut at {at}");
        }
        assert_eq!(fs::read_dir(path.parent().unwrap()).unwrap().count(), 1, "no temporary file stays");
    }

    #[test]
    fn lengths_that_lie_are_refused_even_under_a_right_checksum() {
        let mut body = body(&data());
        let at = 4 + 4 + 2 + 8 + 8 + 1;
        body[at..at + 4].copy_from_slice(&u32::MAX.to_le_bytes());
        let mut bytes = MAGIC.to_vec();
        bytes.extend(VERSION.to_le_bytes());
        bytes.extend((body.len() as u64).to_le_bytes());
        bytes.extend(blake3::hash(&body).as_bytes());
        bytes.extend(&body);
        assert_eq!(parse(&bytes), None);
    }
}
