//! Products on kernels, for ops that are made of them: of dense bf16 matrices, and (in f16 as well) with an NF4 one. Formulas, rounding and what a row's bits depend on:
//! kernels/gemm.h.

use std::ffi::c_void;
use std::ptr;

use crate::device::{Launcher, abi};
use crate::error::Result;
use crate::ops::{Slot, bf16_only, group, size};
use crate::tensor::{DType, Tensor};

/// A matrix in device memory, bf16 or f16, row-major, `ld` elements from one row to the next.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub ptr: *const c_void,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
}

impl Operand {
    /// A whole tensor.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] unless it is bf16.
    pub fn of(what: &'static str, t: &Tensor) -> Result<Self> {
        bf16_only(what, t)?;
        Ok(Self::whole(t))
    }

    /// A whole tensor, for kernels of its dtype.
    pub fn whole(t: &Tensor) -> Self {
        Self { ptr: t.ptr(), rows: t.rows(), cols: t.cols(), ld: t.cols() }
    }

    /// A parameter.
    ///
    /// # Errors
    /// As [`Operand::of`].
    pub fn slot(what: &'static str, s: Slot) -> Result<Self> {
        bf16_only(what, s.tensor)?;
        Ok(Self { ptr: s.ptr(), rows: s.rows, cols: s.cols, ld: s.cols })
    }

    /// The rows from `start` on, `rows` of them.
    pub fn rows(self, start: usize, rows: usize) -> Self {
        debug_assert!(start + rows <= self.rows, "rows of an operand");
        Self { ptr: self.ptr.wrapping_byte_add(start * self.ld * 2), rows, ..self }
    }
}

/// Where a product goes: bf16, f16 or f32, row-major.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub ptr: *mut c_void,
    pub f32: bool,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
}

impl Out {
    /// A whole tensor, bf16 or f32.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for other dtypes.
    pub fn of(what: &'static str, t: &mut Tensor) -> Result<Self> {
        let f32 = t.dtype() == DType::F32;
        if !f32 {
            bf16_only(what, t)?;
        }
        Ok(Self { f32, ..Self::whole(t) })
    }

    /// A whole tensor, for kernels of its dtype.
    pub fn whole(t: &mut Tensor) -> Self {
        Self { ptr: t.ptr_mut(), f32: false, rows: t.rows(), cols: t.cols(), ld: t.cols() }
    }

    /// The gradient of a parameter in the flat f32 gradient.
    pub fn grad(s: Slot, grads: &mut Tensor) -> Self {
        Self { ptr: s.grad_ptr::<f32>(grads).cast(), f32: true, rows: s.rows, cols: s.cols, ld: s.cols }
    }

    /// The rows from `start` on, `rows` of them.
    pub fn rows(self, start: usize, rows: usize) -> Self {
        debug_assert!(start + rows <= self.rows, "rows of a result");
        let bytes = start * self.ld * if self.f32 { 4 } else { 2 };
        Self { ptr: self.ptr.wrapping_byte_add(bytes), rows, ..self }
    }
}

/// C (m, n) = alpha A B^T with A (m, k), B (n, k); C is added to with `accumulate`. Only the `live` first rows of A and C
/// are read and written (null: all).
///
/// # Errors
/// [`crate::Error::Kernel`] if the device refuses the launch.
pub(crate) fn nt(
    l: &Launcher,
    c: Out,
    a: Operand,
    b: Operand,
    alpha: f32,
    accumulate: bool,
    live: *const u32,
) -> Result<()> {
    debug_assert_eq!((a.rows, a.cols, b.rows), (c.rows, b.cols, c.cols), "nt");
    group::nt(l, &[params(c, a, b, c.rows, a.cols, alpha, accumulate, live)?])
}

/// C (m, n) = alpha A B with A (m, k), B (k, n); as [`nt`] otherwise.
///
/// # Errors
/// As [`nt`].
pub(crate) fn nn(
    l: &Launcher,
    c: Out,
    a: Operand,
    b: Operand,
    alpha: f32,
    accumulate: bool,
    live: *const u32,
) -> Result<()> {
    debug_assert_eq!((a.rows, a.cols, b.cols), (c.rows, b.rows, c.cols), "nn");
    group::nn(l, &[params(c, a, b, c.rows, a.cols, alpha, accumulate, live)?])
}

/// C (m, n) f32 += alpha A^T B with A (rows, m), B (rows, n), summed over the `live` first rows (null: all). `scratch` is
/// f32 memory of [`tn_scratch`] elements.
///
/// # Errors
/// As [`nt`].
pub(crate) fn tn(
    l: &Launcher,
    c: Out,
    a: Operand,
    b: Operand,
    alpha: f32,
    live: *const u32,
    scratch: Option<&mut Tensor>,
) -> Result<()> {
    debug_assert_eq!((a.cols, a.rows, b.cols, c.f32), (c.rows, b.rows, c.cols, true), "tn");
    group::tn(l, &[params(c, a, b, c.rows, a.rows, alpha, true, live)?], scratch)
}

/// Rows that one block sums where a product is split over rows. Fixed, so that the bits depend on the rows alone.
pub(crate) const SPLIT: usize = 512;

/// Results up to this side are too few tiles to fill a GPU, so their rows are split.
const THIN: usize = 64;

/// Elements of f32 scratch that [`tn`] needs for a result (m, n) summed over `rows`; 0: none. Whole packs of four, so that
/// what lies behind is aligned as well.
pub(crate) fn tn_scratch(m: usize, n: usize, rows: usize) -> usize {
    if m.min(n) > THIN || rows <= SPLIT { 0 } else { (rows.div_ceil(SPLIT) * m * n).next_multiple_of(4) }
}

/// The parameters of C = alpha A B (+ C), with nothing else added.
///
/// # Errors
/// [`crate::Error::Shape`] if a size does not fit into its field.
#[allow(clippy::too_many_arguments)] // the operands of a product
pub(crate) fn params(
    c: Out,
    a: Operand,
    b: Operand,
    m: usize,
    k: usize,
    alpha: f32,
    accumulate: bool,
    live: *const u32,
) -> Result<abi::Gemm> {
    // Kernels count rows, columns and row lengths in 32 bits, and may look a tile further.
    for n in [m, k, c.cols, a.ld, b.ld, c.ld] {
        size::<i32>("rows and columns", n.saturating_add(abi::GEMM_128_M as usize))?;
    }
    let ldc = size("row length", c.ld)?;
    Ok(abi::Gemm {
        c: c.ptr,
        a: a.ptr,
        b: b.ptr,
        a2: ptr::null(),
        b2: ptr::null(),
        bias: ptr::null(),
        add: if accumulate && !c.f32 { c.ptr.cast_const() } else { ptr::null() },
        partial: ptr::null_mut(),
        live,
        step: ptr::null(),
        m: size("rows", m)?,
        n: size("columns", c.cols)?,
        k: size("columns", k)?,
        lda: size("row length", a.ld)?,
        ldb: size("row length", b.ld)?,
        ldc,
        ldadd: ldc,
        lda2: 0,
        ldb2: 0,
        split: 0,
        k2: 0,
        alpha,
        c_f32: i32::from(c.f32),
        accumulate: i32::from(accumulate && c.f32),
        dropout: abi::GEMM_DROP_NONE as i32,
        module: 0,
        drop_below: 0,
        keep: 1.0,
    })
}

/// The second pair of a product: `c` gains A2 B2 (B2 transposed in `nt`).
///
/// # Errors
/// [`crate::Error::Shape`] if a size does not fit into its field.
pub(crate) fn with_second(p: abi::Gemm, a2: Operand, b2: Operand) -> Result<abi::Gemm> {
    Ok(abi::Gemm {
        a2: a2.ptr,
        b2: b2.ptr,
        lda2: size("row length", a2.ld)?,
        ldb2: size("row length", b2.ld)?,
        k2: size("columns", a2.cols)?,
        ..p
    })
}
