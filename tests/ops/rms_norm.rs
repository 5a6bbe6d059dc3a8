use crate::*;
use qlora_engine::ops::{Slot, rms_norm};

const EPS: f64 = 1e-6;

fn fwd(x: &[f64], w: &[f64], rows: usize, dtype: DType) -> Vec<f64> {
    let w = tensor(w, 1, w.len(), dtype);
    rms_norm::fwd(&tensor(x, rows, x.len() / rows, dtype), Slot::whole(&w), EPS).unwrap().to_f64()
}

#[test]
fn formula() {
    let (x, w) = ([3.0, -4.0, 0.0, 0.0], [1.0, 2.0, 1.0, 1.0]);
    let rstd = 1.0 / (25.0f64 / 4.0 + EPS).sqrt();
    assert!(max_err(&fwd(&x, &w, 1, DType::F64), &[3.0 * rstd, -8.0 * rstd, 0.0, 0.0]) <= 1e-15);
}

#[test]
fn gradients() {
    // Groups of 5 in rows of 10: a head's norm.
    let (x, w, c) = (random(1, 30), random(2, 5), random(3, 30));
    let (xt, dy) = (tensor(&x, 3, 10, DType::F64), tensor(&c, 3, 10, DType::F64));
    let wt = tensor(&w, 1, 5, DType::F64);
    let mut grads = tensor(&[0.0; 5], 1, 5, DType::F64);
    let slot = Slot { grad: true, ..Slot::whole(&wt) };
    let dx = rms_norm::bwd(&xt, slot, EPS, &dy, None, Some(&mut grads)).unwrap().to_f64();
    let y = |x: &[f64], w: &[f64]| dot(&fwd(x, w, 3, DType::F64), &c);
    check_grad("dx", &x, &dx, |x| y(x, &w));
    check_grad("dw", &w, &grads.to_f64(), |w| y(&x, w));
}

#[test]
fn residual_gradient_is_added() {
    let (x, w, c, r) = (random(1, 20), random(2, 10), random(3, 20), random(4, 20));
    let t = |v: &[f64]| tensor(v, 2, 10, DType::F64);
    let wt = tensor(&w, 1, 10, DType::F64);
    let plain = rms_norm::bwd(&t(&x), Slot::whole(&wt), EPS, &t(&c), None, None).unwrap().to_f64();
    let added = rms_norm::bwd(&t(&x), Slot::whole(&wt), EPS, &t(&c), Some(t(&r)), None).unwrap().to_f64();
    let want: Vec<f64> = plain.iter().zip(&r).map(|(a, b)| a + b).collect();
    assert_eq!(added, want);
}

/// Every step of y = x * rstd * w rounds once, and the mean of n squares by at most n/16 + 5 additions in a lane:
/// (n/16 + 12) units of f32, and one of the storage type.
#[test]
fn low_precision() {
    for dtype in [DType::F32, DType::Bf16] {
        for (seed, (rows, cols)) in [(1, 1), (3, 31), (2, 257), (5, 1000), (2, 4096)].into_iter().enumerate() {
            let x = rounded(&random(seed as u64, rows * cols), dtype);
            let w = rounded(&random(99, cols), dtype);
            let (got, want) = (fwd(&x, &w, rows, dtype), fwd(&x, &w, rows, DType::F64));
            let limit = ((cols as f64 / 16.0 + 12.0) * eps(DType::F32) + eps(dtype)) * max_abs(&want);
            let e = max_err(&got, &want);
            assert!(e <= limit, "{dtype:?} ({rows}, {cols}): {e:.3e} > {limit:.3e}");
        }
    }
}

#[test]
fn refuses_a_width_that_does_not_divide() {
    let w = tensor(&[1.0; 3], 1, 3, DType::F32);
    assert!(rms_norm::fwd(&tensor(&[0.0; 4], 1, 4, DType::F32), Slot::whole(&w), EPS).is_err());
}
