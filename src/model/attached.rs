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

impl Model {
    /// Loads the adapter in `path`, a folder or a LoRA in a GGUF file, beside the base; the number by which a pass chooses it.
    ///
    /// # Errors
    /// [`Error::Weights`] or [`Error::File`] for an adapter that is not one of this model: the tensor and both shapes are
    /// named.
    pub fn attach(&mut self, path: &Path) -> Result<usize> {
        let file = AdapterFile::open_for(path, self.spec.heads, self.spec.kv_heads)?;
        let mut listed = Listed::default();
        let mut adapters = Vec::new();
        for layer in self.blocks.iter().flat_map(Block::layers) {
            let named = file.tensor_of(&layer.module, Part::A).zip(file.tensor_of(&layer.module, Part::B));
            adapters.push(named.map(|(a, b)| {
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
        for (layer, adapter) in self.blocks.iter_mut().flat_map(Block::layers_mut).zip(adapters) {
            layer.attached.push(adapter);
        }
        self.attached.push(Attached { params, embed, head, norm });
        Ok(self.attached.len() - 1)
    }

    /// How many adapters are attached.
    pub fn attached(&self) -> usize {
        self.attached.len()
    }
}
