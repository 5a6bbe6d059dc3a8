use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::embedding::{self, Noise};

#[test]
fn rows_of_the_table_and_back() {
    let table = random(1, 12);
    let t = tensor(&table, 4, 3, DType::F64);
    let slot = Slot { grad: true, ..Slot::whole(&t) };
    let ids = [3u32, 0, 3];
    let x = embedding::fwd(slot, &Index::host(&ids), None).unwrap().to_f64();
    assert_eq!(x, [&table[9..12], &table[0..3], &table[9..12]].concat());
    let dx = random(2, 9);
    let mut grads = tensor(&[0.0; 12], 1, 12, DType::F64);
    embedding::bwd(slot, &Index::host(&ids), &tensor(&dx, 3, 3, DType::F64), &mut grads).unwrap();
    let want: Vec<f64> = (0..12)
        .map(|i| match i / 3 {
            0 => dx[3 + i],
            3 => dx[i - 9] + dx[i - 3],
            _ => 0.0,
        })
        .collect();
    assert_eq!(grads.to_f64(), want);
    assert!(embedding::fwd(slot, &Index::host(&[4]), None).is_err(), "an id beyond the table");
    let mut sum = tensor(&dx, 3, 3, DType::F64);
    embedding::add(&mut sum, slot, &Index::host(&ids)).unwrap();
    let want: Vec<f64> = x.iter().zip(&dx).map(|(x, d)| x + d).collect();
    assert_eq!(sum.to_f64(), want);
    assert!(embedding::add(&mut sum, slot, &Index::host(&[0, 4, 0])).is_err(), "a position beyond the table");
}

#[test]
fn noise_is_uniform_bounded_and_repeatable() {
    let t = tensor(&vec![0.0; 100], 1, 100, DType::F32);
    let ids = vec![0u32; 200];
    let noise = |step| Noise { bound: 0.5, stream: Stream { seed: 1, step, module: 0 } };
    let run = |step| embedding::fwd(Slot::whole(&t), &Index::host(&ids), Some(noise(step))).unwrap().to_f64();
    let x = run(0);
    assert!(x.iter().all(|x| x.abs() <= 0.5) && max_abs(&x) > 0.49);
    // The mean of 20,000 uniform numbers in +-0.5 deviates by 0.002; five of them.
    assert!((x.iter().sum::<f64>() / x.len() as f64).abs() <= 0.0103);
    assert_eq!(x, run(0));
    assert_ne!(x, run(1));
}

#[test]
fn gather_and_scatter_are_transposes() {
    let (x, y) = (random(1, 15), random(2, 6));
    let rows = [4u32, 1];
    let like = tensor(&x, 5, 3, DType::F64);
    let g = embedding::gather(&like, &Index::host(&rows)).unwrap().to_f64();
    let s = embedding::scatter(&tensor(&y, 2, 3, DType::F64), &Index::host(&rows), &like).unwrap().to_f64();
    assert_eq!(g, [&x[12..15], &x[3..6]].concat());
    assert_eq!(dot(&g, &y), dot(&s, &x));
    assert!(embedding::scatter(&tensor(&y, 2, 3, DType::F64), &Index::host(&[5, 0]), &like).is_err());
}
