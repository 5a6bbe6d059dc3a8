//! Launches of products: independent ones of a kind share a launch, each with the bits that it has alone. Formulas, rules and
//! the order of tiles: kernels/gemm.h.

use std::array;
use std::ffi::c_void;

use super::product::{SPLIT, tn_scratch};
use super::tiles::{self, Kind};
use super::{no_kernel, size};
use crate::device::{Kernel, Launcher, Params, Tile, abi, kernels};
use crate::error::Result;
use crate::tensor::{DType, Tensor};

/// Most members of a launch.
pub(crate) const MEMBERS: usize = abi::GEMM_MEMBERS as usize;

/// A kernel and what a launch needs to know of it.
struct Form<P> {
    kernel: Kernel<P>,
    /// Rows and columns of a tile.
    m: u32,
    n: u32,
    threads: u32,
    shared: u32,
}

const fn large<P>(kernel: Kernel<P>, shared: u32) -> Form<P> {
    Form { kernel, m: abi::GEMM_128_M, n: abi::GEMM_128_N, threads: abi::GEMM_128_BLOCK, shared }
}

const fn small<P>(kernel: Kernel<P>, shared: u32) -> Form<P> {
    Form { kernel, m: abi::GEMM_64_M, n: abi::GEMM_64_N, threads: abi::GEMM_64_BLOCK, shared }
}

/// For few columns: the depth is divided among the warps.
const fn thin(kernel: Kernel<abi::GemmGroup>) -> Form<abi::GemmGroup> {
    let (m, n) = (abi::GEMM_THIN_M, abi::GEMM_THIN_N);
    Form { kernel, m, n, threads: abi::GEMM_THIN_BLOCK, shared: abi::GEMM_THIN_SHARED }
}

/// For few rows.
const fn wide(kernel: Kernel<abi::GemmGroup>) -> Form<abi::GemmGroup> {
    let (m, n) = (abi::GEMM_WIDE_M, abi::GEMM_WIDE_N);
    Form { kernel, m, n, threads: abi::GEMM_WIDE_BLOCK, shared: abi::GEMM_WIDE_SHARED }
}

/// A kernel of kernels/gemm_sm90.h, whose tiles have so many columns.
const fn wgmma(kernel: Kernel<abi::GemmGroup>, n: u32, shared: u32) -> Form<abi::GemmGroup> {
    Form { kernel, m: abi::GEMM_SM90_M, n, threads: abi::GEMM_SM90_BLOCK, shared }
}

/// A kind of product in all of its tiles.
struct Pair<P> {
    kind: Kind,
    large: Form<P>,
    small: Form<P>,
    /// Of 128 and of 256 columns, by `wgmma`.
    wgmma: Option<[Form<P>; 2]>,
}

impl<P> Pair<P> {
    fn form(&self, tile: Tile) -> &Form<P> {
        match tile {
            Tile::Large => &self.large,
            Tile::Small => &self.small,
            Tile::Wgmma128 => self.wgmma.as_ref().map_or(&self.small, |of| &of[0]),
            Tile::Wgmma256 => self.wgmma.as_ref().map_or(&self.small, |of| &of[1]),
        }
    }

    /// In the tile that suits a launch of these members, `times` blocks a tile.
    fn suited(&self, l: &Launcher, members: &[abi::Gemm], times: usize) -> Result<&Form<P>> {
        let count = |tile| members.iter().map(|p| tiles_of(self.form(tile), p)).sum::<usize>() * times;
        let tile = tiles::tile(l.tuning(), self.kind, members[0].m as usize, count)?;
        let whole = members.iter().all(|p| whole_chunks(self.kind, p));
        Ok(self.form(if whole { tile } else { Tile::Small }))
    }
}

/// Whether the large tile takes it: rows of dense operands in whole chunks of 16 bytes.
fn whole_chunks(kind: Kind, p: &abi::Gemm) -> bool {
    let chunks = |at: *const c_void, ld: i64, cols: i64| at.addr().is_multiple_of(16) && ld % 8 == 0 && cols % 8 == 0;
    let k2 = i64::from(p.k2);
    let second = |cols| k2 == 0 || chunks(p.a2, p.lda2, k2) && chunks(p.b2, p.ldb2, cols);
    match kind {
        Kind::Nt => chunks(p.a, p.lda, p.k) && chunks(p.b, p.ldb, p.k) && second(k2),
        Kind::Nn => chunks(p.a, p.lda, p.k) && chunks(p.b, p.ldb, p.n) && second(p.n),
        Kind::Tn => chunks(p.a, p.lda, p.m) && chunks(p.b, p.ldb, p.n),
        Kind::Nf4Nt | Kind::Nf4Nn => true,
    }
}

/// Both tiles of a dense kind.
const fn dense(kind: Kind, of_large: Kernel<abi::GemmGroup>, of_small: Kernel<abi::GemmGroup>) -> Pair<abi::GemmGroup> {
    let (large, small) = (large(of_large, abi::GEMM_128_SHARED), small(of_small, abi::GEMM_64_SHARED));
    Pair { kind, large, small, wgmma: None }
}

/// Both tiles of a kind with an NF4 matrix.
const fn nf4(kind: Kind, of_large: Kernel<abi::GemmNf4>, of_small: Kernel<abi::GemmNf4>) -> Pair<abi::GemmNf4> {
    let (large, small) = (large(of_large, abi::GEMM_NF4_128_SHARED), small(of_small, abi::GEMM_NF4_64_SHARED));
    Pair { kind, large, small, wgmma: None }
}

const NT: Pair<abi::GemmGroup> = Pair {
    wgmma: Some([
        wgmma(kernels::GEMM_NT_128_SM90, 128, abi::GEMM_SM90_128_SHARED),
        wgmma(kernels::GEMM_NT_256_SM90, 256, abi::GEMM_SM90_256_SHARED),
    ]),
    ..dense(Kind::Nt, kernels::GEMM_NT_128, kernels::GEMM_NT_64)
};
const NN: Pair<abi::GemmGroup> = Pair {
    wgmma: Some([
        wgmma(kernels::GEMM_NN_128_SM90, 128, abi::GEMM_SM90_128_SHARED),
        wgmma(kernels::GEMM_NN_256_SM90, 256, abi::GEMM_SM90_256_SHARED),
    ]),
    ..dense(Kind::Nn, kernels::GEMM_NN_128, kernels::GEMM_NN_64)
};
const TN: Pair<abi::GemmGroup> = dense(Kind::Tn, kernels::GEMM_TN_128, kernels::GEMM_TN_64);
const NF4_NT: Pair<abi::GemmNf4> = nf4(Kind::Nf4Nt, kernels::GEMM_NF4_NT_128, kernels::GEMM_NF4_NT_64);
const NF4_NN: Pair<abi::GemmNf4> = nf4(Kind::Nf4Nn, kernels::GEMM_NF4_NN_128, kernels::GEMM_NF4_NN_64);
const NF4_NT_F16: Pair<abi::GemmNf4> = nf4(Kind::Nf4Nt, kernels::GEMM_NF4_NT_128_F16, kernels::GEMM_NF4_NT_64_F16);
const NF4_NN_F16: Pair<abi::GemmNf4> = nf4(Kind::Nf4Nn, kernels::GEMM_NF4_NN_128_F16, kernels::GEMM_NF4_NN_64_F16);
const NT_THIN: Form<abi::GemmGroup> = thin(kernels::GEMM_NT_THIN);
const TN_WIDE: Form<abi::GemmGroup> = wide(kernels::GEMM_TN_WIDE);

fn along(n: i64, of: u32) -> usize {
    (n as usize).div_ceil(of as usize)
}

/// Tiles of a result.
fn tiles_of<P>(form: &Form<P>, p: &abi::Gemm) -> usize {
    along(p.m, form.m) * along(p.n, form.n)
}

/// Enqueues `gemm_nt` of these, in the tile that suits them. Their m and their live rows are the same.
///
/// # Errors
/// [`crate::Error::Kernel`] if the device refuses a launch; [`crate::Error::Config`] if the environment asks for a tile that
/// there is not.
pub(crate) fn nt(l: &Launcher, members: &[abi::Gemm]) -> Result<()> {
    // What is dropped as it is read is read by the thin kernel.
    let is_thin = |p: &abi::Gemm| p.n <= i64::from(abi::GEMM_THIN_N) || p.dropout == abi::GEMM_DROP_A as i32;
    let (few, many): (Vec<_>, Vec<_>) = members.iter().partition(|p| is_thin(p));
    few.chunks(MEMBERS).try_for_each(|some| side_by_side(l, &NT_THIN, some, |g| g))?;
    many.chunks(MEMBERS).try_for_each(|some| side_by_side(l, NT.suited(l, some, 1)?, some, |g| g))
}

/// As [`nt`], `gemm_nn`.
///
/// # Errors
/// As [`nt`].
pub(crate) fn nn(l: &Launcher, members: &[abi::Gemm]) -> Result<()> {
    members.chunks(MEMBERS).try_for_each(|some| {
        // The large tile has no registers left for dropout.
        let drops = some.iter().any(|p| p.dropout == abi::GEMM_DROP_SECOND as i32);
        let form = if drops { &NN.small } else { NN.suited(l, some, 1)? };
        side_by_side(l, form, some, |g| g)
    })
}

/// As [`nt`], `gemm_nf4_nt`: with an NF4 matrix (n, k) for each B.
///
/// # Errors
/// As [`nt`].
pub(crate) fn nf4_nt(l: &Launcher, members: &[(abi::Gemm, abi::Nf4Blocks)]) -> Result<()> {
    with_nf4(l, &NF4_NT, members)
}

/// As [`nn`], `gemm_nf4_nn`: with an NF4 matrix (k, n) for each B.
///
/// # Errors
/// As [`nt`].
pub(crate) fn nf4_nn(l: &Launcher, members: &[(abi::Gemm, abi::Nf4Blocks)]) -> Result<()> {
    with_nf4(l, &NF4_NN, members)
}

/// As [`nf4_nt`], in f16.
///
/// # Errors
/// As [`nt`].
pub(crate) fn nf4_nt_f16(l: &Launcher, members: &[(abi::Gemm, abi::Nf4Blocks)]) -> Result<()> {
    with_nf4(l, &NF4_NT_F16, members)
}

/// As [`nf4_nn`], in f16.
///
/// # Errors
/// As [`nt`].
pub(crate) fn nf4_nn_f16(l: &Launcher, members: &[(abi::Gemm, abi::Nf4Blocks)]) -> Result<()> {
    with_nf4(l, &NF4_NN_F16, members)
}

fn with_nf4(l: &Launcher, pair: &Pair<abi::GemmNf4>, members: &[(abi::Gemm, abi::Nf4Blocks)]) -> Result<()> {
    members.chunks(MEMBERS).try_for_each(|some| {
        let products: Vec<abi::Gemm> = some.iter().map(|(g, _)| *g).collect();
        let w = array::from_fn(|i| some[i.min(some.len() - 1)].1);
        side_by_side(l, pair.suited(l, &products, 1)?, &products, |g| abi::GemmNf4 { g, w })
    })
}

/// One launch of at most [`MEMBERS`], their columns of tiles side by side.
fn side_by_side<P: Params>(
    l: &Launcher,
    form: &Form<P>,
    members: &[abi::Gemm],
    params: impl FnOnce(abi::GemmGroup) -> P,
) -> Result<()> {
    let first = &members[0]; // there is one
    debug_assert!(members.iter().all(|p| (p.m, p.live) == (first.m, first.live)), "the same rows");
    let (g, columns) = group(members, |p| along(p.n, form.n))?;
    launch(l, form, &params(g), along(first.m, form.m) * columns, 1)
}

/// Enqueues `gemm_tn` of these, in the tiles that suit them, and where rows are split `gemm_tn_sum`. `scratch` is f32 memory
/// of the [`tn_scratch`] of all of them.
///
/// # Errors
/// As [`nt`]; [`crate::Error::Shape`] if there is too little scratch.
pub(crate) fn tn(l: &Launcher, members: &[abi::Gemm], scratch: Option<&mut Tensor>) -> Result<()> {
    let mut left = members.to_vec();
    let parts: Vec<usize> = left.iter().map(|p| tn_scratch(p.m as usize, p.n as usize, p.k as usize)).collect();
    let needed: usize = parts.iter().sum();
    if needed > 0 {
        let scratch = scratch.filter(|t| t.dtype() == DType::F32 && t.len() >= needed);
        let scratch =
            scratch.ok_or_else(|| no_kernel("product", &format!("{needed} elements of scratch are lacking")))?;
        let mut partial = scratch.ptr_mut::<f32>();
        for (p, part) in left.iter_mut().zip(parts).filter(|(_, part)| *part > 0) {
            (p.partial, p.split) = (partial, size("rows", SPLIT)?);
            partial = partial.wrapping_add(part);
        }
    }
    let split: Vec<abi::Gemm> = left.iter().filter(|p| p.split > 0).copied().collect();
    while let Some(first) = left.first().copied() {
        let splits = if first.split > 0 { along(first.k, first.split as u32) } else { 1 };
        let alike = |p: &abi::Gemm| (is_wide(p), p.k, p.split) == (is_wide(&first), first.k, first.split);
        let (now, later): (Vec<_>, Vec<_>) = left.iter().partition(|p| alike(p));
        now.chunks(MEMBERS).try_for_each(|some| {
            let form = if is_wide(&first) { &TN_WIDE } else { TN.suited(l, some, splits)? };
            let (g, tiles) = group(some, |p| tiles_of(form, p))?;
            launch(l, form, &g, tiles, splits)
        })?;
        left = later;
    }
    split.chunks(MEMBERS).try_for_each(|some| {
        let block = abi::GEMM_SUM_BLOCK;
        let (g, blocks) = group(some, |p| (p.m as usize * p.n as usize).div_ceil(block as usize))?;
        l.kernel(kernels::GEMM_TN_SUM).grid(blocks).block(block).launch(&g)
    })
}

/// Whether `gemm_tn_wide` computes it: of few rows, or with an operand that is dropped as it is read.
fn is_wide(p: &abi::Gemm) -> bool {
    p.m <= i64::from(abi::GEMM_WIDE_M) || p.dropout == abi::GEMM_DROP_B as i32
}

/// The parameters of a launch of these members, each of which has so many parts, and the number of all parts.
fn group(members: &[abi::Gemm], parts: impl Fn(&abi::Gemm) -> usize) -> Result<(abi::GemmGroup, usize)> {
    let (of, ends, all) = in_line(members, parts)?;
    Ok((abi::GemmGroup { of, ends }, all))
}

/// The members of a launch, of which there is one at least (the last one repeated where there are fewer than a launch takes),
/// where the parts of each end, and the number of all parts.
pub(crate) fn in_line<T: Copy>(
    members: &[T],
    parts: impl Fn(&T) -> usize,
) -> Result<([T; MEMBERS], [u32; MEMBERS], usize)> {
    let mut all = 0;
    let mut ends = [0; MEMBERS];
    for (i, end) in ends.iter_mut().enumerate() {
        all += members.get(i).map_or(0, &parts);
        *end = size("blocks", all)?;
    }
    Ok((array::from_fn(|i| members[i.min(members.len() - 1)]), ends, all))
}

fn launch<P: Params>(l: &Launcher, form: &Form<P>, p: &P, blocks: usize, splits: usize) -> Result<()> {
    l.kernel(form.kernel).grid3(blocks, splits, 1).block(form.threads).shared(form.shared as usize).launch(p)
}

#[cfg(all(test, feature = "host-kernels"))]
mod tests {
    use std::ptr;

    use half::bf16;

    use super::*;
    use crate::device::{Device, Exec};
    use crate::ops::philox::{Stream, normal};
    use crate::ops::product::{self, Operand, Out, params};
    use crate::tensor::Float;

    /// Sides of ragged tiles; not all are multiples of a chunk.
    const SIDES: [usize; 8] = [1, 7, 31, 64, 65, 136, 200, 264];

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
    /// all of them (but the thin one), whose twins add in the same order.
    #[test]
    fn nt_and_nn() {
        let device = Device::host_kernels(2, false).unwrap();
        let Exec::Kernels(l) = device.exec() else { panic!("a device of kernels") };
        let (mut case, mut large) = (0, 0);
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
                    // The large tile takes whole chunks alone.
                    let is_whole = pad % 8 == 0 && k % 8 == 0 && (transposed || n % 8 == 0);
                    large += usize::from(is_whole);
                    let tiles = [Tile::Large, Tile::Wgmma128, Tile::Wgmma256, Tile::Small].map(Some);
                    for tile in tiles.into_iter().chain([None]).skip(if is_whole { 0 } else { 3 }) {
                        let (pair, thin) = if transposed { (&NT, Some(&NT_THIN)) } else { (&NN, None) };
                        let Some(form) = tile.map(|tile| pair.form(tile)).or(thin) else { continue };
                        let mut c = matrix(3, m, n, n + pad, &device).0;
                        if f32 {
                            let wide: Vec<f32> = c.to_f64().iter().map(|&x| x as f32).collect();
                            c = Tensor::from_slice(&wide, m, n + pad, &device).unwrap();
                        }
                        let out = Out { cols: n, ..Out::of("c", &mut c).unwrap() };
                        let p = params(out, operand(&a, k), operand(&b, cols), m, k, 0.5, add, ptr::null()).unwrap();
                        assert_eq!(whole_chunks(pair.kind, &p), is_whole, "{what}");
                        side_by_side(l, form, &[p], |g| g).unwrap();
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
                            Some(first) if tile.is_some() => assert_eq!(first, &bits, "{what}"),
                            Some(_) => {}
                            None => first = Some(bits),
                        }
                    }
                }
            }
        }
        assert!(large >= 8, "the large tile was tried {large} times");
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
                    product::tn(l, out, operand(&a, m), operand(&b, n), 0.5, count.ptr(), scratch.as_mut()).unwrap();
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
        let refused = product::tn(l, out, operand(&a, 4), operand(&b, 4), 1.0, ptr::null(), None);
        assert!(refused.unwrap_err().to_string().contains("scratch"));
    }
}
