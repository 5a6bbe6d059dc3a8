//! Rotary position embedding of q and k, alone and in one with the norm of each head: the bound is memory.

use super::case::{Case, How, show};
use super::inputs::tensor;
use qlora_engine::Result;
use qlora_engine::device::Device;
use qlora_engine::ops::Slot;
use qlora_engine::ops::rope::{self, Norm, Table, Turn};
use qlora_engine::tensor::{Index, Live, Tensor};

/// Heads of q and of k, of a sequence.
#[derive(Clone, Copy)]
pub struct Heads {
    pub tokens: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
}

impl Heads {
    fn elements(self) -> f64 {
        (self.tokens * (self.heads + self.kv_heads) * self.head_dim) as f64
    }

    fn name(self) -> String {
        format!("{}/{}x{}", self.heads, self.kv_heads, self.head_dim)
    }

    /// Bytes of the rotations, which every head reads and the caches hold: once.
    fn table_bytes(self) -> f64 {
        (self.tokens * self.head_dim * 4) as f64
    }

    fn pair(self, seed: u64, device: &Device) -> Result<[Tensor; 2]> {
        let of = |heads, seed| tensor(self.tokens, heads * self.head_dim, seed, device);
        Ok([of(self.heads, seed)?, of(self.kv_heads, seed + 1)?])
    }

    /// Where each row stands in its sequence, and the rotations of all positions.
    fn turns(self, device: &Device) -> Result<(Index<'static>, Table)> {
        let half = self.head_dim / 2;
        let freq: Vec<f32> = (0..half).map(|i| 1e6f32.powf(-(i as f32) / half as f32)).collect();
        let positions = Index::new((0..self.tokens as u32).collect::<Vec<_>>(), self.tokens, None::<Live>, device)?;
        Ok((positions, Table::of(&freq, 1.0, self.tokens, device)?))
    }
}

/// In place, so that every run turns what the one before has turned.
pub fn alone(model: &str, h: Heads) -> Case {
    Case {
        name: format!("{model} rope {}", h.name()),
        flops: 3.0 * h.elements(),
        bytes: 4.0 * h.elements() + h.table_bytes(),
        how: How::Graph,
        make: Box::new(move |device| {
            let ([mut q, mut k], (positions, table)) = (h.pair(1, device)?, h.turns(device)?);
            let mut shown = false;
            Ok(Box::new(move || {
                rope::apply([&mut q, &mut k], &positions, &table, Turn::Forward)?;
                show(&[&q, &k], &mut shown)
            }))
        }),
    }
}

/// After the norm of each head. The backward pass takes its dy as its own: the copies that it gets here count, in time and in
/// bytes.
pub fn with_norm(model: &str, h: Heads, backward: bool) -> Case {
    Case {
        name: format!("{model} qk_norm + rope {} {}", h.name(), if backward { "bwd + copy of dy" } else { "fwd" }),
        flops: h.elements() * if backward { 11.0 } else { 7.0 },
        bytes: h.elements() * if backward { 10.0 } else { 4.0 } + h.table_bytes(),
        how: How::Graph,
        make: Box::new(move |device| {
            let (x, dy, (positions, table)) = (h.pair(1, device)?, h.pair(3, device)?, h.turns(device)?);
            let w = [tensor(1, h.head_dim, 5, device)?, tensor(1, h.head_dim, 6, device)?];
            let mut none = Tensor::zeros(1, 0, qlora_engine::tensor::DType::F32, device)?;
            Ok(Box::new(move || {
                let (x, norms) = ([&x[0], &x[1]], [0, 1].map(|i| Norm { w: Slot::whole(&w[i]), eps: 1e-6 }));
                let made = match backward {
                    false => rope::fwd(x, norms, &positions, &table)?,
                    true => rope::bwd(x, norms, &positions, &table, [dy[0].copy()?, dy[1].copy()?], &mut none)?,
                };
                Ok(made.into())
            }))
        }),
    }
}
