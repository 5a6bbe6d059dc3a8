//! The one place that maps a file into memory.

use std::fs::File;
use std::ops::Deref;
use std::path::Path;

use crate::error::{Error, Result};

/// A file's bytes, read on demand by the operating system; or bytes made in memory.
#[derive(Debug)]
pub struct MappedFile(Held);

#[derive(Debug)]
enum Held {
    Map(memmap2::Mmap),
    Memory(Vec<u8>),
}

impl MappedFile {
    /// Maps the whole of `path`, read-only.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be opened or mapped.
    pub(crate) fn open(path: &Path) -> Result<Self> {
        let file = File::open(path).map_err(|e| Error::io(path, "cannot open", &e))?;
        let len = file.metadata().map_err(|e| Error::io(path, "cannot read its size", &e))?.len();
        if len == 0 {
            return Ok(MappedFile::in_memory(Vec::new())); // an empty mapping is an error on most systems
        }
        // SAFETY: the mapping is private to this process and read-only, and it is only ever seen as `&[u8]`, for which
        // every bit pattern is valid. If another process shortens the file meanwhile, a read faults (SIGBUS) instead of
        // returning other memory; files of this program are replaced by rename, never shortened in place.
        let map = unsafe { memmap2::Mmap::map(&file) }.map_err(|e| Error::io(path, "cannot map into memory", &e))?;
        Ok(MappedFile(Held::Map(map)))
    }

    /// Bytes that stand for a file's.
    pub(crate) fn in_memory(bytes: Vec<u8>) -> Self {
        MappedFile(Held::Memory(bytes))
    }
}

impl Deref for MappedFile {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        match &self.0 {
            Held::Map(map) => map,
            Held::Memory(bytes) => bytes,
        }
    }
}
