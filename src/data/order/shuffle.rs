//! Shuffling a stream through a buffer: `datasets.IterableDataset.shuffle`.

use super::Generator;
use crate::error::Result;

/// The generator of a stream's shuffle in `epoch` (from 0): `default_rng(seed)` itself at first, then one seeded with
/// its first draw below 2^63 less the epoch, modulo 2^63.
pub fn stream_generator(seed: u64, epoch: u64) -> Generator {
    let mut first = Generator::new(seed);
    if epoch == 0 {
        return first;
    }
    const MODULUS: u64 = 1 << 63;
    Generator::new(first.integer(MODULUS).wrapping_sub(epoch) % MODULUS)
}

/// Yields what `inner` yields, shuffled: once `size` items are held, a random one goes out for each that comes in; at
/// the end what is left goes out in random order. The first error ends it.
pub struct BufferShuffle<I, T> {
    inner: Option<I>,
    size: usize,
    rng: Generator,
    held: Vec<T>,
    /// Slots are drawn a thousand at a time, which the shuffle at the end can tell.
    slots: std::vec::IntoIter<usize>,
}

impl<T, I: Iterator<Item = Result<T>>> BufferShuffle<I, T> {
    /// `size` items are held; 0 counts as 1.
    pub fn new(inner: I, size: usize, rng: Generator) -> Self {
        Self { inner: Some(inner), size: size.max(1), rng, held: Vec::new(), slots: Vec::new().into_iter() }
    }

    fn slot(&mut self) -> usize {
        if let Some(slot) = self.slots.next() {
            return slot;
        }
        let (rng, size) = (&mut self.rng, self.size as u64);
        let slots: Vec<usize> = (0..1000).map(|_| rng.integer(size) as usize).collect();
        self.slots = slots.into_iter();
        self.slots.next().unwrap_or(0)
    }
}

impl<T, I: Iterator<Item = Result<T>>> Iterator for BufferShuffle<I, T> {
    type Item = Result<T>;

    fn next(&mut self) -> Option<Result<T>> {
        while let Some(inner) = &mut self.inner {
            match inner.next() {
                Some(Ok(item)) if self.held.len() < self.size => self.held.push(item),
                Some(Ok(item)) => {
                    let slot = self.slot();
                    return Some(Ok(std::mem::replace(self.held.get_mut(slot)?, item)));
                }
                Some(Err(e)) => {
                    self.inner = None;
                    self.held.clear();
                    return Some(Err(e));
                }
                None => {
                    self.inner = None;
                    self.rng.shuffle(&mut self.held);
                    self.held.reverse(); // so that `pop` takes the first
                }
            }
        }
        self.held.pop().map(Ok)
    }
}
