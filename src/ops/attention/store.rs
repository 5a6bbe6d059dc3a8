use super::launch;
use crate::by_dtype;
use crate::device::Exec;
use crate::error::{Error, Result};
use crate::ops::no_kernel;
use crate::tensor::{Float, Index, Tensor};

/// Writes row i of `k` and `v` (tokens, width) to row `rows[i]` of `cache_k` and `cache_v` (any, width), for the live rows;
/// what [`super::decode`] reads later.
///
/// # Errors
/// [`Error::Shape`] if shapes or dtypes do not fit, if a row of the cache does not exist or is named twice.
pub fn store(k: &Tensor, v: &Tensor, rows: &Index, cache_k: &mut Tensor, cache_v: &mut Tensor) -> Result<()> {
    check(k, v, rows, cache_k, cache_v)?;
    match k.device().exec() {
        Exec::Cpu(_) => by_dtype!(k.dtype(), T => {
            copy_rows::<T>(cache_k.slice_mut(), k.slice(), rows.numbers(), k.cols());
            copy_rows::<T>(cache_v.slice_mut(), v.slice(), rows.numbers(), k.cols());
        }),
        Exec::Kernels(l) => launch::store(l, [k, v], rows, [cache_k, cache_v])?,
        Exec::Plan(_) => {}
    }
    Ok(())
}

fn copy_rows<T: Float>(to: &mut [T], from: &[T], rows: &[u32], width: usize) {
    for (&row, from) in rows.iter().zip(from.chunks_exact(width)) {
        to[row as usize * width..][..width].copy_from_slice(from);
    }
}

fn check(k: &Tensor, v: &Tensor, rows: &Index, cache_k: &Tensor, cache_v: &Tensor) -> Result<()> {
    let (width, dtype) = (k.cols(), k.dtype());
    if width == 0 {
        return Err(Error::shape("attention k", "has no columns"));
    }
    k.expect("attention k", rows.rows(), width, dtype)?;
    v.expect("attention v", rows.rows(), width, dtype)?;
    cache_k.expect("attention cache of k", cache_k.rows(), width, dtype)?;
    cache_v.expect("attention cache of v", cache_k.rows(), width, dtype)?;
    let numbers = rows.numbers();
    // Without a count of live rows the padding of the index would be taken for rows.
    if numbers.len() < rows.rows() && k.live().is_null() && rows.live_rows().is_none() {
        return Err(no_kernel(
            "attention rows",
            "fewer numbers than rows, without a count of those that hold something",
        ));
    }
    if let Some(row) = numbers.iter().find(|&&row| row as usize >= cache_k.rows()) {
        let why = format!("names row {row} of a cache of {} rows", cache_k.rows());
        return Err(Error::shape("attention rows", why));
    }
    let mut sorted = numbers.to_vec();
    sorted.sort_unstable();
    match sorted.windows(2).find(|w| w[0] == w[1]) {
        Some(twice) => Err(Error::shape("attention rows", format!("names row {} of the cache twice", twice[0]))),
        None => Ok(()),
    }
}
