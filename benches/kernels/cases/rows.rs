//! What works row by row: the bound is memory.

use super::case::{Case, How, show};
use super::inputs::tensor;
use qlora_engine::ops::gelu::{self, Gelu};
use qlora_engine::ops::layer_norm::{self, LayerNorm};
use qlora_engine::ops::{Slot, rms_norm, swiglu};

pub fn cases(model: &str, tokens: usize, hidden: usize, mlp: usize) -> Vec<Case> {
    let elements = |cols: usize| (tokens * cols) as f64;
    vec![
        Case {
            name: format!("{model} rms_norm {hidden} fwd"),
            flops: 4.0 * elements(hidden),
            bytes: 4.0 * elements(hidden),
            how: How::Graph,
            make: Box::new(move |device| {
                let (x, w) = (tensor(tokens, hidden, 1, device)?, tensor(1, hidden, 2, device)?);
                Ok(Box::new(move || Ok(vec![rms_norm::fwd(&x, Slot::whole(&w), 1e-6)?])))
            }),
        },
        Case {
            name: format!("{model} rms_norm {hidden} bwd"),
            flops: 8.0 * elements(hidden),
            bytes: 6.0 * elements(hidden),
            how: How::Graph,
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
            how: How::Graph,
            make: Box::new(move |device| {
                let (gate, up) = (tensor(tokens, mlp, 1, device)?, tensor(tokens, mlp, 2, device)?);
                Ok(Box::new(move || Ok(vec![swiglu::fwd(&gate, &up)?])))
            }),
        },
        Case {
            name: format!("{model} layer_norm {hidden} fwd"),
            flops: 7.0 * elements(hidden),
            bytes: 4.0 * elements(hidden),
            how: How::Graph,
            make: Box::new(move |device| {
                let (x, w) = (tensor(tokens, hidden, 1, device)?, tensor(1, hidden, 2, device)?);
                let b = tensor(1, hidden, 3, device)?;
                Ok(Box::new(move || {
                    let norm = LayerNorm { w: Slot::whole(&w), b: Some(Slot::whole(&b)), eps: 1e-5 };
                    Ok(vec![layer_norm::fwd(&x, norm)?])
                }))
            }),
        },
        Case {
            name: format!("{model} layer_norm {hidden} bwd"),
            flops: 12.0 * elements(hidden),
            bytes: 6.0 * elements(hidden),
            how: How::Graph,
            make: Box::new(move |device| {
                let (x, w) = (tensor(tokens, hidden, 1, device)?, tensor(1, hidden, 2, device)?);
                let (b, dy) = (tensor(1, hidden, 3, device)?, tensor(tokens, hidden, 4, device)?);
                Ok(Box::new(move || {
                    let norm = LayerNorm { w: Slot::whole(&w), b: Some(Slot::whole(&b)), eps: 1e-5 };
                    Ok(vec![layer_norm::bwd(&x, norm, &dy, None, None)?])
                }))
            }),
        },
        Case {
            name: format!("{model} gelu {mlp} fwd"),
            flops: 8.0 * elements(mlp),
            bytes: 4.0 * elements(mlp),
            how: How::Graph,
            make: Box::new(move |device| {
                let x = tensor(tokens, mlp, 1, device)?;
                Ok(Box::new(move || Ok(vec![gelu::fwd(&x, Gelu::Tanh)?])))
            }),
        },
        Case {
            name: format!("{model} gelu {mlp} bwd"),
            flops: 14.0 * elements(mlp),
            bytes: 6.0 * elements(mlp),
            how: How::Graph,
            make: Box::new(move |device| {
                // dx takes the place of x: it is the x of the next run, near dy / 2 then.
                let (mut x, dy) = (Some(tensor(tokens, mlp, 1, device)?), tensor(tokens, mlp, 2, device)?);
                let mut shown = false;
                Ok(Box::new(move || {
                    let Some(given) = x.take() else { return Ok(Vec::new()) };
                    show(&[&*x.insert(gelu::bwd(given, &dy, Gelu::Tanh)?)], &mut shown)
                }))
            }),
        },
    ]
}
