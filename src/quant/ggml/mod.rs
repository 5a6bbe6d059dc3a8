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
pub use mixture::{FileType, mixture};

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
        GgmlType::Q4_0 => wide(|| each(blocks, out, small::q4_0)),
        GgmlType::Q4_1 => wide(|| each(blocks, out, small::q4_1)),
        GgmlType::Q5_0 => wide(|| each(blocks, out, small::q5_0)),
        GgmlType::Q5_1 => wide(|| each(blocks, out, small::q5_1)),
        GgmlType::Q8_0 => wide(|| each(blocks, out, small::q8_0)),
        GgmlType::Q2K => wide(|| each(blocks, out, k::q2)),
        GgmlType::Q3K => wide(|| each(blocks, out, k::q3)),
        GgmlType::Q4K => wide(|| each(blocks, out, k::q4)),
        GgmlType::Q5K => wide(|| each(blocks, out, k::q5)),
        GgmlType::Q6K => wide(|| each(blocks, out, k::q6)),
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
        GgmlType::F16 => wide(|| narrow(values, out, |x| f16::from_f32(x).to_le_bytes())),
        GgmlType::Bf16 => wide(|| narrow(values, out, |x| convert::f32_to_bf16(x).to_le_bytes())),
        GgmlType::Q4_0 => wide(|| each_to(values, out, small::to_q4_0)),
        GgmlType::Q4_1 => wide(|| each_to(values, out, small::to_q4_1)),
        GgmlType::Q5_0 => wide(|| each_to(values, out, small::to_q5_0)),
        GgmlType::Q5_1 => wide(|| each_to(values, out, small::to_q5_1)),
        GgmlType::Q8_0 => wide(|| each_to(values, out, small::to_q8_0)),
        GgmlType::Q4K => wide(|| each_to(values, out, k_quantise::to_q4)),
        GgmlType::Q5K => wide(|| each_to(values, out, k_quantise::to_q5)),
        GgmlType::Q6K => wide(|| each_to(values, out, k_quantise::to_q6)),
        GgmlType::Q2K | GgmlType::Q3K => panic!("{ty} is only read"),
    }
}

/// `f` on each block of `B` bytes and its `N` values. Lengths were checked.
#[inline(always)]
fn each<const B: usize, const N: usize>(blocks: &[u8], out: &mut [f32], f: impl Fn(&[u8; B], &mut [f32; N])) {
    for (block, out) in blocks.as_chunks::<B>().0.iter().zip(out.as_chunks_mut::<N>().0) {
        f(block, out);
    }
}

/// As [`each`], the other way.
#[inline(always)]
fn each_to<const N: usize, const B: usize>(values: &[f32], out: &mut [u8], f: impl Fn(&[f32; N], &mut [u8; B])) {
    for (x, block) in values.as_chunks::<N>().0.iter().zip(out.as_chunks_mut::<B>().0) {
        f(x, block);
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
