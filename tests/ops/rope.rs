use crate::*;
use qlora_engine::ops::rope::{Norm, Table, Turn, apply, bwd, fwd};
use qlora_engine::ops::{Slot, rms_norm};

#[test]
fn formula_and_its_transpose() {
    let freq = [1.0f32, 0.25];
    let table = Table::new(&freq, 1.0, 10);
    let (x, c, positions) = (random(1, 24), random(2, 24), [0u32, 9, 4]);
    let turn = |x: &[f64], way| {
        let mut t = tensor(x, 3, 8, DType::F64);
        apply(&mut t, &Index::host(&positions), &table, way).unwrap();
        t.to_f64()
    };
    let y = turn(&x, Turn::Forward);
    for (r, &p) in positions.iter().enumerate() {
        for head in 0..2 {
            for (i, freq) in freq.iter().enumerate() {
                let at = r * 8 + head * 4 + i;
                let (s, co) = (f64::from(p as f32 * freq)).sin_cos();
                assert!((y[at] - (x[at] * co - x[at + 2] * s)).abs() <= 1e-14);
                assert!((y[at + 2] - (x[at + 2] * co + x[at] * s)).abs() <= 1e-14);
            }
        }
    }
    assert!(max_err(&turn(&y, Turn::Back), &x) <= 1e-14, "turning back undoes it");
    check_grad("dx", &x, &turn(&c, Turn::Back), |x| dot(&turn(x, Turn::Forward), &c));
}

#[test]
fn refuses_positions_beyond_the_table() {
    let table = Table::new(&[1.0], 1.0, 4);
    let mut x = tensor(&[0.0; 2], 1, 2, DType::F32);
    assert!(apply(&mut x, &Index::host(&[4]), &table, Turn::Forward).is_err());
    assert!(apply(&mut x, &Index::host(&[0, 1]), &table, Turn::Forward).is_err());
}

/// The bits of one after the other, forward and backward, with a norm (trained) and without.
#[test]
fn norm_and_turn_in_one() {
    let table = Table::new(&[1.0, 0.25], 1.0, 10);
    let positions = Index::host(vec![0, 9, 4]);
    for dtype in [DType::F64, DType::F32, DType::Bf16] {
        let t = |seed| tensor(&random(seed, 24), 3, 8, dtype);
        let w = tensor(&random(3, 4), 1, 4, dtype);
        let slot = Slot { grad: true, ..Slot::whole(&w) };
        let turned = |mut x: Tensor, way| {
            apply(&mut x, &positions, &table, way).unwrap();
            x
        };
        let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let (mut none, mut dw, mut want_dw) =
            (tensor(&[], 1, 0, acc), tensor(&[1.0; 4], 1, 4, acc), tensor(&[1.0; 4], 1, 4, acc));

        assert_eq!(fwd(&t(1), None, &positions, &table).unwrap().to_f64(), turned(t(1), Turn::Forward).to_f64());
        let dx = bwd(&t(1), None, &positions, &table, t(2), &mut none).unwrap();
        assert_eq!(dx.to_f64(), turned(t(2), Turn::Back).to_f64());

        let norm = Some(Norm { w: slot, eps: 1e-6 });
        let y = turned(rms_norm::fwd(&t(1), slot, 1e-6).unwrap(), Turn::Forward);
        assert_eq!(fwd(&t(1), norm, &positions, &table).unwrap().to_f64(), y.to_f64());
        let dx = bwd(&t(1), norm, &positions, &table, t(2), &mut dw).unwrap();
        let g = turned(t(2), Turn::Back);
        let want = rms_norm::bwd(&t(1), slot, 1e-6, &g, None, Some(&mut want_dw)).unwrap();
        assert_eq!((dx.to_f64(), dw.to_f64()), (want.to_f64(), want_dw.to_f64()), "{dtype:?}");
    }
}
