//! What the settings train, by the names of modules, and what they may not name.

use super::{Builder, Options};
use crate::config::FinetuningType;
use crate::error::{Error, Result};
use crate::format::adapter::Part;

impl Builder<'_> {
    /// A name that matches no module is an error, not a setting that does nothing.
    pub(super) fn check_names(&self) -> Result<()> {
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
    pub(super) fn is_trained(&self, module: &str) -> bool {
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
    pub(super) fn saved_alone(&self, module: &str) -> bool {
        self.o.method.finetuning_type == FinetuningType::Lora && self.is_trained(module)
    }
}

/// What cannot be done with a GGUF file.
pub(super) fn check_gguf(o: &Options) -> Result<()> {
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
pub(super) fn matches_module(module: &str, name: &str) -> bool {
    module == name || module.strip_suffix(name).is_some_and(|rest| rest.ends_with('.'))
}

/// `lm_head.weight` -> `lm_head`.
fn module_of(tensor: &str) -> &str {
    tensor.rsplit_once('.').map_or(tensor, |(module, _)| module)
}
