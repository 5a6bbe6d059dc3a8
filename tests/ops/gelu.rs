use crate::*;
use qlora_engine::ops::gelu::{Gelu, bwd, fwd};

fn y(x: &[f64], form: Gelu, dtype: DType) -> Vec<f64> {
    fwd(&tensor(x, 1, x.len(), dtype), form).unwrap().to_f64()
}

#[test]
fn known_values_and_gradients() {
    // x * P(x) with P(1) = 0.841344746068543, P(-2) = 0.0227501319481792; the tanh form written with tanh.
    let exact = y(&[0.0, 1.0, -2.0], Gelu::Exact, DType::F64);
    assert!(max_err(&exact, &[0.0, 0.841_344_746_068_543, -0.045_500_263_896_358_4]) <= 1e-15, "{exact:?}");
    let x = random(1, 12);
    let k = (2.0 / std::f64::consts::PI).sqrt();
    let tanh: Vec<f64> = x.iter().map(|x| 0.5 * x * (1.0 + (k * (x + 0.044715 * x.powi(3))).tanh())).collect();
    assert!(max_err(&y(&x, Gelu::Tanh, DType::F64), &tanh) <= 1e-15);
    for form in [Gelu::Exact, Gelu::Tanh] {
        let c = random(2, 12);
        let t = |v: &[f64]| tensor(v, 3, 4, DType::F64);
        let dx = bwd(t(&x), &t(&c), form).unwrap().to_f64();
        check_grad("dx", &x, &dx, |x| dot(&y(x, form, DType::F64), &c));
    }
}

/// Computed in f64, rounded to f32 and then to the result.
#[test]
fn low_precision() {
    for dtype in [DType::F32, DType::Bf16] {
        let x = rounded(&random(3, 500), dtype);
        for form in [Gelu::Exact, Gelu::Tanh] {
            let (got, want) = (y(&x, form, dtype), y(&x, form, DType::F64));
            let limit = (eps(dtype) + eps(DType::F32)) * max_abs(&want);
            assert!(max_err(&got, &want) <= limit, "{form:?} {dtype:?}");
        }
    }
}
