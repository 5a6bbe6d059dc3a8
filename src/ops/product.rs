//! Dense bf16 products on kernels, for ops that are made of them. Formulas, rounding and what a row's bits depend on:
//! kernels/gemm.h.

use std::ffi::c_void;
use std::ptr;
use std::sync::OnceLock;

use half::bf16;

use crate::device::{Kernel, Launcher, Params, abi, kernels};
use crate::error::Result;
use crate::ops::{Slot, bf16_only, no_kernel, size};
use crate::tensor::{DType, Tensor};

/// A bf16 matrix in device memory, row-major, `ld` elements from one row to the next.
#[derive(Clone, Copy)]
pub(crate) struct Operand {
    pub ptr: *const bf16,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
}

impl Operand {
    /// A whole tensor.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] unless it is bf16.
    pub fn of(what: &'static str, t: &Tensor) -> Result<Self> {
        bf16_only(what, t)?;
        Ok(Self { ptr: t.ptr(), rows: t.rows(), cols: t.cols(), ld: t.cols() })
    }

    /// A parameter.
    ///
    /// # Errors
    /// As [`Operand::of`].
    pub fn slot(what: &'static str, s: Slot) -> Result<Self> {
        bf16_only(what, s.tensor)?;
        Ok(Self { ptr: s.ptr(), rows: s.rows, cols: s.cols, ld: s.cols })
    }

    /// The rows from `start` on, `rows` of them.
    pub fn rows(self, start: usize, rows: usize) -> Self {
        debug_assert!(start + rows <= self.rows, "rows of an operand");
        Self { ptr: self.ptr.wrapping_add(start * self.ld), rows, ..self }
    }
}

/// Where a product goes: bf16 or f32, row-major.
#[derive(Clone, Copy)]
pub(crate) struct Out {
    pub ptr: *mut c_void,
    pub f32: bool,
    pub rows: usize,
    pub cols: usize,
    pub ld: usize,
}

impl Out {
    /// A whole tensor, bf16 or f32.
    ///
    /// # Errors
    /// [`crate::Error::Shape`] for other dtypes.
    pub fn of(what: &'static str, t: &mut Tensor) -> Result<Self> {
        let f32 = t.dtype() == DType::F32;
        if !f32 {
            bf16_only(what, t)?;
        }
        Ok(Self { ptr: t.ptr_mut(), f32, rows: t.rows(), cols: t.cols(), ld: t.cols() })
    }

    /// The gradient of a parameter in the flat f32 gradient.
    pub fn grad(s: Slot, grads: &mut Tensor) -> Self {
        Self { ptr: s.grad_ptr::<f32>(grads).cast(), f32: true, rows: s.rows, cols: s.cols, ld: s.cols }
    }

    /// The rows from `start` on, `rows` of them.
    pub fn rows(self, start: usize, rows: usize) -> Self {
        debug_assert!(start + rows <= self.rows, "rows of a result");
        let bytes = start * self.ld * if self.f32 { 4 } else { 2 };
        Self { ptr: self.ptr.wrapping_byte_add(bytes), rows, ..self }
    }
}

/// C (m, n) = alpha A B^T with A (m, k), B (n, k); C is added to with `accumulate`. Only the `live` first rows of A and C
/// are read and written (null: all).
///
/// # Errors
/// [`crate::Error::Kernel`] if the device refuses the launch.
pub(crate) fn nt(
    l: &Launcher,
    c: Out,
    a: Operand,
    b: Operand,
    alpha: f32,
    accumulate: bool,
    live: *const u32,
) -> Result<()> {
    debug_assert_eq!((a.rows, a.cols, b.rows), (c.rows, b.cols, c.cols), "nt");
    launch_nt(l, &params(c, a, b, c.rows, a.cols, alpha, accumulate, live)?)
}

/// C (m, n) = alpha A B with A (m, k), B (k, n); as [`nt`] otherwise.
///
/// # Errors
/// As [`nt`].
pub(crate) fn nn(
    l: &Launcher,
    c: Out,
    a: Operand,
    b: Operand,
    alpha: f32,
    accumulate: bool,
    live: *const u32,
) -> Result<()> {
    debug_assert_eq!((a.rows, a.cols, b.cols), (c.rows, b.rows, c.cols), "nn");
    launch_nn(l, &params(c, a, b, c.rows, a.cols, alpha, accumulate, live)?)
}

/// C (m, n) f32 += alpha A^T B with A (rows, m), B (rows, n), summed over the `live` first rows (null: all). `scratch` is
/// f32 memory of [`tn_scratch`] elements.
///
/// # Errors
/// As [`nt`].
pub(crate) fn tn(
    l: &Launcher,
    c: Out,
    a: Operand,
    b: Operand,
    alpha: f32,
    live: *const u32,
    scratch: Option<&mut Tensor>,
) -> Result<()> {
    debug_assert_eq!((a.cols, a.rows, b.cols, c.f32), (c.rows, b.rows, c.cols, true), "tn");
    launch_tn(l, params(c, a, b, c.rows, a.rows, alpha, true, live)?, scratch)
}

/// Rows that one block sums where a product is split over rows. Fixed, so that the bits depend on the rows alone.
const SPLIT: usize = 512;

/// Results up to this side are too few tiles to fill a GPU, so their rows are split.
const THIN: usize = 64;

/// Elements of f32 scratch that [`tn`] needs for a result (m, n) summed over `rows`; 0: none.
pub(crate) fn tn_scratch(m: usize, n: usize, rows: usize) -> usize {
    if m.min(n) > THIN || rows <= SPLIT { 0 } else { rows.div_ceil(SPLIT) * m * n }
}

/// The parameters of C = alpha A B (+ C), with nothing else added.
///
/// # Errors
/// [`crate::Error::Shape`] if a size does not fit into its field.
#[allow(clippy::too_many_arguments)] // the operands of a product
pub(crate) fn params(
    c: Out,
    a: Operand,
    b: Operand,
    m: usize,
    k: usize,
    alpha: f32,
    accumulate: bool,
    live: *const u32,
) -> Result<abi::Gemm> {
    // Kernels count rows, columns and row lengths in 32 bits, and may look a tile further.
    for n in [m, k, c.cols, a.ld, b.ld, c.ld] {
        size::<i32>("rows and columns", n.saturating_add(abi::GEMM_128_M as usize))?;
    }
    let ldc = size("row length", c.ld)?;
    Ok(abi::Gemm {
        c: c.ptr,
        a: a.ptr,
        b: b.ptr,
        a2: ptr::null(),
        b2: ptr::null(),
        bias: ptr::null(),
        add: if accumulate && !c.f32 { c.ptr.cast_const().cast() } else { ptr::null() },
        partial: ptr::null_mut(),
        live,
        step: ptr::null(),
        m: size("rows", m)?,
        n: size("columns", c.cols)?,
        k: size("columns", k)?,
        lda: size("row length", a.ld)?,
        ldb: size("row length", b.ld)?,
        ldc,
        ldadd: ldc,
        lda2: 0,
        ldb2: 0,
        split: 0,
        k2: 0,
        alpha,
        c_f32: i32::from(c.f32),
        accumulate: i32::from(accumulate && c.f32),
        dropout: abi::GEMM_DROP_NONE as i32,
        module: 0,
        drop_below: 0,
        keep: 1.0,
    })
}

/// The second pair of a product: `c` gains A2 B2 (B2 transposed in `nt`).
///
/// # Errors
/// [`crate::Error::Shape`] if a size does not fit into its field.
pub(crate) fn with_second(p: abi::Gemm, a2: Operand, b2: Operand) -> Result<abi::Gemm> {
    Ok(abi::Gemm {
        a2: a2.ptr,
        b2: b2.ptr,
        lda2: size("row length", a2.ld)?,
        ldb2: size("row length", b2.ld)?,
        k2: size("columns", a2.cols)?,
        ..p
    })
}

/// Tile of a result that a block computes.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Tile {
    /// 128 x 128.
    Large,
    /// 64 x 64.
    Small,
    /// 32 x 32, the depth divided among the warps: for few columns.
    Thin,
}

/// Large tiles from this number on: below, small ones fill more of a GPU (the RTX 3080 has 68 multiprocessors).
const ENOUGH: usize = 96;

/// The tile for a result (m, n); `QLORA_GEMM_TILE` (64 or 128) overrides the choice between the large and the small one,
/// which does not change a bit.
fn tile(m: i64, n: i64, thin: bool) -> Tile {
    static WISH: OnceLock<Option<Tile>> = OnceLock::new();
    let wish = WISH.get_or_init(|| match std::env::var("QLORA_GEMM_TILE").as_deref() {
        Ok("128") => Some(Tile::Large),
        Ok("64") => Some(Tile::Small),
        _ => None,
    });
    let tiles = blocks(m, n, abi::GEMM_128_M, abi::GEMM_128_N);
    match wish {
        _ if thin && n <= i64::from(abi::GEMM_THIN_N) => Tile::Thin,
        Some(tile) => *tile,
        None if tiles >= ENOUGH => Tile::Large,
        None => Tile::Small,
    }
}

/// Tiles of (m, n).
fn blocks(m: i64, n: i64, of_m: u32, of_n: u32) -> usize {
    let along = |n: i64, of: u32| (n as usize).div_ceil(of as usize);
    along(m, of_m) * along(n, of_n)
}

/// What a launch needs to know of a kernel.
struct Shape {
    m: u32,
    n: u32,
    threads: u32,
    shared: u32,
}

const LARGE: Shape =
    Shape { m: abi::GEMM_128_M, n: abi::GEMM_128_N, threads: abi::GEMM_128_BLOCK, shared: abi::GEMM_128_SHARED };
const SMALL: Shape =
    Shape { m: abi::GEMM_64_M, n: abi::GEMM_64_N, threads: abi::GEMM_64_BLOCK, shared: abi::GEMM_64_SHARED };
const THIN_SHAPE: Shape =
    Shape { m: abi::GEMM_THIN_M, n: abi::GEMM_THIN_N, threads: abi::GEMM_THIN_BLOCK, shared: abi::GEMM_THIN_SHARED };
const TALL: Shape =
    Shape { m: abi::GEMM_TALL_M, n: abi::GEMM_TALL_N, threads: abi::GEMM_TALL_BLOCK, shared: abi::GEMM_TALL_SHARED };
/// As `TALL`, on its side.
const WIDE: Shape = Shape { m: abi::GEMM_TALL_N, n: abi::GEMM_TALL_M, ..TALL };

fn launch<P: Params>(
    l: &Launcher,
    kernel: Kernel<P>,
    shape: &Shape,
    p: &P,
    m: i64,
    n: i64,
    splits: usize,
) -> Result<()> {
    let grid = blocks(m, n, shape.m, shape.n);
    l.kernel(kernel).grid3(grid, splits, 1).block(shape.threads).shared(shape.shared as usize).launch(p)
}

fn nt_kernel(tile: Tile) -> (Kernel<abi::Gemm>, Shape) {
    match tile {
        Tile::Large => (kernels::GEMM_NT_128, LARGE),
        Tile::Small => (kernels::GEMM_NT_64, SMALL),
        Tile::Thin => (kernels::GEMM_NT_THIN, THIN_SHAPE),
    }
}

fn nn_kernel(tile: Tile) -> (Kernel<abi::Gemm>, Shape) {
    match tile {
        Tile::Large => (kernels::GEMM_NN_128, LARGE),
        Tile::Small => (kernels::GEMM_NN_64, SMALL),
        Tile::Thin => (kernels::GEMM_NN_THIN, THIN_SHAPE),
    }
}

/// Enqueues `gemm_nt`, in the tile that suits it.
///
/// # Errors
/// As [`nt`].
pub(crate) fn launch_nt(l: &Launcher, p: &abi::Gemm) -> Result<()> {
    // What is dropped as it is read is read by the thin kernel.
    let tile = if p.dropout == abi::GEMM_DROP_A as i32 { Tile::Thin } else { tile(p.m, p.n, true) };
    let (kernel, shape) = nt_kernel(tile);
    launch(l, kernel, &shape, p, p.m, p.n, 1)
}

/// Enqueues `gemm_nn`, in the tile that suits it.
///
/// # Errors
/// As [`nt`].
pub(crate) fn launch_nn(l: &Launcher, p: &abi::Gemm) -> Result<()> {
    let tile = match tile(p.m, p.n, true) {
        // The large tile has no registers left for dropout.
        Tile::Large if p.dropout == abi::GEMM_DROP_SECOND as i32 => Tile::Small,
        tile => tile,
    };
    let (kernel, shape) = nn_kernel(tile);
    launch(l, kernel, &shape, p, p.m, p.n, 1)
}

/// Enqueues `gemm_tn`, in the tile that suits it; over `scratch` where the rows are split, and then `gemm_tn_sum`.
///
/// # Errors
/// As [`nt`].
pub(crate) fn launch_tn(l: &Launcher, p: abi::Gemm, scratch: Option<&mut Tensor>) -> Result<()> {
    let (m, n, rows) = (p.m as usize, p.n as usize, p.k as usize);
    let needed = tn_scratch(m, n, rows);
    let splits = if needed > 0 { rows.div_ceil(SPLIT) } else { 1 };
    let mut p = p;
    if needed > 0 {
        let scratch = scratch.filter(|t| t.dtype() == DType::F32 && t.len() >= needed);
        let scratch =
            scratch.ok_or_else(|| no_kernel("product", &format!("{needed} elements of scratch are lacking")))?;
        p.partial = scratch.ptr_mut();
        p.split = size("rows", SPLIT)?;
    }
    let (kernel, shape) = match () {
        // What is dropped as it is read is read by the wide kernel.
        () if p.dropout == abi::GEMM_DROP_B as i32 => (kernels::GEMM_TN_WIDE, WIDE),
        () if n <= abi::GEMM_TALL_N as usize => (kernels::GEMM_TN_TALL, TALL),
        () if m <= abi::GEMM_TALL_N as usize => (kernels::GEMM_TN_WIDE, WIDE),
        () if tile(p.m, p.n, false) == Tile::Large => (kernels::GEMM_TN_128, LARGE),
        () => (kernels::GEMM_TN_64, SMALL),
    };
    launch(l, kernel, &shape, &p, p.m, p.n, splits)?;
    if needed > 0 {
        let block = abi::GEMM_SUM_BLOCK;
        l.kernel(kernels::GEMM_TN_SUM).grid((m * n).div_ceil(block as usize)).block(block).launch(&p)?;
    }
    Ok(())
}

/// Enqueues `gemm_nf4_nt`: as [`launch_nt`] with an NF4 matrix (n, k) for B.
///
/// # Errors
/// As [`nt`].
pub(crate) fn launch_nf4_nt(l: &Launcher, p: &abi::GemmNf4) -> Result<()> {
    let (kernel, shape) = match tile(p.g.m, p.g.n, false) {
        Tile::Large => (kernels::GEMM_NF4_NT_128, Shape { shared: abi::GEMM_NF4_128_SHARED, ..LARGE }),
        _ => (kernels::GEMM_NF4_NT_64, Shape { shared: abi::GEMM_NF4_64_SHARED, ..SMALL }),
    };
    launch(l, kernel, &shape, p, p.g.m, p.g.n, 1)
}

/// Enqueues `gemm_nf4_nn`: as [`launch_nn`] with an NF4 matrix (k, n) for B.
///
/// # Errors
/// As [`nt`].
pub(crate) fn launch_nf4_nn(l: &Launcher, p: &abi::GemmNf4) -> Result<()> {
    let (kernel, shape) = match tile(p.g.m, p.g.n, false) {
        Tile::Large => (kernels::GEMM_NF4_NN_128, Shape { shared: abi::GEMM_NF4_128_SHARED, ..LARGE }),
        _ => (kernels::GEMM_NF4_NN_64, Shape { shared: abi::GEMM_NF4_64_SHARED, ..SMALL }),
    };
    launch(l, kernel, &shape, p, p.g.m, p.g.n, 1)
}

#[cfg(all(test, feature = "host-kernels"))]
mod tests {
    use super::*;
    use crate::device::{Device, Exec};
    use crate::ops::philox::{Stream, normal};
    use crate::tensor::Float;

    /// Sides of ragged tiles; not all are multiples of a chunk.
    const SIDES: [usize; 7] = [1, 7, 31, 64, 65, 130, 200];

    fn numbers(seed: u64, n: usize) -> Vec<bf16> {
        let stream = Stream { seed, step: 0, module: 0 };
        (0..n).map(|i| <bf16 as Float>::narrow(normal(stream, i as u64))).collect()
    }

    /// A (rows, cols) matrix inside a tensor of `ld` columns, whose other elements are NaN.
    fn matrix(seed: u64, rows: usize, cols: usize, ld: usize, device: &Device) -> (Tensor, Vec<f64>) {
        let values = numbers(seed, rows * cols);
        let mut padded = vec![bf16::NAN; rows * ld];
        for (to, from) in padded.chunks_mut(ld).zip(values.chunks(cols)) {
            to[..cols].copy_from_slice(from);
        }
        let t = Tensor::from_slice(&padded, rows, ld, device).unwrap();
        (t, values.iter().map(|x| f64::from(x.to_f32())).collect())
    }

    fn operand(t: &Tensor, cols: usize) -> Operand {
        Operand { cols, ..Operand::of("operand", t).unwrap() }
    }

    /// sum_k a[k] b[k], and the error that an f32 sum of them may have: every addition errs by at most half a unit of the
    /// last place of a partial sum, which is at most the sum of absolute values.
    fn dot(k: usize, term: impl Fn(usize) -> f64) -> (f64, f64) {
        let (sum, size) = (0..k).map(term).fold((0.0, 0.0), |(s, z), t| (s + t, z + t.abs()));
        (sum, size * (k as f64 + 4.0) * 2f64.powi(-24))
    }

    fn expect(what: &str, got: f64, (want, error): (f64, f64), low: bool) {
        let limit = error + if low { (want.abs() + error) * 2f64.powi(-8) } else { want.abs() * 2f64.powi(-23) };
        assert!((got - want).abs() <= limit, "{what}: {got} is not {want} within {limit:.2e}");
    }

    /// Every tile of nt and nn, with padded and with unaligned rows, written and added to, bf16 and f32; and the same bits by
    /// the large and the small tile.
    #[test]
    fn nt_and_nn() {
        let device = Device::host_kernels(2, false).unwrap();
        let Exec::Kernels(l) = device.exec() else { panic!("a device of kernels") };
        let mut case = 0;
        for m in SIDES {
            for n in SIDES {
                for k in SIDES {
                    case += 1;
                    if case % 5 != 0 {
                        continue; // a fifth of all combinations, no side favoured
                    }
                    let (pad, transposed, f32, add) = ([0, 8, 3][case % 3], case % 2 == 0, case % 4 < 2, case % 8 < 5);
                    let (a, av) = matrix(1, m, k, k + pad, &device);
                    let (rows, cols) = if transposed { (n, k) } else { (k, n) };
                    let (b, bv) = matrix(2, rows, cols, cols + pad, &device);
                    let before = matrix(3, m, n, n + pad, &device).1;
                    let what = format!("({m}, {n}, {k}) transposed {transposed} f32 {f32} add {add} pad {pad}");
                    let mut first: Option<Vec<f64>> = None;
                    for tile in [Tile::Large, Tile::Small, Tile::Thin] {
                        let mut c = matrix(3, m, n, n + pad, &device).0;
                        if f32 {
                            let wide: Vec<f32> = c.to_f64().iter().map(|&x| x as f32).collect();
                            c = Tensor::from_slice(&wide, m, n + pad, &device).unwrap();
                        }
                        let out = Out { cols: n, ..Out::of("c", &mut c).unwrap() };
                        let p = params(out, operand(&a, k), operand(&b, cols), m, k, 0.5, add, ptr::null()).unwrap();
                        let (kernel, shape) = if transposed { nt_kernel(tile) } else { nn_kernel(tile) };
                        launch(l, kernel, &shape, &p, p.m, p.n, 1).unwrap();
                        let got = c.to_f64();
                        for i in 0..m {
                            for j in 0..n {
                                let b = |x: usize| if transposed { bv[j * k + x] } else { bv[x * n + j] };
                                let (sum, error) = dot(k, |x| av[i * k + x] * b(x));
                                let want = 0.5 * sum + if add { before[i * n + j] } else { 0.0 };
                                expect(
                                    &what,
                                    got[i * (n + pad) + j],
                                    (want, error + want.abs() * 2f64.powi(-23)),
                                    !f32,
                                );
                            }
                            assert!(got[i * (n + pad) + n..][..pad].iter().all(|x| x.is_nan()), "{what}: past a row");
                        }
                        let bits: Vec<f64> = got.into_iter().filter(|x| !x.is_nan()).collect();
                        match &first {
                            Some(first) if tile == Tile::Small => assert_eq!(first, &bits, "{what}"),
                            Some(_) => {}
                            None => first = Some(bits),
                        }
                    }
                }
            }
        }
    }

    /// Every tile of tn, whole and split, with rows past the live ones full of NaN.
    #[test]
    fn tn_sums_live_rows() {
        let device = Device::host_kernels(2, false).unwrap();
        let Exec::Kernels(l) = device.exec() else { panic!("a device of kernels") };
        let mut case = 0;
        for m in SIDES {
            for n in SIDES {
                for rows in [1, 65, 200, 1300] {
                    case += 1;
                    if case % 7 != 0 && rows != 1300 || rows == 1300 && m.max(n) > 65 {
                        continue;
                    }
                    let live = [rows, rows * 2 / 3 + 1, 1][case % 3];
                    let count = Tensor::from_slice(&[f32::from_bits(live as u32)], 1, 1, &device).unwrap();
                    let pad = [0, 8, 3][case % 3];
                    let of = |seed, cols: usize| {
                        let (mut t, values) = matrix(seed, rows, cols, cols + pad, &device);
                        t.write(live * (cols + pad), &vec![bf16::NAN; (rows - live) * (cols + pad)]);
                        (t, values)
                    };
                    let ((a, av), (b, bv)) = (of(1, m), of(2, n));
                    let mut c = Tensor::from_slice(&vec![1.0f32; m * n], m, n, &device).unwrap();
                    let mut scratch = match tn_scratch(m, n, rows) {
                        0 => None,
                        needed => Some(Tensor::unwritten(1, needed, DType::F32, &device).unwrap()),
                    };
                    let out = Out::of("c", &mut c).unwrap();
                    tn(l, out, operand(&a, m), operand(&b, n), 0.5, count.ptr(), scratch.as_mut()).unwrap();
                    for (at, got) in c.to_f64().into_iter().enumerate() {
                        let (i, j) = (at / n, at % n);
                        let (sum, error) = dot(live, |x| av[x * m + i] * bv[x * n + j]);
                        expect(&format!("({m}, {n}, {live} of {rows})"), got, (1.0 + 0.5 * sum, error), false);
                    }
                }
            }
        }
    }

    #[test]
    fn a_split_needs_its_scratch() {
        let device = Device::host_kernels(1, false).unwrap();
        let Exec::Kernels(l) = device.exec() else { panic!("a device of kernels") };
        let (a, b) = (matrix(1, 600, 4, 4, &device).0, matrix(2, 600, 4, 4, &device).0);
        let mut c = Tensor::zeros(4, 4, DType::F32, &device).unwrap();
        let out = Out::of("c", &mut c).unwrap();
        let refused = tn(l, out, operand(&a, 4), operand(&b, 4), 1.0, ptr::null(), None);
        assert!(refused.unwrap_err().to_string().contains("scratch"));
    }
}
