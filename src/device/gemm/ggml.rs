//! Weights in ggml's block formats, expanded on their way into a packed panel.
//!
//! A matrix is (out, in), row by row, each row whole blocks. This module knows no format: the caller gives the function
//! that expands whole blocks to f32 (the crate's layers put the formats above the device), and for four of them the name
//! under which AVX-512 code is kept here (`x86_ggml`), with the same bits. Beside f32 activations the values multiply
//! exactly as expanded; beside bf16 ones, rounded to bf16, to nearest even, as NF4 is.

use super::pack::Simd;
use crate::device::simd::wide;
use half::bf16;

/// Most elements of a block.
pub const GGML_BLOCK_MAX: usize = 256;

/// Formats that AVX-512 machines expand here, straight to what the kernels read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum GgmlFast {
    /// 32 elements, 18 bytes: f16 d, 16 bytes of nibbles q (low ones first); d (q - 8).
    Q4_0,
    /// 32 elements, 34 bytes: f16 d, 32 i8 q; d q.
    Q8_0,
    /// 256 elements, 144 bytes: f16 d, f16 dmin, 12 bytes of 6-bit scales and mins, 128 of nibbles; d sc q - dmin m.
    Q4K,
    /// 256 elements, 210 bytes: 128 of nibbles, 64 of high bits, 16 i8 scales, f16 d; d sc (q - 32).
    Q6K,
}

impl GgmlFast {
    /// Elements and bytes of a block.
    const fn sizes(self) -> (usize, usize) {
        match self {
            GgmlFast::Q4_0 => (32, 18),
            GgmlFast::Q8_0 => (32, 34),
            GgmlFast::Q4K => (256, 144),
            GgmlFast::Q6K => (256, 210),
        }
    }
}

/// A matrix in ggml blocks.
#[derive(Clone, Copy)]
pub struct GgmlRef<'a> {
    /// The blocks, row after row.
    pub bytes: &'a [u8],
    /// Elements of a block, 1 to [`GGML_BLOCK_MAX`].
    pub block: usize,
    /// Bytes of a block.
    pub block_bytes: usize,
    /// Expands whole blocks, in order, to as many f32.
    pub expand: fn(&[u8], &mut [f32]),
    /// The same function here, where there is one. `block` and `block_bytes` are then the format's.
    pub fast: Option<GgmlFast>,
    /// Round each value to bf16; set by the product itself where A is bf16.
    pub round_bf16: bool,
}

impl GgmlRef<'_> {
    /// Panics on a programmer's error.
    pub(super) fn check(&self) {
        let sizes = (self.block, self.block_bytes);
        assert!(
            (1..=GGML_BLOCK_MAX).contains(&self.block) && self.block_bytes > 0,
            "gemm: ggml blocks of {} elements in {} bytes",
            self.block,
            self.block_bytes
        );
        assert!(self.fast.is_none_or(|f| f.sizes() == sizes), "gemm: {:?} has no blocks of {sizes:?}", self.fast);
    }

    /// How many elements there are.
    pub(super) fn len(&self) -> usize {
        (self.bytes.len() / self.block_bytes.max(1)).saturating_mul(self.block)
    }

    /// Blocks from element `first` (the first of a block) on, as bytes.
    fn blocks(&self, first: usize, count: usize) -> &[u8] {
        &self.bytes[first / self.block * self.block_bytes..][..count * self.block_bytes]
    }

    /// Element `e`.
    pub(super) fn get(&self, e: usize) -> f32 {
        let mut out = [0.0];
        self.expand(e, &mut out, Simd::Plain);
        out[0]
    }

    /// Expands elements start.. into `out`, with what `simd` says may be used.
    pub(super) fn expand<T: FromBlocks>(&self, start: usize, out: &mut [T], simd: Simd) {
        let mut done = 0;
        while done < out.len() {
            let e = start + done;
            let (inside, left) = (e % self.block, out.len() - done);
            if inside > 0 || left < self.block {
                // Part of a block.
                let mut values = [T::default(); GGML_BLOCK_MAX];
                self.whole(e - inside, &mut values[..self.block], simd);
                let n = left.min(self.block - inside);
                out[done..done + n].copy_from_slice(&values[inside..inside + n]);
                done += n;
            } else {
                let n = left / self.block * self.block;
                self.whole(e, &mut out[done..done + n], simd);
                done += n;
            }
        }
        if self.round_bf16 {
            T::round(out);
        }
    }

    /// Whole blocks.
    fn whole<T: FromBlocks>(&self, first: usize, out: &mut [T], simd: Simd) {
        let blocks = self.blocks(first, out.len() / self.block);
        #[cfg(target_arch = "x86_64")]
        if let Some(fast) = self.fast
            && simd >= Simd::Avx512
        {
            // SAFETY: the families that say so have AVX-512; whole blocks of this format (see `check`) and as many elements.
            return unsafe { T::fast(fast, blocks, out, simd) };
        }
        T::plain(self.expand, blocks, out, self.block, self.block_bytes, simd);
    }
}

/// What blocks expand to.
pub(super) trait FromBlocks: Copy + Default {
    /// By the caller's function.
    fn plain(
        expand: fn(&[u8], &mut [f32]),
        blocks: &[u8],
        out: &mut [Self],
        block: usize,
        block_bytes: usize,
        simd: Simd,
    );
    /// # Safety
    /// Needs what `simd` says, at least AVX-512; `blocks` are whole blocks of the format that hold `out.len()` elements.
    #[cfg(target_arch = "x86_64")]
    unsafe fn fast(format: GgmlFast, blocks: &[u8], out: &mut [Self], simd: Simd);
    /// To the nearest bf16.
    fn round(_: &mut [Self]) {}
}

impl FromBlocks for f32 {
    fn plain(expand: fn(&[u8], &mut [f32]), blocks: &[u8], out: &mut [f32], _: usize, _: usize, _: Simd) {
        expand(blocks, out);
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn fast(format: GgmlFast, blocks: &[u8], out: &mut [f32], _: Simd) {
        // SAFETY: the caller's contract.
        unsafe { super::x86_ggml::to_f32::expand(format, blocks, out) }
    }
    fn round(values: &mut [f32]) {
        wide!(values.iter_mut().for_each(|v| *v = f32::from_bits(u32::from(to_bf16(*v).to_bits()) << 16)));
    }
}

impl FromBlocks for bf16 {
    fn plain(
        expand: fn(&[u8], &mut [f32]),
        blocks: &[u8],
        out: &mut [bf16],
        block: usize,
        block_bytes: usize,
        simd: Simd,
    ) {
        let mut values = [0.0f32; 2 * GGML_BLOCK_MAX];
        let count = values.len() / block;
        for (out, blocks) in out.chunks_mut(count * block).zip(blocks.chunks(count * block_bytes)) {
            let values = &mut values[..out.len()];
            expand(blocks, values);
            round(values, out, simd);
        }
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn fast(format: GgmlFast, blocks: &[u8], out: &mut [bf16], simd: Simd) {
        // SAFETY: the caller's contract.
        unsafe {
            match simd {
                Simd::Avx512Bf16 => super::x86_ggml::to_bf16_directly::expand(format, blocks, out),
                _ => super::x86_ggml::to_bf16::expand(format, blocks, out),
            }
        }
    }
}

fn round(values: &[f32], out: &mut [bf16], simd: Simd) {
    #[cfg(target_arch = "x86_64")]
    if simd >= Simd::Avx512 {
        // SAFETY: the families that say so have AVX-512; both have this length.
        return unsafe { super::x86::round(values.as_ptr(), values.len().min(out.len()), out.as_mut_ptr()) };
    }
    let _ = simd;
    wide!(out.iter_mut().zip(values).for_each(|(o, v)| *o = to_bf16(*v)));
}

/// To nearest even; written so that loops over it vectorise.
#[inline(always)]
fn to_bf16(v: f32) -> bf16 {
    let bits = v.to_bits();
    let rounded = bits.wrapping_add(0x7fff + ((bits >> 16) & 1)) >> 16;
    bf16::from_bits(if v.is_nan() { (bits >> 16) | 0x40 } else { rounded } as u16)
}
