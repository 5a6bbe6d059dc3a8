//! Columns of a matrix as matrices of their own, and such matrices side by side: what lies between a fused layer and what
//! takes its parts. Each is the other's backward pass.

mod launch;

use crate::by_dtype;
use crate::device::Exec;
use crate::device::par::{for_rows, rows_of};
use crate::error::{Error, Result};
use crate::tensor::Tensor;

/// `x` (rows, sum of the widths) -> its first `widths[0]` columns, the next `widths[1]`, and so on.
///
/// # Errors
/// [`Error::Shape`] unless the widths, each at least 1, add up to x's columns.
pub fn split<const N: usize>(x: &Tensor, widths: [usize; N]) -> Result<[Tensor; N]> {
    if widths.iter().sum::<usize>() != x.cols() || widths.contains(&0) {
        return Err(Error::shape("columns", format!("{widths:?} of a matrix of {}", x.cols())));
    }
    let mut parts = Vec::with_capacity(N);
    let mut at = 0;
    for width in widths {
        let mut part = x.rows_like(width, x.dtype())?;
        match x.device().exec() {
            Exec::Cpu(pool) => by_dtype!(x.dtype(), T => {
                let (cols, x) = (x.cols(), x.slice::<T>());
                for_rows(pool, 64, rows_of(part.slice_mut::<T>(), width), |rows, part| {
                    for (r, part) in rows.zip(part.chunks_exact_mut(width)) {
                        part.copy_from_slice(&x[r * cols + at..][..width]);
                    }
                });
            }),
            Exec::Kernels(l) => launch::take(l, &mut part, x, at)?,
            Exec::Plan(_) => {}
        }
        parts.push(part);
        at += width;
    }
    <[Tensor; N]>::try_from(parts).map_err(|_| Error::shape("columns", "as many parts as widths"))
}

/// `parts` (rows, any each) -> their columns side by side (rows, sum of them).
///
/// # Errors
/// [`Error::Shape`] unless there are parts, all of the same rows and dtype.
pub fn join<const N: usize>(parts: [Tensor; N]) -> Result<Tensor> {
    let cols = parts.iter().map(Tensor::cols).sum();
    let Some(first) = parts.first() else { return Err(Error::shape("columns", "of no matrix")) };
    let mut x = first.rows_like(cols, first.dtype())?;
    let mut at = 0;
    for part in &parts {
        let width = part.cols();
        part.expect("columns", first.rows(), width, first.dtype())?;
        match first.device().exec() {
            Exec::Cpu(pool) => by_dtype!(first.dtype(), T => {
                let part = part.slice::<T>();
                for_rows(pool, 64, rows_of(x.slice_mut::<T>(), cols), |rows, x| {
                    for (r, x) in rows.zip(x.chunks_exact_mut(cols)) {
                        x[at..][..width].copy_from_slice(&part[r * width..][..width]);
                    }
                });
            }),
            Exec::Kernels(l) => launch::put(l, &mut x, part, at)?,
            Exec::Plan(_) => {}
        }
        at += width;
    }
    Ok(x)
}
