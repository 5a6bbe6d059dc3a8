//! Plain Rust kernel, left to the compiler's vectoriser. Multiplies and adds are not fused unless the target has the
//! instruction (a library call otherwise).

use super::drive::{Family, Tile};

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
    const AVX512: bool = false;
    const B_BYTES: usize = 256 << 10;
    const MACS_PER_CYCLE: usize = 4;

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
