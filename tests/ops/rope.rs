use crate::*;
use qlora_engine::ops::rope::{Norm, Table, Turn, apply, bwd, fwd};
use qlora_engine::ops::{Slot, rms_norm};

#[test]
fn formula_and_its_transpose() {
    let freq = [1.0f32, 0.25];
    let table = Table::new(&freq, 1.0, 10);
    let (x, c, positions) = (random(1, 24), random(2, 24), [0u32, 9, 4]);
    let turn = |x: &[f64], way| {
        // As q, beside a k of fewer heads.
        let (mut t, mut k) = (tensor(x, 3, 8, DType::F64), tensor(&x[..12], 3, 4, DType::F64));
        apply([&mut t, &mut k], &Index::host(&positions), &table, way).unwrap();
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
    let x = || tensor(&[0.0; 2], 1, 2, DType::F32);
    let turn =
        |mut q, mut k, positions: &[u32]| apply([&mut q, &mut k], &Index::host(positions), &table, Turn::Forward);
    assert!(turn(x(), x(), &[3]).is_ok());
    assert!(turn(x(), x(), &[4]).is_err());
    assert!(turn(x(), x(), &[0, 1]).is_err());
    assert!(turn(x(), tensor(&[0.0; 4], 2, 2, DType::F32), &[0]).is_err(), "k of other rows");
    assert!(turn(x(), tensor(&[0.0; 3], 1, 3, DType::F32), &[0]).is_err(), "k of half a head more");
    assert!(turn(x(), tensor(&[0.0; 2], 1, 2, DType::Bf16), &[0]).is_err(), "k of another dtype");
}

/// The bits of one after the other, forward and backward, for q and k with norms of their own (trained).
#[test]
fn norm_and_turn_in_one() {
    let table = Table::new(&[1.0, 0.25], 1.0, 10);
    let positions = Index::host(vec![0, 9, 4]);
    for dtype in [DType::F64, DType::F32, DType::Bf16] {
        // q has two heads, k has one.
        let cols = [8, 4];
        let t = |seed, i: usize| tensor(&random(seed, 3 * cols[i]), 3, cols[i], dtype);
        let w = [tensor(&random(3, 4), 1, 4, dtype), tensor(&random(4, 4), 1, 4, dtype)];
        let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        // (Both gradients are added at the same place.)
        let slots = [0, 1].map(|i| Slot { grad: true, ..Slot::whole(&w[i]) });
        let norms = slots.map(|w| Norm { w, eps: 1e-6 });
        let turned = |mut q: Tensor, mut k: Tensor, way| {
            apply([&mut q, &mut k], &positions, &table, way).unwrap();
            [q, k]
        };
        let bits = |[q, k]: &[Tensor; 2]| [q.to_f64(), k.to_f64()];
        let normed = |i: usize| rms_norm::fwd(&t(1, i), slots[i], 1e-6).unwrap();
        let y = fwd([&t(1, 0), &t(1, 1)], norms, &positions, &table).unwrap();
        assert_eq!(bits(&y), bits(&turned(normed(0), normed(1), Turn::Forward)));

        let ones = || tensor(&[1.0; 4], 1, 4, acc);
        let (mut dw, mut want_dw) = (ones(), ones());
        let dx = bwd([&t(1, 0), &t(1, 1)], norms, &positions, &table, [t(2, 0), t(2, 1)], &mut dw).unwrap();
        let g = turned(t(2, 0), t(2, 1), Turn::Back);
        let mut want = |i: usize| rms_norm::bwd(&t(1, i), slots[i], 1e-6, &g[i], None, Some(&mut want_dw)).unwrap();
        let want = [want(0), want(1)];
        assert_eq!((bits(&dx), dw.to_f64()), (bits(&want), want_dw.to_f64()), "{dtype:?}");
    }
}

#[test]
fn refuses_norms_that_do_not_fit() {
    let table = Table::new(&[1.0, 0.25], 1.0, 10);
    let x = tensor(&[0.0; 4], 1, 4, DType::F32);
    let (w, half) = (tensor(&[1.0; 4], 1, 4, DType::F32), tensor(&[1.0; 2], 1, 2, DType::F32));
    let norm = |w, eps| Norm { w: Slot::whole(w), eps };
    let run = |norms| fwd([&x, &x], norms, &Index::host(&[0]), &table).map(|_| ());
    assert!(run([norm(&w, 1e-6), norm(&w, 1e-6)]).is_ok());
    assert!(run([norm(&w, 1e-6), norm(&half, 1e-6)]).is_err(), "a norm of half a head");
    assert!(run([norm(&w, 1e-6), norm(&w, 1e-5)]).is_err(), "two eps");
}
