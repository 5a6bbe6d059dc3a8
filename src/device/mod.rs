//! device
pub mod gemm;
pub mod pool;
