//! The forward pass of few rows, for decoding: on kernels memory-bound products that read W once. Formulas and what a row's
//! bits depend on: kernels/gemv.h.

use std::ops::Range;
use std::ptr;

use half::bf16;

use super::{Linear, Lora, Matrix, check, cpu, fwd, product_flops};
use crate::by_dtype;
use crate::device::{Exec, Kernel, Launcher, Params, abi, kernels};
use crate::error::{Error, Result};
use crate::ops::{Slot, bf16_only, no_kernel, size};
use crate::quant::ggml::GgmlType;
use crate::tensor::Tensor;

/// As [`fwd`], for generation: the bits of a row of y depend on that row of `x` and its adapter alone, however many rows there
/// are; and nothing is saved.
///
/// # Errors
/// As [`fwd`]; also for a layer with dropout.
pub fn decode(x: &Tensor, l: &Linear, add: Option<&Tensor>) -> Result<Tensor> {
    decode_grouped(x, l, &[(0..x.rows(), l.lora)], add)
}

/// As [`decode`], where each group of rows has an adapter of its own, or none, in place of the layer's. Rows in no group have
/// an unspecified y.
///
/// # Errors
/// As [`decode`]; also if groups pass the end of `x` or overlap.
pub fn decode_grouped(x: &Tensor, l: &Linear, groups: &[Group], add: Option<&Tensor>) -> Result<Tensor> {
    let (out, _) = check(x, &Linear { lora: None, ..*l })?;
    if groups.windows(2).any(|w| w[0].0.end > w[1].0.start) || groups.iter().any(|g| g.0.end > x.rows()) {
        return Err(Error::shape("linear groups", format!("must ascend within the {} rows", x.rows())));
    }
    for (_, lora) in groups {
        check(x, &Linear { lora: *lora, ..*l })?;
        if lora.is_some_and(|lora| lora.dropout.is_some()) {
            return Err(Error::shape("linear decode", "has dropout, which belongs to training"));
        }
    }
    if let Exec::Cpu(pool) = x.device().exec() {
        let mut y = fwd(x, &Linear { lora: None, ..*l }, add)?.0;
        by_dtype!(x.dtype(), T => cpu::loras::<T>(pool, y.slice_mut(), x.slice(), groups));
        return Ok(y);
    }
    if let Some(t) = add {
        t.expect("linear add", x.rows(), out, x.dtype())?;
    }
    let mut y = x.rows_like(out, x.dtype())?;
    let mut scratch = match !reads_blocks(&l.w) && l.w.needs_copy(x) {
        true => Some(l.w.copy_place(x)?),
        false => None,
    };
    for (rows, lora) in groups {
        let mut p = match lora {
            Some(lora) => Some(x.rows_like(lora.a.rows, x.dtype())?),
            None => None,
        };
        let layer = Linear { lora: *lora, ..*l };
        match x.device().exec() {
            Exec::Kernels(launcher) => {
                launch(launcher, &mut y, x, &layer, add, rows.clone(), p.as_mut(), scratch.as_mut())?;
            }
            Exec::Plan(c) => c.flops(product_flops(rows.len(), &layer)),
            Exec::Cpu(_) => return Err(no_kernel("linear decode", "a device that runs none")),
        }
    }
    Ok(y)
}

/// Rows that have the same adapter, or none.
pub type Group<'a> = (Range<usize>, Option<Lora<'a>>);

/// A kernel for up to 8 rows and one for more; both give the same bits.
struct Pair<P> {
    few: Kernel<P>,
    many: Kernel<P>,
}

/// How many columns and rows of y a block of threads computes, and its shared memory (with NF4's tables).
struct Tile {
    n: u32,
    rows: u32,
    shared: u32,
    shared_nf4: u32,
}

const FEW: Tile =
    Tile { n: abi::GEMV_8_N, rows: abi::GEMV_8_ROWS, shared: abi::GEMV_8_SHARED, shared_nf4: abi::GEMV_NF4_8_SHARED };
const MANY: Tile = Tile {
    n: abi::GEMV_32_N,
    rows: abi::GEMV_32_ROWS,
    shared: abi::GEMV_32_SHARED,
    shared_nf4: abi::GEMV_NF4_32_SHARED,
};

const DENSE: Pair<abi::Gemv> = Pair { few: kernels::GEMV_DENSE_8, many: kernels::GEMV_DENSE_32 };
const NF4: Pair<abi::GemvNf4> = Pair { few: kernels::GEMV_NF4_8, many: kernels::GEMV_NF4_32 };

/// The kernels that read blocks of this type; the others are dequantised first.
fn of_blocks(ty: GgmlType) -> Option<Pair<abi::GemvGgml>> {
    Some(match ty {
        GgmlType::Q4_0 => Pair { few: kernels::GEMV_Q4_0_8, many: kernels::GEMV_Q4_0_32 },
        GgmlType::Q5_0 => Pair { few: kernels::GEMV_Q5_0_8, many: kernels::GEMV_Q5_0_32 },
        GgmlType::Q8_0 => Pair { few: kernels::GEMV_Q8_0_8, many: kernels::GEMV_Q8_0_32 },
        GgmlType::Q4K => Pair { few: kernels::GEMV_Q4_K_8, many: kernels::GEMV_Q4_K_32 },
        GgmlType::Q5K => Pair { few: kernels::GEMV_Q5_K_8, many: kernels::GEMV_Q5_K_32 },
        GgmlType::Q6K => Pair { few: kernels::GEMV_Q6_K_8, many: kernels::GEMV_Q6_K_32 },
        _ => return None,
    })
}

fn reads_blocks(w: &Matrix) -> bool {
    matches!(w, Matrix::DeviceGgml(q) if of_blocks(q.ty).is_some())
}

/// Enqueues P = s x A^T where there is an adapter, then y = P B^T + x W^T + bias + add, of these rows. Shapes were checked by
/// [`decode_grouped`].
#[allow(clippy::too_many_arguments)] // the operands of two products
fn launch(
    l: &Launcher,
    y: &mut Tensor,
    x: &Tensor,
    layer: &Linear,
    add: Option<&Tensor>,
    rows: Range<usize>,
    p: Option<&mut Tensor>,
    scratch: Option<&mut Tensor>,
) -> Result<()> {
    bf16_only("linear x", x)?;
    let mut g = params(y, x, &rows)?;
    if let (Some(lora), Some(p)) = (&layer.lora, p) {
        let mid = abi::Gemv { alpha: lora.scale as f32, ..params(p, x, &rows)? };
        enqueue(l, &DENSE, &abi::Gemv { w: lora.a.ptr(), ..mid }, &mid, false)?;
        g = abi::Gemv { x2: row_of(p, &rows), w2: lora.b.ptr(), k2: size("linear rank", lora.b.cols)?, ..g };
    }
    g.bias = layer.bias.map_or(ptr::null(), |bias: Slot| bias.ptr());
    g.add = add.map_or(ptr::null(), |add| row_of(add, &rows));
    let dense = |w| enqueue(l, &DENSE, &abi::Gemv { w, ..g }, &g, false);
    match (&layer.w, scratch) {
        (Matrix::Dense(w), _) => dense(w.ptr()),
        (Matrix::DeviceNf4(q), None) => enqueue(l, &NF4, &abi::GemvNf4 { g, w: q.blocks() }, &g, true),
        (Matrix::DeviceNf4(q), Some(scratch)) => {
            q.dequantise(0..q.rows, scratch)?;
            dense(scratch.ptr())
        }
        (Matrix::DeviceGgml(q), scratch) => match (of_blocks(q.ty), scratch) {
            (Some(pair), _) => enqueue(l, &pair, &abi::GemvGgml { g, w: q.ptr() }, &g, false),
            (None, Some(scratch)) => {
                q.dequantise(0..q.rows, scratch)?;
                dense(scratch.ptr())
            }
            (None, None) => Err(no_kernel("linear w", "blocks of ggml without a place to dequantise them")),
        },
        (Matrix::Nf4(_) | Matrix::Ggml(_) | Matrix::Planned(..), _) => {
            unreachable!("refused by the op's check, or only counted")
        }
    }
}

/// y = x W^T of these rows, without W yet.
fn params(y: &mut Tensor, x: &Tensor, rows: &Range<usize>) -> Result<abi::Gemv> {
    // Where they are not all rows, they are known to hold something.
    let live = if rows.len() == x.rows() { x.live() } else { ptr::null() };
    Ok(abi::Gemv {
        y: y.ptr_mut::<bf16>().wrapping_add(rows.start * y.cols()),
        x: row_of(x, rows),
        w: ptr::null(),
        x2: ptr::null(),
        w2: ptr::null(),
        bias: ptr::null(),
        add: ptr::null(),
        live,
        rows: size("linear rows", rows.len())?,
        n: size("linear columns", y.cols())?,
        k: size("linear columns", x.cols())?,
        k2: 0,
        alpha: 1.0,
    })
}

/// The first of `rows`.
fn row_of(x: &Tensor, rows: &Range<usize>) -> *const bf16 {
    x.ptr::<bf16>().wrapping_add(rows.start * x.cols())
}

fn enqueue<P: Params>(l: &Launcher, pair: &Pair<P>, p: &P, g: &abi::Gemv, nf4: bool) -> Result<()> {
    let few = g.rows <= i64::from(FEW.rows);
    let (kernel, tile) = if few { (pair.few, FEW) } else { (pair.many, MANY) };
    let blocks = |n: i64, of: u32| usize::try_from(n).unwrap_or(usize::MAX).div_ceil(of as usize);
    let shared = if nf4 { tile.shared_nf4 } else { tile.shared };
    l.kernel(kernel)
        .grid3(blocks(g.n, tile.n), blocks(g.rows, tile.rows), 1)
        .block(abi::GEMV_BLOCK)
        .shared(shared as usize)
        .launch(p)
}
