//! Products with few rows of A, as decoding makes them: C = alpha * A * W^T + beta * C for a W (N, K) that lies row by row.
//!
//! Such a product reads every weight once and does little with it, so packing W into memory would cost more than the
//! product itself. A task here owns a run of columns of C, which are lines of W, and takes `LINES` of them at a time:
//! their elements go from where they lie through registers straight into the sums. NF4 and ggml blocks, and elements
//! of another type, are expanded into a small buffer first, `LINES` lines of a block of K at a time, which stays in
//! the L1 cache. The next lines are fetched meanwhile, in the order in which they lie in memory.
//!
//! The bits are those of the other path: the same chain of accumulations, by the same instruction, in the same blocks.

use super::drive::{Args, Family, Out};
use super::pack::{Elem, LINE_PAD};
use super::scratch::{self, Scratch};
use super::{Src, View};
use crate::device::pool::Pool;
use std::ops::Range;

/// One call of a kernel: sums of `rows` x LINES elements over one block of K.
pub(super) struct Few<T> {
    /// Element k of line j is `lines[j * stride + k]`.
    pub(super) lines: *const T,
    pub(super) stride: usize,
    /// Length in k: a multiple of `K_STEP`, at most KC.
    pub(super) kc: usize,
    /// A as `Family::pack_few` left it.
    pub(super) a: *const T,
    /// Rows of A and C, 1..=FEW.
    pub(super) rows: usize,
    /// The sums of row i, line j at `[i * LINES + j]`, or `[j * rows + i]` where `FEW_BY_LINE`. 64-byte aligned.
    pub(super) sums: *mut f32,
    pub(super) alpha: f32,
    /// Add to the sums that are there.
    pub(super) accumulate: bool,
    /// Memory to fetch meanwhile, as many bytes as the lines have: STREAMS runs, so many bytes from each to the next.
    /// Any address will do.
    pub(super) ahead: *const u8,
    pub(super) ahead_stride: usize,
}

/// Runs of memory that are fetched side by side: one alone does not use all of the memory's speed (measured: 20 GB/s of
/// two cores where 4 or 8 give 27), and many share the prefetchers' few slots.
pub(super) const STREAMS: usize = 8;

/// What all tasks share.
struct Job<'a, T> {
    alpha: f32,
    b: &'a View<'a>,
    /// A, packed: block after block of K.
    a: *const T,
    rows: usize,
    accumulate: bool,
    out: Out,
    ldc: usize,
}

// SAFETY: tasks only read A, and write disjoint columns of `out`.
unsafe impl<T> Sync for Job<'_, T> {}

/// Can this product be done here?
pub(super) fn fits<F: Family>(rows: usize, alpha: f32, b: &View<'_>) -> bool {
    rows <= F::FEW && b.cols >= F::LINES && b.row_stride == 1 && (F::FEW_ANY_ALPHA || alpha == 1.0)
}

/// Elements of A from one block of K to the next.
fn a_block<F: Family>() -> usize {
    F::FEW * F::A_STRIDE
}

/// Computes a product that [`fits`], K > 0, its views checked; the machine has F's instructions.
pub(super) fn run<F: Family>(args: Args<'_, '_>, out: Out) {
    let Args { pool, alpha, a, b, accumulate, c } = args;
    let (rows, n, k, ldc) = (c.rows, c.cols, a.cols, c.row_stride);
    scratch::with_shared(|buffer| {
        let packed = buffer.room::<F::Elem>(k.div_ceil(F::KC) * a_block::<F>());
        for (i, k0) in (0..k).step_by(F::KC).enumerate() {
            // SAFETY: block i of the buffer, and a checked view.
            unsafe { F::pack_few(a, rows, k0, F::KC.min(k - k0), packed.add(i * a_block::<F>())) };
        }
        let job = Job { alpha, b, a: packed, rows, accumulate, out, ldc };
        let groups = n.div_ceil(F::LINES);
        let (tasks, step) = cut(pool.map_or(1, Pool::threads), groups, F::LINES * k);
        // SAFETY: the groups of a task are its own.
        let task = |t: usize| {
            scratch::with(|s| unsafe { columns::<F>(&job, t * step..((t + 1) * step).min(groups), s) });
        };
        match pool {
            Some(p) => p.run(tasks, &task),
            None => (0..tasks).for_each(task),
        }
    });
}

/// Tasks, and groups of a task; `work` is the elements of a group.
///
/// Waking another thread takes a few microseconds, in which one thread reads some 20 thousand weights. A few tasks per
/// thread even out a thread that is held up; but nobody fetches the first group of a task ahead, so it has eight or more
/// (where there are as many for all threads).
fn cut(threads: usize, groups: usize, work: usize) -> (usize, usize) {
    if threads == 1 || groups * work < 40_000 {
        return (1, groups);
    }
    let step = groups.div_ceil(8 * threads).max(8).min(groups.div_ceil(threads));
    (groups.div_ceil(step), step)
}

/// Brings elements `from .. from + len` of a source near, as far as there are any (a hint).
#[inline]
fn bring(src: &Src<'_>, from: usize, len: usize) {
    let at = |e: usize| match src {
        Src::F64(x) => x.as_ptr().wrapping_add(e).cast::<u8>(),
        Src::F32(x) => x.as_ptr().wrapping_add(e).cast(),
        Src::Bf16(x) => x.as_ptr().wrapping_add(e).cast(),
        Src::Nf4(q) => q.packed.as_ptr().wrapping_add(e / 2),
        Src::Ggml(q) => q.bytes.as_ptr().wrapping_add(e / q.block * q.block_bytes),
    };
    let (from, end) = (at(from), at(from + len));
    #[cfg(target_arch = "x86_64")]
    for i in (0..(end as usize).wrapping_sub(from as usize)).step_by(64) {
        use std::arch::x86_64::{_MM_HINT_T1, _mm_prefetch};
        // SAFETY: any x86-64 has it, and it cannot fault.
        unsafe { _mm_prefetch::<_MM_HINT_T1>(from.wrapping_add(i).cast()) };
    }
    #[cfg(not(target_arch = "x86_64"))]
    let _ = (from, end);
}

/// The sums of a group: FEW rows of LINES, whichever way.
#[repr(C, align(64))]
struct Sums([f32; 512]);

/// Computes the columns of C that belong to `groups`.
///
/// # Safety
/// As [`run`]; nobody else touches these columns.
unsafe fn columns<F: Family>(job: &Job<'_, F::Elem>, groups: Range<usize>, s: &mut Scratch) {
    const { assert!(F::FEW * F::LINES <= 512) };
    let (n, k, b) = (job.b.cols, job.b.rows, job.b);
    let stride = F::KC + LINE_PAD;
    let buffer = s.lines.room::<F::Elem>(F::LINES * stride);
    let mut sums = Sums([0.0; 512]);
    let sums = &mut sums.0;
    let (by_row, by_line) = if F::FEW_BY_LINE { (1, job.rows) } else { (F::LINES, 1) };
    let direct = F::Elem::direct(&b.src);
    // SAFETY: the instruction set is there.
    unsafe { F::begin_few(job.rows) };
    for g in groups.clone() {
        let ahead_too = g + 1 < groups.end;
        // The last group may overlap the one before it: columns below `skip` are computed again and dropped.
        let j0 = (g * F::LINES).min(n - F::LINES);
        let skip = g * F::LINES - j0;
        if job.accumulate {
            for i in 0..job.rows {
                for j in skip..F::LINES {
                    // SAFETY: an element of these columns of C.
                    sums[i * by_row + j * by_line] = unsafe { job.out.get(i * job.ldc + j0 + j) };
                }
            }
        }
        for (block, k0) in (0..k).step_by(F::KC).enumerate() {
            let kc = F::KC.min(k - k0);
            let kp = kc.next_multiple_of(F::K_STEP);
            let start = k0 + j0 * b.col_stride;
            let mut ahead_stride = 0;
            let (lines, stride, ahead) = match direct {
                Some(p) if kp == kc => {
                    // The next group, as far on in it as this block is in this one; after the last one, nothing new.
                    let run = F::LINES / STREAMS;
                    let next = p.wrapping_add((j0 + F::LINES) * b.col_stride + k0 * run);
                    // SAFETY: within the checked view.
                    let lines = unsafe { p.add(start) };
                    if ahead_too {
                        ahead_stride = run * b.col_stride * size_of::<F::Elem>();
                    }
                    (lines, b.col_stride, if ahead_too { next } else { lines }.cast())
                }
                _ => {
                    for j in 0..F::LINES {
                        // SAFETY: line j of the buffer.
                        let line = unsafe { std::slice::from_raw_parts_mut(buffer.add(j * stride), kp) };
                        let (line, pad) = line.split_at_mut(kc);
                        let from = start + j * b.col_stride;
                        if ahead_too {
                            bring(&b.src, from + F::LINES * b.col_stride, kc);
                        }
                        F::Elem::fetch(&b.src, from, 1, line, F::SIMD);
                        pad.fill(F::Elem::default());
                    }
                    (buffer.cast_const(), stride, buffer.cast_const().cast())
                }
            };
            // SAFETY: LINES lines of kp elements; block `block` of A; the sums have room for FEW x LINES.
            unsafe {
                F::few(&Few {
                    lines,
                    stride,
                    kc: kp,
                    a: job.a.add(block * a_block::<F>()),
                    rows: job.rows,
                    sums: sums.as_mut_ptr(),
                    alpha: job.alpha,
                    accumulate: job.accumulate || k0 > 0,
                    ahead,
                    ahead_stride,
                });
            }
        }
        for i in 0..job.rows {
            let mut row = [0.0f32; 32];
            for j in 0..F::LINES {
                row[j] = sums[i * by_row + j * by_line];
            }
            // SAFETY: these columns of row i.
            unsafe { job.out.put::<F>(i * job.ldc + j0 + skip, &row[skip..F::LINES]) };
        }
    }
    // SAFETY: after `begin_few`.
    unsafe { F::end() };
}
