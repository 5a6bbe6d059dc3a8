//! ggml's block formats, as GGUF files hold them: blocks to f32 and f32 to blocks.
//!
//! A row is whole blocks, each with a scale or two in f16 and small integers. [`dequantise`] has the bits of the
//! `gguf` Python package's `dequantize`, and [`quantise`] those of its `quantize` where that has the type; for the
//! K types (super-blocks of 256) it searches for scales as llama.cpp does. Layouts: `small` (blocks of 32), `k`.

mod blocks;
mod k;
mod k_quantise;
mod mixture;
mod search;
mod small;

use half::f16;

use crate::device::simd::wide;
use crate::format::convert;
pub use crate::format::gguf::GgmlType;
pub use blocks::Blocks;
pub use mixture::mixture;

/// `f` on each block and what it becomes, compiled for the machine's vectors. A macro, since a function that is handed on as
/// a value is not inlined into what was compiled for them.
macro_rules! each {
    ($f:path, $from:expr, $to:expr) => {
        wide!({
            for (from, to) in $from.as_chunks().0.iter().zip($to.as_chunks_mut().0) {
                let from = *from; // of its own, so that the compiler sees that writing `to` does not change it
                $f(&from, to);
            }
        })
    };
}

/// The values of whole `blocks`.
///
/// # Panics
/// Unless `blocks` is whole blocks of `ty` that hold `out.len()` values.
pub fn dequantise(ty: GgmlType, blocks: &[u8], out: &mut [f32]) {
    assert_eq!(ty.row_bytes(out.len()), Some(blocks.len()), "bytes of {} {ty} values", out.len());
    match ty {
        GgmlType::F32 => convert::f32_bytes_to_f32(blocks, out),
        GgmlType::F16 => convert::f16_bytes_to_f32(blocks, out),
        GgmlType::Bf16 => convert::bf16_bytes_to_f32(blocks, out),
        GgmlType::Q4_0 => each!(small::q4_0, blocks, out),
        GgmlType::Q4_1 => each!(small::q4_1, blocks, out),
        GgmlType::Q5_0 => each!(small::q5_0, blocks, out),
        GgmlType::Q5_1 => each!(small::q5_1, blocks, out),
        GgmlType::Q8_0 => each!(small::q8_0, blocks, out),
        GgmlType::Q2K => each!(k::q2, blocks, out),
        GgmlType::Q3K => each!(k::q3, blocks, out),
        GgmlType::Q4K => each!(k::q4, blocks, out),
        GgmlType::Q5K => each!(k::q5, blocks, out),
        GgmlType::Q6K => each!(k::q6, blocks, out),
    }
}

/// Whether [`quantise`] can make blocks of `ty`: all but Q2_K and Q3_K, which are only read.
pub fn can_quantise(ty: GgmlType) -> bool {
    !matches!(ty, GgmlType::Q2K | GgmlType::Q3K)
}

/// Appends `values` as blocks of `ty`. Values have to be finite: what a block with another one holds is not specified.
///
/// # Panics
/// Unless `values` is whole blocks, and [`can_quantise`] holds.
pub fn quantise(ty: GgmlType, values: &[f32], out: &mut Vec<u8>) {
    let bytes =
        ty.row_bytes(values.len()).unwrap_or_else(|| panic!("{} values are no whole {ty} blocks", values.len()));
    let start = out.len();
    out.resize(start + bytes, 0);
    let out = &mut out[start..];
    match ty {
        GgmlType::F32 => narrow(values, out, f32::to_le_bytes),
        GgmlType::F16 => wide!(narrow(values, out, |x| f16::from_f32(x).to_le_bytes())),
        GgmlType::Bf16 => wide!(narrow(values, out, |x| convert::f32_to_bf16(x).to_le_bytes())),
        GgmlType::Q4_0 => each!(small::to_q4_0, values, out),
        GgmlType::Q4_1 => each!(small::to_q4_1, values, out),
        GgmlType::Q5_0 => each!(small::to_q5_0, values, out),
        GgmlType::Q5_1 => each!(small::to_q5_1, values, out),
        GgmlType::Q8_0 => each!(small::to_q8_0, values, out),
        GgmlType::Q4K => each!(k_quantise::to_q4, values, out),
        GgmlType::Q5K => each!(k_quantise::to_q5, values, out),
        GgmlType::Q6K => each!(k_quantise::to_q6, values, out),
        GgmlType::Q2K | GgmlType::Q3K => panic!("{ty} is only read"),
    }
}

#[inline(always)]
fn narrow<const N: usize>(values: &[f32], out: &mut [u8], f: impl Fn(f32) -> [u8; N]) {
    for (x, to) in values.iter().zip(out.as_chunks_mut::<N>().0) {
        *to = f(*x);
    }
}

/// The f16 in bytes `at` and `at + 1`, widened: exact.
#[inline(always)]
fn half_at(block: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([block[at], block[at + 1]]).to_f32()
}

/// Puts `x`, rounded to f16, into bytes `at` and `at + 1`.
#[inline(always)]
fn put_half(block: &mut [u8], at: usize, x: f32) {
    block[at..at + 2].copy_from_slice(&f16::from_f32(x).to_le_bytes());
}

/// 1 / `x`, or 0 of 0.
#[inline(always)]
fn inverse(x: f32) -> f32 {
    if x == 0.0 { 0.0 } else { 1.0 / x }
}
