//! From a checkpoint to a [`Model`]: which weights are frozen, quantised or trained, and with what values they start.
//!
//! | looked for | place |
//! |---|---|
//! | the walk from a folder to a model | here |
//! | what the settings train, and what they may not name | `names` |
//! | blocks, layers and their adapters | `layers` |
//! | one weight: read, merged, quantised, put where it belongs | `weight` |
//! | first values of what is trained | `init` |

mod init;
mod layers;
mod names;
mod weight;

use std::path::Path;

use init::{Init, first_values};

use super::base::Base;
use super::decoder::Model;
use super::families;
use super::params::{Entry, Params};
use super::spec::{Position, Spec};
use crate::config::{FinetuningType, RopeScalingChoice, TuneConfig};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::format::{AdapterFile, HfConfig};
use crate::ops::rope::Table;
use crate::quant::Quantiser;
use crate::tensor::DType;

/// Deviation of weights that start at random: transformers' default.
const INITIALIZER_RANGE: f64 = 0.02;

/// How a model is to be loaded.
pub struct Options<'a> {
    /// What is trained; None loads for inference, with the adapters frozen in place.
    pub method: &'a TuneConfig,
    /// dtype of activations and dense weights.
    pub dtype: DType,
    /// NF4 for the linear layers of the blocks: Some(double quantisation).
    pub nf4: Option<bool>,
    /// Longest sequence that will be run.
    pub max_positions: usize,
    pub rope_scaling: Option<RopeScalingChoice>,
    /// Adapters to start from.
    pub adapters: &'a [std::path::PathBuf],
    /// Values at random instead of the checkpoint's.
    pub from_scratch: bool,
    /// On a planning device: the shapes are those of config.json, whether the weights are there or not.
    pub config_only: bool,
    pub seed: u64,
    pub threads: usize,
}

/// Loads the model in `folder` onto `device`. On a planning device only headers are read.
///
/// `progress(done, total)` counts tensors.
///
/// # Errors
/// [`Error::Weights`] for a missing or misshapen tensor, [`Error::Config`] for a target that names no module, and
/// whatever reading the files gives.
pub fn load(folder: &Path, o: &Options, device: &Device, progress: &dyn Fn(usize, usize)) -> Result<Model> {
    let mut config = HfConfig::open(folder)?;
    if let Some(choice) = o.rope_scaling {
        families::scale(&mut config, choice, o.max_positions)?;
    }
    let spec = families::spec(&config, o.max_positions)?;
    let base = if o.from_scratch || o.config_only { None } else { Some(Base::open(folder, &config)?) };
    if base.as_ref().is_some_and(Base::is_gguf) {
        names::check_gguf(o)?;
    }
    let open = |path| AdapterFile::open_for(path, spec.heads, spec.kv_heads);
    let adapters = o.adapters.iter().map(|path| open(path)).collect::<Result<Vec<_>>>()?;
    // All but the last adapter are merged; the last is trained on, unless a new one is asked for.
    let merged = if o.method.create_new_adapter { adapters.len() } else { adapters.len().saturating_sub(1) };
    if merged > 0 && (o.nf4.is_some() || base.as_ref().is_some_and(Base::is_gguf)) {
        let why = format!(
            "holds {} adapters, of which {merged} would be merged; a quantised base takes only one",
            adapters.len()
        );
        return Err(Error::config("adapter_name_or_path", why));
    }
    let mut b = Builder {
        o,
        spec: &spec,
        device,
        quantiser: if device.runs_kernels() && !device.is_plan() { Some(Quantiser::new(device)?) } else { None },
        staging: if device.runs_kernels() && !device.is_plan() { Device::cpu(1) } else { device.clone() },
        base: base.as_ref(),
        merged: &adapters[..merged],
        trained: adapters.get(merged).map(|a| (merged, a)),
        entries: Vec::new(),
        init: Vec::new(),
        modules: 0,
        done: 0,
        progress,
    };
    b.check_names()?;

    let (vocab, hidden, names) = (spec.vocab, spec.hidden, spec.names);
    let head_trained_alone = b.is_trained("lm_head") && !matches!(o.method.finetuning_type, FinetuningType::Full);
    // The tie is broken when only one side of it is trained, as PEFT breaks it.
    let shared = spec.tied && !head_trained_alone && !(b.saved_alone(names.embed));
    let embed = b.weight(names.embed, vocab, hidden, if shared { Role::Other } else { Role::Gathered })?;
    let embed_name = format!("{}.weight", names.embed);
    let head = match spec.tied {
        _ if shared => None,
        true => Some(b.parameter("lm_head", "weight", &embed_name, &[vocab, hidden], Role::Other)?),
        false => Some(b.weight("lm_head", vocab, hidden, Role::Other)?),
    };
    let positions = match spec.position {
        Position::Learned { module, rows } => Some(b.weight(module, rows, hidden, Role::Other)?),
        Position::Rope(_) => None,
    };
    let blocks = (0..spec.layers).map(|i| b.block(i)).collect::<Result<Vec<_>>>()?;
    let norm = b.norm(names.norm)?;

    // What the quantiser took goes before anything else comes.
    let Builder { entries, init, quantiser, .. } = b;
    drop(quantiser);
    let mut params = Params::new(entries, o.dtype, device)?;
    if !device.is_plan() {
        for (i, from) in init.iter().enumerate() {
            let values = first_values(&params.entries[i], i, from, o, (&spec, base.as_ref()), &adapters)?;
            params.set(i, &values)?;
        }
        params.refresh()?;
    }
    let max_positions = o.max_positions.max(1);
    let rope = match &spec.position {
        Position::Rope(rope) => Some(Table::of(&rope.freq, rope.factor, max_positions, device)?),
        Position::Learned { .. } => None,
    };
    let (dtype, device, attached) = (o.dtype, device.clone(), Vec::new());
    Ok(Model { spec, dtype, device, params, embed, blocks, norm, head, rope, positions, max_positions, attached })
}

struct Builder<'a> {
    o: &'a Options<'a>,
    spec: &'a Spec,
    device: &'a Device,
    /// Where values are made: the device itself, unless only kernels reach its memory.
    staging: Device,
    /// On a device that runs kernels.
    quantiser: Option<Quantiser>,
    base: Option<&'a Base>,
    merged: &'a [AdapterFile],
    /// The adapter that is trained on, and its index.
    trained: Option<(usize, &'a AdapterFile)>,
    entries: Vec<Entry>,
    init: Vec<Init>,
    /// Adapters so far: each has its own stream of random numbers.
    modules: u32,
    done: usize,
    progress: &'a dyn Fn(usize, usize),
}

/// What a tensor is for, which decides in what form and where it lies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Role {
    /// The matrix of a linear layer of a block: quantised where that is asked.
    Linear,
    /// A matrix of which only rows are read: kernels can read those from the CPU's memory.
    Gathered,
    Other,
}
