//! Passes that continue sequences: keys and values of earlier tokens come from a [`Cache`].
//!
//! A sequence that begins is read in one pass, as training reads it. Later each token is a row that looks at its
//! sequence's pages, and rows of many sequences make one pass. A row's bits depend on nothing else in the pass.

use super::block::Context;
use super::cache::{Cache, Past, Read, Sequence};
use super::decoder::Model;
use super::input::{BUCKET, NO_STEP};
use super::weights::Values;
use crate::device::abi;
use crate::error::{Error, Result};
use crate::ops::linear::{self, Linear, Matrix};
use crate::ops::{attention, embedding, rms_norm, size};
use crate::tensor::{Index, Live, Tensor};

/// Rows of a pass that continues sequences are rounded up to multiples of this on kernels.
const FEW: usize = 8;

impl Model {
    /// Reads `ids` behind what each sequence holds, and gives the logits (sequences, vocabulary) after the last of each, in
    /// the activations' dtype. `adapter` is one of the attached; None: the model as it is.
    ///
    /// # Errors
    /// [`Error::Shape`] for no ids, an id beyond the vocabulary, a sequence without room, a position beyond the rotation
    /// table or an adapter that is not there. The sequences are then as before.
    pub fn read(
        &self,
        cache: &mut Cache,
        adapter: Option<usize>,
        parts: &mut [(&mut Sequence, &[u32])],
    ) -> Result<Tensor> {
        self.check_parts(adapter, parts)?;
        let begins = parts.len() == 1 && parts[0].0.is_empty();
        let logits = self.pass(cache, adapter, parts, begins)?;
        parts.iter_mut().for_each(|(sequence, ids)| sequence.len += ids.len());
        Ok(logits)
    }

    fn pass(
        &self,
        cache: &mut Cache,
        adapter: Option<usize>,
        parts: &[(&mut Sequence, &[u32])],
        begins: bool,
    ) -> Result<Tensor> {
        let (mut ids, mut positions, mut rows, mut last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut pages, mut lengths) = (Vec::new(), Vec::new());
        for (sequence, new) in parts {
            for (i, &id) in (sequence.len..).zip(new.iter()) {
                ids.push(id);
                positions.push(i as u32);
                rows.push(sequence.row(i));
                if !begins {
                    lengths.push(i as u32 + 1);
                    let unused = cache.width - sequence.pages.len();
                    pages.extend(sequence.pages.iter().copied().chain(std::iter::repeat_n(0, unused)));
                }
            }
            last.push(ids.len() as u32 - 1);
        }
        let device = &self.device;
        let tokens = ids.len().next_multiple_of(if begins { BUCKET } else { FEW });
        let ends = last.len().next_multiple_of(FEW);
        device.set_step(abi::Step {
            tokens: size("tokens", ids.len())?,
            sequences: size("sequences", parts.len())?,
            loss_rows: size("rows", last.len())?,
            ..NO_STEP
        });
        let of_tokens = Live::tokens(device);
        let cu_seqlens = if begins { vec![0, ids.len() as u32] } else { vec![0] };
        let cu_seqlens = attention::spans(cu_seqlens, if begins { tokens } else { 0 }, device)?;
        let past = match begins {
            true => None,
            false => Some(Past {
                pages: Index::new(pages, tokens * cache.width, None, device)?,
                lengths: Index::new(lengths, tokens, of_tokens, device)?,
            }),
        };
        let read = Read { rows: Index::new(rows, tokens, of_tokens, device)?, past };
        let ids = Index::new(ids, tokens, of_tokens, device)?;
        let positions = Index::new(positions, tokens, of_tokens, device)?;
        let last = Index::new(last, ends, Live::loss_rows(device), device)?;

        let attached = adapter.map(|i| (i, &self.attached[i]));
        let values = Values { own: &self.params, attached };
        let whole = |entry: Option<usize>| attached.and_then(|(_, a)| entry.map(|e| a.params.slot(e)));
        let table = whole(attached.and_then(|(_, a)| a.embed)).unwrap_or_else(|| self.table());
        let c = Context {
            spec: &self.spec,
            params: values,
            rope: self.rope.as_ref(),
            positions: &positions,
            cu_seqlens: &cu_seqlens,
            windows: true,
            dropout: None,
            few_rows: !begins,
        };
        let mut x = embedding::fwd(table, &ids, None)?;
        if let Some(w) = &self.positions {
            embedding::add(&mut x, self.dense(w), &positions)?;
        }
        for (block, layer) in self.blocks.iter().zip(&mut cache.layers) {
            x = block.cached(x, c, &read, layer)?;
        }
        let x = embedding::gather(&x, &last)?;
        let h = match whole(attached.and_then(|(_, a)| a.norm)) {
            Some(w) => rms_norm::fwd(&x, w, self.spec.eps)?,
            None => self.norm.fwd(&x, values, self.spec.eps)?,
        };
        let head = whole(attached.and_then(|(_, a)| a.head)).unwrap_or_else(|| self.head());
        linear::decode(&h, &Linear { w: Matrix::Dense(head), bias: None, lora: None }, None)
    }

    fn check_parts(&self, adapter: Option<usize>, parts: &[(&mut Sequence, &[u32])]) -> Result<()> {
        if let Some(i) = adapter.filter(|&i| i >= self.attached.len()) {
            return Err(Error::shape("adapter", format!("is number {i} of {} attached", self.attached.len())));
        }
        if parts.is_empty() {
            return Err(Error::shape("sequences", "are none"));
        }
        for (sequence, ids) in parts {
            let end = sequence.len.saturating_add(ids.len());
            if ids.is_empty() || end > sequence.room() || end > self.max_positions() {
                let (len, room, most) = (sequence.len, sequence.room(), self.max_positions());
                let why =
                    format!("holds {len} tokens, {} are to follow, there is room for {}", ids.len(), room.min(most));
                return Err(Error::shape("sequence", why));
            }
            if let Some(id) = ids.iter().find(|&&id| id as usize >= self.spec.vocab) {
                let why = format!("hold {id}, the vocabulary has {}", self.spec.vocab);
                return Err(Error::shape("token ids", why));
            }
        }
        Ok(())
    }
}
