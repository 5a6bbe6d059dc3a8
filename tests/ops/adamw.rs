use crate::*;
use qlora_engine::ops::adamw::{AdamW, Flat, step};
use qlora_engine::ops::grad_norm;

/// Three steps written out with f64 scalars, decay on the first half only.
#[test]
fn equals_the_formula() {
    let n = 6;
    let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, clip: 0.5, step: 0 };
    let (mut p, mut m, mut v) = (random(1, n), vec![0.0; n], vec![0.0; n]);
    let (mut pt, mut mt, mut vt) =
        (tensor(&p, 1, n, DType::F64), tensor(&m, 1, n, DType::F64), tensor(&v, 1, n, DType::F64));
    for t in 1..=3u64 {
        let g = random(10 + t, n);
        let gt = tensor(&g, 1, n, DType::F64);
        for (range, decay) in [(0..3, true), (3..6, false)] {
            step(Flat { p: &mut pt, m: &mut mt, v: &mut vt, g: &gt }, range, AdamW { step: t, ..a }, decay).unwrap();
        }
        for i in 0..n {
            let g = g[i] * a.clip;
            if i < 3 {
                p[i] *= 1.0 - a.lr * a.weight_decay;
            }
            m[i] = a.beta1 * m[i] + (1.0 - a.beta1) * g;
            v[i] = a.beta2 * v[i] + (1.0 - a.beta2) * g * g;
            let (mh, vh) = (m[i] / (1.0 - a.beta1.powi(t as i32)), v[i] / (1.0 - a.beta2.powi(t as i32)));
            p[i] -= a.lr * mh / (vh.sqrt() + a.eps);
        }
        assert!(max_err(&pt.to_f64(), &p) <= 1e-14, "step {t}");
    }
}

#[test]
fn norm_of_many_elements() {
    let n = 100_003;
    let g = random(1, n);
    let want = dot(&g, &g).sqrt();
    let got = grad_norm::run(&tensor(&g, 1, n, DType::F64));
    assert!((got - want).abs() <= 1e-12 * want);
    let mut bad = g;
    bad[77_777] = f64::NAN;
    assert!(grad_norm::run(&tensor(&bad, 1, n, DType::F32)).is_nan());
}
