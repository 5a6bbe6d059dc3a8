//! Who may import whom, who may print, end the process or be unsafe: read from the source itself.

use std::fs;
use std::path::Path;

/// The layers from the lowest to the highest. A module may name those of earlier lines and itself; modules of one line
/// do not know each other.
const LAYERS: [&[&str]; 15] = [
    &["error"],
    &["config"],
    &["format"],
    &["data"],
    &["device"],
    &["tensor"],
    &["quant"],
    &["ops"],
    &["model"],
    &["train", "infer"],
    &["eval", "export"],
    &["serve"],
    &["cli"],
    &["lib"],
    &["main"],
];

/// What `lib.rs` re-exports or a macro puts at the crate's root, and the layer it belongs to.
const AT_ROOT: [(&str, &str); 4] =
    [("Error", "error"), ("Result", "error"), ("Config", "config"), ("by_dtype", "tensor")];

#[test]
fn the_source_keeps_the_layers() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let ops = folders(&src.join("ops"));
    assert!(ops.len() >= 8, "the ops were not found: {ops:?}");
    let mut files = Vec::new();
    collect(&src, "", &mut files);
    assert!(files.len() > 80, "only {} files were found", files.len());
    let found: Vec<String> =
        files.iter().flat_map(|path| violations(path, &fs::read_to_string(src.join(path)).unwrap(), &ops)).collect();
    assert!(found.is_empty(), "{}", found.join("\n"));
}

#[test]
fn each_violation_is_caught() {
    let ops = ["linear".to_string(), "rope".to_string()];
    let caught = |path: &str, text: &str| violations(path, text, &ops);
    let bad = [
        ("data/batch.rs", "use crate::train::plan;", "`train`"),
        ("config/mod.rs", "use crate::{error::Error, model::{self, Spec}};", "`model`"),
        ("train/plan.rs", "fn f() { crate::infer::generate() }", "`infer`"),
        ("format/mod.rs", "use super::cli::say;", "`cli`"),
        ("data/template/mod.rs", "use super::super::ops;", "`ops`"),
        ("data/template/mod.rs", "mod tests { use super::super::super::ops; }", "`ops`"),
        ("error.rs", "use crate::Config;", "`config`"),
        ("data/mod.rs", "use crate::unheard_of::Thing;", "`unheard_of`"),
        ("ops/linear/cpu.rs", "use crate::ops::rope;", "another op, `rope`"),
        ("ops/linear/mod.rs", "use super::rope::Table;", "another op, `rope`"),
        ("ops/linear/cpu.rs", "use super::super::rope;", "another op, `rope`"),
        ("model/block.rs", "fn f() { println!(\"x\") }", "prints"),
        ("train/trainer.rs", "fn f() { eprint!(\"x\") }", "prints"),
        ("ops/mod.rs", "let mut o = std::io::stdout();", "prints"),
        ("train/trainer.rs", "fn f() { std::process::exit(1) }", "ends the process"),
        ("tensor.rs", "fn f() { unsafe { g() } }", "unsafe"),
        ("format/safetensors.rs", "unsafe fn f() {}", "unsafe"),
        ("device/cuda.rs", "use cudarc::driver;", "cudarc"),
    ];
    for (path, text, what) in bad {
        let found = caught(path, text);
        assert!(found.len() == 1 && found[0].contains(what) && found[0].contains(path), "{path}: {text}: {found:?}");
    }
    let good = [
        ("train/plan.rs", "use crate::{config::Config, model::{self, eval}};\nuse super::engine::policy;"),
        ("ops/linear/cpu.rs", "use crate::ops::linear::fwd; use super::super::Slot; use crate::tensor::Tensor;"),
        ("data/batch.rs", "// use crate::train;\nlet a = \"crate::train println!(unsafe)\"; let b = 'x';"),
        ("data/batch.rs", "let a = r#\"a \" crate::train\"#; let b = '\"'; let c = '\\''; fn f<'a>(x: &'a str) {}"),
        ("data/batch.rs", "/* crate::train /* unsafe */ println!() */"),
        ("device/pool.rs", "unsafe { f() }"),
        ("format/mmap.rs", "unsafe { f() }"),
        ("cli/mod.rs", "println!(); std::process::exit(1); use crate::train;"),
        ("train/log.rs", "io::stdout()"),
        ("train/log.rs", "mod tests { fn f() {} use super::super::state; use super::super::log; }"),
        ("device/driver.rs", "use cudarc::driver;"),
        ("model/load.rs", "#![forbid(unsafe_code)] mycrate::train();"),
    ];
    for (path, text) in good {
        assert_eq!(caught(path, text), Vec::<String>::new(), "{path}: {text}");
    }
    // A line number leads to the place.
    assert!(caught("tensor.rs", "\n\nuse crate::ops;")[0].starts_with("src/tensor.rs:3:"));
}

/// What is wrong with the file at `path` (below src), a line each. `ops` are the folders of src/ops.
fn violations(path: &str, text: &str, ops: &[String]) -> Vec<String> {
    let code = code_only(text);
    let module = module_of(path);
    let own = module.first().map_or("lib", String::as_str);
    let mut found = Vec::new();
    let mut wrong = |at: usize, what: String| {
        let line = code[..at].matches('\n').count() + 1;
        found.push(format!("src/{path}:{line}: {what}"));
    };
    for (at, named) in paths(&code, &module) {
        let first = named[0].as_str();
        let layer = AT_ROOT.iter().find(|(name, _)| *name == first).map_or(first, |(_, layer)| layer);
        match (rank(own), rank(layer)) {
            _ if own == layer => {}
            (Some(own), Some(other)) if other < own => {}
            _ => wrong(at, format!("`{own}` must not import `{layer}`")),
        }
        let other_op = named.get(1).filter(|op| first == "ops" && ops.contains(op));
        if let (Some(op), "ops", Some(own_op)) = (other_op, own, module.get(1).filter(|op| ops.contains(op)))
            && op != own_op
        {
            wrong(at, format!("op `{own_op}` imports another op, `{op}`"));
        }
    }
    let mut forbid = |words: &[&str], allowed: &[&str], what: &str| {
        if allowed.iter().any(|a| path == *a || a.ends_with('/') && path.starts_with(a)) {
            return;
        }
        for word in words {
            for at in occurrences(&code, word) {
                wrong(at, format!("{what}: {word}"));
            }
        }
    };
    let prints = ["println!", "eprintln!", "print!", "eprint!", "dbg!", "stdout()", "stderr()"];
    forbid(&prints, &["cli/", "train/log.rs"], "only the command line prints");
    forbid(&["process::exit", "process::abort"], &["cli/"], "only the command line ends the process");
    forbid(&["unsafe"], &["device/", "format/mmap.rs"], "unsafe code belongs elsewhere");
    forbid(&["cudarc"], &["device/driver.rs"], "only device/driver.rs names the driver's crate");
    // A group `{self, Thing}` names its module more than once.
    found.dedup();
    found
}

fn rank(layer: &str) -> Option<usize> {
    LAYERS.iter().position(|names| names.contains(&layer))
}

/// `ops/linear/cpu.rs` -> [ops, linear, cpu]; `ops/mod.rs` -> [ops]; `lib.rs` -> [lib].
fn module_of(path: &str) -> Vec<String> {
    let path = path.trim_end_matches(".rs").trim_end_matches("/mod");
    path.split('/').map(str::to_string).collect()
}

/// Every path in `code` that starts at the crate's root, by `crate::` or by enough `super::`, with its position.
fn paths(code: &str, module: &[String]) -> Vec<(usize, Vec<String>)> {
    let mut found = Vec::new();
    for at in occurrences(code, "crate::") {
        expand(&code[at + "crate::".len()..], &[], at, &mut found);
    }
    for at in occurrences(code, "super::").into_iter().filter(|&at| !code[..at].ends_with("super::")) {
        let mut rest = &code[at..];
        let mut depth = module.len() + inline_modules(&code[..at]);
        while let Some(after) = rest.strip_prefix("super::") {
            (rest, depth) = (after, depth.saturating_sub(1));
        }
        // What still lies within this file is its own affair.
        if depth <= module.len() {
            expand(rest, &module[..depth], at, &mut found);
        }
    }
    found
}

/// How many `mod name { ... }` are open at the end of `before`.
fn inline_modules(before: &str) -> usize {
    let mut open = Vec::new();
    for (at, c) in before.char_indices() {
        match c {
            '{' => open.push(before[..at].split_whitespace().rev().nth(1) == Some("mod")),
            '}' => _ = open.pop(),
            _ => {}
        }
    }
    open.into_iter().filter(|&is_module| is_module).count()
}

/// The paths that `rest` begins with, a group `{a, b::c}` taken apart, each behind `prefix`.
fn expand(rest: &str, prefix: &[String], at: usize, found: &mut Vec<(usize, Vec<String>)>) {
    let rest = rest.trim_start();
    if let Some(group) = rest.strip_prefix('{') {
        let (mut depth, mut start) = (0, 0);
        for (i, c) in group.char_indices() {
            match c {
                '{' => depth += 1,
                '}' if depth > 0 => depth -= 1,
                ',' | '}' if depth == 0 => {
                    expand(&group[start..i], prefix, at, found);
                    start = i + 1;
                    if c == '}' {
                        break;
                    }
                }
                _ => {}
            }
        }
        return;
    }
    let end = rest.find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(rest.len());
    let (name, after) = rest.split_at(end);
    if name.is_empty() {
        return;
    }
    let named: Vec<String> = prefix.iter().cloned().chain([name.to_string()]).collect();
    match after.strip_prefix("::") {
        Some(after) if named.len() < 2 => {
            let before = found.len();
            expand(after, &named, at, found);
            if found.len() == before {
                found.push((at, named));
            }
        }
        _ => found.push((at, named)),
    }
}

/// Where `word` stands, not as a part of a longer name.
fn occurrences(code: &str, word: &str) -> Vec<usize> {
    let part = |c: char| c.is_alphanumeric() || c == '_';
    let alone = |&at: &usize| {
        let after = code[at + word.len()..].chars().next();
        let ends_open = !word.ends_with(part);
        !code[..at].ends_with(part) && (ends_open || !after.is_some_and(part))
    };
    code.match_indices(word).map(|(at, _)| at).filter(alone).collect()
}

/// `text` without comments and without what stands in strings; line breaks stay where they are.
fn code_only(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut rest = text;
    // Skips `n` bytes of `rest`, keeping their line breaks.
    fn skip<'a>(out: &mut String, rest: &'a str, n: usize) -> &'a str {
        out.extend(rest[..n].chars().filter(|c| *c == '\n'));
        &rest[n..]
    }
    while let Some(c) = rest.chars().next() {
        let in_name = out.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        if rest.starts_with("//") {
            rest = skip(&mut out, rest, rest.find('\n').unwrap_or(rest.len()));
        } else if rest.starts_with("/*") {
            let (mut depth, mut n) = (0, 0);
            loop {
                let tail = &rest[n..];
                match () {
                    () if tail.is_empty() => break,
                    () if tail.starts_with("/*") => (depth, n) = (depth + 1, n + 2),
                    () if tail.starts_with("*/") => (depth, n) = (depth - 1, n + 2),
                    () => n += tail.chars().next().map_or(1, char::len_utf8),
                }
                if depth == 0 {
                    break;
                }
            }
            rest = skip(&mut out, rest, n);
        } else if let Some(hashes) = raw_string(rest).filter(|_| !in_name) {
            let open = rest.find('"').unwrap_or(0) + 1;
            let close = format!("\"{}", "#".repeat(hashes));
            let n = rest[open..].find(&close).map_or(rest.len(), |n| open + n + close.len());
            rest = skip(&mut out, rest, n);
        } else if c == '"' {
            let mut escaped = true; // the opening quote itself
            let end = rest.char_indices().find(|&(_, c)| {
                let closes = c == '"' && !escaped;
                escaped = !escaped && c == '\\';
                closes
            });
            rest = skip(&mut out, rest, end.map_or(rest.len(), |(n, _)| n + 1));
        } else if let Some(n) = char_literal(rest) {
            rest = skip(&mut out, rest, n);
        } else {
            out.push(c);
            rest = &rest[c.len_utf8()..];
        }
    }
    out
}

/// Number of `#` of the raw string that `rest` begins with.
fn raw_string(rest: &str) -> Option<usize> {
    let after = rest.strip_prefix("br").or_else(|| rest.strip_prefix('r'))?;
    let hashes = after.bytes().take_while(|&b| b == b'#').count();
    after[hashes..].starts_with('"').then_some(hashes)
}

/// Length of the character literal that `rest` begins with; a lifetime is none.
fn char_literal(rest: &str) -> Option<usize> {
    let mut chars = rest.char_indices();
    if chars.next()?.1 != '\'' {
        return None;
    }
    match chars.next()?.1 {
        '\\' => rest[3..].find('\'').map(|n| n + 4),
        _ => chars.next().filter(|&(_, c)| c == '\'').map(|(n, _)| n + 1),
    }
}

/// The .rs files below `dir`, as paths from src.
fn collect(dir: &Path, prefix: &str, files: &mut Vec<String>) {
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = format!("{prefix}{}", path.file_name().unwrap().to_str().unwrap());
        if path.is_dir() {
            collect(&path, &format!("{name}/"), files);
        } else if name.ends_with(".rs") {
            files.push(name);
        }
    }
    files.sort();
}

fn folders(dir: &Path) -> Vec<String> {
    let all = fs::read_dir(dir).unwrap().map(|e| e.unwrap().path()).filter(|p| p.is_dir());
    all.map(|p| p.file_name().unwrap().to_str().unwrap().to_string()).collect()
}
