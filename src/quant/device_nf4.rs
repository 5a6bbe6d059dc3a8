//! [`DeviceNf4`]: an NF4 matrix in the memory of a device that runs kernels, which dequantise it there and multiply by it.

use std::sync::Arc;

use super::dynamic8;
use super::nf4::{Absmax, Nf4};
use crate::device::{Buffer, Device};
use crate::error::Result;
use crate::format::Dtype;
use crate::tensor::Tensor;

/// The values of [`dynamic8::code`] in device memory, once for all matrices. Cheap to clone.
#[derive(Clone)]
pub struct Code2(Arc<Tensor>);

impl Code2 {
    /// Copies the table to `device`.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
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
    packed: Buffer,
    absmax: DeviceAbsmax,
    device: Device,
}

enum DeviceAbsmax {
    /// (1, blocks) f32.
    Plain(Tensor),
    /// u8 a block; (1, ceil(blocks / 256)) f32; (1, 1) f32; the values of the codes.
    Double { codes: Buffer, absmax2: Tensor, offset: Tensor, code2: Code2 },
}

impl DeviceNf4 {
    /// Copies a matrix to the device that holds `code2`.
    ///
    /// # Errors
    /// [`crate::Error::Memory`].
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

    /// ceil(rows * cols / 2) bytes, aligned to 64, for a kernel's parameters; element 2i in the high nibble of byte i.
    pub(crate) fn packed_ptr(&self) -> *const u8 {
        self.packed.addr() as *const u8
    }

    /// The absmax as computed, one a block; null if they are quantised.
    pub(crate) fn absmax_ptr(&self) -> *const f32 {
        match &self.absmax {
            DeviceAbsmax::Plain(a) => a.ptr(),
            DeviceAbsmax::Double { .. } => std::ptr::null(),
        }
    }

    /// The codes of the absmax, one a block; null if they are plain.
    pub(crate) fn codes_ptr(&self) -> *const u8 {
        match &self.absmax {
            DeviceAbsmax::Plain(_) => std::ptr::null(),
            DeviceAbsmax::Double { codes, .. } => codes.addr() as *const u8,
        }
    }

    /// The absmax of 256 absmax - offset each; null if they are plain.
    pub(crate) fn absmax2_ptr(&self) -> *const f32 {
        match &self.absmax {
            DeviceAbsmax::Plain(_) => std::ptr::null(),
            DeviceAbsmax::Double { absmax2, .. } => absmax2.ptr(),
        }
    }

    /// The one offset of all absmax; null if they are plain.
    pub(crate) fn offset_ptr(&self) -> *const f32 {
        match &self.absmax {
            DeviceAbsmax::Plain(_) => std::ptr::null(),
            DeviceAbsmax::Double { offset, .. } => offset.ptr(),
        }
    }

    /// The 256 values of the codes; null if they are plain.
    pub(crate) fn code2_ptr(&self) -> *const f32 {
        match &self.absmax {
            DeviceAbsmax::Plain(_) => std::ptr::null(),
            DeviceAbsmax::Double { code2, .. } => code2.0.ptr(),
        }
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
