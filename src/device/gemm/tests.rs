//! Every instruction set that this machine has, against the plain f64 sum.

use super::*;
use std::sync::OnceLock;

pub(super) fn isas() -> Vec<Isa> {
    Isa::ALL.into_iter().filter(|i| i.is_available()).collect()
}

pub(super) fn pool(threads: usize) -> &'static Pool {
    static POOLS: OnceLock<[Pool; 2]> = OnceLock::new();
    &POOLS.get_or_init(|| [Pool::new(2), Pool::new(3)])[threads - 2]
}

/// A seeded generator (splitmix64).
pub(super) struct Rng(u64);
impl Rng {
    pub(super) fn new(seed: u64) -> Rng {
        Rng(seed)
    }
    pub(super) fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }
    /// In [-1, 1), never subnormal.
    pub(super) fn unit(&mut self) -> f32 {
        (self.next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0
    }
    pub(super) fn f32s(&mut self, n: usize) -> Vec<f32> {
        (0..n).map(|_| self.unit()).collect()
    }
    pub(super) fn bf16s(&mut self, n: usize) -> Vec<bf16> {
        (0..n).map(|_| bf16::from_f32(self.unit())).collect()
    }
}

const CODE: [f32; 16] =
    [-1.0, -0.69, -0.52, -0.39, -0.28, -0.18, -0.09, 0.0, 0.08, 0.16, 0.25, 0.34, 0.44, 0.56, 0.72, 1.0];

/// Owner of an NF4 matrix.
struct Nf4 {
    packed: Vec<u8>,
    plain: Vec<f32>,
    codes: Vec<u8>,
    code2: [f32; 256],
    absmax2: Vec<f32>,
    double: bool,
    round_bf16: bool,
}

impl Nf4 {
    fn random(n: usize, double: bool, round_bf16: bool, rng: &mut Rng) -> Nf4 {
        let blocks = n.div_ceil(64);
        Nf4 {
            packed: (0..n.div_ceil(2)).map(|_| rng.next() as u8).collect(),
            plain: (0..blocks).map(|_| 0.01 + rng.unit().abs()).collect(),
            codes: (0..blocks).map(|_| rng.next() as u8).collect(),
            code2: std::array::from_fn(|i| (i as f32 - 127.0) / 131.0),
            absmax2: (0..blocks.div_ceil(256)).map(|_| 0.3 + rng.unit().abs()).collect(),
            double,
            round_bf16,
        }
    }
    fn get(&self) -> Nf4Ref<'_> {
        let double = Absmax::Double { codes: &self.codes, code2: &self.code2, absmax2: &self.absmax2, offset: 0.137 };
        let absmax = if self.double { double } else { Absmax::Plain(&self.plain) };
        Nf4Ref { packed: &self.packed, absmax, code: &CODE, round_bf16: self.round_bf16 }
    }
    /// The definition, element by element.
    fn expand(&self, n: usize) -> Vec<f32> {
        (0..n)
            .map(|e| {
                let byte = self.packed[e / 2];
                let q = if e % 2 == 0 { byte / 16 } else { byte % 16 };
                let b = e / 64;
                let absmax = if self.double {
                    let scaled = self.code2[usize::from(self.codes[b])] * self.absmax2[b / 256];
                    scaled + 0.137
                } else {
                    self.plain[b]
                };
                let v = CODE[usize::from(q)] * absmax;
                if self.round_bf16 { bf16::from_f32(v).to_f32() } else { v }
            })
            .collect()
    }
}

/// Owner of an operand of any kind.
#[allow(clippy::large_enum_variant, reason = "there are never more than a few")]
enum Data {
    F32(Vec<f32>),
    Bf16(Vec<bf16>),
    Nf4(Nf4),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) enum Kind {
    F32,
    Bf16,
    Nf4,
    Nf4Double,
}

/// An operand (rows, cols) stored row-major, or transposed, with `gap` extra elements between the stored rows.
pub(super) struct Operand {
    data: Data,
    rows: usize,
    cols: usize,
    transposed: bool,
    gap: usize,
}

impl Operand {
    pub(super) fn random(kind: Kind, rows: usize, cols: usize, transposed: bool, gap: usize, rng: &mut Rng) -> Operand {
        let (r, c) = if transposed { (cols, rows) } else { (rows, cols) };
        let gap = if matches!(kind, Kind::F32 | Kind::Bf16) { gap } else { 0 };
        let n = r * (c + gap);
        let data = match kind {
            Kind::F32 => Data::F32(rng.f32s(n)),
            Kind::Bf16 => Data::Bf16(rng.bf16s(n)),
            Kind::Nf4 => Data::Nf4(Nf4::random(n, false, true, rng)),
            Kind::Nf4Double => Data::Nf4(Nf4::random(n, true, false, rng)),
        };
        Operand { data, rows, cols, transposed, gap }
    }
    pub(super) fn view(&self) -> View<'_> {
        let src = match &self.data {
            Data::F32(x) => Src::F32(x),
            Data::Bf16(x) => Src::Bf16(x),
            Data::Nf4(x) => Src::Nf4(x.get()),
        };
        let (r, c) = if self.transposed { (self.cols, self.rows) } else { (self.rows, self.cols) };
        let v = View { row_stride: c + self.gap, ..View::new(src, r, c) };
        if self.transposed { v.t() } else { v }
    }
    /// As f64, row-major; NF4 first rounded to bf16 if the kernels do so.
    fn plain(&self, as_bf16: bool) -> Vec<f64> {
        let v = self.view();
        let at = |i: usize, j: usize| i * v.row_stride + j * v.col_stride;
        let flat: Vec<f64> = match &self.data {
            Data::F32(x) => x.iter().map(|v| f64::from(*v)).collect(),
            Data::Bf16(x) => x.iter().map(|v| v.to_f64()).collect(),
            Data::Nf4(x) => {
                let x = x.expand(self.rows * self.cols);
                x.iter().map(|v| if as_bf16 { bf16::from_f32(*v).to_f64() } else { f64::from(*v) }).collect()
            }
        };
        (0..self.rows * self.cols).map(|e| flat[at(e / self.cols, e % self.cols)]).collect()
    }
}

struct Case {
    m: usize,
    n: usize,
    k: usize,
    a: Kind,
    b: Kind,
    ta: bool,
    tb: bool,
    gap: usize,
    alpha: f32,
    beta: f32,
    out_bf16: bool,
}

/// Runs a case on every instruction set and thread count and checks each element.
///
/// Bound: products of bf16 are exact in f32, others are fused (or rounded once more, portable: 2 roundings a step); the
/// sum makes at most K additions; scaling by alpha and adding C two roundings per block of K (at most K/256 + 1
/// blocks, blocks save more additions than they add). Each rounds by at most u = 2^-24 of a partial sum, whose size
/// is at most S = |alpha| sum |a b| + |beta C|. So |err| <= (2K + 4) u S (1 + small), where the slack factor 1.01 covers second-order
/// terms, plus u_bf16 = 2^-8 of the result for a bf16 C, plus (K + 4) 2^-126 since bf16 units flush subnormals.
fn check_case(c: &Case, rng: &mut Rng) {
    let a = Operand::random(c.a, c.m, c.k, c.ta, c.gap, rng);
    let b = Operand::random(c.b, c.k, c.n, c.tb, c.gap, rng);
    let as_bf16 = c.a == Kind::Bf16 && c.b != Kind::F32;
    let (pa, pb) = (a.plain(false), b.plain(as_bf16));
    let ldc = c.n + c.gap;
    let old: Vec<f32> = rng.f32s(c.m * ldc).iter().map(|v| bf16::from_f32(*v).to_f32()).collect();
    for isa in isas() {
        let mut first: Option<Vec<u32>> = None;
        for threads in [1, 2, 3] {
            let pool = (threads > 1).then(|| pool(threads));
            let got: Vec<f32> = if c.out_bf16 {
                let mut out: Vec<bf16> = old.iter().map(|v| bf16::from_f32(*v)).collect();
                let dst = DstView { dst: Dst::Bf16(&mut out), rows: c.m, cols: c.n, row_stride: ldc };
                gemm_with(isa, pool, c.alpha, a.view(), b.view(), c.beta, dst);
                out.iter().map(|v| v.to_f32()).collect()
            } else {
                let mut out = old.clone();
                let dst = DstView { dst: Dst::F32(&mut out), rows: c.m, cols: c.n, row_stride: ldc };
                gemm_with(isa, pool, c.alpha, a.view(), b.view(), c.beta, dst);
                out
            };
            let bits: Vec<u32> = got.iter().map(|v| v.to_bits()).collect();
            match &first {
                None => first = Some(bits),
                Some(f) => {
                    assert_eq!(*f, bits, "{isa}, {threads} threads");
                    continue;
                }
            }
            for i in 0..c.m {
                for j in 0..c.n {
                    let (mut sum, mut size) = (0.0, 0.0);
                    for k in 0..c.k {
                        let p = pa[i * c.k + k] * pb[k * c.n + j];
                        sum += p;
                        size += p.abs();
                    }
                    let before = f64::from(c.beta) * f64::from(old[i * ldc + j]);
                    let want = f64::from(c.alpha) * sum + before;
                    let size = f64::from(c.alpha).abs() * size + before.abs();
                    let steps = (2 * c.k + 4) as f64;
                    let mut limit = 1.01 * steps * (size * 2f64.powi(-24) + 2f64.powi(-126));
                    if c.out_bf16 {
                        limit += 2f64.powi(-8) * want.abs() * 1.01;
                    }
                    let e = (f64::from(got[i * ldc + j]) - want).abs();
                    assert!(
                        e <= limit,
                        "{isa} {}x{}x{} {:?} {:?} ({i}, {j}): {} for {want}, error {e:.3e} > {limit:.3e}",
                        c.m,
                        c.n,
                        c.k,
                        c.a,
                        c.b,
                        got[i * ldc + j]
                    );
                }
                for j in c.n..ldc.min(if i + 1 < c.m { ldc } else { c.n }) {
                    assert_eq!(got[i * ldc + j], old[i * ldc + j], "{isa}: wrote between the rows");
                }
            }
        }
    }
}

/// One element, less than a tile, ragged tiles, more than a block of K, more than a piece of K (2048), K < 8, K odd.
const SHAPES: [(usize, usize, usize); 12] = [
    (1, 1, 1),
    (1, 17, 3),
    (2, 3, 67),
    (5, 33, 31),
    (13, 31, 37),
    (16, 16, 32),
    (33, 65, 8),
    (29, 8, 131),
    (64, 96, 257),
    (47, 61, 523),
    (7, 40, 2113),
    (150, 70, 64),
];

#[test]
fn f32_and_bf16_match_f64() {
    let mut rng = Rng(1);
    for (i, (m, n, k)) in SHAPES.into_iter().enumerate() {
        for (j, (a, b)) in
            [(Kind::F32, Kind::F32), (Kind::Bf16, Kind::Bf16), (Kind::F32, Kind::Bf16), (Kind::Bf16, Kind::F32)]
                .into_iter()
                .enumerate()
        {
            for layout in 0..4 {
                let (ta, tb) = (layout % 2 == 1, layout / 2 == 1);
                let mix = i + j + layout;
                let alpha = if mix % 3 == 0 { -0.625 } else { 1.0 };
                let beta = if (mix / 2) % 2 == 0 { 0.0 } else { 1.0 };
                let gap = if mix % 4 == 3 { 5 } else { 0 };
                check_case(&Case { m, n, k, a, b, ta, tb, gap, alpha, beta, out_bf16: mix % 2 == 0 }, &mut rng);
            }
        }
    }
}

#[test]
fn nf4_matches_f64() {
    let mut rng = Rng(2);
    for (i, (m, n, k)) in [(1, 1, 1), (3, 65, 67), (9, 64, 128), (20, 96, 192), (5, 31, 640)].into_iter().enumerate() {
        for a in [Kind::F32, Kind::Bf16] {
            for b in [Kind::Nf4, Kind::Nf4Double] {
                for tb in [false, true] {
                    let case = Case {
                        m,
                        n,
                        k,
                        a,
                        b,
                        ta: i % 2 == 1,
                        tb,
                        gap: 0,
                        alpha: 1.0,
                        beta: (i % 2) as f32,
                        out_bf16: tb,
                    };
                    check_case(&case, &mut rng);
                }
            }
        }
    }
}

/// Multiplying by the identity shows the expanded weights: they must have the bits of the definition.
#[test]
fn nf4_expands_to_the_bits_of_the_definition() {
    let mut rng = Rng(3);
    // Whole blocks per row, and rows that start inside a block and even at an odd element.
    for (rows, cols) in [(5, 128), (64, 64), (7, 67), (3, 1000)] {
        for round_bf16 in [false, true] {
            for double in [false, true] {
                let w = Nf4::random(rows * cols, double, round_bf16, &mut rng);
                let want = w.expand(rows * cols);
                for isa in isas() {
                    let id: Vec<f32> = (0..rows * rows).map(|e| f32::from(u8::from(e / rows == e % rows))).collect();
                    let mut got = vec![f32::NAN; rows * cols];
                    let (a, b) = (View::f32(&id, rows, rows), View::nf4(w.get(), rows, cols));
                    gemm_with(isa, None, 1.0, a, b, 0.0, DstView::f32(&mut got, rows, cols));
                    let same = got.iter().zip(&want).all(|(g, w)| g == w);
                    assert!(same, "{isa} ({rows}, {cols}) round {round_bf16} double {double}");

                    let id: Vec<bf16> =
                        (0..cols * cols).map(|e| bf16::from_f32(f32::from(u8::from(e / cols == e % cols)))).collect();
                    let mut got = vec![bf16::NAN; cols * rows];
                    let (a, b) = (View::bf16(&id, cols, cols), View::nf4(w.get(), rows, cols).t());
                    gemm_with(isa, None, 1.0, a, b, 0.0, DstView::bf16(&mut got, cols, rows));
                    let same = (0..rows * cols).all(|e| got[e % cols * rows + e / cols] == bf16::from_f32(want[e]));
                    assert!(same, "{isa} bf16 ({rows}, {cols}) round {round_bf16} double {double}");
                }
            }
        }
    }
}

/// An element's bits must not change when its row and column are computed alone, or elsewhere in a larger matrix, or
/// from a transposed or spread-out copy.
#[test]
fn bits_depend_on_row_column_and_k_only() {
    let mut rng = Rng(4);
    let (m, n) = (75, 139);
    for kind in [Kind::F32, Kind::Bf16] {
        for (k, alpha, beta) in [(5, 1.0, 0.0), (300, 0.7, 1.0), (1111, 1.0, 1.0), (2500, 1.0, 0.0)] {
            let a = Operand::random(kind, m, k, false, 0, &mut rng);
            let b = Operand::random(kind, k, n, true, 0, &mut rng);
            let old = rng.f32s(m * n);
            for isa in isas() {
                let mut whole = old.clone();
                gemm_with(isa, Some(pool(2)), alpha, a.view(), b.view(), beta, DstView::f32(&mut whole, m, n));
                // Windows of the product: offsets and sizes that change every tile's shape.
                for (i0, mm, j0, nn) in
                    [(0, 1, 0, 1), (3, 1, 7, 100), (10, 64, 138, 1), (31, 17, 5, 16), (74, 1, 60, 79)]
                {
                    let (av, bv) = (a.view(), b.view());
                    // Row i0 on of A; column j0 on of B (stored transposed: rows); B also dense and not transposed.
                    let (fa, fb, rb): (Vec<f32>, Vec<f32>, Vec<f32>) = {
                        let at = |s: &Src<'_>, i: usize| match s {
                            Src::F32(x) => x[i],
                            Src::Bf16(x) => x[i].to_f32(),
                            _ => unreachable!(),
                        };
                        let fa = (0..mm * k).map(|e| at(&av.src, (i0 + e / k) * k + e % k)).collect();
                        let fb = (0..nn * k).map(|e| at(&bv.src, (j0 + e / k) * k + e % k)).collect();
                        let rb = (0..nn * k).map(|e| at(&bv.src, (j0 + e % nn) * k + e / nn)).collect();
                        (fa, fb, rb)
                    };
                    let half = |x: &[f32]| -> Vec<bf16> { x.iter().map(|v| bf16::from_f32(*v)).collect() };
                    let (ha, hb, hr) = (half(&fa), half(&fb), half(&rb));
                    for dense in [false, true] {
                        let (x, y) = match (kind, dense) {
                            (Kind::F32, false) => (View::f32(&fa, mm, k), View::f32(&fb, nn, k).t()),
                            (Kind::F32, true) => (View::f32(&fa, mm, k), View::f32(&rb, k, nn)),
                            (_, false) => (View::bf16(&ha, mm, k), View::bf16(&hb, nn, k).t()),
                            (_, true) => (View::bf16(&ha, mm, k), View::bf16(&hr, k, nn)),
                        };
                        let mut part: Vec<f32> = (0..mm * nn).map(|e| old[(i0 + e / nn) * n + j0 + e % nn]).collect();
                        gemm_with(isa, None, alpha, x, y, beta, DstView::f32(&mut part, mm, nn));
                        for (e, v) in part.iter().enumerate() {
                            let w = whole[(i0 + e / nn) * n + j0 + e % nn];
                            assert_eq!(v.to_bits(), w.to_bits(), "{isa} {kind:?} K {k} window {i0} {j0} element {e}");
                        }
                    }
                }
            }
        }
    }
}

#[test]
fn nan_spreads_and_is_overwritten() {
    for isa in isas() {
        for half in [false, true] {
            let (m, n, k) = (20, 40, 70);
            let (mut a, b) = (vec![1.0f32; m * k], vec![1.0f32; k * n]);
            a[7 * k + 69] = f32::NAN;
            let (ha, hb): (Vec<bf16>, Vec<bf16>) =
                (a.iter().map(|v| bf16::from_f32(*v)).collect(), b.iter().map(|v| bf16::from_f32(*v)).collect());
            let (x, y) = if half {
                (View::bf16(&ha, m, k), View::bf16(&hb, k, n))
            } else {
                (View::f32(&a, m, k), View::f32(&b, k, n))
            };
            let mut c = vec![f32::NAN; m * n];
            gemm_with(isa, None, 1.0, x, y, 0.0, DstView::f32(&mut c, m, n));
            for (e, v) in c.iter().enumerate() {
                assert!(if e / n == 7 { v.is_nan() } else { *v == 70.0 }, "{isa} half {half} element {e}: {v}");
            }
            let mut c = vec![bf16::NAN; m * n];
            gemm_with(isa, None, 0.5, x, y, 0.0, DstView::bf16(&mut c, m, n));
            for (e, v) in c.iter().enumerate() {
                assert!(if e / n == 7 { v.is_nan() } else { v.to_f32() == 35.0 }, "{isa} half {half} bf16 {e}: {v}");
            }
        }
    }
}

#[test]
fn empty_products() {
    for isa in isas() {
        let mut c = [3.0f32, f32::NAN];
        gemm_with(isa, None, 1.0, View::f32(&[], 1, 0), View::f32(&[], 0, 2), 0.0, DstView::f32(&mut c, 1, 2));
        assert_eq!(c, [0.0, 0.0]);
        c = [3.0, 4.0];
        gemm_with(isa, None, 1.0, View::f32(&[], 1, 0), View::f32(&[], 0, 2), 1.0, DstView::f32(&mut c, 1, 2));
        assert_eq!(c, [3.0, 4.0]);
        gemm_with(isa, None, 1.0, View::f32(&[], 0, 3), View::f32(&[0.0; 6], 3, 2), 0.0, DstView::f32(&mut [], 0, 2));
    }
}

#[test]
fn f64_is_plain() {
    let a: Vec<f64> = (0..6).map(f64::from).collect();
    let b = [1.0f32, 2.0, 3.0, 4.0, 5.0, 6.0];
    let mut c = vec![f64::NAN; 4];
    gemm(None, 2.0, View::f64(&a, 2, 3), View::f32(&b, 2, 3).t(), 0.0, DstView::f64(&mut c, 2, 2));
    assert_eq!(c, [16.0, 34.0, 52.0, 124.0]);
    gemm(Some(pool(2)), 1.0, View::f64(&a, 2, 3), View::f32(&b, 3, 2), 1.0, DstView::f64(&mut c, 2, 2));
    assert_eq!(c, [16.0 + 13.0, 34.0 + 16.0, 52.0 + 40.0, 124.0 + 52.0]);
}

#[test]
fn views_outside_their_slices_are_refused() {
    let a = [0.0f32; 6];
    let long = View { row_stride: 4, ..View::f32(&a, 2, 3) };
    for (x, y, n) in [
        (long, View::f32(&a, 3, 2), 4),
        (View::f32(&a, 2, 3), View::f32(&a, 3, 2), 3),
        (View::f32(&a, 2, 3), View::f32(&a, 2, 3), 4),
        (View { row_stride: usize::MAX, ..long }, View::f32(&a, 3, 2), 4),
    ] {
        let mut c = vec![0.0f32; n];
        let r = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            gemm(None, 1.0, x, y, 0.0, DstView::f32(&mut c, 2, 2));
        }));
        assert!(r.is_err());
    }
}
