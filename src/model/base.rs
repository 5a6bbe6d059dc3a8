//! Where a model's weights come from: a checkpoint of Hugging Face's, under names that may lack the family's prefix and with
//! matrices that may lie transposed; or a GGUF file, whose tensors are asked for by the same names.

use std::path::Path;

use half::bf16;

use super::spec::Spec;
use crate::error::{Error, Result};
use crate::format::gguf::{Gguf, file_row, gguf_name, turned_heads};
use crate::format::{Checkpoint, HfConfig, TensorView};
use crate::quant::ggml::{Blocks, GgmlType};
use crate::tensor::Float;

/// The files of a base model.
pub(super) enum Base {
    Checkpoint(Checkpoint),
    Gguf(Box<GgufBase>),
}

/// A GGUF file, and what its writer did to some rows.
pub(super) struct GgufBase {
    file: Gguf,
    /// (heads of q, heads of k) where rows are in the order of llama.cpp's rotation, which turns neighbouring rows; ours, as
    /// Hugging Face's, turns rows that lie half a head apart.
    turned: Option<(usize, usize)>,
}

/// A tensor of a base, in the model's order.
pub(super) enum Stored<'a> {
    View {
        view: TensorView<'a>,
        /// If it lies there transposed: its shape and bytes turned round.
        turned: Option<(Vec<usize>, Vec<u8>)>,
    },
    Blocks(Blocks),
}

impl Base {
    /// Opens the model at `path`, a folder or a GGUF file.
    ///
    /// # Errors
    /// Whatever is wrong with the files.
    pub fn open(path: &Path, config: &HfConfig) -> Result<Self> {
        if !path.is_file() {
            return Checkpoint::open(path).map(Base::Checkpoint);
        }
        let file = Gguf::open(path)?;
        let llama = file.architecture()? == "llama";
        let turned = llama.then_some((config.num_attention_heads, config.num_key_value_heads));
        Ok(Base::Gguf(Box::new(GgufBase { file, turned })))
    }

    /// Whether matrices may be in blocks already.
    pub fn is_gguf(&self) -> bool {
        matches!(self, Base::Gguf(_))
    }

    /// What the file calls the tensor `name`: the same, or without the family's prefix.
    pub fn name_of<'n>(&self, spec: &Spec, name: &'n str) -> &'n str {
        match (self, name.strip_prefix(spec.names.prefix)) {
            (Base::Checkpoint(c), Some(bare)) if !c.contains(name) && c.contains(bare) => bare,
            _ => name,
        }
    }

    /// The tensor `name` of `shape`, which may lie `turned` in the files: a matrix (in, out). `bytes`: whether its values
    /// will be read.
    ///
    /// # Errors
    /// [`Error::Weights`] if it is missing or of another shape.
    pub fn read(&self, spec: &Spec, name: &str, shape: &[usize], turned: bool, bytes: bool) -> Result<Stored<'_>> {
        let checkpoint = match self {
            Base::Checkpoint(checkpoint) => checkpoint,
            // Converters turn matrices round.
            Base::Gguf(base) => return base.read(name, shape, bytes).map(Stored::Blocks),
        };
        let lies: Vec<usize> = if turned { shape.iter().rev().copied().collect() } else { shape.to_vec() };
        let view = checkpoint.expect(self.name_of(spec, name), &lies)?;
        let turned = match *lies {
            [rows, cols] if turned && bytes => {
                Some((shape.to_vec(), transposed(view.bytes, rows, cols, view.dtype.size())))
            }
            _ => None,
        };
        Ok(Stored::View { view, turned })
    }
}

impl GgufBase {
    fn read(&self, name: &str, shape: &[usize], bytes: bool) -> Result<Blocks> {
        let wrong = |why: String| Error::weights(self.file.path(), name, why);
        let known = gguf_name(name).ok_or_else(|| wrong("has no name in GGUF".into()))?;
        let t = self.file.find(&known).ok_or_else(|| wrong(format!("is missing (as `{known}`)")))?;
        if t.shape() != shape {
            return Err(wrong(format!("(`{known}`) has shape {:?}, must be {shape:?}", t.shape())));
        }
        let blocks = Blocks::of_file(&self.file, t);
        let heads = self.turned.and_then(|(q, k)| turned_heads(name, q, k));
        match heads.filter(|_| bytes) {
            // A bias is one row of as many values.
            Some(heads) if shape.len() == 1 => turned_bias(&blocks, heads).map_err(|e| wrong(e.to_string())),
            Some(heads) => Ok(blocks.reordered(|row| file_row(row, shape[0], heads))),
            None => Ok(blocks),
        }
    }
}

fn turned_bias(bias: &Blocks, heads: usize) -> Result<Blocks> {
    let mut values = vec![0.0f32; bias.cols];
    bias.dequantise_row(0, &mut values);
    let bytes = (0..values.len()).flat_map(|i| values[file_row(i, values.len(), heads)].to_le_bytes()).collect();
    Blocks::new(GgmlType::F32, 1, values.len(), bytes)
}

impl Stored<'_> {
    /// As a checkpoint's tensor, unless it is in blocks.
    pub fn view(&self) -> Option<TensorView<'_>> {
        match self {
            Stored::View { view, turned: Some((shape, bytes)) } => Some(TensorView { shape, bytes, ..*view }),
            Stored::View { view, .. } => Some(*view),
            Stored::Blocks(_) => None,
        }
    }

    /// As f32.
    ///
    /// # Errors
    /// [`Error::Weights`] for a dtype that is no float, or if `out` is of another length.
    pub fn read_f32(&self, out: &mut [f32]) -> Result<()> {
        if let Some(view) = self.view() {
            return view.read_f32(out);
        }
        self.rows(out.chunks_exact_mut(self.cols()), |row, values| row.copy_from_slice(values));
        Ok(())
    }

    /// As bf16, rounded to nearest even.
    ///
    /// # Errors
    /// As [`Stored::read_f32`].
    pub fn read_bf16(&self, out: &mut [bf16]) -> Result<()> {
        if let Some(view) = self.view() {
            return view.read_bf16(out);
        }
        self.rows(out.chunks_exact_mut(self.cols()), |row, values| {
            row.iter_mut().zip(values).for_each(|(to, x)| *to = <bf16 as Float>::narrow(*x));
        });
        Ok(())
    }

    fn cols(&self) -> usize {
        if let Stored::Blocks(blocks) = self { blocks.cols } else { 1 }
    }

    /// `take` of each of `out` and the row's values.
    fn rows<'o, T: 'o>(&self, out: impl Iterator<Item = &'o mut [T]>, take: impl Fn(&mut [T], &[f32])) {
        let Stored::Blocks(blocks) = self else { return };
        let mut values = vec![0.0f32; blocks.cols];
        for (i, row) in out.enumerate().take(blocks.rows) {
            blocks.dequantise_row(i, &mut values);
            take(row, &values);
        }
    }

    /// The blocks that a product reads as they are: those of a quantised matrix.
    pub fn quantised(&self) -> Option<&Blocks> {
        match self {
            Stored::Blocks(blocks) if !matches!(blocks.ty, GgmlType::F32 | GgmlType::Bf16) => Some(blocks),
            _ => None,
        }
    }
}

/// A (rows, cols) matrix of elements of `size` bytes -> (cols, rows).
fn transposed(bytes: &[u8], rows: usize, cols: usize, size: usize) -> Vec<u8> {
    let mut out = Vec::with_capacity(bytes.len());
    for c in 0..cols {
        for r in 0..rows {
            let at = (r * cols + c) * size;
            out.extend_from_slice(&bytes[at..at + size]);
        }
    }
    out
}
