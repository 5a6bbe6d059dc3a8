//! NF4 to bf16, where the bound is writing; and bf16 to NF4, where it is reading.

use super::case::{Base, Case, How};
use super::inputs::tensor;
use qlora_engine::quant::Quantiser;

pub fn dequantise(model: &str, out: usize, inn: usize) -> Case {
    let elements = (out * inn) as f64;
    Case {
        name: format!("{model} nf4 dequantise {out}x{inn}"),
        flops: elements,
        bytes: 2.516 * elements,
        how: How::Graph,
        make: Box::new(move |device| {
            let (base, device) = (Base::new(out, inn, true, device)?, device.clone());
            Ok(Box::new(move || Ok(vec![base.dequantised(&device)?])))
        }),
    }
}

/// With double quantisation; of a matrix that lies on the device, as it does not while a model is loaded: then the bus is the
/// bound. The CPU waits for the mean of the absmax, which says whether all is finite.
pub fn quantise(model: &str, out: usize, inn: usize) -> Case {
    let elements = (out * inn) as f64;
    Case {
        name: format!("{model} nf4 quantise {out}x{inn}"),
        flops: elements,
        bytes: 2.516 * elements,
        how: How::Asking,
        make: Box::new(move |device| {
            let device = device.clone();
            if !device.runs_kernels() {
                return Ok(Box::new(move || Ok(vec![Base::new(out, inn, true, &device)?.dequantised(&device)?])));
            }
            // The values of `Base`.
            let (x, mut quantiser, mut shown) = (tensor(out, inn, 7, &device)?, Quantiser::new(&device)?, false);
            Ok(Box::new(move || {
                let made = Base::Device(Box::new(quantiser.quantise_resident(&x, true)?));
                match std::mem::replace(&mut shown, true) {
                    true => Ok(Vec::new()),
                    false => Ok(vec![made.dequantised(&device)?]),
                }
            }))
        }),
    }
}
