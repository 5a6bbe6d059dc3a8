//! GPUs as a plan sees them: how much memory a run can have, and how fast it could be at best.

use super::tuning::Chip;

/// Figures of a GPU.
#[derive(Debug, Clone, PartialEq)]
pub struct Card {
    pub name: String,
    /// Bytes that a run can have: what is left beside the driver's context and a desktop.
    pub memory: u64,
    /// Peak of dense bf16 products summed in f32, in FLOP/s.
    pub flops: f64,
    /// Peak memory bandwidth, in bytes/s.
    pub bandwidth: f64,
    pub chip: Chip,
}

const GIB: f64 = (1u64 << 30) as f64;

/// (name, usable GiB, TFLOP/s, GB/s, chip). Peaks: NVIDIA's architecture white papers for GA102, AD102 and GH100 (GeForce halves
/// the rate of 16-bit products when they are summed in f32).
const KNOWN: [(&str, f64, f64, f64, Chip); 3] = [
    ("rtx3080", 9.3, 59.5, 760.0, Chip { capability: (8, 6), multiprocessors: 68 }),
    ("rtx4090", 22.6, 165.2, 1008.0, Chip { capability: (8, 9), multiprocessors: 128 }),
    ("h100", 76.0, 989.0, 3352.0, Chip { capability: (9, 0), multiprocessors: 132 }),
];

impl Card {
    /// A card by the name that `plan --device` takes.
    pub fn known(name: &str) -> Option<Card> {
        let wanted = name.to_ascii_lowercase();
        let found = KNOWN.iter().find(|(name, ..)| *name == wanted)?;
        let &(name, gib, tflops, gb, chip) = found;
        Some(Card { name: name.into(), memory: (gib * GIB) as u64, flops: tflops * 1e12, bandwidth: gb * 1e9, chip })
    }

    /// The names that [`Card::known`] knows.
    pub fn names() -> impl Iterator<Item = &'static str> {
        KNOWN.iter().map(|(name, ..)| *name)
    }

    /// Least seconds for this many floating-point operations and bytes moved: whichever takes longer.
    pub fn roofline(&self, flops: f64, bytes: f64) -> f64 {
        (flops / self.flops).max(bytes / self.bandwidth)
    }
}
