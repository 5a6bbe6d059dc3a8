//! A model to be used: its context, and the adapters beside it.

use std::path::{Path, PathBuf};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::eval;
use crate::model::Model;
use crate::train::Inputs;

/// Names for the base without an adapter, unless an adapter is called so.
const BASE: [&str; 2] = ["base", "none"];

/// The adapters beside a base, by name.
pub(super) struct Adapters {
    /// In the order in which the model has them.
    names: Vec<String>,
    /// The one that answers; None: the base.
    pub chosen: Option<usize>,
}

/// Loads the base that `config` names, for sequences of up to `positions` tokens, with its adapter and `more` of them
/// beside it, unmerged. Of several in `adapter_name_or_path`, which LLaMA-Factory stacks, all but the last are merged. The
/// config's own answers first, else the first of `more`.
///
/// # Errors
/// Whatever is wrong with the model or an adapter; [`Error::Config`] for an adapter that is given twice.
pub(super) fn load(config: &Config, folder: &Path, more: &[PathBuf], positions: usize) -> Result<(Model, Adapters)> {
    let own = &config.model.adapter_name_or_path;
    let paths: Vec<&PathBuf> = own.last().into_iter().chain(more).collect();
    let names = names_of(&paths)?;
    let mut model = eval::load(config, folder, positions)?.model;
    for path in more {
        model.attach(path)?;
    }
    if own.len() > 1 {
        eprintln!("note: of `adapter_name_or_path`, all but the last are merged into the base");
    }
    let chosen = (!names.is_empty()).then_some(0);
    Ok((model, Adapters { names, chosen }))
}

/// Template and thinking mode travel with the adapter: they are used unless the config says otherwise.
///
/// # Errors
/// [`Error::File`] for what lies beside the adapter and cannot be read.
pub(super) fn travelling(config: &mut Config) -> Result<()> {
    let adapter = config.model.adapter_name_or_path.last().map(PathBuf::as_path);
    (config.data.template, config.data.enable_thinking) = Inputs::manner(config, adapter)?;
    Ok(())
}

impl Adapters {
    /// The chosen one's name, or "base".
    pub fn name(&self) -> &str {
        self.chosen.and_then(|i| self.names.get(i)).map_or(BASE[0], String::as_str)
    }

    /// Every name, the chosen one marked.
    pub fn list(&self) -> String {
        let all = self.names.iter().map(String::as_str).chain([BASE[0]]);
        let marked = |name: &str| if name == self.name() { format!("* {name}") } else { format!("  {name}") };
        all.map(marked).collect::<Vec<_>>().join("\n")
    }

    /// Chooses by name.
    ///
    /// # Errors
    /// A line that names what there is.
    pub fn choose(&mut self, name: &str) -> std::result::Result<(), String> {
        match self.names.iter().position(|n| n == name) {
            Some(i) => self.chosen = Some(i),
            None if BASE.contains(&name) => self.chosen = None,
            None => {
                let all: Vec<&str> = self.names.iter().map(String::as_str).chain([BASE[0]]).collect();
                return Err(format!("there is no adapter `{name}`; there are: {}", all.join(", ")));
            }
        }
        Ok(())
    }
}

/// Each path's last part, with as many of those before it as it takes to tell them apart.
fn names_of(paths: &[&PathBuf]) -> Result<Vec<String>> {
    let parts = |path: &Path| -> Vec<String> {
        let parts = path.components().filter(|c| matches!(c, std::path::Component::Normal(_)));
        parts.map(|c| c.as_os_str().to_string_lossy().into_owned()).collect()
    };
    let all: Vec<Vec<String>> = paths.iter().map(|p| parts(p)).collect();
    let tail = |i: usize, n: usize| all[i][all[i].len().saturating_sub(n)..].join("/");
    let mut names = Vec::new();
    for (i, path) in paths.iter().enumerate() {
        let longest = all.iter().map(Vec::len).max().unwrap_or(1).max(1);
        let alone = |n: &usize| (0..all.len()).all(|j| j == i || tail(j, *n) != tail(i, *n));
        match (1..=longest).find(alone) {
            Some(n) => names.push(tail(i, n)),
            None => return Err(Error::config("--adapter", format!("{} is given twice", path.display()))),
        }
    }
    Ok(names)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(paths: &[&str]) -> Result<Vec<String>> {
        let paths: Vec<PathBuf> = paths.iter().map(PathBuf::from).collect();
        names_of(&paths.iter().collect::<Vec<_>>())
    }

    #[test]
    fn adapters_are_named_by_their_folders() {
        assert_eq!(names(&["saves/a", "./saves/b/", "c.gguf"]).unwrap(), ["a", "b", "c.gguf"]);
        assert_eq!(names(&["x/lora", "y/lora", "z"]).unwrap(), ["x/lora", "y/lora", "z"]);
        assert_eq!(names(&["lora", "y/lora"]).unwrap(), ["lora", "y/lora"]);
        assert_eq!(names(&[]).unwrap(), Vec::<String>::new());
        let e = names(&["x/lora", "b", "./x/lora"]).unwrap_err().to_string();
        assert!(e.contains("twice") && e.contains("x/lora"), "{e}");
    }

    #[test]
    fn a_name_chooses_and_a_wrong_one_gets_the_list() {
        let mut a = Adapters { names: vec!["medical".into(), "law".into()], chosen: Some(0) };
        a.choose("law").unwrap();
        assert_eq!((a.chosen, a.name()), (Some(1), "law"));
        assert_eq!(a.list(), "  medical\n* law\n  base");
        let e = a.choose("lawn").unwrap_err();
        assert!(e.contains("`lawn`") && e.contains("medical, law, base"), "{e}");
        assert_eq!(a.chosen, Some(1));
        a.choose("none").unwrap();
        assert_eq!((a.chosen, a.name()), (None, "base"));
        a.names.push("none".into());
        a.choose("none").unwrap();
        assert_eq!(a.chosen, Some(2));
    }
}
