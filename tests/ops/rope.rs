use crate::*;
use qlora_engine::ops::rope::{Table, Turn, apply};

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
