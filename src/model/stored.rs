//! Weights as they lie in a checkpoint: under a name that may lack the family's prefix, as they are or transposed.

use super::spec::Spec;
use crate::error::Result;
use crate::format::Checkpoint;
use crate::format::safetensors::TensorView;

/// A tensor of a checkpoint in the model's order.
pub(super) struct Stored<'a> {
    view: TensorView<'a>,
    /// If it lies there transposed: its shape and bytes turned round.
    turned: Option<(Vec<usize>, Vec<u8>)>,
}

impl Stored<'_> {
    pub(super) fn view(&self) -> TensorView<'_> {
        match &self.turned {
            Some((shape, bytes)) => TensorView { shape, bytes, ..self.view },
            None => self.view,
        }
    }
}

/// The tensor `name`, which must be of `shape` (its own: of a `turned` one (in, out)).
///
/// # Errors
/// [`crate::Error::Weights`].
pub(super) fn read<'a>(
    checkpoint: &'a Checkpoint,
    spec: &Spec,
    name: &str,
    shape: &[usize],
    turned: bool,
) -> Result<Stored<'a>> {
    let view = checkpoint.expect(name_in(Some(checkpoint), spec, name), shape)?;
    let turned = match *view.shape {
        [rows, cols] if turned => Some((vec![cols, rows], transposed(view.bytes, rows, cols, view.dtype.size()))),
        _ => None,
    };
    Ok(Stored { view, turned })
}

/// What the checkpoint calls the tensor `name`: the same, or without the family's prefix.
pub(super) fn name_in<'n>(checkpoint: Option<&Checkpoint>, spec: &Spec, name: &'n str) -> &'n str {
    let Some(bare) = name.strip_prefix(spec.names.prefix) else { return name };
    let only_bare = |c: &Checkpoint| !c.contains(name) && c.contains(bare);
    if checkpoint.is_some_and(only_bare) { bare } else { name }
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
