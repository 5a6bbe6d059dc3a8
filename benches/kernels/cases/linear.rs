//! A layer with its adapter: NF4 and bf16, forward and both ways; without one: NF4 in f16, and for the few rows of a step of
//! generation.

use super::case::{Base, Case, How};
use super::inputs::tensor;
use half::f16;
use qlora_engine::Result;
use qlora_engine::device::Device;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Lora};
use qlora_engine::tensor::{DType, Tensor};

pub const RANK: usize = 16;

fn weights(out: usize, inn: usize, nf4: bool) -> f64 {
    (out * inn) as f64 * if nf4 { 0.516 } else { 2.0 }
}

fn dtype(nf4: bool) -> &'static str {
    if nf4 { "nf4" } else { "bf16" }
}

/// A layer with its adapter, forward or both ways: what the backward pass needs is made by the forward pass.
pub fn trained(model: &str, tokens: usize, out: usize, inn: usize, nf4: bool, backward: bool) -> Case {
    let (t, o, i, r) = (tokens as f64, out as f64, inn as f64, RANK as f64);
    let adapter = 2.0 * t * r * (o + i);
    Case {
        name: format!("{model} linear {out}x{inn} {} {}", dtype(nf4), if backward { "fwd + bwd" } else { "fwd" }),
        flops: if backward { 4.0 * t * o * i + 3.0 * adapter } else { 2.0 * t * o * i + adapter },
        bytes: (weights(out, inn, nf4) + 2.0 * t * (o + i)) * if backward { 2.0 } else { 1.0 },
        how: How::Graph,
        make: Box::new(move |device| {
            let (base, x) = (Base::new(out, inn, nf4, device)?, tensor(tokens, inn, 1, device)?);
            let (dy, flat) = (tensor(tokens, out, 2, device)?, tensor(1, RANK * (inn + out), 3, device)?);
            let mut grads = Tensor::zeros(1, flat.len(), DType::F32, device)?;
            Ok(Box::new(move || {
                let slot = |offset, rows, cols| Slot { tensor: &flat, offset, rows, cols, grad: true };
                let lora = Lora { a: slot(0, RANK, inn), b: slot(RANK * inn, out, RANK), scale: 2.0, dropout: None };
                let l = Linear { w: base.matrix(), bias: None, lora: Some(lora) };
                let (y, saved) = linear::fwd(&x, &l, None)?;
                if !backward {
                    return Ok(vec![y]);
                }
                Ok(linear::bwd(saved, &x, &l, &dy, Dx::New, &mut grads)?.into_iter().collect())
            }))
        }),
    }
}

/// As [`tensor`], in f16; on the CPU, which has no op in it, the same numbers in f32.
fn tensor_f16(rows: usize, cols: usize, seed: u64, device: &Device) -> Result<Tensor> {
    if device.is_plan() {
        return Tensor::unwritten(rows, cols, DType::F16, device);
    }
    let values = tensor(rows, cols, seed, &Device::cpu(1))?.to_f64();
    let low = values.into_iter().map(f16::from_f64);
    match device.runs_kernels() {
        true => Tensor::from_slice(&low.collect::<Vec<_>>(), rows, cols, device),
        false => Tensor::from_slice(&low.map(f16::to_f32).collect::<Vec<_>>(), rows, cols, device),
    }
}

/// NF4 alone in f16, forward or both ways: what stands beside bitsandbytes' product of that type.
pub fn bare_f16(model: &str, tokens: usize, out: usize, inn: usize, backward: bool) -> Case {
    let (t, o, i) = (tokens as f64, out as f64, inn as f64);
    let times = if backward { 2.0 } else { 1.0 };
    Case {
        name: format!("{model} linear {out}x{inn} nf4 f16 {}", if backward { "fwd + bwd" } else { "fwd" }),
        flops: 2.0 * t * o * i * times,
        bytes: (weights(out, inn, true) + 2.0 * t * (o + i)) * times,
        how: How::Graph,
        make: Box::new(move |device| {
            let base = Base::new(out, inn, true, device)?;
            let (x, dy) = (tensor_f16(tokens, inn, 1, device)?, tensor_f16(tokens, out, 2, device)?);
            let mut none = Tensor::zeros(1, 0, DType::F32, device)?;
            Ok(Box::new(move || {
                let l = Linear { w: base.matrix(), bias: None, lora: None };
                let (y, saved) = linear::fwd(&x, &l, None)?;
                if !backward {
                    return Ok(vec![y]);
                }
                Ok(linear::bwd(saved, &x, &l, &dy, Dx::New, &mut none)?.into_iter().collect())
            }))
        }),
    }
}

/// As generation does it: the bound is reading the weights.
pub fn decoded(model: &str, rows: usize, out: usize, inn: usize, nf4: bool) -> Case {
    Case {
        name: match (nf4, rows) {
            (true, 1) => format!("{model} nf4 gemv {out}x{inn}"),
            _ => format!("{model} linear {out}x{inn} {} {rows} rows", dtype(nf4)),
        },
        flops: 2.0 * (rows * out * inn) as f64,
        bytes: weights(out, inn, nf4) + 2.0 * (rows * (out + inn)) as f64,
        how: How::Graph,
        make: Box::new(move |device| {
            let (base, x) = (Base::new(out, inn, nf4, device)?, tensor(rows, inn, 1, device)?);
            Ok(Box::new(move || {
                Ok(vec![linear::decode(&x, &Linear { w: base.matrix(), bias: None, lora: None }, None)?])
            }))
        }),
    }
}
