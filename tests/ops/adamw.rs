use crate::*;
use qlora_engine::ops::adamw::{AdamW, Flat, Groups, step};
use qlora_engine::ops::grad_norm;

fn flat<'a>(p: &'a mut Tensor, m: &'a mut Tensor, v: &'a mut Tensor, g: &'a Tensor) -> Flat<'a> {
    Flat { p, m, v, g, copy: None }
}

/// Three steps written out with f64 scalars, decay on the first half only.
#[test]
fn equals_the_formula() {
    let n = 6;
    let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, step: 0 };
    // Clipped to about half.
    let (norm, cpu) = (2.0, Device::cpu(2));
    let mut groups = Groups::new([(0..3, true), (3..6, false)], &cpu).unwrap();
    let (mut p, mut m, mut v) = (random(1, n), vec![0.0; n], vec![0.0; n]);
    let (mut pt, mut mt, mut vt) =
        (tensor(&p, 1, n, DType::F64), tensor(&m, 1, n, DType::F64), tensor(&v, 1, n, DType::F64));
    for t in 1..=3u64 {
        let g = random(10 + t, n);
        let gt = tensor(&g, 1, n, DType::F64);
        let scalar = |x: f64| tensor(&[x], 1, 1, DType::F64);
        let a = AdamW { step: t, ..a };
        step(flat(&mut pt, &mut mt, &mut vt, &gt), &mut groups, a, &scalar(norm), &scalar(1.0)).unwrap();
        // What is not finite changes nothing.
        for (norm, loss) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            step(flat(&mut pt, &mut mt, &mut vt, &gt), &mut groups, a, &scalar(norm), &scalar(loss)).unwrap();
        }
        for i in 0..n {
            let g = g[i] * (1.0 / (norm + 1e-6));
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
    let got = grad_norm::run(&tensor(&g, 1, n, DType::F64)).unwrap();
    assert!((got - want).abs() <= 1e-12 * want);
    let mut bad = g;
    bad[77_777] = f64::NAN;
    assert!(grad_norm::run(&tensor(&bad, 1, n, DType::F32)).unwrap().is_nan());
}
