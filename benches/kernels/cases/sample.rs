//! What a token is drawn from: the largest logits of a row, found on the device. The CPU waits for them, as in a step of
//! generation; that wait is most of the time.

use super::case::{Case, How};
use super::inputs::values;
use half::bf16;
use qlora_engine::Result;
use qlora_engine::device::Device;
use qlora_engine::ops::sample::{Ask, CANDIDATES, Penalties, Picked, Row, pick};
use qlora_engine::tensor::Tensor;

/// transformers' default.
pub const TOP_K: usize = 50;

/// Logits that thin out towards the largest, as a model's do: of an exponential distribution on either side of 0.
fn logits(rows: usize, vocab: usize, device: &Device) -> Result<Tensor> {
    let spread = |x: f32| -(1.0 + 1e-6 - x.abs()).ln() * x.signum();
    let all: Vec<bf16> = values(rows * vocab, 1).iter().map(|x| bf16::from_f32(spread(x.to_f32()))).collect();
    Tensor::from_slice(&all, rows, vocab, device)
}

/// The largest and every candidate of a row, at places of their own; nothing of a row without an answer, which is then far off.
fn numbers(picked: &Option<Picked>) -> Vec<f32> {
    let mut all = vec![0.0; 2 + 2 * CANDIDATES];
    if let Some(p) = picked {
        all[..2].copy_from_slice(&[p.max, p.id as f32]);
        for (to, (id, x)) in all[2..].chunks_exact_mut(2).zip(&p.candidates) {
            to.copy_from_slice(&[*id as f32, *x]);
        }
    }
    all
}

/// The bound is reading the logits once.
pub fn case(model: &str, rows: usize, vocab: usize) -> Case {
    let n = (rows * vocab) as f64;
    Case {
        name: format!("{model} sample top-{TOP_K} {vocab} {rows} rows"),
        flops: n,
        bytes: 2.0 * n,
        how: How::Asking,
        make: Box::new(move |device| {
            let (logits, mut shown) = (logits(rows, vocab, device)?, false);
            Ok(Box::new(move || {
                let penalties = Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 };
                let ask = Ask { penalties, marks: &[], top_k: TOP_K };
                let asked: Vec<Row> = (0..rows).map(|row| Row { logits: &logits, row, ask }).collect();
                let picked = pick(&asked)?;
                if std::mem::replace(&mut shown, true) {
                    return Ok(Vec::new());
                }
                let of = |p| Tensor::from_slice(&numbers(p), 1, 2 + 2 * CANDIDATES, &Device::cpu(1));
                picked.iter().map(of).collect()
            }))
        }),
    }
}
