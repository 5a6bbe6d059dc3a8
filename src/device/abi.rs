//! What Rust and the kernels share: parameter structs and constants, made by bindgen from kernels/*.h.
//! Do not edit: change the header and run `make bindings`.
#![allow(missing_docs, non_camel_case_types)]
use half::bf16;

pub const QE_MAX_PARAM_BYTES: u32 = 4096;
pub const QE_MAX_SHARED_BYTES: u32 = 101376;
pub const QE_WARP: u32 = 32;
pub const RMS_NORM_BLOCK: u32 = 256;
pub const PROBE_THREADS: u32 = 128;
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Step {
    pub tokens: ::std::os::raw::c_uint,
    pub sequences: ::std::os::raw::c_uint,
    pub loss_rows: ::std::os::raw::c_uint,
    pub micro_step: ::std::os::raw::c_uint,
    pub seed: ::std::os::raw::c_ulonglong,
    pub scale: f32,
    pub noise: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RmsNormFwd {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub per_row: ::std::os::raw::c_int,
    pub n: ::std::os::raw::c_int,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RmsNormBwd {
    pub dx: *mut bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub dy: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub per_row: ::std::os::raw::c_int,
    pub n: ::std::os::raw::c_int,
    pub add: ::std::os::raw::c_int,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RmsNormWeight {
    pub dw: *mut f32,
    pub x: *const bf16,
    pub dy: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub per_row: ::std::os::raw::c_int,
    pub n: ::std::os::raw::c_int,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Probe {
    pub out: *mut f32,
    pub in_: *const f32,
    pub n: ::std::os::raw::c_longlong,
    pub which: ::std::os::raw::c_int,
}
