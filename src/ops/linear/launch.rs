use super::{Bwd, Fwd, Lora, Matrix, lora_bwd};
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::product::{self, Operand, Out};
use crate::ops::{Slot, group, no_kernel, size};
use crate::quant::DeviceNf4;
use crate::tensor::Tensor;

/// W as a product reads it.
enum Weights<'a> {
    Dense(Operand),
    /// Rows of whole blocks.
    Nf4(&'a DeviceNf4),
}

/// Enqueues P = s drop(x) A^T of all members. Formulas: kernels/gemm.h. Shapes were checked by [`super::fwd_group`].
pub(super) fn project(l: &Launcher, x: &Tensor, members: &mut [&mut Fwd]) -> Result<()> {
    let (of_x, live) = (Operand::of("linear x", x)?, x.live());
    let mut all = Vec::new();
    for m in members {
        let (Some(lora), Some(p)) = (&m.l.lora, &mut m.p) else { continue };
        let (p, a) = (Out::of("linear P", p)?, Operand::slot("lora A", lora.a)?);
        let mid = product::params(p, of_x, a, x.rows(), a.cols, lora.scale as f32, false, live)?;
        all.push(dropped(l, mid, lora, abi::GEMM_DROP_A));
    }
    group::nt(l, &all)
}

/// Enqueues y = P B^T + x W^T + bias + add of all members, by way of a `copy` of W where there is one (then of one member).
/// Formulas: kernels/gemm.h, kernels/gemm_nf4.h.
pub(super) fn fwd(l: &Launcher, x: &Tensor, members: &mut [&mut Fwd], mut copy: Option<&mut Tensor>) -> Result<()> {
    let of_x = Operand::of("linear x", x)?;
    let (mut dense, mut nf4) = (Vec::new(), Vec::new());
    for m in members {
        let w = weights(&m.l.w, copy.as_deref_mut())?;
        let mut g = product(Out::of("linear y", &mut m.y)?, of_x, &w, x.live())?;
        if let (Some(lora), Some(p)) = (&m.l.lora, &m.p) {
            g = product::with_second(g, Operand::of("linear P", p)?, Operand::slot("lora B", lora.b)?)?;
        }
        if let Some(bias) = &m.l.bias {
            g.bias = bias.ptr();
        }
        if let Some(add) = m.add {
            g.add = add.ptr();
        }
        match w {
            Weights::Dense(_) => dense.push(g),
            Weights::Nf4(q) => nf4.push((g, q.blocks())),
        }
    }
    group::nt(l, &dense)?;
    group::nf4_nt(l, &nf4)
}

/// Enqueues the gradients of all members' parameters, added to `grads`: of W, bias, B and A; and Q = s dy B. Shapes were
/// checked by [`super::bwd_group`]. `partial` is the scratch of products over rows.
pub(super) fn gradients(
    l: &Launcher,
    x: &Tensor,
    members: &mut [Bwd],
    grads: &mut Tensor,
    mut partial: Option<&mut Tensor>,
) -> Result<()> {
    lora_bwd::bwd(l, x, members, grads, partial.as_deref_mut())?;
    let (of_x, live) = (Operand::of("linear x", x)?, x.live());
    let mut sum = |slot: Slot, a: Operand, b: Operand| {
        product::params(Out::grad(slot, grads), a, b, slot.rows, a.rows, 1.0, true, live)
    };
    let (mut of_w, mut of_b, mut of_a, mut q) = (Vec::new(), Vec::new(), Vec::new(), Vec::new());
    for m in members.iter_mut() {
        let of_dy = Operand::of("linear dy", m.dy)?;
        if let Some(w) = m.l.w.trained() {
            of_w.push(sum(w, of_dy, of_x)?);
        }
        let (Some(lora), Some((p, mid))) = (&m.l.lora, &mut m.lora) else { continue };
        if !lora_bwd::takes(lora) {
            let b = Operand::slot("lora B", lora.b)?;
            if lora.b.grad {
                of_b.push(sum(lora.b, of_dy, Operand::of("linear P", p)?)?);
            }
            let to = Out::of("linear Q", mid)?;
            q.push(product::params(to, of_dy, b, x.rows(), b.rows, lora.scale as f32, false, live)?);
        }
        if lora.a.grad {
            let g = sum(lora.a, Operand::of("linear Q", mid)?, of_x)?;
            of_a.push(dropped(l, g, lora, abi::GEMM_DROP_B));
        }
    }
    group::tn(l, &of_w, partial.as_deref_mut())?;
    group::tn(l, &of_b, partial.as_deref_mut())?;
    group::nn(l, &q)?;
    group::tn(l, &of_a, partial)?;
    for m in members {
        if let Some(bias) = m.l.bias.filter(|b| b.grad) {
            columns(l, bias, Operand::of("linear dy", m.dy)?, live, grads)?;
        }
    }
    Ok(())
}

/// Enqueues dx = drop'(Q A) + dy W (+ dx) of one member, after its Q.
pub(super) fn dx(
    l: &Launcher,
    dx: &mut Tensor,
    accumulate: bool,
    x: &Tensor,
    m: &Bwd,
    copy: Option<&mut Tensor>,
) -> Result<()> {
    let to = Out::of("linear dx", dx)?;
    let w = weights(&m.l.w, copy)?;
    let mut g = product(to, Operand::of("linear dy", m.dy)?, &w, x.live())?;
    if let (Some(lora), Some((_, q))) = (&m.l.lora, &m.lora) {
        g = product::with_second(g, Operand::of("linear Q", q)?, Operand::slot("lora A", lora.a)?)?;
        g = dropped(l, g, lora, abi::GEMM_DROP_SECOND);
    }
    if accumulate {
        g.add = to.ptr.cast_const().cast();
    }
    match w {
        Weights::Dense(_) => group::nn(l, &[g]),
        Weights::Nf4(q) => group::nf4_nn(l, &[(g, q.blocks())]),
    }
}

/// W, dequantised into `scratch` where there is one.
fn weights<'a>(w: &Matrix<'a>, scratch: Option<&mut Tensor>) -> Result<Weights<'a>> {
    match (w, scratch) {
        (Matrix::Dense(s), _) => Ok(Weights::Dense(Operand::slot("linear w", *s)?)),
        (Matrix::DeviceNf4(q), Some(dense)) => {
            q.dequantise(0..q.rows, dense)?;
            Ok(Weights::Dense(Operand::of("linear w", dense)?))
        }
        (Matrix::DeviceNf4(q), None) => Ok(Weights::Nf4(q)),
        (Matrix::DeviceGgml(q), Some(dense)) => {
            q.dequantise(0..q.rows, dense)?;
            Ok(Weights::Dense(Operand::of("linear w", dense)?))
        }
        (Matrix::DeviceGgml(_), None) => {
            Err(no_kernel("linear w", "blocks of ggml without a place to dequantise them"))
        }
        (Matrix::Nf4(_) | Matrix::Ggml(_) | Matrix::Planned(..), _) => {
            unreachable!("refused by the op's check, or only counted")
        }
    }
}

/// The parameters of `c` = `a` times W; the depth is what `a` has columns.
fn product(c: Out, a: Operand, w: &Weights, live: *const u32) -> Result<abi::Gemm> {
    let b = match w {
        Weights::Dense(b) => *b,
        // Read through its blocks.
        Weights::Nf4(q) => Operand { ptr: std::ptr::null(), rows: q.rows, cols: q.cols, ld: q.cols },
    };
    product::params(c, a, b, c.rows, a.cols, 1.0, false, live)
}

/// `g` with the layer's dropout, if it has one, at the place `at`. Seed and step are the device's.
fn dropped(l: &Launcher, g: abi::Gemm, lora: &Lora, at: u32) -> abi::Gemm {
    let Some((rate, stream)) = lora.dropout else { return g };
    abi::Gemm {
        dropout: at as i32,
        step: l.step(),
        module: stream.module,
        // x / 2^24 >= rate, for the 24-bit number x.
        drop_below: (rate * f64::from(1 << 24)).ceil() as u32,
        keep: (1.0 / (1.0 - rate)) as f32,
        ..g
    }
}

/// Enqueues `gemm_columns`: the gradient of a bias.
fn columns(l: &Launcher, bias: Slot, dy: Operand, live: *const u32, grads: &mut Tensor) -> Result<()> {
    let row = Operand { rows: 1, ..dy };
    let p = product::params(Out::grad(bias, grads), dy, row, 1, dy.rows, 1.0, true, live)?;
    debug_assert_eq!(p.n, size::<i64>("columns", dy.cols)?, "a bias has an element a column");
    let grid = dy.cols.div_ceil(abi::QE_WARP as usize);
    let shared = abi::GEMM_COLUMNS_SHARED as usize;
    l.kernel(kernels::GEMM_COLUMNS).grid(grid).block(abi::GEMM_COLUMNS_BLOCK).shared(shared).launch(&p)
}
