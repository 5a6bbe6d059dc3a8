//! What Rust and the kernels share: parameter structs and constants, made by bindgen from kernels/*.h.
//! Do not edit: change the header and run `make bindings`.
#![allow(missing_docs, non_camel_case_types)]
use half::bf16;

pub const QE_MAX_PARAM_BYTES: u32 = 4096;
pub const QE_MAX_SHARED_BYTES: u32 = 101376;
pub const QE_WARP: u32 = 32;
pub const ATTENTION_TILE: u32 = 64;
pub const ATTENTION_BLOCK: u32 = 128;
pub const ATTENTION_QUERIES_32: u32 = 32;
pub const ATTENTION_QUERIES_64: u32 = 64;
pub const ATTENTION_QUERIES_80: u32 = 64;
pub const ATTENTION_QUERIES_96: u32 = 32;
pub const ATTENTION_QUERIES_128: u32 = 32;
pub const ATTENTION_QUERIES_256: u32 = 32;
pub const ATTENTION_DECODE_BLOCK: u32 = 128;
pub const ATTENTION_DECODE_KEYS: u32 = 256;
pub const ATTENTION_DECODE_HEADS: u32 = 16;
pub const RMS_NORM_BLOCK: u32 = 256;
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
pub struct AttentionFwd {
    pub o: *mut bf16,
    pub lse: *mut f32,
    pub q: *const bf16,
    pub k: *const bf16,
    pub v: *const bf16,
    pub spans: *const ::std::os::raw::c_uint,
    pub slopes: *const f32,
    pub heads: ::std::os::raw::c_int,
    pub kv_heads: ::std::os::raw::c_int,
    pub head_dim: ::std::os::raw::c_int,
    pub window: ::std::os::raw::c_int,
    pub scale: f32,
    pub softcap: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionBwd {
    pub dq: *mut bf16,
    pub dk: *mut bf16,
    pub dv: *mut bf16,
    pub delta: *mut f32,
    pub q: *const bf16,
    pub k: *const bf16,
    pub v: *const bf16,
    pub o: *const bf16,
    pub d_o: *const bf16,
    pub lse: *const f32,
    pub spans: *const ::std::os::raw::c_uint,
    pub slopes: *const f32,
    pub heads: ::std::os::raw::c_int,
    pub kv_heads: ::std::os::raw::c_int,
    pub head_dim: ::std::os::raw::c_int,
    pub window: ::std::os::raw::c_int,
    pub scale: f32,
    pub softcap: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AttentionDecode {
    pub o: *mut bf16,
    pub partial: *mut f32,
    pub q: *const bf16,
    pub k: *const bf16,
    pub v: *const bf16,
    pub pages: *const ::std::os::raw::c_uint,
    pub lengths: *const ::std::os::raw::c_uint,
    pub slopes: *const f32,
    pub sequences: ::std::os::raw::c_int,
    pub width: ::std::os::raw::c_int,
    pub page: ::std::os::raw::c_int,
    pub heads: ::std::os::raw::c_int,
    pub kv_heads: ::std::os::raw::c_int,
    pub head_dim: ::std::os::raw::c_int,
    pub window: ::std::os::raw::c_int,
    pub splits: ::std::os::raw::c_int,
    pub scale: f32,
    pub softcap: f32,
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
