use crate::*;
use qlora_engine::ops::swiglu;

fn fwd(g: &[f64], u: &[f64], dtype: DType) -> Vec<f64> {
    swiglu::fwd(&tensor(g, 1, g.len(), dtype), &tensor(u, 1, u.len(), dtype)).unwrap().to_f64()
}

#[test]
fn formula_and_gradients() {
    let (g, u, c) = (random(1, 12), random(2, 12), random(3, 12));
    let want: Vec<f64> = g.iter().zip(&u).map(|(g, u)| g / (1.0 + (-g).exp()) * u).collect();
    assert!(max_err(&fwd(&g, &u, DType::F64), &want) <= 1e-15);
    let t = |x: &[f64]| tensor(x, 1, 12, DType::F64);
    let (dg, du) = swiglu::bwd(t(&g), t(&u), &t(&c)).unwrap();
    check_grad("dgate", &g, &dg.to_f64(), |g| dot(&fwd(g, &u, DType::F64), &c));
    check_grad("dup", &u, &du.to_f64(), |u| dot(&fwd(&g, u, DType::F64), &c));
}

/// exp errs by 4 units of f32 (see `simd::exp`), the other five operations by one each; one unit of the storage type.
#[test]
fn low_precision() {
    for dtype in [DType::F32, DType::Bf16] {
        let n = 10_007;
        let (g, u) = (rounded(&random(5, n), dtype), rounded(&random(6, n), dtype));
        let (got, want) = (fwd(&g, &u, dtype), fwd(&g, &u, DType::F64));
        for i in 0..n {
            let limit = (9.0 * eps(DType::F32) + eps(dtype)) * want[i].abs();
            assert!((got[i] - want[i]).abs() <= limit, "{dtype:?} {i}: {} for {}", got[i], want[i]);
        }
    }
}

#[test]
fn extremes_stay_finite() {
    let got = fwd(&[-1e4, -100.0, 0.0, 100.0, 1e4], &[1.0; 5], DType::F32);
    assert_eq!(got, [0.0, 0.0, 0.0, 100.0, 1e4].map(|x: f64| if x == 0.0 { 0.0 } else { x }));
}
