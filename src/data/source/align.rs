//! One data set's rows in the common form.

use super::{Aligned, DatasetReport};
use crate::config::Stage;
use crate::data::convert::{convert, guess};
use crate::data::read::{Row, Rows, rows};
use crate::data::registry::{DatasetSpec, Format, Formatting};
use crate::error::{Error, Result};

/// Reads and converts a data set's rows, counting those skipped. The first error ends it.
pub(super) struct Aligner {
    spec: DatasetSpec,
    stage: Stage,
    rows: Rows,
    format: Option<Format>,
    /// Columns expected that no row has had yet.
    unseen: Vec<String>,
    /// Columns of the first row.
    columns: Vec<String>,
    report: DatasetReport,
    /// Rows after which a column that none of them has is an error. (In JSON a row may leave columns out.)
    patience: usize,
}

impl Aligner {
    pub(super) fn new(spec: &DatasetSpec, stage: Stage, patience: usize) -> Self {
        Self {
            rows: rows(spec.files.clone(), spec.kind),
            spec: spec.clone(),
            stage,
            format: None,
            unseen: Vec::new(),
            columns: Vec::new(),
            report: DatasetReport { name: spec.name.clone(), ..DatasetReport::default() },
            patience,
        }
    }

    pub(super) fn report(self) -> DatasetReport {
        self.report
    }

    fn error(&self, why: String) -> Error {
        Error::Dataset { name: self.spec.name.clone(), why }
    }

    /// Refuses columns that no row read so far has.
    pub(super) fn check_columns(&self) -> Result<()> {
        let Some(column) = self.unseen.first() else { return Ok(()) };
        let has = self.columns.iter().map(|column| format!("`{column}`")).collect::<Vec<_>>().join(", ");
        Err(self.error(format!("has no column `{column}`; it has {has}")))
    }

    /// Fixes the format by the first row.
    fn start(&mut self, row: &Row) -> Result<()> {
        let format = match &self.spec.format {
            Some(format) => format.clone(),
            None => guess(row)?,
        };
        self.unseen = format.expected.clone();
        if self.stage == Stage::Sft && format.formatting == Formatting::Alpaca {
            match &format.columns.response {
                Some(response) if !self.unseen.contains(response) => self.unseen.push(response.clone()),
                Some(_) => {}
                None => {
                    return Err(self.error("names no `response` column, which stage sft needs (stage pt does not)".into()));
                }
            }
        }
        self.columns = row.columns.keys().cloned().collect();
        self.format = Some(format);
        Ok(())
    }

    fn align(&mut self, row: Row) -> Result<Aligned> {
        if self.format.is_none() {
            self.start(&row)?;
        }
        let Some(format) = &self.format else { return Ok(None) };
        self.report.rows += 1;
        self.unseen.retain(|column| !row.columns.contains_key(column));
        if self.report.rows == self.patience {
            self.check_columns()?;
        }
        let required = match format.formatting {
            Formatting::Alpaca => &format.columns.prompt,
            _ => &format.columns.messages,
        };
        // Named as a missing column of the data set, rather than as a malformed row, while no row had it.
        if required.as_ref().is_some_and(|column| self.unseen.contains(column)) {
            self.check_columns()?;
        }
        match convert(&row, format, self.stage)? {
            Ok(record) => Ok(Some(record)),
            Err(skip) => {
                let count = self.report.skipped.entry(skip.reason).or_insert(0);
                *count += 1;
                if *count == 1 {
                    log::warn!("{}: row {}: skipped: {}", row.file.display(), row.number, skip.detail);
                }
                Ok(None)
            }
        }
    }
}

impl Iterator for Aligner {
    type Item = Result<Aligned>;

    fn next(&mut self) -> Option<Result<Aligned>> {
        let row = self.rows.next()?;
        Some(row.and_then(|row| self.align(row)))
    }
}
