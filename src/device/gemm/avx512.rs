//! AVX-512 kernel: f32, 14 x 32 tiles (28 of 32 registers hold sums).

use super::drive::{Family, Tile};
use super::few::Few;
use super::pack::Simd;
use super::x86;
use half::bf16;
use std::arch::x86_64::*;

pub(super) struct Avx512;

const MR: usize = 14;
const KC: usize = 256;
const A_STRIDE: usize = KC + 16;

/// `match` over the number of rows and the panel's width, to a kernel of exactly that size.
macro_rules! by_size {
    ($tile:ident, $t:expr, [$($r:literal)*]) => {
        match ($t.rows, $t.width) {
            $(($r, 32) => $tile::<$r, 2>($t), ($r, _) => $tile::<$r, 1>($t),)*
            _ => unreachable!("a tile has 1 to 14 rows"),
        }
    };
}
pub(super) use by_size;

/// `match` over the number of rows alone.
macro_rules! by_rows {
    ($few:ident, $t:expr, [$($r:literal)*]) => {
        match $t.rows {
            $($r => $few::<$r>($t),)*
            _ => unreachable!("more rows than FEW"),
        }
    };
}
pub(super) use by_rows;

impl Family for Avx512 {
    type Elem = f32;
    const MR: usize = MR;
    const NR: usize = 32;
    const KC: usize = KC;
    const K_STEP: usize = 1;
    const A_STRIDE: usize = A_STRIDE;
    const SIMD: Simd = Simd::Avx512;
    const PIECE: usize = 512;
    const B_BYTES: usize = 768 << 10;
    const MACS_PER_CYCLE: usize = 28;
    const FEW: usize = 8;
    const LINES: usize = 16;

    unsafe fn tile(t: &Tile<f32>) {
        // SAFETY: the same contract.
        unsafe { by_size!(tile, t, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]) }
    }

    unsafe fn few(t: &Few<f32>) {
        // SAFETY: the same contract.
        unsafe { by_rows!(few, t, [1 2 3 4 5 6 7 8]) }
    }

    unsafe fn put_rows(rows: [*const f32; 2], n: usize, width: usize, out: *mut f32) {
        // SAFETY: the same contract.
        unsafe { x86::copy_row(rows[0], n, width, out) }
    }

    unsafe fn put_lines(src: *const f32, stride: usize, n: usize, kc: usize, width: usize, out: *mut f32) {
        for g in (0..width).step_by(16) {
            let lines = n.saturating_sub(g).min(16);
            let src = src.wrapping_add(g * stride).cast();
            // SAFETY: `lines` lines of kc; kc rows of 16 at column g.
            unsafe { x86::transpose_lines(src, 4 * stride, lines, 2 * kc, out.add(g).cast(), 4 * width) };
        }
    }

    unsafe fn put_transposed(src: *const f32, stride: usize, kc: usize, rows: usize, out: *mut f32) {
        // 16 k become 16 lanes of each row: rows are written in whole vectors, within A_STRIDE = KC + 16.
        for k in (0..kc).step_by(16) {
            let lines = (kc - k).min(16);
            let src = src.wrapping_add(k * stride).cast();
            // SAFETY: lines of `rows` elements; `rows` rows of 16 at k.
            unsafe { x86::transpose_lines(src, 4 * stride, lines, 2 * rows, out.add(k).cast(), 4 * A_STRIDE) };
        }
    }

    fn round(src: &[f32], out: &mut [bf16]) {
        // SAFETY: this family runs on AVX-512 machines only; both have this length.
        unsafe { x86::round(src.as_ptr(), src.len().min(out.len()), out.as_mut_ptr()) }
    }
}

/// R rows, V vectors of 16 columns.
///
/// # Safety
/// As [`Family::tile`]; t.rows == R, t.width == 16 * V.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn tile<const R: usize, const V: usize>(t: &Tile<f32>) {
    fetch_c(t);
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.kc {
        // SAFETY: one k of each panel; the pointers end one past the panels' last k.
        unsafe {
            let mut y = [_mm512_setzero_ps(); V];
            for v in 0..V {
                y[v] = _mm512_loadu_ps(b.add(16 * v));
            }
            for i in 0..R {
                let x = _mm512_set1_ps(*a.add(i * A_STRIDE));
                for v in 0..V {
                    acc[i][v] = _mm512_fmadd_ps(x, y[v], acc[i][v]);
                }
            }
            a = a.add(1);
            b = b.add(16 * V);
        }
    }
    // SAFETY: R rows of C.
    unsafe { store(t, &acc) }
}

/// Brings the tile of C near while its sums are computed (a hint: it cannot fault).
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fetch_c<T>(t: &Tile<T>) {
    for i in 0..t.rows {
        let row = t.c.wrapping_add(i * t.ldc);
        _mm_prefetch::<_MM_HINT_T0>(row.cast());
        _mm_prefetch::<_MM_HINT_T0>(row.wrapping_add(t.cols - 1).cast());
    }
}

/// C gets alpha * acc, added to what is there if asked.
///
/// # Safety
/// As [`Family::tile`].
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn store<T, const R: usize, const V: usize>(t: &Tile<T>, acc: &[[__m512; V]; R]) {
    let alpha = _mm512_set1_ps(t.alpha);
    for i in 0..R {
        for v in 0..V {
            let n = t.cols.saturating_sub(16 * v);
            let m = if n >= 16 { u16::MAX } else { (1u16 << n) - 1 };
            // SAFETY: masked to the tile's columns.
            unsafe {
                let c = t.c.add(i * t.ldc).wrapping_add(16 * v);
                let r = if t.accumulate {
                    _mm512_fmadd_ps(alpha, acc[i][v], _mm512_maskz_loadu_ps(m, c))
                } else {
                    _mm512_mul_ps(alpha, acc[i][v])
                };
                _mm512_mask_storeu_ps(c, m, r);
            }
        }
    }
}

/// R rows, 16 lines: 16 k of each line are transposed in registers and multiplied.
///
/// # Safety
/// As [`Family::few`]; t.rows == R.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
unsafe fn few<const R: usize>(t: &Few<f32>) {
    let mut acc = [_mm512_setzero_ps(); R];
    let (mut a, mut lines, mut ahead) = (t.a, t.lines.cast::<u8>(), t.ahead);
    for k in (0..t.kc).step_by(16) {
        let n = (t.kc - k).min(16);
        // SAFETY: n elements of each of 16 lines and of each row of A.
        unsafe {
            let mut y = x86::transpose16(x86::load16(lines, 4 * t.stride, 2 * n));
            x86::fetch(ahead, t.ahead_stride);
            if R > x86::IN_REGISTERS {
                x86::to_memory(&mut y);
            }
            if n == 16 {
                x86::sixteen!(E, {
                    for i in 0..R {
                        let x = _mm512_set1_ps(*a.add(i * A_STRIDE + E));
                        acc[i] = _mm512_fmadd_ps(x, _mm512_castsi512_ps(y[E]), acc[i]);
                    }
                });
            } else {
                let tail = y;
                for e in 0..n {
                    for i in 0..R {
                        let x = _mm512_set1_ps(*a.add(i * A_STRIDE + e));
                        acc[i] = _mm512_fmadd_ps(x, _mm512_castsi512_ps(tail[e]), acc[i]);
                    }
                }
            }
            a = a.wrapping_add(16);
            lines = lines.wrapping_add(64);
            ahead = ahead.wrapping_add(128);
        }
    }
    // SAFETY: R rows of sums.
    unsafe { add_few(t, &acc) }
}

/// The sums of a group get alpha * acc, added to what is there if asked.
///
/// # Safety
/// As [`Family::few`]; R rows.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn add_few<T, const R: usize>(t: &Few<T>, acc: &[__m512; R]) {
    let alpha = _mm512_set1_ps(t.alpha);
    for i in 0..R {
        // SAFETY: row i of the sums, 16 of them.
        unsafe {
            let c = t.sums.add(16 * i);
            let r = if t.accumulate {
                _mm512_fmadd_ps(alpha, acc[i], _mm512_loadu_ps(c))
            } else {
                _mm512_mul_ps(alpha, acc[i])
            };
            _mm512_storeu_ps(c, r);
        }
    }
}
