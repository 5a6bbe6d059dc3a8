use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::layer_norm::{self, LayerNorm};
use qlora_engine::tensor::Live;

const EPS: f64 = 1e-5;
/// (rows, columns): one element, ragged tails, more than a warp keeps, a hidden size, more than a block keeps.
const SHAPES: [(usize, usize); 8] = [(1, 1), (3, 31), (2, 257), (9, 768), (5, 1000), (2, 1600), (3, 4096), (2, 9001)];

/// y with and without b, dx, dx added to the residual's gradient, dw and db (added to 1). With `slack` that many more rows,
/// full of NaN.
fn run(shape: (usize, usize), dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
    let (rows, n) = shape;
    device.set_step(Step { tokens: rows as u32, ..no_step() });
    let t = |seed| {
        let x = [bf16s(&random(seed, rows * n)), vec![f64::NAN; slack * n]].concat();
        let mut t = tensor(&x, rows + slack, n, dtype, device);
        t.set_live((slack > 0).then(|| Live::tokens(device)).flatten());
        t
    };
    let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let flat = tensor(&bf16s(&random(50, 2 * n)), 1, 2 * n, dtype, device);
    let slot = |offset| Slot { tensor: &flat, offset, rows: 1, cols: n, grad: true };
    let norm = LayerNorm { w: slot(0), b: Some(slot(n)), eps: EPS };
    let mut grads = tensor(&vec![1.0; 2 * n], 1, 2 * n, acc, device);
    let (x, dy) = (t(1), t(2));
    let rowwise = [
        layer_norm::fwd(&x, norm).unwrap(),
        layer_norm::fwd(&x, LayerNorm { b: None, ..norm }).unwrap(),
        layer_norm::bwd(&x, norm, &dy, None, Some(&mut grads)).unwrap(),
        layer_norm::bwd(&x, norm, &dy, Some(t(3)), None).unwrap(),
    ];
    let live = rows * n;
    rowwise.iter().map(|t| t.to_f64()[..live].to_vec()).chain([grads.to_f64()]).collect()
}

#[test]
fn kernels_match_reference() {
    for shape in SHAPES {
        let cpu = Device::cpu(2);
        let (want, plain) = (run(shape, DType::F64, &cpu, 0), run(shape, DType::Bf16, &cpu, 0));
        let got = on_each(|device| run(shape, DType::Bf16, device, 0));
        let names = [("y", 2.0), ("y without b", 2.0), ("dx", 3.0), ("dx + r", 3.0), ("dw and db", 3.0)];
        for (i, (what, times)) in names.into_iter().enumerate() {
            check(&format!("{what} {shape:?}"), &got[i], &plain[i], &want[i], times);
        }
    }
}

#[test]
fn slack_rows_are_not_read() {
    for shape in [(9, 768), (3, 4096), (2, 257)] {
        let of = |slack| on_each(|device| run(shape, DType::Bf16, device, slack));
        assert_eq!(of(0), of(5), "{shape:?}");
    }
}
