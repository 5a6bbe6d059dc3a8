//! NF4 to bf16: the bound is writing.

use super::case::{Base, Case};

pub fn dequantise(model: &str, out: usize, inn: usize) -> Case {
    let elements = (out * inn) as f64;
    Case {
        name: format!("{model} nf4 dequantise {out}x{inn}"),
        flops: elements,
        bytes: 2.516 * elements,
        eager: false,
        make: Box::new(move |device| {
            let (base, device) = (Base::new(out, inn, true, device)?, device.clone());
            Ok(Box::new(move || Ok(vec![base.dequantised(&device)?])))
        }),
    }
}
