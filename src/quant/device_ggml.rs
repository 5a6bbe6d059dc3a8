//! [`DeviceGgml`]: a matrix in blocks of ggml in the memory of a device that runs kernels, which dequantise it there.

use std::ops::Range;

use super::ggml::{Blocks, GgmlType};
use crate::device::{Buffer, Device, Exec, Kernel, abi, kernels};
use crate::error::{Error, Result};
use crate::tensor::{DType, Tensor};

/// A matrix (rows, cols) in blocks, in device memory. Each row is whole blocks.
pub struct DeviceGgml {
    pub ty: GgmlType,
    pub rows: usize,
    pub cols: usize,
    /// The blocks, and [`abi::GGML_SLACK`] bytes or more that mean nothing.
    data: Buffer,
    /// Bytes of the blocks.
    bytes: usize,
    device: Device,
}

impl DeviceGgml {
    /// A matrix whose blocks are not written yet: what a plan counts.
    ///
    /// # Errors
    /// [`Error::Shape`] if a row is not whole blocks, or for a type that kernels do not read; [`Error::Memory`].
    pub fn unwritten(ty: GgmlType, rows: usize, cols: usize, device: &Device) -> Result<Self> {
        dequantise_kernel(ty)?;
        let bytes = ty.tensor_bytes(&[cols, rows]).map_err(|why| Error::shape("ggml matrix", why))?;
        let data = device.alloc(bytes.saturating_add(abi::GGML_SLACK as usize))?;
        Ok(DeviceGgml { ty, rows, cols, data, bytes, device: device.clone() })
    }

    /// Copies a matrix to `device`.
    ///
    /// # Errors
    /// As [`DeviceGgml::unwritten`].
    pub fn upload(blocks: &Blocks, device: &Device) -> Result<Self> {
        let mut q = Self::unwritten(blocks.ty, blocks.rows, blocks.cols, device)?;
        q.data.write(0, blocks.bytes());
        Ok(q)
    }

    /// Bytes of its blocks.
    pub fn bytes(&self) -> usize {
        self.bytes
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Its blocks for a kernel's parameters.
    pub(crate) fn ptr(&self) -> *const u8 {
        self.data.addr() as *const u8
    }

    /// Rows `rows` into `out`: the f32 values of the blocks, rounded to bf16 once. Formulas: kernels/ggml.h.
    ///
    /// # Errors
    /// [`Error::Shape`] unless the rows exist and `out` is (rows.len(), cols) bf16.
    pub fn dequantise(&self, rows: Range<usize>, out: &mut Tensor) -> Result<()> {
        if rows.start > rows.end || rows.end > self.rows {
            return Err(Error::shape("ggml dequantise", format!("rows {rows:?} of ({}, {})", self.rows, self.cols)));
        }
        out.expect("ggml dequantise out", rows.len(), self.cols, DType::Bf16)?;
        let l = match self.device.exec() {
            Exec::Kernels(l) => l,
            Exec::Plan(_) => return Ok(()),
            Exec::Cpu(_) => return Err(Error::shape("ggml dequantise", "is asked of a device that runs no kernels")),
        };
        let kernel = dequantise_kernel(self.ty)?;
        let before = rows.start * (self.bytes / self.rows); // a matrix has rows
        let p = abi::GgmlDequantise {
            y: out.ptr_mut(),
            data: self.ptr().wrapping_add(before),
            count: out.len().try_into().map_err(|_| Error::shape("ggml dequantise", "more than a kernel counts"))?,
        };
        let grid = out.len().div_ceil((abi::GGML_BLOCK * abi::GGML_CHUNK) as usize);
        l.kernel(kernel).grid(grid).block(abi::GGML_BLOCK).shared(abi::GGML_SHARED as usize).launch(&p)
    }
}

fn dequantise_kernel(ty: GgmlType) -> Result<Kernel<abi::GgmlDequantise>> {
    Ok(match ty {
        GgmlType::F16 => kernels::GGML_DEQUANTISE_F16,
        GgmlType::Q4_0 => kernels::GGML_DEQUANTISE_Q4_0,
        GgmlType::Q4_1 => kernels::GGML_DEQUANTISE_Q4_1,
        GgmlType::Q5_0 => kernels::GGML_DEQUANTISE_Q5_0,
        GgmlType::Q5_1 => kernels::GGML_DEQUANTISE_Q5_1,
        GgmlType::Q8_0 => kernels::GGML_DEQUANTISE_Q8_0,
        GgmlType::Q2K => kernels::GGML_DEQUANTISE_Q2_K,
        GgmlType::Q3K => kernels::GGML_DEQUANTISE_Q3_K,
        GgmlType::Q4K => kernels::GGML_DEQUANTISE_Q4_K,
        GgmlType::Q5K => kernels::GGML_DEQUANTISE_Q5_K,
        GgmlType::Q6K => kernels::GGML_DEQUANTISE_Q6_K,
        GgmlType::F32 | GgmlType::Bf16 => {
            return Err(Error::shape("ggml matrix", format!("is {ty}, which is no quantised type: a tensor holds it")));
        }
    })
}
