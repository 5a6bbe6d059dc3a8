//! Plain Rust kernel, left to the compiler's vectoriser. Multiplies and adds are not fused unless the target has the
//! instruction (a library call otherwise).

use super::drive::{Family, Tile};
use super::few::Few;
use super::pack::Simd;

pub(super) struct Portable;

const MR: usize = 4;
const NR: usize = 8;
const KC: usize = 256;
const A_STRIDE: usize = KC + 16;

impl Family for Portable {
    type Elem = f32;
    const MR: usize = MR;
    const NR: usize = NR;
    const KC: usize = KC;
    const K_STEP: usize = 1;
    const A_STRIDE: usize = A_STRIDE;
    const SIMD: Simd = Simd::Plain;
    const PIECE: usize = 512;
    const B_BYTES: usize = 256 << 10;
    const MACS_PER_CYCLE: usize = 4;
    const FEW: usize = 8;
    const LINES: usize = 8;

    unsafe fn tile(t: &Tile<f32>) {
        // SAFETY: the same contract.
        unsafe {
            if t.width == NR {
                tile::<NR>(t);
            } else {
                tile::<{ NR / 2 }>(t);
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

#[inline(always)]
fn mul_add(a: f32, b: f32, c: f32) -> f32 {
    if cfg!(any(target_feature = "fma", target_arch = "aarch64")) { a.mul_add(b, c) } else { a * b + c }
}

/// Always computes MR rows; those past `rows` read stale numbers and are dropped.
///
/// # Safety
/// As [`Family::tile`].
unsafe fn tile<const W: usize>(t: &Tile<f32>) {
    let mut acc = [[0.0f32; W]; MR];
    for k in 0..t.kc {
        // SAFETY: k < kc: inside the panels; a row of B has W elements, a panel of A MR rows of A_STRIDE.
        unsafe {
            let b = &*t.b.add(k * W).cast::<[f32; W]>();
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = *t.a.add(i * A_STRIDE + k);
                for j in 0..W {
                    acc[j] = mul_add(a, b[j], acc[j]);
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate().take(t.rows) {
        // SAFETY: row i < rows of C, `cols` <= W elements.
        let c = unsafe { std::slice::from_raw_parts_mut(t.c.add(i * t.ldc), t.cols) };
        for (c, s) in c.iter_mut().zip(acc) {
            *c = if t.accumulate { mul_add(t.alpha, *s, *c) } else { t.alpha * s };
        }
    }
}

/// R rows, 8 lines, k by k.
///
/// # Safety
/// As [`Family::few`]; t.rows == R.
unsafe fn few<const R: usize>(t: &Few<f32>) {
    let mut acc = [[0.0f32; NR]; R];
    for k in 0..t.kc {
        // SAFETY: element k of 8 lines and of R rows of A.
        unsafe {
            let y: [f32; NR] = std::array::from_fn(|j| *t.lines.add(j * t.stride + k));
            for (i, acc) in acc.iter_mut().enumerate() {
                let a = *t.a.add(i * A_STRIDE + k);
                for j in 0..NR {
                    acc[j] = mul_add(a, y[j], acc[j]);
                }
            }
        }
    }
    for (i, acc) in acc.iter().enumerate() {
        // SAFETY: row i of the sums.
        let c = unsafe { &mut *t.sums.add(NR * i).cast::<[f32; NR]>() };
        for (c, s) in c.iter_mut().zip(acc) {
            *c = if t.accumulate { mul_add(t.alpha, *s, *c) } else { t.alpha * s };
        }
    }
}
