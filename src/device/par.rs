//! Loops over rows on all threads: each task gets its own rows of every output, so results do not depend on who ran
//! which task.

use std::marker::PhantomData;
use std::ops::Range;

use super::pool::Pool;

/// An output that can be split by rows. Made by [`rows_of`]; tuples of outputs are outputs too.
pub trait RowsMut: Sync {
    /// Some rows of it.
    type Part;

    /// Number of rows.
    fn rows(&self) -> usize;

    /// The rows `r`.
    ///
    /// # Safety
    /// No two parts that are alive at the same time may share a row.
    unsafe fn part(&self, r: Range<usize>) -> Self::Part;
}

/// A slice seen as rows of equal width.
pub struct Rows<'s, T> {
    ptr: *mut T,
    rows: usize,
    width: usize,
    _borrow: PhantomData<&'s mut [T]>,
}

// SAFETY: it stands for an exclusive borrow of the slice, handed out in disjoint parts only.
unsafe impl<T: Send> Sync for Rows<'_, T> {}

/// `data` as rows of `width` elements. Panics unless it is a whole number of rows.
pub fn rows_of<T: Send>(data: &mut [T], width: usize) -> Rows<'_, T> {
    let width = width.max(1);
    assert!(data.len().is_multiple_of(width), "{} elements are no rows of {width}", data.len());
    Rows { ptr: data.as_mut_ptr(), rows: data.len() / width, width, _borrow: PhantomData }
}

impl<'s, T: Send> RowsMut for Rows<'s, T> {
    type Part = &'s mut [T];

    fn rows(&self) -> usize {
        self.rows
    }

    unsafe fn part(&self, r: Range<usize>) -> &'s mut [T] {
        assert!(r.start <= r.end && r.end <= self.rows);
        // SAFETY: inside the borrowed slice by the assertion; disjoint from other parts by the caller's promise.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(r.start * self.width), r.len() * self.width) }
    }
}

macro_rules! tuple_rows {
    ($($name:ident $index:tt),+) => {
        impl<$($name: RowsMut),+> RowsMut for ($($name,)+) {
            type Part = ($($name::Part,)+);

            fn rows(&self) -> usize {
                self.0.rows()
            }

            unsafe fn part(&self, r: Range<usize>) -> Self::Part {
                // SAFETY: the caller's promise holds for each member.
                ($(unsafe { self.$index.part(r.clone()) },)+)
            }
        }
    };
}
tuple_rows!(A 0, B 1);
tuple_rows!(A 0, B 1, C 2);

/// Calls `f(rows, their part of out)` for pieces of at least `grain` rows that together are all rows, once each.
pub fn for_rows<D: RowsMut>(pool: &Pool, grain: usize, out: D, f: impl Fn(Range<usize>, D::Part) + Sync) {
    let rows = out.rows();
    if rows == 0 {
        return;
    }
    // Four pieces a thread even out what the threads do at different speeds.
    let tasks = rows.div_ceil(grain.max(1)).min(4 * pool.threads());
    let per = rows.div_ceil(tasks);
    pool.run(rows.div_ceil(per), &|i| {
        let r = i * per..((i + 1) * per).min(rows);
        // SAFETY: the ranges of different tasks do not overlap, and each task runs once.
        let part = unsafe { out.part(r.clone()) };
        f(r, part)
    });
}

/// Calls `f(i, rows of out)` for every range of rows, once each. `ranges` must ascend without overlap (asserted).
pub fn for_ranges<D: RowsMut>(pool: &Pool, ranges: &[Range<usize>], out: D, f: impl Fn(usize, D::Part) + Sync) {
    assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "ranges of rows overlap");
    pool.run(ranges.len(), &|i| {
        // SAFETY: the ranges of different tasks do not overlap, and each task runs once.
        let part = unsafe { out.part(ranges[i].clone()) };
        f(i, part)
    });
}

/// A block of rows and columns of a matrix that one task writes.
pub struct Block<'a, T> {
    ptr: *mut T,
    stride: usize,
    rows: usize,
    cols: usize,
    _borrow: PhantomData<&'a mut [T]>,
}

impl<T> Block<'_, T> {
    /// Row `i` of the block.
    pub fn row_mut(&mut self, i: usize) -> &mut [T] {
        assert!(i < self.rows, "row {i} of a block of {}", self.rows);
        // SAFETY: the block lies inside the borrowed matrix and shares no element with another block (`blocks_of`).
        unsafe { std::slice::from_raw_parts_mut(self.ptr.add(i * self.stride), self.cols) }
    }
}

/// A matrix to be written in blocks: made by [`blocks_of`].
pub struct Blocks<'s, T> {
    all: Rows<'s, T>,
    cols: usize,
}

/// `data` as rows of `heads * cols` elements, to be written in blocks of `cols` columns.
pub fn blocks_of<T: Send>(data: &mut [T], heads: usize, cols: usize) -> Blocks<'_, T> {
    Blocks { all: rows_of(data, heads * cols), cols }
}

impl<T: Send> Blocks<'_, T> {
    /// # Safety
    /// No two blocks that are alive at the same time may share an element.
    unsafe fn block(&self, rows: Range<usize>, head: usize) -> Block<'_, T> {
        assert!(rows.start <= rows.end && rows.end <= self.all.rows && (head + 1) * self.cols <= self.all.width);
        // SAFETY: inside the borrowed slice by the assertion.
        let ptr = unsafe { self.all.ptr.add(rows.start * self.all.width + head * self.cols) };
        Block { ptr, stride: self.all.width, rows: rows.len(), cols: self.cols, _borrow: PhantomData }
    }
}

/// Calls `f(i, head, blocks of outs, blocks of more)` for every range of rows and every head, once each. `ranges` must
/// ascend without overlap (asserted): blocks then share nothing.
pub fn for_blocks<T: Send, U: Send, const N: usize, const M: usize>(
    pool: &Pool,
    ranges: &[Range<usize>],
    heads: usize,
    outs: [Blocks<'_, T>; N],
    more: [Blocks<'_, U>; M],
    f: impl Fn(usize, usize, [Block<'_, T>; N], [Block<'_, U>; M]) + Sync,
) {
    assert!(ranges.windows(2).all(|w| w[0].end <= w[1].start), "ranges of rows overlap");
    pool.run(ranges.len() * heads, &|task| {
        let (i, head) = (task / heads, task % heads);
        // SAFETY: each (range, head) is one task, ranges do not overlap, and heads are different columns.
        let outs = std::array::from_fn(|k| unsafe { outs[k].block(ranges[i].clone(), head) });
        // SAFETY: as above.
        let more = std::array::from_fn(|k| unsafe { more[k].block(ranges[i].clone(), head) });
        f(i, head, outs, more)
    });
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_row_is_visited_once() {
        for threads in [1, 2, 3] {
            let pool = Pool::new(threads);
            for rows in [0usize, 1, 5, 64, 1001] {
                let (mut a, mut b) = (vec![0u32; rows * 3], vec![0u32; rows]);
                for_rows(&pool, 4, (rows_of(&mut a, 3), rows_of(&mut b, 1)), |r, (a, b)| {
                    for (i, row) in r.enumerate() {
                        a[i * 3..][..3].iter_mut().for_each(|x| *x += row as u32 + 1);
                        b[i] += 1;
                    }
                });
                assert!(a.iter().enumerate().all(|(i, &x)| x == (i / 3) as u32 + 1), "{threads} threads, {rows} rows");
                assert!(b.iter().all(|&x| x == 1));
            }
        }
    }
}
