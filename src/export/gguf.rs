//! A merged model as one GGUF file.

use std::path::Path;

use super::keys;
use super::merge::{Merged, Source, Tensor};
use crate::config::OutType;
use crate::data::gguf_tokenizer;
use crate::data::tokenizer::Tokenizer;
use crate::device::pool;
use crate::error::{Error, Result};
use crate::format::gguf::{GgmlType, TensorInfo, TensorSink, Writer, gguf_name, model_row, turned_heads};
use crate::quant::ggml::{mixture, quantise};

/// Values that one thread quantises at a time.
const PIECE: usize = 1 << 20;

/// A tensor of the file.
struct Planned<'a> {
    name: String,
    dims: Vec<usize>,
    ty: GgmlType,
    from: Origin<'a>,
}

enum Origin<'a> {
    /// A tensor of the model; heads, where the rows of each are put into the order of llama.cpp's rotation.
    Tensor(&'a Tensor, Option<usize>),
    /// A tensor that the model's settings become.
    Values(Vec<f32>),
}

/// Writes `merged` to `path`, in the types of `file`, named `name`.
///
/// # Errors
/// [`Error::Weights`] for a tensor that GGUF has no name for; [`Error::Tokenizer`] if the tokenizer cannot be said in
/// GGUF; [`Error::File`] for settings that cannot, or when the disk refuses.
pub fn write(
    path: &Path,
    merged: &Merged,
    tokenizer: &Tokenizer,
    (file, name): (OutType, &str),
    progress: &mut dyn FnMut(usize, usize),
) -> Result<()> {
    let (mut metadata, extra) = keys::metadata(&merged.config, name, file, path)?;
    for (key, value) in gguf_tokenizer::entries(tokenizer, merged.config.vocab_size)? {
        metadata.set(key, value);
    }
    let mut planned: Vec<Planned> = extra
        .into_iter()
        .map(|(name, values)| Planned {
            name,
            dims: vec![values.len()],
            ty: GgmlType::F32,
            from: Origin::Values(values),
        })
        .collect();
    let llama = keys::architecture(&merged.config.model_type) == "llama";
    for t in merged.tensors() {
        planned.extend(plan(merged, t, file, llama)?);
    }
    let mut writer = Writer::new(metadata)?;
    for p in &planned {
        writer.tensor(&p.name, &p.dims, p.ty)?;
    }
    let mut done = 0;
    writer.write(path, |info, sink| {
        progress(done, planned.len());
        done += 1;
        let p = planned.iter().find(|p| p.name == info.name);
        match p.map(|p| &p.from) {
            Some(Origin::Values(values)) => {
                let mut bytes = Vec::new();
                quantise(GgmlType::F32, values, &mut bytes);
                sink.bytes(&bytes)
            }
            Some(Origin::Tensor(t, heads)) => tensor(merged, t, *heads, info, sink),
            None => Err(Error::weights(path, &info.name, "has no values")),
        }
    })?;
    progress(planned.len(), planned.len());
    Ok(())
}

/// Buffers that some checkpoints hold and nobody reads.
const BUFFERS: [&str; 3] = [".attn.bias", ".attn.masked_bias", ".rotary_emb.inv_freq"];

fn plan<'a>(merged: &Merged, t: &'a Tensor, file: OutType, llama: bool) -> Result<Option<Planned<'a>>> {
    if BUFFERS.iter().any(|b| t.name.ends_with(b)) {
        return Ok(None);
    }
    let name = gguf_name(&t.name).or_else(|| gguf_name(&format!("transformer.{}", t.name)));
    let name = name.ok_or_else(|| Error::weights("the base model", &t.name, "has no name in GGUF"))?;
    let turned = merged.transposed && stored_turned(&name);
    let mut dims = t.shape.clone();
    if !turned {
        dims.reverse();
    }
    let c = &merged.config;
    let ty = mixture(file, &name, &dims, c.num_hidden_layers, c.tie_word_embeddings);
    let heads = turned_heads(&t.name, c.num_attention_heads, c.num_key_value_heads).filter(|_| llama);
    Ok(Some(Planned { name, dims, ty, from: Origin::Tensor(t, heads) }))
}

/// Of GPT-2's matrices, those of the linear layers lie as (in, out); in GGUF as all others.
fn stored_turned(name: &str) -> bool {
    name.starts_with("blk.") && name.ends_with(".weight") && !name.contains("_norm")
}

/// The order of llama.cpp's rotation, for rows `first..` of `rows` (whole heads of them).
pub(super) fn turn(values: &mut [f32], cols: usize, rows: usize, heads: usize) {
    let d = rows / heads.max(1);
    for head in values.chunks_exact_mut(d * cols) {
        let before = head.to_vec();
        for (row, to) in head.chunks_exact_mut(cols).enumerate() {
            let from = model_row(row, d, 1);
            to.copy_from_slice(&before[from * cols..(from + 1) * cols]);
        }
    }
}

/// Appends a tensor, quantised by all threads a few pieces at a time.
fn tensor(
    merged: &Merged,
    t: &Tensor,
    heads: Option<usize>,
    info: &TensorInfo,
    sink: &mut TensorSink<'_>,
) -> Result<()> {
    let source = merged.source(t)?;
    let (rows, cols) = t.rows_cols();
    if merged.transposed && stored_turned(&info.name) {
        let values = turned_round(&source, rows, cols)?;
        return quantised(info.ty, &values, info.cols(), sink);
    }
    // A bias is one row here, and as many rows of one value there.
    let (rows, cols) = if rows == 1 && heads.is_some() { (cols, 1) } else { (rows, cols) };
    let unit = heads.map_or(1, |h| rows / h.max(1)).max(1);
    let step = (PIECE * pool::global().threads() / (unit * cols).max(1)).max(1) * unit;
    let mut values = vec![0.0f32; step.min(rows) * cols];
    for at in (0..rows).step_by(step) {
        let end = rows.min(at + step);
        let values = &mut values[..(end - at) * cols];
        match t.shape.len() {
            1 => source.rows(0..1, values)?,
            _ => source.rows(at..end, values)?,
        }
        if let Some(heads) = heads {
            turn(values, cols, rows, heads);
        }
        quantised(info.ty, values, info.cols(), sink)?;
    }
    Ok(())
}

/// A whole (rows, cols) matrix as (cols, rows).
fn turned_round(source: &Source<'_>, rows: usize, cols: usize) -> Result<Vec<f32>> {
    let mut values = vec![0.0f32; rows * cols];
    source.rows(0..rows, &mut values)?;
    Ok((0..cols).flat_map(|c| (0..rows).map(move |r| r * cols + c)).map(|i| values[i]).collect())
}

/// Quantises rows of `cols` values on all threads and appends them in order.
fn quantised(ty: GgmlType, values: &[f32], cols: usize, sink: &mut TensorSink<'_>) -> Result<()> {
    let width = (PIECE / cols.max(1)).max(1) * cols.max(1);
    let threads = pool::global().threads();
    for group in values.chunks(width * threads) {
        let parts: Vec<Vec<u8>> = std::thread::scope(|scope| {
            let work = |piece| {
                move || {
                    let mut bytes = Vec::new();
                    quantise(ty, piece, &mut bytes);
                    bytes
                }
            };
            let running: Vec<_> = group.chunks(width).map(|piece| scope.spawn(work(piece))).collect();
            running.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p))).collect()
        });
        parts.iter().try_for_each(|bytes| sink.bytes(bytes))?;
    }
    Ok(())
}
