//! The keys of an exported model.

use crate::config::run::{ExportConfig, ExportFormat, OutType};
use crate::config::settings::Settings;
use crate::error::Result;

/// Bytes of the unit of `export_size`, as in transformers' "5GB".
const GB: u64 = 1_000_000_000;

pub(super) fn read(s: &Settings) -> Result<ExportConfig> {
    let formats = [("hf", ExportFormat::Hf), ("gguf", ExportFormat::Gguf), ("gguf-lora", ExportFormat::GgufLora)];
    let format = s.choice("export_format", ExportFormat::Hf, &formats, &[])?;
    let outtype = s.maybe_choice("export_outtype", &OutType::NAMES, &[])?;
    match (format, outtype) {
        (ExportFormat::Hf, Some(_)) => {
            return Err(s.conflict("export_outtype", "is only for `export_format: gguf` and `gguf-lora`"));
        }
        (ExportFormat::GgufLora, Some(t)) if ![OutType::F32, OutType::F16, OutType::Bf16].contains(&t) => {
            return Err(s.conflict("export_outtype", "of an adapter is f32, f16 or bf16"));
        }
        _ => {}
    }
    let gigabytes = u32::try_from(s.count("export_size", 5, 1)?).map_err(|_| s.bad("export_size", "a number of GB"))?;
    Ok(ExportConfig {
        dir: s.path("export_dir")?,
        shard_bytes: u64::from(gigabytes) * GB,
        format,
        outtype,
        dequantized: s.flag("export_dequantized", false)?,
    })
}
