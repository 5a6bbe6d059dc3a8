use crate::*;
use qlora_engine::ops::columns;
use qlora_engine::tensor::Live;

/// Rows, and the widths of two parts: single columns, odd ones, packs of which the second begins aligned or not, more
/// columns than a block's.
const SHAPES: [(usize, [usize; 2]); 5] = [(1, [1, 1]), (3, [5, 12]), (7, [64, 32]), (5, [4, 24]), (2, [2304, 8])];

/// The parts of x, and what they make together; with `slack` that many more rows than are live.
fn run(x: &[f64], (rows, widths): (usize, [usize; 2]), dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
    device.set_step(Step { tokens: rows as u32, ..no_step() });
    let cols = widths[0] + widths[1];
    let mut t = tensor(&[x, &vec![f64::NAN; slack * cols]].concat(), rows + slack, cols, dtype, device);
    t.set_live((slack > 0).then(|| Live::tokens(device)).flatten());
    let [a, b] = columns::split(&t, widths).unwrap();
    let mut got: Vec<Vec<f64>> = [&a, &b].iter().map(|t| t.to_f64()[..rows * t.cols()].to_vec()).collect();
    got.push(columns::join([a, b]).unwrap().to_f64()[..rows * cols].to_vec());
    got
}

#[test]
fn kernels_copy_as_the_cpu_does() {
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let x = bf16s(&random(seed as u64, shape.0 * (shape.1[0] + shape.1[1])));
        let want = run(&x, shape, DType::Bf16, &Device::cpu(2), 0);
        assert_eq!(want[2], x);
        for slack in [0, 3] {
            assert_eq!(on_each(|device| run(&x, shape, DType::Bf16, device, slack)), want, "{shape:?} slack {slack}");
        }
    }
}
