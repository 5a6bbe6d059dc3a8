//! Several sequences in one row. No pad tokens: what LLaMA-Factory fills up with pads is left out.

use std::collections::HashMap;

use super::Sample;

/// Packs `samples` into rows of at most `capacity` tokens, greedily: each row takes the longest sample that still fits,
/// again and again. Returns the rows and how many samples were longer than a row and left out.
///
/// Of samples of one length the last is taken first, as LLaMA-Factory does.
pub(super) fn knapsack(samples: Vec<Sample>, capacity: usize, block_diagonal: bool) -> (Vec<Sample>, usize) {
    let before = samples.len();
    let samples: Vec<Sample> = samples.into_iter().filter(|s| s.ids.len() <= capacity).collect();
    let too_long = before - samples.len();
    let mut by_length: HashMap<usize, Vec<usize>> = HashMap::new();
    for (i, s) in samples.iter().enumerate() {
        by_length.entry(s.ids.len()).or_default().push(i);
    }
    let mut lengths: Vec<usize> = samples.iter().map(|s| s.ids.len()).collect();
    lengths.sort_unstable();
    let mut rows = Vec::new();
    while !lengths.is_empty() {
        let mut row = Sample { block_diagonal, ..Sample::default() };
        let mut room = capacity;
        // The position after the last length that fits.
        while let Some(at) = lengths.partition_point(|&n| n <= room).checked_sub(1) {
            let length = lengths.remove(at);
            room -= length;
            if let Some(s) = by_length.get_mut(&length).and_then(Vec::pop).and_then(|i| samples.get(i)) {
                row.ids.extend(&s.ids);
                row.trained.extend(&s.trained);
                row.pieces.extend(&s.pieces);
            }
        }
        rows.push(row);
    }
    (rows, too_long)
}

/// Joins texts end to end and cuts the stream into rows of exactly `size` tokens; the rest is lost. One piece a row:
/// positions run through.
pub(super) fn blocks(texts: &[Sample], size: usize) -> Vec<Sample> {
    let ids: Vec<u32> = texts.iter().flat_map(|s| s.ids.iter().copied()).collect();
    let trained: Vec<bool> = texts.iter().flat_map(|s| s.trained.iter().copied()).collect();
    ids.chunks_exact(size)
        .zip(trained.chunks_exact(size))
        .map(|(ids, trained)| Sample {
            ids: ids.to_vec(),
            trained: trained.to_vec(),
            pieces: vec![u32::try_from(size).unwrap_or(u32::MAX)],
            block_diagonal: false,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample(first: u32, n: u32) -> Sample {
        Sample {
            ids: (first..first + n).collect(),
            trained: (0..n).map(|i| i % 2 == 1).collect(),
            pieces: vec![n],
            block_diagonal: false,
        }
    }

    #[test]
    fn rows_take_the_longest_that_fits_and_of_equals_the_last() {
        let (rows, too_long) =
            knapsack(vec![sample(0, 3), sample(10, 5), sample(20, 3), sample(30, 9), sample(40, 2)], 8, true);
        assert_eq!(too_long, 1);
        assert_eq!(rows.len(), 2);
        assert_eq!(rows[0].ids, [10, 11, 12, 13, 14, 20, 21, 22]);
        assert_eq!(rows[0].pieces, [5, 3]);
        assert_eq!(rows[0].trained, [false, true, false, true, false, false, true, false]);
        assert_eq!(rows[1].ids, [0, 1, 2, 40, 41]);
        assert!(rows[0].block_diagonal);
    }

    #[test]
    fn blocks_are_whole_and_the_rest_is_lost() {
        let rows = blocks(&[sample(0, 3), sample(10, 4)], 3);
        assert_eq!(rows.iter().map(|r| r.ids.clone()).collect::<Vec<_>>(), [vec![0, 1, 2], vec![10, 11, 12]]);
        assert_eq!(rows[1].trained, [false, true, false]);
        assert_eq!(rows[1].pieces, [3]);
    }
}
