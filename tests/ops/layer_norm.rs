use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::layer_norm::{LayerNorm, bwd, fwd};

const EPS: f64 = 1e-5;

fn y(x: &[f64], w: &[f64], b: Option<&[f64]>, dtype: DType) -> Vec<f64> {
    let t = |v: &[f64], rows| tensor(v, rows, v.len() / rows, dtype);
    let (x, w, b) = (t(x, x.len() / w.len()), t(w, 1), b.map(|b| t(b, 1)));
    fwd(&x, LayerNorm { w: Slot::whole(&w), b: b.as_ref().map(Slot::whole), eps: EPS }).unwrap().to_f64()
}

#[test]
fn formula_and_gradients() {
    let (rows, n) = (3, 5);
    let (x, w, b, c) = (random(1, rows * n), random(2, n), random(3, n), random(4, rows * n));
    let got = y(&x, &w, Some(&b), DType::F64);
    for r in 0..rows {
        let x = &x[r * n..(r + 1) * n];
        let mean = x.iter().sum::<f64>() / n as f64;
        let variance = x.iter().map(|x| (x - mean).powi(2)).sum::<f64>() / n as f64;
        for i in 0..n {
            let want = (x[i] - mean) / (variance + EPS).sqrt() * w[i] + b[i];
            assert!((got[r * n + i] - want).abs() <= 1e-14);
        }
    }
    let zero = vec![0.0; n];
    assert_eq!(y(&x, &w, None, DType::F64), y(&x, &w, Some(&zero), DType::F64));

    // w and b in one flat tensor, both trained.
    let flat = tensor(&[w.clone(), b.clone()].concat(), 1, 2 * n, DType::F64);
    let slot = |offset| Slot { tensor: &flat, offset, rows: 1, cols: n, grad: true };
    let norm = LayerNorm { w: slot(0), b: Some(slot(n)), eps: EPS };
    let (xt, ct) = (tensor(&x, rows, n, DType::F64), tensor(&c, rows, n, DType::F64));
    let mut grads = tensor(&vec![0.0; 2 * n], 1, 2 * n, DType::F64);
    let dx = bwd(&xt, norm, &ct, None, Some(&mut grads)).unwrap().to_f64();
    check_grad("dx", &x, &dx, |x| dot(&y(x, &w, Some(&b), DType::F64), &c));
    check_grad("dw", &w, &grads.to_f64()[..n], |w| dot(&y(&x, w, Some(&b), DType::F64), &c));
    check_grad("db", &b, &grads.to_f64()[n..], |b| dot(&y(&x, &w, Some(b), DType::F64), &c));
    let added = bwd(&xt, norm, &ct, Some(tensor(&x, rows, n, DType::F64)), None).unwrap().to_f64();
    let sum: Vec<f64> = dx.iter().zip(&x).map(|(d, x)| d + x).collect();
    assert!(max_err(&added, &sum) <= 1e-15 * max_abs(&sum));
}

/// Two means of `n` sums in 16 lanes, 8 roundings more, and that of the result.
#[test]
fn low_precision() {
    let (rows, n) = (7, 300);
    for dtype in [DType::F32, DType::Bf16] {
        let r = |seed, n| rounded(&random(seed, n), dtype);
        let (x, w, b) = (r(1, rows * n), r(2, n), r(3, n));
        let (got, want) = (y(&x, &w, Some(&b), dtype), y(&x, &w, Some(&b), DType::F64));
        let limit = ((n as f64 / 16.0 + 16.0) * eps(DType::F32) + eps(dtype)) * max_abs(&want);
        assert!(max_err(&got, &want) <= limit, "{dtype:?}");
    }
}

#[test]
fn refuses_other_shapes() {
    let (x, w) = (tensor(&[0.0; 6], 2, 3, DType::F32), tensor(&[0.0; 2], 1, 2, DType::F32));
    assert!(fwd(&x, LayerNorm { w: Slot::whole(&w), b: None, eps: EPS }).is_err());
}
