//! Safetensors: weights by name, from one file or from shards with an index, memory-mapped; and their writing.
//!
//! A file is 8 bytes of header length (little-endian), a JSON header naming each tensor's dtype, shape and byte range,
//! then the data. The format (<https://github.com/huggingface/safetensors#format>) asks that the ranges cover the data
//! without hole or overlap; all of it is checked when a file is opened, so that a tensor's bytes can be relied on after.

use std::collections::BTreeMap;
use std::fmt;
use std::fs;
use std::ops::Range;
use std::path::{Path, PathBuf};

use half::bf16;
use serde_json::{Map, Value, json};

use super::atomic::{Sink, write_atomic, write_stream};
use super::convert;
use super::mmap::MappedFile;
use crate::error::{Error, Result};

/// Longest header taken, as in the reference implementation.
const MAX_HEADER: u64 = 100_000_000;
const INDEX: &str = "model.safetensors.index.json";
const SINGLE: &str = "model.safetensors";

/// What a tensor's elements are. Only the floats can be read as numbers; the rest can only be named and skipped.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Dtype {
    F64,
    F32,
    F16,
    BF16,
    F8E4M3,
    F8E5M2,
    I64,
    I32,
    I16,
    I8,
    U64,
    U32,
    U16,
    U8,
    Bool,
}

impl Dtype {
    const ALL: [(&'static str, Dtype, usize); 15] = [
        ("F64", Dtype::F64, 8),
        ("F32", Dtype::F32, 4),
        ("F16", Dtype::F16, 2),
        ("BF16", Dtype::BF16, 2),
        ("F8_E4M3", Dtype::F8E4M3, 1),
        ("F8_E5M2", Dtype::F8E5M2, 1),
        ("I64", Dtype::I64, 8),
        ("I32", Dtype::I32, 4),
        ("I16", Dtype::I16, 2),
        ("I8", Dtype::I8, 1),
        ("U64", Dtype::U64, 8),
        ("U32", Dtype::U32, 4),
        ("U16", Dtype::U16, 2),
        ("U8", Dtype::U8, 1),
        ("BOOL", Dtype::Bool, 1),
    ];

    fn from_name(name: &str) -> Option<Dtype> {
        Self::ALL.iter().find(|(n, ..)| *n == name).map(|(_, d, _)| *d)
    }

    /// Its name in the file.
    pub fn name(self) -> &'static str {
        Self::ALL.iter().find(|(_, d, _)| *d == self).map_or("?", |(n, ..)| n)
    }

    /// Bytes of an element.
    pub fn size(self) -> usize {
        Self::ALL.iter().find(|(_, d, _)| *d == self).map_or(1, |(.., s)| *s)
    }
}

impl fmt::Display for Dtype {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Where a tensor lies: file, and byte range in that file's mapping.
#[derive(Debug, Clone)]
struct Entry {
    file: usize,
    dtype: Dtype,
    shape: Vec<usize>,
    bytes: Range<usize>,
}

/// The tensors of a model or adapter, by name. Nothing is read until a tensor's bytes are touched.
#[derive(Debug)]
pub struct Checkpoint {
    files: Vec<(PathBuf, MappedFile)>,
    tensors: BTreeMap<String, Entry>,
    /// What is named in messages about tensors that are nowhere.
    root: PathBuf,
}

impl Checkpoint {
    /// Opens a model: a folder with `model.safetensors`, or with `model.safetensors.index.json` and its shards, or a
    /// path to one safetensors file.
    ///
    /// # Errors
    /// [`Error::File`] if a file is missing, truncated, has bytes after its end or a header that lies;
    /// [`Error::Weights`] if a shard lacks a tensor that the index promises.
    pub fn open(path: impl AsRef<Path>) -> Result<Self> {
        let path = path.as_ref();
        if !path.is_dir() {
            return Self::open_file(path);
        }
        if path.join(SINGLE).is_file() {
            return Self::open_file(&path.join(SINGLE));
        }
        if path.join(INDEX).is_file() {
            return Self::open_sharded(path);
        }
        let pickled = ["pytorch_model.bin", "pytorch_model.bin.index.json"].iter().any(|n| path.join(n).exists());
        Err(Error::file(
            path,
            if pickled {
                format!(
                    "holds only pytorch_model.bin, which is not read (a pickle can run code): convert it to {SINGLE}"
                )
            } else {
                format!("holds neither {SINGLE} nor {INDEX}")
            },
        ))
    }

    /// Opens one safetensors file.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub fn open_file(path: &Path) -> Result<Self> {
        Self::of(path, MappedFile::open(path)?)
    }

    /// The tensors of a safetensors file whose bytes were made in memory; `path` is for messages.
    ///
    /// # Errors
    /// As [`Checkpoint::open`].
    pub(super) fn in_memory(path: &Path, bytes: Vec<u8>) -> Result<Self> {
        Self::of(path, MappedFile::in_memory(bytes))
    }

    fn of(path: &Path, map: MappedFile) -> Result<Self> {
        let mut tensors = BTreeMap::new();
        for (name, dtype, shape, bytes) in parse_header(&map).map_err(|why| Error::file(path, why))? {
            tensors.insert(name, Entry { file: 0, dtype, shape, bytes });
        }
        Ok(Checkpoint { files: vec![(path.to_path_buf(), map)], tensors, root: path.to_path_buf() })
    }

    fn open_sharded(folder: &Path) -> Result<Self> {
        let index_path = folder.join(INDEX);
        let text = fs::read_to_string(&index_path).map_err(|e| Error::io(&index_path, "cannot read", &e))?;
        let index: Value =
            serde_json::from_str(&text).map_err(|e| Error::file(&index_path, format!("is not JSON: {e}")))?;
        let map = index
            .get("weight_map")
            .and_then(Value::as_object)
            .ok_or_else(|| Error::file(&index_path, "has no object `weight_map` (tensor name -> shard)"))?;
        let mut checkpoint = Checkpoint { files: Vec::new(), tensors: BTreeMap::new(), root: folder.to_path_buf() };
        let mut shards: BTreeMap<&str, BTreeMap<String, Entry>> = BTreeMap::new();
        for (name, shard) in map {
            let shard = shard.as_str().unwrap_or("");
            let plain = !shard.is_empty() && !shard.contains(['/', '\\']) && shard != "." && shard != "..";
            if !plain {
                return Err(Error::weights(&index_path, name, "has no plain file name as its shard in `weight_map`"));
            }
            if !shards.contains_key(shard) {
                let path = folder.join(shard);
                if !path.is_file() {
                    return Err(Error::file(&path, format!("is missing; {INDEX} names it as the shard of `{name}`")));
                }
                let opened = MappedFile::open(&path)?;
                let file = checkpoint.files.len();
                let entries = parse_header(&opened).map_err(|why| Error::file(&path, why))?;
                let entries =
                    entries.into_iter().map(|(n, dtype, shape, bytes)| (n, Entry { file, dtype, shape, bytes }));
                shards.insert(shard, entries.collect());
                checkpoint.files.push((path, opened));
            }
            let entry = shards.get_mut(shard).and_then(|s| s.remove(name));
            let entry = entry.ok_or_else(|| {
                Error::weights(folder.join(shard), name, format!("is missing, though {INDEX} places it there"))
            })?;
            checkpoint.tensors.insert(name.clone(), entry);
        }
        Ok(checkpoint)
    }

    /// All names, sorted.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.tensors.keys().map(String::as_str)
    }

    /// Whether there is a tensor of that name.
    pub fn contains(&self, name: &str) -> bool {
        self.tensors.contains_key(name)
    }

    /// The files behind it.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        self.files.iter().map(|(p, _)| p.as_path())
    }

    /// Bytes of all tensors.
    pub fn total_bytes(&self) -> u64 {
        self.tensors.values().map(|e| e.bytes.len() as u64).sum()
    }

    /// The tensor `name`.
    ///
    /// # Errors
    /// [`Error::Weights`] if there is none, with the nearest name there is.
    pub fn get(&self, name: &str) -> Result<TensorView<'_>> {
        let Some((name, entry)) = self.tensors.get_key_value(name) else {
            return Err(Error::weights(&self.root, name, format!("is missing{}", self.nearest(name))));
        };
        let missing = || Error::weights(&self.root, name, "lies outside its file");
        let (file, map) = self.files.get(entry.file).ok_or_else(missing)?;
        let bytes = map.get(entry.bytes.clone()).ok_or_else(missing)?;
        Ok(TensorView { name, dtype: entry.dtype, shape: &entry.shape, bytes, file })
    }

    /// The tensor `name`, which must be of `shape` and of floats that can be read.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<TensorView<'_>> {
        let view = self.get(name)?;
        if view.shape != shape {
            return Err(view.wrong(format!("has shape {:?}, expected {shape:?}", view.shape)));
        }
        view.readable()?;
        Ok(view)
    }

    fn nearest(&self, name: &str) -> String {
        let near = self.names().map(|n| (strsim::jaro_winkler(n, name), n)).max_by(|a, b| a.0.total_cmp(&b.0));
        match near {
            Some((score, near)) if score > 0.8 => format!("; the nearest is `{near}`"),
            Some(_) => String::new(),
            None => "; there are no tensors at all".into(),
        }
    }
}

/// One tensor: `bytes` are its elements, little-endian, row-major, exactly `shape` of them. Possibly unaligned.
#[derive(Debug, Clone, Copy)]
pub struct TensorView<'a> {
    pub name: &'a str,
    pub dtype: Dtype,
    pub shape: &'a [usize],
    pub bytes: &'a [u8],
    pub file: &'a Path,
}

impl<'a> TensorView<'a> {
    /// Number of elements.
    pub fn len(&self) -> usize {
        self.bytes.len() / self.dtype.size()
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    /// (rows, columns): the first dimension, and all others together. A vector is one row, a scalar one element.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.shape {
            [] => (1, 1),
            [n] => (1, *n),
            [rows, ..] if *rows == 0 => (0, 0),
            [rows, ..] => (*rows, self.len() / rows),
        }
    }

    /// An error about this tensor.
    pub fn wrong(&self, why: impl Into<String>) -> Error {
        Error::weights(self.file, self.name, why)
    }

    /// Copies all elements as f32 (exact from f32, f16 and bf16).
    ///
    /// # Errors
    /// [`Error::Weights`] if the dtype is no such float, or `out` is not of [`TensorView::len`].
    pub fn read_f32(&self, out: &mut [f32]) -> Result<()> {
        self.read_f32_range(0..self.len(), out)
    }

    /// Copies all elements as bf16, rounded to nearest even from f32 and f16.
    ///
    /// # Errors
    /// As [`TensorView::read_f32`].
    pub fn read_bf16(&self, out: &mut [bf16]) -> Result<()> {
        self.read_bf16_range(0..self.len(), out)
    }

    /// Rows `rows` (of [`TensorView::rows_cols`]) as f32.
    ///
    /// # Errors
    /// As [`TensorView::read_f32`]; also if there are no such rows.
    pub fn read_rows_f32(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        self.read_f32_range(self.elements_of(rows)?, out)
    }

    /// Rows `rows` (of [`TensorView::rows_cols`]) as bf16.
    ///
    /// # Errors
    /// As [`TensorView::read_rows_f32`].
    pub fn read_rows_bf16(&self, rows: Range<usize>, out: &mut [bf16]) -> Result<()> {
        self.read_bf16_range(self.elements_of(rows)?, out)
    }

    /// Elements `range` of the flattened tensor as f32.
    ///
    /// # Errors
    /// As [`TensorView::read_f32`]; also if the range is not inside.
    pub fn read_f32_range(&self, range: Range<usize>, out: &mut [f32]) -> Result<()> {
        let bytes = self.slice(range, out.len())?;
        match self.dtype {
            Dtype::F32 => convert::f32_bytes_to_f32(bytes, out),
            Dtype::BF16 => convert::bf16_bytes_to_f32(bytes, out),
            Dtype::F16 => convert::f16_bytes_to_f32(bytes, out),
            _ => return self.readable(),
        }
        Ok(())
    }

    /// Elements `range` of the flattened tensor as bf16.
    ///
    /// # Errors
    /// As [`TensorView::read_f32_range`].
    pub fn read_bf16_range(&self, range: Range<usize>, out: &mut [bf16]) -> Result<()> {
        let bytes = self.slice(range, out.len())?;
        if self.dtype == Dtype::BF16 {
            convert::bf16_bytes_to_bf16(bytes, out);
            return Ok(());
        }
        self.readable()?;
        let mut wide = [0f32; 1024];
        for (o, b) in out.chunks_mut(wide.len()).zip(bytes.chunks(wide.len() * self.dtype.size())) {
            let wide = &mut wide[..o.len()];
            match self.dtype {
                Dtype::F16 => convert::f16_bytes_to_f32(b, wide),
                _ => convert::f32_bytes_to_f32(b, wide),
            }
            convert::f32s_to_bf16(wide, o);
        }
        Ok(())
    }

    /// The elements in place: None unless they are f32, aligned, and this machine is little-endian.
    pub fn as_f32(&self) -> Option<&'a [f32]> {
        if self.dtype != Dtype::F32 || cfg!(target_endian = "big") {
            return None;
        }
        bytemuck::try_cast_slice(self.bytes).ok()
    }

    /// The elements in place: None unless they are bf16, aligned, and this machine is little-endian.
    pub fn as_bf16(&self) -> Option<&'a [bf16]> {
        use half::slice::HalfBitsSliceExt;
        if self.dtype != Dtype::BF16 || cfg!(target_endian = "big") {
            return None;
        }
        let bits: &'a [u16] = bytemuck::try_cast_slice(self.bytes).ok()?;
        Some(bits.reinterpret_cast())
    }

    fn readable(&self) -> Result<()> {
        match self.dtype {
            Dtype::F32 | Dtype::F16 | Dtype::BF16 => Ok(()),
            other => Err(self.wrong(format!("is {other}; only F32, F16 and BF16 are read"))),
        }
    }

    fn elements_of(&self, rows: Range<usize>) -> Result<Range<usize>> {
        let (n, cols) = self.rows_cols();
        if rows.start > rows.end || rows.end > n {
            return Err(self.wrong(format!("has {n} rows; {rows:?} were asked for")));
        }
        Ok(rows.start * cols..rows.end * cols)
    }

    fn slice(&self, range: Range<usize>, want: usize) -> Result<&'a [u8]> {
        if range.start > range.end || range.end > self.len() || range.len() != want {
            let n = self.len();
            return Err(self.wrong(format!("has {n} elements; {range:?} cannot be read into {want}")));
        }
        let size = self.dtype.size();
        Ok(&self.bytes[range.start * size..range.end * size])
    }
}

type Parsed = (String, Dtype, Vec<usize>, Range<usize>);

/// Checks a whole file's header against its bytes. Ranges are into `file`. The error says what is wrong with the file.
fn parse_header(file: &[u8]) -> std::result::Result<Vec<Parsed>, String> {
    let Some(length) = file.first_chunk::<8>() else {
        return Err(format!("is no safetensors file: {} bytes, too short for a header", file.len()));
    };
    let length = u64::from_le_bytes(*length);
    if length > MAX_HEADER {
        return Err(format!("is no safetensors file: its header would be {length} bytes, over the limit {MAX_HEADER}"));
    }
    let data_start = 8 + length as usize; // at most 100 MB: fits
    let Some(header) = file.get(8..data_start) else {
        return Err(format!("is truncated: its header is {length} bytes, the file {} in all", file.len()));
    };
    let data_len = file.len() - data_start;
    let header: Map<String, Value> =
        serde_json::from_slice(header).map_err(|e| format!("has a malformed header: {e}"))?;
    let mut tensors = Vec::with_capacity(header.len());
    for (name, info) in header {
        if name == "__metadata__" {
            continue;
        }
        let tensor = parse_tensor(&info).map_err(|why| format!("tensor `{name}` {why}"))?;
        tensors.push((name, tensor.0, tensor.1, tensor.2));
    }
    // In order of position, the ranges must follow each other from 0 to the end. Empty tensors come first at their place.
    tensors.sort_by_key(|t| (t.3.start, t.3.end));
    let mut end = 0;
    for (name, _, _, range) in &tensors {
        if range.start != end {
            let what = if range.start < end { "overlaps the tensor before it" } else { "leaves a hole before it" };
            return Err(format!("tensor `{name}` {what}: it starts at byte {}, expected {end}", range.start));
        }
        end = range.end;
    }
    if end > data_len {
        return Err(format!("is truncated: its header promises {end} bytes of data, {data_len} are there"));
    }
    if end < data_len {
        return Err(format!("has {} bytes after its last tensor", data_len - end));
    }
    for tensor in &mut tensors {
        tensor.3.start += data_start; // within the file, as just checked
        tensor.3.end += data_start;
    }
    Ok(tensors)
}

fn parse_tensor(info: &Value) -> std::result::Result<(Dtype, Vec<usize>, Range<usize>), String> {
    let dtype = info.get("dtype").and_then(Value::as_str).ok_or("has no `dtype`")?;
    let dtype = Dtype::from_name(dtype).ok_or_else(|| format!("has the unknown dtype `{dtype}`"))?;
    let numbers = |key: &str| -> std::result::Result<Vec<usize>, String> {
        let list = info.get(key).and_then(Value::as_array).ok_or_else(|| format!("has no list `{key}`"))?;
        let number = |v: &Value| v.as_u64().and_then(|n| usize::try_from(n).ok());
        list.iter().map(|v| number(v).ok_or_else(|| format!("has `{v}` in `{key}`, which is no size"))).collect()
    };
    let shape = numbers("shape")?;
    let [start, end] = numbers("data_offsets")?[..] else {
        return Err("has `data_offsets` that are not two numbers".into());
    };
    let bytes = shape.iter().try_fold(dtype.size(), |n, d| n.checked_mul(*d));
    let bytes = bytes.ok_or_else(|| format!("has the shape {shape:?}, whose size overflows"))?;
    if end.checked_sub(start) != Some(bytes) {
        return Err(format!("of {dtype} {shape:?} takes {bytes} bytes, but its offsets are {start}..{end}"));
    }
    Ok((dtype, shape, start..end))
}

/// A tensor to be written.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct TensorSpec {
    pub name: String,
    pub dtype: Dtype,
    pub shape: Vec<usize>,
}

impl TensorSpec {
    /// A tensor of `dtype` and `shape`.
    pub fn new(name: impl Into<String>, dtype: Dtype, shape: &[usize]) -> Self {
        TensorSpec { name: name.into(), dtype, shape: shape.to_vec() }
    }

    /// Bytes of its data.
    ///
    /// # Errors
    /// [`Error::Shape`] on overflow.
    pub fn bytes(&self) -> Result<usize> {
        let bytes = self.shape.iter().try_fold(self.dtype.size(), |n, d| n.checked_mul(*d));
        bytes.ok_or_else(|| Error::shape("tensor to write", format!("`{}` {:?} overflows", self.name, self.shape)))
    }
}

/// Where one tensor's elements go, in as many pieces as wanted.
pub struct TensorSink<'a> {
    sink: &'a mut Sink,
    dtype: Dtype,
    written: usize,
}

impl TensorSink<'_> {
    /// Appends f32 values, converted to the dtype of the [`TensorSpec`] (F32 or BF16, rounded to nearest even; F16).
    ///
    /// # Errors
    /// [`Error::File`] when the disk refuses; [`Error::Shape`] if the dtype is none of these.
    pub fn f32(&mut self, values: &[f32]) -> Result<()> {
        let mut buffer = [0u8; 8192];
        for piece in values.chunks(2048) {
            let n = match self.dtype {
                Dtype::F32 => fill(&mut buffer, piece, |x| x.to_le_bytes()),
                Dtype::BF16 => fill(&mut buffer, piece, |x| convert::f32_to_bf16(x).to_le_bytes()),
                Dtype::F16 => fill(&mut buffer, piece, |x| half::f16::from_f32(x).to_le_bytes()),
                other => return Err(Error::shape("tensor to write", format!("f32 values cannot become {other}"))),
            };
            self.bytes(&buffer[..n])?;
        }
        Ok(())
    }

    /// Appends bf16 values, converted to the dtype of the [`TensorSpec`].
    ///
    /// # Errors
    /// As [`TensorSink::f32`].
    pub fn bf16(&mut self, values: &[bf16]) -> Result<()> {
        use half::slice::HalfFloatSliceExt;
        let mut wide = [0f32; 2048];
        for piece in values.chunks(2048) {
            piece.convert_to_f32_slice(&mut wide[..piece.len()]);
            self.f32(&wide[..piece.len()])?;
        }
        Ok(())
    }

    /// Appends bytes as they are.
    ///
    /// # Errors
    /// [`Error::File`].
    pub fn bytes(&mut self, bytes: &[u8]) -> Result<()> {
        self.written += bytes.len();
        self.sink.bytes(bytes)
    }
}

/// Writes each converted value behind the one before; returns the bytes written.
fn fill<const N: usize>(buffer: &mut [u8], values: &[f32], convert: impl Fn(f32) -> [u8; N]) -> usize {
    for (to, x) in buffer.as_chunks_mut::<N>().0.iter_mut().zip(values) {
        *to = convert(*x);
    }
    values.len() * N
}

/// Writes one safetensors file with metadata `{"format": "pt"}`, whole or not at all. `source` is called once for each
/// tensor, in the order of `specs`, and appends its elements; nothing but its pieces is held in memory.
///
/// # Errors
/// [`Error::File`] when the disk refuses, [`Error::Weights`] for a name given twice or elements too few or too many,
/// and what `source` returns. The file that was there before survives each.
pub fn write_file(
    path: &Path,
    specs: &[TensorSpec],
    mut source: impl FnMut(&TensorSpec, &mut TensorSink<'_>) -> Result<()>,
) -> Result<()> {
    let refs: Vec<&TensorSpec> = specs.iter().collect();
    write_specs(path, &refs, &mut source)
}

fn write_specs(
    path: &Path,
    specs: &[&TensorSpec],
    source: &mut impl FnMut(&TensorSpec, &mut TensorSink<'_>) -> Result<()>,
) -> Result<()> {
    let mut header = Map::new();
    header.insert("__metadata__".into(), json!({"format": "pt"}));
    let mut offset = 0usize;
    for spec in specs {
        let end = offset.checked_add(spec.bytes()?);
        let end = end.ok_or_else(|| Error::weights(path, &spec.name, "makes the file too large"))?;
        let info = json!({"dtype": spec.dtype.name(), "shape": spec.shape, "data_offsets": [offset, end]});
        if header.insert(spec.name.clone(), info).is_some() {
            return Err(Error::weights(path, &spec.name, "is to be written twice"));
        }
        offset = end;
    }
    let mut header = Value::Object(header).to_string().into_bytes();
    header.resize(header.len().next_multiple_of(8), b' '); // so that the data are aligned to 8
    write_stream(path, |sink| {
        sink.bytes(&(header.len() as u64).to_le_bytes())?;
        sink.bytes(&header)?;
        for spec in specs {
            let mut tensor = TensorSink { sink, dtype: spec.dtype, written: 0 };
            source(spec, &mut tensor)?;
            let (written, want) = (tensor.written, spec.bytes()?);
            if written != want {
                return Err(Error::weights(path, &spec.name, format!("takes {want} bytes, {written} were given")));
            }
        }
        Ok(())
    })
}

/// Writes a model: `model.safetensors` if all fits into `max_shard_bytes`, otherwise `model-00001-of-0000N.safetensors`
/// and, last, `model.safetensors.index.json`. A tensor larger than the limit gets a shard of its own. Weight files of an
/// earlier model in the folder are removed once the new ones are whole. `source` as in [`write_file`].
///
/// # Errors
/// As [`write_file`].
pub fn write_model(
    folder: &Path,
    specs: &[TensorSpec],
    max_shard_bytes: u64,
    mut source: impl FnMut(&TensorSpec, &mut TensorSink<'_>) -> Result<()>,
) -> Result<()> {
    fs::create_dir_all(folder).map_err(|e| Error::io(folder, "cannot create", &e))?;
    let mut shards: Vec<Vec<&TensorSpec>> = vec![Vec::new()];
    let (mut used, mut total) = (0u64, 0u64);
    for spec in specs {
        let bytes = spec.bytes()? as u64;
        if used > 0 && used.saturating_add(bytes) > max_shard_bytes {
            shards.push(Vec::new());
            used = 0;
        }
        used = used.saturating_add(bytes);
        total = total.saturating_add(bytes);
        if let Some(last) = shards.last_mut() {
            last.push(spec);
        }
    }
    let name = |i: usize| match shards.len() {
        1 => SINGLE.to_string(),
        n => format!("model-{:05}-of-{n:05}.safetensors", i + 1),
    };
    let mut weight_map = Map::new();
    for (i, shard) in shards.iter().enumerate() {
        write_specs(&folder.join(name(i)), shard, &mut source)?;
        weight_map.extend(shard.iter().map(|s| (s.name.clone(), Value::String(name(i)))));
    }
    let mut keep: Vec<String> = (0..shards.len()).map(name).collect();
    if shards.len() > 1 {
        let index = json!({"metadata": {"total_size": total}, "weight_map": weight_map});
        write_atomic(&folder.join(INDEX), format!("{index:#}\n").as_bytes())?;
        keep.push(INDEX.into());
    }
    remove_stale(folder, &keep)
}

/// Removes weight files of an earlier save, by their exact naming.
fn remove_stale(folder: &Path, keep: &[String]) -> Result<()> {
    for entry in fs::read_dir(folder).map_err(|e| Error::io(folder, "cannot list", &e))?.flatten() {
        let Ok(name) = entry.file_name().into_string() else { continue };
        let shard = name.strip_prefix("model-").and_then(|n| n.strip_suffix(".safetensors"));
        let shard = shard
            .and_then(|n| n.split_once("-of-"))
            .is_some_and(|(a, b)| [a, b].iter().all(|n| n.len() == 5 && n.bytes().all(|c| c.is_ascii_digit())));
        if (shard || name == SINGLE || name == INDEX) && !keep.contains(&name) {
            fs::remove_file(entry.path()).map_err(|e| Error::io(entry.path(), "cannot remove", &e))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn file_of(header: &str, data: &[u8]) -> Vec<u8> {
        [&(header.len() as u64).to_le_bytes(), header.as_bytes(), data].concat()
    }

    fn why(bytes: &[u8]) -> String {
        parse_header(bytes).unwrap_err()
    }

    const GOOD: &str = r#"{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"b":{"dtype":"BF16","shape":[1,3],"data_offsets":[8,14]}}"#;

    /// One malformation each, and the words that name it.
    #[test]
    fn each_lie_of_a_header_is_named() {
        let good = file_of(GOOD, &[0; 14]);
        assert_eq!(parse_header(&good).unwrap().len(), 2);
        assert!(why(&good[..5]).contains("too short"));
        assert!(why(&good[..40]).contains("truncated"), "{}", why(&good[..40]));
        assert!(why(&file_of(GOOD, &[0; 13])).contains("promises 14 bytes of data, 13"));
        assert!(why(&file_of(GOOD, &[0; 15])).contains("1 bytes after its last tensor"));
        assert!(why(&u64::MAX.to_le_bytes()).contains("over the limit"));
        assert!(why(&file_of("{\"a\":", &[])).contains("malformed header"));
        assert!(why(&file_of("[]", &[])).contains("malformed header"));
        assert!(why(&file_of(&GOOD.replace("F32", "Q9"), &[0; 14])).contains("unknown dtype `Q9`"));
        assert!(why(&file_of(&GOOD.replace("[8,14]", "[4,10]"), &[0; 14])).contains("`b` overlaps"));
        assert!(why(&file_of(&GOOD.replace("[8,14]", "[9,15]"), &[0; 15])).contains("`b` leaves a hole"));
        assert!(why(&file_of(&GOOD.replace("[2]", "[3]"), &[0; 14])).contains("`a` of F32 [3] takes 12 bytes"));
        assert!(why(&file_of(&GOOD.replace("[0,8]", "[8,0]"), &[0; 14])).contains("offsets are 8..0"));
        assert!(why(&file_of(&GOOD.replace("[2]", "[-2]"), &[0; 14])).contains("`-2` in `shape`"));
        let huge = GOOD.replace("[2]", "[4294967296,4294967296,2]");
        assert!(why(&file_of(&huge, &[0; 14])).contains("overflows"));
        // Offsets whose sum with the header would wrap round to the file's length.
        let wrap = r#"{"a":{"dtype":"U8","shape":[18446744073709551615],"data_offsets":[0,18446744073709551615]}}"#;
        assert!(why(&file_of(wrap, &[0; 14])).contains("promises 18446744073709551615"));
        // The same name twice: the first one's bytes are nobody's.
        let twice = GOOD.replace("\"b\"", "\"a\"");
        assert!(why(&file_of(&twice, &[0; 14])).contains("hole"));
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(256))]

        /// Whatever the bytes, the parser answers, and what it accepts lies inside the file.
        #[test]
        fn junk_never_panics(mut header in "[ -~]{0,80}", at in 0usize..200, byte: u8, mutate: bool, tail in 0usize..20) {
            if mutate {
                header = GOOD.into();
            }
            let mut bytes = file_of(&header, &vec![0; tail]);
            let n = bytes.len();
            if let Some(b) = bytes.get_mut(at % n) {
                *b = byte;
            }
            if let Ok(tensors) = parse_header(&bytes) {
                for (_, dtype, shape, range) in tensors {
                    prop_assert!(range.end <= bytes.len());
                    prop_assert_eq!(range.len(), shape.iter().product::<usize>() * dtype.size());
                }
            }
        }
    }

    fn sample_specs() -> Vec<TensorSpec> {
        vec![
            TensorSpec::new("x.weight", Dtype::BF16, &[3, 3]),
            TensorSpec::new("y.weight", Dtype::F32, &[2, 2]),
            TensorSpec::new("z.bias", Dtype::F16, &[5]),
            TensorSpec::new("empty", Dtype::F32, &[0, 4]),
        ]
    }

    fn value(spec: &TensorSpec, i: usize) -> f32 {
        (i as f32 + 1.0) * 0.25 + spec.name.len() as f32
    }

    fn give(spec: &TensorSpec, sink: &mut TensorSink<'_>) -> Result<()> {
        for i in 0..spec.shape.iter().product() {
            sink.f32(&[value(spec, i)])?;
        }
        Ok(())
    }

    #[test]
    fn what_is_written_is_read_whole_and_sharded() {
        let dir = tempfile::tempdir().unwrap();
        let specs = sample_specs();
        for limit in [u64::MAX, 20, 1] {
            write_model(dir.path(), &specs, limit, give).unwrap();
            let model = Checkpoint::open(dir.path()).unwrap();
            assert_eq!(model.names().count(), 4);
            for spec in &specs {
                let view = model.expect(&spec.name, &spec.shape).unwrap();
                assert_eq!(view.dtype, spec.dtype);
                let mut out = vec![f32::NAN; view.len()];
                view.read_f32(&mut out).unwrap();
                for (i, x) in out.iter().enumerate() {
                    assert_eq!(*x, value(spec, i), "{} {i}", spec.name);
                }
                let mut out = vec![bf16::NAN; view.len()];
                view.read_bf16(&mut out).unwrap();
                assert!(out.iter().enumerate().all(|(i, x)| x.to_f32() == value(spec, i)));
            }
            let files = fs::read_dir(dir.path()).unwrap().count();
            assert_eq!(
                files,
                match limit {
                    u64::MAX => 1,
                    20 => 4,
                    _ => 5,
                },
                "limit {limit}"
            );
        }
    }

    #[test]
    fn rows_views_and_wrong_use() {
        let dir = tempfile::tempdir().unwrap();
        write_model(dir.path(), &sample_specs(), u64::MAX, give).unwrap();
        let model = Checkpoint::open(dir.path()).unwrap();
        let x = model.get("x.weight").unwrap();
        let mut row = [0f32; 3];
        x.read_rows_f32(1..2, &mut row).unwrap();
        let spec = &sample_specs()[0];
        assert_eq!(row, [value(spec, 3), value(spec, 4), value(spec, 5)]);
        assert!(x.read_rows_f32(2..4, &mut [0f32; 6]).unwrap_err().to_string().contains("has 3 rows"));
        assert!(x.read_f32(&mut row).unwrap_err().to_string().contains("cannot be read into 3"));
        assert_eq!(x.as_bf16().unwrap()[4].to_f32(), value(spec, 4));
        assert!(x.as_f32().is_none());
        // 18 bytes of bf16 before it: y is 4-byte data at an odd multiple of 2.
        let y = model.get("y.weight").unwrap();
        assert!(y.as_f32().is_none());
        let shifted = TensorView { bytes: &x.bytes[1..17], shape: &[8], ..x };
        assert!(shifted.as_bf16().is_none());
        let e = model.get("x.weigth").unwrap_err().to_string();
        assert!(e.contains("`x.weigth` is missing; the nearest is `x.weight`"), "{e}");
        let e = model.expect("x.weight", &[3, 4]).unwrap_err().to_string();
        assert!(e.contains("has shape [3, 3], expected [3, 4]"), "{e}");
        let short = |_: &TensorSpec, s: &mut TensorSink<'_>| s.f32(&[1.0]);
        let e = write_model(dir.path(), &sample_specs(), u64::MAX, short).unwrap_err().to_string();
        assert!(e.contains("`x.weight` takes 18 bytes, 2 were given"), "{e}");
        assert_eq!(Checkpoint::open(dir.path()).unwrap().names().count(), 4, "the old file survives");
    }

    #[test]
    fn folders_that_are_not_whole_are_refused_by_name() {
        let dir = tempfile::tempdir().unwrap();
        let open = || Checkpoint::open(dir.path()).unwrap_err().to_string();
        assert!(open().contains("holds neither model.safetensors nor"));
        fs::write(dir.path().join("pytorch_model.bin"), b"x").unwrap();
        assert!(open().contains("convert it to model.safetensors"));
        write_model(dir.path(), &sample_specs(), 20, give).unwrap();
        let shard = dir.path().join("model-00002-of-00003.safetensors");
        let bytes = fs::read(&shard).unwrap();
        fs::write(&shard, &bytes[..bytes.len() - 3]).unwrap();
        assert!(open().contains("00002-of-00003.safetensors: is truncated"), "{}", open());
        fs::remove_file(&shard).unwrap();
        assert!(open().contains("00002-of-00003.safetensors: is missing"), "{}", open());
        fs::copy(dir.path().join("model-00001-of-00003.safetensors"), &shard).unwrap();
        assert!(open().contains("`y.weight` is missing, though"), "{}", open());
        fs::write(dir.path().join(INDEX), r#"{"weight_map":{"a":"../../etc/passwd"}}"#).unwrap();
        assert!(open().contains("no plain file name"), "{}", open());
        fs::write(dir.path().join(INDEX), "{}").unwrap();
        assert!(open().contains("has no object `weight_map`"));
        assert!(Checkpoint::open(dir.path().join("no.safetensors")).unwrap_err().to_string().contains("cannot open"));
    }
}
