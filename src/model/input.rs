//! A batch as ops read it: on the CPU the batch itself; for kernels copies in device memory, of sizes rounded up to buckets
//! so that few different steps exist, and the true counts beside them.

use crate::data::Batch;
use crate::device::{Device, abi};
use crate::error::Result;
use crate::ops::attention;
use crate::tensor::{Index, Live};

/// Tokens, and rows that reach the head, are rounded up to multiples of this on kernels.
pub const BUCKET: usize = 64;

/// A step without random numbers or gradient, its counts to be filled in.
pub(super) const NO_STEP: abi::Step =
    abi::Step { tokens: 0, sequences: 0, loss_rows: 0, micro_step: 0, seed: 0, scale: 0.0, noise: 0.0 };

/// The numbers of a batch, for one pass.
pub struct Input<'a> {
    pub(super) ids: Index<'a>,
    pub(super) positions: Index<'a>,
    pub(super) cu_seqlens: Index<'a>,
    pub(super) loss_rows: Index<'a>,
    pub(super) targets: Index<'a>,
    /// Whether sliding windows apply.
    pub(super) windows: bool,
    /// NEFTune's bound; 0 without.
    pub(super) noise: f64,
}

/// What the launches of a pass depend on: passes of one shape are the same kernels with the same parameters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Shape {
    tokens: usize,
    loss_rows: usize,
    windows: bool,
}

impl<'a> Input<'a> {
    /// Copies the batch to the device, and `step` with the batch's counts filled in.
    ///
    /// # Errors
    /// [`crate::Error::Memory`]; [`crate::Error::Shape`] if a count does not fit into 32 bits.
    pub(super) fn new(batch: &'a Batch, step: abi::Step, noise: f64, device: &Device) -> Result<Self> {
        let tokens = batch.ids.len().next_multiple_of(BUCKET);
        let rows = batch.loss_rows.len().next_multiple_of(BUCKET);
        device.set_step(abi::Step {
            tokens: crate::ops::size("tokens", batch.ids.len())?,
            sequences: crate::ops::size("sequences", batch.cu_seqlens.len().saturating_sub(1))?,
            loss_rows: crate::ops::size("rows", batch.loss_rows.len())?,
            noise: noise as f32,
            ..step
        });
        let (of_tokens, of_rows) = (Live::tokens(device), Live::loss_rows(device));
        Ok(Input {
            ids: Index::new(&batch.ids, tokens, of_tokens, device)?,
            positions: Index::new(&batch.positions, tokens, of_tokens, device)?,
            cu_seqlens: attention::spans(&batch.cu_seqlens, tokens, device)?,
            loss_rows: Index::new(&batch.loss_rows, rows, of_rows, device)?,
            targets: Index::new(&batch.targets, rows, of_rows, device)?,
            windows: !batch.no_window,
            noise,
        })
    }

    /// What a captured pass can be replayed for.
    pub fn shape(&self) -> Shape {
        Shape { tokens: self.ids.rows(), loss_rows: self.loss_rows.rows(), windows: self.windows }
    }
}
