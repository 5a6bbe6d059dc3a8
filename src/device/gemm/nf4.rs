//! NF4 weights, expanded on their way into a packed panel.
//!
//! Layout (QLoRA, arXiv:2305.14314, as bitsandbytes stores it): the matrix is flattened row by row and cut into blocks
//! of 64; element e has the nibble e of `packed`, the high one of a byte first, and the value code[nibble] * absmax[block].
//! With double quantisation absmax itself is 8 bits: absmax[block] = code2[c] * absmax2[block / 256] + offset.
//! Rounding: the product in absmax, then the sum, then the product with the code are each rounded once to f32 (never
//! fused), and the value to bf16 where `round_bf16` says. A block has 16 possible values, so they are computed once
//! and looked up: the same bits as element by element.

use super::pack::Simd;
use half::bf16;

/// Elements that share one absmax.
pub const NF4_BLOCK: usize = 64;

/// Blocks that share one second-level absmax.
const BLOCKS_PER_ABSMAX2: usize = 256;

/// The scale of each block of 64.
#[derive(Clone, Copy)]
pub enum Absmax<'a> {
    /// One f32 per block.
    Plain(&'a [f32]),
    /// Double-quantised.
    Double {
        /// One code per block.
        codes: &'a [u8],
        /// What a code stands for.
        code2: &'a [f32; 256],
        /// One scale per 256 blocks.
        absmax2: &'a [f32],
        /// Added after scaling.
        offset: f32,
    },
}

/// A matrix in NF4; see the module for the layout.
#[derive(Clone, Copy)]
pub struct Nf4Ref<'a> {
    /// Two elements a byte, the high nibble first.
    pub packed: &'a [u8],
    /// The scales.
    pub absmax: Absmax<'a>,
    /// The 16 values a nibble stands for.
    pub code: &'a [f32; 16],
    /// Round each value to bf16 (the quantised weight was a 16-bit one).
    pub round_bf16: bool,
}

impl Nf4Ref<'_> {
    /// How many elements can be read: the least that any of the slices allows.
    pub(super) fn len(&self) -> usize {
        let blocks = match self.absmax {
            Absmax::Plain(a) => a.len(),
            Absmax::Double { codes, absmax2, .. } => codes.len().min(absmax2.len().saturating_mul(BLOCKS_PER_ABSMAX2)),
        };
        self.packed.len().saturating_mul(2).min(blocks.saturating_mul(NF4_BLOCK))
    }

    fn absmax(&self, block: usize) -> f32 {
        match self.absmax {
            Absmax::Plain(a) => a[block],
            Absmax::Double { codes, code2, absmax2, offset } => {
                code2[usize::from(codes[block])] * absmax2[block / BLOCKS_PER_ABSMAX2] + offset
            }
        }
    }

    /// The 16 values of a block.
    fn table(&self, block: usize) -> [f32; 16] {
        let s = self.absmax(block);
        self.code.map(|c| if self.round_bf16 { bf16::from_f32(c * s).to_f32() } else { c * s })
    }

    fn nibble(&self, e: usize) -> usize {
        let byte = self.packed[e / 2];
        usize::from(if e.is_multiple_of(2) { byte >> 4 } else { byte & 15 })
    }

    /// Element `e` of the flattened matrix.
    pub(super) fn get(&self, e: usize) -> f32 {
        let v = self.code[self.nibble(e)] * self.absmax(e / NF4_BLOCK);
        if self.round_bf16 { bf16::from_f32(v).to_f32() } else { v }
    }

    /// Expands elements start.. into `out`, with what `simd` says may be used.
    pub(super) fn expand<T: Expand>(&self, start: usize, out: &mut [T], simd: Simd) {
        let mut done = 0;
        while done < out.len() {
            let e = start + done;
            let block = e / NF4_BLOCK;
            let n = (NF4_BLOCK - e % NF4_BLOCK).min(out.len() - done);
            let part = &mut out[done..done + n];
            #[cfg(target_arch = "x86_64")]
            if simd >= Simd::Avx2 && n == NF4_BLOCK {
                let bytes = &self.packed[e / 2..e / 2 + NF4_BLOCK / 2];
                let (bytes, out, absmax) = (bytes.as_ptr(), part.as_mut_ptr(), self.absmax(block));
                // SAFETY: the families that say so have AVX2 or AVX-512; 32 bytes in, 64 elements out.
                unsafe {
                    if simd == Simd::Avx2 {
                        T::block_avx2(self.code, absmax, self.round_bf16, bytes, out);
                    } else {
                        T::block(self.code, absmax, self.round_bf16, bytes, out);
                    }
                }
                done += n;
                continue;
            }
            let table = self.table(block);
            for (i, o) in part.iter_mut().enumerate() {
                *o = T::of(table[self.nibble(e + i)]);
            }
            done += n;
        }
        let _ = simd;
    }
}

/// What NF4 expands to.
pub(super) trait Expand: Copy {
    fn of(v: f32) -> Self;
    /// Expands one block of 64.
    ///
    /// # Safety
    /// Needs AVX-512 F, BW; reads 32 bytes, writes 64 elements.
    #[cfg(target_arch = "x86_64")]
    unsafe fn block(code: &[f32; 16], absmax: f32, round_bf16: bool, bytes: *const u8, out: *mut Self);
    /// The same.
    ///
    /// # Safety
    /// Needs AVX2; reads 32 bytes, writes 64 elements.
    #[cfg(target_arch = "x86_64")]
    unsafe fn block_avx2(code: &[f32; 16], absmax: f32, round_bf16: bool, bytes: *const u8, out: *mut Self);
}

impl Expand for f32 {
    fn of(v: f32) -> f32 {
        v
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn block(code: &[f32; 16], absmax: f32, round_bf16: bool, bytes: *const u8, out: *mut f32) {
        // SAFETY: the caller's contract.
        unsafe { super::x86::nf4_block_f32(code, absmax, round_bf16, bytes, out) }
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn block_avx2(code: &[f32; 16], absmax: f32, round_bf16: bool, bytes: *const u8, out: *mut f32) {
        // SAFETY: the caller's contract.
        unsafe { super::avx2::nf4_block(code, absmax, round_bf16, bytes, out) }
    }
}

impl Expand for bf16 {
    fn of(v: f32) -> bf16 {
        bf16::from_f32(v)
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn block(code: &[f32; 16], absmax: f32, _round_bf16: bool, bytes: *const u8, out: *mut bf16) {
        // SAFETY: the caller's contract.
        unsafe { super::x86::nf4_block_bf16(code, absmax, bytes, out) }
    }
    #[cfg(target_arch = "x86_64")]
    unsafe fn block_avx2(_: &[f32; 16], _: f32, _: bool, _: *const u8, _: *mut bf16) {
        unreachable!("AVX2 kernels read f32");
    }
}
