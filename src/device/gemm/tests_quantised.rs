//! Products with few rows, and with ggml blocks.

use super::tests::{Kind, Operand, Rng, isas, pool};
use super::*;
use half::f16;

/// Any row has the same bits alone, among few and among many, with every instruction set: that is what makes a token
/// decoded by itself equal to the same token in a whole pass.
#[test]
fn few_rows_have_the_bits_of_many() {
    let mut rng = Rng::new(11);
    let m = 40;
    for (a, b) in [
        (Kind::F32, Kind::F32),
        (Kind::Bf16, Kind::Bf16),
        (Kind::F32, Kind::Bf16),
        (Kind::Bf16, Kind::F32),
        (Kind::Bf16, Kind::Nf4),
        (Kind::F32, Kind::Nf4Double),
    ] {
        for (n, k) in [(32, 64), (67, 1), (40, 31), (131, 513), (70, 1100)] {
            for (alpha, beta) in [(1.0, 0.0), (1.0, 1.0), (0.7, 1.0)] {
                let x = Operand::random(a, m, k, false, 0, &mut rng);
                let w = Operand::random(b, k, n, true, 0, &mut rng);
                let old = rng.f32s(m * n);
                for isa in isas() {
                    let mut many = old.clone();
                    gemm_with(isa, Some(pool(2)), alpha, x.view(), w.view(), beta, DstView::f32(&mut many, m, n));
                    let half: Vec<bf16> = old.iter().map(|v| bf16::from_f32(*v)).collect();
                    let mut many_half = half.clone();
                    let dst = DstView::bf16(&mut many_half, m, n);
                    gemm_with(isa, None, alpha, x.view(), w.view(), beta, dst);
                    for (first, rows) in [(0, 1), (7, 2), (9, 3), (20, 4), (3, 7), (32, 8), (5, 11), (24, 16)] {
                        let some = View { rows, ..x.view().starting_at(first) };
                        let at = first * n..(first + rows) * n;
                        let mut few = old[at.clone()].to_vec();
                        let dst = DstView::f32(&mut few, rows, n);
                        gemm_with(isa, Some(pool(3)), alpha, some, w.view(), beta, dst);
                        let same = few.iter().zip(&many[at.clone()]).all(|(f, m)| f.to_bits() == m.to_bits());
                        assert!(same, "{isa} {a:?} {b:?} N {n} K {k} alpha {alpha} beta {beta}: {rows} rows");
                        let mut few = half[at.clone()].to_vec();
                        let dst = DstView::bf16(&mut few, rows, n);
                        gemm_with(isa, None, alpha, some, w.view(), beta, dst);
                        let same = few.iter().zip(&many_half[at]).all(|(f, m)| f.to_bits() == m.to_bits());
                        assert!(same, "{isa} {a:?} {b:?} N {n} K {k} alpha {alpha} beta {beta}: {rows} rows of bf16");
                    }
                }
            }
        }
    }
}

impl<'a> View<'a> {
    /// The rows `i` and after.
    fn starting_at(self, i: usize) -> View<'a> {
        let at = i * self.row_stride;
        let src = match self.src {
            Src::F32(x) => Src::F32(&x[at..]),
            Src::Bf16(x) => Src::Bf16(&x[at..]),
            _ => unreachable!("A is f32 or bf16"),
        };
        View { src, rows: self.rows - i, ..self }
    }
}

/// A format: elements and bytes of a block, where f16 numbers lie in it, its values element by element, and its name here.
struct Format {
    block: usize,
    bytes: usize,
    halves: &'static [usize],
    expand: fn(&[u8], &mut [f32]),
    fast: Option<GgmlFast>,
}

fn half_at(b: &[u8], at: usize) -> f32 {
    f16::from_le_bytes([b[at], b[at + 1]]).to_f32()
}

fn blocks(bytes: &[u8], size: usize, out: &mut [f32], block: usize, value: impl Fn(&[u8], usize) -> f32) {
    assert_eq!(bytes.len() / size * block, out.len());
    for (e, o) in out.iter_mut().enumerate() {
        *o = value(&bytes[e / block * size..][..size], e % block);
    }
}

fn q4_0(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, 18, out, 32, |b, i| {
        let q = if i < 16 { b[2 + i] & 15 } else { b[2 + i - 16] >> 4 };
        half_at(b, 0) * (f32::from(q) - 8.0)
    });
}

fn q8_0(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, 34, out, 32, |b, i| half_at(b, 0) * f32::from(b[2 + i] as i8));
}

fn q4_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, 144, out, 256, |b, i| {
        let s = &b[4..16];
        let j = i / 32;
        let (sc, m) = if j < 4 {
            (s[j] & 63, s[j + 4] & 63)
        } else {
            ((s[j + 4] & 15) | ((s[j - 4] >> 6) << 4), (s[j + 4] >> 4) | ((s[j] >> 6) << 4))
        };
        let byte = b[16 + j / 2 * 32 + i % 32];
        let q = if j % 2 == 0 { byte & 15 } else { byte >> 4 };
        let (scale, min) = (half_at(b, 0) * f32::from(sc), half_at(b, 2) * f32::from(m));
        let product = scale * f32::from(q);
        product - min
    });
}

fn q6_k(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, 210, out, 256, |b, i| {
        let (half, quarter, l) = (i / 128, i % 128 / 32, i % 32);
        let byte = b[64 * half + 32 * (quarter % 2) + l];
        let low = if quarter < 2 { byte & 15 } else { byte >> 4 };
        let high = (b[128 + 32 * half + l] >> (2 * quarter)) & 3;
        let scale = half_at(b, 208) * f32::from(b[192 + i / 16] as i8);
        scale * (f32::from(low | (high << 4)) - 32.0)
    });
}

/// Five elements to a block: no format, but nothing may depend on powers of two.
fn fives(bytes: &[u8], out: &mut [f32]) {
    blocks(bytes, 7, out, 5, |b, i| half_at(b, 0) * f32::from(b[2 + i]));
}

const FORMATS: [Format; 9] = [
    Format { block: 32, bytes: 18, halves: &[0], expand: q4_0, fast: Some(GgmlFast::Q4_0) },
    Format { block: 32, bytes: 18, halves: &[0], expand: q4_0, fast: None },
    Format { block: 32, bytes: 34, halves: &[0], expand: q8_0, fast: Some(GgmlFast::Q8_0) },
    Format { block: 32, bytes: 34, halves: &[0], expand: q8_0, fast: None },
    Format { block: 256, bytes: 144, halves: &[0, 2], expand: q4_k, fast: Some(GgmlFast::Q4K) },
    Format { block: 256, bytes: 144, halves: &[0, 2], expand: q4_k, fast: None },
    Format { block: 256, bytes: 210, halves: &[208], expand: q6_k, fast: Some(GgmlFast::Q6K) },
    Format { block: 256, bytes: 210, halves: &[208], expand: q6_k, fast: None },
    Format { block: 5, bytes: 7, halves: &[0], expand: fives, fast: None },
];

impl Format {
    /// `n` elements in blocks of random bytes with finite scales: of common size, and now and then 0, of either sign, the
    /// least and the largest.
    fn random(&self, n: usize, rng: &mut Rng) -> Vec<u8> {
        let mut out: Vec<u8> = (0..n / self.block * self.bytes).map(|_| rng.next() as u8).collect();
        for block in out.chunks_exact_mut(self.bytes) {
            for &at in self.halves {
                let d = match rng.next() % 16 {
                    0 => f16::ZERO,
                    1 => f16::from_bits(1),
                    2 => f16::NEG_ZERO,
                    _ => f16::from_f32(0.02 * rng.unit()),
                };
                block[at..at + 2].copy_from_slice(&d.to_le_bytes());
            }
        }
        out
    }
    fn get<'a>(&self, bytes: &'a [u8]) -> GgmlRef<'a> {
        let Format { block, bytes: block_bytes, expand, fast, .. } = *self;
        GgmlRef { bytes, block, block_bytes, expand, fast, round_bf16: false }
    }
}

/// Forward (B = W^T) and backward (B = W), few rows and many: the bits of the same matrix in f32, or in bf16 beside bf16.
#[test]
fn blocks_multiply_as_their_values() {
    let mut rng = Rng::new(12);
    for (at, format) in FORMATS.iter().enumerate() {
        let b = format.block;
        // (out, in): rows of whole blocks; more than a block of K (512) both ways.
        for (out, inn) in [(3, b), (70, 3 * b), (530, 640usize.next_multiple_of(b))] {
            let bytes = format.random(out * inn, &mut rng);
            let mut dense = vec![f32::NAN; out * inn];
            (format.expand)(&bytes, &mut dense);
            let half: Vec<bf16> = dense.iter().map(|v| bf16::from_f32(*v)).collect();
            let w = View::ggml(format.get(&bytes), out, inn);
            for m in [1, 8, 33] {
                for forward in [true, false] {
                    let (k, n) = if forward { (inn, out) } else { (out, inn) };
                    let (x, xh) = (rng.f32s(m * k), rng.bf16s(m * k));
                    for isa in isas() {
                        let run = |a: View<'_>, b: View<'_>, threads: Option<&Pool>| {
                            let mut c = vec![0.25f32; m * n];
                            let b = if forward { b.t() } else { b };
                            gemm_with(isa, threads, 1.0, a, b, 1.0, DstView::f32(&mut c, m, n));
                            c.into_iter().map(f32::to_bits).collect::<Vec<_>>()
                        };
                        let a = View::f32(&x, m, k);
                        let want = run(a, View::f32(&dense, out, inn), None);
                        assert!(run(a, w, Some(pool(2))) == want, "{isa} format {at} ({out}, {inn}) M {m} {forward}");
                        let a = View::bf16(&xh, m, k);
                        let want = run(a, View::bf16(&half, out, inn), None);
                        assert!(run(a, w, None) == want, "{isa} bf16 format {at} ({out}, {inn}) M {m} {forward}");
                    }
                }
            }
        }
    }
}

/// Multiplying by the identity shows the expanded values, infinite and NaN scales included.
#[test]
fn blocks_expand_to_the_values_of_the_definition() {
    let mut rng = Rng::new(13);
    for (at, format) in FORMATS.iter().enumerate() {
        let (rows, cols) = (3, 2 * format.block);
        let mut bytes = format.random(rows * cols, &mut rng);
        for special in [None, Some(f16::INFINITY), Some(f16::NAN), Some(f16::from_bits(0x7fff))] {
            if let Some(d) = special {
                bytes[format.halves[0]..][..2].copy_from_slice(&d.to_le_bytes());
            }
            let mut want = vec![0.0; rows * cols];
            (format.expand)(&bytes, &mut want);
            for isa in isas() {
                // Row i alone: no other row's NaN or infinity meets it.
                for i in 0..rows {
                    let row = &bytes[i * bytes.len() / rows..][..bytes.len() / rows];
                    let mut got = vec![0.0; cols];
                    let one = [1.0f32];
                    let b = View::ggml(format.get(row), 1, cols);
                    gemm_with(isa, None, 1.0, View::f32(&one, 1, 1), b, 0.0, DstView::f32(&mut got, 1, cols));
                    let one = [bf16::ONE];
                    let mut half = vec![0.0; cols];
                    gemm_with(isa, None, 1.0, View::bf16(&one, 1, 1), b, 0.0, DstView::f32(&mut half, 1, cols));
                    for j in 0..cols {
                        let w = want[i * cols + j];
                        assert!(got[j] == w || got[j].is_nan() && w.is_nan(), "{isa} format {at}: {} {w}", got[j]);
                        let w = bf16::from_f32(w).to_f32();
                        assert!(half[j] == w || half[j].is_nan() && w.is_nan(), "{isa} format {at}: {} {w}", half[j]);
                    }
                }
            }
        }
    }
}

#[test]
fn impossible_blocks_are_refused() {
    let bytes = [0u8; 18];
    let good = FORMATS[0].get(&bytes);
    for bad in [
        GgmlRef { block: 0, fast: None, ..good },
        GgmlRef { block: 257, fast: None, ..good },
        GgmlRef { block_bytes: 0, fast: None, ..good },
        GgmlRef { fast: Some(GgmlFast::Q8_0), ..good },
        GgmlRef { bytes: &bytes[..17], ..good },
    ] {
        let r = std::panic::catch_unwind(|| {
            let mut c = [0.0f32; 32];
            gemm(None, 1.0, View::f32(&[1.0], 1, 1), View::ggml(bad, 1, 32), 0.0, DstView::f32(&mut c, 1, 32));
        });
        assert!(r.is_err());
    }
}
