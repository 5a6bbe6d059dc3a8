//! Little-endian f32, f16 and bf16 bytes to values, and values to values. Narrowing rounds to nearest, ties to even.

use half::slice::HalfFloatSliceExt;
use half::{bf16, f16};

/// Elements converted at a time where a copy on the stack is needed.
const CHUNK: usize = 512;

/// Rounds to nearest even; a NaN stays a NaN.
#[inline]
pub fn f32_to_bf16(x: f32) -> bf16 {
    let bits = x.to_bits();
    // Adding just under half of the last kept bit, or exactly half where that bit is odd, carries as rounding should.
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    let quiet_nan = (bits >> 16) | 0x40;
    bf16::from_bits(if bits & 0x7fff_ffff > 0x7f80_0000 { quiet_nan } else { rounded } as u16)
}

/// `out[i] = bytes[4i..4i+4]` as f32. Extra elements on either side are left alone.
pub fn f32_bytes_to_f32(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<4>().0) {
        *o = f32::from_le_bytes(*b);
    }
}

/// bf16 bytes to f32: exact.
pub fn bf16_bytes_to_f32(bytes: &[u8], out: &mut [f32]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = f32::from_bits(u32::from(u16::from_le_bytes(*b)) << 16);
    }
}

/// f16 bytes to f32: exact.
pub fn f16_bytes_to_f32(bytes: &[u8], out: &mut [f32]) {
    let mut halves = [f16::ZERO; CHUNK];
    for (o, b) in out.chunks_mut(CHUNK).zip(bytes.as_chunks::<2>().0.chunks(CHUNK)) {
        let n = o.len().min(b.len());
        for (h, b) in halves.iter_mut().zip(b) {
            *h = f16::from_le_bytes(*b);
        }
        halves[..n].convert_to_f32_slice(&mut o[..n]);
    }
}

/// bf16 bytes to bf16.
pub fn bf16_bytes_to_bf16(bytes: &[u8], out: &mut [bf16]) {
    for (o, b) in out.iter_mut().zip(bytes.as_chunks::<2>().0) {
        *o = bf16::from_le_bytes(*b);
    }
}

/// f32 values to bf16, rounded to nearest even.
pub fn f32s_to_bf16(x: &[f32], out: &mut [bf16]) {
    for (o, x) in out.iter_mut().zip(x) {
        *o = f32_to_bf16(*x);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_bf16_survives_and_rounding_is_half_crate_s() {
        for bits in 0..=u16::MAX {
            let x = bf16::from_bits(bits);
            let back = f32_to_bf16(x.to_f32());
            assert!(back.to_bits() == bits || (x.is_nan() && back.is_nan()), "{bits:04x}");
            // The tie above it, and its neighbours.
            for low in [0x7fffu32, 0x8000, 0x8001] {
                let y = f32::from_bits(u32::from(bits) << 16 | low);
                let (got, want) = (f32_to_bf16(y), bf16::from_f32(y));
                assert!(got == want || (y.is_nan() && got.is_nan()), "{y}");
            }
        }
    }

    #[test]
    fn every_f16_converts_as_the_half_crate_does() {
        let bytes: Vec<u8> = (0..=u16::MAX).flat_map(u16::to_le_bytes).collect();
        let mut out = vec![0f32; 65536];
        f16_bytes_to_f32(&bytes, &mut out);
        for (bits, x) in (0..=u16::MAX).zip(out) {
            let want = f16::from_bits(bits).to_f32();
            assert!(x.to_bits() == want.to_bits() || (x.is_nan() && want.is_nan()), "{bits:04x}");
        }
    }
}
