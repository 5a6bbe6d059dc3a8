//! Ids of llama.cpp's own tokenizer tests, which are not part of this repository: for each `NAME.gguf` of a folder,
//! the texts of `NAME.gguf.inp` must give the ids of `NAME.gguf.out`.
//!
//! ```sh
//! git clone --depth 1 https://github.com/ggml-org/llama.cpp
//! cargo run --release --example vocab -- llama.cpp/models
//! ```
//!
//! Ends with 1 if any id differs. Files of other kinds of tokenizers are named and passed over.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::{env, fs};

use qlora_engine::data::tokenizer::Tokenizer;
use qlora_engine::format::gguf::Gguf;

fn main() -> ExitCode {
    let Some(dir) = env::args().nth(1) else {
        eprintln!("usage: vocab FOLDER");
        return ExitCode::FAILURE;
    };
    let mut files: Vec<PathBuf> = fs::read_dir(&dir)
        .map(|d| d.filter_map(|e| Some(e.ok()?.path())).filter(|p| p.extension().is_some_and(|e| e == "gguf")).collect())
        .unwrap_or_default();
    files.sort();
    let mut wrong = usize::from(files.is_empty());
    for file in &files {
        match compare(file) {
            Ok((texts, differ)) => {
                wrong += differ;
                println!("{}: {differ} of {texts} texts differ", file.display());
            }
            Err(e) => println!("{e}"),
        }
    }
    if wrong == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE }
}

/// (texts, how many of them differ)
fn compare(file: &Path) -> Result<(usize, usize), String> {
    let gguf = Gguf::open(file).map_err(|e| e.to_string())?;
    let tokenizer = Tokenizer::from_gguf(gguf.metadata(), false).map_err(|e| e.to_string())?;
    let beside = |end: &str| fs::read_to_string(format!("{}{end}", file.display())).map_err(|e| e.to_string());
    let (texts, want) = (beside(".inp")?, beside(".out")?);
    const BETWEEN: &str = "\n__ggml_vocab_test__\n";
    let texts: Vec<&str> = texts.strip_suffix(BETWEEN).unwrap_or(&texts).split(BETWEEN).collect();
    let want: Vec<&str> = want.lines().collect();
    let mut differ = texts.len().abs_diff(want.len());
    for (text, want) in texts.iter().zip(&want) {
        let got = tokenizer.encode(text).map_err(|e| e.to_string())?;
        let want: Vec<u32> = want.split_whitespace().filter_map(|id| id.parse().ok()).collect();
        if got != want {
            differ += 1;
            println!("{text:?}\n  want {want:?}\n  got  {got:?}");
        }
    }
    Ok((texts.len(), differ))
}
