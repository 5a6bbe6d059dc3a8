use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear_cross_entropy::{self, chunk_rows};

/// The summed loss alone.
fn loss_of(h: &Tensor, w: &Tensor, targets: &[u32]) -> qlora_engine::Result<f64> {
    let mut loss = tensor(&[0.0], 1, 1, DType::F64);
    linear_cross_entropy::fwd(h, Slot::whole(w), &Index::host(targets), &mut loss)?;
    Ok(loss.to_f64()[0])
}

fn naive(h: &[f64], w: &[f64], targets: &[u32], hidden: usize) -> f64 {
    let loss = |(h, &t): (&[f64], &u32)| {
        let logits: Vec<f64> = w.chunks(hidden).map(|w| dot(h, w)).collect();
        logits.iter().map(|x| x.exp()).sum::<f64>().ln() - logits[t as usize]
    };
    h.chunks(hidden).zip(targets).map(loss).sum()
}

#[test]
fn loss_and_gradients() {
    let (rows, hidden, vocab) = (5, 4, 11);
    let (h, w, targets) = (random(1, rows * hidden), random(2, vocab * hidden), [3u32, 0, 10, 3, 7]);
    let (ht, wt) = (tensor(&h, rows, hidden, DType::F64), tensor(&w, vocab, hidden, DType::F64));
    let want = naive(&h, &w, &targets, hidden);
    let got = loss_of(&ht, &wt, &targets).unwrap();
    assert!((got - want).abs() <= 1e-13, "{got} for {want}");
    let mut grads = tensor(&vec![0.0; vocab * hidden], 1, vocab * hidden, DType::F64);
    let head = Slot { grad: true, ..Slot::whole(&wt) };
    let mut loss = tensor(&[0.0], 1, 1, DType::F64);
    let dh = linear_cross_entropy::fwd_bwd(ht, head, &Index::host(&targets), 0.5, &mut loss, &mut grads).unwrap();
    assert_eq!(loss.to_f64(), [got]);
    check_grad("dh", &h, &dh.to_f64(), |h| 0.5 * naive(h, &w, &targets, hidden));
    check_grad("dw", &w, &grads.to_f64(), |w| 0.5 * naive(&h, w, &targets, hidden));
}

/// More rows than a chunk holds: the same as row by row.
#[test]
fn chunks_change_nothing() {
    let (hidden, vocab) = (3, 600_000);
    let rows = 2 * chunk_rows(vocab) + 5;
    let (h, w) = (random(1, rows * hidden), random(2, vocab * hidden));
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 7919 % vocab as u32).collect();
    let wt = tensor(&w, vocab, hidden, DType::F32);
    let one = |r: usize| {
        let h = tensor(&h[r * hidden..][..hidden], 1, hidden, DType::F32);
        loss_of(&h, &wt, &targets[r..=r]).unwrap()
    };
    let all = loss_of(&tensor(&h, rows, hidden, DType::F32), &wt, &targets).unwrap();
    // Losses are summed in f64 in the order of the rows, and a row's bits do not depend on the others.
    assert_eq!(all, (0..rows).map(one).sum::<f64>());
}

/// A logit is a sum of `hidden` f32 products, exp and the sum over the vocabulary add 4 + vocab/16 units.
#[test]
fn low_precision() {
    let (rows, hidden, vocab) = (9, 64, 500);
    let targets: Vec<u32> = (0..rows as u32).map(|i| i * 37 % vocab as u32).collect();
    for dtype in [DType::F32, DType::Bf16] {
        let (h, w) = (rounded(&random(1, rows * hidden), dtype), rounded(&random(2, vocab * hidden), dtype));
        let run = |dtype: DType| {
            let wt = tensor(&w, vocab, hidden, dtype);
            let mut none = tensor(&[], 1, 0, if dtype == DType::F64 { DType::F64 } else { DType::F32 });
            let mut loss = tensor(&[0.0], 1, 1, DType::F64);
            let (h, targets) = (tensor(&h, rows, hidden, dtype), Index::host(&targets));
            let dh = linear_cross_entropy::fwd_bwd(h, Slot::whole(&wt), &targets, 1.0, &mut loss, &mut none).unwrap();
            (loss.to_f64()[0], dh.to_f64())
        };
        let ((loss, dh), (want_loss, want_dh)) = (run(dtype), run(DType::F64));
        // |logit| reaches 30: its error is absolute in the loss.
        let logit = 30.0 * (hidden as f64) * eps(DType::F32);
        let limit = rows as f64 * (logit + (4.0 + vocab as f64 / 16.0) * eps(DType::F32) * 30.0);
        assert!((loss - want_loss).abs() <= limit, "{dtype:?}: {loss} for {want_loss}");
        let e = max_err(&dh, &want_dh);
        let limit = (4.0 * eps(dtype) + 2.0 * logit + vocab as f64 * eps(DType::F32)) * max_abs(&want_dh);
        assert!(e <= limit, "{dtype:?}: {e:.3e} > {limit:.3e}");
    }
}

#[test]
fn refuses_a_target_outside_the_vocabulary() {
    let w = tensor(&[0.0; 8], 4, 2, DType::F32);
    assert!(loss_of(&tensor(&[0.0; 2], 1, 2, DType::F32), &w, &[4]).is_err());
}
