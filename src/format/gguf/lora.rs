//! A LoRA in a GGUF file, as llama.cpp's converter and our export write it, in PEFT's terms.

use std::collections::BTreeMap;
use std::path::Path;

use serde_json::{Map, Value, json};

use super::names::hf_module;
use super::rows::{file_row, turned_heads};
use super::{GgmlType, Gguf, TensorInfo};
use crate::error::{Error, Result};
use crate::format::adapter::{AdapterConfig, Part, tensor_name};
use crate::format::{Checkpoint, convert};

/// Reads the adapter in the file at `path`: its config, and its tensors by PEFT's names in f32. `heads`: those of q and of k, by
/// which the rows of their B are put into the model's order where llama.cpp has its own; None leaves them.
///
/// # Errors
/// [`Error::File`] if the file is no LoRA, [`Error::Weights`] for a tensor that no LoRA of a supported model has.
pub(in crate::format) fn open(path: &Path, heads: Option<(usize, usize)>) -> Result<(AdapterConfig, Checkpoint)> {
    let file = Gguf::open(path)?;
    let m = file.metadata();
    let must_be = |key: &str, want: &str| match m.string(key)? {
        Some(is) if is == want => Ok(()),
        is => Err(m.error(key, format!("is {}, must be {want}: the file is no LoRA", is.unwrap_or("missing")))),
    };
    must_be("general.type", "adapter")?;
    must_be("adapter.type", "lora")?;
    let alpha = m.float("adapter.lora.alpha")?.filter(|a| a.is_finite() && *a != 0.0);
    let alpha = alpha.ok_or_else(|| m.error("adapter.lora.alpha", "must be a number other than 0"))?;
    let arch = m.string("general.architecture")?.unwrap_or("");

    let mut ranks: BTreeMap<String, usize> = BTreeMap::new();
    let mut header = Map::new();
    let mut data = Vec::new();
    for t in file.tensors() {
        let wrong = |why: String| Error::weights(path, &t.name, why);
        let (base, part) = match (t.name.strip_suffix(".lora_a"), t.name.strip_suffix(".lora_b")) {
            (Some(base), _) => (base, Part::A),
            (_, Some(base)) => (base, Part::B),
            _ => return Err(wrong("is neither lora_a nor lora_b".into())),
        };
        let module = hf_module(arch, base).ok_or_else(|| wrong(format!("is for no module of a `{arch}` model")))?;
        let (rows, cols) = (t.rows(), t.cols());
        let mut values = values(&file, t).map_err(wrong)?;
        match part {
            Part::A => {
                ranks.insert(module.clone(), rows);
            }
            _ => {
                let heads = heads.filter(|_| arch == "llama").and_then(|(q, k)| turned_heads(&module, q, k));
                turn(&mut values, rows, cols, heads).map_err(wrong)?;
            }
        }
        let start = data.len();
        data.extend(values.iter().flat_map(|x| x.to_le_bytes()));
        let info = json!({"dtype": "F32", "shape": [rows, cols], "data_offsets": [start, data.len()]});
        header.insert(tensor_name(&module, part), info);
    }
    let r = ranks.values().copied().max().ok_or_else(|| Error::file(path, "holds no tensors"))?;
    let mut targets: Vec<String> = ranks.keys().map(|m| m.rsplit('.').next().unwrap_or(m).to_string()).collect();
    targets.sort_unstable();
    targets.dedup();
    let rank_pattern = ranks.into_iter().filter(|(_, rank)| *rank != r).collect();
    let config = AdapterConfig { rank_pattern, ..AdapterConfig::new(r, alpha, targets) };

    let header = Value::Object(header).to_string().into_bytes();
    let mut bytes = (header.len() as u64).to_le_bytes().to_vec();
    bytes.extend(header);
    bytes.extend(data);
    Ok((config, Checkpoint::in_memory(path, bytes)?))
}

fn values(file: &Gguf, t: &TensorInfo) -> std::result::Result<Vec<f32>, String> {
    let mut out = vec![0.0f32; t.rows() * t.cols()];
    match t.ty {
        GgmlType::F32 => convert::f32_bytes_to_f32(file.bytes(t), &mut out),
        GgmlType::F16 => convert::f16_bytes_to_f32(file.bytes(t), &mut out),
        GgmlType::Bf16 => convert::bf16_bytes_to_f32(file.bytes(t), &mut out),
        other => return Err(format!("is of type {}; F32, F16 and BF16 are supported in a LoRA", other.name())),
    }
    Ok(out)
}

/// Puts the rows of llama.cpp's order into the model's.
fn turn(values: &mut [f32], rows: usize, cols: usize, heads: Option<usize>) -> std::result::Result<(), String> {
    let Some(heads) = heads else { return Ok(()) };
    if heads == 0 || !rows.is_multiple_of(2 * heads) {
        return Err(format!("has {rows} rows for {heads} heads: the adapter belongs to another model"));
    }
    let before = values.to_vec();
    for (row, to) in values.chunks_exact_mut(cols).enumerate() {
        to.copy_from_slice(&before[file_row(row, rows, heads) * cols..][..cols]);
    }
    Ok(())
}
