//! [`DeviceNf4`]: an NF4 matrix in the memory of a device that runs kernels, which dequantise it there and multiply by it.

use std::ops::Range;
use std::sync::Arc;

use super::dynamic8;
use super::nf4::{Absmax, Nf4};
use super::quantiser;
use crate::device::{Buffer, Device, Exec, abi};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::tensor::{DType, Tensor};

/// The values of [`dynamic8::code`] in device memory, once for all matrices. Cheap to clone.
#[derive(Clone)]
pub struct Code2(pub(super) Arc<Tensor>);

impl Code2 {
    /// Copies the table to `device`.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn new(device: &Device) -> Result<Self> {
        let code = dynamic8::code();
        Ok(Code2(Arc::new(Tensor::from_slice(code, 1, code.len(), device)?)))
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.0.bytes()
    }
}

/// A matrix (rows, cols) in NF4, in device memory: the parts of [`Nf4`].
pub struct DeviceNf4 {
    pub rows: usize,
    pub cols: usize,
    /// What it was quantised from.
    pub source: Dtype,
    pub(super) packed: Buffer,
    pub(super) absmax: DeviceAbsmax,
    pub(super) device: Device,
}

pub(super) enum DeviceAbsmax {
    /// (1, blocks) f32.
    Plain(Tensor),
    /// u8 a block; (1, ceil(blocks / 256)) f32; (1, 1) f32; the values of the codes.
    Double { codes: Buffer, absmax2: Tensor, offset: Tensor, code2: Code2 },
}

impl DeviceNf4 {
    /// Copies a matrix to the device that holds `code2`.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn upload(q: &Nf4, code2: &Code2) -> Result<Self> {
        let device = code2.0.device().clone();
        let absmax = match &q.absmax {
            Absmax::Plain(a) => DeviceAbsmax::Plain(Tensor::from_slice(a, 1, a.len(), &device)?),
            Absmax::Double { codes, absmax2, offset } => DeviceAbsmax::Double {
                codes: filled(codes, &device)?,
                absmax2: Tensor::from_slice(absmax2, 1, absmax2.len(), &device)?,
                offset: Tensor::from_slice(&[*offset], 1, 1, &device)?,
                code2: code2.clone(),
            },
        };
        let packed = filled(&q.packed, &device)?;
        Ok(DeviceNf4 { rows: q.rows, cols: q.cols, source: q.source, packed, absmax, device })
    }

    /// Copies it back.
    pub fn download(&self) -> Nf4 {
        let absmax = match &self.absmax {
            DeviceAbsmax::Plain(a) => Absmax::Plain(a.read(0, a.len())),
            DeviceAbsmax::Double { codes, absmax2, offset, .. } => Absmax::Double {
                codes: contents(codes),
                absmax2: absmax2.read(0, absmax2.len()),
                offset: offset.read::<f32>(0, 1)[0],
            },
        };
        Nf4 { rows: self.rows, cols: self.cols, packed: contents(&self.packed), absmax, source: self.source }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no elements.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Bytes of device memory, the shared [`Code2`] not counted: [`Nf4::bytes`].
    pub fn bytes(&self) -> usize {
        self.packed.len()
            + match &self.absmax {
                DeviceAbsmax::Plain(a) => a.bytes(),
                DeviceAbsmax::Double { codes, absmax2, offset, .. } => codes.len() + absmax2.bytes() + offset.bytes(),
            }
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether its absmax are quantised too.
    pub fn is_double(&self) -> bool {
        matches!(self.absmax, DeviceAbsmax::Double { .. })
    }

    /// Its parts for a kernel's parameters.
    pub(crate) fn blocks(&self) -> abi::Nf4Blocks {
        let packed = self.packed.addr() as *const u8;
        let none = std::ptr::null();
        match &self.absmax {
            DeviceAbsmax::Plain(a) => {
                let (codes, absmax2, code2, offset) = (std::ptr::null(), none, none, none);
                abi::Nf4Blocks { packed, absmax: a.ptr(), codes, absmax2, code2, offset }
            }
            DeviceAbsmax::Double { codes, absmax2, offset, code2 } => abi::Nf4Blocks {
                packed,
                absmax: none,
                codes: codes.addr() as *const u8,
                absmax2: absmax2.ptr(),
                code2: code2.0.ptr(),
                offset: offset.ptr(),
            },
        }
    }

    /// The same matrix with its plain absmax quantised around `offset`, as [`nf4::double_quantise`]. Nothing happens to one
    /// whose absmax are quantised already.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub fn double_quantise(self, offset: f32, code2: &Code2) -> Result<Self> {
        let absmax = match self.absmax {
            DeviceAbsmax::Plain(absmax) => {
                let offset = Tensor::from_slice(&[offset], 1, 1, &self.device)?;
                quantiser::double_quantised(absmax.ptr(), absmax.len(), offset, code2)?
            }
            double => double,
        };
        Ok(DeviceNf4 { absmax, ..self })
    }

    /// Rows `rows` into `out`, bf16 or f32: the bits of [`Nf4::rows_bf16`] and [`Nf4::rows_f32`].
    ///
    /// # Errors
    /// [`Error::Shape`] unless the rows exist and `out` is (rows.len(), cols).
    pub fn dequantise(&self, rows: Range<usize>, out: &mut Tensor) -> Result<()> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::shape("nf4 dequantise", format!("rows {rows:?} of ({}, {})", self.rows, self.cols)));
        }
        out.expect("nf4 dequantise out", rows.len(), self.cols, out.dtype())?;
        match self.device.exec() {
            Exec::Kernels(l) => launch::dequantise(l, out, self, rows.start * self.cols),
            Exec::Plan(_) => Ok(()),
            Exec::Cpu(_) => Err(needs_kernels("nf4 dequantise")),
        }
    }
}

/// On the CPU [`Nf4`] itself is read.
pub(super) fn needs_kernels(op: &'static str) -> Error {
    Error::shape(op, "is asked of a device that runs no kernels")
}

/// The launch; formula and shapes: kernels/nf4.h.
mod launch {
    use super::quantiser::size;
    use super::{DType, DeviceNf4, Tensor};
    use crate::device::{Kernel, Launcher, abi, kernels};
    use crate::error::{Error, Result};

    pub(super) fn dequantise(l: &Launcher, out: &mut Tensor, q: &DeviceNf4, first: usize) -> Result<()> {
        let kernel: Kernel<abi::Nf4Dequantise> = match out.dtype() {
            DType::Bf16 => kernels::NF4_DEQUANTISE_BF16,
            DType::F32 => kernels::NF4_DEQUANTISE_F32,
            other => return Err(Error::shape("nf4", format!("{other:?}: kernels write bf16 and f32"))),
        };
        let (y, y32, count) = (out.ptr_mut(), out.ptr_mut(), out.len());
        let p = abi::Nf4Dequantise { y, y32, w: q.blocks(), first: size(first)?, count: size(count)? };
        let grid = count.div_ceil(abi::NF4_DEQUANTISE_TILE as usize);
        l.kernel(kernel).grid(grid).block(abi::NF4_THREADS).shared(16 * 4).launch(&p)
    }
}

/// A buffer with these bytes.
fn filled(bytes: &[u8], device: &Device) -> Result<Buffer> {
    let mut buffer = device.alloc(bytes.len())?;
    buffer.write(0, bytes);
    Ok(buffer)
}

/// The bytes of a buffer.
fn contents(buffer: &Buffer) -> Vec<u8> {
    let mut bytes = vec![0; buffer.len()];
    buffer.read(0, &mut bytes);
    bytes
}
