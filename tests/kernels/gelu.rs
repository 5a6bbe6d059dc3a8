use crate::*;
use qlora_engine::ops::gelu::{self, Gelu};
use qlora_engine::tensor::Live;

/// (rows, columns): one element, less than a pack, a ragged tail, more than a block.
const SHAPES: [(usize, usize); 4] = [(1, 1), (1, 7), (3, 333), (5, 3072)];

/// y and dx of the live rows; with `slack` that many more, full of NaN.
fn run(shape: (usize, usize), form: Gelu, dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
    let (rows, cols) = shape;
    device.set_step(Step { tokens: rows as u32, ..no_step() });
    // Up to magnitudes where the unit is 0 or the identity.
    let t = |seed| {
        let live = random(seed, rows * cols).into_iter().enumerate().map(|(i, x)| x * (1 + i % 7) as f64);
        let x = [bf16s(&live.collect::<Vec<_>>()), vec![f64::NAN; slack * cols]].concat();
        let mut t = tensor(&x, rows + slack, cols, dtype, device);
        t.set_live((slack > 0).then(|| Live::tokens(device)).flatten());
        t
    };
    let all = [gelu::fwd(&t(1), form).unwrap(), gelu::bwd(t(1), &t(2), form).unwrap()];
    all.iter().map(|t| t.to_f64()[..rows * cols].to_vec()).collect()
}

#[test]
fn kernels_match_reference() {
    for (form, shape) in [Gelu::Exact, Gelu::Tanh].into_iter().flat_map(|form| SHAPES.map(|shape| (form, shape))) {
        let cpu = Device::cpu(2);
        let (want, plain) = (run(shape, form, DType::F64, &cpu, 0), run(shape, form, DType::Bf16, &cpu, 0));
        let got = on_each(|device| run(shape, form, DType::Bf16, device, 0));
        assert_eq!(got, on_each(|device| run(shape, form, DType::Bf16, device, 3)), "slack changes nothing");
        for (i, (what, times)) in [("y", 2.0), ("dx", 3.0)].into_iter().enumerate() {
            check(&format!("{what} {form:?} {shape:?}"), &got[i], &plain[i], &want[i], times);
        }
    }
}
