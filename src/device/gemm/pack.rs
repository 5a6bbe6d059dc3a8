//! Operands into the order in which the micro-kernels read them.
//!
//! A micro-panel: up to MR rows, each `A_STRIDE` elements from the next, k ascending.
//! B panels: NR columns wide (the last one NR / 2 where that suffices); within a panel k by k, and for bf16 two k at a
//! time, the pair of each column side by side: out[(k / PAIR) * PAIR * width + PAIR * j + k % PAIR].
//! Both are filled up with zeros: in k to a multiple of `K_STEP`, B in columns to the panel's width. Rows of A beyond
//! the last are not touched: they only reach rows of the tile that are never stored.

use super::drive::Family;
use super::ggml::FromBlocks;
use super::nf4::Expand;
use super::{Src, View};
use crate::device::simd::wide;
use half::bf16;

/// What the packing steps may use.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Simd {
    Plain,
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// And its bf16 conversions.
    Avx512Bf16,
}

/// A number type that kernels read.
pub(super) trait Elem: Copy + Default + Expand + FromBlocks + 'static {
    /// How many k stand side by side in a B panel.
    const PAIR: usize;
    /// The elements themselves, where the source has this type.
    fn direct(src: &Src<'_>) -> Option<*const Self>;
    /// Elements start, start + step, ... of a source, converted, into `out`.
    fn fetch(src: &Src<'_>, start: usize, step: usize, out: &mut [Self], simd: Simd);
}

impl Elem for f32 {
    const PAIR: usize = 1;
    fn direct(src: &Src<'_>) -> Option<*const f32> {
        if let Src::F32(x) = src { Some(x.as_ptr()) } else { None }
    }
    fn fetch(src: &Src<'_>, start: usize, step: usize, out: &mut [f32], simd: Simd) {
        match src {
            Src::F32(x) => copy(x, start, step, out),
            Src::Bf16(x) if step == 1 => {
                let x = &x[start..start + out.len()];
                #[cfg(target_arch = "x86_64")]
                if simd >= Simd::Avx512 {
                    // SAFETY: both slices have this length; the families that say so have AVX-512.
                    return unsafe { super::x86::widen(x.as_ptr(), x.len(), out.as_mut_ptr()) };
                }
                wide!(out.iter_mut().zip(x).for_each(|(o, v)| *o = f32::from_bits(u32::from(v.to_bits()) << 16)));
            }
            Src::Bf16(x) => {
                for (o, v) in out.iter_mut().zip(x[start..].iter().step_by(step.max(1))) {
                    *o = v.to_f32();
                }
            }
            Src::Nf4(q) => fetch_nf4(q, start, step, out, simd),
            Src::Ggml(q) => fetch_ggml(q, start, step, out, simd),
            Src::F64(_) => unreachable!("f64 has its own path"),
        }
    }
}

impl Elem for bf16 {
    const PAIR: usize = 2;
    fn direct(src: &Src<'_>) -> Option<*const bf16> {
        if let Src::Bf16(x) = src { Some(x.as_ptr()) } else { None }
    }
    fn fetch(src: &Src<'_>, start: usize, step: usize, out: &mut [bf16], simd: Simd) {
        match src {
            Src::Bf16(x) => copy(x, start, step, out),
            Src::Nf4(q) => fetch_nf4(q, start, step, out, simd),
            Src::Ggml(q) => fetch_ggml(q, start, step, out, simd),
            Src::F32(_) | Src::F64(_) => unreachable!("bf16 kernels get bf16 and quantised matrices only"),
        }
    }
}

fn copy<T: Copy>(x: &[T], start: usize, step: usize, out: &mut [T]) {
    match step {
        0 => out.fill(x[start]),
        1 => out.copy_from_slice(&x[start..start + out.len()]),
        _ => {
            for (o, v) in out.iter_mut().zip(x[start..].iter().step_by(step)) {
                *o = *v;
            }
        }
    }
}

fn fetch_nf4<T: Expand>(q: &super::Nf4Ref<'_>, start: usize, step: usize, out: &mut [T], simd: Simd) {
    if step == 1 {
        return q.expand(start, out, simd);
    }
    for (i, o) in out.iter_mut().enumerate() {
        *o = T::of(q.get(start + i * step));
    }
}

fn fetch_ggml<T: FromBlocks>(q: &super::GgmlRef<'_>, start: usize, step: usize, out: &mut [T], simd: Simd) {
    if step == 1 {
        return q.expand(start, out, simd);
    }
    for (i, o) in out.iter_mut().enumerate() {
        q.expand(start + i * step, std::slice::from_mut(o), simd);
    }
}

/// Elements that [`pack_b`] needs as working room for `cols` columns.
pub(super) fn lines_room<F: Family>(cols: usize) -> usize {
    (F::NR * (F::KC + LINE_PAD)).max(F::Elem::PAIR * cols)
}

/// Keeps lines of a power-of-two length off the same cache sets.
pub(super) const LINE_PAD: usize = 32;

/// Packs B[k0 .. k0 + kc, j0 .. j0 + cols]; kc <= KC.
///
/// # Safety
/// The view was checked; `out` has room for round_up(kc, K_STEP) * round_up(cols, NR) elements, `lines` for
/// [`lines_room`], both initialised.
pub(super) unsafe fn pack_b<F: Family>(
    b: &View<'_>,
    k0: usize,
    kc: usize,
    j0: usize,
    cols: usize,
    out: *mut F::Elem,
    lines: *mut F::Elem,
) {
    let direct = F::Elem::direct(&b.src);
    let kp = kc.next_multiple_of(F::K_STEP);
    let pair = F::Elem::PAIR;
    let panels = (0..cols).step_by(F::NR).map(|j| {
        let n = (cols - j).min(F::NR);
        (j, n, if n <= F::NR / 2 { F::NR / 2 } else { F::NR })
    });
    if b.col_stride == 1 && b.row_stride != 1 {
        // Columns side by side: take `pair` rows at a time and deal them out to the panels.
        for k in (0..kp).step_by(pair) {
            let mut rows = [std::ptr::null(); 2];
            for (r, row) in rows.iter_mut().enumerate().take(pair) {
                if k + r >= kc {
                    continue; // stays null: zeros
                }
                let start = (k0 + k + r) * b.row_stride + j0;
                *row = match direct {
                    // SAFETY: start is within the checked view.
                    Some(p) => unsafe { p.add(start) },
                    None => {
                        // SAFETY: `lines` has room for `pair` rows of `cols`.
                        let line = unsafe { std::slice::from_raw_parts_mut(lines.add(r * cols), cols) };
                        F::Elem::fetch(&b.src, start, 1, line, F::SIMD);
                        line.as_ptr()
                    }
                };
            }
            for (j, n, width) in panels.clone() {
                // SAFETY: the rows hold `cols` elements, and row k of this panel lies inside `out`.
                unsafe {
                    let at = |p: *const F::Elem| if p.is_null() { p } else { p.add(j) };
                    F::put_rows([at(rows[0]), at(rows[1])], n, width, out.add(j * kp + k * width));
                }
            }
        }
        return;
    }
    // k side by side (or neither, which is fetched into lines first): transpose a panel at a time.
    for (j, n, width) in panels {
        // SAFETY: panel j of `out`; see `put_lines`.
        let panel = unsafe { out.add(j * kp) };
        let start = k0 * b.row_stride + (j0 + j) * b.col_stride;
        let (base, stride) = match direct {
            // SAFETY: within the checked view.
            Some(p) if b.row_stride == 1 => (unsafe { p.add(start) }, b.col_stride),
            _ => {
                let stride = F::KC + LINE_PAD;
                for i in 0..n {
                    // SAFETY: n <= NR lines of kc <= KC elements.
                    let line = unsafe { std::slice::from_raw_parts_mut(lines.add(i * stride), kc) };
                    F::Elem::fetch(&b.src, start + i * b.col_stride, b.row_stride, line, F::SIMD);
                }
                (lines.cast_const(), stride)
            }
        };
        // SAFETY: n lines of kc elements each; the panel has kp * width elements.
        unsafe {
            F::put_lines(base, stride, n, kc, width, panel);
            let end = kc.next_multiple_of(pair) * width;
            std::slice::from_raw_parts_mut(panel.add(end), kp * width - end).fill(F::Elem::default());
        }
    }
}

/// Packs A[i0 .. i0 + rows, k0 .. k0 + kc]; rows <= MR, kc <= KC.
///
/// # Safety
/// The view was checked; `out` has room for MR rows of `A_STRIDE` elements.
pub(super) unsafe fn pack_a<F: Family>(a: &View<'_>, i0: usize, rows: usize, k0: usize, kc: usize, out: *mut F::Elem) {
    let kp = kc.next_multiple_of(F::K_STEP);
    let start = i0 * a.row_stride + k0 * a.col_stride;
    if a.row_stride == 1
        && a.col_stride != 1
        && let Some(p) = F::Elem::direct(&a.src)
    {
        // SAFETY: kc lines of `rows` elements within the checked view.
        unsafe { F::put_transposed(p.add(start), a.col_stride, kc, rows, out) };
        return;
    }
    for i in 0..rows {
        // SAFETY: row i < MR of `out`, kp <= A_STRIDE elements.
        let row = unsafe { std::slice::from_raw_parts_mut(out.add(i * F::A_STRIDE), kp) };
        let (row, pad) = row.split_at_mut(kc);
        F::Elem::fetch(&a.src, start + i * a.row_stride, a.col_stride, row, F::SIMD);
        pad.fill(F::Elem::default());
    }
}

/// Plain versions of a family's packing steps.
pub(super) mod plain {
    use super::Elem;

    /// # Safety
    /// As [`super::Family::put_rows`].
    pub(in super::super) unsafe fn put_rows<T: Elem>(rows: [*const T; 2], n: usize, width: usize, out: *mut T) {
        for (r, row) in rows.into_iter().enumerate().take(T::PAIR) {
            for j in 0..width {
                // SAFETY: j < n is readable in a row that is not null; `width` groups of PAIR are writable.
                unsafe {
                    let v = if j < n && !row.is_null() { *row.add(j) } else { T::default() };
                    *out.add(T::PAIR * j + r) = v;
                }
            }
        }
    }

    /// # Safety
    /// As [`super::Family::put_lines`].
    pub(in super::super) unsafe fn put_lines<T: Elem>(
        src: *const T,
        stride: usize,
        n: usize,
        kc: usize,
        width: usize,
        out: *mut T,
    ) {
        for k in 0..kc.next_multiple_of(T::PAIR) {
            let row = k / T::PAIR * T::PAIR * width + k % T::PAIR;
            for j in 0..width {
                // SAFETY: element k of line j exists where tested; the row is inside the panel.
                unsafe {
                    let v = if j < n && k < kc { *src.add(j * stride + k) } else { T::default() };
                    *out.add(row + T::PAIR * j) = v;
                }
            }
        }
    }

    /// # Safety
    /// As [`super::Family::put_transposed`].
    pub(in super::super) unsafe fn put_transposed<T: Elem>(
        src: *const T,
        stride: usize,
        kc: usize,
        kp: usize,
        rows: usize,
        out: *mut T,
        out_stride: usize,
    ) {
        for k in 0..kp {
            for i in 0..rows {
                // SAFETY: line k has `rows` elements where k < kc; out has `rows` rows of kp.
                unsafe {
                    let v = if k < kc { *src.add(k * stride + i) } else { T::default() };
                    *out.add(i * out_stride + k) = v;
                }
            }
        }
    }
}
