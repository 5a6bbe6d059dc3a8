//! K quantisation: what it loses, against rounding between the extremes, and blocks that are not ordinary.

use super::*;
use crate::quant::ggml::search::nearest;
use crate::quant::ggml::{GgmlType, dequantise, quantise};

/// Seeded normal numbers (Box and Muller) in f64.
fn normals(n: usize) -> Vec<f32> {
    let uniform = |i: u64| {
        let z = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
        let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        (((z ^ (z >> 31)) >> 11) as f64 + 0.5) / (1u64 << 53) as f64
    };
    let pair = |i: u64| {
        let (radius, angle) = ((-2.0 * uniform(2 * i).ln()).sqrt(), std::f64::consts::TAU * uniform(2 * i + 1));
        (radius * angle.cos()) as f32
    };
    (0..n as u64).map(pair).collect()
}

/// Root of the mean squared error over the root of the mean square.
fn error(x: &[f32], y: &[f32]) -> f64 {
    let square = |f: &dyn Fn(usize) -> f64| (0..x.len()).map(|i| f(i) * f(i)).sum::<f64>();
    (square(&|i| f64::from(x[i]) - f64::from(y[i])) / square(&|i| f64::from(x[i]))).sqrt()
}

fn there_and_back(ty: GgmlType, x: &[f32]) -> Vec<f32> {
    let (mut blocks, mut y) = (Vec::new(), vec![f32::NAN; x.len()]);
    quantise(ty, x, &mut blocks);
    dequantise(ty, &blocks, &mut y);
    y
}

/// The same layout with scale and min from the extremes of each sub-block alone.
fn min_max(x: &[f32], steps: &Steps) -> Vec<f32> {
    let plain = Steps { count: 0, ..*steps };
    let block = |x: &[f32; 256]| {
        let mut head = [0; 16];
        let q = with_mins(x, &plain, &mut head);
        let (d, dmin) = (half_at(&head, 0), half_at(&head, 2));
        let (sc, m) = crate::quant::ggml::k::scales_and_mins(&head[4..]);
        let value = move |i: usize| d * f32::from(sc[i / 32]) * f32::from(q[i]) - dmin * f32::from(m[i / 32]);
        (0..256).map(value).collect::<Vec<_>>()
    };
    x.as_chunks::<256>().0.iter().flat_map(block).collect()
}

/// Q6_K with scales from the extremes: 32 steps down from zero to the one of the largest magnitude.
fn extremes(x: &[f32]) -> Vec<f32> {
    let block = |x: &[f32; 256]| {
        let most = |x: &[f32; 16]| x.iter().fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
        let scales: Vec<f32> = x.as_chunks::<16>().0.iter().map(|x| most(x) / -32.0).collect();
        let d = scales.iter().fold(0f32, |m, s| if s.abs() > m.abs() { *s } else { m }) / -128.0;
        let sc: Vec<f32> = scales.iter().map(|s| nearest(s / d, -128.0, 127.0) * d).collect();
        (0..256).map(|i| sc[i / 16] * nearest(x[i] / sc[i / 16], -32.0, 31.0)).collect::<Vec<_>>()
    };
    x.as_chunks::<256>().0.iter().flat_map(block).collect()
}

#[test]
fn normal_values_lose_little() {
    let x = normals(256 * 200);
    let [q4, q5, q6] = [GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K].map(|ty| error(&x, &there_and_back(ty, &x)));
    let (plain4, plain5, plain6) =
        (error(&x, &min_max(&x, &FOUR)), error(&x, &min_max(&x, &FIVE)), error(&x, &extremes(&x)));
    // Uniform rounding between the extremes of 32 normal values, about 4.1 apart: 4.1 / levels / sqrt(12).
    assert!((plain4 / (4.1 / 15.0 / 12f64.sqrt()) - 1.0).abs() < 0.1, "{plain4}");
    for (name, got, plain, most) in [("Q4_K", q4, plain4, 0.08), ("Q5_K", q5, plain5, 0.04), ("Q6_K", q6, plain6, 0.02)]
    {
        assert!(got < plain && got < most, "{name}: {got:.4}, plain rounding {plain:.4}");
    }
    assert!(q5 < 0.55 * q4 && q6 < 0.6 * q5, "{q4} {q5} {q6}");
    // Heavier tails, where the search matters more.
    let x: Vec<f32> = x.iter().map(|x| x * x * x).collect();
    for (ty, plain) in
        [(GgmlType::Q4K, min_max(&x, &FOUR)), (GgmlType::Q5K, min_max(&x, &FIVE)), (GgmlType::Q6K, extremes(&x))]
    {
        let (got, plain) = (error(&x, &there_and_back(ty, &x)), error(&x, &plain));
        assert!(got < plain, "{ty}: {got:.4}, plain rounding {plain:.4}");
    }
}

#[test]
fn the_bits_are_those_of_the_portable_build() {
    let x = normals(256 * 8);
    for (at, x) in x.as_chunks::<256>().0.iter().enumerate() {
        let (mut a, mut b, mut c) = ([0; 144], [0; 176], [0; 210]);
        to_q4(x, &mut a);
        to_q5(x, &mut b);
        to_q6(x, &mut c);
        for (ty, want) in [(GgmlType::Q4K, &a[..]), (GgmlType::Q5K, &b), (GgmlType::Q6K, &c)] {
            let mut got = Vec::new();
            quantise(ty, x, &mut got);
            assert_eq!(got, want, "{ty} block {at}");
        }
    }
}

#[test]
fn blocks_that_are_not_ordinary() {
    let types = [GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K];
    let mut one = [0f32; 256];
    one[77] = -3.0;
    let mut step = [1f32; 256];
    step[..128].fill(-1.0);
    for ty in types {
        assert_eq!(there_and_back(ty, &[0.0; 256]), [0.0; 256], "{ty}");
        for (name, x) in [("constant", [0.7; 256]), ("negative", [-0.7; 256]), ("one", one), ("step", step)] {
            let e = error(&x, &there_and_back(ty, &x));
            assert!(e < 1e-2, "{ty} {name}: {e}");
        }
        // A common offset much larger than the spread.
        let x: Vec<f32> = normals(256).iter().map(|x| -50.0 + x).collect();
        let e = error(&x, &there_and_back(ty, &x));
        assert!(e < 0.012, "{ty} offset: {e}");
        for scale in [1e-30f32, 1e-7, 1e6] {
            let x: Vec<f32> = normals(256).iter().map(|x| x * scale).collect();
            assert!(there_and_back(ty, &x).iter().all(|y| y.is_finite()), "{ty} scale {scale}");
        }
        // Not specified, but no panic.
        for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE] {
            let mut x = one;
            x[3] = bad;
            there_and_back(ty, &x);
            there_and_back(ty, &[bad; 256]);
        }
    }
}
