//! Writing a GGUF file of version 3: the header first, then each tensor's bytes as they come, whole or not at all.

use std::collections::HashSet;
use std::path::Path;

use super::metadata::shown;
use super::read::alignment;
use super::{Array, GgmlType, Metadata, TensorInfo, Value};
use crate::error::{Error, Result};
use crate::format::atomic::{Sink, write_stream};

/// What a file will hold: pairs and descriptions; the bytes are asked for while it is written.
#[derive(Debug, Default)]
pub struct Writer {
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    names: HashSet<String>,
    /// Where the next tensor goes, counted from the first one's start.
    next: u64,
    alignment: u64,
}

/// Takes one tensor's bytes.
pub struct TensorSink<'a> {
    sink: &'a mut Sink,
    written: usize,
}

impl TensorSink<'_> {
    /// Appends `bytes`.
    ///
    /// # Errors
    /// [`Error::File`], for example when the disk is full.
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len();
        self.sink.bytes(bytes)
    }
}

impl Writer {
    /// A file with these pairs and no tensor yet. Tensors are aligned to `general.alignment` if that is among the
    /// pairs, otherwise to 32 bytes.
    ///
    /// # Errors
    /// [`Error::File`] if that alignment is no power of two.
    pub fn new(metadata: Metadata) -> Result<Writer> {
        let alignment = alignment(&metadata).map_err(|why| Error::file(metadata.file(), why))?;
        Ok(Writer { metadata, alignment, ..Writer::default() })
    }

    /// Announces a tensor; `dims[0]` is the contiguous dimension.
    ///
    /// # Errors
    /// [`Error::Weights`] for a name that is there already, or dimensions that no tensor of this type has.
    pub fn tensor(&mut self, name: impl Into<String>, dims: &[usize], ty: GgmlType) -> Result<()> {
        let name = name.into();
        let wrong = |why: String| Error::weights(self.metadata.file(), shown(&name), why);
        let size = ty.tensor_bytes(dims).map_err(wrong)?;
        let start = usize::try_from(self.next).ok();
        let end = start.and_then(|s| s.checked_add(size));
        let next = end.and_then(|e| (e as u64).checked_next_multiple_of(self.alignment));
        let (Some(start), Some(end), Some(next)) = (start, end, next) else {
            return Err(wrong("makes the file too large".into()));
        };
        if !self.names.insert(name.clone()) {
            return Err(wrong("is to be written twice".into()));
        }
        self.tensors.push(TensorInfo { name, dims: dims.to_vec(), ty, bytes: start..end });
        self.next = next;
        Ok(())
    }

    /// Bytes of all tensors with what lies between them; the header comes on top.
    pub fn data_bytes(&self) -> u64 {
        self.next
    }

    /// Writes the file, replacing one that is there. `source` is called once for each tensor, in the order of their
    /// announcement, and appends its bytes; nothing but its pieces is held in memory.
    ///
    /// # Errors
    /// [`Error::File`] when the disk refuses, [`Error::Weights`] for bytes too few or too many, and what `source`
    /// returns. The file that was there before survives each, and nothing is left beside it.
    pub fn write(
        &self,
        path: &Path,
        mut source: impl FnMut(&TensorInfo, &mut TensorSink<'_>) -> Result<()>,
    ) -> Result<()> {
        let header = self.header();
        write_stream(path, |sink| {
            sink.bytes(&header)?;
            for t in &self.tensors {
                let mut tensor = TensorSink { sink, written: 0 };
                source(t, &mut tensor)?;
                let (written, want) = (tensor.written, t.bytes.len());
                if written != want {
                    let why = format!("takes {want} bytes, {written} were given");
                    return Err(Error::weights(path, shown(&t.name), why));
                }
                self.pad(t.bytes.end as u64, sink)?;
            }
            Ok(())
        })
    }

    /// Appends the zeros that bring `at` to a multiple of the alignment.
    fn pad(&self, at: u64, sink: &mut Sink) -> Result<()> {
        let zeros = at.next_multiple_of(self.alignment) - at;
        sink.bytes(&vec![0; zeros as usize])
    }

    fn header(&self) -> Vec<u8> {
        let mut out = b"GGUF".to_vec();
        out.extend(3u32.to_le_bytes());
        out.extend((self.tensors.len() as u64).to_le_bytes());
        out.extend((self.metadata.len() as u64).to_le_bytes());
        for (key, value) in self.metadata.iter() {
            string(key, &mut out);
            put(value, &mut out);
        }
        for t in &self.tensors {
            string(&t.name, &mut out);
            out.extend((t.dims.len() as u32).to_le_bytes());
            out.extend(t.dims.iter().flat_map(|&d| (d as u64).to_le_bytes()));
            out.extend(t.ty.id().to_le_bytes());
            out.extend((t.bytes.start as u64).to_le_bytes());
        }
        let aligned = (out.len() as u64).next_multiple_of(self.alignment);
        out.resize(aligned as usize, 0);
        out
    }
}

fn string(text: &str, out: &mut Vec<u8>) {
    out.extend((text.len() as u64).to_le_bytes());
    out.extend(text.as_bytes());
}

fn put(value: &Value, out: &mut Vec<u8>) {
    let mut scalar = |kind: u32, bytes: &[u8]| {
        out.extend(kind.to_le_bytes());
        out.extend(bytes);
    };
    match value {
        Value::U8(x) => scalar(0, &x.to_le_bytes()),
        Value::I8(x) => scalar(1, &x.to_le_bytes()),
        Value::U16(x) => scalar(2, &x.to_le_bytes()),
        Value::I16(x) => scalar(3, &x.to_le_bytes()),
        Value::U32(x) => scalar(4, &x.to_le_bytes()),
        Value::I32(x) => scalar(5, &x.to_le_bytes()),
        Value::F32(x) => scalar(6, &x.to_le_bytes()),
        Value::Bool(x) => scalar(7, &[u8::from(*x)]),
        Value::String(x) => {
            scalar(8, &[]);
            string(x, out);
        }
        Value::Array(x) => {
            scalar(9, &[]);
            put_array(x, out);
        }
        Value::U64(x) => scalar(10, &x.to_le_bytes()),
        Value::I64(x) => scalar(11, &x.to_le_bytes()),
        Value::F64(x) => scalar(12, &x.to_le_bytes()),
    }
}

fn put_array(array: &Array, out: &mut Vec<u8>) {
    fn list<T: Copy, const N: usize>(kind: u32, values: &[T], bytes: fn(T) -> [u8; N], out: &mut Vec<u8>) {
        out.extend(kind.to_le_bytes());
        out.extend((values.len() as u64).to_le_bytes());
        out.extend(values.iter().flat_map(|&x| bytes(x)));
    }
    match array {
        Array::U8(x) => list(0, x, u8::to_le_bytes, out),
        Array::I8(x) => list(1, x, i8::to_le_bytes, out),
        Array::U16(x) => list(2, x, u16::to_le_bytes, out),
        Array::I16(x) => list(3, x, i16::to_le_bytes, out),
        Array::U32(x) => list(4, x, u32::to_le_bytes, out),
        Array::I32(x) => list(5, x, i32::to_le_bytes, out),
        Array::F32(x) => list(6, x, f32::to_le_bytes, out),
        Array::Bool(x) => list(7, x, |b| [u8::from(b)], out),
        Array::String(x) => {
            out.extend(8u32.to_le_bytes());
            out.extend((x.len() as u64).to_le_bytes());
            x.iter().for_each(|text| string(text, out));
        }
        Array::U64(x) => list(10, x, u64::to_le_bytes, out),
        Array::I64(x) => list(11, x, i64::to_le_bytes, out),
        Array::F64(x) => list(12, x, f64::to_le_bytes, out),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::format::gguf::Gguf;
    use std::fs;

    fn two() -> Writer {
        let mut m = Metadata::new();
        m.set("general.architecture", Value::string("llama"));
        let mut w = Writer::new(m).unwrap();
        w.tensor("a", &[3, 2], GgmlType::F32).unwrap();
        w.tensor("b", &[32], GgmlType::Q8_0).unwrap();
        w
    }

    fn fill(t: &TensorInfo, sink: &mut TensorSink<'_>) -> Result<()> {
        // In pieces, as they come.
        for _ in 0..t.range().len() / 2 {
            sink.bytes(&[t.dims.len() as u8; 2])?;
        }
        Ok(())
    }

    #[test]
    fn what_is_written_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let w = two();
        w.write(&path, fill).unwrap();
        let file = Gguf::open(&path).unwrap();
        assert_eq!(file.metadata().string("general.architecture").unwrap(), Some("llama"));
        assert_eq!(file.bytes(file.find("a").unwrap()), [2; 24]);
        assert_eq!(file.bytes(file.find("b").unwrap()), [1; 34]);
        assert!(file.find("c").is_none());
        assert_eq!((w.data_bytes(), fs::metadata(&path).unwrap().len() % 32), (96, 0));
    }

    #[test]
    fn alignment_of_the_metadata_is_kept() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        let mut m = Metadata::new();
        m.set("general.alignment", Value::U32(256));
        let mut w = Writer::new(m.clone()).unwrap();
        w.tensor("a", &[1], GgmlType::F32).unwrap();
        w.tensor("b", &[1], GgmlType::F32).unwrap();
        w.write(&path, |_, sink| sink.bytes(&[9; 4])).unwrap();
        let file = Gguf::open(&path).unwrap();
        assert!(file.tensors().iter().all(|t| t.range().start % 256 == 0));
        m.set("general.alignment", Value::U32(33));
        assert!(Writer::new(m).unwrap_err().to_string().contains("33, expected a power of two"));
    }

    #[test]
    fn wrong_tensors_are_refused() {
        let mut w = two();
        let mut why = |name: &str, dims: &[usize], ty| w.tensor(name, dims, ty).unwrap_err().to_string();
        assert!(why("a", &[1], GgmlType::F32).contains("`a` is to be written twice"));
        assert!(why("c", &[31], GgmlType::Q8_0).contains("`c` has rows of 31"));
        assert!(why("c", &[], GgmlType::F32).contains("`c` has 0 dimensions"));
        assert!(why("c", &[usize::MAX / 2, 2], GgmlType::F32).contains("overflows"));
        w.tensor("c", &[1 << 61], GgmlType::F16).unwrap();
        w.tensor("d", &[1 << 61], GgmlType::F16).unwrap();
        w.tensor("e", &[1 << 61], GgmlType::F16).unwrap();
        let e = w.tensor("f", &[(1 << 62) - 1], GgmlType::F16).unwrap_err().to_string();
        assert!(e.contains("`f` makes the file too large"), "{e}");
    }

    #[test]
    fn a_failed_write_leaves_the_old_file_and_nothing_else() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("m.gguf");
        fs::write(&path, b"old").unwrap();
        let w = two();
        let short = w.write(&path, |_, sink| sink.bytes(&[0; 8])).unwrap_err().to_string();
        assert!(short.contains("`a` takes 24 bytes, 8 were given"), "{short}");
        let long = w.write(&path, |_, sink| sink.bytes(&[0; 40])).unwrap_err().to_string();
        assert!(long.contains("`a` takes 24 bytes, 40 were given"), "{long}");
        let full = w.write(&path, |_, _| Err(Error::file("m.gguf", "cannot write: no space left")));
        assert!(full.unwrap_err().to_string().contains("no space left"));
        assert_eq!(fs::read(&path).unwrap(), b"old");
        assert_eq!(fs::read_dir(dir.path()).unwrap().count(), 1);
    }
}
