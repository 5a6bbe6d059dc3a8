//! Super-blocks of 256 values, the K types: sub-blocks with small integer scales of their own.
//!
//! | type | bytes | value |
//! |---|---|---|
//! | Q2_K | 16 of scale and min nibbles, 64 of 2-bit q, f16 d, f16 dmin | d sc q - dmin m, sub-blocks of 16 |
//! | Q3_K | 32 of third bits, 64 of 2-bit q, 12 of 6-bit scales, f16 d | d (sc - 32) (q - 4), sub-blocks of 16 |
//! | Q4_K | f16 d, f16 dmin, 12 of 6-bit scales and mins, 128 of nibbles | d sc q - dmin m, sub-blocks of 32 |
//! | Q5_K | f16 d, f16 dmin, 12 as above, 32 of fifth bits, 128 of nibbles | the same |
//! | Q6_K | 128 of nibbles, 64 of high bits, 16 i8 scales, f16 d | d sc (q - 32), sub-blocks of 16 |
//!
//! 2-bit numbers: 32 bytes hold values 0 to 127, the lowest two bits 0 to 31, the next two 32 to 63, and so on. Scale
//! times d is rounded before it is multiplied by q, and no step is fused, so that the bits are those of the `gguf` package.

use super::half_at;

/// The 6-bit scales and mins of Q4_K and Q5_K: 4 bytes of scales 0 to 3, 4 of mins 0 to 3, 4 with the low nibbles of
/// scales and mins 4 to 7, whose upper two bits are the upper two of the first 8 bytes.
#[inline(always)]
pub(super) fn scales_and_mins(packed: &[u8]) -> ([u8; 8], [u8; 8]) {
    let (mut sc, mut m) = ([0; 8], [0; 8]);
    for j in 0..4 {
        let (s, n, low) = (packed[j], packed[j + 4], packed[j + 8]);
        sc[j] = s & 63;
        m[j] = n & 63;
        sc[j + 4] = (low & 15) | ((s >> 6) << 4);
        m[j + 4] = (low >> 4) | ((n >> 6) << 4);
    }
    (sc, m)
}

#[inline(always)]
pub(super) fn q2(block: &[u8; 84], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 80), half_at(block, 82));
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (dl, ml) = (d * f32::from(block[i] & 15), dmin * f32::from(block[i] >> 4));
        let (from, shift) = twos(i);
        for (o, q) in out.iter_mut().zip(&block[16 + from..][..16]) {
            *o = dl * f32::from((q >> shift) & 3) - ml;
        }
    }
}

/// First byte and shift of the 2-bit numbers of values 16 i to 16 i + 15.
#[inline(always)]
fn twos(i: usize) -> (usize, usize) {
    (i / 8 * 32 + i % 2 * 16, i % 8 / 2 * 2)
}

#[inline(always)]
pub(super) fn q3(block: &[u8; 110], out: &mut [f32; 256]) {
    let d = half_at(block, 108);
    let (third, rest) = block.split_at(32);
    let (low, scales) = rest.split_at(64);
    for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // Low nibbles of scales 0 to 7, then high ones of 8 to 15; above, two bits of each in four bytes.
        let nibble = (scales[i % 8] >> (i / 8 * 4)) & 15;
        let high = (scales[8 + i % 4] >> (i / 4 * 2)) & 3;
        let dl = d * f32::from((nibble | (high << 4)) as i8 - 32);
        let (from, shift) = twos(i);
        let bits = third[i % 2 * 16..][..16].iter();
        for ((o, q), t) in out.iter_mut().zip(&low[from..][..16]).zip(bits) {
            // The third bit counts 4, and 4 is taken off: where it is set, nothing is.
            let off = ((t >> (i / 2)) & 1) ^ 1;
            *o = dl * f32::from(((q >> shift) & 3) as i8 - (off << 2) as i8);
        }
    }
}

#[inline(always)]
pub(super) fn q4(block: &[u8; 144], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (sc, m) = scales_and_mins(&block[4..16]);
    let nibbles = block[16..].as_chunks::<32>().0;
    for (c, (out, q)) in out.as_chunks_mut::<64>().0.iter_mut().zip(nibbles).enumerate() {
        let (d1, m1) = (d * f32::from(sc[2 * c]), dmin * f32::from(m[2 * c]));
        let (d2, m2) = (d * f32::from(sc[2 * c + 1]), dmin * f32::from(m[2 * c + 1]));
        for i in 0..32 {
            out[i] = d1 * f32::from(q[i] & 15) - m1;
            out[32 + i] = d2 * f32::from(q[i] >> 4) - m2;
        }
    }
}

#[inline(always)]
pub(super) fn q5(block: &[u8; 176], out: &mut [f32; 256]) {
    let (d, dmin) = (half_at(block, 0), half_at(block, 2));
    let (sc, m) = scales_and_mins(&block[4..16]);
    let fifth = &block[16..48];
    let nibbles = block[48..].as_chunks::<32>().0;
    for (c, (out, q)) in out.as_chunks_mut::<64>().0.iter_mut().zip(nibbles).enumerate() {
        let (d1, m1) = (d * f32::from(sc[2 * c]), dmin * f32::from(m[2 * c]));
        let (d2, m2) = (d * f32::from(sc[2 * c + 1]), dmin * f32::from(m[2 * c + 1]));
        for i in 0..32 {
            out[i] = d1 * f32::from((q[i] & 15) | (((fifth[i] >> (2 * c)) & 1) << 4)) - m1;
        }
        for i in 0..32 {
            out[32 + i] = d2 * f32::from((q[i] >> 4) | (((fifth[i] >> (2 * c + 1)) & 1) << 4)) - m2;
        }
    }
}

#[inline(always)]
pub(super) fn q6(block: &[u8; 210], out: &mut [f32; 256]) {
    let d = half_at(block, 208);
    let low = block[..128].as_chunks::<64>().0;
    let high = block[128..192].as_chunks::<32>().0;
    let scales = block[192..208].as_chunks::<8>().0;
    let halves = out.as_chunks_mut::<128>().0.iter_mut();
    for (((out, low), high), scales) in halves.zip(low).zip(high).zip(scales) {
        for (i, out) in out.as_chunks_mut::<16>().0.iter_mut().enumerate() {
            let dl = d * f32::from(scales[i] as i8);
            // 64 bytes: their low nibbles are values 0 to 63, the high ones 64 to 127.
            let (low, high) = (&low[i % 4 * 16..][..16], &high[i % 2 * 16..][..16]);
            for ((o, l), h) in out.iter_mut().zip(low).zip(high) {
                let q = ((l >> (i / 4 * 4)) & 15) | (((h >> (i / 2 * 2)) & 3) << 4);
                *o = dl * f32::from(q as i8 - 32);
            }
        }
    }
}
