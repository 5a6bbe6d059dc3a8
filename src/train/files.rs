//! The files that hold what was trained: an adapter, or a whole model; and the optimizer's state of a checkpoint.

use std::collections::HashMap;
use std::ops::Range;
use std::path::Path;

use super::inputs::Inputs;
use crate::config::{Config, FinetuningType, Precision};
use crate::error::{Error, Result};
use crate::format::adapter::{self, AdapterConfig, Part, Sidecar};
use crate::format::{AdapterFile, Checkpoint, Dtype, TensorSpec, hf_config, safetensors};
use crate::model::{Model, Params};
use crate::ops::adamw::Moments;
use crate::tensor::Tensor;

/// Shards of a whole model are at most this large.
const SHARD_BYTES: u64 = 5 << 30;
const OPTIMIZER: &str = "optimizer.safetensors";
/// Moments in 8 bits, by the names of bitsandbytes: the first, the second.
const CODES: [&str; 2] = ["state1", "state2"];
const ABSMAX: [&str; 2] = ["absmax1", "absmax2"];

/// Writes trained values, tokenizer and what a later use must know (template, thinking mode) into `dir`.
///
/// # Errors
/// [`Error::File`], for example when the disk is full.
pub fn write(dir: &Path, config: &Config, inputs: &Inputs, model: &Model) -> Result<()> {
    match config.tune.finetuning_type {
        FinetuningType::Lora => write_adapter(dir, config, inputs, model)?,
        FinetuningType::Freeze | FinetuningType::Full => write_model(dir, config, inputs, model)?,
    }
    inputs.tokenizer.save(dir)
}

fn write_adapter(dir: &Path, config: &Config, inputs: &Inputs, model: &Model) -> Result<()> {
    let entries = &model.params.entries;
    let mut modules: Vec<&str> = Vec::new();
    let mut saved: Vec<&str> = Vec::new();
    let mut tensors = Vec::new();
    let values: Vec<Vec<f32>> = (0..entries.len()).map(|i| model.params.values(i)).collect();
    for (e, values) in entries.iter().zip(&values) {
        let parts = [(".lora_A.weight", Part::A), (".lora_B.weight", Part::B)];
        let lora = parts.iter().find_map(|(end, part)| Some((e.name.strip_suffix(end)?, *part)));
        let (list, name, tensor) = match lora {
            Some((module, part)) => (&mut modules, module, adapter::tensor_name(module, part)),
            None => {
                let module = e.name.rsplit_once('.').map_or(e.name.as_str(), |(module, _)| module);
                (&mut saved, module, adapter::tensor_name(&e.name, Part::Saved))
            }
        };
        if !list.contains(&name) {
            list.push(name);
        }
        tensors.push((tensor, e.shape.clone(), values.as_slice()));
    }
    let names = |modules: &[&str]| model.spec.names.targets(modules).into_iter().map(String::from).collect();
    let t = &config.tune;
    let from = config.model.adapter_name_or_path.last().filter(|_| !t.create_new_adapter);
    let mut file = match from {
        // Rank, alpha and targets of the adapter that was trained on stay its own.
        Some(path) => AdapterFile::open(path)?.config,
        None => AdapterConfig {
            lora_dropout: t.lora_dropout,
            use_rslora: t.use_rslora,
            modules_to_save: names(&saved),
            fan_in_fan_out: model.spec.transposed,
            ..AdapterConfig::new(t.lora_rank, t.lora_alpha, names(&modules))
        },
    };
    file.base_model_name_or_path = Some(config.model.model_name_or_path.clone());
    adapter::write(dir, &file, tensors, &sidecar(config, inputs))
}

fn write_model(dir: &Path, config: &Config, inputs: &Inputs, model: &Model) -> Result<()> {
    let base = match config.model.train_from_scratch {
        true => None,
        false => Some(Checkpoint::open(&inputs.folder)?),
    };
    let trained: HashMap<&str, usize> =
        model.params.entries.iter().enumerate().map(|(i, e)| (e.name.as_str(), i)).collect();
    let dtype = if config.tune.pure_bf16 { Dtype::BF16 } else { Dtype::F32 };
    let mut specs: Vec<TensorSpec> =
        model.params.entries.iter().map(|e| TensorSpec::new(&e.name, dtype, &e.shape)).collect();
    if let Some(base) = &base {
        for name in base.names().filter(|name| !trained.contains_key(name)) {
            let view = base.get(name)?;
            specs.push(TensorSpec::new(name, view.dtype, view.shape));
        }
    }
    specs.sort_by(|a, b| a.name.cmp(&b.name));
    safetensors::write_model(dir, &specs, SHARD_BYTES, |spec, sink| match (trained.get(spec.name.as_str()), &base) {
        (Some(&i), _) if dtype == Dtype::BF16 => {
            let values: Vec<half::bf16> = model.params.values(i).into_iter().map(half::bf16::from_f32).collect();
            sink.bf16(&values)
        }
        (Some(&i), _) => sink.f32(&model.params.values(i)),
        (None, Some(base)) => sink.bytes(base.get(&spec.name)?.bytes),
        (None, None) => Err(Error::weights(dir, &spec.name, "has no values")),
    })?;
    hf_config::carry(&inputs.folder, dir, Some(if dtype == Dtype::BF16 { "bfloat16" } else { "float32" }))?;
    let generation = inputs.folder.join("generation_config.json");
    if generation.is_file() {
        std::fs::copy(&generation, dir.join("generation_config.json"))
            .map_err(|e| Error::io(&generation, "cannot copy", &e))?;
    }
    sidecar(config, inputs).write(dir)
}

fn sidecar(config: &Config, inputs: &Inputs) -> Sidecar {
    let float = match config.train.precision {
        Precision::F32 => "f32",
        Precision::Bf16 => "bf16",
    };
    let precision = match config.model.quantization_bit {
        Some(_) => format!("nf4+{float}"),
        None => float.to_string(),
    };
    Sidecar {
        template: config.data.template.clone(),
        enable_thinking: inputs.template.enable_thinking,
        base_model: config.model.model_name_or_path.clone(),
        precision,
    }
}

/// What a checkpoint holds of the optimizer.
enum Stored<'a> {
    Floats(&'a Tensor),
    Codes(Vec<u8>),
    Absmax(Vec<f32>),
}

/// Writes the moments, and the values where the model's files round them.
///
/// # Errors
/// [`Error::File`].
pub fn write_optimizer(dir: &Path, config: &Config, params: &Params, moments: &Moments) -> Result<()> {
    let mut parts: Vec<(&str, Stored)> = match moments {
        Moments::Full { m, v } => vec![("exp_avg", Stored::Floats(m)), ("exp_avg_sq", Stored::Floats(v))],
        Moments::Eight { m, v } => {
            let ((m, m_absmax), (v, v_absmax)) = (m.read(), v.read());
            let [m, v] = [m, v].map(Stored::Codes);
            let [m_absmax, v_absmax] = [m_absmax, v_absmax].map(Stored::Absmax);
            vec![(CODES[0], m), (CODES[1], v), (ABSMAX[0], m_absmax), (ABSMAX[1], v_absmax)]
        }
    };
    if config.tune.pure_bf16 {
        parts.push(("master", Stored::Floats(&params.master)));
    }
    let spec = |(name, part): &(&str, Stored)| match part {
        Stored::Floats(t) => TensorSpec::new(*name, Dtype::F32, &[t.len()]),
        Stored::Codes(codes) => TensorSpec::new(*name, Dtype::U8, &[codes.len()]),
        Stored::Absmax(absmax) => TensorSpec::new(*name, Dtype::F32, &[absmax.len()]),
    };
    let specs: Vec<TensorSpec> = parts.iter().map(spec).collect();
    safetensors::write_file(&dir.join(OPTIMIZER), &specs, |spec, sink| {
        match parts.iter().find(|(name, _)| *name == spec.name) {
            Some((_, Stored::Floats(t))) => {
                pieces(t.len()).try_for_each(|r| sink.f32(&t.read::<f32>(r.start, r.len())))
            }
            Some((_, Stored::Codes(codes))) => sink.bytes(codes),
            Some((_, Stored::Absmax(absmax))) => sink.f32(absmax),
            None => Ok(()),
        }
    })
}

/// Ranges that together are 0..n: what is copied from a device at a time.
fn pieces(n: usize) -> impl Iterator<Item = Range<usize>> {
    const PIECE: usize = 1 << 20;
    (0..n).step_by(PIECE).map(move |at| at..n.min(at + PIECE))
}

/// Takes trained values back from what [`write`] wrote.
///
/// # Errors
/// [`Error::Weights`] for a tensor that is missing or of another shape: another model, or another rank.
pub fn read(dir: &Path, config: &Config, params: &mut Params) -> Result<()> {
    let lora = config.tune.finetuning_type == FinetuningType::Lora;
    let file = match lora {
        true => Checkpoint::open_file(&dir.join("adapter_model.safetensors"))?,
        false => Checkpoint::open(dir)?,
    };
    for i in 0..params.entries.len() {
        let e = &params.entries[i];
        let name = if lora { format!("base_model.model.{}", e.name) } else { e.name.clone() };
        let mut values = vec![0.0; e.rows * e.cols];
        file.expect(&name, &e.shape)?.read_f32(&mut values)?;
        params.set(i, &values)?;
    }
    params.refresh()?;
    Ok(())
}

/// Takes the optimizer's state back from what [`write_optimizer`] wrote.
///
/// # Errors
/// [`Error::Config`] if the checkpoint was saved without one (`save_only_model`); [`Error::Weights`] if it is of another
/// run.
pub fn read_optimizer(dir: &Path, config: &Config, params: &mut Params, moments: &mut Moments) -> Result<()> {
    let path = dir.join(OPTIMIZER);
    if !path.is_file() {
        let why = format!("{} holds no {OPTIMIZER}: it was saved with save_only_model", dir.display());
        return Err(Error::config("resume_from_checkpoint", why));
    }
    let file = Checkpoint::open_file(&path)?;
    let mut floats: Vec<(&str, &mut Tensor)> = Vec::new();
    match moments {
        Moments::Full { m, v } => floats.extend([("exp_avg", m), ("exp_avg_sq", v)]),
        Moments::Eight { m, v } => {
            for (i, t) in [m, v].into_iter().enumerate() {
                let codes = file.get(CODES[i])?;
                if codes.dtype != Dtype::U8 || codes.shape != [t.len()] {
                    let why = format!("is {} {:?}, must be U8 [{}]", codes.dtype, codes.shape, t.len());
                    return Err(codes.wrong(why));
                }
                let mut absmax = vec![0.0; t.blocks()];
                file.expect(ABSMAX[i], &[t.blocks()])?.read_f32(&mut absmax)?;
                t.write(codes.bytes, &absmax)?;
            }
        }
    }
    if config.tune.pure_bf16 {
        floats.push(("master", &mut params.master));
    }
    for (name, t) in floats {
        let view = file.expect(name, &[t.len()])?;
        for r in pieces(t.len()) {
            let mut piece = vec![0.0; r.len()];
            view.read_f32_range(r.clone(), &mut piece)?;
            t.write(r.start, &piece);
        }
    }
    params.refresh()
}
