//! Blocks of 32 values.
//!
//! | type | bytes | value |
//! |---|---|---|
//! | Q4_0 | f16 d, 16 of nibbles | d (q - 8) |
//! | Q4_1 | f16 d, f16 m, 16 of nibbles | d q + m |
//! | Q5_0 | f16 d, 4 of fifth bits, 16 of nibbles | d (q - 16) |
//! | Q5_1 | f16 d, f16 m, 4 of fifth bits, 16 of nibbles | d q + m |
//! | Q8_0 | f16 d, 32 i8 | d q |
//!
//! Low nibbles are values 0 to 15, high ones 16 to 31; bit i of the fifth bits belongs to value i. Each product and sum is
//! rounded by itself, so that the bits are those of the `gguf` package.

use super::{half_at, inverse, put_half};

#[inline(always)]
pub(super) fn q4_0(block: &[u8; 18], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    let (lo, hi) = out.split_at_mut(16);
    for ((lo, hi), q) in lo.iter_mut().zip(hi).zip(&block[2..]) {
        *lo = d * f32::from((q & 15) as i8 - 8);
        *hi = d * f32::from((q >> 4) as i8 - 8);
    }
}

#[inline(always)]
pub(super) fn q4_1(block: &[u8; 20], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    let (lo, hi) = out.split_at_mut(16);
    for ((lo, hi), q) in lo.iter_mut().zip(hi).zip(&block[4..]) {
        *lo = d * f32::from(q & 15) + m;
        *hi = d * f32::from(q >> 4) + m;
    }
}

/// The 32 five-bit numbers of 4 bytes of fifth bits and 16 of nibbles.
#[inline(always)]
fn fives(high: &[u8], low: &[u8]) -> [u8; 32] {
    let high = u32::from_le_bytes([high[0], high[1], high[2], high[3]]);
    let mut q = [0; 32];
    for i in 0..16 {
        q[i] = (low[i] & 15) | (((high >> i) & 1) << 4) as u8;
        q[i + 16] = (low[i] >> 4) | (((high >> (i + 16)) & 1) << 4) as u8;
    }
    q
}

#[inline(always)]
pub(super) fn q5_0(block: &[u8; 22], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, q) in out.iter_mut().zip(fives(&block[2..6], &block[6..])) {
        *o = d * f32::from(q as i8 - 16);
    }
}

#[inline(always)]
pub(super) fn q5_1(block: &[u8; 24], out: &mut [f32; 32]) {
    let (d, m) = (half_at(block, 0), half_at(block, 2));
    for (o, q) in out.iter_mut().zip(fives(&block[4..8], &block[8..])) {
        *o = d * f32::from(q) + m;
    }
}

#[inline(always)]
pub(super) fn q8_0(block: &[u8; 34], out: &mut [f32; 32]) {
    let d = half_at(block, 0);
    for (o, q) in out.iter_mut().zip(&block[2..]) {
        *o = d * f32::from(*q as i8);
    }
}

/// The largest magnitude.
#[inline(always)]
fn amax(x: &[f32; 32]) -> f32 {
    let mut lanes = [0f32; 16];
    for x in x.as_chunks::<16>().0 {
        for (m, x) in lanes.iter_mut().zip(x) {
            *m = if x.abs() > *m { x.abs() } else { *m };
        }
    }
    lanes.into_iter().fold(0.0, f32::max)
}

/// The first value of the largest magnitude, with its sign.
#[inline(always)]
fn extreme(x: &[f32; 32]) -> f32 {
    let amax = amax(x);
    x.iter().copied().find(|x| x.abs() == amax).unwrap_or(0.0)
}

/// The least and the largest value.
#[inline(always)]
fn bounds(x: &[f32; 32]) -> (f32, f32) {
    let halves = x.as_chunks::<16>().0;
    let (mut least, mut most) = (halves[0], halves[0]);
    for ((least, most), x) in least.iter_mut().zip(&mut most).zip(&halves[1]) {
        *least = if *x < *least { *x } else { *least };
        *most = if *x > *most { *x } else { *most };
    }
    let least = least.into_iter().fold(least[0], |a, b| if b < a { b } else { a });
    (least, most.into_iter().fold(most[0], |a, b| if b > a { b } else { a }))
}

/// The integer part of `x`, at most `most`. Adding a half before makes it rounding.
#[inline(always)]
fn whole(x: f32, most: f32) -> u8 {
    x.clamp(0.0, most) as u8
}

/// Nibbles of values 0 to 15 low, of 16 to 31 high.
#[inline(always)]
fn put_nibbles(q: &[u8; 32], to: &mut [u8]) {
    for i in 0..16 {
        to[i] = (q[i] & 15) | (q[i + 16] << 4);
    }
}

#[inline(always)]
fn put_fifths(q: &[u8; 32], to: &mut [u8]) {
    let high = q.iter().enumerate().fold(0u32, |bits, (i, q)| bits | (u32::from(q >> 4) << i));
    to.copy_from_slice(&high.to_le_bytes());
}

#[inline(always)]
pub(super) fn to_q4_0(x: &[f32; 32], block: &mut [u8; 18]) {
    let d = extreme(x) / -8.0;
    let id = inverse(d);
    put_half(block, 0, d);
    put_nibbles(&x.map(|x| whole(x * id + 8.5, 15.0)), &mut block[2..]);
}

#[inline(always)]
pub(super) fn to_q4_1(x: &[f32; 32], block: &mut [u8; 20]) {
    let (least, most) = bounds(x);
    let d = (most - least) / 15.0;
    let id = inverse(d);
    put_half(block, 0, d);
    put_half(block, 2, least);
    put_nibbles(&x.map(|x| whole((x - least) * id + 0.5, 15.0)), &mut block[4..]);
}

#[inline(always)]
pub(super) fn to_q5_0(x: &[f32; 32], block: &mut [u8; 22]) {
    let d = extreme(x) / -16.0;
    let id = inverse(d);
    let q = x.map(|x| whole(x * id + 16.5, 31.0));
    put_half(block, 0, d);
    put_fifths(&q, &mut block[2..6]);
    put_nibbles(&q, &mut block[6..]);
}

#[inline(always)]
pub(super) fn to_q5_1(x: &[f32; 32], block: &mut [u8; 24]) {
    let (least, most) = bounds(x);
    let d = (most - least) / 31.0;
    let id = inverse(d);
    let q = x.map(|x| whole((x - least) * id + 0.5, 31.0));
    put_half(block, 0, d);
    put_half(block, 2, least);
    put_fifths(&q, &mut block[4..8]);
    put_nibbles(&q, &mut block[8..]);
}

#[inline(always)]
pub(super) fn to_q8_0(x: &[f32; 32], block: &mut [u8; 34]) {
    let d = amax(x) / 127.0;
    let id = inverse(d);
    put_half(block, 0, d);
    for (q, x) in block[2..].iter_mut().zip(x) {
        *q = (x * id).round() as i8 as u8; // halves away from zero
    }
}
