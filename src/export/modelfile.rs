//! The `Modelfile` that makes a model of a GGUF file in Ollama: `ollama create NAME -f Modelfile`.

use crate::data::template::Template;
use crate::data::tokenizer::Tokenizer;
use crate::format::HfConfig;

/// Ollama reserves memory for the whole context.
const MOST_CONTEXT: usize = 8192;

/// Its text. `from` is a file beside it or a model's name, `adapter` a file beside it.
pub fn text(
    from: &str,
    adapter: Option<&str>,
    template: &Template,
    thinking: Option<bool>,
    tokenizer: &Tokenizer,
    config: &HfConfig,
) -> String {
    let mut out = format!("FROM {from}\n");
    if let Some(adapter) = adapter {
        out += &format!("ADAPTER {adapter}\n");
    }
    match template.ollama(tokenizer, thinking) {
        Some(t) => out += &format!("TEMPLATE {}\n", quoted(&t)),
        None => out += "# The chat template in the GGUF file is used.\n",
    }
    if !template.default_system.is_empty() {
        out += &format!("SYSTEM {}\n", quoted(&template.default_system));
    }
    let mut stops: Vec<&str> = template.stop_words.iter().map(String::as_str).chain(tokenizer.eos()).collect();
    let mut seen = Vec::new();
    stops.retain(|s| {
        !seen.contains(s) && {
            seen.push(*s);
            true
        }
    });
    for stop in stops {
        out += &format!("PARAMETER stop {stop:?}\n");
    }
    out + &format!("PARAMETER num_ctx {}\n", config.max_position_embeddings.min(MOST_CONTEXT))
}

/// Between three quotes, which may hold anything but three quotes.
fn quoted(text: &str) -> String {
    format!("\"\"\"{}\"\"\"", text.replace("\"\"\"", "\"\" \""))
}
