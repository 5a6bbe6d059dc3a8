//! What works row by row: the bound is memory.

use super::case::Case;
use super::inputs::tensor;
use qlora_engine::ops::{Slot, rms_norm, swiglu};

pub fn cases(model: &str, tokens: usize, hidden: usize, mlp: usize) -> Vec<Case> {
    let elements = |cols: usize| (tokens * cols) as f64;
    vec![
        Case {
            name: format!("{model} rms_norm {hidden} fwd"),
            flops: 4.0 * elements(hidden),
            bytes: 4.0 * elements(hidden),
            eager: false,
            make: Box::new(move |device| {
                let (x, w) = (tensor(tokens, hidden, 1, device)?, tensor(1, hidden, 2, device)?);
                Ok(Box::new(move || Ok(vec![rms_norm::fwd(&x, Slot::whole(&w), 1e-6)?])))
            }),
        },
        Case {
            name: format!("{model} rms_norm {hidden} bwd"),
            flops: 8.0 * elements(hidden),
            bytes: 6.0 * elements(hidden),
            eager: false,
            make: Box::new(move |device| {
                let (x, w) = (tensor(tokens, hidden, 1, device)?, tensor(1, hidden, 2, device)?);
                let dy = tensor(tokens, hidden, 3, device)?;
                Ok(Box::new(move || Ok(vec![rms_norm::bwd(&x, Slot::whole(&w), 1e-6, &dy, None, None)?])))
            }),
        },
        Case {
            name: format!("{model} swiglu {mlp} fwd"),
            flops: 5.0 * elements(mlp),
            bytes: 6.0 * elements(mlp),
            eager: false,
            make: Box::new(move |device| {
                let (gate, up) = (tensor(tokens, mlp, 1, device)?, tensor(tokens, mlp, 2, device)?);
                Ok(Box::new(move || Ok(vec![swiglu::fwd(&gate, &up)?])))
            }),
        },
    ]
}
