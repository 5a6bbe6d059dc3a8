//! Keys and values of the tokens that a model has read, so that each further token costs one row: in pages, of which a
//! sequence takes as many as it needs, and gives them back. (Kwon et al. 2023, arXiv:2309.06180, section 4.)

use super::decoder::Model;
use super::prefix::{Node, Prefixes};
use crate::error::{Error, Result};
use crate::ops::attention::{Attention, Paged};
use crate::tensor::{Index, Tensor};

/// Tokens of a page.
pub const PAGE: usize = 64;

/// Where prompts are cut that are read in pieces. On kernels a token's bits depend on the piece in which it was read, so that
/// only whole pieces of prompts are shared there.
pub const PIECE: usize = 4 * PAGE;

/// Keys and values of one layer, (pages * [`PAGE`], kv heads * head_dim) each.
pub(super) struct Layered {
    pub k: Tensor,
    pub v: Tensor,
}

/// The pages of all layers.
pub struct Cache {
    pub(super) layers: Vec<Layered>,
    /// Pages that hold nothing, the next to be taken last.
    free: Vec<u32>,
    prefixes: Prefixes,
    /// What is shared is whole multiples of so many pages.
    grain: usize,
    /// Most pages of a sequence.
    pub(super) width: usize,
    pages: usize,
}

/// A sequence in a [`Cache`], to which it is given back by [`Cache::release`].
#[derive(Debug)]
pub struct Sequence {
    pub(super) pages: Vec<u32>,
    pub(super) len: usize,
    /// The first pages, which other sequences may have too: nothing is written there.
    shared: Vec<Node>,
}

impl Sequence {
    /// One without any room, of no cache.
    pub(crate) fn none() -> Sequence {
        Sequence { pages: Vec::new(), len: 0, shared: Vec::new() }
    }

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

    /// Forgets all but the first `len` tokens. Those in shared pages stay.
    pub fn truncate(&mut self, len: usize) {
        self.len = self.len.min(len.max(self.shared.len() * PAGE));
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
        let pages = rooms.iter().map(|n| n.div_ceil(PAGE)).sum();
        let longest = rooms.iter().max().copied().unwrap_or(0);
        Self::of_pages(model, pages, longest)
    }

    /// This many pages, for sequences of up to `longest` tokens.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn of_pages(model: &Model, pages: usize, longest: usize) -> Result<Self> {
        let rows = u32::try_from(pages.saturating_mul(PAGE)).ok().map(|rows| rows as usize);
        let rows = rows.ok_or_else(|| Error::Memory(format!("a cache of {pages} pages of {PAGE} tokens")))?;
        let side = || Tensor::unwritten(rows, model.spec.kv_heads * model.spec.head_dim, model.dtype, &model.device);
        let layers = (0..model.spec.layers).map(|_| Ok(Layered { k: side()?, v: side()? }));
        let (layers, free) = (layers.collect::<Result<_>>()?, (0..pages as u32).rev().collect());
        let grain = if model.any_cut() { 1 } else { PIECE / PAGE };
        Ok(Cache { layers, free, prefixes: Prefixes::default(), grain, width: longest.div_ceil(PAGE), pages })
    }

    /// A sequence with room for `tokens` tokens; None while there is none left.
    pub fn take(&mut self, tokens: usize) -> Option<Sequence> {
        self.take_after(tokens, 0, &[])
    }

    /// As [`Cache::take`], for a sequence that begins with `ids`, read by the adapter `of` (see [`Cache::keep`]): the longest
    /// beginning in whole pages that is kept is shared, and need not be read again.
    pub fn take_after(&mut self, tokens: usize, of: u64, ids: &[u32]) -> Option<Sequence> {
        let n = tokens.div_ceil(PAGE);
        if n > self.width {
            return None;
        }
        // The last token is always read: what follows it is asked for.
        let mut shared = self.prefixes.find(of, &ids[..ids.len().saturating_sub(1)]);
        let rest = shared.split_off(shared.len() / self.grain * self.grain);
        self.prefixes.let_go(&rest);
        let own = n.saturating_sub(shared.len());
        while self.free.len() < own {
            match self.prefixes.give_up() {
                Some(page) => self.free.push(page),
                None => {
                    self.prefixes.let_go(&shared);
                    return None;
                }
            }
        }
        let fresh = self.free.split_off(self.free.len() - own);
        let pages = self.prefixes.pages(&shared).chain(fresh.into_iter().rev()).collect();
        Some(Sequence { pages, len: shared.len() * PAGE, shared })
    }

    /// Keeps whole pages of what the sequence holds, which is the beginning of `ids`, for others that begin alike. `of` tells
    /// apart what was read with different adapters.
    pub fn keep(&mut self, sequence: &mut Sequence, of: u64, ids: &[u32]) {
        let known = sequence.len.min(ids.len()) / PAGE;
        for i in sequence.shared.len()..known / self.grain * self.grain {
            let node = self.prefixes.add(of, sequence.shared.last(), &ids[i * PAGE..][..PAGE], sequence.pages[i]);
            let Some((node, page)) = node else { return };
            if page != sequence.pages[i] {
                // Another sequence has read the same: one page is enough.
                self.free.push(std::mem::replace(&mut sequence.pages[i], page));
            }
            sequence.shared.push(node);
        }
    }

    /// Takes a sequence's pages back. Those that are kept stay for others, until their room is needed.
    pub fn release(&mut self, sequence: Sequence) {
        self.free.extend(sequence.pages.into_iter().skip(sequence.shared.len()).rev());
        self.prefixes.let_go(&sequence.shared);
    }

    /// All pages.
    pub fn pages(&self) -> usize {
        self.pages
    }

    /// Pages that no sequence has, but which hold a beginning.
    pub fn kept(&self) -> usize {
        self.prefixes.unused()
    }

    /// Pages that sequences have.
    pub fn used(&self) -> usize {
        self.pages - self.free.len() - self.kept()
    }

    /// Most tokens of a sequence.
    pub fn longest(&self) -> usize {
        self.width.min(self.pages) * PAGE
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

impl Past<'_> {
    pub(super) fn paged<'p>(&'p self, a: Attention<'p>) -> Paged<'p> {
        let Attention { heads, kv_heads, head_dim, window, scores, .. } = a;
        Paged { heads, kv_heads, head_dim, window, scores, page: PAGE, pages: &self.pages, lengths: &self.lengths }
    }
}
