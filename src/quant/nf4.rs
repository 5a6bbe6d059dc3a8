//! NF4: weights as 4-bit codes, blocks of 64 over the flattened row-major matrix with one absmax each, and the absmax
//! quantised once more (double quantisation).
//!
//! Source: Dettmers et al. 2023, arXiv:2305.14314, section 3. The bits are those of bitsandbytes 0.50.2 on the CPU, held to
//! it by `tests/golden/nf4`:
//!
//!   code       number of midpoints of neighbouring code values strictly below x * (1 / absmax); 1 / absmax is rounded to
//!              f32, with absmax taken as at least 1e-38. A last block of fewer than 64 divides by absmax instead, and
//!              stores it as at least 1e-38. Two codes a byte, the first in the high nibble; an odd tail is padded with 0.
//!   absmax     offset = mean of all absmax (bitsandbytes: in f32, in an order that depends on its threads; here:
//!              [`mean`], in f64 and an order of its own, rounded once); absmax - offset in blocks of 256 by [`super::dynamic8`];
//!              back: round(round(value * absmax2) + offset).
//!   weight     round(value * absmax) to f32; for bf16 that f32 rounded to nearest even.

use std::ops::Range;
use std::thread;

use half::bf16;

use super::dynamic8;
use crate::device::abi;
use crate::error::{Error, Result};
use crate::format::convert::f32_to_bf16;
use crate::format::{Dtype, TensorView};

/// Elements that share one absmax.
pub const BLOCK: usize = 64;

/// The 16 values: quantiles of a standard normal, scaled to [-1, 1], with an exact 0.
pub static CODE: [f32; 16] = [
    -1.0,
    -0.696_192_8,
    -0.525_073_05,
    -0.394_917_5,
    -0.284_441_38,
    -0.184_773_43,
    -0.091_050_036,
    0.0,
    0.079_580_3,
    0.160_930_2,
    0.246_112_3,
    0.337_915_24,
    0.440_709_83,
    0.562_617,
    0.722_956_84,
    1.0,
];

/// The code of 0.
const ZERO: u8 = 7;

/// Smallest absmax divided by.
const TINY: f32 = 1e-38;

/// Where one code ends and the next begins.
static MIDPOINTS: [f32; 15] = {
    let mut m = [0f32; 15];
    let mut i = 0;
    while i < 15 {
        m[i] = (CODE[i] + CODE[i + 1]) / 2.0;
        i += 1;
    }
    m
};

/// One absmax a block.
#[derive(Debug, Clone, PartialEq)]
pub enum Absmax {
    /// As computed.
    Plain(Vec<f32>),
    /// As codes of [`dynamic8`], one `absmax2` for 256 of them, and the mean that was subtracted.
    Double { codes: Vec<u8>, absmax2: Vec<f32>, offset: f32 },
}

/// A matrix (rows, cols) in NF4.
#[derive(Debug, Clone, PartialEq)]
pub struct Nf4 {
    pub rows: usize,
    pub cols: usize,
    /// ceil(rows * cols / 2) bytes; element 2i in the high nibble of byte i.
    pub packed: Vec<u8>,
    /// ceil(rows * cols / 64) of them.
    pub absmax: Absmax,
    /// What it was quantised from: bitsandbytes' backward dequantises to this dtype.
    pub source: Dtype,
}

impl Nf4 {
    /// Quantises a tensor straight from its file, with `threads` threads. The bits do not depend on their number, and at
    /// most a few KB a thread are held beside the result. Dimensions after the first count as columns.
    ///
    /// # Errors
    /// [`Error::Weights`] if it holds NaN or infinity or is not F32, F16 or BF16.
    pub fn from_view(view: &TensorView<'_>, double: bool, threads: usize) -> Result<Nf4> {
        let (rows, cols) = view.rows_cols();
        let mut builder = Nf4Builder::new(rows, cols, view.dtype, double)?;
        let n = view.len();
        let (packed, absmax) = (&mut builder.packed, &mut builder.absmax);
        let named = |e| match e {
            Error::Shape { why, .. } => view.wrong(why),
            other => other,
        };
        let read = |range, out: &mut [f32]| view.read_f32_range(range, out);
        quantise_parallel(n, packed, absmax, threads, &read).map_err(named)?;
        builder.filled = n;
        builder.finish().map_err(named)
    }

    /// Bytes that a (rows, cols) matrix takes.
    pub fn bytes(rows: usize, cols: usize, double: bool) -> u64 {
        let n = rows as u64 * cols as u64;
        let blocks = n.div_ceil(BLOCK as u64);
        let absmax = if double { blocks + 4 * blocks.div_ceil(dynamic8::BLOCK as u64) + 4 } else { 4 * blocks };
        n.div_ceil(2) + absmax
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of blocks.
    pub fn blocks(&self) -> usize {
        self.len().div_ceil(BLOCK)
    }

    /// The absmax of block `block`, decoded. Panics unless it is below [`Nf4::blocks`].
    #[inline]
    pub fn block_absmax(&self, block: usize) -> f32 {
        match &self.absmax {
            Absmax::Plain(a) => a[block],
            Absmax::Double { codes, absmax2, offset } => {
                // Two roundings, not one fused: bitsandbytes multiplies, stores, then adds.
                let scaled = dynamic8::code()[codes[block] as usize] * absmax2[block / dynamic8::BLOCK];
                scaled + offset
            }
        }
    }

    /// All absmax, decoded: what a kernel that decodes blocks in any order wants at hand, 1/16 of a bit an element.
    pub fn decode_absmax(&self) -> Vec<f32> {
        (0..self.blocks()).map(|b| self.block_absmax(b)).collect()
    }

    /// Dequantises to f32.
    ///
    /// # Errors
    /// [`Error::Shape`] unless `out` is (rows * cols).
    pub fn dequantise_f32(&self, out: &mut [f32]) -> Result<()> {
        self.rows_f32(0..self.rows, out)
    }

    /// Dequantises to bf16.
    ///
    /// # Errors
    /// As [`Nf4::dequantise_f32`].
    pub fn dequantise_bf16(&self, out: &mut [bf16]) -> Result<()> {
        self.rows_bf16(0..self.rows, out)
    }

    /// Rows `rows` as f32.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the rows exist and `out` is (rows.len() * cols).
    pub fn rows_f32(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        let range = self.elements_of(rows, out.len())?;
        self.decode(range, out, |x| x);
        Ok(())
    }

    /// Rows `rows` as bf16.
    ///
    /// # Errors
    /// As [`Nf4::rows_f32`].
    pub fn rows_bf16(&self, rows: Range<usize>, out: &mut [bf16]) -> Result<()> {
        let range = self.elements_of(rows, out.len())?;
        self.decode(range, out, f32_to_bf16);
        Ok(())
    }

    /// The elements of block `block` as f32, and how many they are (64, fewer in the last). Panics unless the block is
    /// below [`Nf4::blocks`].
    pub fn block_f32(&self, block: usize, out: &mut [f32; BLOCK]) -> usize {
        let start = block * BLOCK;
        let n = BLOCK.min(self.len() - start);
        self.decode(start..start + n, &mut out[..n], |x| x);
        n
    }

    fn elements_of(&self, rows: Range<usize>, out: usize) -> Result<Range<usize>> {
        let fits = rows.start <= rows.end && rows.end <= self.rows;
        if !fits || out != rows.len() * self.cols {
            let why = format!("rows {rows:?} of ({}, {}) do not fit into {out} elements", self.rows, self.cols);
            return Err(Error::shape("nf4 dequantise", why));
        }
        Ok(rows.start * self.cols..rows.end * self.cols)
    }

    /// Decodes `range` of the flattened matrix; `round` takes the f32 weight to the output's type.
    #[inline]
    fn decode<T: Copy>(&self, range: Range<usize>, out: &mut [T], round: impl Fn(f32) -> T) {
        let (mut at, mut out) = (range.start, out);
        while at < range.end {
            let block = at / BLOCK;
            let n = ((block + 1) * BLOCK).min(range.end) - at;
            // Sixteen products a block instead of sixty-four: the same product, so the same bits.
            let absmax = self.block_absmax(block);
            let value: [T; 16] = std::array::from_fn(|c| round(CODE[c] * absmax));
            let (mut head, rest) = std::mem::take(&mut out).split_at_mut(n);
            out = rest;
            let end = at + n;
            if at % 2 == 1 {
                head[0] = value[(self.packed[at / 2] & 15) as usize];
                head = &mut head[1..];
                at += 1;
            }
            let bytes = &self.packed[at / 2..end.div_ceil(2)];
            let (pairs, last) = head.as_chunks_mut::<2>();
            for (pair, byte) in pairs.iter_mut().zip(bytes) {
                *pair = [value[(byte >> 4) as usize], value[(byte & 15) as usize]];
            }
            if let ([x], Some(byte)) = (last, bytes.last()) {
                *x = value[(byte >> 4) as usize];
            }
            at = end;
        }
    }
}

/// Quantises a matrix that arrives piece by piece.
#[derive(Debug)]
pub struct Nf4Builder {
    rows: usize,
    cols: usize,
    source: Dtype,
    double: bool,
    packed: Vec<u8>,
    absmax: Vec<f32>,
    /// Elements quantised, always whole blocks until the end.
    filled: usize,
    /// Elements that wait for their block to become whole.
    pending: Vec<f32>,
}

impl Nf4Builder {
    /// For a matrix (rows, cols) of dtype `source`; `double` quantises the absmax too.
    ///
    /// # Errors
    /// [`Error::Shape`] if rows * cols overflows.
    pub fn new(rows: usize, cols: usize, source: Dtype, double: bool) -> Result<Self> {
        let n = rows.checked_mul(cols);
        let n = n.ok_or_else(|| Error::shape("nf4 quantise", format!("({rows}, {cols}) overflows")))?;
        let pad = ZERO << 4 | ZERO;
        Ok(Nf4Builder {
            rows,
            cols,
            source,
            double,
            packed: vec![pad; n.div_ceil(2)],
            absmax: vec![0.0; n.div_ceil(BLOCK)],
            filled: 0,
            pending: Vec::with_capacity(BLOCK),
        })
    }

    /// Takes the next elements, row-major, any number of them, and quantises with `threads` threads. The bits depend
    /// neither on the pieces nor on the threads.
    ///
    /// # Errors
    /// [`Error::Shape`] if they are more than the matrix has, or one is NaN or infinite.
    pub fn push(&mut self, mut values: &[f32], threads: usize) -> Result<()> {
        let total = self.rows * self.cols;
        let taken = self.filled + self.pending.len();
        if values.len() > total - taken {
            return Err(Error::shape("nf4 quantise", format!("more than {total} elements were given")));
        }
        if !self.pending.is_empty() {
            let n = values.len().min(BLOCK - self.pending.len());
            self.pending.extend_from_slice(&values[..n]);
            values = &values[n..];
            if self.pending.len() == BLOCK {
                let block = std::mem::take(&mut self.pending);
                self.blocks(&block, 1)?;
                self.pending = block;
                self.pending.clear();
            }
        }
        let whole = values.len() / BLOCK * BLOCK;
        self.blocks(&values[..whole], threads)?;
        self.pending.extend_from_slice(&values[whole..]);
        Ok(())
    }

    /// Quantises whole blocks (or the tail) at the current place.
    fn blocks(&mut self, values: &[f32], threads: usize) -> Result<()> {
        let packed = &mut self.packed[self.filled / 2..(self.filled + values.len()).div_ceil(2)];
        let absmax = &mut self.absmax[self.filled / BLOCK..(self.filled + values.len()).div_ceil(BLOCK)];
        quantise_parallel(values.len(), packed, absmax, threads, &|range, out| {
            out.copy_from_slice(&values[range]);
            Ok(())
        })?;
        self.filled += values.len();
        Ok(())
    }

    /// The quantised matrix.
    ///
    /// # Errors
    /// [`Error::Shape`] if elements are lacking or the last are not finite.
    pub fn finish(mut self) -> Result<Nf4> {
        let tail = std::mem::take(&mut self.pending);
        self.blocks(&tail, 1)?;
        let total = self.rows * self.cols;
        if self.filled != total {
            return Err(Error::shape("nf4 quantise", format!("{} of {total} elements were given", self.filled)));
        }
        let absmax =
            if self.double { double_quantise(&self.absmax, mean(&self.absmax)) } else { Absmax::Plain(self.absmax) };
        Ok(Nf4 { rows: self.rows, cols: self.cols, packed: self.packed, absmax, source: self.source })
    }
}

/// Mean of all absmax, summed in f64 in an order that a block of CUDA threads can follow, and rounded once: element i goes
/// to partial sum i mod 1024, and partial sums are added by halves (512 to 1023 onto 0 to 511, and so on).
pub fn mean(absmax: &[f32]) -> f32 {
    const LANES: usize = abi::NF4_MEAN_LANES as usize;
    let mut lanes = [0f64; LANES];
    for row in absmax.chunks(LANES) {
        for (lane, a) in lanes.iter_mut().zip(row) {
            *lane += f64::from(*a);
        }
    }
    let mut width = LANES / 2;
    while width > 0 {
        for l in 0..width {
            lanes[l] += lanes[l + width];
        }
        width /= 2;
    }
    (lanes[0] / absmax.len().max(1) as f64) as f32
}

/// Quantises `absmax - offset` to 8 bits.
pub fn double_quantise(absmax: &[f32], offset: f32) -> Absmax {
    let mut codes = vec![0u8; absmax.len()];
    let mut centred = [0f32; dynamic8::BLOCK];
    let mut absmax2 = Vec::with_capacity(absmax.len().div_ceil(dynamic8::BLOCK));
    for (codes, absmax) in codes.chunks_mut(dynamic8::BLOCK).zip(absmax.chunks(dynamic8::BLOCK)) {
        let centred = &mut centred[..absmax.len()];
        for (c, a) in centred.iter_mut().zip(absmax) {
            *c = a - offset;
        }
        absmax2.push(dynamic8::quantise(centred, codes));
    }
    Absmax::Double { codes, absmax2, offset }
}

/// Reads the elements of a range into the slice, as f32.
type Reader<'a> = &'a (dyn Fn(Range<usize>, &mut [f32]) -> Result<()> + Sync);

/// Quantises `n` elements that `read` yields, cut into ranges of blocks, one a thread.
fn quantise_parallel(n: usize, packed: &mut [u8], absmax: &mut [f32], threads: usize, read: Reader<'_>) -> Result<()> {
    /// A thread is worth starting for about this many blocks (a quarter of a millisecond).
    const LEAST: usize = 1024;
    let blocks = n.div_ceil(BLOCK);
    let threads = threads.clamp(1, (blocks / LEAST).max(1));
    let per = blocks.div_ceil(threads).max(1);
    if threads == 1 {
        return quantise_range(0, n, packed, absmax, read);
    }
    thread::scope(|scope| {
        let parts = packed.chunks_mut(per * BLOCK / 2).zip(absmax.chunks_mut(per)).enumerate();
        let handles: Vec<_> = parts
            .map(|(i, (packed, absmax))| {
                let start = i * per * BLOCK;
                scope.spawn(move || quantise_range(start, n.min(start + per * BLOCK), packed, absmax, read))
            })
            .collect();
        let results: Vec<_> = handles.into_iter().map(|h| h.join()).collect();
        results.into_iter().try_for_each(|r| match r {
            Ok(result) => result,
            Err(panic) => std::panic::resume_unwind(panic),
        })
    })
}

/// Quantises elements start..end, where `start` begins a block.
fn quantise_range(start: usize, end: usize, packed: &mut [u8], absmax: &mut [f32], read: Reader<'_>) -> Result<()> {
    /// Elements read at a time: they stay in the first-level cache.
    const PIECE: usize = 32 * BLOCK;
    let mut buffer = [0f32; PIECE];
    let parts = packed.chunks_mut(PIECE / 2).zip(absmax.chunks_mut(PIECE / BLOCK));
    for (from, (packed, absmax)) in (start..end).step_by(PIECE).zip(parts) {
        let values = &mut buffer[..PIECE.min(end - from)];
        read(from..from + values.len(), values)?;
        let blocks = values.chunks(BLOCK).zip(packed.chunks_mut(BLOCK / 2)).zip(absmax);
        for (b, ((x, packed), absmax)) in blocks.enumerate() {
            *absmax = quantise_block(x, packed);
            if !absmax.is_finite() {
                let at = from + b * BLOCK;
                return Err(Error::shape("nf4 quantise", format!("holds NaN or infinity near element {at}")));
            }
        }
    }
    Ok(())
}

/// Quantises one block into its bytes; returns its absmax, which is not finite if an element is not.
#[inline]
fn quantise_block(x: &[f32], packed: &mut [u8]) -> f32 {
    // Without sign the bits of floats order as the floats do, with infinity and then NaN on top.
    let absmax = f32::from_bits(x.iter().fold(0u32, |m, x| m.max(x.to_bits() & 0x7fff_ffff)));
    if let Ok(x) = <&[f32; BLOCK]>::try_from(x) {
        let inverse = 1.0 / absmax.max(TINY);
        let scaled: [f32; BLOCK] = std::array::from_fn(|i| x[i] * inverse);
        // As `nearest`, with the midpoints outside, so that the elements fill vector registers.
        let mut codes = [0u8; BLOCK];
        for (codes, scaled) in codes.as_chunks_mut::<16>().0.iter_mut().zip(scaled.as_chunks::<16>().0) {
            let mut count = [0i32; 16];
            for m in &MIDPOINTS {
                for (c, x) in count.iter_mut().zip(scaled) {
                    *c += i32::from(x > m);
                }
            }
            *codes = count.map(|c| c as u8);
        }
        for (byte, pair) in packed.iter_mut().zip(codes.as_chunks::<2>().0) {
            *byte = pair[0] << 4 | pair[1];
        }
        return absmax;
    }
    let absmax = if absmax.is_nan() { absmax } else { absmax.max(TINY) };
    for (byte, pair) in packed.iter_mut().zip(x.chunks(2)) {
        *byte = nearest(pair[0] / absmax) << 4 | pair.get(1).map_or(ZERO, |x| nearest(x / absmax));
    }
    absmax
}

/// Number of midpoints strictly below `x`.
#[inline]
fn nearest(x: f32) -> u8 {
    MIDPOINTS.iter().map(|m| i32::from(x > *m)).sum::<i32>() as u8
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    /// Deterministic values over several magnitudes.
    fn values(n: usize, seed: u64) -> Vec<f32> {
        let mut state = seed | 1;
        let mut next = || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32 - 0.5
        };
        (0..n).map(|i| (next() + next() + next()) * [0.02, 1.0, 3e-5][i / 200 % 3]).collect()
    }

    #[test]
    fn pieces_and_threads_do_not_change_the_bits() {
        let (rows, cols) = (301, 517);
        let x = values(rows * cols, 5);
        let bytes: Vec<u8> = x.iter().flat_map(|v| v.to_le_bytes()).collect();
        let shape = [rows, cols];
        let view =
            TensorView { name: "w", dtype: Dtype::F32, shape: &shape, bytes: &bytes, file: Path::new("w.safetensors") };
        for double in [false, true] {
            let whole = Nf4::from_view(&view, double, 1).unwrap();
            assert_eq!(whole, Nf4::from_view(&view, double, 2).unwrap());
            assert_eq!(whole, Nf4::from_view(&view, double, 7).unwrap());
            for piece in [1usize, 63, 517, 40_000] {
                let mut builder = Nf4Builder::new(rows, cols, Dtype::F32, double).unwrap();
                for p in x.chunks(piece) {
                    builder.push(p, 3).unwrap();
                }
                assert_eq!(whole, builder.finish().unwrap(), "pieces of {piece}");
            }
            assert_eq!(
                Nf4::bytes(rows, cols, double),
                match &whole.absmax {
                    Absmax::Plain(a) => whole.packed.len() + 4 * a.len(),
                    Absmax::Double { codes, absmax2, .. } => whole.packed.len() + codes.len() + 4 * absmax2.len() + 4,
                } as u64
            );
        }
    }

    /// The widest gap between codes is 1 - 0.696 on the left, so an element errs by at most half of it times absmax, and
    /// double quantisation moves absmax by little (here checked against its own decoded absmax).
    #[test]
    fn rows_and_blocks_agree_with_the_whole_and_the_error_is_bounded() {
        let (rows, cols) = (37, 45);
        let x = values(rows * cols, 9);
        let mut builder = Nf4Builder::new(rows, cols, Dtype::F32, false).unwrap();
        builder.push(&x, 1).unwrap();
        let q = builder.finish().unwrap();
        let mut whole = vec![f32::NAN; x.len()];
        q.dequantise_f32(&mut whole).unwrap();
        for (i, (got, want)) in whole.iter().zip(&x).enumerate() {
            let limit = q.block_absmax(i / BLOCK) * 0.1520;
            assert!((got - want).abs() <= limit, "{i}: {got} {want}");
        }
        for start in 0..rows {
            for end in start..=rows.min(start + 4) {
                let mut part = vec![f32::NAN; (end - start) * cols];
                q.rows_f32(start..end, &mut part).unwrap();
                assert_eq!(part, whole[start * cols..end * cols]);
                let mut part = vec![bf16::NAN; (end - start) * cols];
                q.rows_bf16(start..end, &mut part).unwrap();
                assert!(part.iter().zip(&whole[start * cols..]).all(|(p, w)| *p == bf16::from_f32(*w)));
            }
        }
        let mut block = [f32::NAN; BLOCK];
        for b in 0..q.blocks() {
            let n = q.block_f32(b, &mut block);
            assert_eq!(block[..n], whole[b * BLOCK..b * BLOCK + n]);
        }
        assert!(q.rows_f32(36..38, &mut [0.0; 90]).is_err());
        assert!(q.rows_f32(0..1, &mut [0.0; 44]).is_err());
    }

    #[test]
    fn what_is_not_finite_or_not_whole_is_refused() {
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            for at in [3, 64, 99] {
                let mut x = vec![1.0f32; 100];
                x[at] = bad;
                let mut builder = Nf4Builder::new(10, 10, Dtype::F32, true).unwrap();
                let result = builder.push(&x, 1).and_then(|()| builder.finish().map(|_| ()));
                assert!(result.unwrap_err().to_string().contains("NaN or infinity"), "{bad} at {at}");
            }
        }
        let mut builder = Nf4Builder::new(10, 10, Dtype::F32, true).unwrap();
        assert!(builder.push(&[1.0; 101], 1).is_err());
        builder.push(&[1.0; 99], 1).unwrap();
        assert!(builder.finish().unwrap_err().to_string().contains("99 of 100"));
        assert!(Nf4Builder::new(usize::MAX, 2, Dtype::F32, true).is_err());
        let empty = Nf4Builder::new(0, 5, Dtype::F32, true).unwrap().finish().unwrap();
        assert!(empty.is_empty());
    }
}
