//! An adapter as a GGUF file, for llama.cpp's `--lora` and Ollama's `ADAPTER`.

use std::path::Path;

use super::gguf::turn;
use super::keys;
use super::verify::larger;
use crate::config::OutType;
use crate::error::{Error, Result};
use crate::format::adapter::Part;
use crate::format::gguf::{GgmlType, Gguf, Metadata, Value, Writer, gguf_name, model_row, turned_heads};
use crate::format::{AdapterFile, HfConfig};
use crate::quant::ggml::{dequantise, quantise};

/// One half of a module's adapter: (name, A or B, heads whose rows are turned, factor).
struct Half<'a> {
    tensor: &'a str,
    name: String,
    shape: [usize; 2],
    heads: Option<usize>,
    factor: f32,
}

/// The alpha that llama.cpp divides by each tensor's rank: PEFT's, times sqrt(r) for rsLoRA, which llama.cpp does not know.
fn alpha(a: &AdapterFile) -> f64 {
    let c = &a.config;
    c.lora_alpha * if c.use_rslora { (c.r as f64).sqrt() } else { 1.0 }
}

fn halves<'a>(a: &'a AdapterFile, config: &HfConfig) -> Result<Vec<Half<'a>>> {
    let llama = keys::architecture(&config.model_type) == "llama";
    let mut halves = Vec::new();
    for e in &a.entries {
        let view = a.tensors.get(&e.name)?;
        if e.part == Part::Saved {
            return Err(view.wrong(
                "is saved whole (`modules_to_save`), which an adapter in GGUF cannot hold: merge it with \
                 `export_format: gguf`",
            ));
        }
        let known = gguf_name(&format!("{}.weight", e.module)).ok_or_else(|| view.wrong("has no name in GGUF"))?;
        if known == "output.weight" && config.tie_word_embeddings {
            return Err(view.wrong("is for a head that is the embedding, which has no tensor of its own in GGUF"));
        }
        let &[rows, cols] = view.shape else { return Err(view.wrong("is no matrix")) };
        // Ranks and alphas of single modules: llama.cpp knows one alpha, so what differs goes into B.
        let rank = a.config.rank_of(&e.module) as f64;
        let factor = (a.config.scale_of(&e.module) * rank / alpha(a)) as f32;
        let tensor = e.name.as_str();
        halves.push(match e.part {
            Part::A => Half { tensor, name: format!("{known}.lora_a"), shape: [rows, cols], heads: None, factor: 1.0 },
            _ => {
                let heads = turned_heads(&e.module, config.num_attention_heads, config.num_key_value_heads);
                let heads = heads.filter(|_| llama);
                if let Some(h) = heads.filter(|h| *h == 0 || rows % (2 * h) != 0) {
                    return Err(
                        view.wrong(format!("has {rows} rows for {h} heads: the adapter belongs to another model"))
                    );
                }
                Half { tensor, name: format!("{known}.lora_b"), shape: [rows, cols], heads, factor }
            }
        });
    }
    Ok(halves)
}

/// Writes the adapter `a` of a base of `config` to `path`, its numbers as `file` (f32, f16 or bf16).
///
/// # Errors
/// [`Error::Weights`] naming a tensor that such a file cannot hold; [`Error::File`] when the disk refuses.
pub fn write(path: &Path, a: &AdapterFile, config: &HfConfig, (file, name): (OutType, &str)) -> Result<()> {
    let ty = match file {
        OutType::F16 => GgmlType::F16,
        OutType::Bf16 => GgmlType::Bf16,
        _ => GgmlType::F32,
    };
    if !(alpha(a).is_finite() && alpha(a) != 0.0) {
        return Err(Error::file(path, format!("cannot be written: alpha is {}", alpha(a))));
    }
    let mut m = Metadata::new();
    m.set("general.architecture", Value::string(keys::architecture(&config.model_type)));
    m.set("general.type", Value::string("adapter"));
    m.set("general.name", Value::string(name));
    m.set("general.file_type", Value::U32(file.id()));
    m.set("adapter.type", Value::string("lora"));
    m.set("adapter.lora.alpha", Value::F32(alpha(a) as f32));
    let halves = halves(a, config)?;
    let mut writer = Writer::new(m)?;
    for h in &halves {
        writer.tensor(&h.name, &[h.shape[1], h.shape[0]], ty)?;
    }
    writer.write(path, |info, sink| {
        let Some(h) = halves.iter().find(|h| h.name == info.name) else { return Ok(()) };
        let mut bytes = Vec::new();
        quantise(ty, &values(a, h)?, &mut bytes);
        sink.bytes(&bytes)
    })
}

fn values(a: &AdapterFile, h: &Half<'_>) -> Result<Vec<f32>> {
    let mut values = vec![0.0f32; h.shape[0] * h.shape[1]];
    a.tensors.get(h.tensor)?.read_f32(&mut values)?;
    if h.factor != 1.0 {
        values.iter_mut().for_each(|x| *x *= h.factor);
    }
    if let Some(heads) = h.heads {
        turn(&mut values, h.shape[1], h.shape[0], heads);
    }
    Ok(values)
}

/// Reads a written file back as llama.cpp would use it: the largest difference of a number of alpha/r B, or of A, from the
/// adapter's own.
///
/// # Errors
/// [`Error::Weights`] for a tensor that is missing or misshapen.
pub fn difference(path: &Path, a: &AdapterFile, config: &HfConfig) -> Result<f64> {
    let file = Gguf::open(path)?;
    let alpha = file.metadata().float("adapter.lora.alpha")?.unwrap_or(f64::NAN);
    let mut worst = 0.0f64;
    for (h, e) in halves(a, config)?.iter().zip(&a.entries) {
        let t = file.find(&h.name).ok_or_else(|| Error::weights(path, &h.name, "is missing"))?;
        if t.shape() != h.shape {
            return Err(Error::weights(path, &h.name, format!("has shape {:?}, must be {:?}", t.shape(), h.shape)));
        }
        let (rows, cols) = (h.shape[0], h.shape[1]);
        let (mut got, mut want) = (vec![0.0f32; rows * cols], vec![0.0f32; rows * cols]);
        dequantise(t.ty, file.bytes(t), &mut got);
        a.tensors.get(h.tensor)?.read_f32(&mut want)?;
        let (there, here) = match e.part {
            Part::B => (alpha / cols as f64, a.config.scale_of(&e.module)),
            _ => (1.0, 1.0),
        };
        for row in 0..rows {
            let from = h.heads.map_or(row, |heads| model_row(row, rows, heads));
            for col in 0..cols {
                let d = f64::from(got[row * cols + col]) * there - f64::from(want[from * cols + col]) * here;
                worst = larger(worst, d.abs());
            }
        }
    }
    Ok(worst)
}
