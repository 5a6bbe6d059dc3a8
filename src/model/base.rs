//! Where a model's weights come from: a checkpoint of Hugging Face's, or a GGUF file. Both are asked by Hugging Face's names.

use std::path::Path;

use half::bf16;

use crate::error::{Error, Result};
use crate::format::gguf::{Gguf, gguf_name};
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

/// A tensor of a base.
pub(super) enum Stored<'a> {
    View(TensorView<'a>),
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

    /// The tensor `name`, which must be of `shape`.
    ///
    /// # Errors
    /// [`Error::Weights`] if it is missing or of another shape.
    pub fn expect(&self, name: &str, shape: &[usize]) -> Result<Stored<'_>> {
        match self {
            Base::Checkpoint(checkpoint) => checkpoint.expect(name, shape).map(Stored::View),
            Base::Gguf(base) => base.expect(name, shape).map(Stored::Blocks),
        }
    }
}

impl GgufBase {
    fn expect(&self, name: &str, shape: &[usize]) -> Result<Blocks> {
        let wrong = |why: String| Error::weights(self.file.path(), name, why);
        let known = gguf_name(name).ok_or_else(|| wrong("has no name in GGUF".into()))?;
        let t = self.file.find(&known).ok_or_else(|| wrong(format!("is missing (as `{known}`)")))?;
        if t.shape() != shape {
            return Err(wrong(format!("(`{known}`) has shape {:?}, must be {shape:?}", t.shape())));
        }
        let blocks = Blocks::of_file(&self.file, t);
        let heads = self.turned.and_then(|(q, k)| match name.rsplit('.').nth(1) {
            Some("q_proj") => Some(q),
            Some("k_proj") => Some(k),
            _ => None,
        });
        match heads {
            // A bias is one row of as many values.
            Some(heads) if shape.len() == 1 => turned_bias(&blocks, heads).map_err(|e| wrong(e.to_string())),
            Some(heads) => Ok(blocks.reordered(|row| row_in_file(row, shape[0], heads))),
            None => Ok(blocks),
        }
    }
}

/// Where llama.cpp's files have row `row` of `rows` of q or k: row t * d/2 + j of a head (t 0 or 1, j below d/2) stands at
/// 2 j + t.
fn row_in_file(row: usize, rows: usize, heads: usize) -> usize {
    let d = rows / heads.max(1);
    let (head, at) = (row / d, row % d);
    let (t, j) = (at / (d / 2), at % (d / 2));
    head * d + 2 * j + t
}

fn turned_bias(bias: &Blocks, heads: usize) -> Result<Blocks> {
    let mut values = vec![0.0f32; bias.cols];
    bias.dequantise_row(0, &mut values);
    let bytes = (0..values.len()).flat_map(|i| values[row_in_file(i, values.len(), heads)].to_le_bytes()).collect();
    Blocks::new(GgmlType::F32, 1, values.len(), bytes)
}

impl Stored<'_> {
    /// As f32.
    ///
    /// # Errors
    /// [`Error::Weights`] for a dtype that is no float, or if `out` is of another length.
    pub fn read_f32(&self, out: &mut [f32]) -> Result<()> {
        match self {
            Stored::View(view) => view.read_f32(out),
            Stored::Blocks(blocks) => {
                for (i, row) in out.chunks_exact_mut(blocks.cols).enumerate() {
                    blocks.dequantise_row(i, row);
                }
                Ok(())
            }
        }
    }

    /// As bf16, rounded to nearest even.
    ///
    /// # Errors
    /// As [`Stored::read_f32`].
    pub fn read_bf16(&self, out: &mut [bf16]) -> Result<()> {
        match self {
            Stored::View(view) => view.read_bf16(out),
            Stored::Blocks(blocks) => {
                let mut values = vec![0.0f32; blocks.cols];
                for (i, row) in out.chunks_exact_mut(blocks.cols).enumerate() {
                    blocks.dequantise_row(i, &mut values);
                    row.iter_mut().zip(&values).for_each(|(to, x)| *to = <bf16 as Float>::narrow(*x));
                }
                Ok(())
            }
        }
    }

    /// The blocks that a product reads as they are: those of a quantised matrix.
    pub fn into_blocks(self) -> std::result::Result<Blocks, Self> {
        match self {
            Stored::Blocks(blocks) if !matches!(blocks.ty, GgmlType::F32 | GgmlType::Bf16) => Ok(blocks),
            other => Err(other),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The converter's own words: W.reshape(heads, 2, d / 2, ..).swapaxes(1, 2).
    #[test]
    fn rows_are_those_before_the_converter() {
        let (rows, heads) = (24, 3);
        let d = rows / heads;
        let mut file = Vec::new();
        for head in 0..heads {
            for j in 0..d / 2 {
                file.extend((0..2).map(|t| head * d + t * d / 2 + j));
            }
        }
        let ours: Vec<usize> = (0..rows).map(|row| file[row_in_file(row, rows, heads)]).collect();
        assert_eq!(ours, (0..rows).collect::<Vec<_>>());
    }
}
