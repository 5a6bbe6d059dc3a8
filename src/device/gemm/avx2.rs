//! AVX2 + FMA kernel: f32, 6 x 16 tiles (12 of 16 registers hold sums).

use super::drive::{Family, Tile};
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
    const AVX512: bool = false;
    const B_BYTES: usize = 256 << 10;
    const MACS_PER_CYCLE: usize = 14;

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
