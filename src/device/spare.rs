//! Device memory that was given up, for the next piece of its size. A step of generation makes the same tensors again and
//! again, and the driver waits for all work whenever memory is given back to it. What follows in the queue's order may have it
//! at once: the work that used it comes before.

use std::collections::HashMap;

/// Bytes that are kept at most; a larger piece is not kept at all.
const MOST: usize = 64 << 20;

#[derive(Default)]
pub(super) struct Spare {
    by_size: HashMap<usize, Vec<u64>>,
    bytes: usize,
}

impl Spare {
    /// The address of a piece of exactly so many bytes.
    pub(super) fn take(&mut self, bytes: usize) -> Option<u64> {
        let addr = self.by_size.get_mut(&bytes).and_then(Vec::pop)?;
        self.bytes -= bytes;
        Some(addr)
    }

    /// Takes a piece; returns what has to go instead: all that was there, or the piece itself.
    pub(super) fn give(&mut self, addr: u64, bytes: usize) -> Vec<u64> {
        if bytes > MOST {
            return vec![addr];
        }
        let gone = if self.bytes + bytes > MOST { self.clear() } else { Vec::new() };
        self.by_size.entry(bytes).or_default().push(addr);
        self.bytes += bytes;
        gone
    }

    /// All of it, for the driver.
    pub(super) fn clear(&mut self) -> Vec<u64> {
        self.bytes = 0;
        self.by_size.drain().flat_map(|(_, pieces)| pieces).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NONE: Vec<u64> = Vec::new();

    #[test]
    fn only_the_same_size_comes_back_and_no_more_is_kept_than_may() {
        let mut spare = Spare::default();
        assert_eq!(spare.give(1, 100), NONE);
        assert_eq!(spare.give(2, 100), NONE);
        assert_eq!((spare.take(99), spare.take(100), spare.take(100), spare.take(100)), (None, Some(2), Some(1), None));
        assert_eq!(spare.give(3, MOST + 1), [3], "too large");
        assert_eq!(spare.give(1, 100), NONE);
        assert_eq!(spare.give(4, MOST - 100), NONE, "as much as may be");
        assert_eq!(spare.give(5, 1).len(), 2, "what was there makes room");
        assert_eq!((spare.take(100), spare.clear()), (None, vec![5]));
        assert_eq!(spare.take(1), None);
    }
}
