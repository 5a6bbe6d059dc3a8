//! The head: logits, loss and the gradient of what it reads, in chunks.

use super::case::{Case, How};
use super::inputs::tensor;
use qlora_engine::ops::{Slot, linear_cross_entropy};
use qlora_engine::tensor::{DType, Index, Live, Tensor};

/// `labelled` rows reach the head.
pub fn case(model: &str, labelled: usize, hidden: usize, vocab: usize) -> Case {
    let (rows, h, v) = (labelled as f64, hidden as f64, vocab as f64);
    Case {
        name: format!("{model} linear_cross_entropy {vocab}x{hidden}"),
        flops: 4.0 * rows * h * v,
        bytes: 4.0 * h * v,
        how: How::Graph,
        make: Box::new(move |device| {
            let (h, w) = (tensor(labelled, hidden, 1, device)?, tensor(vocab, hidden, 2, device)?);
            let targets: Vec<u32> = (0..labelled as u32).map(|i| i * 37 % vocab as u32).collect();
            let targets = Index::new(targets, labelled, None::<Live>, device)?;
            let mut loss = Tensor::zeros(1, 1, DType::F64, device)?;
            let mut none = Tensor::zeros(1, 0, DType::F32, device)?;
            Ok(Box::new(move || {
                let h = h.copy()?;
                let dh = linear_cross_entropy::fwd_bwd(h, Slot::whole(&w), &targets, 1.0, &mut loss, &mut none)?;
                Ok(vec![dh])
            }))
        }),
    }
}
