use std::ops::Range;

use crate::*;
use qlora_engine::model::{Entry, Params};
use qlora_engine::ops::adamw::{self, AdamW, Flat, Groups, Moments};
use qlora_engine::ops::grad_norm;

struct State {
    p: Tensor,
    moments: Moments,
    copy: Tensor,
}

impl State {
    fn new(n: usize, eight_bit: bool, device: &Device) -> Self {
        let p = tensor(&random(7, n), 1, n, DType::F32, device);
        let moments = Moments::zeros(&p, eight_bit).unwrap();
        State { p, moments, copy: Tensor::zeros(1, n, DType::Bf16, device).unwrap() }
    }

    fn step(&mut self, g: &Tensor, groups: &mut Groups, a: AdamW, norm: &Tensor, loss: &Tensor) {
        let flat = Flat { p: &mut self.p, moments: &mut self.moments, g, copy: Some(&mut self.copy) };
        adamw::step(flat, groups, a, norm, loss).unwrap();
    }

    /// p, m, v, copy; and of moments in 8 bits the codes and the absmax.
    fn values(&self) -> Vec<Vec<f64>> {
        let mut all = match &self.moments {
            Moments::Full { m, v } => vec![m.to_f64(), v.to_f64()],
            Moments::Eight { m, v } => [m, v].map(|c| c.values().iter().map(|x| f64::from(*x)).collect()).to_vec(),
        };
        all.insert(0, self.p.to_f64());
        all.push(self.copy.to_f64());
        if let Moments::Eight { m, v } = &self.moments {
            for (codes, absmax) in [m.read(), v.read()] {
                all.push(codes.iter().map(|c| f64::from(*c)).collect());
                all.push(absmax.iter().map(|x| f64::from(*x)).collect());
            }
        }
        all
    }
}

fn scalar(x: f64, device: &Device) -> Tensor {
    tensor(&[x], 1, 1, DType::F64, device)
}

/// The state after three steps, each norm from the gradient, with gradients of many sizes.
fn run(n: usize, ranges: &[(Range<usize>, bool)], max_norm: f64, eight_bit: bool, device: &Device) -> Vec<Vec<f64>> {
    let mut state = State::new(n, eight_bit, device);
    let mut groups = Groups::new(ranges.iter().cloned(), device).unwrap();
    for step in 1..=3 {
        let size = |i: usize| [1.0, 1e-4, 1e-9, 0.0, 1e4, 1e-22][i % 6];
        let g: Vec<f64> = random(10 + step, n).iter().enumerate().map(|(i, g)| g * size(i)).collect();
        let g = tensor(&g, 1, n, DType::F32, device);
        let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, max_norm, step };
        // The same number everywhere: the order of a norm's sum is each device's own.
        let norm = scalar(1234.5 * step as f64, device);
        state.step(&g, &mut groups, a, &norm, &scalar(2.0, device));
    }
    state.values()
}

fn bits(x: &[f64]) -> Vec<u64> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Decay that changes inside a pack, inside a block of threads and over many blocks; tails; clipping on and off: the bits
/// of the CPU's f32.
#[test]
fn has_the_bits_of_the_cpu() {
    let many: Vec<(Range<usize>, bool)> = (0..500).map(|i| (i * 7..i * 7 + 7, i % 3 == 0)).collect();
    type Ranges = Vec<(Range<usize>, bool)>;
    let cases: [(usize, Ranges); 6] = [
        (1, vec![(0..1, true)]),
        (6, vec![(0..2, false), (2..5, true), (5..6, false)]),
        (1024, vec![(0..1024, true)]),
        (5003, vec![(0..1022, true), (1022..1023, false), (1023..1023, true), (1023..4100, true), (4100..5003, false)]),
        (4096, vec![(0..4096, false)]),
        (3500, many),
    ];
    for (n, ranges) in cases {
        for max_norm in [0.0, 1.0, 1e6] {
            for eight_bit in [false, true] {
                let want = run(n, &ranges, max_norm, eight_bit, &Device::cpu(2));
                let got = on_each(|device| run(n, &ranges, max_norm, eight_bit, device));
                assert_eq!(want.len(), if eight_bit { 8 } else { 4 });
                let names = ["p", "m", "v", "copy", "codes of m", "absmax of m", "codes of v", "absmax of v"];
                for (what, (got, want)) in names.into_iter().zip(got.iter().zip(&want)) {
                    let what = format!("{what} of {n} elements, norm at most {max_norm}, 8 bits {eight_bit}");
                    assert_eq!(bits(got), bits(want), "{what}");
                }
                assert!(want[0].iter().all(|x| x.is_finite()));
            }
        }
    }
}

/// Weight decay and clipping do something in the test above.
#[test]
fn decay_and_clipping_matter() {
    let n = 2048;
    let on = |decay, max_norm| run(n, &[(0..n, decay)], max_norm, false, &Device::host_kernels(2, false).unwrap());
    let [plain, decayed, clipped] = [on(false, 0.0), on(true, 0.0), on(false, 1.0)];
    assert!((0..n).all(|i| plain[0][i] != decayed[0][i]) && bits(&plain[1]) == bits(&decayed[1]));
    // (Every sixth gradient is 0, and what is smallest leaves f32 when it is squared, but not before.)
    assert!((0..n).all(|i| (plain[1][i] != clipped[1][i]) == (i % 6 != 3)));
}

#[test]
fn nothing_changes_if_norm_or_loss_is_not_finite() {
    for ((_, device), eight_bit) in kernel_devices().into_iter().zip([false, true]) {
        let n = 1500;
        let mut state = State::new(n, eight_bit, &device);
        let mut groups = Groups::new([(0..n, true)], &device).unwrap();
        let g = tensor(&random(3, n), 1, n, DType::F32, &device);
        let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, step: 1 };
        let mut norm = grad_norm::Norm::new(n, &device).unwrap();
        grad_norm::into(&g, &mut norm).unwrap();
        state.step(&g, &mut groups, a, &norm.value, &scalar(1.0, &device));
        let before = state.values();
        assert!(before[1].iter().any(|m| *m != 0.0), "a finite step changes something");
        for (norm, loss) in [(f64::NAN, 1.0), (f64::INFINITY, 1.0), (1.0, f64::NAN), (1.0, f64::NEG_INFINITY)] {
            state.step(&g, &mut groups, a, &scalar(norm, &device), &scalar(loss, &device));
            let after = state.values();
            assert!(before.iter().zip(&after).all(|(b, a)| bits(b) == bits(a)), "norm {norm}, loss {loss}");
        }
    }
}

#[test]
fn groups_that_do_not_fit_are_refused() {
    let device = Device::host_kernels(2, false).unwrap();
    assert!(Groups::new([(0..3, true), (4..6, true)], &device).is_err());
    assert!(Groups::new([(1..3, true)], &device).is_err());
    let mut groups = Groups::new([(0..3, true)], &device).unwrap();
    let mut s = State::new(4, false, &device);
    let g = tensor(&[0.0; 4], 1, 4, DType::F32, &device);
    let a = AdamW { lr: 0.01, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.1, max_norm: 1.0, step: 1 };
    let one = scalar(1.0, &device);
    let flat = Flat { p: &mut s.p, moments: &mut s.moments, g: &g, copy: None };
    assert!(adamw::step(flat, &mut groups, a, &one, &one).unwrap_err().to_string().contains("3 elements"));
}

/// What is set is read back, and its copy is it rounded to bf16.
#[test]
fn parameters_are_set_and_refreshed() {
    let entry = |offset: usize, rows: usize, cols: usize| {
        let shape = vec![rows, cols];
        Entry { name: format!("w{offset}"), offset, rows, cols, shape, decay: true, turned: false }
    };
    for (name, device) in kernel_devices() {
        let entries = vec![entry(0, 3, 5), entry(15, 7, 301), entry(15 + 2107, 1, 2)];
        let mut params = Params::new(entries, DType::Bf16, &device).unwrap();
        let values: Vec<Vec<f32>> = (0..3)
            .map(|i| random(i as u64, params.entries[i].range().len()).iter().map(|&x| x as f32).collect())
            .collect();
        for (i, values) in values.iter().enumerate() {
            params.set(i, values).unwrap();
        }
        assert!(params.set(0, &[1.0; 14]).is_err());
        params.refresh().unwrap();
        let (_, copy) = params.both_mut();
        let copy = copy.unwrap().to_f64();
        let mut want = Vec::new();
        for (i, values) in values.iter().enumerate() {
            assert_eq!(&params.values(i), values, "{name}");
            want.extend(bf16s(&values.iter().map(|&x| f64::from(x)).collect::<Vec<_>>()));
        }
        assert_eq!(bits(&copy), bits(&want), "{name}");
    }
}
