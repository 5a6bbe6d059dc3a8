//! [`Quantiser`]: matrices from their files into NF4 by kernels, as a model is loaded.

use super::device_nf4::{DeviceAbsmax, DeviceNf4, needs_kernels};
use super::nf4::BLOCK;
use super::{Code2, dynamic8};
use crate::device::{Buffer, Device, Exec, Launcher, abi, bytes_of, bytes_of_mut, kernels};
use crate::error::{Error, Result};
use crate::format::{Dtype, TensorView};
use crate::tensor::{DType, Tensor};

/// Elements of a matrix that are on the device before they are quantised, at a time: 16 MiB of f32.
const PIECE: usize = 4 << 20;
/// Elements widened at a time: what is copied next is still in the cache.
const WIDENED: usize = 16 << 10;

/// Quantises matrices on a device that runs kernels, straight from their files. What it needs beside the results it takes
/// once, for all matrices: room for a piece of a matrix, and for the absmax of the largest before they are quantised too.
pub struct Quantiser {
    code2: Code2,
    /// Elements, whole blocks.
    piece: usize,
    source: Option<Buffer>,
    absmax: Option<Buffer>,
}

impl Quantiser {
    /// Takes no memory yet but that of [`Code2`].
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(device: &Device) -> Result<Self> {
        Self::in_pieces(PIECE, device)
    }

    /// As [`Quantiser::new`], with pieces of about so many elements; their number does not change a bit.
    ///
    /// # Errors
    /// As [`Quantiser::new`].
    pub fn in_pieces(elements: usize, device: &Device) -> Result<Self> {
        let piece = elements.next_multiple_of(BLOCK).max(BLOCK);
        Ok(Quantiser { code2: Code2::new(device)?, piece, source: None, absmax: None })
    }

    /// Most bytes of device memory that it takes beside the results for matrices of up to `largest` elements.
    pub fn bytes(largest: usize, double: bool) -> u64 {
        let absmax = if double { largest.div_ceil(BLOCK) } else { 0 };
        (largest.min(PIECE) * 4 + absmax * 4) as u64
    }

    /// Copies the matrix to the device, bf16 as it is, f32 and f16 as f32, and quantises it there: the bits of
    /// [`super::Nf4::from_view`]. Dimensions after the first count as columns.
    ///
    /// # Errors
    /// [`Error::Weights`] if it holds NaN or infinity or is not F32, F16 or BF16; [`Error::Memory`]; [`Error::Kernel`].
    pub fn quantise(&mut self, view: &TensorView<'_>, double: bool) -> Result<DeviceNf4> {
        let device = self.code2.0.device().clone();
        let Exec::Kernels(l) = device.exec() else { return Err(needs_kernels("nf4 quantise")) };
        let n = view.len();
        let begun = self.begin(n, double)?;
        let source = room(&mut self.source, n.min(self.piece) * 4, &device)?;
        for first in (0..n).step_by(self.piece) {
            let count = self.piece.min(n - first);
            send(view, first, count, source)?;
            // A piece is whole blocks, so that its codes begin with a byte of their own.
            let to = (begun.packed.addr() as *mut u8).wrapping_add(first / 2);
            launch::quantise(l, (to, begun.absmax.wrapping_add(first / BLOCK)), source.addr(), view.dtype, count)?;
        }
        self.end(begun, view.rows_cols(), view.dtype, |why| view.wrong(why))
    }

    /// As [`Quantiser::quantise`], of a matrix that is in the device's memory already, bf16 or f32.
    ///
    /// # Errors
    /// [`Error::Shape`] if it holds NaN or infinity or is of another dtype; [`Error::Memory`]; [`Error::Kernel`].
    pub fn quantise_resident(&mut self, x: &Tensor, double: bool) -> Result<DeviceNf4> {
        let device = self.code2.0.device().clone();
        let Exec::Kernels(l) = device.exec() else { return Err(needs_kernels("nf4 quantise")) };
        let (at, source) = match x.dtype() {
            DType::Bf16 => (x.ptr::<half::bf16>() as u64, Dtype::BF16),
            DType::F32 => (x.ptr::<f32>() as u64, Dtype::F32),
            other => return Err(Error::shape("nf4 quantise", format!("is {other:?}: kernels read bf16 and f32"))),
        };
        let begun = self.begin(x.len(), double)?;
        launch::quantise(l, (begun.packed.addr() as *mut u8, begun.absmax), at, source, x.len())?;
        self.end(begun, (x.rows(), x.cols()), source, |why| Error::shape("nf4 quantise", why))
    }

    /// Room for the results of `n` elements.
    fn begin(&mut self, n: usize, double: bool) -> Result<Begun> {
        let device = self.code2.0.device().clone();
        let blocks = n.div_ceil(BLOCK);
        let packed = device.alloc(n.div_ceil(2))?;
        // What stays, or what the next matrix writes over.
        let plain = match double {
            true => None,
            false => Some(Tensor::unwritten(1, blocks, DType::F32, &device)?),
        };
        let absmax = match &plain {
            Some(absmax) => absmax.ptr::<f32>().cast_mut(),
            None => room(&mut self.absmax, blocks * 4, &device)?.addr() as *mut f32,
        };
        Ok(Begun { packed, plain, absmax, blocks })
    }

    /// What becomes of it once codes and absmax are there. `wrong` makes the error for what is not finite.
    fn end(
        &self,
        begun: Begun,
        (rows, cols): (usize, usize),
        source: Dtype,
        wrong: impl FnOnce(String) -> Error,
    ) -> Result<DeviceNf4> {
        let Begun { packed, plain, absmax, blocks } = begun;
        let device = self.code2.0.device().clone();
        let Exec::Kernels(l) = device.exec() else { return Err(needs_kernels("nf4 quantise")) };
        let mut offset = Tensor::unwritten(1, 1, DType::F32, &device)?;
        launch::mean(l, &mut offset, absmax, blocks)?;
        // One element that is not finite makes its absmax, and so the mean, not finite.
        if !offset.read::<f32>(0, 1)[0].is_finite() {
            device.synchronize()?;
            let mut seen = vec![0.0f32; blocks];
            match (&plain, &self.absmax) {
                (Some(absmax), _) => seen = absmax.read(0, blocks),
                (None, kept) => kept.iter().for_each(|b| b.read(0, bytes_of_mut(&mut seen))),
            }
            let at = seen.iter().position(|a| !a.is_finite()).unwrap_or(0) * BLOCK;
            return Err(wrong(format!("holds NaN or infinity near element {at}")));
        }
        let absmax = match plain {
            Some(absmax) => DeviceAbsmax::Plain(absmax),
            None => double_quantised(absmax, blocks, offset, &self.code2)?,
        };
        Ok(DeviceNf4 { rows, cols, source, packed, absmax, device })
    }
}

/// A matrix on its way: its codes, and its absmax where they stay or where they wait to be quantised.
struct Begun {
    packed: Buffer,
    plain: Option<Tensor>,
    absmax: *mut f32,
    blocks: usize,
}

/// A buffer of at least so many bytes, kept for the next time. (A smaller one goes before the larger one comes.)
fn room<'a>(kept: &'a mut Option<Buffer>, bytes: usize, device: &Device) -> Result<&'a mut Buffer> {
    if kept.as_ref().is_some_and(|b| b.len() < bytes) {
        *kept = None;
    }
    match kept {
        Some(buffer) => Ok(buffer),
        none => Ok(none.insert(device.alloc(bytes)?)),
    }
}

/// Elements `first` .. `first + count` to the beginning of `to`, by way of the device's pinned staging.
fn send(view: &TensorView<'_>, first: usize, count: usize, to: &mut Buffer) -> Result<()> {
    // Files are little-endian, as every machine with such a device is.
    if matches!(view.dtype, Dtype::BF16 | Dtype::F32) {
        let size = view.dtype.size();
        to.write(0, &view.bytes[first * size..(first + count) * size]);
        return Ok(());
    }
    let mut values = vec![0.0f32; count.min(WIDENED)];
    for at in (0..count).step_by(WIDENED) {
        let values = &mut values[..WIDENED.min(count - at)];
        view.read_f32_range(first + at..first + at + values.len(), values)?;
        to.write(at * 4, bytes_of(values));
    }
    Ok(())
}

/// `blocks` absmax at `absmax`, quantised around `offset`, as [`super::nf4::double_quantise`].
pub(super) fn double_quantised(
    absmax: *const f32,
    blocks: usize,
    offset: Tensor,
    code2: &Code2,
) -> Result<DeviceAbsmax> {
    let device = offset.device().clone();
    let Exec::Kernels(l) = device.exec() else { return Err(needs_kernels("nf4 double quantise")) };
    let codes = device.alloc(blocks)?;
    let mut absmax2 = Tensor::unwritten(1, blocks.div_ceil(dynamic8::BLOCK), DType::F32, &device)?;
    launch::absmax(l, (&codes, &mut absmax2), (absmax, blocks), &offset, code2)?;
    Ok(DeviceAbsmax::Double { codes, absmax2, offset, code2: code2.clone() })
}

/// A count for a kernel's parameters.
pub(super) fn size(n: usize) -> Result<i64> {
    i64::try_from(n).map_err(|_| Error::shape("nf4", format!("{n} elements are more than a kernel counts")))
}

/// Launches; formulas and shapes: kernels/nf4.h.
mod launch {
    use super::{Buffer, Code2, Dtype, Launcher, Result, Tensor, abi, dynamic8, kernels, size};

    /// `n` elements at the address `x`, which are bf16 if that is the file's dtype, else f32.
    pub(super) fn quantise(
        l: &Launcher,
        (packed, absmax): (*mut u8, *mut f32),
        x: u64,
        dtype: Dtype,
        n: usize,
    ) -> Result<()> {
        let kernel = if dtype == Dtype::BF16 { kernels::NF4_QUANTISE_BF16 } else { kernels::NF4_QUANTISE_F32 };
        let (x, x32) = (x as *const half::bf16, x as *const f32);
        let p = abi::Nf4Quantise { packed, absmax, x, x32, n: size(n)? };
        let grid = n.div_ceil(abi::NF4_QUANTISE_TILE as usize);
        l.kernel(kernel).grid(grid).block(abi::NF4_THREADS).launch(&p)
    }

    pub(super) fn mean(l: &Launcher, offset: &mut Tensor, absmax: *const f32, blocks: usize) -> Result<()> {
        let p = abi::Nf4Mean { offset: offset.ptr_mut(), absmax, blocks: size(blocks)? };
        let lanes = abi::NF4_MEAN_LANES;
        l.kernel(kernels::NF4_MEAN).block(lanes).shared(lanes as usize * 8).launch(&p)
    }

    pub(super) fn absmax(
        l: &Launcher,
        (codes, absmax2): (&Buffer, &mut Tensor),
        (absmax, blocks): (*const f32, usize),
        offset: &Tensor,
        code2: &Code2,
    ) -> Result<()> {
        let p = abi::Nf4QuantiseAbsmax {
            codes: codes.addr() as *mut u8,
            absmax2: absmax2.ptr_mut(),
            absmax,
            offset: offset.ptr(),
            code2: code2.0.ptr(),
            blocks: size(blocks)?,
        };
        let threads = abi::NF4_BLOCK2;
        let shared = (dynamic8::BLOCK + (threads / abi::QE_WARP) as usize) * 4;
        l.kernel(kernels::NF4_QUANTISE_ABSMAX).grid(absmax2.len()).block(threads).shared(shared).launch(&p)
    }
}
