//! AVX-512 pieces of the packing step. All functions need AVX-512 F, BW, DQ, VL.

use super::few::STREAMS;
use half::bf16;
use std::arch::x86_64::*;

/// Transposes 16 x 16 32-bit elements.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn transpose16(r: [__m512i; 16]) -> [__m512i; 16] {
    let zero = _mm512_setzero_si512();
    // Within each 128-bit lane, a 4 x 4 transpose of rows 4g..4g+4: q[4g + c] lane l = column 4l + c of those rows.
    let mut q = [zero; 16];
    for g in 0..4 {
        let t0 = _mm512_unpacklo_epi32(r[4 * g], r[4 * g + 1]);
        let t1 = _mm512_unpackhi_epi32(r[4 * g], r[4 * g + 1]);
        let t2 = _mm512_unpacklo_epi32(r[4 * g + 2], r[4 * g + 3]);
        let t3 = _mm512_unpackhi_epi32(r[4 * g + 2], r[4 * g + 3]);
        q[4 * g] = _mm512_unpacklo_epi64(t0, t2);
        q[4 * g + 1] = _mm512_unpackhi_epi64(t0, t2);
        q[4 * g + 2] = _mm512_unpacklo_epi64(t1, t3);
        q[4 * g + 3] = _mm512_unpackhi_epi64(t1, t3);
    }
    // Then a 4 x 4 transpose of whole lanes.
    let mut out = [zero; 16];
    for c in 0..4 {
        let x0 = _mm512_shuffle_i32x4::<0x88>(q[c], q[4 + c]);
        let x1 = _mm512_shuffle_i32x4::<0xdd>(q[c], q[4 + c]);
        let y0 = _mm512_shuffle_i32x4::<0x88>(q[8 + c], q[12 + c]);
        let y1 = _mm512_shuffle_i32x4::<0xdd>(q[8 + c], q[12 + c]);
        out[c] = _mm512_shuffle_i32x4::<0x88>(x0, y0);
        out[4 + c] = _mm512_shuffle_i32x4::<0x88>(x1, y1);
        out[8 + c] = _mm512_shuffle_i32x4::<0xdd>(x0, y0);
        out[12 + c] = _mm512_shuffle_i32x4::<0xdd>(x1, y1);
    }
    out
}

/// A mask of the lowest `n` (0..=32) of 32 16-bit lanes.
fn mask32(n: usize) -> u32 {
    if n >= 32 { u32::MAX } else { (1u32 << n) - 1 }
}

/// The first `n` (0..=32) 16-bit units of 16 lines, zeros after them. The stride is in bytes.
///
/// # Safety
/// n units of each line are readable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn load16(src: *const u8, stride: usize, n: usize) -> [__m512i; 16] {
    let mut r = [_mm512_setzero_si512(); 16];
    if n == 32 {
        for (i, r) in r.iter_mut().enumerate() {
            // SAFETY: 64 bytes of line i.
            *r = unsafe { _mm512_loadu_si512(src.add(i * stride).cast()) };
        }
    } else {
        for (i, r) in r.iter_mut().enumerate() {
            // SAFETY: n units of line i; the mask keeps the rest unread.
            *r = unsafe { _mm512_maskz_loadu_epi16(mask32(n), src.add(i * stride).cast()) };
        }
    }
    r
}

/// Rows up to which a kernel for few rows has its transposed block in registers, beside the sums.
pub(super) const IN_REGISTERS: usize = 2;

/// Keeps the compiler from holding (or making late, one by one) vectors in registers that the sums need.
#[inline]
pub(super) fn to_memory(y: &mut [__m512i; 16]) {
    // SAFETY: no instruction at all.
    unsafe { std::arch::asm!("/* {} */", in(reg) y.as_mut_ptr(), options(nostack, preserves_flags)) }
}

/// The block with e = 0, 1, ..., 15 as constants: registers y[e] stay registers.
macro_rules! sixteen {
    ($e:ident, $body:block) => {
        $crate::device::gemm::x86::sixteen!(@ $e, $body, 0 1 2 3 4 5 6 7 8 9 10 11 12 13 14 15)
    };
    (@ $e:ident, $body:block, $($n:literal)*) => {
        $({ const $e: usize = $n; $body })*
    };
}
pub(super) use sixteen;

/// Brings 128 bytes of each of [`STREAMS`] runs into the L2 cache (a hint: it cannot fault).
#[inline]
#[target_feature(enable = "avx512f")]
pub(super) fn fetch(p: *const u8, stride: usize) {
    for i in 0..STREAMS {
        let p = p.wrapping_add(i * stride);
        _mm_prefetch::<_MM_HINT_T1>(p.cast());
        _mm_prefetch::<_MM_HINT_T1>(p.wrapping_add(64).cast());
    }
}

/// Reads up to 16 lines of `len` 16-bit units (a whole number of 32-bit elements once padded with zero) and writes
/// their transpose in 32-bit elements: out[e * out_stride + line], with 16 lines (missing ones zero), for every element
/// e < ceil(len / 2). Strides in bytes.
///
/// # Safety
/// The lines are readable and the ceil(len / 2) rows of 64 bytes of `out` writable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn transpose_lines(
    src: *const u8,
    src_stride: usize,
    lines: usize,
    len: usize,
    out: *mut u8,
    out_stride: usize,
) {
    let mut done = 0;
    while done < len {
        let n = (len - done).min(32);
        let mask = mask32(n);
        let mut r = [_mm512_setzero_si512(); 16];
        if lines == 16 && n == 32 {
            for (i, r) in r.iter_mut().enumerate() {
                // SAFETY: a whole 64-byte piece of line i.
                *r = unsafe { _mm512_loadu_si512(src.add(i * src_stride + 2 * done).cast()) };
            }
        } else {
            for (i, r) in r.iter_mut().enumerate().take(lines) {
                // SAFETY: n units of line i; the mask keeps the rest unread.
                *r = unsafe { _mm512_maskz_loadu_epi16(mask, src.add(i * src_stride + 2 * done).cast()) };
            }
        }
        let t = transpose16(r);
        let first = done / 2;
        if n == 32 {
            for (e, t) in t.iter().enumerate() {
                // SAFETY: element first + e < ceil(len / 2).
                unsafe { _mm512_storeu_si512(out.add((first + e) * out_stride).cast(), *t) };
            }
        } else {
            for (e, t) in t.iter().enumerate().take(n.div_ceil(2)) {
                // SAFETY: as above.
                unsafe { _mm512_storeu_si512(out.add((first + e) * out_stride).cast(), *t) };
            }
        }
        done += n;
    }
}

/// Lanes of two rows of 16-bit units, alternating: x0 y0 x1 y1 ... (lower and upper half).
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
fn interleave(x: __m512i, y: __m512i) -> (__m512i, __m512i) {
    // unpack works within 128-bit lanes: lo = pieces 0, 2, 4, 6 and hi = 1, 3, 5, 7 of the eight 128-bit results.
    let lo = _mm512_unpacklo_epi16(x, y);
    let hi = _mm512_unpackhi_epi16(x, y);
    let first = _mm512_setr_epi64(0, 1, 8, 9, 2, 3, 10, 11);
    let second = _mm512_setr_epi64(4, 5, 12, 13, 6, 7, 14, 15);
    (_mm512_permutex2var_epi64(lo, first, hi), _mm512_permutex2var_epi64(lo, second, hi))
}

/// Rows x and y (zeros where null) of `n` bf16 -> pairs (x[j], y[j]) for j < 32 (zeros from n on), as many of the 32 pairs as
/// `width` (16 or 32) says.
///
/// # Safety
/// n elements readable at x and y, `width` pairs writable at `out`; n <= width.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn pair_rows(x: *const bf16, y: *const bf16, n: usize, width: usize, out: *mut bf16) {
    let mask = mask32(n);
    // SAFETY: masked to n elements; an all-zero mask reads nothing.
    let (a, b) = unsafe {
        let row = |p: *const bf16| {
            if p.is_null() { _mm512_setzero_si512() } else { _mm512_maskz_loadu_epi16(mask, p.cast()) }
        };
        (row(x), row(y))
    };
    let (lo, hi) = interleave(a, b);
    // SAFETY: the caller's contract.
    unsafe {
        _mm512_storeu_si512(out.cast(), lo);
        if width == 32 {
            _mm512_storeu_si512(out.add(32).cast(), hi);
        }
    }
}

/// Copies `n` <= 32 f32 and fills up with zeros to `width` (16 or 32).
///
/// # Safety
/// n readable at x, `width` writable at `out`.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn copy_row(x: *const f32, n: usize, width: usize, out: *mut f32) {
    let mask = mask32(n);
    // SAFETY: the masks keep reads within n elements.
    unsafe {
        _mm512_storeu_ps(out, _mm512_maskz_loadu_ps(mask as u16, x));
        if width == 32 {
            let hi = if n > 16 {
                _mm512_maskz_loadu_ps((mask >> 16) as u16, x.wrapping_add(16))
            } else {
                _mm512_setzero_ps()
            };
            _mm512_storeu_ps(out.add(16), hi);
        }
    }
}

/// `rows` (k) lines of `n` <= 32 bf16, `stride` elements apart -> out[i * out_stride + k] for i < n; the k are filled up
/// with zeros to a multiple of 32.
///
/// # Safety
/// Lines readable; n rows of round_up(rows, 32) elements writable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn transpose_rows_bf16(
    src: *const bf16,
    stride: usize,
    rows: usize,
    n: usize,
    out: *mut bf16,
    out_stride: usize,
) {
    let mask = mask32(n);
    let zero = _mm512_setzero_si512();
    for k0 in (0..rows).step_by(32) {
        let (mut lo, mut hi) = ([zero; 16], [zero; 16]);
        for p in 0..16 {
            let k = k0 + 2 * p;
            if k >= rows {
                break;
            }
            // SAFETY: row k, and k + 1 where it exists; n elements each by the mask.
            let (x, y) = unsafe {
                let x = _mm512_maskz_loadu_epi16(mask, src.add(k * stride).cast());
                let has = if k + 1 < rows { mask } else { 0 };
                (x, _mm512_maskz_loadu_epi16(has, src.wrapping_add((k + 1) * stride).cast()))
            };
            (lo[p], hi[p]) = interleave(x, y);
        }
        let t = transpose16(lo);
        for (i, t) in t.iter().enumerate().take(n) {
            // SAFETY: row i < n, 32 elements at k0.
            unsafe { _mm512_storeu_si512(out.add(i * out_stride + k0).cast(), *t) };
        }
        if n > 16 {
            let t = transpose16(hi);
            for (i, t) in t.iter().enumerate().take(n - 16) {
                // SAFETY: row 16 + i < n.
                unsafe { _mm512_storeu_si512(out.add((16 + i) * out_stride + k0).cast(), *t) };
            }
        }
    }
}

/// Widens `n` bf16 to f32.
///
/// # Safety
/// n readable and writable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn widen(src: *const bf16, n: usize, out: *mut f32) {
    // SAFETY: the caller's contract.
    let (src, out) = unsafe { (std::slice::from_raw_parts(src, n), std::slice::from_raw_parts_mut(out, n)) };
    for (o, s) in out.iter_mut().zip(src) {
        *o = f32::from_bits(u32::from(s.to_bits()) << 16);
    }
}

/// Rounds f32 bits to bf16, to nearest even, in the upper half of each lane; NaN stays a (quiet) NaN.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) fn round_to_upper(v: __m512) -> __m512i {
    let bits = _mm512_castps_si512(v);
    let odd = _mm512_and_si512(_mm512_srli_epi32::<16>(bits), _mm512_set1_epi32(1));
    let up = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
    let nan = _mm512_cmp_ps_mask::<_CMP_UNORD_Q>(v, v);
    let up = _mm512_mask_or_epi32(up, nan, bits, _mm512_set1_epi32(0x0040_0000));
    _mm512_and_si512(up, _mm512_set1_epi32(0xffff_0000u32 as i32))
}

/// Rounds `n` f32 to bf16.
///
/// # Safety
/// n readable and writable.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn round(src: *const f32, n: usize, out: *mut bf16) {
    let mut i = 0;
    while i < n {
        let mask = mask32((n - i).min(16)) as u16;
        // SAFETY: masked to n.
        unsafe {
            let v = round_to_upper(_mm512_maskz_loadu_ps(mask, src.add(i)));
            _mm512_mask_cvtepi32_storeu_epi16(out.add(i).cast(), mask, _mm512_srli_epi32::<16>(v));
        }
        i += 16;
    }
}

/// One NF4 block as bf16: the 16 values of the block, rounded, become a table for `vpermw`.
///
/// # Safety
/// 32 bytes readable, 64 elements writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn nf4_block_bf16(code: &[f32; 16], absmax: f32, bytes: *const u8, out: *mut bf16) {
    // SAFETY: 16 f32; the contract for `bytes` and `out`.
    unsafe {
        let values = _mm512_mul_ps(_mm512_loadu_ps(code.as_ptr()), _mm512_set1_ps(absmax));
        let t = _mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(round_to_upper(values)));
        // The table twice: vpermw reads five bits of an index, so bit 4 does not matter.
        let table = _mm512_inserti64x4::<1>(_mm512_castsi256_si512(t), t);
        for half in 0..2 {
            let b = _mm512_cvtepu8_epi32(_mm_loadu_si128(bytes.add(16 * half).cast()));
            let index = _mm512_or_si512(_mm512_srli_epi32::<4>(b), _mm512_slli_epi32::<16>(b));
            _mm512_storeu_si512(out.add(32 * half).cast(), _mm512_permutexvar_epi16(index, table));
        }
    }
}

/// One NF4 block as f32, through bf16 if `round_bf16`.
///
/// # Safety
/// 32 bytes readable, 64 elements writable.
#[inline]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl")]
pub(super) unsafe fn nf4_block_f32(code: &[f32; 16], absmax: f32, round_bf16: bool, bytes: *const u8, out: *mut f32) {
    // SAFETY: 16 f32; the contract for `bytes` and `out`.
    unsafe {
        let mut table = _mm512_mul_ps(_mm512_loadu_ps(code.as_ptr()), _mm512_set1_ps(absmax));
        if round_bf16 {
            table = _mm512_castsi512_ps(round_to_upper(table));
        }
        for quarter in 0..4 {
            let b = _mm512_cvtepu8_epi64(_mm_loadl_epi64(bytes.add(8 * quarter).cast()));
            // vpermps reads four bits of an index.
            let index = _mm512_or_si512(_mm512_srli_epi64::<4>(b), _mm512_slli_epi64::<32>(b));
            _mm512_storeu_ps(out.add(16 * quarter), _mm512_permutexvar_ps(index, table));
        }
    }
}
