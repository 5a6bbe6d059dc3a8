//! A base model with adapters merged into it, tensor by tensor: only the one that is asked for is in memory.

use std::ops::Range;
use std::path::{Path, PathBuf};

use crate::device::gemm::{DstView, View, gemm};
use crate::device::pool;
use crate::error::{Error, Result};
use crate::format::adapter::Part;
use crate::format::{AdapterFile, Checkpoint, Dtype, HfConfig, TensorView};
use crate::quant::Nf4;

/// The base's files, the adapters, and what becomes of each tensor.
pub struct Merged {
    base: Checkpoint,
    adapters: Vec<AdapterFile>,
    /// Of the base; `tie_word_embeddings` as it is after merging.
    pub config: HfConfig,
    /// The base's head was its embedding, and an adapter has made them two.
    pub untied: bool,
    /// Matrices lie as (in, out).
    pub transposed: bool,
    /// Merge into the linear layers as NF4 leaves them; double quantisation.
    nf4: Option<bool>,
    tensors: Vec<Tensor>,
}

/// A tensor of the merged model, as it lies in a checkpoint.
#[derive(Debug, Clone)]
pub struct Tensor {
    pub name: String,
    /// The base's.
    pub dtype: Dtype,
    pub shape: Vec<usize>,
    /// The base's tensor.
    source: String,
    /// The adapter that has it whole (the last of them), and its name there.
    saved: Option<(usize, String)>,
    /// Adapters with an A and a B for it, in order, after the one that has it whole: (adapter, module).
    loras: Vec<(usize, String)>,
    /// A linear layer of a block.
    linear: bool,
}

/// What GPT-2's checkpoints may leave out in front of a name.
const PREFIX: &str = "transformer.";
/// The embedding's name in each family.
const EMBEDDINGS: [&str; 3] = ["model.embed_tokens.weight", "transformer.wte.weight", "wte.weight"];
const HEAD: &str = "lm_head.weight";

impl Merged {
    /// Opens the base in `folder` and the adapters, and checks that each tensor of theirs has its place there.
    ///
    /// # Errors
    /// [`Error::Weights`] for an adapter of another model (a module that is not there, or of another shape); whatever is
    /// wrong with the files.
    pub fn open(folder: &Path, adapters: &[PathBuf], nf4: Option<bool>) -> Result<Merged> {
        let mut config = HfConfig::open(folder)?;
        let base = Checkpoint::open(folder)?;
        let open = |a: &PathBuf| AdapterFile::open_for(a, config.num_attention_heads, config.num_key_value_heads);
        let adapters = adapters.iter().map(open).collect::<Result<Vec<_>>>()?;
        let transposed = config.model_type == "gpt2";
        if transposed && nf4.is_some() {
            let why = "is not built for GPT-2: merge into the base as it is";
            return Err(Error::config("export_dequantized", why));
        }
        let mut tensors = Vec::new();
        let embedding = EMBEDDINGS.iter().find(|n| base.contains(n)).copied();
        let touches = |name: &str| adapters.iter().any(|a| place_in(a, name).is_some());
        let untied =
            config.tie_word_embeddings && (touches(HEAD) || embedding.is_some_and(|e| saved_alone(&adapters, e)));
        for name in base.names() {
            // A tied head that some checkpoints hold nevertheless.
            if !(name == HEAD && config.tie_word_embeddings) {
                tensors.push(Tensor::of(&base, &adapters, name, name)?);
            }
        }
        if let (true, Some(embedding)) = (untied, embedding) {
            tensors.push(Tensor::of(&base, &adapters, HEAD, embedding)?);
            config.tie_word_embeddings = false;
        }
        let merged = Merged { base, adapters, config, untied, transposed, nf4, tensors };
        merged.check()?;
        Ok(merged)
    }

    /// All tensors, in the base's order; a head that is no longer tied last.
    pub fn tensors(&self) -> &[Tensor] {
        &self.tensors
    }

    /// Every adapter tensor must be used, and fit.
    fn check(&self) -> Result<()> {
        for (i, a) in self.adapters.iter().enumerate() {
            for e in &a.entries {
                let wrong = |why: String| match a.tensors.get(&e.name) {
                    Ok(view) => view.wrong(why),
                    Err(e) => e,
                };
                let found = self.tensors.iter().find(|t| match e.part {
                    Part::Saved => same(&t.name, &e.module),
                    _ => same(&t.name, &format!("{}.weight", e.module)),
                });
                let Some(t) = found else {
                    let why = "is for a module that the base lacks: the adapter belongs to another model";
                    return Err(wrong(why.to_string()));
                };
                let view = a.tensors.get(&e.name)?;
                let (out, inn) = match (&t.shape[..], self.transposed) {
                    ([inn, out], true) | ([out, inn], false) => (*out, *inn),
                    _ => (0, 0),
                };
                let r = self.adapters.get(i).map_or(0, |a| a.config.rank_of(&e.module));
                let want = match e.part {
                    Part::A => vec![r, inn],
                    Part::B => vec![out, r],
                    Part::Saved => t.shape.clone(),
                };
                if view.shape != want {
                    let why = format!(
                        "has shape {:?}, must be {want:?} to fit `{}` {:?}: the adapter belongs to another model",
                        view.shape, t.name, t.shape
                    );
                    return Err(wrong(why));
                }
            }
        }
        Ok(())
    }

    /// The bytes of a tensor that no adapter changes; None if one does, or if it is merged into NF4's values.
    ///
    /// # Errors
    /// [`Error::Weights`].
    pub fn untouched(&self, t: &Tensor) -> Result<Option<&[u8]>> {
        let changed = t.saved.is_some() || !t.loras.is_empty() || (t.linear && self.nf4.is_some());
        if changed { Ok(None) } else { Ok(Some(self.base.get(&t.source)?.bytes)) }
    }

    /// Prepares the values of one tensor.
    ///
    /// # Errors
    /// [`Error::Weights`] for a dtype that is no float.
    pub fn source<'a>(&'a self, t: &'a Tensor) -> Result<Source<'a>> {
        let view = match &t.saved {
            Some((i, name)) => self.adapters.get(*i).map_or_else(|| self.base.get(name), |a| a.tensors.get(name))?,
            None => self.base.get(&t.source)?,
        };
        let threads = pool::global().threads();
        let nf4 = match (self.nf4, &t.saved) {
            (Some(double), None) if t.linear => Some(Nf4::from_view(&view, double, threads)?),
            _ => None,
        };
        let cols = view.rows_cols().1;
        let mut deltas = Vec::new();
        for (i, module) in &t.loras {
            let Some(a) = self.adapters.get(*i) else { continue };
            let read = |part| -> Result<Vec<f32>> {
                let name = a.tensor_of(module, part).unwrap_or(module);
                let view = a.tensors.get(name)?;
                let mut values = vec![0.0; view.len()];
                view.read_f32(&mut values)?;
                Ok(values)
            };
            let (va, vb) = (read(Part::A)?, read(Part::B)?);
            let (r, scale) = (a.config.rank_of(module), a.config.scale_of(module) as f32);
            deltas.push(Delta { a: va, b: vb, r, scale });
        }
        Ok(Source { view, nf4, cols, deltas, transposed: self.transposed })
    }
}

/// Whether an adapter trains the embedding whole and not through the head's name.
fn saved_alone(adapters: &[AdapterFile], embedding: &str) -> bool {
    adapters.iter().any(|a| a.entries.iter().any(|e| e.part == Part::Saved && same(embedding, &e.module)))
}

/// Names are the same but for a prefix that checkpoints of GPT-2 may lack.
fn same(base: &str, of_adapter: &str) -> bool {
    base == of_adapter || of_adapter.strip_prefix(PREFIX) == Some(base)
}

enum Place<'a> {
    Saved(&'a str),
    Lora(&'a str),
}

/// What an adapter has for the tensor `name`.
fn place_in<'a>(a: &'a AdapterFile, name: &str) -> Option<Place<'a>> {
    let module = name.strip_suffix(".weight");
    a.entries.iter().find_map(|e| match e.part {
        Part::Saved => same(name, &e.module).then_some(Place::Saved(&e.name)),
        Part::A => module.is_some_and(|m| same(m, &e.module)).then_some(Place::Lora(&e.module)),
        Part::B => None,
    })
}

impl Tensor {
    fn of(base: &Checkpoint, adapters: &[AdapterFile], name: &str, source: &str) -> Result<Tensor> {
        let view = base.get(source)?;
        let (mut saved, mut loras) = (None, Vec::new());
        for (i, a) in adapters.iter().enumerate() {
            match place_in(a, name) {
                // What came before is replaced, as by merging one adapter after the other.
                Some(Place::Saved(tensor)) => {
                    saved = Some((i, tensor.to_string()));
                    loras.clear();
                }
                Some(Place::Lora(module)) => loras.push((i, module.to_string())),
                None => {}
            }
        }
        let in_block = name.contains(".layers.") || name.starts_with("h.") || name.contains(".h.");
        let linear = in_block && view.shape.len() == 2 && name.ends_with(".weight");
        let (name, source) = (name.to_string(), source.to_string());
        Ok(Tensor { name, dtype: view.dtype, shape: view.shape.to_vec(), source, saved, loras, linear })
    }

    /// (rows, columns) as it lies in the checkpoint; a vector is one row.
    pub fn rows_cols(&self) -> (usize, usize) {
        match self.shape[..] {
            [rows, cols] => (rows, cols),
            _ => (1, self.shape.iter().product()),
        }
    }
}

/// scale * B A, with B (out, r) and A (r, in).
struct Delta {
    a: Vec<f32>,
    b: Vec<f32>,
    r: usize,
    scale: f32,
}

/// The values of one merged tensor, some rows at a time.
pub struct Source<'a> {
    view: TensorView<'a>,
    nf4: Option<Nf4>,
    cols: usize,
    deltas: Vec<Delta>,
    transposed: bool,
}

impl Source<'_> {
    /// Rows `rows` as they lie in the checkpoint, in f32.
    ///
    /// # Errors
    /// [`Error::Weights`] if there are no such rows, or the merged values are no finite numbers.
    pub fn rows(&self, rows: Range<usize>, out: &mut [f32]) -> Result<()> {
        match &self.nf4 {
            Some(q) => q.rows_f32(rows.clone(), out)?,
            None => self.view.read_rows_f32(rows.clone(), out)?,
        }
        let (n, cols) = (rows.len(), self.cols);
        for d in &self.deltas {
            // Row i of the file is row i of B A, or of its transpose A' B'.
            let (left, right) = match self.transposed {
                false => (View::f32(&d.b[rows.start * d.r..rows.end * d.r], n, d.r), View::f32(&d.a, d.r, cols)),
                true => {
                    let all = d.a.len() / d.r.max(1);
                    let a = View { cols: n, ..View::f32(&d.a[rows.start..], d.r, all) };
                    (a.t(), View::f32(&d.b, cols, d.r).t())
                }
            };
            let pool = pool::global();
            gemm(Some(&pool), d.scale, left, right, 1.0, DstView::f32(out, n, cols));
        }
        match self.deltas.is_empty() || out.iter().all(|x| x.is_finite()) {
            true => Ok(()),
            false => Err(self.view.wrong("merged with the adapter is not finite")),
        }
    }
}
