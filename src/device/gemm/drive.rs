//! The loops around the micro-kernels, the same for every instruction set.
//!
//! A task owns a rectangle of C. For each long piece of K (mostly all of it) it packs its columns of B; then for each
//! micro-panel of rows, for each block of K, it packs the panel of A and calls the micro-kernel once per B panel.
//! Products with few rows take another way: `few`.

use super::few::{self, Few};
use super::pack::{self, Elem, Simd};
use super::scratch::{self, Scratch};
use super::{Dst, DstView, View};
use crate::device::pool::Pool;
use half::bf16;
use std::ops::Range;

/// One call of a micro-kernel: C[rows, cols] gets alpha * A * B, added to what is there if `accumulate`.
pub(super) struct Tile<T> {
    /// Length in k, a multiple of `K_STEP`.
    pub(super) kc: usize,
    /// The micro-panel of A.
    pub(super) a: *const T,
    /// The panel of B.
    pub(super) b: *const T,
    /// Width of the panel of B: NR or NR / 2.
    pub(super) width: usize,
    /// Rows of C, 1..=MR.
    pub(super) rows: usize,
    /// Columns of C, 1..=width.
    pub(super) cols: usize,
    pub(super) c: *mut f32,
    /// Elements from one row of C to the next.
    pub(super) ldc: usize,
    pub(super) alpha: f32,
    pub(super) accumulate: bool,
}

/// A micro-kernel with its packing steps. The unsafe functions need the instruction set and what they say.
pub(super) trait Family: Sized {
    /// What the packed panels hold.
    type Elem: Elem;
    /// Most rows of a tile.
    const MR: usize;
    /// Columns of a B panel; even.
    const NR: usize;
    /// Block length in k: where sums are spilled to C. Part of the result's bits. A multiple of `K_STEP`.
    const KC: usize;
    /// k is filled up with zeros to a multiple of this.
    const K_STEP: usize;
    /// Elements from one row of a packed A panel to the next. An odd number of cache lines, so that the rows fall into
    /// different cache sets.
    const A_STRIDE: usize;
    /// What the packing may use.
    const SIMD: Simd;
    /// Longest piece of K whose B is packed at a time. Longer: C is touched less often; shorter: more columns fit, and
    /// A is packed less often. Measured.
    const PIECE: usize;
    /// Bytes of packed B that should stay in a thread's share of the L2 cache.
    const B_BYTES: usize;
    /// Rough speed, to cut C into tasks: multiply-adds a cycle.
    const MACS_PER_CYCLE: usize;

    /// Most rows of a product that `few` can do.
    const FEW: usize;
    /// Lines of W that `few` takes at a time, at most 32.
    const LINES: usize;
    /// Does `few` keep its sums line by line (or row by row)?
    const FEW_BY_LINE: bool = false;
    /// Has `few` the bits of `tile` for any alpha (or for 1 only)?
    const FEW_ANY_ALPHA: bool = true;

    /// Before and after a thread calls `tile`.
    ///
    /// # Safety
    /// Needs the instruction set.
    unsafe fn begin() {}
    /// # Safety
    /// After `begin`.
    unsafe fn end() {}

    /// The micro-kernel.
    ///
    /// # Safety
    /// The panels are packed as `pack` says, C is writable (and readable if `accumulate`), `begin` was called.
    unsafe fn tile(t: &Tile<Self::Elem>);

    /// Before a thread calls `few` for products of that many rows; `end` comes after.
    ///
    /// # Safety
    /// Needs the instruction set.
    unsafe fn begin_few(_rows: usize) {}

    /// The micro-kernel for few rows: see [`Few`]. An element has the bits that `tile` gives it.
    ///
    /// # Safety
    /// What `Few` says is there; `begin_few` was called.
    unsafe fn few(t: &Few<Self::Elem>);

    /// A[0 .. rows, k0 .. k0 + kc] as `few` reads it, zeros to round_up(kc, K_STEP); kc <= KC, rows <= FEW.
    ///
    /// # Safety
    /// The view was checked; FEW * A_STRIDE elements writable at `out`.
    unsafe fn pack_few(a: &View<'_>, rows: usize, k0: usize, kc: usize, out: *mut Self::Elem) {
        // SAFETY: the same contract (rows <= FEW rows of A_STRIDE).
        unsafe { pack::pack_a::<Self>(a, 0, rows, k0, kc, out) }
    }

    /// `PAIR` rows (null: zeros) of n elements side by side, zeros from n to `width`.
    ///
    /// # Safety
    /// n readable in each row; PAIR * width writable at `out`.
    unsafe fn put_rows(rows: [*const Self::Elem; 2], n: usize, width: usize, out: *mut Self::Elem) {
        // SAFETY: the same contract.
        unsafe { pack::plain::put_rows(rows, n, width, out) }
    }

    /// n lines of kc elements, transposed; zeros to `width` and to whole pairs.
    ///
    /// # Safety
    /// Lines readable; round_up(kc, PAIR) * width writable at `out`.
    unsafe fn put_lines(
        src: *const Self::Elem,
        stride: usize,
        n: usize,
        kc: usize,
        width: usize,
        out: *mut Self::Elem,
    ) {
        // SAFETY: the same contract.
        unsafe { pack::plain::put_lines(src, stride, n, kc, width, out) }
    }

    /// kc lines of `rows` elements -> `rows` rows of a micro-panel of A, zeros to round_up(kc, K_STEP).
    ///
    /// # Safety
    /// Lines readable; `rows` rows of A_STRIDE writable at `out`.
    unsafe fn put_transposed(src: *const Self::Elem, stride: usize, kc: usize, rows: usize, out: *mut Self::Elem) {
        let kp = kc.next_multiple_of(Self::K_STEP);
        // SAFETY: the same contract; kp <= A_STRIDE.
        unsafe { pack::plain::put_transposed(src, stride, kc, kp, rows, out, Self::A_STRIDE) }
    }

    /// Rounds f32 to bf16, to nearest even.
    fn round(src: &[f32], out: &mut [bf16]) {
        for (o, v) in out.iter_mut().zip(src) {
            *o = bf16::from_f32(*v);
        }
    }
}

/// A product, its views checked.
pub(super) struct Args<'a, 'c> {
    pub(super) pool: Option<&'a Pool>,
    pub(super) alpha: f32,
    pub(super) a: &'a View<'a>,
    pub(super) b: &'a View<'a>,
    pub(super) accumulate: bool,
    pub(super) c: &'a mut DstView<'c>,
}

/// Where the result goes.
#[derive(Clone, Copy)]
pub(super) enum Out {
    F32(*mut f32),
    Bf16(*mut bf16),
}

impl Out {
    /// Element `at`.
    ///
    /// # Safety
    /// It is readable.
    pub(super) unsafe fn get(self, at: usize) -> f32 {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Out::F32(p) => *p.add(at),
                Out::Bf16(p) => (*p.add(at)).to_f32(),
            }
        }
    }

    /// Writes `values` to elements `at` on.
    ///
    /// # Safety
    /// They are writable, and nobody else's.
    pub(super) unsafe fn put<F: Family>(self, at: usize, values: &[f32]) {
        // SAFETY: the caller's contract.
        unsafe {
            match self {
                Out::F32(p) => std::slice::from_raw_parts_mut(p.add(at), values.len()).copy_from_slice(values),
                Out::Bf16(p) => F::round(values, std::slice::from_raw_parts_mut(p.add(at), values.len())),
            }
        }
    }
}

/// What all tasks share.
struct Job<'a> {
    alpha: f32,
    a: &'a View<'a>,
    b: &'a View<'a>,
    accumulate: bool,
    out: Out,
    ldc: usize,
    /// Length of a piece of K whose B is packed at a time; a multiple of KC.
    piece: usize,
}

// SAFETY: `out` is the only part that is not Sync by itself; tasks write disjoint rectangles of it.
unsafe impl Sync for Job<'_> {}

/// Computes the product with family F, whose instruction set the machine has.
pub(super) fn run<F: Family>(args: Args<'_, '_>) {
    let (m, n, k) = (args.c.rows, args.c.cols, args.a.cols);
    if k == 0 {
        if !args.accumulate {
            clear(args.c);
        }
        return;
    }
    let out = match &mut args.c.dst {
        Dst::F32(x) => Out::F32(x.as_mut_ptr()),
        Dst::Bf16(x) => Out::Bf16(x.as_mut_ptr()),
        Dst::F64(_) => unreachable!("f64 has its own path"),
    };
    if few::fits::<F>(m, args.alpha, args.b) {
        return few::run::<F>(args, out);
    }
    let Args { pool, alpha, a, b, accumulate, c } = args;
    let ldc = c.row_stride;
    let piece = k.min(F::PIECE).next_multiple_of(F::KC);
    let job = Job { alpha, a, b, accumulate, out, ldc, piece };
    let cut = Cut::new::<F>(pool.map_or(1, Pool::threads), m, n, k);
    let task = |i: usize| {
        let (ti, tj) = (i % cut.m_tasks, i / cut.m_tasks);
        let rows = ti * cut.m_step..((ti + 1) * cut.m_step).min(m);
        let cols = tj * cut.n_step..((tj + 1) * cut.n_step).min(n);
        // SAFETY: the rectangles are disjoint and inside the checked views; the instruction set is there.
        scratch::with(|s| unsafe { rectangle::<F>(&job, rows, cols, s) });
    };
    match pool {
        Some(p) => p.run(cut.m_tasks * cut.n_tasks, &task),
        None => (0..cut.m_tasks * cut.n_tasks).for_each(task),
    }
}

/// C = 0.
fn clear(c: &mut DstView<'_>) {
    for i in 0..c.rows {
        let r = i * c.row_stride..i * c.row_stride + c.cols;
        match &mut c.dst {
            Dst::F64(x) => x[r].fill(0.0),
            Dst::F32(x) => x[r].fill(0.0),
            Dst::Bf16(x) => x[r].fill(bf16::ZERO),
        }
    }
}

/// How C is cut into tasks: `m_tasks` x `n_tasks` rectangles of m_step x n_step.
struct Cut {
    m_tasks: usize,
    n_tasks: usize,
    m_step: usize,
    n_step: usize,
}

impl Cut {
    /// The cut with the least estimated time: each task packs its own B, and its own A once per its columns.
    fn new<F: Family>(threads: usize, m: usize, n: usize, k: usize) -> Cut {
        let piece = k.min(F::PIECE).next_multiple_of(F::K_STEP);
        let n_max = (F::B_BYTES / size_of::<F::Elem>() / piece / F::NR * F::NR).clamp(F::NR, 512.max(F::NR));
        let n_least = n.div_ceil(n_max);
        let make = |m_tasks: usize, n_tasks: usize| {
            let m_step = m.div_ceil(m_tasks).next_multiple_of(F::MR);
            let n_step = n.div_ceil(n_tasks).next_multiple_of(F::NR);
            Cut { m_tasks: m.div_ceil(m_step), n_tasks: n.div_ceil(n_step), m_step, n_step }
        };
        // Cycles of one task: about half a cycle for an element of B, a sixth for one of A, one or two for a C vector.
        let cycles = |c: &Cut| {
            let (mc, nc) = (c.m_step.min(m), c.n_step.min(n).next_multiple_of(F::NR / 2));
            mc * nc * k / F::MACS_PER_CYCLE + nc * k / 2 + mc * k / 6 + mc * nc / 8 + 2000
        };
        let alone = make(1, n_least);
        // Waking the others costs some thousand cycles.
        if threads == 1 || cycles(&alone) * alone.n_tasks < 20_000 {
            return alone;
        }
        // Few large tasks waste less packing; several per thread bear a thread that is held up.
        let mut best = (usize::MAX, alone);
        for times in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128] {
            if times > 4 * threads {
                break;
            }
            for m_tasks in [1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128] {
                if m_tasks * n_least * times > 4 * threads.max(n_least) {
                    break;
                }
                let cut = make(m_tasks, n_least * times);
                let tasks = cut.m_tasks * cut.n_tasks;
                let time = cycles(&cut) * tasks.div_ceil(threads);
                if time < best.0 {
                    best = (time, cut);
                }
            }
        }
        best.1
    }
}

/// Computes C[rows, cols].
///
/// # Safety
/// The views were checked, nobody else touches this rectangle, the machine has F's instructions.
unsafe fn rectangle<F: Family>(job: &Job<'_>, rows: Range<usize>, cols: Range<usize>, s: &mut Scratch) {
    let (k, nc) = (job.a.cols, cols.len());
    let nc_packed = nc.next_multiple_of(F::NR);
    let longest = k.min(job.piece).next_multiple_of(F::K_STEP);
    let b_packed = s.b.room::<F::Elem>(longest * nc_packed);
    let a_packed = s.a.room::<F::Elem>(F::MR * F::A_STRIDE);
    let lines = s.lines.room::<F::Elem>(pack::lines_room::<F>(nc));
    // f32 sums of a bf16 result: of one micro-panel if K is one piece, else of the whole rectangle.
    let sums = match job.out {
        Out::F32(_) => std::ptr::null_mut(),
        Out::Bf16(_) => s.c.room::<f32>(nc_packed * if k <= job.piece { F::MR } else { rows.len() }),
    };
    // SAFETY (this block): offsets stay inside the buffers sized above and the checked views; see each callee.
    unsafe {
        F::begin();
        for k0 in (0..k).step_by(job.piece) {
            let kn = job.piece.min(k - k0);
            for kb in (0..kn).step_by(F::KC) {
                let kc = F::KC.min(kn - kb);
                pack::pack_b::<F>(job.b, k0 + kb, kc, cols.start, nc, b_packed.add(kb * nc_packed), lines);
            }
            for i0 in rows.clone().step_by(F::MR) {
                let mr = F::MR.min(rows.end - i0);
                let first = i0 * job.ldc + cols.start;
                let (c, ldc) = match job.out {
                    Out::F32(p) => (p.add(first), job.ldc),
                    Out::Bf16(p) => {
                        let c = if k <= job.piece { sums } else { sums.add((i0 - rows.start) * nc_packed) };
                        if k0 == 0 && job.accumulate {
                            widen(p.add(first), job.ldc, mr, nc, c, nc_packed);
                        }
                        (c, nc_packed)
                    }
                };
                for kb in (0..kn).step_by(F::KC) {
                    let kc = F::KC.min(kn - kb);
                    pack::pack_a::<F>(job.a, i0, mr, k0 + kb, kc, a_packed);
                    let kp = kc.next_multiple_of(F::K_STEP);
                    for j in (0..nc).step_by(F::NR) {
                        let n = F::NR.min(nc - j);
                        F::tile(&Tile {
                            kc: kp,
                            a: a_packed,
                            b: b_packed.add(kb * nc_packed + j * kp),
                            width: if n <= F::NR / 2 { F::NR / 2 } else { F::NR },
                            rows: mr,
                            cols: n,
                            c: c.add(j),
                            ldc,
                            alpha: job.alpha,
                            accumulate: job.accumulate || k0 + kb > 0,
                        });
                    }
                }
                if let Out::Bf16(p) = job.out
                    && k0 + kn == k
                {
                    for i in 0..mr {
                        let src = std::slice::from_raw_parts(c.add(i * ldc), nc);
                        F::round(src, std::slice::from_raw_parts_mut(p.add(first + i * job.ldc), nc));
                    }
                }
            }
        }
        F::end();
    }
}

/// rows x cols bf16 to f32.
///
/// # Safety
/// Both readable and writable at these strides.
unsafe fn widen(src: *const bf16, src_stride: usize, rows: usize, cols: usize, out: *mut f32, out_stride: usize) {
    for i in 0..rows {
        for j in 0..cols {
            // SAFETY: the caller's contract.
            unsafe { *out.add(i * out_stride + j) = (*src.add(i * src_stride + j)).to_f32() };
        }
    }
}
