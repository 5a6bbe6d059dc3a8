//! GGUF: the files of llama.cpp, which hold a model's settings, tokenizer and weights in one.
//!
//! A file is `GGUF`, a version, two counts, key-value pairs, a description of each tensor, and the tensors' bytes, each
//! aligned. The format: <https://github.com/ggml-org/ggml/blob/master/docs/gguf.md>. Everything is checked when a file
//! is opened, so that names, types, sizes and bytes can be relied on after. What blocks of quantised values mean is in
//! `quant::ggml`; what the keys mean is for those who read a model.

mod config;
mod cursor;
pub(super) mod lora;
mod metadata;
mod names;
mod read;
mod rows;
mod types;
mod write;

use std::collections::HashMap;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use super::mmap::MappedFile;
use crate::error::{Error, Result};
pub use metadata::{Array, Metadata, Value};
pub use names::gguf_name;
pub use rows::{file_row, model_row, turned_heads};
pub use types::GgmlType;
pub use write::{TensorSink, Writer};

/// Tensors begin at multiples of this, unless the file says otherwise.
const ALIGNMENT: u64 = 32;
const ALIGNMENT_KEY: &str = "general.alignment";

/// A tensor's description.
#[derive(Debug, Clone, PartialEq)]
pub struct TensorInfo {
    pub name: String,
    /// 1 to 4 dimensions; `dims[0]` is the contiguous one, so a linear layer's are (in, out).
    pub dims: Vec<usize>,
    pub ty: GgmlType,
    /// Its bytes, counted from the start of the file.
    bytes: Range<usize>,
}

impl TensorInfo {
    /// Elements of a row: the contiguous dimension.
    pub fn cols(&self) -> usize {
        self.dims[0]
    }

    /// Rows: the product of the other dimensions.
    pub fn rows(&self) -> usize {
        self.dims[1..].iter().product()
    }

    /// Dimensions in the order of Hugging Face and numpy, the contiguous one last.
    pub fn shape(&self) -> Vec<usize> {
        self.dims.iter().rev().copied().collect()
    }

    /// Its bytes, counted from the start of the file.
    pub fn range(&self) -> Range<usize> {
        self.bytes.clone()
    }
}

/// An opened file. Its weights are mapped into memory, not read, until they are touched.
#[derive(Debug)]
pub struct Gguf {
    path: PathBuf,
    map: Arc<MappedFile>,
    metadata: Metadata,
    tensors: Vec<TensorInfo>,
    index: HashMap<String, usize>,
}

impl Gguf {
    /// Opens a file of version 2 or 3, little-endian.
    ///
    /// # Errors
    /// [`Error::File`] if it cannot be read, is truncated, or says anything about itself that cannot be so.
    pub fn open(path: &Path) -> Result<Gguf> {
        let map = MappedFile::open(path)?;
        let mut metadata = Metadata::of_file(path);
        let tensors = read::parse(&map, &mut metadata).map_err(|why| Error::file(path, why))?;
        let index = tensors.iter().enumerate().map(|(i, t)| (t.name.clone(), i)).collect();
        Ok(Gguf { path: path.to_path_buf(), map: Arc::new(map), metadata, tensors, index })
    }

    /// The file.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Its key-value pairs.
    pub fn metadata(&self) -> &Metadata {
        &self.metadata
    }

    /// Its tensors, in the file's order.
    pub fn tensors(&self) -> &[TensorInfo] {
        &self.tensors
    }

    /// The tensor of that name.
    pub fn find(&self, name: &str) -> Option<&TensorInfo> {
        self.index.get(name).map(|&at| &self.tensors[at])
    }

    /// The bytes of one of this file's tensors: [`GgmlType::tensor_bytes`] of them.
    ///
    /// # Panics
    /// If `t` is of another, longer file.
    pub fn bytes(&self, t: &TensorInfo) -> &[u8] {
        &self.map[t.range()]
    }

    /// The mapping, for weights that outlive this.
    pub fn shared(&self) -> Arc<MappedFile> {
        Arc::clone(&self.map)
    }
}
