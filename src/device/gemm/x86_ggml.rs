//! Four of ggml's formats to f32 and bf16 with AVX-512. Every product and sum is rounded by itself, as in the portable code.
//!
//! 4-bit formats have 16 possible values a (sub-)block: they are computed (and rounded) once and looked up.
//!
//! The bf16 conversions of AVX512-BF16 take subnormal numbers for zero. No value here is subnormal: each is made of
//! f16 scales and integers by products, differences and roundings, all of which keep it a multiple of 2^-24.

use super::ggml::GgmlFast;
use std::arch::x86_64::*;

/// The formats for one element type and set of instructions; `$to` says how values are stored.
macro_rules! formats {
    ($name:ident, $elem:ty, $to:ident, $features:literal) => {
        pub(super) mod $name {
            use super::*;

            /// # Safety
            /// Needs the instruction set; `blocks` are whole blocks of the format that hold `out.len()` elements.
            #[target_feature(enable = $features)]
            pub(in super::super) unsafe fn expand(format: GgmlFast, blocks: &[u8], out: &mut [$elem]) {
                match format {
                    GgmlFast::Q4_0 => each(blocks, out, |b, o| q4_0(b, o)),
                    GgmlFast::Q8_0 => each(blocks, out, |b, o| q8_0(b, o)),
                    GgmlFast::Q4K => each(blocks, out, |b, o| q4_k(b, o)),
                    GgmlFast::Q6K => each(blocks, out, |b, o| q6_k(b, o)),
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn q4_0(block: &[u8; 18], out: &mut [$elem; 32]) {
                let q = _mm512_setr_ps(-8., -7., -6., -5., -4., -3., -2., -1., 0., 1., 2., 3., 4., 5., 6., 7.);
                let table = _mm512_mul_ps(half_at(block, 0), q);
                // SAFETY: 16 bytes, 32 elements.
                unsafe {
                    let bytes = _mm_loadu_si128(block.as_ptr().add(2).cast());
                    $to::look_up(out.as_mut_ptr(), _mm256_set_m128i(_mm_srli_epi16::<4>(bytes), bytes), table);
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn q8_0(block: &[u8; 34], out: &mut [$elem; 32]) {
                let d = half_at(block, 0);
                // SAFETY: 32 bytes, 32 elements.
                unsafe {
                    let q = _mm256_loadu_si256(block.as_ptr().add(2).cast());
                    let [a, b] = values(q);
                    $to::put(out.as_mut_ptr(), _mm512_mul_ps(d, a), _mm512_mul_ps(d, b));
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn q4_k(block: &[u8; 144], out: &mut [$elem; 256]) {
                // 6-bit scales 0 to 7, then mins 0 to 7.
                let word = |at: usize| u32::from_le_bytes([block[at], block[at + 1], block[at + 2], block[at + 3]]);
                let (s, m, low) = (word(4), word(8), word(12));
                let six = _mm_set_epi32(
                    (((low >> 4) & 0x0f0f_0f0f) | ((m >> 2) & 0x3030_3030)) as i32,
                    (m & 0x3f3f_3f3f) as i32,
                    ((low & 0x0f0f_0f0f) | ((s >> 2) & 0x3030_3030)) as i32,
                    (s & 0x3f3f_3f3f) as i32,
                );
                let six = _mm512_cvtepi32_ps(_mm512_cvtepu8_epi32(six));
                let (scales, mins) = (_mm512_mul_ps(half_at(block, 0), six), _mm512_mul_ps(half_at(block, 2), six));
                let q = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
                for i in 0..8 {
                    let scale = _mm512_permutexvar_ps(_mm512_set1_epi32(i), scales);
                    let min = _mm512_permutexvar_ps(_mm512_set1_epi32(8 + i), mins);
                    let table = _mm512_sub_ps(_mm512_mul_ps(scale, q), min);
                    let i = i as usize;
                    // SAFETY: 32 of 128 bytes for two sub-blocks, low nibbles first; 32 of 256 elements.
                    unsafe {
                        let bytes = _mm256_loadu_si256(block.as_ptr().add(16 + 32 * (i / 2)).cast());
                        let nibbles = if i % 2 == 0 { bytes } else { _mm256_srli_epi16::<4>(bytes) };
                        $to::look_up(out.as_mut_ptr().add(32 * i), nibbles, table);
                    }
                }
            }

            #[inline]
            #[target_feature(enable = $features)]
            fn q6_k(block: &[u8; 210], out: &mut [$elem; 256]) {
                // SAFETY: 16 bytes.
                let scales = unsafe { _mm_loadu_si128(block.as_ptr().add(192).cast()) };
                let scales = _mm512_mul_ps(half_at(block, 208), _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(scales)));
                for half in 0..2 {
                    // SAFETY: 64 of 128 bytes, 32 of 64.
                    let (a, b, h) = unsafe {
                        let low = block.as_ptr().add(64 * half);
                        let (a, b) = (_mm256_loadu_si256(low.cast()), _mm256_loadu_si256(low.add(32).cast()));
                        (a, b, _mm256_loadu_si256(block.as_ptr().add(128 + 32 * half).cast()))
                    };
                    let nibbles = [a, b, _mm256_srli_epi16::<4>(a), _mm256_srli_epi16::<4>(b)];
                    // Two bits of h each, at bits 4 and 5.
                    let bits = [_mm256_slli_epi16::<4>(h), _mm256_slli_epi16::<2>(h), h, _mm256_srli_epi16::<2>(h)];
                    for (i, (n, t)) in nibbles.into_iter().zip(bits).enumerate() {
                        let n = _mm256_and_si256(n, _mm256_set1_epi8(15));
                        let q = _mm256_or_si256(n, _mm256_and_si256(t, _mm256_set1_epi8(0x30)));
                        let [a, b] = values(_mm256_sub_epi8(q, _mm256_set1_epi8(32)));
                        let at = 8 * half + 2 * i;
                        let scale = |i: usize| _mm512_permutexvar_ps(_mm512_set1_epi32(i as i32), scales);
                        let (a, b) = (_mm512_mul_ps(scale(at), a), _mm512_mul_ps(scale(at + 1), b));
                        // SAFETY: 32 of 256 elements.
                        unsafe { $to::put(out.as_mut_ptr().add(16 * at), a, b) };
                    }
                }
            }
        }
    };
}

formats!(to_f32, f32, store_f32, "avx512f,avx512bw,avx512dq,avx512vl");
formats!(to_bf16, half::bf16, store_bf16, "avx512f,avx512bw,avx512dq,avx512vl");
formats!(to_bf16_directly, half::bf16, convert_bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16");

#[inline(always)]
fn each<const B: usize, const N: usize, T>(blocks: &[u8], out: &mut [T], f: impl Fn(&[u8; B], &mut [T; N])) {
    for (block, out) in blocks.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        f(block, out);
    }
}

/// The f16 at byte `at`, in all lanes.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn half_at(block: &[u8], at: usize) -> __m512 {
    _mm512_cvtph_ps(_mm256_set1_epi16(i16::from_le_bytes([block[at], block[at + 1]])))
}

/// 32 i8 as f32.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn values(q: __m256i) -> [__m512; 2] {
    [_mm256_castsi256_si128(q), _mm256_extracti128_si256::<1>(q)].map(|q| _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(q)))
}

mod store_f32 {
    use super::*;

    /// # Safety
    /// Needs AVX-512; 32 elements writable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn put(out: *mut f32, a: __m512, b: __m512) {
        // SAFETY: the caller's contract.
        unsafe {
            _mm512_storeu_ps(out, a);
            _mm512_storeu_ps(out.add(16), b);
        }
    }

    /// table[q] for the low nibbles q of 32 bytes.
    ///
    /// # Safety
    /// Needs AVX-512; 32 elements writable.
    #[inline]
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
    pub(super) unsafe fn look_up(out: *mut f32, bytes: __m256i, table: __m512) {
        // vpermps reads four bits of an index.
        let [a, b] = [_mm256_castsi256_si128(bytes), _mm256_extracti128_si256::<1>(bytes)]
            .map(|b| _mm512_permutexvar_ps(_mm512_cvtepu8_epi32(b), table));
        // SAFETY: the caller's contract.
        unsafe { put(out, a, b) }
    }
}

/// As [`store_f32`], rounded to bf16.
macro_rules! to_bf16 {
    ($name:ident, $features:literal, $narrow:ident) => {
        mod $name {
            use super::*;

            /// # Safety
            /// As [`super::store_f32::put`].
            #[inline]
            #[target_feature(enable = $features)]
            pub(super) unsafe fn put(out: *mut half::bf16, a: __m512, b: __m512) {
                let v = _mm512_inserti64x4::<1>(_mm512_castsi256_si512($narrow(a)), $narrow(b));
                // SAFETY: the caller's contract.
                unsafe { _mm512_storeu_si512(out.cast(), v) }
            }

            /// # Safety
            /// As [`super::store_f32::look_up`].
            #[inline]
            #[target_feature(enable = $features)]
            pub(super) unsafe fn look_up(out: *mut half::bf16, bytes: __m256i, table: __m512) {
                // The table twice: vpermw reads five bits of an index, so bit 4 does not matter.
                let table = _mm512_broadcast_i64x4($narrow(table));
                let v = _mm512_permutexvar_epi16(_mm512_cvtepu8_epi16(bytes), table);
                // SAFETY: the caller's contract.
                unsafe { _mm512_storeu_si512(out.cast(), v) }
            }
        }
    };
}

to_bf16!(store_bf16, "avx512f,avx512bw,avx512dq,avx512vl", narrow);
to_bf16!(convert_bf16, "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16", convert);

/// To bf16, to nearest even.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn narrow(v: __m512) -> __m256i {
    _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(super::x86::round_to_upper(v)))
}

/// The same by one instruction, where no value is subnormal.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16")]
fn convert(v: __m512) -> __m256i {
    // SAFETY: 16 x 16 bits in either type.
    unsafe { std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(v)) }
}
