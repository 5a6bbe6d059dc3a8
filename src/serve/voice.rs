//! How an adapter is talked to: template, thinking mode and tokenizer, as it was trained.

use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};

use crate::config::Config;
use crate::data::template::Template;
use crate::data::tokenizer::Tokenizer;
use crate::error::Result;
use crate::train::{Control, Event, Inputs};

/// One way of talking. Adapters that were trained alike share it.
pub(super) struct Voice {
    pub tokenizer: Arc<Tokenizer>,
    pub template: Template,
    /// Unless a request says otherwise.
    pub thinking: Option<bool>,
    /// Tokens that end an answer.
    pub stops: Vec<u32>,
}

/// A template's name and the thinking mode.
type Key = (Option<String>, Option<bool>);

/// All voices over one base.
pub(super) struct Voices {
    /// Its model is a folder or file that is there.
    config: Config,
    made: Mutex<Vec<(Key, Arc<Voice>)>>,
}

impl Voices {
    /// For the base in `folder`, talked to as `config` says.
    pub fn new(config: &Config, folder: &Path) -> Voices {
        let mut config = config.clone();
        config.model.model_name_or_path = folder.to_string_lossy().into_owned();
        Voices { config, made: Mutex::default() }
    }

    /// The base's; with an adapter's path that adapter's, whose template and thinking mode count unless the config says
    /// otherwise.
    ///
    /// # Errors
    /// Whatever is wrong with tokenizer or template, or with what lies beside the adapter.
    pub fn of(&self, adapter: Option<&Path>) -> Result<Arc<Voice>> {
        let key = Inputs::manner(&self.config, adapter)?;
        let mut made = self.made.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some((_, voice)) = made.iter().find(|(k, _)| *k == key) {
            return Ok(voice.clone());
        }
        let mut config = self.config.clone();
        (config.data.template, config.data.enable_thinking) = key.clone();
        let (_, tokenizer, template) = Inputs::model(&config, &mut |_: &Event<'_>| Control::Continue)?;
        let stops = template.stop_ids(&tokenizer);
        let voice = Arc::new(Voice { tokenizer: Arc::new(tokenizer), template, thinking: key.1, stops });
        made.push((key, voice.clone()));
        Ok(voice)
    }
}
