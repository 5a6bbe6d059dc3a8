use crate::*;
use qlora_engine::format::gguf::GgmlType;
use qlora_engine::quant::DeviceGgml;

/// The types that kernels read, and where the halves of a block are.
const TYPES: [(GgmlType, &[usize]); 11] = [
    (GgmlType::F16, &[0]),
    (GgmlType::Q4_0, &[0]),
    (GgmlType::Q4_1, &[0, 2]),
    (GgmlType::Q5_0, &[0]),
    (GgmlType::Q5_1, &[0, 2]),
    (GgmlType::Q8_0, &[0]),
    (GgmlType::Q2K, &[80, 82]),
    (GgmlType::Q3K, &[108]),
    (GgmlType::Q4K, &[0, 2]),
    (GgmlType::Q5K, &[0, 2]),
    (GgmlType::Q6K, &[208]),
];

/// Blocks of random bits, but for scales of ordinary size: some of them zero, subnormal or negative.
pub fn blocks(ty: GgmlType, rows: usize, cols: usize, seed: u64) -> Vec<u8> {
    let n = ty.row_bytes(cols).unwrap() * rows;
    let mut bytes: Vec<u8> = random(seed, n).iter().map(|x| (x.abs() * 4096.0) as u64 as u8).collect();
    let halves = TYPES.iter().find(|(t, _)| *t == ty).unwrap().1;
    for (i, block) in bytes.chunks_exact_mut(ty.block_bytes()).enumerate() {
        for (j, &at) in halves.iter().enumerate() {
            let scale = [0.01, 0.0, 3e-7, -0.02, 0.03][(i + 2 * j) % 5] * (1.0 + (i % 13) as f32 / 7.0);
            block[at..at + 2].copy_from_slice(&half::f16::from_f32(scale).to_le_bytes());
        }
    }
    bytes
}
