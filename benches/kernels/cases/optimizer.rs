//! The norm of the gradient and AdamW with clipping, over one flat buffer: the bound is memory.

use super::case::{Case, How, Run};
use qlora_engine::ops::adamw::{self, AdamW, Flat, Groups, Moments};
use qlora_engine::ops::grad_norm::{self, Norm};
use qlora_engine::tensor::{DType, Tensor};

/// `n` parameters, with the bf16 copy that products read.
pub fn case(model: &str, n: usize) -> Case {
    Case {
        name: format!("{model} adamw + clip {n}"),
        flops: 20.0 * n as f64,
        // The gradient twice; parameter and both moments read and written.
        bytes: (2.0 * 4.0 + 3.0 * 8.0) * n as f64,
        // The constants of a step are written by the CPU, which a graph cannot hold.
        how: How::Launched,
        make: Box::new(move |device| {
            let wide = |seed: usize| -> Vec<f32> {
                (0..n).map(|i| ((i * 37 + seed * 11) % 251) as f32 / 251.0 - 0.5).collect()
            };
            let of = |seed| match device.is_plan() {
                true => Tensor::unwritten(1, n, DType::F32, device),
                false => Tensor::from_slice(&wide(seed), 1, n, device),
            };
            let (mut p, g) = (of(1)?, of(2)?);
            let mut moments = Moments::zeros(&p, false)?;
            let mut copy = Tensor::zeros(1, n, DType::Bf16, device)?;
            let mut groups = Groups::new([(0..n, true)], device)?;
            let mut norm = Norm::new(n, device)?;
            let loss = Tensor::zeros(1, 1, DType::F64, device)?;
            let mut step = 0;
            let run: Run = Box::new(move || {
                step += 1;
                grad_norm::into(&g, &mut norm)?;
                let a =
                    AdamW { lr: 1e-3, beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.01, max_norm: 1.0, step };
                let flat = Flat { p: &mut p, moments: &mut moments, g: &g, copy: Some(&mut copy) };
                adamw::step(flat, &mut groups, a, &norm.value, &loss)?;
                Ok(vec![copy.copy()?])
            });
            Ok(run)
        }),
    }
}
