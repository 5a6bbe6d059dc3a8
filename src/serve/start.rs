//! From a config to a model that can be served.

use std::path::Path;

use super::adapters::Registry;
use super::app::App;
use super::budget::fitting;
use super::engine::Engine;
use super::options::Options;
use super::voice::Voices;
use super::worker::{Limits, Worker};
use crate::config::Config;
use crate::error::Result;
use crate::eval;
use crate::format::HfConfig;
use crate::model::PAGE;
use crate::train::{Control, Event, Inputs, plan, target};

/// Of a long context so much is kept for each sequence of the batch; those that need more find it where others need less.
const USUAL: usize = 2048;

/// Loads the base that `config` names with its adapter and those of `options`.
///
/// # Errors
/// Whatever is wrong with model, adapters, tokenizer or template; [`Error::Config`](crate::Error::Config) for two models of one name;
/// [`Error::Memory`](crate::Error::Memory) if the cache does not fit.
pub fn open(config: &Config, options: Options) -> Result<App> {
    let (folder, _, _) = Inputs::model(config, &mut |_: &Event<'_>| Control::Continue)?;
    let name = options.model_name.clone().unwrap_or_else(|| last_part(Path::new(&config.model.model_name_or_path)));
    let registry = Registry::new(&name, Voices::new(config, &folder), options.adapters_dir.as_deref())?;
    // With `rope_scaling` there is no bound, but what the config is used for has one.
    let answer = config.generate.max_length.unwrap_or(config.generate.max_new_tokens);
    let most = match plan::context(config, &folder)? {
        usize::MAX => config.data.cutoff_len.saturating_add(answer),
        most => most,
    };
    let cache = options.cache_tokens.map(|n| n.div_ceil(PAGE) * PAGE);
    let wanted = cache.unwrap_or_else(|| options.max_batch.saturating_mul(most.min(USUAL)));
    // No sequence is longer than all that is kept.
    let context = most.min(wanted);

    let loaded = eval::load(config, &folder, context)?;
    let mut model = loaded.model;
    if config.model.adapter_name_or_path.len() > 1 {
        log::warn!("of `adapter_name_or_path`, all but the last are merged into the base");
    }
    if let (Some(path), Some(adapter)) = (config.model.adapter_name_or_path.last(), loaded.adapter) {
        registry.add(&last_part(path), path, adapter)?;
    }
    for (name, path) in &options.adapters {
        let adapter = model.attach(path)?;
        registry.add(name, path, adapter)?;
    }
    let hf = HfConfig::open(&folder)?;
    let cache_tokens = match cache {
        Some(asked) => asked,
        None => wanted.min(fitting(config, &target::pick(config)?.1, &model)?),
    };
    let limits = Limits { batch: options.max_batch, cache_tokens, queue: options.max_queue };
    let worker = Worker::start(model, limits)?;
    let (context, generate) = (worker.longest(), config.generate.clone());
    Ok(App::new(options, Engine::Worker(worker), registry, generate, (context, hf.vocab_size)))
}

/// A folder's name.
pub(crate) fn last_part(path: &Path) -> String {
    let name = path.file_name().or_else(|| path.components().next_back().map(|c| c.as_os_str()));
    name.map(|n| n.to_string_lossy().into_owned()).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn folders_name_what_is_in_them() {
        for (path, name) in
            [("saves/medical", "medical"), ("./a/b/", "b"), ("Qwen/Qwen3-4B", "Qwen3-4B"), ("x.gguf", "x.gguf")]
        {
            assert_eq!(last_part(Path::new(path)), name);
        }
    }
}
