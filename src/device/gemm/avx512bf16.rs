//! AVX512-BF16 kernel: bf16 pairs into f32, 14 x 32 tiles.
//!
//! `vdpbf16ps` adds the two products of a pair of k one after the other to the sum, each step rounded once to f32;
//! subnormal inputs and results count as zero.

use super::avx512::{add_few, by_rows, by_size, fetch_c, store};
use super::drive::{Family, Tile};
use super::few::Few;
use super::pack::Simd;
use super::x86;
use half::bf16;
use std::arch::x86_64::*;

pub(super) struct Avx512Bf16;

const MR: usize = 14;
const KC: usize = 512;
const A_STRIDE: usize = KC + 32;

impl Family for Avx512Bf16 {
    type Elem = bf16;
    const MR: usize = MR;
    const NR: usize = 32;
    const KC: usize = KC;
    const K_STEP: usize = 2;
    const A_STRIDE: usize = A_STRIDE;
    const SIMD: Simd = Simd::Avx512Bf16;
    const PIECE: usize = 1024;
    const B_BYTES: usize = 768 << 10;
    const MACS_PER_CYCLE: usize = 50;
    const FEW: usize = 8;
    const LINES: usize = 16;

    unsafe fn tile(t: &Tile<bf16>) {
        // SAFETY: the same contract.
        unsafe { by_size!(tile, t, [1 2 3 4 5 6 7 8 9 10 11 12 13 14]) }
    }

    unsafe fn few(t: &Few<bf16>) {
        // SAFETY: the same contract.
        unsafe { by_rows!(few, t, [1 2 3 4 5 6 7 8]) }
    }

    unsafe fn put_rows(rows: [*const bf16; 2], n: usize, width: usize, out: *mut bf16) {
        // SAFETY: the same contract.
        unsafe { x86::pair_rows(rows[0], rows[1], n, width, out) }
    }

    unsafe fn put_lines(src: *const bf16, stride: usize, n: usize, kc: usize, width: usize, out: *mut bf16) {
        // SAFETY: the same contract.
        unsafe { put_lines(src, stride, n, kc, width, out) }
    }

    unsafe fn put_transposed(src: *const bf16, stride: usize, kc: usize, rows: usize, out: *mut bf16) {
        // SAFETY: the same contract; rows are written in whole vectors, within A_STRIDE.
        unsafe { x86::transpose_rows_bf16(src, stride, kc, rows, out, A_STRIDE) }
    }

    fn round(src: &[f32], out: &mut [bf16]) {
        // SAFETY: this family runs on AVX-512 machines only; both have this length.
        unsafe { x86::round(src.as_ptr(), src.len().min(out.len()), out.as_mut_ptr()) }
    }
}

/// Pairs of k are 32-bit elements: transposed as such.
///
/// # Safety
/// As [`Family::put_lines`].
pub(super) unsafe fn put_lines(src: *const bf16, stride: usize, n: usize, kc: usize, width: usize, out: *mut bf16) {
    for g in (0..width).step_by(16) {
        let lines = n.saturating_sub(g).min(16);
        let src = src.wrapping_add(g * stride).cast();
        // SAFETY: `lines` lines of kc; rows of 16 pairs at column g.
        unsafe { x86::transpose_lines(src, 2 * stride, lines, kc, out.add(2 * g).cast(), 4 * width) };
    }
}

/// `sum` and the products of the pair at `a` with 16 pairs.
///
/// # Safety
/// A pair is readable at `a`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn step(sum: __m512, a: *const bf16, y: __m512i) -> __m512 {
    // SAFETY: the caller's; a vector of 16 pairs is 16 x 32 bits in either type.
    unsafe {
        let x = _mm512_set1_epi32(a.cast::<i32>().read_unaligned());
        _mm512_dpbf16_ps(sum, std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(y))
    }
}

/// R rows, V vectors of 16 columns.
///
/// # Safety
/// As [`Family::tile`]; t.rows == R, t.width == 16 * V.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn tile<const R: usize, const V: usize>(t: &Tile<bf16>) {
    fetch_c(t);
    let mut acc = [[_mm512_setzero_ps(); V]; R];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.kc / 2 {
        // SAFETY: one pair of k of each panel; the pointers end one past the panels' last. Rows of A are aligned to 64
        // bytes, so a pair is an aligned 32-bit element. A vector of 16 pairs is 16 x 32 bits in either type.
        unsafe {
            let mut y = [_mm512_setzero_si512(); V];
            for v in 0..V {
                y[v] = _mm512_loadu_si512(b.add(32 * v).cast());
            }
            for i in 0..R {
                let x = _mm512_set1_epi32(*a.add(i * A_STRIDE).cast::<i32>());
                for v in 0..V {
                    let (x, y) =
                        (std::mem::transmute::<__m512i, __m512bh>(x), std::mem::transmute::<__m512i, __m512bh>(y[v]));
                    acc[i][v] = _mm512_dpbf16_ps(acc[i][v], x, y);
                }
            }
            a = a.add(2);
            b = b.add(32 * V);
        }
    }
    // SAFETY: R rows of C.
    unsafe { store(t, &acc) }
}

/// R rows, 16 lines: 16 pairs of k of each line are transposed in registers and multiplied.
///
/// # Safety
/// As [`Family::few`]; t.rows == R.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
unsafe fn few<const R: usize>(t: &Few<bf16>) {
    let mut acc = [_mm512_setzero_ps(); R];
    let (mut a, mut lines, mut ahead) = (t.a, t.lines.cast::<u8>(), t.ahead);
    for k in (0..t.kc).step_by(32) {
        let n = (t.kc - k).min(32);
        // SAFETY: n elements (whole pairs) of each of 16 lines and of each row of A, whose pairs are aligned.
        unsafe {
            let mut y = x86::transpose16(x86::load16(lines, 2 * t.stride, n));
            x86::fetch(ahead, t.ahead_stride);
            if R > x86::IN_REGISTERS {
                x86::to_memory(&mut y);
            }
            if n == 32 {
                x86::sixteen!(E, {
                    for i in 0..R {
                        acc[i] = step(acc[i], a.add(i * A_STRIDE + 2 * E), y[E]);
                    }
                });
            } else {
                let tail = y;
                for e in 0..n / 2 {
                    for i in 0..R {
                        acc[i] = step(acc[i], a.add(i * A_STRIDE + 2 * e), tail[e]);
                    }
                }
            }
            a = a.wrapping_add(32);
            lines = lines.wrapping_add(64);
            ahead = ahead.wrapping_add(128);
        }
    }
    // SAFETY: R rows of sums.
    unsafe { add_few(t, &acc) }
}
