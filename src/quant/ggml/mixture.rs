//! Which type each tensor of an exported file gets: llama.cpp's recipes, which give the tensors that matter most more
//! bits.

use super::GgmlType;
use crate::config::OutType;

impl OutType {
    /// Its number in `general.file_type`.
    pub const fn id(self) -> u32 {
        match self {
            OutType::F32 => 0,
            OutType::F16 => 1,
            OutType::Q4_0 => 2,
            OutType::Q8_0 => 7,
            OutType::Q4KM => 15,
            OutType::Q5KM => 17,
            OutType::Q6K => 18,
            OutType::Bf16 => 32,
        }
    }

    /// The type of most tensors.
    const fn plain(self) -> GgmlType {
        match self {
            OutType::F32 => GgmlType::F32,
            OutType::F16 => GgmlType::F16,
            OutType::Bf16 => GgmlType::Bf16,
            OutType::Q8_0 => GgmlType::Q8_0,
            OutType::Q4_0 => GgmlType::Q4_0,
            OutType::Q4KM => GgmlType::Q4K,
            OutType::Q5KM => GgmlType::Q5K,
            OutType::Q6K => GgmlType::Q6K,
        }
    }
}

/// The type of the tensor `name` (GGUF's name; `dims[0]` contiguous) in a `file` of a model of `layers` layers; `tied` if
/// the token embedding is the head too, as where there is no `output.weight`.
///
/// Vectors, norms and position embeddings stay f32, as llama.cpp asks. A row that is no whole number of blocks falls back
/// to a type with smaller blocks and more bits, at last to f16.
pub fn mixture(file: OutType, name: &str, dims: &[usize], layers: usize, tied: bool) -> GgmlType {
    let matrix = dims.len() > 1;
    let kept = ["_norm.weight", "position_embd.weight", "token_types.weight", "ffn_gate_inp.weight"];
    if !matrix || !name.ends_with("weight") || kept.iter().any(|part| name.contains(part)) {
        return GgmlType::F32;
    }
    let plain = file.plain();
    if plain.block() == 1 {
        return plain;
    }
    let cols = dims[0];
    let head = name == "output.weight" || tied && name == "token_embd.weight";
    let recipe = matches!(file, OutType::Q4KM | OutType::Q5KM);
    let more = recipe && layer(name).is_some_and(|i| more_bits(i, layers));
    let ty = if head {
        if plain == GgmlType::Q8_0 || !cols.is_multiple_of(plain.block()) { GgmlType::Q8_0 } else { GgmlType::Q6K }
    } else if more && (name.ends_with(".attn_v.weight") || name.ends_with(".ffn_down.weight")) {
        GgmlType::Q6K
    } else if recipe && name.ends_with(".attn_qkv.weight") {
        if file == OutType::Q4KM { GgmlType::Q5K } else { GgmlType::Q6K }
    } else {
        plain
    };
    fitting(ty, cols)
}

/// The number N of `blk.N.`.
fn layer(name: &str) -> Option<usize> {
    name.strip_prefix("blk.")?.split('.').next()?.parse().ok()
}

/// The first and the last eighth of the layers, and every third one between.
fn more_bits(i: usize, n: usize) -> bool {
    i < n / 8 || i >= 7 * n / 8 || (i - n / 8) % 3 == 2
}

/// `ty`, or what stands in for it where a row of `cols` is no whole number of its blocks.
fn fitting(ty: GgmlType, cols: usize) -> GgmlType {
    let next = match ty {
        _ if cols.is_multiple_of(ty.block()) => return ty,
        GgmlType::Q4K => GgmlType::Q5_0,
        GgmlType::Q5K => GgmlType::Q5_1,
        GgmlType::Q6K => GgmlType::Q8_0,
        _ => return GgmlType::F16,
    };
    fitting(next, cols)
}

#[cfg(test)]
mod tests {
    use super::*;
    use GgmlType::{Bf16, F16, F32, Q4_0, Q4K, Q5_0, Q5_1, Q5K, Q6K, Q8_0};

    fn of(file: OutType, name: &str, cols: usize) -> GgmlType {
        mixture(file, name, &[cols, 64], 32, false)
    }

    #[test]
    fn q4_k_m_of_32_and_28_layers() {
        for (layers, more) in [(32, 16), (28, 14)] {
            for part in ["attn_v", "ffn_down"] {
                let types = (0..layers).map(|i| format!("blk.{i}.{part}.weight"));
                let types: Vec<_> = types.map(|n| mixture(OutType::Q4KM, &n, &[256, 64], layers, false)).collect();
                assert_eq!(types.iter().filter(|t| **t == Q6K).count(), more, "{part} of {layers}");
                assert_eq!(types.iter().filter(|t| **t == Q4K).count(), layers - more);
            }
        }
        let q6: Vec<_> = (0..32).filter(|&i| more_bits(i, 32)).collect();
        assert_eq!(q6, [0, 1, 2, 3, 6, 9, 12, 15, 18, 21, 24, 27, 28, 29, 30, 31]);
        for part in ["attn_q", "attn_k", "attn_output", "ffn_gate", "ffn_up"] {
            assert_eq!(of(OutType::Q4KM, &format!("blk.0.{part}.weight"), 256), Q4K);
        }
        assert_eq!(of(OutType::Q4KM, "blk.5.attn_qkv.weight", 256), Q5K);
        assert_eq!(of(OutType::Q5KM, "blk.5.attn_qkv.weight", 256), Q6K);
        assert_eq!(of(OutType::Q5KM, "blk.0.attn_v.weight", 256), Q6K);
        assert_eq!(of(OutType::Q5KM, "blk.5.attn_v.weight", 256), Q5K);
        assert_eq!(of(OutType::Q6K, "blk.5.attn_v.weight", 256), Q6K);
    }

    #[test]
    fn head_and_embedding() {
        assert_eq!(of(OutType::Q4KM, "output.weight", 256), Q6K);
        assert_eq!(of(OutType::Q4KM, "token_embd.weight", 256), Q4K);
        assert_eq!(mixture(OutType::Q4KM, "token_embd.weight", &[256, 9], 4, true), Q6K);
        assert_eq!(of(OutType::Q4_0, "output.weight", 256), Q6K);
        assert_eq!(of(OutType::Q8_0, "output.weight", 256), Q8_0);
        assert_eq!(of(OutType::Q4KM, "output.weight", 896), Q8_0);
        assert_eq!(of(OutType::Q4_0, "output.weight", 896), Q8_0, "Q6_K falls back");
    }

    #[test]
    fn narrow_rows_fall_back() {
        assert_eq!(of(OutType::Q4KM, "blk.9.attn_q.weight", 896), Q5_0);
        assert_eq!(of(OutType::Q4KM, "blk.0.attn_v.weight", 896), Q8_0);
        assert_eq!(of(OutType::Q5KM, "blk.9.attn_q.weight", 896), Q5_1);
        assert_eq!(of(OutType::Q6K, "blk.9.attn_q.weight", 896), Q8_0);
        assert_eq!(of(OutType::Q4_0, "blk.9.attn_q.weight", 896), Q4_0);
        for file in [OutType::Q4KM, OutType::Q5KM, OutType::Q6K, OutType::Q8_0, OutType::Q4_0] {
            assert_eq!(of(file, "blk.9.attn_q.weight", 40), F16);
        }
    }

    #[test]
    fn what_stays_f32() {
        for (_, file) in OutType::NAMES {
            for name in ["blk.0.attn_norm.weight", "output_norm.weight", "blk.0.attn_q.bias", "rope_freqs.weight"] {
                assert_eq!(mixture(file, name, &[256], 4, false), F32);
            }
            assert_eq!(of(file, "position_embd.weight", 256), F32);
        }
        assert_eq!(of(OutType::F16, "blk.0.attn_q.weight", 40), F16);
        assert_eq!(of(OutType::Bf16, "output.weight", 40), Bf16);
        assert_eq!(of(OutType::F32, "output.weight", 40), F32);
    }

    #[test]
    fn names_and_numbers() {
        let want = [
            ("f32", 0),
            ("f16", 1),
            ("bf16", 32),
            ("q8_0", 7),
            ("q4_0", 2),
            ("q4_k_m", 15),
            ("q5_k_m", 17),
            ("q6_k", 18),
        ];
        assert_eq!(OutType::NAMES.map(|(name, t)| (name, t.id())), want);
    }
}
