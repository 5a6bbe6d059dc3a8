use crate::*;
use qlora_engine::format::Checkpoint;
use qlora_engine::ops::adamw::{AdamW, Codes, Flat, Groups, Moments, step};
use qlora_engine::ops::grad_norm;
use qlora_engine::quant::dynamic8;

/// Three steps written out with f64 scalars, decay on the first half only.
#[test]
fn equals_the_formula() {
    let n = 6;
    let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, step: 0 };
    // Clipped to about half.
    let (norm, cpu) = (2.0, Device::cpu(2));
    let mut groups = Groups::new([(0..3, true), (3..6, false)], &cpu).unwrap();
    let (mut p, mut m, mut v) = (random(1, n), vec![0.0; n], vec![0.0; n]);
    let mut pt = tensor(&p, 1, n, DType::F64);
    let mut moments = Moments::zeros(&pt, false).unwrap();
    for t in 1..=3u64 {
        let g = random(10 + t, n);
        let gt = tensor(&g, 1, n, DType::F64);
        let scalar = |x: f64| tensor(&[x], 1, 1, DType::F64);
        let a = AdamW { step: t, ..a };
        let mut run = |norm, loss| {
            let flat = Flat { p: &mut pt, moments: &mut moments, g: &gt, copy: None };
            step(flat, &mut groups, a, &scalar(norm), &scalar(loss)).unwrap();
        };
        run(norm, 1.0);
        // What is not finite changes nothing.
        for (norm, loss) in [(f64::NAN, 1.0), (1.0, f64::INFINITY)] {
            run(norm, loss);
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

/// Parameters in a type in which small steps are lost are refused, whatever else fits.
#[test]
fn low_precision_is_refused() {
    let cpu = Device::cpu(1);
    let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, step: 1 };
    let one = tensor(&[1.0], 1, 1, DType::F64);
    let mut groups = Groups::new([(0..2, true)], &cpu).unwrap();
    let (mut p, g) = (tensor(&[1.0; 2], 1, 2, DType::Bf16), tensor(&[1.0; 2], 1, 2, DType::Bf16));
    let mut moments = Moments::zeros(&p, false).unwrap();
    let flat = Flat { p: &mut p, moments: &mut moments, g: &g, copy: None };
    let refused = step(flat, &mut groups, a, &one, &one).unwrap_err().to_string();
    assert!(refused.contains("is Bf16") && refused.contains("f32 is needed"), "{refused}");
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

/// The maps are bitsandbytes' (tests/golden/adamw8).
#[test]
fn the_8_bit_maps_are_those_of_bitsandbytes() {
    let golden = Checkpoint::open("tests/golden/adamw8/adamw8.safetensors").unwrap();
    for (name, ours) in [("signed", dynamic8::code()), ("unsigned", dynamic8::unsigned_code())] {
        let mut theirs = vec![f32::NAN; 256];
        golden.expect(name, &[256]).unwrap().read_f32(&mut theirs).unwrap();
        let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
        assert_eq!(bits(ours), bits(&theirs), "{name}");
    }
}

/// Three steps with moments in 8 bits: each changes p by what the decoded moments and the gradient give, and leaves moments
/// that are off by at most half of the map's widest gap, times the largest of their block.
#[test]
fn moments_in_8_bits_are_rounded_after_the_step() {
    let n = 256 * 5 + 77;
    let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, step: 0 };
    let device = Device::cpu(2);
    let ranges = [(0..100, true), (100..1000, false), (1000..n, true)];
    let mut groups = Groups::new(ranges, &device).unwrap();
    let one = tensor(&[1.0], 1, 1, DType::F64);
    let mut p8 = tensor(&random(1, n), 1, n, DType::F32);
    let mut eight = Moments::zeros(&p8, true).unwrap();
    let decoded = |m: &Moments| match m {
        Moments::Eight { m, v } => [m, v].map(Codes::values),
        Moments::Full { .. } => panic!("asked for 8 bits"),
    };
    for t in 1..=3 {
        let a = AdamW { step: t, ..a };
        let g: Vec<f64> = random(t + 5, n).iter().enumerate().map(|(i, g)| g * [1.0, 1e-3, 1e-9][i % 3]).collect();
        let g = tensor(&g, 1, n, DType::F32);
        // The same step with the moments as they are, in f32.
        let [m, v] = decoded(&eight).map(|x| x.iter().map(|x| f64::from(*x)).collect::<Vec<_>>());
        let mut p = p8.copy().unwrap();
        let mut full = Moments::Full { m: tensor(&m, 1, n, DType::F32), v: tensor(&v, 1, n, DType::F32) };
        for (p, moments) in [(&mut p, &mut full), (&mut p8, &mut eight)] {
            step(Flat { p, moments, g: &g, copy: None }, &mut groups, a, &one, &one).unwrap();
        }
        assert_eq!(p.to_f64(), p8.to_f64(), "step {t}");
        let Moments::Full { m, v } = full else { panic!("made in full") };
        // 0.1 to 1 in 64 parts, and -0.993 for -1; in 128 parts without signs.
        for (got, want, gap) in [(&decoded(&eight)[0], m, 0.01408), (&decoded(&eight)[1], v, 0.00704)] {
            let want = want.to_f64();
            for (got, want) in got.chunks(256).zip(want.chunks(256)) {
                let absmax = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
                for (got, want) in got.iter().zip(want) {
                    assert!((f64::from(*got) - want).abs() <= gap / 2.0 * absmax, "{got} for {want} of {absmax}");
                    assert!(*want >= 0.0 || *got < 0.0, "{got} for {want}: what is below 0 stays there");
                }
            }
        }
    }
}
