//! format
pub mod atomic;
