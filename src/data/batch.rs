//! Samples to micro-batches.

use super::{Batch, Sample};
use crate::config::{Config, Stage};

/// How long LLaMA-Factory's collator would make a row. Nothing is padded here; NEFTune's noise depends on the length.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Padding {
    pub multiple_of: usize,
    pub at_least: usize,
}

impl Padding {
    /// The collator's rule for a run: multiples of 8 for `sft` (packed rows are filled up to `cutoff_len` first), the
    /// longest row itself for `pt`.
    pub fn of(config: &Config) -> Padding {
        match config.tune.stage {
            Stage::Sft if config.data.packing => Padding { multiple_of: 8, at_least: config.data.cutoff_len },
            Stage::Sft => Padding { multiple_of: 8, at_least: 0 },
            Stage::Pt => Padding { multiple_of: 1, at_least: 0 },
        }
    }
}

impl Batch {
    /// Lays `samples` end to end. A token's target is the next token of the same row, also where that begins another
    /// piece, if it is trained; the first token of a row is predicted by nothing, but its label counts.
    ///
    /// # Panics
    /// If the batch has 2^32 tokens or more, or a sample's fields do not fit each other.
    pub fn collate(samples: &[&Sample], padding: Padding) -> Batch {
        let tokens: usize = samples.iter().map(|s| s.ids.len()).sum();
        assert!(u32::try_from(tokens).is_ok(), "a batch of {tokens} tokens");
        let mut b = Batch { cu_seqlens: vec![0], rows: samples.len(), ..Batch::default() };
        b.ids.reserve_exact(tokens);
        b.positions.reserve_exact(tokens);
        let mut longest = padding.at_least;
        for s in samples {
            let start = b.ids.len() as u32;
            assert_eq!(s.ids.len(), s.trained.len(), "ids and trained");
            assert_eq!(s.pieces.iter().map(|&n| n as usize).sum::<usize>(), s.ids.len(), "pieces and ids");
            b.ids.extend(&s.ids);
            b.no_window |= s.block_diagonal;
            let mut end = start;
            for &n in &s.pieces {
                b.positions.extend(0..n);
                end += n;
                if s.block_diagonal && n > 0 {
                    b.cu_seqlens.push(end);
                }
            }
            if !s.block_diagonal && end > start {
                b.cu_seqlens.push(end);
            }
            for (i, (&id, &trained)) in s.ids.iter().zip(&s.trained).enumerate() {
                b.labels += usize::from(trained);
                if trained && i > 0 {
                    b.loss_rows.push(start + i as u32 - 1);
                    b.targets.push(id);
                }
            }
            longest = longest.max(s.ids.len());
        }
        b.padded_len = longest.next_multiple_of(padding.multiple_of.max(1));
        b
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets_cross_pieces_but_not_rows() {
        let packed = Sample {
            ids: vec![1, 2, 3, 4, 5],
            trained: vec![true, false, true, true, false],
            pieces: vec![3, 2],
            block_diagonal: true,
        };
        let plain = Sample { ids: vec![6, 7], trained: vec![true, true], pieces: vec![1, 1], block_diagonal: false };
        let b = Batch::collate(&[&packed, &plain], Padding { multiple_of: 8, at_least: 0 });
        assert_eq!(b.ids, [1, 2, 3, 4, 5, 6, 7]);
        assert_eq!(b.positions, [0, 1, 2, 0, 1, 0, 0]);
        assert_eq!(b.cu_seqlens, [0, 3, 5, 7]);
        assert_eq!(b.loss_rows, [1, 2, 5]);
        assert_eq!(b.targets, [3, 4, 7]);
        assert_eq!((b.labels, b.rows, b.padded_len, b.no_window), (5, 2, 8, true));
        let b = Batch::collate(&[&plain], Padding { multiple_of: 8, at_least: 9 });
        assert_eq!((b.padded_len, b.no_window), (16, false));
        assert_eq!(Batch::collate(&[&plain], Padding { multiple_of: 1, at_least: 0 }).padded_len, 2);
    }
}
