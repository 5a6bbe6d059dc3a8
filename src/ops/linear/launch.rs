use super::{Linear, Lora, Matrix, Scratch};
use crate::device::{Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::product::{self, Operand, Out};
use crate::ops::{Slot, no_kernel, size};
use crate::quant::DeviceNf4;
use crate::tensor::Tensor;

/// W as a product reads it.
enum Weights<'a> {
    Dense(Operand),
    /// Rows of whole blocks.
    Nf4(&'a DeviceNf4),
}

/// Which side of the product W is on.
#[derive(Clone, Copy)]
enum By {
    /// x W^T
    Transpose,
    /// dy W
    Itself,
}

/// Enqueues y = P B^T + x W^T + bias + add, P = s drop(x) A^T before it. Formulas: kernels/gemm.h, kernels/gemm_nf4.h. Shapes
/// were checked by [`super::fwd`].
pub(super) fn fwd(
    l: &Launcher,
    y: &mut Tensor,
    x: &Tensor,
    layer: &Linear,
    add: Option<&Tensor>,
    p: Option<&mut Tensor>,
    mut scratch: Option<Tensor>,
) -> Result<()> {
    let of_x = Operand::of("linear x", x)?;
    let w = weights(&layer.w, scratch.as_mut())?;
    let mut g = product(Out::of("linear y", y)?, of_x, &w, x.live())?;
    if let (Some(lora), Some(p)) = (&layer.lora, p) {
        let a = Operand::slot("lora A", lora.a)?;
        let mid =
            product::params(Out::of("linear P", p)?, of_x, a, x.rows(), a.cols, lora.scale as f32, false, x.live())?;
        product::launch_nt(l, &dropped(l, mid, lora, abi::GEMM_DROP_A))?;
        g = product::with_second(g, Operand::of("linear P", p)?, Operand::slot("lora B", lora.b)?)?;
    }
    if let Some(bias) = &layer.bias {
        g.bias = bias.ptr();
    }
    if let Some(add) = add {
        g.add = add.ptr();
    }
    launch(l, g, &w, By::Transpose)
}

/// Enqueues the gradients: of W, bias, B and A added to `grads`, and dx = drop'(Q A) + dy W (+ dx), Q = s dy B. `lora` holds P
/// and the place of Q. Shapes were checked by [`super::bwd`].
#[allow(clippy::too_many_arguments)] // the operands of five products
pub(super) fn bwd(
    l: &Launcher,
    dx: Option<&mut Tensor>,
    accumulate: bool,
    x: &Tensor,
    layer: &Linear,
    dy: &Tensor,
    lora: Option<(&Tensor, &mut Tensor)>,
    grads: &mut Tensor,
    mut scratch: Scratch,
) -> Result<()> {
    let (of_x, of_dy, live) = (Operand::of("linear x", x)?, Operand::of("linear dy", dy)?, x.live());
    let mut partial = scratch.partial.as_mut();
    let mut sum = |slot: Slot, a: Operand, b: Operand, drop: Option<&Lora>, grads: &mut Tensor| {
        let mut g = product::params(Out::grad(slot, grads), a, b, slot.rows, a.rows, 1.0, true, live)?;
        if let Some(lora) = drop {
            g = dropped(l, g, lora, abi::GEMM_DROP_B);
        }
        product::launch_tn(l, g, partial.as_deref_mut())
    };
    if let Some(w) = layer.w.trained() {
        sum(w, of_dy, of_x, None, grads)?;
    }
    if let Some(bias) = layer.bias.filter(|b| b.grad) {
        columns(l, bias, of_dy, live, grads)?;
    }
    let mut second = None;
    if let (Some(lora), Some((p, q))) = (&layer.lora, lora) {
        let b = Operand::slot("lora B", lora.b)?;
        if lora.b.grad {
            sum(lora.b, of_dy, Operand::of("linear P", p)?, None, grads)?;
        }
        let mid =
            product::params(Out::of("linear Q", q)?, of_dy, b, dy.rows(), b.rows, lora.scale as f32, false, live)?;
        product::launch_nn(l, &mid)?;
        let of_q = Operand::of("linear Q", q)?;
        if lora.a.grad {
            sum(lora.a, of_q, of_x, Some(lora), grads)?;
        }
        second = Some((of_q, lora));
    }
    let Some(dx) = dx else { return Ok(()) };
    let to = Out::of("linear dx", dx)?;
    let w = weights(&layer.w, scratch.w.as_mut())?;
    let mut g = product(to, of_dy, &w, live)?;
    if let Some((q, lora)) = second {
        g = product::with_second(g, q, Operand::slot("lora A", lora.a)?)?;
        g = dropped(l, g, lora, abi::GEMM_DROP_SECOND);
    }
    if accumulate {
        g.add = to.ptr.cast_const().cast();
    }
    launch(l, g, &w, By::Itself)
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

fn launch(l: &Launcher, g: abi::Gemm, w: &Weights, by: By) -> Result<()> {
    match (w, by) {
        (Weights::Dense(_), By::Transpose) => product::launch_nt(l, &g),
        (Weights::Dense(_), By::Itself) => product::launch_nn(l, &g),
        (Weights::Nf4(q), By::Transpose) => product::launch_nf4_nt(l, &abi::GemmNf4 { g, w: q.blocks() }),
        (Weights::Nf4(q), By::Itself) => product::launch_nf4_nn(l, &abi::GemmNf4 { g, w: q.blocks() }),
    }
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
