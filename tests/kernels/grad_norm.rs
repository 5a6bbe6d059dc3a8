use crate::*;
use qlora_engine::ops::grad_norm;

fn norm(g: &[f64], device: &Device) -> f64 {
    grad_norm::run(&tensor(g, 1, g.len(), DType::F32, device)).unwrap()
}

/// Nothing, one element, less than a pack, a whole chunk and one more, several chunks and a tail.
#[test]
fn equals_the_sum_in_f64() {
    for (seed, n) in [0, 1, 3, 1023, 16_384, 16_385, 100_003].into_iter().enumerate() {
        let g: Vec<f64> = random(seed as u64, n).iter().map(|&x| f64::from(x as f32)).collect();
        let want = g.iter().map(|x| x * x).sum::<f64>().sqrt();
        let got = on_each(|device| vec![vec![norm(&g, device)]])[0][0];
        // Two orders of n positive terms, each addition off by at most 2^-53 of a partial sum, and the root halves that.
        let limit = n as f64 * 2f64.powi(-53) * want;
        assert!((got - want).abs() <= limit, "{n} elements: {got:e} instead of {want:e}");
    }
}

#[test]
fn what_is_not_finite_is_seen_wherever_it_stands() {
    let n = 20_003;
    for at in [0, 5, 16_383, 16_384, n - 1] {
        for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            let mut g = random(1, n);
            g[at] = bad;
            let got = norm(&g, &Device::host_kernels(2, false).unwrap());
            assert!(if bad.is_nan() { got.is_nan() } else { got == f64::INFINITY }, "{bad} at {at}: {got}");
        }
    }
    // Squares leave the range of f32, not that of f64.
    let got = norm(&[3e38, 1e-30], &Device::host_kernels(2, false).unwrap());
    assert!((got - f64::from(3e38f32)).abs() <= 1e-15 * got, "{got}");
}

/// A norm is made for one size and one device.
#[test]
fn another_gradient_is_refused() {
    let device = Device::host_kernels(2, false).unwrap();
    let g = tensor(&random(1, 40_000), 1, 40_000, DType::F32, &device);
    let mut norm = grad_norm::Norm::new(10_000, &device).unwrap();
    assert!(grad_norm::into(&g, &mut norm).unwrap_err().to_string().contains("chunks"));
    let wide = tensor(&[1.0], 1, 1, DType::F64, &device);
    assert!(grad_norm::run(&wide).unwrap_err().to_string().contains("F64"));
}
