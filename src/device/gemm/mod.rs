//! Matrix products on the CPU: C = alpha * A * B + beta * C over strided views of f32, bf16, NF4 and ggml data.
//!
//! | A, B | products and sums | kernels |
//! |---|---|---|
//! | bf16, bf16 or NF4 or ggml blocks | exact products, f32 sums | AMX, AVX512-BF16; elsewhere widened and done as f32 |
//! | any other 16/32-bit pair | f32 | AVX-512, AVX2, portable |
//! | an f64 anywhere (C included) | f64 | one plain loop |
//!
//! **Bits.** C[i,j] depends on row i of A, column j of B, K, alpha, beta and the instruction set, and on nothing else:
//! not on M, N, the thread count, the strides, or the element's place in a tile. K is cut into blocks of a fixed
//! length; within a block every element is one chain of accumulations in ascending k, by the same instruction in whole
//! and ragged tiles; between blocks the sum stays in f32. A bf16 C is rounded once, at the end. Quantised weights have
//! the bits of the same matrix expanded to f32, or to bf16 where A is bf16.
//!
//! **How.** (`drive`) C is cut into tasks. A task packs its columns of B, all of K or a long piece, into a buffer that
//! stays in the L2 cache, then walks down its rows a micro-panel of A at a time (in L1) and sweeps the panel over the
//! columns. NF4 and ggml blocks are expanded by the packing step (`nf4`, `ggml`). With few rows of A, as in decoding, the
//! weights are not packed but multiplied where they lie (`few`). Scratch is kept per thread: no allocation in the steady state.

#![allow(
    clippy::needless_range_loop,
    reason = "a kernel's loops run over registers i, v of several arrays, as its formula does"
)]

#[cfg(target_arch = "x86_64")]
mod amx;
#[cfg(target_arch = "x86_64")]
mod avx2;
#[cfg(target_arch = "x86_64")]
mod avx512;
#[cfg(target_arch = "x86_64")]
mod avx512bf16;
mod drive;
mod f64;
mod few;
mod ggml;
mod isa;
mod nf4;
mod pack;
mod portable;
mod scratch;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tests_quantised;
#[cfg(target_arch = "x86_64")]
mod x86;
#[cfg(target_arch = "x86_64")]
mod x86_ggml;

pub use ggml::{GGML_BLOCK_MAX, GgmlFast, GgmlRef};
pub use isa::Isa;
pub use nf4::{Absmax, NF4_BLOCK, Nf4Ref};

use super::pool::Pool;
use half::bf16;

/// What a [`View`] reads.
#[derive(Clone, Copy)]
pub enum Src<'a> {
    /// Double precision: the whole product is then done in f64.
    F64(&'a [f64]),
    /// Single precision.
    F32(&'a [f32]),
    /// bfloat16.
    Bf16(&'a [bf16]),
    /// 4-bit NormalFloat; B only.
    Nf4(Nf4Ref<'a>),
    /// ggml blocks; B only.
    Ggml(GgmlRef<'a>),
}

/// A matrix: element (i, j) is `src[i * row_stride + j * col_stride]` (for NF4 and ggml blocks: of the flattened matrix).
#[derive(Clone, Copy)]
pub struct View<'a> {
    /// The elements.
    pub src: Src<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next.
    pub row_stride: usize,
    /// Elements from one column to the next.
    pub col_stride: usize,
}

impl<'a> View<'a> {
    /// A dense row-major (rows, cols) matrix.
    pub fn new(src: Src<'a>, rows: usize, cols: usize) -> View<'a> {
        View { src, rows, cols, row_stride: cols, col_stride: 1 }
    }
    /// A dense row-major f32 matrix.
    pub fn f32(x: &'a [f32], rows: usize, cols: usize) -> View<'a> {
        View::new(Src::F32(x), rows, cols)
    }
    /// A dense row-major f64 matrix.
    pub fn f64(x: &'a [f64], rows: usize, cols: usize) -> View<'a> {
        View::new(Src::F64(x), rows, cols)
    }
    /// A dense row-major bf16 matrix.
    pub fn bf16(x: &'a [bf16], rows: usize, cols: usize) -> View<'a> {
        View::new(Src::Bf16(x), rows, cols)
    }
    /// The quantised row-major (rows, cols) matrix.
    pub fn nf4(x: Nf4Ref<'a>, rows: usize, cols: usize) -> View<'a> {
        View::new(Src::Nf4(x), rows, cols)
    }
    /// The row-major (rows, cols) matrix in blocks, each row whole blocks.
    pub fn ggml(x: GgmlRef<'a>, rows: usize, cols: usize) -> View<'a> {
        View::new(Src::Ggml(x), rows, cols)
    }
    /// The transpose; moves nothing.
    #[must_use]
    pub fn t(self) -> View<'a> {
        let View { src, rows, cols, row_stride, col_stride } = self;
        View { src, rows: cols, cols: rows, row_stride: col_stride, col_stride: row_stride }
    }
}

/// What a [`DstView`] writes.
pub enum Dst<'a> {
    /// Double precision: the whole product is then done in f64.
    F64(&'a mut [f64]),
    /// Single precision.
    F32(&'a mut [f32]),
    /// bfloat16, rounded once, to nearest even, from the f32 sum.
    Bf16(&'a mut [bf16]),
}

/// The result matrix: element (i, j) is `dst[i * row_stride + j]`. Elements between the rows are left alone.
pub struct DstView<'a> {
    /// The elements.
    pub dst: Dst<'a>,
    /// Number of rows.
    pub rows: usize,
    /// Number of columns.
    pub cols: usize,
    /// Elements from one row to the next; at least `cols` (where there is more than one row).
    pub row_stride: usize,
}

impl<'a> DstView<'a> {
    /// A dense row-major (rows, cols) matrix.
    pub fn new(dst: Dst<'a>, rows: usize, cols: usize) -> DstView<'a> {
        DstView { dst, rows, cols, row_stride: cols }
    }
    /// A dense row-major f32 matrix.
    pub fn f32(x: &'a mut [f32], rows: usize, cols: usize) -> DstView<'a> {
        DstView::new(Dst::F32(x), rows, cols)
    }
    /// A dense row-major f64 matrix.
    pub fn f64(x: &'a mut [f64], rows: usize, cols: usize) -> DstView<'a> {
        DstView::new(Dst::F64(x), rows, cols)
    }
    /// A dense row-major bf16 matrix.
    pub fn bf16(x: &'a mut [bf16], rows: usize, cols: usize) -> DstView<'a> {
        DstView::new(Dst::Bf16(x), rows, cols)
    }
}

/// C = alpha * A * B + beta * C, with A (M, K), B (K, N), C (M, N), on `pool`'s threads (`None`: on this thread only).
///
/// `beta` is 0 (C is overwritten and never read: a NaN in it does not matter) or 1. Rounding: see the module.
///
/// # Panics
/// On a programmer's error: shapes that do not fit, a view that reaches outside its slice, another `beta`, a quantised
/// A, ggml blocks of impossible sizes.
pub fn gemm(pool: Option<&Pool>, alpha: f32, a: View<'_>, b: View<'_>, beta: f32, c: DstView<'_>) {
    gemm_with(Isa::best(), pool, alpha, a, b, beta, c);
}

/// [`gemm`] with the kernels of a given instruction set.
///
/// # Panics
/// As [`gemm`], and if this machine lacks `isa`.
pub fn gemm_with(isa: Isa, pool: Option<&Pool>, alpha: f32, a: View<'_>, b: View<'_>, beta: f32, mut c: DstView<'_>) {
    assert!(isa.is_available(), "gemm: this machine has no {isa}");
    check(&a, &b, &c, beta);
    if c.rows == 0 || c.cols == 0 {
        return;
    }
    let is_f64 = matches!(a.src, Src::F64(_)) || matches!(b.src, Src::F64(_)) || matches!(c.dst, Dst::F64(_));
    if is_f64 {
        return f64::gemm(pool, alpha, &a, &b, beta, &mut c);
    }
    let both_bf16 = matches!((&a.src, &b.src), (Src::Bf16(_), Src::Bf16(_) | Src::Nf4(_) | Src::Ggml(_)));
    let mut b = b;
    match &mut b.src {
        // The same values where bf16 is widened.
        Src::Nf4(q) if both_bf16 => q.round_bf16 = true,
        Src::Ggml(q) if both_bf16 => q.round_bf16 = true,
        _ => {}
    }
    let args = drive::Args { pool, alpha, a: &a, b: &b, accumulate: beta != 0.0, c: &mut c };
    match isa {
        #[cfg(target_arch = "x86_64")]
        Isa::Amx if both_bf16 => drive::run::<amx::Amx>(args),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx512Bf16 if both_bf16 => drive::run::<avx512bf16::Avx512Bf16>(args),
        #[cfg(target_arch = "x86_64")]
        Isa::Amx | Isa::Avx512Bf16 | Isa::Avx512 => drive::run::<avx512::Avx512>(args),
        #[cfg(target_arch = "x86_64")]
        Isa::Avx2 => drive::run::<avx2::Avx2>(args),
        _ => {
            let _ = both_bf16;
            drive::run::<portable::Portable>(args);
        }
    }
}

/// One past the largest index that a (rows, cols) view with these strides touches; `None` if that overflows.
fn extent(rows: usize, cols: usize, row_stride: usize, col_stride: usize) -> Option<usize> {
    if rows == 0 || cols == 0 {
        return Some(0);
    }
    let i = (rows - 1).checked_mul(row_stride)?;
    let j = (cols - 1).checked_mul(col_stride)?;
    i.checked_add(j)?.checked_add(1)
}

/// Everything the unsafe code below relies on.
fn check(a: &View<'_>, b: &View<'_>, c: &DstView<'_>, beta: f32) {
    assert!(
        a.rows == c.rows && b.cols == c.cols && a.cols == b.rows,
        "gemm: A ({}, {}) times B ({}, {}) is not C ({}, {})",
        a.rows,
        a.cols,
        b.rows,
        b.cols,
        c.rows,
        c.cols
    );
    assert!(beta == 0.0 || beta == 1.0, "gemm: beta must be 0 or 1, got {beta}");
    for (name, v) in [("A", a), ("B", b)] {
        let len = match &v.src {
            Src::F64(x) => x.len(),
            Src::F32(x) => x.len(),
            Src::Bf16(x) => x.len(),
            Src::Nf4(x) => x.len(),
            Src::Ggml(x) => {
                x.check();
                x.len()
            }
        };
        let end = extent(v.rows, v.cols, v.row_stride, v.col_stride);
        assert!(end.is_some_and(|e| e <= len), "gemm: the view {name} reaches to {end:?} of {len} elements");
    }
    assert!(!matches!(a.src, Src::Nf4(_) | Src::Ggml(_)), "gemm: quantised matrices are taken as B only");
    let len = match &c.dst {
        Dst::F64(x) => x.len(),
        Dst::F32(x) => x.len(),
        Dst::Bf16(x) => x.len(),
    };
    let end = extent(c.rows, c.cols, c.row_stride, 1);
    assert!(end.is_some_and(|e| e <= len), "gemm: the view C reaches to {end:?} of {len} elements");
    assert!(c.rows <= 1 || c.row_stride >= c.cols, "gemm: rows of C overlap");
}
