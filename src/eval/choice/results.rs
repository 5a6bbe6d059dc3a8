//! What a benchmark gave: by category, by subject, and each answer.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;

use serde_json::{Map, Value};

use super::CHOICES;
use super::tables::Subject;
use crate::error::{Error, Result};
use crate::format::atomic::write_atomic;

/// Right ones among the questions of a group.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Tally {
    name: String,
    right: usize,
    all: usize,
}

impl Tally {
    /// Per cent.
    fn accuracy(&self) -> f64 {
        100.0 * self.right as f64 / self.all as f64
    }
}

/// The outcome of a benchmark.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Results {
    subjects: Vec<Tally>,
    categories: Vec<Tally>,
    /// The choices made, by subject.
    chosen: Vec<(String, Vec<usize>)>,
}

/// The order of LLaMA-Factory; others follow as they come.
const CATEGORIES: [&str; 4] = ["STEM", "Social Sciences", "Humanities", "Other"];

impl Results {
    pub(super) fn add(&mut self, subject: &Subject, chosen: Vec<usize>) {
        let right = subject.items.iter().zip(&chosen).filter(|(item, choice)| item.answer == **choice).count();
        let all = chosen.len();
        self.subjects.push(Tally { name: subject.name.clone(), right, all });
        if let Some(category) = &subject.category {
            match self.categories.iter_mut().find(|tally| tally.name == *category) {
                Some(tally) => {
                    tally.right += right;
                    tally.all += all;
                }
                None => self.categories.push(Tally { name: category.clone(), right, all }),
            }
        }
        self.chosen.push((subject.id.clone(), chosen));
    }

    /// Right answers of all, in per cent; over questions, not over subjects.
    pub fn accuracy(&self) -> f64 {
        self.average().accuracy()
    }

    fn average(&self) -> Tally {
        let sum = |of: fn(&Tally) -> usize| self.subjects.iter().map(of).sum();
        Tally { name: "Average".into(), right: sum(|t| t.right), all: sum(|t| t.all) }
    }

    /// A line each: the average and the categories as LLaMA-Factory prints them, and each subject after an empty line.
    pub fn log(&self) -> String {
        let mut text = String::new();
        let mut categories: Vec<&Tally> = self.categories.iter().collect();
        let place = |t: &&Tally| CATEGORIES.iter().position(|c| *c == t.name).unwrap_or(CATEGORIES.len());
        categories.sort_by_key(place);
        for tally in [&self.average()].into_iter().chain(categories).filter(|t| t.all > 0) {
            let _ = writeln!(text, "{:>15}: {:.2}", tally.name, tally.accuracy());
        }
        text.push('\n');
        for tally in self.subjects.iter().filter(|t| t.all > 0) {
            let _ = writeln!(text, "{}: {:.2} ({} of {})", tally.name, tally.accuracy(), tally.right, tally.all);
        }
        text
    }

    /// Writes results.json, each answer by subject and number, and results.log into the new folder `dir`.
    ///
    /// # Errors
    /// [`Error::File`] if the folder is there already or a file cannot be written.
    pub(super) fn write(&self, dir: &Path) -> Result<()> {
        if let Some(parent) = dir.parent() {
            fs::create_dir_all(parent).map_err(|e| Error::io(parent, "cannot create", &e))?;
        }
        fs::create_dir(dir).map_err(|e| Error::io(dir, "cannot create", &e))?;
        let of = |chosen: &[usize]| -> Map<String, Value> {
            chosen.iter().enumerate().map(|(i, &choice)| (i.to_string(), CHOICES[choice].into())).collect()
        };
        let all: Map<String, Value> = self.chosen.iter().map(|(id, chosen)| (id.clone(), of(chosen).into())).collect();
        write_atomic(&dir.join("results.json"), format!("{:#}", Value::Object(all)).as_bytes())?;
        write_atomic(&dir.join("results.log"), self.log().as_bytes())
    }
}
