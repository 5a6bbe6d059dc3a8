//! Attention of queries whose keys and values lie in pages, on the CPU: the arithmetic of [`super::cpu::fwd`], and its bits.
//!
//! A query's bits there depend on its tile only through the key that the tile begins with: keys behind a query weigh nothing,
//! and 0 added at the end of a sum changes no bit of it. Tiles here begin at the same positions, so that it makes no
//! difference in how many passes a sequence is read.

use std::ops::Range;

use super::Paged;
use super::cpu::{HasScratch, TILE, head, room, seen, softmax, visible};
use crate::device::gemm::{View, gemm};
use crate::device::par::{Blocks, blocks_of, for_blocks};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::ops::{mat, out};
use crate::tensor::Float;

/// Queries of one sequence and one tile.
struct Tile {
    /// Where they are in q and o.
    rows: Range<usize>,
    /// Their positions, and those of all keys that any of them sees.
    queries: Range<usize>,
    keys: Range<usize>,
}

/// `width` is the number of places for pages that each query has. A task is a tile and a kv head.
pub(super) fn fwd<T: HasScratch>(pool: &Pool, o: &mut [T], q: &[T], k: &[T], v: &[T], a: &Paged, width: usize) {
    let (d, group) = (a.head_dim, a.heads / a.kv_heads);
    let tiles = tiles(a, width);
    let rows: Vec<_> = tiles.iter().map(|t| t.rows.clone()).collect();
    let outs = [blocks_of(o, a.kv_heads, group * d)];
    for_blocks(pool, &rows, a.kv_heads, outs, [] as [Blocks<'_, T>; 0], |i, kv, [mut o], _| {
        let Tile { rows, queries, keys } = &tiles[i];
        let pages = &a.pages.numbers()[rows.start * width..][..width];
        let n = keys.len();
        // One query: all heads that share these keys are rows of one product.
        let (products, m) = if rows.len() == 1 { (1, group) } else { (group, rows.len()) };
        T::with_scratch(|([scores, sums, ..], [p, near])| {
            let (scores, sums, p) = (room(scores, m * n), room(sums, m * d), room(p, m * n));
            for h in 0..products {
                let qs = match rows.len() {
                    1 => mat(&q[(rows.start * a.heads + kv * group) * d..][..group * d], group, d),
                    _ => head(q, a.heads * d, rows.clone(), kv * group + h, d),
                };
                gemm(None, 1.0, qs, kept(k, a, pages, keys, kv, near).t(), 0.0, out(scores, n));
                wide!({
                    for (r, (scores, p)) in scores.chunks_exact_mut(n).zip(p.chunks_exact_mut(n)).enumerate() {
                        let (at, head) = if rows.len() == 1 { (0, r) } else { (r, h) };
                        let see = visible(queries.start + at, keys, a.window);
                        let scale = a.scores.of::<T::Acc>(kv * group + head, d).prepare(scores, &see);
                        softmax(scores, p, see, scale);
                    }
                });
                gemm(None, 1.0, mat(p, m, n), kept(v, a, pages, keys, kv, near), 0.0, out(sums, d));
                for (r, sums) in sums.chunks_exact(d).enumerate() {
                    let (row, from) = if rows.len() == 1 { (0, r * d) } else { (r, h * d) };
                    let o = &mut o.row_mut(row)[from..][..d];
                    o.iter_mut().zip(sums).for_each(|(o, &s)| *o = T::narrow(s));
                }
            }
        });
    });
}

/// Rows that follow each other and are queries of one sequence are cut at multiples of TILE of their positions, as a pass over the
/// whole sequence cuts them. Rows without a sequence are in no tile.
fn tiles(a: &Paged, width: usize) -> Vec<Tile> {
    let (lengths, pages) = (a.lengths.numbers(), a.pages.numbers());
    let pages_of = |row: usize| &pages[row * width..][..width];
    let mut tiles: Vec<Tile> = Vec::new();
    for (row, &len) in lengths.iter().enumerate().filter(|(_, len)| **len > 0) {
        let at = len as usize - 1;
        match tiles.last_mut() {
            Some(t)
                if t.rows.end == row
                    && t.queries.end == at
                    && !at.is_multiple_of(TILE)
                    && pages_of(t.rows.start) == pages_of(row) =>
            {
                (t.rows.end, t.queries.end, t.keys.end) = (row + 1, at + 1, at + 1);
            }
            _ => {
                let keys = seen(at - at % TILE, a.window).start..at + 1;
                tiles.push(Tile { rows: row..row + 1, queries: at..at + 1, keys });
            }
        }
    }
    tiles
}

/// Rows `keys` of a sequence's keys or values of one kv head: where they lie if the pages follow each other, else gathered in `near`.
fn kept<'a, T: Float>(
    data: &'a [T],
    a: &Paged,
    pages: &[u32],
    keys: &Range<usize>,
    kv: usize,
    near: &'a mut Vec<T>,
) -> View<'a> {
    let (d, width) = (a.head_dim, a.kv_heads * a.head_dim);
    let (first, last) = (keys.start / a.page, (keys.end - 1) / a.page);
    let row = |j: usize| pages[j / a.page] as usize * a.page + j % a.page;
    if pages[first..=last].windows(2).all(|w| w[0] + 1 == w[1]) {
        let from = row(keys.start);
        return head(data, width, from..from + keys.len(), kv, d);
    }
    let near = room(near, keys.len() * d);
    for (to, j) in near.chunks_exact_mut(d).zip(keys.clone()) {
        to.copy_from_slice(&data[row(j) * width + kv * d..][..d]);
    }
    mat(near, keys.len(), d)
}
