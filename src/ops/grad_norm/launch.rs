use crate::device::{Launcher, abi, kernels};
use crate::error::{Error, Result};
use crate::ops::{no_kernel, size};
use crate::tensor::{DType, Tensor};

/// Enqueues `grad_norm_partial` and `grad_norm_total`; formula and shapes: kernels/grad_norm.h.
pub(super) fn into(l: &Launcher, value: &mut Tensor, partial: &mut Tensor, g: &Tensor) -> Result<()> {
    if g.dtype() != DType::F32 {
        return Err(no_kernel("grad_norm", &format!("{:?}", g.dtype())));
    }
    let chunks = g.len().div_ceil(abi::GRAD_NORM_CHUNK as usize);
    if partial.len() != chunks {
        let why = format!("{} chunks of a gradient were reserved, {chunks} are needed", partial.len());
        return Err(Error::shape("grad_norm", why));
    }
    let block = abi::GRAD_NORM_BLOCK;
    let shared = (block / abi::QE_WARP) as usize * 8;
    let p = abi::GradNormPartial { partial: partial.ptr_mut(), g: g.ptr(), n: size("gradient", g.len())? };
    l.kernel(kernels::GRAD_NORM_PARTIAL).grid(chunks).block(block).shared(shared).launch(&p)?;
    let chunks = size("chunks", chunks)?;
    let p = abi::GradNormTotal { norm: value.ptr_mut(), partial: partial.ptr(), chunks };
    l.kernel(kernels::GRAD_NORM_TOTAL).block(block).shared(shared).launch(&p)
}
