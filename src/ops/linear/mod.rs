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
//! Layers with the same input go together ([`fwd_group`], [`bwd_group`]): kernels then share launches and read x once.
//!
//! [`decode`] is the forward pass for the few rows of a step of generation.
//!
//! In bf16, f32 and f64 as the device has them; on kernels also in f16, a layer over an NF4 matrix with nothing trained in it:
//! what bitsandbytes' 4-bit product is with float16 as its compute dtype. (A model trains and runs in bf16.)
//!
//! Rounding on kernels: P and Q to bf16, as drop(x); y and dx once, all their terms being summed in f32.

mod cpu;
mod decode;
mod f16;
mod launch;
mod lora_bwd;

pub use decode::{Group, decode, decode_grouped};

use crate::by_dtype;
use crate::device::gemm::{Absmax, GgmlFast, GgmlRef, Nf4Ref};
use crate::device::{Exec, Nf4Path};
use crate::error::{Error, Result};
use crate::format::Dtype;
use crate::ops::philox::Stream;
use crate::ops::tiles::{self, Kind};
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

    /// Whether kernels need a bf16 copy: the blocks of an NF4 matrix straddle its rows if a row is not whole blocks, and the
    /// product reads whole blocks; of ggml's blocks it reads none.
    fn needs_copy(&self, x: &Tensor) -> bool {
        match self {
            Matrix::DeviceGgml(_) => true,
            Matrix::DeviceNf4(_) | Matrix::Planned(..) => {
                x.device().runs_kernels() && !self.dims().1.is_multiple_of(nf4::BLOCK)
            }
            _ => false,
        }
    }

    /// Whether a product of this kind reads a bf16 copy: where kernels need one, or do better with one.
    fn by_copy(&self, x: &Tensor, kind: Kind) -> Result<bool> {
        if x.dtype() == DType::F16 {
            return Ok(false); // there is no dense product in f16
        }
        let better = match (self, x.device().tuning()) {
            (Matrix::DeviceNf4(_) | Matrix::Planned(..), Some(tuning)) => {
                tiles::nf4_path(tuning, kind, x.rows())? == Nf4Path::Scratch
            }
            _ => false,
        };
        Ok(better || self.needs_copy(x))
    }

    /// The place of a bf16 copy.
    fn copy_place(&self, x: &Tensor) -> Result<Tensor> {
        let (out, inn) = self.dims();
        Tensor::unwritten(out, inn, x.dtype(), x.device())
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

/// A layer of a group on its way forward, with what it makes: y, and P where there is an adapter.
struct Fwd<'a> {
    l: &'a Linear<'a>,
    add: Option<&'a Tensor>,
    y: Tensor,
    p: Option<Tensor>,
}

/// `x` (rows, in) -> y (rows, out), plus `add` (rows, out) where given (a residual).
///
/// # Errors
/// [`Error::Shape`] if shapes or dtypes do not fit.
pub fn fwd(x: &Tensor, l: &Linear, add: Option<&Tensor>) -> Result<(Tensor, Saved)> {
    fwd_group(x, [*l], [add]).map(|[made]| made)
}

/// As [`fwd`] of each layer, with the same bits: kernels take x A^T of all of them in one launch, and x W^T of all whose W
/// they read as it is in another.
///
/// # Errors
/// As [`fwd`].
pub fn fwd_group<const N: usize>(
    x: &Tensor,
    layers: [Linear; N],
    adds: [Option<&Tensor>; N],
) -> Result<[(Tensor, Saved); N]> {
    let mut members = Vec::with_capacity(N);
    for (l, add) in layers.iter().zip(adds) {
        let (out, _) = check(x, l)?;
        if let Some(t) = add {
            t.expect("linear add", x.rows(), out, x.dtype())?;
        }
        // Kernels read `add` where it lies; on the CPU the product is added to a copy.
        let y = match add.filter(|_| !x.device().runs_kernels()) {
            Some(t) => t.copy()?,
            None => x.rows_like(out, x.dtype())?,
        };
        let p = match &l.lora {
            Some(lora) => Some(x.rows_like(lora.a.rows, x.dtype())?),
            None => None,
        };
        members.push(Fwd { l, add, y, p });
    }
    let (mut by_copy, mut direct) = (Vec::new(), Vec::new());
    for m in &mut members {
        let dropped = dropped(x, m.l)?;
        match x.device().exec() {
            Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
                let p = m.p.as_mut().map(|p| p.slice_mut::<T>());
                let xd = dropped.as_ref().map(|t| t.slice::<T>());
                cpu::fwd::<T>(pool, m.y.slice_mut(), x.slice(), xd, m.l, m.add.is_some(), p)
            }),
            Exec::Kernels(_) => {}
            Exec::Plan(c) => c.flops(product_flops(x.rows(), m.l)),
        }
        if m.l.w.by_copy(x, Kind::Nf4Nt)? { &mut by_copy } else { &mut direct }.push(m);
    }
    if let Exec::Kernels(launcher) = x.device().exec() {
        let mut all: Vec<&mut Fwd> = direct.iter_mut().chain(&mut by_copy).map(|m| &mut **m).collect();
        match x.dtype() {
            DType::F16 => f16::fwd(launcher, x, &mut all)?,
            _ => {
                launch::project(launcher, x, &mut all)?;
                launch::fwd(launcher, x, &mut direct, None)?;
            }
        }
    }
    // One copy of a matrix at a time.
    for mut m in by_copy {
        let mut copy = m.l.w.copy_place(x)?;
        if let Exec::Kernels(launcher) = x.device().exec() {
            launch::fwd(launcher, x, std::slice::from_mut(&mut m), Some(&mut copy))?;
        }
    }
    let made: Vec<_> = members.into_iter().map(|m| (m.y, Saved { p: m.p })).collect();
    let Ok(made) = <[_; N]>::try_from(made) else { unreachable!("one a layer") };
    Ok(made)
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

/// A layer of a group on its way backward: P and the place of Q where there is an adapter.
struct Bwd<'a> {
    l: &'a Linear<'a>,
    dy: &'a Tensor,
    lora: Option<(Tensor, Tensor)>,
}

/// The gradient of `x`, as `dx` asks for it; gradients of trained parameters are added to the flat `grads`.
///
/// # Errors
/// As [`fwd`].
pub fn bwd(saved: Saved, x: &Tensor, l: &Linear, dy: &Tensor, dx: Dx, grads: &mut Tensor) -> Result<Option<Tensor>> {
    bwd_group([saved], x, [*l], [dy], dx, grads)
}

/// As [`bwd`] of one layer after the other, the gradient of `x` being their sum, with the same bits. Kernels take Q and
/// the gradients of B of all of them in one pass over each dy, and the gradients of all A in one launch. What each adds to the gradient of `x` stays a launch of its
/// own: they add to one result, in their order. No two layers share a trained parameter.
///
/// # Errors
/// As [`fwd`].
pub fn bwd_group<const N: usize>(
    saved: [Saved; N],
    x: &Tensor,
    layers: [Linear; N],
    dys: [&Tensor; N],
    dx: Dx,
    grads: &mut Tensor,
) -> Result<Option<Tensor>> {
    for (l, dy) in layers.iter().zip(dys) {
        let (out, _) = check(x, l)?;
        dy.expect("linear dy", x.rows(), out, x.dtype())?;
    }
    let (mut dx, mut accumulate) = match dx {
        Dx::Skip => (None, false),
        Dx::New => (Some(x.like()?), false),
        Dx::AddTo(t) => (Some(t), true),
    };
    if let Some(t) = &dx {
        t.expect("linear dx", x.rows(), x.cols(), x.dtype())?;
    }
    let mut members = Vec::with_capacity(N);
    for ((l, dy), saved) in layers.iter().zip(dys).zip(saved) {
        let lora = match saved.p {
            Some(p) => {
                let q = p.like()?;
                Some((p, q))
            }
            None => None,
        };
        members.push(Bwd { l, dy, lora });
    }
    let mut partial = partial_sums(x, &layers)?;
    if let (Exec::Kernels(launcher), true) = (x.device().exec(), x.dtype() != DType::F16) {
        launch::gradients(launcher, x, &mut members, grads, partial.as_mut())?;
    }
    drop(partial);
    for m in &mut members {
        let mut dropped = dropped(x, m.l)?;
        let mut copy = match dx.is_some() && m.l.w.by_copy(x, Kind::Nf4Nn)? {
            true => Some(m.l.w.copy_place(x)?),
            false => None,
        };
        match x.device().exec() {
            Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
                let lora = m.lora.as_mut().map(|(p, q)| (p.slice::<T>(), q.slice_mut::<T>()));
                let xd = dropped.as_mut().map(|t| t.slice_mut::<T>());
                let dx = dx.as_mut().map(|t| t.slice_mut::<T>());
                cpu::bwd::<T>(pool, dx, accumulate, x.slice(), xd, m.l, m.dy.slice(), lora, grads)
            }),
            Exec::Kernels(launcher) => match &mut dx {
                Some(dx) if x.dtype() == DType::F16 => f16::dx(launcher, dx, accumulate, x, m)?,
                Some(dx) => launch::dx(launcher, dx, accumulate, x, m, copy.as_mut())?,
                None => {}
            },
            Exec::Plan(c) => c.flops(product_flops(x.rows(), m.l) * if m.l.w.trained().is_some() { 2.0 } else { 1.0 }),
        }
        accumulate = true;
    }
    Ok(dx)
}

/// What kernels need for partial sums: as much as the largest launch, which are the products over rows of all W, of all B of a
/// large rank and of all A, and `lora_bwd` of the other adapters.
fn partial_sums(x: &Tensor, layers: &[Linear]) -> Result<Option<Tensor>> {
    if !x.device().runs_kernels() {
        return Ok(None);
    }
    let of = |slot: Slot| if slot.grad { product::tn_scratch(slot.rows, slot.cols, x.rows()) } else { 0 };
    let (low, high): (Vec<Lora>, Vec<Lora>) = layers.iter().filter_map(|l| l.lora).partition(lora_bwd::takes);
    let parts = |lora: &Lora| {
        let (of_q, of_b) = lora_bwd::scratch(lora, x.rows());
        of_q + of_b
    };
    let most = [
        layers.iter().filter_map(|l| l.w.trained()).map(of).sum::<usize>(),
        high.iter().map(|lora| of(lora.b)).sum(),
        low.iter().map(parts).sum(),
        layers.iter().filter_map(|l| Some(of(l.lora?.a))).sum(),
    ];
    match most.into_iter().max() {
        None | Some(0) => Ok(None),
        Some(most) => Tensor::unwritten(1, most, DType::F32, x.device()).map(Some),
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
    if x.dtype() == DType::F16 {
        f16::check(x, l)?;
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
