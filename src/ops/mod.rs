//! The operations of a training step, a folder each: `mod.rs` says what it computes and checks shapes, `cpu.rs`
//! computes it. `fwd` returns what `bwd` needs; `bwd` takes it by value. No op imports another op.

pub mod adamw;
pub mod attention;
pub mod columns;
pub mod embedding;
pub mod gelu;
pub mod grad_norm;
mod group;
pub mod layer_norm;
pub mod linear;
pub mod linear_cross_entropy;
pub mod philox;
pub(crate) mod product;
mod rms;
pub mod rms_norm;
pub mod rope;
pub mod sample;
mod sums;
pub mod swiglu;
#[doc(hidden)]
pub mod tiles;

use crate::device::gemm::{DstView, View};
use crate::error::{Error, Result};
use crate::tensor::{DType, Float, Index, Tensor};

/// A (rows, cols) matrix inside a larger flat tensor, or a whole tensor: how ops see parameters.
///
/// `grad` says whether it is trained; its gradient then lies at the same offset of the flat gradient.
#[derive(Clone, Copy)]
pub struct Slot<'a> {
    pub tensor: &'a Tensor,
    pub offset: usize,
    pub rows: usize,
    pub cols: usize,
    pub grad: bool,
}

impl<'a> Slot<'a> {
    /// A frozen tensor as it is.
    pub fn whole(tensor: &'a Tensor) -> Self {
        Slot { tensor, offset: 0, rows: tensor.rows(), cols: tensor.cols(), grad: false }
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    /// Whether it has no element.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    pub(crate) fn slice<T: Float>(&self) -> &'a [T] {
        &self.tensor.slice::<T>()[self.offset..][..self.len()]
    }

    /// Its elements for a kernel's parameters.
    pub(crate) fn ptr<T>(&self) -> *const T {
        self.tensor.ptr::<T>().wrapping_byte_add(self.offset * self.tensor.dtype().size())
    }

    /// The place of its gradient in the flat gradient, for a kernel's parameters.
    pub(crate) fn grad_ptr<T>(&self, grads: &mut Tensor) -> *mut T {
        grads.ptr_mut::<T>().wrapping_add(self.offset)
    }

    pub(crate) fn grad_of<'g, A: Float>(&self, grads: &'g mut Tensor) -> &'g mut [A] {
        let (offset, len) = (self.offset, self.len());
        &mut grads.slice_mut::<A>()[offset..][..len]
    }

    pub(crate) fn expect(&self, what: &'static str, rows: usize, cols: usize, like: &Tensor) -> Result<()> {
        if (self.rows, self.cols) != (rows, cols) {
            return Err(Error::shape(what, format!("is ({}, {}), must be ({rows}, {cols})", self.rows, self.cols)));
        }
        if self.tensor.dtype() != like.dtype() {
            return Err(Error::shape(what, format!("is {:?}, x is {:?}", self.tensor.dtype(), like.dtype())));
        }
        Ok(())
    }
}

/// The error of an op whose kernel does not take what it was given.
pub(crate) fn no_kernel(op: &'static str, why: &str) -> Error {
    Error::shape(op, format!("{why}: kernels do not compute that"))
}

/// Kernels compute in bf16.
///
/// # Errors
/// [`Error::Shape`] for other dtypes.
pub(crate) fn bf16_only(op: &'static str, x: &Tensor) -> Result<()> {
    if x.dtype() == DType::Bf16 { Ok(()) } else { Err(no_kernel(op, &format!("{:?}", x.dtype()))) }
}

/// The numbers of an index for a kernel's parameters.
///
/// # Errors
/// [`Error::Shape`] if they are on the host alone.
pub(crate) fn on_device(op: &'static str, index: &Index) -> Result<*const u32> {
    let missing = index.ptr().is_null() && index.rows() > 0;
    if missing { Err(no_kernel(op, "numbers held by the CPU alone")) } else { Ok(index.ptr()) }
}

/// A size or count for a kernel's parameters.
///
/// # Errors
/// [`Error::Shape`] if the field cannot hold it.
pub(crate) fn size<T: TryFrom<usize>>(what: &'static str, n: usize) -> Result<T> {
    T::try_from(n).map_err(|_| Error::shape(what, format!("{n} is more than a kernel can count")))
}

/// `data` as a row-major (rows, cols) operand of a product.
pub(crate) fn mat<T: Float>(data: &[T], rows: usize, cols: usize) -> View<'_> {
    View::new(T::src(data), rows, cols)
}

/// `data` as a row-major result of `cols` columns.
pub(crate) fn out<T: Float>(data: &mut [T], cols: usize) -> DstView<'_> {
    let rows = data.len() / cols.max(1);
    DstView::new(T::dst(data), rows, cols)
}
