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
pub const RMS_NORM_WARP: u32 = 1024;
pub const RMS_NORM_SHARED: u32 = 32;
pub const RMS_NORM_COLUMNS: u32 = 64;
pub const RMS_NORM_SUMS: u32 = 2048;
pub const ROPE_BLOCK: u32 = 256;
pub const SWIGLU_BLOCK: u32 = 256;
pub const SWIGLU_PACK: u32 = 8;
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
pub struct AdamWStep {
    pub max_norm: f64,
    pub beta1: f32,
    pub beta2: f32,
    pub rest1: f32,
    pub rest2: f32,
    pub step_size: f32,
    pub root2: f32,
    pub shrink: f32,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct AdamWUpdate {
    pub p: *mut f32,
    pub m: *mut f32,
    pub v: *mut f32,
    pub copy: *mut bf16,
    pub g: *const f32,
    pub step: *const AdamWStep,
    pub norm: *const f64,
    pub loss: *const f64,
    pub ends: *const ::std::os::raw::c_ulonglong,
    pub n: ::std::os::raw::c_longlong,
    pub groups: ::std::os::raw::c_int,
    pub decays: ::std::os::raw::c_int,
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
    pub rstd: *mut f32,
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
    pub rstd: *const f32,
    pub x: *const bf16,
    pub dy: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub per_row: ::std::os::raw::c_int,
    pub n: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RopeFwd {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub table: *const f32,
    pub positions: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub heads: ::std::os::raw::c_int,
    pub half: ::std::os::raw::c_int,
    pub shift: ::std::os::raw::c_int,
    pub sign: f32,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RopeBwd {
    pub dx: *mut bf16,
    pub dy: *mut bf16,
    pub rstd: *mut f32,
    pub x: *const bf16,
    pub w: *const bf16,
    pub table: *const f32,
    pub positions: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub heads: ::std::os::raw::c_int,
    pub half: ::std::os::raw::c_int,
    pub shift: ::std::os::raw::c_int,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SwigluFwd {
    pub h: *mut bf16,
    pub gate: *const bf16,
    pub up: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SwigluBwd {
    pub gate: *mut bf16,
    pub up: *mut bf16,
    pub dh: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Probe {
    pub out: *mut f32,
    pub in_: *const f32,
    pub n: ::std::os::raw::c_longlong,
    pub which: ::std::os::raw::c_int,
}
