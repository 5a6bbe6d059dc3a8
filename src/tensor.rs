//! [`Tensor`]: a buffer with a shape and a dtype, contiguous and row-major; and [`Float`], what the CPU ops are generic
//! over.

use std::borrow::Cow;
use std::mem::offset_of;

use half::{bf16, f16};

use crate::device::gemm::{Dst, Src};
use crate::device::{Buffer, Device, Later, Pod, abi, bytes_of, bytes_of_mut, simd};
use crate::error::{Error, Result};

/// Element type of a tensor.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DType {
    F64,
    F32,
    Bf16,
    /// Of layers over an NF4 matrix on kernels alone: [`crate::ops::linear`].
    F16,
}

impl DType {
    /// Bytes per element.
    pub fn size(self) -> usize {
        match self {
            DType::F64 => 8,
            DType::F32 => 4,
            DType::Bf16 | DType::F16 => 2,
        }
    }
}

/// Runs `$body` with the type `$T` that `$dtype` names, one that the CPU's ops compute in; of f16 it returns the error.
#[macro_export]
macro_rules! by_dtype {
    ($dtype:expr, $T:ident => $body:expr) => {
        match $dtype {
            $crate::tensor::DType::F64 => {
                type $T = f64;
                $body
            }
            $crate::tensor::DType::F32 => {
                type $T = f32;
                $body
            }
            $crate::tensor::DType::Bf16 => {
                type $T = ::half::bf16;
                $body
            }
            $crate::tensor::DType::F16 => return Err($crate::tensor::no_f16()),
        }
    };
}

/// The error of what the CPU has no op for.
pub fn no_f16() -> Error {
    Error::shape("f16", "is for layers over an NF4 matrix on a GPU alone; other ops take f64, f32 and bf16")
}

/// Element types of tensors.
pub trait Element: Pod {
    const DTYPE: DType;
    const ZERO: Self;
    /// Exactly.
    fn to_f64(self) -> f64;
}

/// Element types that the CPU's ops compute in. Arithmetic happens in [`Float::Acc`]: f64 for the oracle, f32 for f32 and bf16.
pub trait Float: Element {
    /// What sums are kept in.
    type Acc: Real;
    /// Widens, exactly.
    fn acc(self) -> Self::Acc;
    /// Rounds to nearest, ties to even. (Not called `round`: on a concrete type that is the integer rounding.)
    fn narrow(x: Self::Acc) -> Self;
    /// As an operand of a product.
    fn src(data: &[Self]) -> Src<'_>;
    /// As the result of a product.
    fn dst(data: &mut [Self]) -> Dst<'_>;
}

/// The two types that sums are kept in.
pub trait Real:
    Float<Acc = Self> + num_traits::Float + std::ops::AddAssign + std::ops::MulAssign + std::iter::Sum + std::fmt::Debug
{
    /// From a constant or a hyperparameter.
    fn of(x: f64) -> Self;
    /// To report.
    fn f64(self) -> f64;
    /// e^x, in a form that vectorises.
    fn exp_wide(self) -> Self;
}

macro_rules! elements {
    ($($T:ident $dtype:ident $zero:expr, $to_f64:expr;)*) => {
        $(impl Element for $T {
            const DTYPE: DType = DType::$dtype;
            const ZERO: $T = $zero;
            fn to_f64(self) -> f64 {
                $to_f64(self)
            }
        })*
    };
}
elements! {
    f64 F64 0.0, f64::from;
    f32 F32 0.0, f64::from;
    bf16 Bf16 bf16::ZERO, bf16::to_f64;
    f16 F16 f16::ZERO, f16::to_f64;
}

impl Float for f64 {
    type Acc = f64;
    #[inline(always)]
    fn acc(self) -> f64 {
        self
    }
    #[inline(always)]
    fn narrow(x: f64) -> f64 {
        x
    }
    fn src(data: &[f64]) -> Src<'_> {
        Src::F64(data)
    }
    fn dst(data: &mut [f64]) -> Dst<'_> {
        Dst::F64(data)
    }
}

impl Float for f32 {
    type Acc = f32;
    #[inline(always)]
    fn acc(self) -> f32 {
        self
    }
    #[inline(always)]
    fn narrow(x: f32) -> f32 {
        x
    }
    fn src(data: &[f32]) -> Src<'_> {
        Src::F32(data)
    }
    fn dst(data: &mut [f32]) -> Dst<'_> {
        Dst::F32(data)
    }
}

impl Float for bf16 {
    type Acc = f32;
    #[inline(always)]
    fn acc(self) -> f32 {
        f32::from_bits(u32::from(self.to_bits()) << 16)
    }
    /// By integer arithmetic, which vectorises; NaN stays NaN.
    #[inline(always)]
    fn narrow(x: f32) -> bf16 {
        let bits = x.to_bits();
        let rounded = (bits.wrapping_add(0x7FFF + ((bits >> 16) & 1)) >> 16) as u16;
        let quiet = ((bits >> 16) | 0x40) as u16;
        bf16::from_bits(if bits & 0x7FFF_FFFF > 0x7F80_0000 { quiet } else { rounded })
    }
    fn src(data: &[bf16]) -> Src<'_> {
        Src::Bf16(data)
    }
    fn dst(data: &mut [bf16]) -> Dst<'_> {
        Dst::Bf16(data)
    }
}

impl Real for f64 {
    #[inline(always)]
    fn of(x: f64) -> f64 {
        x
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        self
    }
    #[inline(always)]
    fn exp_wide(self) -> f64 {
        self.exp()
    }
}

impl Real for f32 {
    #[inline(always)]
    fn of(x: f64) -> f32 {
        x as f32
    }
    #[inline(always)]
    fn f64(self) -> f64 {
        f64::from(self)
    }
    #[inline(always)]
    fn exp_wide(self) -> f32 {
        simd::exp(self)
    }
}

/// A contiguous row-major array.
pub struct Tensor {
    buffer: Buffer,
    rows: usize,
    cols: usize,
    dtype: DType,
    device: Device,
    live: Option<Live>,
}

/// Where the true number of a tensor's rows stands in device memory, if they are fewer than it has: a u32 of a
/// [`crate::device::abi::Step`]. The rows past it hold nothing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Live(pub(crate) u64);

impl Live {
    /// The tokens of the step.
    pub fn tokens(device: &Device) -> Option<Live> {
        device.step_addr().map(|at| Live(at + offset_of!(abi::Step, tokens) as u64))
    }

    /// The rows of the step that reach the head.
    pub fn loss_rows(device: &Device) -> Option<Live> {
        device.step_addr().map(|at| Live(at + offset_of!(abi::Step, loss_rows) as u64))
    }
}

impl Tensor {
    /// A (rows, cols) tensor whose contents are not defined yet; NaN in debug builds, so that an element nobody wrote
    /// is seen.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is none left, or if the size passes what an address can name.
    pub fn unwritten(rows: usize, cols: usize, dtype: DType, device: &Device) -> Result<Self> {
        let bytes = rows.checked_mul(cols).and_then(|n| n.checked_mul(dtype.size()));
        let bytes = bytes.ok_or_else(|| Error::Memory(format!("a ({rows}, {cols}) tensor is too large to address")))?;
        let buffer = device.alloc(bytes)?;
        let mut t = Self { buffer, rows, cols, dtype, device: device.clone(), live: None };
        if cfg!(debug_assertions) {
            t.buffer.fill(0xFF); // NaN in every float type
        }
        Ok(t)
    }

    /// A tensor for results about the rows of this one: as many rows (as many of them live), `cols` columns, contents
    /// not defined yet.
    ///
    /// # Errors
    /// As [`Tensor::unwritten`].
    pub fn rows_like(&self, cols: usize, dtype: DType) -> Result<Self> {
        Ok(Self { live: self.live, ..Self::unwritten(self.rows, cols, dtype, &self.device)? })
    }

    /// A tensor like this one in everything, its contents not defined yet.
    ///
    /// # Errors
    /// As [`Tensor::unwritten`].
    pub fn like(&self) -> Result<Self> {
        self.rows_like(self.cols, self.dtype)
    }

    /// Says that only as many rows hold something as stand at `live` when a kernel runs.
    pub fn set_live(&mut self, live: Option<Live>) {
        self.live = live;
    }

    /// A (rows, cols) tensor of zeros.
    ///
    /// # Errors
    /// As [`Tensor::unwritten`].
    pub fn zeros(rows: usize, cols: usize, dtype: DType, device: &Device) -> Result<Self> {
        let mut t = Self::unwritten(rows, cols, dtype, device)?;
        t.fill_zero();
        Ok(t)
    }

    /// Sets every element to 0.
    pub fn fill_zero(&mut self) {
        self.buffer.fill(0);
    }

    /// A copy in a place of its own.
    ///
    /// # Errors
    /// As [`Tensor::unwritten`].
    pub fn copy(&self) -> Result<Self> {
        let mut t = self.like()?;
        t.buffer.copy_from(&self.buffer);
        Ok(t)
    }

    /// The same on another device; itself where it is there already.
    ///
    /// # Errors
    /// As [`Tensor::unwritten`].
    pub fn moved_to(self, device: &Device) -> Result<Self> {
        if self.device.same(device) {
            return Ok(self);
        }
        let mut t = Self::unwritten(self.rows, self.cols, self.dtype, device)?;
        t.buffer.write(0, self.buffer.bytes());
        Ok(t)
    }

    /// A copy in page-locked memory of the CPU that kernels on `device` read in place: see [`Device::alloc_pinned`].
    ///
    /// # Errors
    /// [`Error::Memory`] if it cannot be had.
    pub fn pinned_copy(&self, device: &Device) -> Result<Self> {
        let mut buffer = device.alloc_pinned(self.bytes())?;
        buffer.write(0, self.buffer.bytes());
        let (rows, cols, dtype) = (self.rows, self.cols, self.dtype);
        Ok(Self { buffer, rows, cols, dtype, device: device.clone(), live: None })
    }

    /// A tensor holding these values.
    ///
    /// # Errors
    /// [`Error::Shape`] unless there are rows * cols of them; otherwise as [`Tensor::unwritten`].
    pub fn from_slice<T: Element>(data: &[T], rows: usize, cols: usize, device: &Device) -> Result<Self> {
        if rows.checked_mul(cols) != Some(data.len()) {
            return Err(Error::shape("tensor", format!("{} values are not ({rows}, {cols})", data.len())));
        }
        let mut t = Self::unwritten(rows, cols, T::DTYPE, device)?;
        t.buffer.write(0, bytes_of(data));
        Ok(t)
    }

    pub fn rows(&self) -> usize {
        self.rows
    }

    pub fn cols(&self) -> usize {
        self.cols
    }

    pub fn dtype(&self) -> DType {
        self.dtype
    }

    pub fn device(&self) -> &Device {
        &self.device
    }

    /// Whether it lies in memory of the CPU that kernels read in place.
    pub fn is_pinned(&self) -> bool {
        self.buffer.is_pinned()
    }

    /// Number of elements.
    pub fn len(&self) -> usize {
        self.rows * self.cols
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Size in bytes.
    pub fn bytes(&self) -> usize {
        self.buffer.len()
    }

    /// The elements. Panics on another dtype, or in a plan: both are errors of the calling op.
    pub fn slice<T: Element>(&self) -> &[T] {
        assert_eq!(self.dtype, T::DTYPE, "an op read a tensor as another dtype");
        self.buffer.as_slice()
    }

    /// The elements, to be written. Panics as [`Tensor::slice`] does.
    pub fn slice_mut<T: Element>(&mut self) -> &mut [T] {
        assert_eq!(self.dtype, T::DTYPE, "an op wrote a tensor as another dtype");
        self.buffer.as_mut_slice()
    }

    /// Every element as f64, to compare or report.
    pub fn to_f64(&self) -> Vec<f64> {
        self.read_f64(0, self.len())
    }

    /// Copies `n` elements out as f64, from element `at` on.
    pub fn read_f64(&self, at: usize, n: usize) -> Vec<f64> {
        fn wide<T: Element>(x: Vec<T>) -> Vec<f64> {
            x.into_iter().map(T::to_f64).collect()
        }
        match self.dtype {
            DType::F64 => self.read(at, n),
            DType::F32 => wide(self.read::<f32>(at, n)),
            DType::Bf16 => wide(self.read::<bf16>(at, n)),
            DType::F16 => wide(self.read::<f16>(at, n)),
        }
    }

    /// Copies `n` elements out, from element `at` on. Panics as [`Tensor::slice`] does on another dtype or in a plan.
    pub fn read<T: Element>(&self, at: usize, n: usize) -> Vec<T> {
        assert_eq!(self.dtype, T::DTYPE, "a tensor was read as another dtype");
        let mut out = vec![T::ZERO; n];
        self.buffer.read(at * size_of::<T>(), bytes_of_mut(&mut out));
        out
    }

    /// Asks for the bytes of `n` elements from element `at` on, without waiting for what computes them. Panics as
    /// [`Tensor::read`] does.
    pub fn read_later<T: Element>(&self, at: usize, n: usize) -> Later {
        assert_eq!(self.dtype, T::DTYPE, "a tensor was read as another dtype");
        self.buffer.read_later(at * size_of::<T>(), n * size_of::<T>())
    }

    /// Copies `data` in, from element `at` on. Panics on another dtype; does nothing in a plan.
    pub fn write<T: Element>(&mut self, at: usize, data: &[T]) {
        assert_eq!(self.dtype, T::DTYPE, "a tensor was written as another dtype");
        self.buffer.write(at * size_of::<T>(), bytes_of(data));
    }

    /// Its elements for a kernel's parameters.
    pub(crate) fn ptr<T>(&self) -> *const T {
        self.buffer.addr() as *const T
    }

    /// As [`Tensor::ptr`], to be written.
    pub(crate) fn ptr_mut<T>(&mut self) -> *mut T {
        self.buffer.addr() as *mut T
    }

    /// Where a kernel finds the number of live rows; null if all are.
    pub(crate) fn live(&self) -> *const u32 {
        self.live.map_or(std::ptr::null(), |live| live.0 as *const u32)
    }

    /// # Errors
    /// [`Error::Shape`] unless the tensor is (rows, cols) of `dtype`; `what` names it.
    pub fn expect(&self, what: &'static str, rows: usize, cols: usize, dtype: DType) -> Result<()> {
        if (self.rows, self.cols, self.dtype) == (rows, cols, dtype) {
            return Ok(());
        }
        let why = format!("is ({}, {}) {:?}, must be ({rows}, {cols}) {dtype:?}", self.rows, self.cols, self.dtype);
        Err(Error::shape(what, why))
    }
}

/// Token ids, positions, rows: on the host, where ops check them; and in device memory, where kernels read them.
pub struct Index<'a> {
    host: Cow<'a, [u32]>,
    device: Option<Buffer>,
    rows: usize,
    live: Option<Live>,
}

impl<'a> Index<'a> {
    /// These numbers, for the CPU's ops.
    pub fn host(numbers: impl Into<Cow<'a, [u32]>>) -> Self {
        let host = numbers.into();
        Index { rows: host.len(), host, device: None, live: None }
    }

    /// These numbers, for ops on `device`. Kernels see `rows` of them (zeros past the end), of which those up to the count
    /// at `live` hold something; the CPU sees exactly these.
    ///
    /// # Errors
    /// [`Error::Shape`] if there are more than `rows`; [`Error::Memory`].
    pub fn new(numbers: impl Into<Cow<'a, [u32]>>, rows: usize, live: Option<Live>, device: &Device) -> Result<Self> {
        let host = numbers.into();
        if !device.runs_kernels() {
            let rows = host.len();
            return Ok(Index { host, device: None, rows, live: None });
        }
        if host.len() > rows {
            return Err(Error::shape("index", format!("{} numbers are more than {rows}", host.len())));
        }
        let mut buffer = device.alloc(rows.saturating_mul(4))?;
        buffer.fill(0);
        buffer.write(0, bytes_of(&host));
        Ok(Index { host, device: Some(buffer), rows, live })
    }

    /// These numbers on the host, and on kernels `table` in their place: something an op derives from them once a batch.
    ///
    /// # Errors
    /// [`Error::Memory`].
    pub(crate) fn with_table(numbers: Cow<'a, [u32]>, table: &[u32], device: &Device) -> Result<Self> {
        let mut buffer = device.alloc(table.len().saturating_mul(4))?;
        buffer.write(0, bytes_of(table));
        Ok(Index { host: numbers, device: Some(buffer), rows: table.len(), live: None })
    }

    /// The numbers, those past the live rows not among them.
    pub fn numbers(&self) -> &[u32] {
        &self.host
    }

    /// Rows of a tensor that has one for each number.
    pub fn rows(&self) -> usize {
        self.rows
    }

    pub(crate) fn live_rows(&self) -> Option<Live> {
        self.live
    }

    /// The numbers for a kernel's parameters.
    pub(crate) fn ptr(&self) -> *const u32 {
        self.device.as_ref().map_or(std::ptr::null(), |b| b.addr() as *const u32)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bf16_rounds_as_half_does() {
        let mut bits = 1u32;
        for _ in 0..200_000 {
            bits = bits.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            let x = f32::from_bits(bits);
            assert_eq!(<bf16 as Float>::narrow(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
        for x in [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::NAN, f32::MAX, f32::MIN_POSITIVE, 1e-45] {
            assert_eq!(<bf16 as Float>::narrow(x).to_bits(), bf16::from_f32(x).to_bits(), "{x}");
        }
    }

    #[test]
    fn sizes_are_checked() {
        let cpu = Device::cpu(1);
        assert!(Tensor::unwritten(usize::MAX, 2, DType::F32, &cpu).is_err());
        assert!(Tensor::from_slice(&[1.0f32], 1, 2, &cpu).is_err());
        let t = Tensor::from_slice(&[1.0f32, 2.0], 1, 2, &cpu).unwrap();
        assert!(t.expect("t", 2, 1, DType::F32).is_err());
        assert_eq!(t.to_f64(), [1.0, 2.0]);
    }
}
