//! A layer in f16, on kernels: W in NF4, x, y and their gradients in f16, and nothing trained. Formulas, rounding and range:
//! kernels/gemm_nf4.h.

use std::ptr;

use super::{Bwd, Fwd, Linear, Matrix};
use crate::device::{Launcher, abi};
use crate::error::{Error, Result};
use crate::ops::product::{self, Operand, Out};
use crate::ops::{group, no_kernel};
use crate::quant::nf4::BLOCK;
use crate::tensor::Tensor;

/// # Errors
/// [`Error::Shape`] for a layer that there is none of in f16.
pub(super) fn check(x: &Tensor, l: &Linear) -> Result<()> {
    const WHAT: &str = "linear in f16";
    if !matches!(l.w, Matrix::DeviceNf4(_) | Matrix::Planned(..)) || !x.device().runs_kernels() {
        return Err(no_kernel(WHAT, "a matrix other than NF4 in the memory of a GPU"));
    }
    if l.lora.is_some() || l.bias.is_some_and(|bias| bias.grad) {
        return Err(no_kernel(WHAT, "an adapter or a trained bias, which are in bf16"));
    }
    let (_, inn) = l.w.dims();
    if !inn.is_multiple_of(BLOCK) {
        let why = format!("{inn} in-features, no multiple of the {BLOCK} of an NF4 block");
        return Err(no_kernel(WHAT, &why));
    }
    Ok(())
}

/// Enqueues y = x W^T + bias + add of all members. What they are was checked by [`check`], shapes by [`super::fwd_group`].
pub(super) fn fwd(l: &Launcher, x: &Tensor, members: &mut [&mut Fwd]) -> Result<()> {
    let mut all = Vec::with_capacity(members.len());
    for m in members {
        let (g, w) = product(&mut m.y, x, m.l, x)?;
        let bias = m.l.bias.map_or(ptr::null(), |bias| bias.ptr());
        all.push((abi::Gemm { bias, add: m.add.map_or(ptr::null(), Tensor::ptr), ..g }, w));
    }
    group::nf4_nt_f16(l, &all)
}

/// Enqueues dx = dy W (+ dx) of one member.
pub(super) fn dx(l: &Launcher, dx: &mut Tensor, accumulate: bool, x: &Tensor, m: &Bwd) -> Result<()> {
    let (g, w) = product(dx, m.dy, m.l, x)?;
    let add = if accumulate { g.c.cast_const() } else { ptr::null() };
    group::nf4_nn_f16(l, &[(abi::Gemm { add, ..g }, w)])
}

/// The parameters of `c` = `a` times W (or its transpose) in the live rows of `x`, and W.
fn product(c: &mut Tensor, a: &Tensor, l: &Linear, x: &Tensor) -> Result<(abi::Gemm, abi::Nf4Blocks)> {
    let Matrix::DeviceNf4(q) = l.w else {
        return Err(Error::shape("linear w", "is not in the memory of the device"));
    };
    // Read through its blocks.
    let w = Operand { ptr: ptr::null(), rows: q.rows, cols: q.cols, ld: q.cols };
    let g = product::params(Out::whole(c), Operand::whole(a), w, a.rows(), a.cols(), 1.0, false, x.live())?;
    Ok((g, q.blocks()))
}
