//! From a checkpoint to a [`Model`]: which weights are frozen, quantised or trained, and with what values they start.

use std::path::Path;

use super::base::Base;
use super::block::Block;
use super::decoder::Model;
use super::families;
use super::mlp::{Mlp, Up};
use super::names::{MlpLayers, QkvLayers};
use super::norm::Norm;
use super::params::{Entry, Params};
use super::qkv::Qkv;
use super::spec::{NormKind, Position, Spec};
use super::weights::{Adapter, Layer, Vector, Weight};
use crate::by_dtype;
use crate::config::{FinetuningType, RopeScalingChoice, TuneConfig};
use crate::device::Device;
use crate::device::gemm::{DstView, View, gemm};
use crate::error::{Error, Result};
use crate::format::adapter::Part;
use crate::format::{AdapterFile, HfConfig};
use crate::ops::philox::{Stream, normal, uniform};
use crate::ops::rope::Table;
use crate::quant::ggml::Blocks;
use crate::quant::{DeviceGgml, Nf4, Quantiser};
use crate::tensor::{DType, Float, Real, Tensor, no_f16};

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

/// Where a trained parameter's first values come from.
enum Init {
    Base(String),
    /// (adapter, tensor name)
    Adapter(usize, String),
    /// Uniform in +-1/sqrt(fan_in), which is what kaiming_uniform with a = sqrt(5) gives.
    KaimingUniform {
        fan_in: usize,
    },
    Zero,
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
        check_gguf(o)?;
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

impl Builder<'_> {
    /// A name that matches no module is an error, not a setting that does nothing.
    fn check_names(&self) -> Result<()> {
        let m = self.o.method;
        let names = &self.spec.names;
        let linears = names.linears();
        if m.finetuning_type == FinetuningType::Lora && self.trained.is_none() {
            for name in &m.lora_target {
                if name != "all" && !linears.iter().any(|l| matches_module(l, name)) {
                    let all = names.linear_names().join(", ");
                    let why = format!("names `{name}`; the linear layers are {all}, or all");
                    return Err(Error::config("lora_target", why));
                }
            }
        }
        let outside = self.spec.outside();
        for name in &m.additional_target {
            if !outside.contains(&name.as_str()) {
                let all = outside.join(", ");
                let why = format!("names `{name}`; what can be trained whole beside an adapter is {all}");
                return Err(Error::config("additional_target", why));
            }
        }
        if m.finetuning_type == FinetuningType::Freeze {
            let n = m.freeze_trainable_layers.unsigned_abs() as usize;
            if n == 0 || n > self.spec.layers {
                let why = format!("is {}, the model has {} layers", m.freeze_trainable_layers, self.spec.layers);
                return Err(Error::config("freeze_trainable_layers", why));
            }
            let parts = names.parts();
            for name in &m.freeze_trainable_modules {
                let is_part = name == "all" || parts.contains(&name.as_str());
                if !is_part && !names.linear_names().iter().any(|l| name.ends_with(l)) {
                    let why = format!("names `{name}`; the parts of a layer are all, {}", parts.join(", "));
                    return Err(Error::config("freeze_trainable_modules", why));
                }
            }
            for name in &m.freeze_extra_modules {
                if !outside.contains(&name.as_str()) {
                    let why = format!("names `{name}`; outside the layers there are {}", outside.join(", "));
                    return Err(Error::config("freeze_extra_modules", why));
                }
            }
        }
        Ok(())
    }

    /// Whether the parameters of `module` (without `.weight`) are trained whole.
    fn is_trained(&self, module: &str) -> bool {
        let m = self.o.method;
        let extra = |names: &[String]| {
            let outside = self.spec.names.layer_and_part(module).is_none();
            outside && names.iter().any(|n| matches_module(module, n))
        };
        match m.finetuning_type {
            FinetuningType::Full => true,
            FinetuningType::Lora => match self.trained {
                Some((_, a)) => a.entries.iter().any(|e| e.part == Part::Saved && module_of(&e.module) == module),
                None => extra(&m.additional_target),
            },
            FinetuningType::Freeze => {
                let n = m.freeze_trainable_layers;
                let layers = match n >= 0 {
                    true => self.spec.layers.saturating_sub(n as usize)..self.spec.layers,
                    false => 0..n.unsigned_abs() as usize,
                };
                let Some((layer, part)) = self.spec.names.layer_and_part(module) else {
                    return extra(&m.freeze_extra_modules);
                };
                let part_named = |name: &String| name == "all" || part.starts_with(name.as_str());
                layers.contains(&layer) && m.freeze_trainable_modules.iter().any(part_named)
            }
        }
    }

    /// Whether PEFT would train a copy of this module beside the base's.
    fn saved_alone(&self, module: &str) -> bool {
        self.o.method.finetuning_type == FinetuningType::Lora && self.is_trained(module)
    }

    fn block(&mut self, i: usize) -> Result<Block> {
        let s = self.spec.clone();
        let names = s.names;
        let at = |part: &str| format!("{}.{i}.{part}", names.layers);
        let (q, kv) = (s.heads * s.head_dim, s.kv_heads * s.head_dim);
        let norm_of_head = |b: &mut Self, name: &str| match s.qk_norm {
            true => b.vector(&at(name), s.head_dim).map(Some),
            false => Ok(None),
        };
        Ok(Block {
            norm1: self.norm(&at(names.norm1))?,
            qkv: match names.qkv {
                QkvLayers::Separate { q: name_q, k, v } => Qkv::Separate {
                    q: self.layer(&at(name_q), q, s.hidden, s.qkv_bias)?,
                    k: self.layer(&at(k), kv, s.hidden, s.qkv_bias)?,
                    v: self.layer(&at(v), kv, s.hidden, s.qkv_bias)?,
                },
                QkvLayers::Fused(name) => {
                    Qkv::Fused(self.layer(&at(name), q + 2 * kv, s.hidden, s.qkv_bias)?, [q, kv, kv])
                }
            },
            q_norm: norm_of_head(self, "self_attn.q_norm")?,
            k_norm: norm_of_head(self, "self_attn.k_norm")?,
            o: self.layer(&at(names.o), s.hidden, q, s.o_bias)?,
            norm2: self.norm(&at(names.norm2))?,
            mlp: Mlp {
                up: match names.mlp {
                    MlpLayers::Gated { gate, up } => Up::Gated {
                        gate: self.layer(&at(gate), s.mlp, s.hidden, s.mlp_bias)?,
                        up: self.layer(&at(up), s.mlp, s.hidden, s.mlp_bias)?,
                    },
                    MlpLayers::GatedFused(name) => Up::Fused(self.layer(&at(name), 2 * s.mlp, s.hidden, s.mlp_bias)?),
                    MlpLayers::Plain(name, form) => {
                        Up::Plain(self.layer(&at(name), s.mlp, s.hidden, s.mlp_bias)?, form)
                    }
                },
                down: self.layer(&at(names.down), s.hidden, s.mlp, s.mlp_bias)?,
            },
            window: s.windows.get(i).copied().flatten(),
        })
    }

    fn layer(&mut self, module: &str, out: usize, inn: usize, bias: bool) -> Result<Layer> {
        let w = self.parameter(module, "weight", &format!("{module}.weight"), &[out, inn], Role::Linear)?;
        let bias = match bias {
            true => Some(self.parameter(module, "bias", &format!("{module}.bias"), &[out], Role::Other)?),
            false => None,
        };
        let lora = self.lora(module, out, inn)?;
        Ok(Layer { module: module.to_string(), out, inn, w, bias, lora, attached: Vec::new() })
    }

    fn vector(&mut self, module: &str, len: usize) -> Result<Vector> {
        self.parameter(module, "weight", &format!("{module}.weight"), &[len], Role::Other).map(Vector)
    }

    fn norm(&mut self, module: &str) -> Result<Norm> {
        let len = self.spec.hidden;
        let w = self.vector(module, len)?;
        Ok(match self.spec.norm {
            NormKind::Rms => Norm::Rms(w),
            NormKind::Layer => {
                let b = self.parameter(module, "bias", &format!("{module}.bias"), &[len], Role::Other)?;
                Norm::Layer(w, Vector(b))
            }
        })
    }

    fn weight(&mut self, module: &str, rows: usize, cols: usize, role: Role) -> Result<Weight> {
        self.parameter(module, "weight", &format!("{module}.weight"), &[rows, cols], role)
    }

    /// `module.kind`, read from the checkpoint's tensor `source`.
    fn parameter(&mut self, module: &str, kind: &str, source: &str, shape: &[usize], role: Role) -> Result<Weight> {
        let linear = role == Role::Linear;
        self.done += 1;
        let total = self.spec.tensors();
        (self.progress)(self.done.min(total), total);
        let turned = self.spec.transposed && linear && shape.len() == 2;
        let (rows, cols) = if let [r, c] = *shape { (r, c) } else { (1, shape.iter().product()) };
        if self.is_trained(module) {
            let name = format!("{module}.{kind}");
            let from = match self.trained {
                Some((i, a)) if self.o.method.finetuning_type == FinetuningType::Lora => {
                    Init::Adapter(i, a.tensor_of(&name, Part::Saved).unwrap_or(&name).to_string())
                }
                _ => Init::Base(source.to_string()),
            };
            // A whole model is saved under the names that it came with, an adapter under those of PEFT.
            let whole = self.o.method.finetuning_type != FinetuningType::Lora;
            let named = |base: &Base| base.name_of(self.spec, &name).to_string();
            let name = self.base.filter(|_| whole).map_or_else(|| name.clone(), named);
            let decay = shape.len() == 2;
            let i = self.entry(name, shape, decay, from);
            self.entries[i].turned = turned;
            if turned {
                self.entries[i].shape.reverse();
            }
            return Ok(Weight::Trained(i));
        }
        let planned = self.device.is_plan();
        let stored = self.base.map(|base| base.read(self.spec, source, shape, turned, !planned)).transpose()?;
        if let (true, true, Some(double)) = (planned, linear, self.o.nf4) {
            return Ok(Weight::Planned { out: rows, inn: cols, double });
        }
        let Some(stored) = stored else {
            let stream = Stream { seed: self.o.seed, step: 0, module: u32::MAX - self.done as u32 };
            let t = self.random(rows, cols, shape.len() == 1 && kind == "weight", stream)?;
            return self.placed(t, role);
        };
        if let Some(blocks) = stored.quantised().filter(|_| linear) {
            return self.quantised(blocks);
        }
        if let (true, Some(double), Some(view)) = (linear, self.o.nf4, stored.view()) {
            return match &mut self.quantiser {
                Some(quantiser) => quantiser.quantise(&view, double).map(|q| Weight::DeviceNf4(Box::new(q))),
                None => Nf4::from_view(&view, double, self.o.threads).map(Weight::Nf4),
            };
        }
        let mut t = Tensor::unwritten(rows, cols, self.o.dtype, &self.staging)?;
        if !self.device.is_plan() {
            match self.o.dtype {
                DType::F16 => return Err(no_f16()),
                DType::Bf16 => stored.read_bf16(t.slice_mut())?,
                DType::F32 => stored.read_f32(t.slice_mut())?,
                DType::F64 => {
                    let mut values = vec![0.0f32; rows * cols];
                    stored.read_f32(&mut values)?;
                    t.slice_mut::<f64>().iter_mut().zip(values).for_each(|(t, x)| *t = f64::from(x));
                }
            }
            self.merge(module, kind, &mut t)?;
        }
        self.placed(t, role)
    }

    /// To where the device reads it. What is only gathered stays in the CPU's memory where kernels run: they read a row of it
    /// a token, over the bus, and the card has that much more room. Where the system does not let so much be locked it goes
    /// to the card after all.
    fn placed(&self, t: Tensor, role: Role) -> Result<Weight> {
        if role != Role::Gathered || !self.device.runs_kernels() {
            return t.moved_to(self.device).map(Weight::Frozen);
        }
        if self.device.is_plan() {
            return Ok(Weight::Pinned(t));
        }
        match t.pinned_copy(self.device) {
            Ok(pinned) => Ok(Weight::Pinned(pinned)),
            Err(Error::Memory(why)) => {
                log::warn!("the embedding takes {} bytes of the GPU's memory that were not planned: {why}", t.bytes());
                t.moved_to(self.device).map(Weight::Frozen)
            }
            Err(e) => Err(e),
        }
    }

    /// Blocks stay as they are: mapped on the CPU, copied to where kernels read them.
    fn quantised(&self, blocks: &Blocks) -> Result<Weight> {
        if !self.device.runs_kernels() {
            return Ok(Weight::Ggml(blocks.clone()));
        }
        let on_device = match self.device.is_plan() {
            true => DeviceGgml::unwritten(blocks.ty, blocks.rows, blocks.cols, self.device)?,
            false => DeviceGgml::upload(blocks, self.device)?,
        };
        Ok(Weight::DeviceGgml(Box::new(on_device)))
    }

    /// Ones for a norm, else a normal distribution as transformers initialises; where values are made.
    fn random(&self, rows: usize, cols: usize, norm: bool, stream: Stream) -> Result<Tensor> {
        let mut t = Tensor::unwritten(rows, cols, self.o.dtype, &self.staging)?;
        if !self.device.is_plan() {
            by_dtype!(t.dtype(), T => for (i, x) in t.slice_mut::<T>().iter_mut().enumerate() {
                let value = if norm { 1.0 } else { f64::from(normal(stream, i as u64)) * INITIALIZER_RANGE };
                *x = T::narrow(<T as Float>::Acc::of(value));
            });
        }
        Ok(t)
    }

    /// W += scale B A for every adapter that is merged.
    fn merge(&self, module: &str, kind: &str, w: &mut Tensor) -> Result<()> {
        for a in self.merged.iter().filter(|_| kind == "weight") {
            let Some((name_a, name_b)) = a.tensor_of(module, Part::A).zip(a.tensor_of(module, Part::B)) else {
                continue;
            };
            let (out, inn, r) = (w.rows(), w.cols(), a.config.rank_of(module));
            let (mut va, mut vb) = (vec![0.0f32; r * inn], vec![0.0f32; out * r]);
            a.tensors.expect(name_a, &[r, inn])?.read_f32(&mut va)?;
            a.tensors.expect(name_b, &[out, r])?.read_f32(&mut vb)?;
            let scale = a.config.scale_of(module) as f32;
            let mut delta = vec![0.0f32; out * inn];
            let product = (View::f32(&vb, out, r), View::f32(&va, r, inn), DstView::f32(&mut delta, out, inn));
            gemm(None, scale, product.0, product.1, 0.0, product.2);
            by_dtype!(w.dtype(), T => for (w, d) in w.slice_mut::<T>().iter_mut().zip(&delta) {
                *w = T::narrow(w.acc() + <T as Float>::Acc::of(f64::from(*d)));
            });
        }
        Ok(())
    }

    fn lora(&mut self, module: &str, out: usize, inn: usize) -> Result<Option<Adapter>> {
        let m = self.o.method;
        if m.finetuning_type != FinetuningType::Lora {
            return Ok(None);
        }
        let (name_a, name_b) = (format!("{module}.lora_A.weight"), format!("{module}.lora_B.weight"));
        let (r, scale, from_a, from_b) = match self.trained {
            Some((i, file)) => {
                let named = file.tensor_of(module, Part::A).zip(file.tensor_of(module, Part::B));
                let Some((a, b)) = named else { return Ok(None) };
                let (a, b) = (Init::Adapter(i, a.to_string()), Init::Adapter(i, b.to_string()));
                (file.config.rank_of(module), file.config.scale_of(module), a, b)
            }
            None => {
                if !m.lora_target.iter().any(|t| t == "all" || matches_module(module, t)) {
                    return Ok(None);
                }
                let r = m.lora_rank;
                let scale = m.lora_alpha / if m.use_rslora { (r as f64).sqrt() } else { r as f64 };
                (r, scale, Init::KaimingUniform { fan_in: inn }, Init::Zero)
            }
        };
        let a = self.entry(name_a, &[r, inn], true, from_a);
        let b = self.entry(name_b, &[out, r], true, from_b);
        self.modules += 1;
        Ok(Some(Adapter { a, b, scale, module: self.modules - 1 }))
    }

    fn entry(&mut self, name: String, shape: &[usize], decay: bool, from: Init) -> usize {
        let offset = self.entries.last().map_or(0, |e| e.range().end);
        let (rows, cols) = if let [r, c] = *shape { (r, c) } else { (1, shape.iter().product()) };
        self.entries.push(Entry { name, offset, rows, cols, shape: shape.to_vec(), decay, turned: false });
        self.init.push(from);
        self.entries.len() - 1
    }
}

fn first_values(
    e: &Entry,
    index: usize,
    from: &Init,
    o: &Options,
    (spec, base): (&Spec, Option<&Base>),
    adapters: &[AdapterFile],
) -> Result<Vec<f32>> {
    let n = e.rows * e.cols;
    let stream = Stream { seed: o.seed, step: 0, module: index as u32 };
    let mut values = vec![0.0f32; n];
    match (from, base) {
        (Init::Zero, _) => {}
        (Init::KaimingUniform { fan_in }, _) => {
            let bound = 1.0 / (*fan_in as f64).sqrt();
            for (i, x) in values.iter_mut().enumerate() {
                *x = ((f64::from(uniform(stream, i as u64)) * 2.0 - 1.0) * bound) as f32;
            }
        }
        (Init::Adapter(i, name), _) => adapters[*i].tensors.expect(name, &e.shape)?.read_f32(&mut values)?,
        (Init::Base(name), Some(base)) => base.read(spec, name, &e.shape, false, true)?.read_f32(&mut values)?,
        (Init::Base(_), None) if e.name.ends_with(".bias") => {}
        // A norm's scales.
        (Init::Base(_), None) if e.shape.len() == 1 => values.fill(1.0),
        (Init::Base(_), None) => {
            for (i, x) in values.iter_mut().enumerate() {
                *x = (f64::from(normal(stream, i as u64)) * INITIALIZER_RANGE) as f32;
            }
        }
    }
    Ok(values)
}

/// What cannot be done with a GGUF file.
fn check_gguf(o: &Options) -> Result<()> {
    if o.nf4.is_some() {
        let why = "is asked for, but a GGUF file has its own quantisation, which is used as it is: leave the key out";
        return Err(Error::config("quantization_bit", why));
    }
    if o.method.finetuning_type != FinetuningType::Lora {
        return Err(Error::config("finetuning_type", "must be lora: the weights of a GGUF file stay as they are"));
    }
    if !o.method.additional_target.is_empty() {
        let why = "is not supported with a GGUF file: an adapter for one holds no whole modules";
        return Err(Error::config("additional_target", why));
    }
    Ok(())
}

/// Whether `module` is called `name`, or ends with it as a path.
fn matches_module(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// `lm_head.weight` -> `lm_head`.
fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}
