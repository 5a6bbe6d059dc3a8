//! AVX2 + FMA kernel: f32, 6 x 16 tiles (12 of 16 registers hold sums).

use super::drive::{Family, Tile};
use super::few::{Few, STREAMS};
use super::pack::Simd;
use std::arch::x86_64::*;

pub(super) struct Avx2;

const MR: usize = 6;
const KC: usize = 256;
const A_STRIDE: usize = KC + 16;

impl Family for Avx2 {
    type Elem = f32;
    const MR: usize = MR;
    const NR: usize = 16;
    const KC: usize = KC;
    const K_STEP: usize = 1;
    const A_STRIDE: usize = A_STRIDE;
    const SIMD: Simd = Simd::Avx2;
    const PIECE: usize = 512;
    const B_BYTES: usize = 256 << 10;
    const MACS_PER_CYCLE: usize = 14;
    const FEW: usize = 8;
    const LINES: usize = 8;

    unsafe fn tile(t: &Tile<f32>) {
        // SAFETY: the same contract.
        unsafe {
            match (t.rows, t.width) {
                (1, 16) => tile::<1, 2>(t),
                (2, 16) => tile::<2, 2>(t),
                (3, 16) => tile::<3, 2>(t),
                (4, 16) => tile::<4, 2>(t),
                (5, 16) => tile::<5, 2>(t),
                (_, 16) => tile::<6, 2>(t),
                (1, _) => tile::<1, 1>(t),
                (2, _) => tile::<2, 1>(t),
                (3, _) => tile::<3, 1>(t),
                (4, _) => tile::<4, 1>(t),
                (5, _) => tile::<5, 1>(t),
                _ => tile::<6, 1>(t),
            }
        }
    }

    unsafe fn few(t: &Few<f32>) {
        // SAFETY: the same contract.
        unsafe {
            match t.rows {
                1 => few::<1>(t),
                2 => few::<2>(t),
                3 => few::<3>(t),
                4 => few::<4>(t),
                5 => few::<5>(t),
                6 => few::<6>(t),
                7 => few::<7>(t),
                _ => few::<8>(t),
            }
        }
    }
}

/// Lanes j < n set.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn mask(n: usize) -> __m256i {
    _mm256_cmpgt_epi32(_mm256_set1_epi32(n.min(8) as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7))
}

/// R rows, V vectors of 8 columns.
///
/// # Safety
/// As [`Family::tile`]; t.rows == R, t.width == 8 * V.
#[target_feature(enable = "avx2,fma")]
unsafe fn tile<const R: usize, const V: usize>(t: &Tile<f32>) {
    let mut acc = [[_mm256_setzero_ps(); V]; R];
    let (mut a, mut b) = (t.a, t.b);
    for _ in 0..t.kc {
        // SAFETY: one k of each panel; the pointers end one past the panels' last k.
        unsafe {
            let mut y = [_mm256_setzero_ps(); V];
            for v in 0..V {
                y[v] = _mm256_loadu_ps(b.add(8 * v));
            }
            for i in 0..R {
                let x = _mm256_set1_ps(*a.add(i * A_STRIDE));
                for v in 0..V {
                    acc[i][v] = _mm256_fmadd_ps(x, y[v], acc[i][v]);
                }
            }
            a = a.add(1);
            b = b.add(8 * V);
        }
    }
    let alpha = _mm256_set1_ps(t.alpha);
    for i in 0..R {
        for v in 0..V {
            let m = mask(t.cols.saturating_sub(8 * v));
            // SAFETY: masked to the tile's columns.
            unsafe {
                let c = t.c.add(i * t.ldc).wrapping_add(8 * v);
                let r = if t.accumulate {
                    _mm256_fmadd_ps(alpha, acc[i][v], _mm256_maskload_ps(c, m))
                } else {
                    _mm256_mul_ps(alpha, acc[i][v])
                };
                _mm256_maskstore_ps(c, m, r);
            }
        }
    }
}

/// Transposes 8 x 8.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn transpose8(r: [__m256; 8]) -> [__m256; 8] {
    let zero = _mm256_setzero_ps();
    // Within each 128-bit lane, a 4 x 4 transpose of rows 4g..4g+4: q[4g + c] lane l = column 4l + c of those rows.
    let mut q = [zero; 8];
    for g in 0..2 {
        let t0 = _mm256_unpacklo_ps(r[4 * g], r[4 * g + 1]);
        let t1 = _mm256_unpackhi_ps(r[4 * g], r[4 * g + 1]);
        let t2 = _mm256_unpacklo_ps(r[4 * g + 2], r[4 * g + 3]);
        let t3 = _mm256_unpackhi_ps(r[4 * g + 2], r[4 * g + 3]);
        q[4 * g] = _mm256_shuffle_ps::<0x44>(t0, t2);
        q[4 * g + 1] = _mm256_shuffle_ps::<0xee>(t0, t2);
        q[4 * g + 2] = _mm256_shuffle_ps::<0x44>(t1, t3);
        q[4 * g + 3] = _mm256_shuffle_ps::<0xee>(t1, t3);
    }
    // Then a 2 x 2 transpose of whole lanes.
    let mut out = [zero; 8];
    for c in 0..4 {
        out[c] = _mm256_permute2f128_ps::<0x20>(q[c], q[4 + c]);
        out[4 + c] = _mm256_permute2f128_ps::<0x31>(q[c], q[4 + c]);
    }
    out
}

/// R rows, 8 lines: 8 k of each line are transposed in registers and multiplied.
///
/// # Safety
/// As [`Family::few`]; t.rows == R.
#[target_feature(enable = "avx2,fma")]
unsafe fn few<const R: usize>(t: &Few<f32>) {
    let mut acc = [_mm256_setzero_ps(); R];
    let (mut a, mut lines, mut ahead) = (t.a, t.lines, t.ahead);
    for k in (0..t.kc).step_by(8) {
        let n = (t.kc - k).min(8);
        let mut r = [_mm256_setzero_ps(); 8];
        // SAFETY: n elements of each of 8 lines and of each row of A.
        unsafe {
            for i in 0..8 {
                let p = lines.wrapping_add(i * t.stride);
                r[i] = if n == 8 { _mm256_loadu_ps(p) } else { _mm256_maskload_ps(p, mask(n)) };
            }
            let y = transpose8(r);
            // 32 bytes of each run: a line of memory every second time.
            if k % 16 == 0 {
                for i in 0..STREAMS {
                    _mm_prefetch::<_MM_HINT_T1>(ahead.wrapping_add(i * t.ahead_stride).cast());
                }
                ahead = ahead.wrapping_add(64);
            }
            for e in 0..8 {
                if e < n {
                    for i in 0..R {
                        acc[i] = _mm256_fmadd_ps(_mm256_set1_ps(*a.add(i * A_STRIDE + e)), y[e], acc[i]);
                    }
                }
            }
        }
        a = a.wrapping_add(8);
        lines = lines.wrapping_add(8);
    }
    let alpha = _mm256_set1_ps(t.alpha);
    for i in 0..R {
        // SAFETY: row i of the sums, 8 of them.
        unsafe {
            let c = t.sums.add(8 * i);
            let r = if t.accumulate {
                _mm256_fmadd_ps(alpha, acc[i], _mm256_loadu_ps(c))
            } else {
                _mm256_mul_ps(alpha, acc[i])
            };
            _mm256_storeu_ps(c, r);
        }
    }
}

/// Rounds to bf16, to nearest even, kept as f32; NaN stays a (quiet) NaN.
#[inline]
#[target_feature(enable = "avx2,fma")]
fn round(v: __m256) -> __m256 {
    let bits = _mm256_castps_si256(v);
    let odd = _mm256_and_si256(_mm256_srli_epi32::<16>(bits), _mm256_set1_epi32(1));
    let up = _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
    let quiet = _mm256_or_si256(bits, _mm256_set1_epi32(0x0040_0000));
    let nan = _mm256_cmp_ps::<_CMP_UNORD_Q>(v, v);
    let r = _mm256_blendv_ps(_mm256_castsi256_ps(up), _mm256_castsi256_ps(quiet), nan);
    _mm256_and_ps(r, _mm256_castsi256_ps(_mm256_set1_epi32(0xffff_0000u32 as i32)))
}

/// One NF4 block, through bf16 if `round_bf16`: each nibble is looked up in both halves of the table.
///
/// # Safety
/// 32 bytes readable, 64 elements writable.
#[target_feature(enable = "avx2,fma")]
pub(super) unsafe fn nf4_block(code: &[f32; 16], absmax: f32, round_bf16: bool, bytes: *const u8, out: *mut f32) {
    // SAFETY: 16 f32; the contract for `bytes` and `out`.
    unsafe {
        let half = |i: usize| {
            let v = _mm256_mul_ps(_mm256_loadu_ps(code.as_ptr().add(8 * i)), _mm256_set1_ps(absmax));
            if round_bf16 { round(v) } else { v }
        };
        let (low, high) = (half(0), half(1));
        for i in 0..8 {
            // Four bytes as 64-bit lanes, each spread to its two nibbles.
            let b = _mm256_cvtepu8_epi64(_mm_cvtsi32_si128(bytes.add(4 * i).cast::<i32>().read_unaligned()));
            let index = _mm256_or_si256(_mm256_srli_epi64::<4>(b), _mm256_slli_epi64::<32>(b));
            // vpermps reads three bits of an index, the blend the sign: bit 3 of the nibble.
            let (x, y) = (_mm256_permutevar8x32_ps(low, index), _mm256_permutevar8x32_ps(high, index));
            let bit3 = _mm256_castsi256_ps(_mm256_slli_epi32::<28>(index));
            _mm256_storeu_ps(out.add(8 * i), _mm256_blendv_ps(x, y, bit3));
        }
    }
}
