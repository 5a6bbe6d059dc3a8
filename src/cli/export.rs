//! `export`: writes what was trained in a form that others read.

use std::io::{IsTerminal, Write};

use super::say;
use crate::config::{Config, ExportFormat};
use crate::error::{Error, Result};
use crate::export::{self, Job, verify};
use crate::train::{Control, Event, Inputs};

/// Runs the command on a config that passed `validate_for`.
///
/// # Errors
/// Those of [`export::export`] and [`verify::read_back`]; then nothing was written.
pub fn run(config: Config) -> Result<()> {
    let (base, tokenizer, template) = Inputs::model(&config, &mut |_: &Event<'_>| Control::Continue)?;
    if base.is_file() && config.export.format != ExportFormat::GgufLora {
        let why =
            "names a GGUF file, into which nothing is merged; `export_format: gguf-lora` writes an adapter for it";
        return Err(Error::config("model_name_or_path", why));
    }
    let job = Job { config: &config, base: &base, tokenizer: &tokenizer, template: &template };
    let shown = std::io::stderr().is_terminal();
    let mut progress = |done: usize, total: usize| {
        if shown {
            eprint!("\rtensor {done} of {total}{}", if done == total { "\n" } else { "" });
            let _ = std::io::stderr().flush();
        }
    };
    let what = match config.export.format {
        ExportFormat::GgufLora => "its numbers",
        _ => "its logits",
    };
    let dir = export::export(&job, &mut progress, &mut |made| {
        let worst = verify::read_back(&job, made)?;
        say(&format!("read back: {what} differ from those of base and adapter by at most {worst:.3e}\n"));
        Ok(())
    })?;
    say(&format!("done: the result is in {}\n", dir.display()));
    Ok(())
}
