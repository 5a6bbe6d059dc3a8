//! What a next token is chosen from: rows of logits, penalised, of which only the largest or the k largest are given back. On
//! kernels few numbers travel in place of a vocabulary.

pub(crate) mod cpu;
mod launch;

use crate::by_dtype;
use crate::device::{Exec, abi};
use crate::error::{Error, Result};
use crate::ops::no_kernel;
use crate::tensor::{Float, Real, Tensor};

/// Candidates of a row at most.
pub const CANDIDATES: usize = abi::SAMPLE_CANDIDATES as usize;

/// What changes the logits of tokens that occurred already.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Penalties {
    /// Divides positive logits and multiplies negative ones, of every marked token; 1 is off. Above 0.
    pub repetition: f64,
    /// Taken from the logits of tokens in the answer, once; 0 is off.
    pub presence: f64,
    /// Taken from the logits of tokens in the answer, for each time they stand there; 0 is off.
    pub frequency: f64,
}

/// A token that occurred.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Mark {
    pub id: u32,
    /// How often it stands in the answer; 0: in the prompt alone.
    pub count: u32,
}

/// What is asked about a row.
#[derive(Debug, Clone, Copy)]
pub struct Ask<'a> {
    pub penalties: Penalties,
    /// Each token at most once.
    pub marks: &'a [Mark],
    /// 0: the largest logit alone; at most [`CANDIDATES`], and below the vocabulary.
    pub top_k: usize,
}

/// A row that is asked about.
#[derive(Clone, Copy)]
pub struct Row<'a> {
    /// (any, vocabulary)
    pub logits: &'a Tensor,
    pub row: usize,
    pub ask: Ask<'a>,
}

/// What is known of a row, in f32, after the penalties.
#[derive(Debug, Clone, PartialEq)]
pub struct Picked {
    /// The largest logit, and the first token that has it.
    pub max: f32,
    pub id: u32,
    /// Tokens whose logit is at least the `top_k`-th largest, ascending; none if none were asked for.
    pub candidates: Vec<(u32, f32)>,
}

/// Answers for each of `rows`, which are of one device. None: a logit is not finite, before or after the penalties, or more than
/// [`CANDIDATES`] tokens equal the `top_k`-th; the row is to be read as a whole then. In a plan all are None.
///
/// # Errors
/// [`Error::Shape`] for a row that is not there, vocabularies or devices that differ, a marked token beyond the vocabulary, and a
/// `top_k` out of bounds.
pub fn pick(rows: &[Row]) -> Result<Vec<Option<Picked>>> {
    let Some(first) = rows.first() else { return Ok(Vec::new()) };
    rows.iter().try_for_each(|r| check(r, first.logits))?;
    match first.logits.device().exec() {
        Exec::Cpu(_) => rows.iter().map(on_cpu).collect(),
        Exec::Kernels(l) => launch::pick(l, rows),
        Exec::Plan(_) => Ok(vec![None; rows.len()]),
    }
}

fn on_cpu(r: &Row) -> Result<Option<Picked>> {
    let n = r.logits.cols();
    let mut logits: Vec<f32> = by_dtype!(r.logits.dtype(), T => {
        r.logits.slice::<T>()[r.row * n..][..n].iter().map(|x| x.acc().f64() as f32).collect()
    });
    Ok(cpu::pick(&mut logits, &r.ask))
}

fn check(r: &Row, first: &Tensor) -> Result<()> {
    let vocab = r.logits.cols();
    if vocab == 0 || u32::try_from(vocab).is_err() || r.row >= r.logits.rows() {
        let why = format!("are ({}, {vocab}), row {} is asked about", r.logits.rows(), r.row);
        return Err(Error::shape("logits", why));
    }
    if vocab != first.cols() || r.logits.dtype() != first.dtype() || !r.logits.device().same(first.device()) {
        return Err(no_kernel("logits", "rows of different vocabularies, dtypes or devices at once"));
    }
    if r.ask.top_k > CANDIDATES.min(vocab - 1) {
        let why = format!("is {}; at most {} are picked", r.ask.top_k, CANDIDATES.min(vocab - 1));
        return Err(Error::shape("top_k", why));
    }
    match r.ask.marks.iter().find(|m| m.id as usize >= vocab) {
        Some(m) => Err(Error::shape("marks", format!("hold token {}, the vocabulary has {vocab}", m.id))),
        None => Ok(()),
    }
}
