//! Keys and values of the tokens that a model has read, so that each further token costs one row: in pages, of which a
//! sequence takes as many as it needs, and gives them back. (Kwon et al. 2023, arXiv:2309.06180, section 4.)

use super::decoder::Model;
use crate::error::{Error, Result};
use crate::ops::attention::{Attention, Paged};
use crate::tensor::{Index, Tensor};

/// Tokens of a page.
pub const PAGE: usize = 64;

/// Keys and values of one layer, (pages * [`PAGE`], kv heads * head_dim) each.
pub(super) struct Layered {
    pub k: Tensor,
    pub v: Tensor,
}

/// The pages of all layers.
pub struct Cache {
    pub(super) layers: Vec<Layered>,
    /// Pages that no sequence has, the next to be taken last.
    free: Vec<u32>,
    /// Most pages of a sequence.
    pub(super) width: usize,
}

/// A sequence in a [`Cache`], to which it is given back by [`Cache::release`].
#[derive(Debug)]
pub struct Sequence {
    pub(super) pages: Vec<u32>,
    pub(super) len: usize,
}

impl Sequence {
    /// Tokens whose keys and values are kept.
    pub fn len(&self) -> usize {
        self.len
    }

    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Tokens that it has room for, those that it holds included.
    pub fn room(&self) -> usize {
        self.pages.len() * PAGE
    }

    /// Forgets all but the first `len` tokens.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len);
    }

    /// The row of every layer that token `i` lies in.
    pub(super) fn row(&self, i: usize) -> u32 {
        self.pages[i / PAGE] * PAGE as u32 + (i % PAGE) as u32
    }
}

impl Cache {
    /// Room for sequences of `rooms` tokens each at the same time.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(model: &Model, rooms: &[usize]) -> Result<Self> {
        let pages: usize = rooms.iter().map(|n| n.div_ceil(PAGE)).sum();
        let width = rooms.iter().map(|n| n.div_ceil(PAGE)).max().unwrap_or(0);
        let rows = u32::try_from(pages.saturating_mul(PAGE)).ok().map(|rows| rows as usize);
        let rows = rows.ok_or_else(|| Error::Memory(format!("a cache of {pages} pages of {PAGE} tokens")))?;
        let side = || Tensor::unwritten(rows, model.spec.kv_heads * model.spec.head_dim, model.dtype, &model.device);
        let layers = (0..model.spec.layers).map(|_| Ok(Layered { k: side()?, v: side()? }));
        Ok(Cache { layers: layers.collect::<Result<_>>()?, free: (0..pages as u32).rev().collect(), width })
    }

    /// A sequence with room for `tokens` tokens; None while there is none left.
    pub fn take(&mut self, tokens: usize) -> Option<Sequence> {
        let n = tokens.div_ceil(PAGE);
        let from = self.free.len().checked_sub(n).filter(|_| n <= self.width)?;
        let mut pages = self.free.split_off(from);
        pages.reverse();
        Some(Sequence { pages, len: 0 })
    }

    /// Takes a sequence's pages back.
    pub fn release(&mut self, sequence: Sequence) {
        self.free.extend(sequence.pages.into_iter().rev());
    }
}

/// How a pass reads and writes the cache.
pub(super) struct Read<'a> {
    /// For each token the row that takes its key and value.
    pub rows: Index<'a>,
    /// What each token looks at; None: only at the other tokens of the pass, which begin their sequence.
    pub past: Option<Past<'a>>,
}

/// For each token of a pass the keys that it sees, its own included.
pub(super) struct Past<'a> {
    pub pages: Index<'a>,
    pub lengths: Index<'a>,
}

impl<'a> Past<'a> {
    pub(super) fn paged(&'a self, a: Attention) -> Paged<'a> {
        let Attention { heads, kv_heads, head_dim, window, .. } = a;
        Paged { heads, kv_heads, head_dim, window, page: PAGE, pages: &self.pages, lengths: &self.lengths }
    }
}
