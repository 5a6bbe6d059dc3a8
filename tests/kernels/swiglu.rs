use crate::*;
use qlora_engine::ops::swiglu;
use qlora_engine::tensor::Live;

/// (rows, columns): one element, less than a pack, a ragged tail, more than a block, an MLP's width.
const SHAPES: [(usize, usize); 5] = [(1, 1), (1, 7), (3, 333), (5, 512), (2, 11008)];

/// h, dgate and dup of the live rows; with `slack` that many more, full of NaN.
fn run(x: &[Vec<f64>; 3], (rows, cols): (usize, usize), dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
    device.set_step(Step { tokens: rows as u32, ..no_step() });
    let t = |v: &[f64]| {
        let mut t = tensor(&[v, &vec![f64::NAN; slack * cols]].concat(), rows + slack, cols, dtype, device);
        t.set_live((slack > 0).then(|| Live::tokens(device)).flatten());
        t
    };
    let [gate, up, dh] = x;
    let h = swiglu::fwd(&t(gate), &t(up)).unwrap();
    let (dgate, dup) = swiglu::bwd(t(gate), t(up), &t(dh)).unwrap();
    [h, dgate, dup].iter().map(|t| t.to_f64()[..rows * cols].to_vec()).collect()
}

#[test]
fn kernels_match_reference() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let x = [0, 20, 40].map(|at| bf16s(&random(at + seed as u64, shape.0 * shape.1)));
        // Values of which e^-g overflows, or vanishes.
        let big = |v: &[f64]| bf16s(&v.iter().map(|x| 300.0 * x).collect::<Vec<_>>());
        for x in [x.clone(), [big(&x[0]), x[1].clone(), x[2].clone()]] {
            let cpu = Device::cpu(2);
            let (want, plain) = (run(&x, shape, DType::F64, &cpu, 0), run(&x, shape, DType::Bf16, &cpu, 0));
            let got = on_each(|device| run(&x, shape, DType::Bf16, device, 0));
            for (i, (what, times)) in [("h", 2.0), ("dgate", 3.0), ("dup", 3.0)].into_iter().enumerate() {
                check(&format!("{what} {shape:?}"), &got[i], &plain[i], &want[i], times);
            }
        }
    }
}

#[test]
fn slack_rows_are_left_alone() {
    for shape in [(3, 333), (5, 512)] {
        let x = [1, 2, 3].map(|seed| bf16s(&random(seed, shape.0 * shape.1)));
        let of = |slack| on_each(|device| run(&x, shape, DType::Bf16, device, slack));
        assert_eq!(of(0), of(3), "{shape:?}");
    }
}
