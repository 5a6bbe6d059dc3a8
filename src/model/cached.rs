//! Passes that continue sequences: keys and values of earlier tokens come from a [`Cache`].
//!
//! A row's bits depend on its sequence's tokens alone: not on what else is in the pass, and on the CPU not on the passes in
//! which the sequence was read. On kernels a sequence that begins is read in one pass, as training reads it, and later each token is
//! a row that looks at its sequence's pages, which sums in another order.

use super::block::Context;
use super::cache::{Cache, Past, Read, Sequence};
use super::decoder::Model;
use super::input::{BUCKET, NO_STEP};
use super::weights::{Group, Values};
use crate::device::abi;
use crate::error::{Error, Result};
use crate::ops::linear::{self, Linear, Matrix};
use crate::ops::sample::{self, Ask, Picked, Row};
use crate::ops::{attention, embedding, rms_norm, size};
use crate::tensor::{Index, Live, Tensor};

/// Rows of a pass that continues sequences are rounded up to multiples of this on kernels.
const FEW: usize = 8;

/// What is read of one sequence.
pub struct Part<'a> {
    pub sequence: &'a mut Sequence,
    /// The tokens behind those that it holds, at least one.
    pub ids: &'a [u32],
    /// One of the attached adapters; None: the model as it is.
    pub adapter: Option<usize>,
    /// Whether what follows the last token is asked for.
    pub asks: bool,
}

/// What the model says follows.
pub struct Logits {
    passes: Vec<Tensor>,
    /// Pass and row of each part that asked.
    places: Vec<Option<(usize, usize)>>,
}

impl Logits {
    /// Those (vocabulary) after the last token of part `i`; empty if it did not ask.
    pub fn of(&self, i: usize) -> Vec<f32> {
        self.read(i, |x| x as f32)
    }

    /// As [`Logits::of`], for a model in f64.
    pub fn of_f64(&self, i: usize) -> Vec<f64> {
        self.read(i, |x| x)
    }

    /// What [`sample::pick`] says of the logits after the parts that are named, in their order: by kernels, where those run, for all
    /// of them at once. None: the logits are to be read as a whole; so it is on the CPU, which has them at hand.
    ///
    /// # Errors
    /// As [`sample::pick`]; [`Error::Shape`] for a part that did not ask.
    pub fn pick(&self, asks: &[(usize, Ask)]) -> Result<Vec<Option<Picked>>> {
        if !self.passes.first().is_some_and(|t| t.device().runs_kernels()) {
            return Ok(vec![None; asks.len()]);
        }
        let rows = asks.iter().map(|&(i, ask)| match self.places.get(i).copied().flatten() {
            Some((pass, row)) => Ok(Row { logits: &self.passes[pass], row, ask }),
            None => Err(Error::shape("logits", format!("after part {i} were not asked for"))),
        });
        sample::pick(&rows.collect::<Result<Vec<_>>>()?)
    }

    fn read<R>(&self, i: usize, of: impl Fn(f64) -> R) -> Vec<R> {
        let Some((pass, row)) = self.places.get(i).copied().flatten() else { return Vec::new() };
        let (t, n) = (&self.passes[pass], self.passes[pass].cols());
        t.read_f64(row * n, n).into_iter().map(of).collect()
    }
}

impl Model {
    /// Whether a sequence has the same bits in whatever passes it is read.
    pub fn any_cut(&self) -> bool {
        !self.device.runs_kernels()
    }

    /// As [`Model::read_parts`] of one sequence: the logits (vocabulary) after its last token.
    ///
    /// # Errors
    /// As [`Model::read_parts`].
    pub fn read(
        &self,
        cache: &mut Cache,
        adapter: Option<usize>,
        sequence: &mut Sequence,
        ids: &[u32],
    ) -> Result<Logits> {
        self.read_parts(cache, &mut [Part { sequence, ids, adapter, asks: true }])
    }

    /// Reads each part's tokens behind what its sequence holds. Parts make one pass, but for adapters that hold whole modules, and on
    /// kernels for sequences that begin.
    ///
    /// # Errors
    /// [`Error::Shape`] for no ids, an id beyond the vocabulary, a sequence without room, a position beyond the rotation
    /// table or an adapter that is not there. The sequences are then as before.
    pub fn read_parts(&self, cache: &mut Cache, parts: &mut [Part]) -> Result<Logits> {
        for part in parts.iter() {
            self.check_part(part)?;
        }
        let mut logits = Logits { passes: Vec::new(), places: vec![None; parts.len()] };
        // What can be read together has the same key; and in a pass the rows of an adapter follow each other.
        let key = |i: &usize| {
            let part = &parts[*i];
            let alone = self.device.runs_kernels() && part.sequence.is_empty();
            (alone.then_some(*i), part.adapter.filter(|&a| self.holds_modules(a)), part.adapter)
        };
        let mut order: Vec<usize> = (0..parts.len()).collect();
        order.sort_by_key(key);
        for members in order.chunk_by(|a, b| (key(a).0, key(a).1) == (key(b).0, key(b).1)) {
            let begins = key(&members[0]).0.is_some();
            let asking: Vec<usize> = members.iter().copied().filter(|&i| parts[i].asks).collect();
            for (row, &i) in asking.iter().enumerate() {
                logits.places[i] = Some((logits.passes.len(), row));
            }
            logits.passes.extend(self.pass(cache, parts, members, begins)?);
        }
        parts.iter_mut().for_each(|part| part.sequence.len += part.ids.len());
        Ok(logits)
    }

    /// Logits of those of `members` that ask, in their order; None if none does.
    fn pass(&self, cache: &mut Cache, parts: &[Part], members: &[usize], begins: bool) -> Result<Option<Tensor>> {
        let (mut ids, mut positions, mut rows, mut last) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
        let (mut pages, mut lengths) = (Vec::new(), Vec::new());
        let mut groups: Vec<Group> = Vec::new();
        for Part { sequence, ids: new, adapter, asks } in members.iter().map(|&i| &parts[i]) {
            let start = ids.len();
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
            last.extend(asks.then_some(ids.len() as u32 - 1));
            match groups.last_mut() {
                Some(g) if g.adapter.map(|(i, _)| i) == *adapter => g.rows.end = ids.len(),
                _ => groups.push(Group { rows: start..ids.len(), adapter: self.adapter(*adapter)? }),
            }
        }
        let device = &self.device;
        let tokens = ids.len().next_multiple_of(if begins { BUCKET } else { FEW });
        let ends = last.len().next_multiple_of(FEW);
        device.set_step(abi::Step {
            tokens: size("tokens", ids.len())?,
            sequences: size("sequences", members.len())?,
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

        let values = Values { own: &self.params, groups: &groups };
        // An adapter that holds whole modules has the pass for itself.
        let attached = groups[0].adapter.map(|(_, a)| a);
        let whole = |entry: Option<usize>| attached.and_then(|a| entry.map(|e| a.params.slot(e)));
        let table = whole(attached.and_then(|a| a.embed)).unwrap_or_else(|| self.table());
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
        if last.is_empty() {
            return Ok(None);
        }
        let last = Index::new(last, ends, Live::loss_rows(device), device)?;
        let x = embedding::gather(&x, &last)?;
        let h = match whole(attached.and_then(|a| a.norm)) {
            Some(w) => rms_norm::fwd(&x, w, self.spec.eps)?,
            None => self.norm.fwd(&x, values, self.spec.eps)?,
        };
        let head = whole(attached.and_then(|a| a.head)).unwrap_or_else(|| self.head());
        linear::decode(&h, &Linear { w: Matrix::Dense(head), bias: None, lora: None }, None).map(Some)
    }

    fn check_part(&self, part: &Part) -> Result<()> {
        let Part { sequence, ids, adapter, .. } = part;
        self.adapter(*adapter)?;
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.spec.vocab) {
            return Err(Error::shape("token ids", format!("hold {id}, the vocabulary has {}", self.spec.vocab)));
        }
        let end = sequence.len.saturating_add(ids.len());
        if ids.is_empty() || end > sequence.room() || end > self.max_positions() {
            let (len, room, most) = (sequence.len, sequence.room(), self.max_positions());
            let why = format!("holds {len} tokens, {} are to follow, there is room for {}", ids.len(), room.min(most));
            return Err(Error::shape("sequence", why));
        }
        Ok(())
    }
}
