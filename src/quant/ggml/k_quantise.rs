//! Values to super-blocks of Q4_K, Q5_K and Q6_K (layouts: `k`). Scales are found per sub-block, rounded to the few bits
//! they are stored in, and only then are the values rounded, with the scales that will be read back.

use super::search::{Steps, affine, linear, nearest};
use super::{half_at, inverse, put_half};

const FOUR: Steps = Steps { levels: 15.0, from: -1.0, by: 0.1, count: 21 };
const FIVE: Steps = Steps { levels: 31.0, from: -0.5, by: 0.1, count: 16 };
/// The largest finite f16: a scale past it would turn a block into NaN.
const MOST_HALF: f32 = 65504.0;

/// Writes the 16 bytes of d, dmin and 6-bit scales and mins into `head`, and returns the 256 numbers.
#[inline(always)]
fn with_mins(x: &[f32; 256], steps: &Steps, head: &mut [u8]) -> [u8; 256] {
    let (mut scales, mut mins) = ([0f32; 8], [0f32; 8]);
    let subs = x.as_chunks::<32>().0;
    for ((scale, min), x) in scales.iter_mut().zip(&mut mins).zip(subs) {
        (*scale, *min) = affine(x, steps);
    }
    let (top_scale, top_min) = (scales.into_iter().fold(0.0, f32::max), mins.into_iter().fold(0.0, f32::max));
    put_half(head, 0, (top_scale / 63.0).min(MOST_HALF));
    put_half(head, 2, (top_min / 63.0).min(MOST_HALF));
    let (d, dmin) = (half_at(head, 0), half_at(head, 2));
    let (to_scale, to_min) = (63.0 * inverse(top_scale), 63.0 * inverse(top_min));
    let sc = scales.map(|s| nearest(s * to_scale, 0.0, 63.0) as u8);
    let m = mins.map(|s| nearest(s * to_min, 0.0, 63.0) as u8);
    for j in 0..4 {
        head[4 + j] = sc[j] | ((sc[j + 4] >> 4) << 6);
        head[8 + j] = m[j] | ((m[j + 4] >> 4) << 6);
        head[12 + j] = (sc[j + 4] & 15) | ((m[j + 4] & 15) << 4);
    }
    let mut q = [0; 256];
    for (((q, x), sc), m) in q.as_chunks_mut::<32>().0.iter_mut().zip(subs).zip(sc).zip(m) {
        let (step, min) = (inverse(d * f32::from(sc)), dmin * f32::from(m));
        for (q, x) in q.iter_mut().zip(x) {
            *q = nearest((x + min) * step, 0.0, steps.levels) as u8;
        }
    }
    q
}

#[inline(always)]
pub(super) fn to_q4(x: &[f32; 256], block: &mut [u8; 144]) {
    let q = with_mins(x, &FOUR, &mut block[..16]);
    for (to, q) in block[16..].as_chunks_mut::<32>().0.iter_mut().zip(q.as_chunks::<64>().0) {
        for i in 0..32 {
            to[i] = q[i] | (q[32 + i] << 4);
        }
    }
}

#[inline(always)]
pub(super) fn to_q5(x: &[f32; 256], block: &mut [u8; 176]) {
    let q = with_mins(x, &FIVE, &mut block[..16]);
    let (fifth, nibbles) = block[16..].split_at_mut(32);
    fifth.fill(0);
    for (c, (to, q)) in nibbles.as_chunks_mut::<32>().0.iter_mut().zip(q.as_chunks::<64>().0).enumerate() {
        for i in 0..32 {
            to[i] = (q[i] & 15) | (q[32 + i] << 4);
            fifth[i] |= ((q[i] >> 4) | (q[32 + i] >> 4 << 1)) << (2 * c);
        }
    }
}

#[inline(always)]
pub(super) fn to_q6(x: &[f32; 256], block: &mut [u8; 210]) {
    let subs = x.as_chunks::<16>().0;
    let mut scales = [0f32; 16];
    for (scale, x) in scales.iter_mut().zip(subs) {
        *scale = linear(x, 32.0);
    }
    // The largest scale becomes -128, the one number an i8 has more of.
    let top = scales.iter().fold(0f32, |m, s| if s.abs() > m.abs() { *s } else { m });
    put_half(block, 208, (top / -128.0).clamp(-MOST_HALF, MOST_HALF));
    let d = half_at(block, 208);
    let mut q = [0u8; 256];
    for (i, (q, x)) in q.as_chunks_mut::<16>().0.iter_mut().zip(subs).enumerate() {
        let sc = nearest(-128.0 * scales[i] * inverse(top), -128.0, 127.0);
        block[192 + i] = sc as i8 as u8;
        let step = inverse(d * sc);
        for (q, x) in q.iter_mut().zip(x) {
            *q = (nearest(x * step, -32.0, 31.0) + 32.0) as u8;
        }
    }
    for (half, q) in q.as_chunks::<128>().0.iter().enumerate() {
        let (low, high) = block[..192].split_at_mut(128);
        let (low, high) = (&mut low[half * 64..][..64], &mut high[half * 32..][..32]);
        for i in 0..64 {
            low[i] = (q[i] & 15) | (q[64 + i] << 4);
        }
        for i in 0..32 {
            high[i] = (q[i] >> 4) | (q[32 + i] >> 4 << 2) | (q[64 + i] >> 4 << 4) | (q[96 + i] >> 4 << 6);
        }
    }
}

#[cfg(test)]
#[path = "k_tests.rs"]
mod tests;
