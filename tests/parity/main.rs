//! Against the reference programs: what transformers, PEFT, bitsandbytes and LLaMA-Factory computed, as kept in
//! `tests/golden` (its README says what each file holds).
//!
//! A limit is never what was seen plus some: where it stands, it is said what it follows from.

mod common;
mod models;
mod quantisation;
mod runs;
