//! A linear layer with its adapter: y = x W^T + bias + s drop(x) A^T B^T (+ add).
//!
//! `W` (out, in) is dense, NF4 or in ggml blocks, `A` (r, in), `B` (out, r), `s` = alpha / r or alpha / sqrt(r). Hu et al. 2021,
//! arXiv:2106.09685; NF4 base: Dettmers et al. 2023, arXiv:2305.14314.
//!
//! Backward, with P = s drop(x) A^T saved and Q = s dy B:
//! dB += dy^T P; dA += Q^T drop(x); dx = dy W + drop'(Q A); and for a trained W: dW += dy^T x, dbias += sum_r dy.
//!
//! The layer never owns its input: the caller hands `x` to `bwd` again, kept or rebuilt.
//!
//! [`decode`] is the forward pass for the few rows of a step of generation.
//!
//! Rounding on kernels: P and Q to bf16, as drop(x); y and dx once, all their terms being summed in f32.

mod cpu;
mod decode;
mod launch;

pub use decode::{Group, decode, decode_grouped};

use crate::by_dtype;
use crate::device::Exec;
use crate::device::gemm::{Absmax, GgmlFast, GgmlRef, Nf4Ref};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::ops::philox::Stream;
use crate::ops::{Slot, no_kernel, product};
use crate::quant::ggml::{Blocks, GgmlType, dequantise};
use crate::quant::nf4::{self, Nf4};
use crate::quant::{DeviceGgml, DeviceNf4, dynamic8};
use crate::tensor::{DType, Tensor};

/// The matrix (out, in) of a layer.
#[derive(Clone, Copy)]
pub enum Matrix<'a> {
    Dense(Slot<'a>),
    /// Frozen, dequantised inside the product.
    Nf4(&'a Nf4),
    /// Frozen, in ggml blocks, dequantised inside the product: to f32 beside f32, rounded to bf16 beside bf16.
    Ggml(&'a Blocks),
    /// As `Nf4`, in the memory of a device that runs kernels.
    DeviceNf4(&'a DeviceNf4),
    /// Frozen, in blocks of ggml, in the memory of a device that runs kernels.
    DeviceGgml(&'a DeviceGgml),
    /// Frozen NF4 of a planned model: (out, in).
    Planned(usize, usize),
}

impl Matrix<'_> {
    fn dims(&self) -> (usize, usize) {
        match self {
            Matrix::Dense(s) => (s.rows, s.cols),
            Matrix::Nf4(q) => (q.rows, q.cols),
            Matrix::Ggml(q) => (q.rows, q.cols),
            Matrix::DeviceNf4(q) => (q.rows, q.cols),
            Matrix::DeviceGgml(q) => (q.rows, q.cols),
            Matrix::Planned(out, inn) => (*out, *inn),
        }
    }

    fn trained(&self) -> Option<Slot<'_>> {
        match self {
            Matrix::Dense(s) if s.grad => Some(*s),
            _ => None,
        }
    }

    /// The place of a bf16 copy, where kernels need one: the blocks of an NF4 matrix straddle its rows if a row is not
    /// whole blocks, and the product reads whole blocks; of ggml's blocks it reads none.
    fn scratch(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let (out, inn) = self.dims();
        match self {
            Matrix::DeviceGgml(_) => Ok(Some(Tensor::unwritten(out, inn, x.dtype(), x.device())?)),
            Matrix::DeviceNf4(_) | Matrix::Planned(..)
                if x.device().runs_kernels() && !inn.is_multiple_of(nf4::BLOCK) =>
            {
                Ok(Some(Tensor::unwritten(out, inn, x.dtype(), x.device())?))
            }
            _ => Ok(None),
        }
    }
}

/// A layer's low-rank adapter.
#[derive(Clone, Copy)]
pub struct Lora<'a> {
    /// A (r, in)
    pub a: Slot<'a>,
    /// B (out, r)
    pub b: Slot<'a>,
    pub scale: f64,
    /// Probability of zeroing an element of x before A, and the stream that decides; None in evaluation.
    pub dropout: Option<(f64, Stream)>,
}

/// A layer's parameters.
#[derive(Clone, Copy)]
pub struct Linear<'a> {
    pub w: Matrix<'a>,
    pub bias: Option<Slot<'a>>,
    pub lora: Option<Lora<'a>>,
}

/// P = s drop(x) A^T (rows, r), where there is an adapter.
#[derive(Default)]
pub struct Saved {
    p: Option<Tensor>,
}

/// `x` (rows, in) -> y (rows, out), plus `add` (rows, out) where given (a residual).
///
/// # Errors
/// [`Error::Shape`] if shapes or dtypes do not fit.
pub fn fwd(x: &Tensor, l: &Linear, add: Option<&Tensor>) -> Result<(Tensor, Saved)> {
    let (out, _) = check(x, l)?;
    if let Some(t) = add {
        t.expect("linear add", x.rows(), out, x.dtype())?;
    }
    // Kernels read `add` where it lies; on the CPU the product is added to a copy.
    let mut y = match add.filter(|_| !x.device().runs_kernels()) {
        Some(t) => t.copy()?,
        None => x.rows_like(out, x.dtype())?,
    };
    let dropped = dropped(x, l)?;
    let mut p = match &l.lora {
        Some(lora) => Some(x.rows_like(lora.a.rows, x.dtype())?),
        None => None,
    };
    let w = l.w.scratch(x)?;
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            let p = p.as_mut().map(|p| p.slice_mut::<T>());
            let xd = dropped.as_ref().map(|t| t.slice::<T>());
            cpu::fwd::<T>(pool, y.slice_mut(), x.slice(), xd, l, add.is_some(), p)
        }),
        Exec::Kernels(launcher) => launch::fwd(launcher, &mut y, x, l, add, p.as_mut(), w)?,
        Exec::Plan(c) => c.flops(product_flops(x.rows(), l)),
    }
    Ok((y, Saved { p }))
}

/// Where the gradient of the input goes.
pub enum Dx {
    /// Nothing below needs it.
    Skip,
    /// A tensor of its own.
    New,
    /// Added to that of another layer with the same input.
    AddTo(Tensor),
}

/// The gradient of `x`, as `dx` asks for it; gradients of trained parameters are added to the flat `grads`.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(saved: Saved, x: &Tensor, l: &Linear, dy: &Tensor, dx: Dx, grads: &mut Tensor) -> Result<Option<Tensor>> {
    let (out, inn) = check(x, l)?;
    dy.expect("linear dy", x.rows(), out, x.dtype())?;
    let (mut dx, accumulate) = match dx {
        Dx::Skip => (None, false),
        Dx::New => (Some(x.rows_like(inn, x.dtype())?), false),
        Dx::AddTo(t) => (Some(t), true),
    };
    if let Some(t) = &dx {
        t.expect("linear dx", x.rows(), inn, x.dtype())?;
    }
    let mut dropped = dropped(x, l)?;
    let mut q = match &saved.p {
        Some(p) => Some(p.like()?),
        None => None,
    };
    let scratch = Scratch::new(x, l, dx.is_some())?;
    match x.device().exec() {
        Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
            let lora = saved.p.as_ref().zip(q.as_mut()).map(|(p, q)| (p.slice::<T>(), q.slice_mut::<T>()));
            let xd = dropped.as_mut().map(|t| t.slice_mut::<T>());
            cpu::bwd::<T>(pool, dx.as_mut().map(|t| t.slice_mut::<T>()), accumulate, x.slice(), xd, l, dy.slice(), lora, grads)
        }),
        Exec::Kernels(launcher) => {
            let lora = saved.p.as_ref().zip(q.as_mut());
            launch::bwd(launcher, dx.as_mut(), accumulate, x, l, dy, lora, grads, scratch)?;
        }
        Exec::Plan(c) => c.flops(product_flops(x.rows(), l) * if l.w.trained().is_some() { 2.0 } else { 1.0 }),
    }
    Ok(dx)
}

/// What the backward pass needs on kernels alone.
struct Scratch {
    /// W in bf16.
    w: Option<Tensor>,
    /// Partial sums of the products over rows.
    partial: Option<Tensor>,
}

impl Scratch {
    fn new(x: &Tensor, l: &Linear, dx: bool) -> Result<Self> {
        if !x.device().runs_kernels() {
            return Ok(Scratch { w: None, partial: None });
        }
        let (out, inn) = l.w.dims();
        let sum = |trained, m, n| if trained { product::tn_scratch(m, n, x.rows()) } else { 0 };
        let of_lora = |lora: &Lora| {
            let r = lora.a.rows;
            sum(lora.a.grad, r, inn).max(sum(lora.b.grad, out, r))
        };
        let most = sum(l.w.trained().is_some(), out, inn).max(l.lora.as_ref().map_or(0, of_lora));
        let partial = if most > 0 { Some(Tensor::unwritten(1, most, DType::F32, x.device())?) } else { None };
        Ok(Scratch { w: if dx { l.w.scratch(x)? } else { None }, partial })
    }
}

/// drop(x) on the CPU, where there is dropout; kernels drop while they read. The mask is regenerated by its counter, never stored.
fn dropped(x: &Tensor, l: &Linear) -> Result<Option<Tensor>> {
    let dropout = l.lora.as_ref().and_then(|l| l.dropout).filter(|_| !x.device().runs_kernels());
    let Some((rate, stream)) = dropout else { return Ok(None) };
    let mut y = x.like()?;
    if let Exec::Cpu(pool) = x.device().exec() {
        by_dtype!(x.dtype(), T => cpu::dropout::<T>(pool, y.slice_mut(), x.slice(), rate, stream));
    }
    Ok(Some(y))
}

fn product_flops(rows: usize, l: &Linear) -> f64 {
    let (out, inn) = l.w.dims();
    let lora = l.lora.as_ref().map_or(0, |l| l.a.rows * (out + inn));
    2.0 * rows as f64 * (out as f64 * inn as f64 + lora as f64)
}

fn check(x: &Tensor, l: &Linear) -> Result<(usize, usize)> {
    let (out, inn) = l.w.dims();
    if x.cols() != inn {
        return Err(Error::shape("linear x", format!("has {} columns, the weight is ({out}, {inn})", x.cols())));
    }
    match &l.w {
        Matrix::Dense(s) => s.expect("linear w", out, inn, x)?,
        Matrix::Nf4(_) if x.dtype() == DType::F64 => {
            return Err(Error::shape("linear x", "is f64; NF4 weights multiply f32 or bf16"));
        }
        Matrix::Ggml(q) if x.dtype() == DType::F64 => {
            return Err(Error::shape("linear x", format!("is f64; {} weights multiply f32 or bf16", q.ty)));
        }
        Matrix::Ggml(_) if x.device().runs_kernels() => {
            return Err(no_kernel("linear w", "a matrix in ggml blocks"));
        }
        Matrix::Nf4(_) if x.device().runs_kernels() => {
            return Err(no_kernel("linear w", "an NF4 matrix outside device memory"));
        }
        Matrix::DeviceNf4(q) if !q.device().same(x.device()) => {
            return Err(Error::shape("linear w", "lies in the memory of another device than x"));
        }
        Matrix::DeviceGgml(q) if !q.device().same(x.device()) => {
            return Err(Error::shape("linear w", "lies in the memory of another device than x"));
        }
        _ => {}
    }
    if let Some(b) = &l.bias {
        b.expect("linear bias", 1, out, x)?;
    }
    if let Some(lora) = &l.lora {
        let r = lora.a.rows;
        lora.a.expect("lora A", r, inn, x)?;
        lora.b.expect("lora B", out, r, x)?;
    }
    Ok((out, inn))
}

/// The blocks of an NF4 matrix as the product reads them, `as_stored`: rounded to the checkpoint's dtype.
fn nf4_ref(q: &Nf4, as_stored: bool) -> Nf4Ref<'_> {
    let absmax = match &q.absmax {
        nf4::Absmax::Plain(absmax) => Absmax::Plain(absmax),
        nf4::Absmax::Double { codes, absmax2, offset } => {
            Absmax::Double { codes, code2: dynamic8::code(), absmax2, offset: *offset }
        }
    };
    Nf4Ref { packed: &q.packed, absmax, code: &nf4::CODE, round_bf16: as_stored && q.source == Dtype::BF16 }
}

/// The blocks of a ggml matrix as the product reads them.
fn ggml_ref(q: &Blocks) -> GgmlRef<'_> {
    /// `dequantise` of each type, as a plain function.
    macro_rules! expand {
        ($($ty:ident)*) => {
            match q.ty {
                $(GgmlType::$ty => |blocks: &[u8], out: &mut [f32]| dequantise(GgmlType::$ty, blocks, out),)*
            }
        };
    }
    let expand: fn(&[u8], &mut [f32]) = expand!(F32 F16 Bf16 Q4_0 Q4_1 Q5_0 Q5_1 Q8_0 Q2K Q3K Q4K Q5K Q6K);
    let fast = match q.ty {
        GgmlType::Q4_0 => Some(GgmlFast::Q4_0),
        GgmlType::Q8_0 => Some(GgmlFast::Q8_0),
        GgmlType::Q4K => Some(GgmlFast::Q4K),
        GgmlType::Q6K => Some(GgmlFast::Q6K),
        _ => None,
    };
    let (block, block_bytes) = (q.ty.block(), q.ty.block_bytes());
    GgmlRef { bytes: q.bytes(), block, block_bytes, expand, fast, round_bf16: false }
}
