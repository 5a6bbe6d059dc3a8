use crate::*;
use qlora_engine::ops::{Slot, rms_norm};

const EPS: f64 = 1e-6;
/// (rows, groups a row, elements a group): one element, a ragged tail, more than a warp's packs, heads, hidden sizes, more
/// than a block keeps.
const SHAPES: [(usize, usize, usize); 10] = [
    (1, 1, 1),
    (3, 1, 31),
    (2, 1, 257),
    (5, 1, 1000),
    (3, 4, 64),
    (9, 3, 80),
    (2, 1, 4096),
    (3, 1, 1025),
    (2, 1, 1536),
    (1, 2, 9000),
];

/// y, dx, dx added to the residual's gradient, dw (added to 1).
fn run(x: &[f64], w: &[f64], dy: &[f64], rows: usize, dtype: DType, device: &Device) -> Vec<Vec<f64>> {
    let cols = x.len() / rows;
    let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let t = |v: &[f64]| tensor(v, rows, cols, dtype, device);
    let (xt, dyt, wt) = (t(x), t(dy), tensor(w, 1, w.len(), dtype, device));
    let slot = Slot { grad: true, ..Slot::whole(&wt) };
    let mut grads = tensor(&vec![1.0; w.len()], 1, w.len(), acc, device);
    let y = rms_norm::fwd(&xt, slot, EPS).unwrap();
    let dx = rms_norm::bwd(&xt, slot, EPS, &dyt, None, Some(&mut grads)).unwrap();
    let added = rms_norm::bwd(&xt, slot, EPS, &dyt, Some(t(x)), None).unwrap();
    vec![y.to_f64(), dx.to_f64(), added.to_f64(), grads.to_f64()]
}

#[test]
fn kernels_match_reference() {
    for (seed, (rows, groups, n)) in SHAPES.into_iter().enumerate() {
        let len = rows * groups * n;
        let (x, w, dy) = (bf16s(&random(seed as u64, len)), bf16s(&random(50, n)), bf16s(&random(60, len)));
        let cpu = Device::cpu(2);
        let want = run(&x, &w, &dy, rows, DType::F64, &cpu);
        let plain = run(&x, &w, &dy, rows, DType::Bf16, &cpu);
        let got = on_each(|device| run(&x, &w, &dy, rows, DType::Bf16, device));
        for (i, (what, times)) in [("y", 2.0), ("dx", 3.0), ("dx + r", 3.0), ("dw", 3.0)].into_iter().enumerate() {
            check(&format!("{what} ({rows}, {groups} x {n})"), &got[i], &plain[i], &want[i], times);
        }
    }
}
