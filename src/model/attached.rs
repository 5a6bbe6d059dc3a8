//! Adapters beside the base, for inference: several at once, each pass choosing one. Nothing is merged.

use std::path::Path;

use super::block::Block;
use super::decoder::Model;
use super::norm::Norm;
use super::params::{Entry, Params};
use super::weights::Adapter;
use crate::error::{Error, Result};
use crate::format::AdapterFile;
use crate::format::adapter::Part;

/// The values of one attached adapter.
pub(super) struct Attached {
    /// Entries of A and B, and of modules that were trained whole.
    pub params: Params,
    /// The entry that takes the place of the embedding, of the head and of the final norm.
    pub embed: Option<usize>,
    pub head: Option<usize>,
    pub norm: Option<usize>,
}

/// Entries in the order in which they are made, called as in the adapter's file.
#[derive(Default)]
struct Listed {
    entries: Vec<Entry>,
}

impl Listed {
    fn add(&mut self, name: &str, shape: &[usize]) -> usize {
        let offset = self.entries.last().map_or(0, |e| e.range().end);
        let (rows, cols) = if let [r, c] = *shape { (r, c) } else { (1, shape.iter().product()) };
        let (name, shape) = (name.to_string(), shape.to_vec());
        self.entries.push(Entry { name, offset, rows, cols, shape, decay: false, turned: false });
        self.entries.len() - 1
    }
}

/// An adapter that was read and is not attached yet.
pub struct Prepared {
    params: Params,
    layers: Vec<Option<Adapter>>,
    embed: Option<usize>,
    head: Option<usize>,
    norm: Option<usize>,
}

impl Model {
    /// Loads the adapter in `path`, a folder or a LoRA in a GGUF file, beside the base; the number by which a pass chooses it.
    ///
    /// # Errors
    /// Those of [`Model::prepare`].
    pub fn attach(&mut self, path: &Path) -> Result<usize> {
        let prepared = self.prepare(path)?;
        Ok(self.install(prepared))
    }

    /// The slow part of [`Model::attach`], while the model is in use.
    ///
    /// # Errors
    /// [`Error::Weights`] or [`Error::File`] for an adapter that is not one of this model: the tensor and both shapes are
    /// named.
    pub fn prepare(&self, path: &Path) -> Result<Prepared> {
        let file = AdapterFile::open_for(path, self.spec.heads, self.spec.kv_heads)?;
        let mut listed = Listed::default();
        let mut layers = Vec::new();
        for layer in self.blocks.iter().flat_map(Block::layers) {
            let named = file.tensor_of(&layer.module, Part::A).zip(file.tensor_of(&layer.module, Part::B));
            layers.push(named.map(|(a, b)| {
                let r = file.config.rank_of(&layer.module);
                let (a, b) = (listed.add(a, &[r, layer.inn]), listed.add(b, &[layer.out, r]));
                Adapter { a, b, scale: file.config.scale_of(&layer.module), module: 0 }
            }));
        }
        let mut whole = |module: &str, shape: &[usize]| {
            let source = file.tensor_of(&format!("{module}.weight"), Part::Saved)?;
            Some(listed.add(source, shape))
        };
        let (vocab, hidden, names) = (self.spec.vocab, self.spec.hidden, self.spec.names);
        let embed = whole(names.embed, &[vocab, hidden]);
        let head = whole("lm_head", &[vocab, hidden]);
        // A layer norm has a shift as well, which is not looked for: an adapter with one is refused below.
        let norm = if let Norm::Rms(_) = self.norm { whole(names.norm, &[hidden]) } else { None };
        if let Some(odd) = file.entries.iter().find(|e| !listed.entries.iter().any(|known| known.name == e.name)) {
            let why = format!("belongs to no module of this {} that an adapter can change", self.spec.family);
            return Err(Error::weights(path, &odd.name, why));
        }
        let mut params = Params::new(listed.entries, self.dtype, &self.device)?;
        for i in 0..params.entries.len() {
            let e = &params.entries[i];
            let mut values = vec![0.0f32; e.rows * e.cols];
            file.tensors.expect(&e.name, &e.shape)?.read_f32(&mut values)?;
            params.set(i, &values)?;
        }
        params.refresh()?;
        Ok(Prepared { params, layers, embed, head, norm })
    }

    /// Attaches what [`Model::prepare`] of this model gave; the number by which a pass chooses it, which no other adapter ever
    /// has.
    pub fn install(&mut self, prepared: Prepared) -> usize {
        let Prepared { params, layers, embed, head, norm } = prepared;
        self.attached.push(Some(Attached { params, embed, head, norm }));
        for (layer, adapter) in self.blocks.iter_mut().flat_map(Block::layers_mut).zip(layers) {
            layer.attached.push(adapter);
        }
        self.attached.len() - 1
    }

    /// Takes an adapter away. Nothing happens if it is not there.
    pub fn detach(&mut self, i: usize) {
        if let Some(place) = self.attached.get_mut(i) {
            *place = None;
        }
    }

    /// How many adapters are attached.
    pub fn attached(&self) -> usize {
        self.attached.iter().flatten().count()
    }

    /// The adapter that a pass is to use, with its number.
    ///
    /// # Errors
    /// [`Error::Shape`] if it is not there.
    pub(super) fn adapter(&self, i: Option<usize>) -> Result<Option<(usize, &Attached)>> {
        let Some(i) = i else { return Ok(None) };
        match self.attached.get(i).and_then(Option::as_ref) {
            Some(attached) => Ok(Some((i, attached))),
            None => Err(Error::shape("adapter", format!("is number {i} of {} attached", self.attached()))),
        }
    }

    /// # Errors
    /// [`Error::Shape`] if no such adapter is attached.
    pub fn check_adapter(&self, i: Option<usize>) -> Result<()> {
        self.adapter(i).map(|_| ())
    }

    /// Whether the adapter takes the place of whole modules.
    pub(super) fn holds_modules(&self, i: usize) -> bool {
        let attached = self.attached.get(i).and_then(Option::as_ref);
        attached.is_some_and(|a| a.embed.is_some() || a.head.is_some() || a.norm.is_some())
    }
}
