//! What Rust and the kernels share: parameter structs and constants, made by bindgen from kernels/*.h.
//! Do not edit: change the header and run `make bindings`.
#![allow(missing_docs, non_camel_case_types)]
use half::bf16;

pub const QE_MAX_PARAM_BYTES: u32 = 4096;
pub const QE_MAX_SHARED_BYTES: u32 = 101376;
pub const QE_MAX_SHARED_BYTES_SM90: u32 = 232448;
pub const QE_WARP: u32 = 32;
pub const ADAMW_BLOCK: u32 = 256;
pub const ADAMW_PACK: u32 = 4;
pub const ADAMW_STATE_BLOCK: u32 = 256;
pub const ADAMW_TILE_8BIT: u32 = 2048;
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
pub const COLUMNS_BLOCK: u32 = 256;
pub const COLUMNS_PACK: u32 = 8;
pub const CONVERT_BLOCK: u32 = 256;
pub const CONVERT_PACK: u32 = 4;
pub const CROSS_ENTROPY_BLOCK: u32 = 512;
pub const EMBEDDING_BLOCK: u32 = 256;
pub const EMBEDDING_PACK: u32 = 8;
pub const EMBEDDING_STEPS: u32 = 4;
pub const GELU_BLOCK: u32 = 256;
pub const GELU_PACK: u32 = 8;
pub const GEMM_DROP_NONE: u32 = 0;
pub const GEMM_DROP_A: u32 = 1;
pub const GEMM_DROP_B: u32 = 2;
pub const GEMM_DROP_SECOND: u32 = 3;
pub const GEMM_MEMBERS: u32 = 3;
pub const GEMM_128_M: u32 = 128;
pub const GEMM_128_N: u32 = 128;
pub const GEMM_128_BLOCK: u32 = 256;
pub const GEMM_128_SHARED: u32 = 49152;
pub const GEMM_64_M: u32 = 64;
pub const GEMM_64_N: u32 = 64;
pub const GEMM_64_BLOCK: u32 = 128;
pub const GEMM_64_SHARED: u32 = 32768;
pub const GEMM_THIN_M: u32 = 32;
pub const GEMM_THIN_N: u32 = 32;
pub const GEMM_THIN_BLOCK: u32 = 256;
pub const GEMM_THIN_SHARED: u32 = 49152;
pub const GEMM_WIDE_M: u32 = 32;
pub const GEMM_WIDE_N: u32 = 128;
pub const GEMM_WIDE_BLOCK: u32 = 128;
pub const GEMM_WIDE_SHARED: u32 = 40960;
pub const GEMM_SUM_BLOCK: u32 = 256;
pub const GEMM_COLUMNS_BLOCK: u32 = 256;
pub const GEMM_COLUMNS_SHARED: u32 = 1024;
pub const NF4_BLOCK: u32 = 64;
pub const NF4_BLOCK2: u32 = 256;
pub const GEMM_NF4_128_SHARED: u32 = 42048;
pub const GEMM_NF4_64_SHARED: u32 = 25664;
pub const GEMM_SM90_M: u32 = 128;
pub const GEMM_SM90_BLOCK: u32 = 256;
pub const GEMM_SM90_128_SHARED: u32 = 131072;
pub const GEMM_SM90_256_SHARED: u32 = 196608;
pub const GGML_F16: u32 = 1;
pub const GGML_Q4_0: u32 = 2;
pub const GGML_Q4_1: u32 = 3;
pub const GGML_Q5_0: u32 = 6;
pub const GGML_Q5_1: u32 = 7;
pub const GGML_Q8_0: u32 = 8;
pub const GGML_Q2_K: u32 = 10;
pub const GGML_Q3_K: u32 = 11;
pub const GGML_Q4_K: u32 = 12;
pub const GGML_Q5_K: u32 = 13;
pub const GGML_Q6_K: u32 = 14;
pub const GGML_CHUNK: u32 = 32;
pub const GGML_SLACK: u32 = 16;
pub const GEMV_BLOCK: u32 = 256;
pub const GEMV_STEP: u32 = 128;
pub const GEMV_8_N: u32 = 16;
pub const GEMV_8_ROWS: u32 = 8;
pub const GEMV_8_SHARED: u32 = 5120;
pub const GEMV_NF4_8_SHARED: u32 = 6208;
pub const GEMV_32_N: u32 = 32;
pub const GEMV_32_ROWS: u32 = 32;
pub const GEMV_32_SHARED: u32 = 36864;
pub const GEMV_NF4_32_SHARED: u32 = 37952;
pub const GGML_BLOCK: u32 = 256;
pub const GGML_SHARED: u32 = 16384;
pub const GRAD_NORM_BLOCK: u32 = 256;
pub const GRAD_NORM_CHUNK: u32 = 16384;
pub const KV_WRITE_BLOCK: u32 = 128;
pub const LAYER_NORM_BLOCK: u32 = 256;
pub const LAYER_NORM_WARP: u32 = 1024;
pub const LAYER_NORM_SHARED: u32 = 32;
pub const LAYER_NORM_COLUMNS: u32 = 64;
pub const LAYER_NORM_SUMS: u32 = 2048;
pub const LORA_BWD_RANK: u32 = 32;
pub const LORA_BWD_RANKS: u32 = 16;
pub const LORA_BWD_COLUMNS: u32 = 256;
pub const LORA_BWD_ROWS: u32 = 256;
pub const LORA_BWD_BLOCK: u32 = 128;
pub const LORA_BWD_SHARED: u32 = 45056;
pub const LORA_BWD_SUM_BLOCK: u32 = 256;
pub const NF4_THREADS: u32 = 256;
pub const NF4_QUANTISE_TILE: u32 = 2048;
pub const NF4_DEQUANTISE_TILE: u32 = 8192;
pub const NF4_MEAN_LANES: u32 = 1024;
pub const NF4_ZERO: u32 = 7;
pub const NF4_TINY: f64 = 0.00000000000000000000000000000000000001;
pub const RMS_NORM_BLOCK: u32 = 256;
pub const RMS_NORM_WARP: u32 = 1024;
pub const RMS_NORM_SHARED: u32 = 32;
pub const RMS_NORM_COLUMNS: u32 = 64;
pub const RMS_NORM_SUMS: u32 = 2048;
pub const ROPE_BLOCK: u32 = 256;
pub const SAMPLE_BLOCK: u32 = 256;
pub const SAMPLE_CHUNK: u32 = 8192;
pub const SAMPLE_CANDIDATES: u32 = 1024;
pub const SAMPLE_DIGITS: u32 = 256;
pub const SAMPLE_FINE: u32 = 0;
pub const SAMPLE_STRANGE: u32 = 1;
pub const SAMPLE_MANY: u32 = 2;
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
pub struct AdamWUpdate8 {
    pub p: *mut f32,
    pub m: *mut ::std::os::raw::c_uchar,
    pub v: *mut ::std::os::raw::c_uchar,
    pub m_absmax: *mut f32,
    pub v_absmax: *mut f32,
    pub copy: *mut bf16,
    pub g: *const f32,
    pub m_code: *const f32,
    pub v_code: *const f32,
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
pub struct ColumnsCopy {
    pub to: *mut bf16,
    pub from: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_int,
    pub to_stride: ::std::os::raw::c_int,
    pub from_stride: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct ConvertF32Bf16 {
    pub y: *mut bf16,
    pub x: *const f32,
    pub n: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CrossEntropySmem {
    pub sums: [f64; 16usize],
    pub maxima: [f32; 16usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CrossEntropyLive {
    pub counts: *mut ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub chunk: ::std::os::raw::c_longlong,
    pub chunks: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CrossEntropyRows {
    pub loss: *mut f32,
    pub logits: *mut f32,
    pub targets: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub step: *const Step,
    pub rows: ::std::os::raw::c_longlong,
    pub pitch: ::std::os::raw::c_longlong,
    pub vocab: ::std::os::raw::c_int,
    pub gradient: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct CrossEntropySum {
    pub total: *mut f64,
    pub loss: *const f32,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbeddingSmem {
    pub found: [[::std::os::raw::c_uint; 8usize]; 4usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbeddingFwd {
    pub x: *mut bf16,
    pub table: *const bf16,
    pub ids: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub step: *const Step,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_int,
    pub module: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbeddingAdd {
    pub x: *mut bf16,
    pub table: *const bf16,
    pub ids: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbeddingBwd {
    pub dtable: *mut f32,
    pub dx: *const bf16,
    pub ids: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct EmbeddingScatter {
    pub x: *mut bf16,
    pub dx: *const bf16,
    pub ids: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GeluFwd {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_longlong,
    pub tanh: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GeluBwd {
    pub x: *mut bf16,
    pub dy: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_longlong,
    pub tanh: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Gemm {
    pub c: *mut ::std::os::raw::c_void,
    pub a: *const ::std::os::raw::c_void,
    pub b: *const ::std::os::raw::c_void,
    pub a2: *const ::std::os::raw::c_void,
    pub b2: *const ::std::os::raw::c_void,
    pub bias: *const ::std::os::raw::c_void,
    pub add: *const ::std::os::raw::c_void,
    pub partial: *mut f32,
    pub live: *const ::std::os::raw::c_uint,
    pub step: *const Step,
    pub m: ::std::os::raw::c_longlong,
    pub n: ::std::os::raw::c_longlong,
    pub k: ::std::os::raw::c_longlong,
    pub lda: ::std::os::raw::c_longlong,
    pub ldb: ::std::os::raw::c_longlong,
    pub ldc: ::std::os::raw::c_longlong,
    pub ldadd: ::std::os::raw::c_longlong,
    pub lda2: ::std::os::raw::c_longlong,
    pub ldb2: ::std::os::raw::c_longlong,
    pub split: ::std::os::raw::c_longlong,
    pub k2: ::std::os::raw::c_int,
    pub alpha: f32,
    pub c_f32: ::std::os::raw::c_int,
    pub accumulate: ::std::os::raw::c_int,
    pub dropout: ::std::os::raw::c_int,
    pub module: ::std::os::raw::c_uint,
    pub drop_below: ::std::os::raw::c_uint,
    pub keep: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GemmGroup {
    pub of: [Gemm; 3usize],
    pub ends: [::std::os::raw::c_uint; 3usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Nf4Blocks {
    pub packed: *const ::std::os::raw::c_uchar,
    pub absmax: *const f32,
    pub codes: *const ::std::os::raw::c_uchar,
    pub absmax2: *const f32,
    pub code2: *const f32,
    pub offset: *const f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GemmNf4 {
    pub g: GemmGroup,
    pub w: [Nf4Blocks; 3usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Gemv {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub x2: *const bf16,
    pub w2: *const bf16,
    pub bias: *const bf16,
    pub add: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub n: ::std::os::raw::c_longlong,
    pub k: ::std::os::raw::c_longlong,
    pub k2: ::std::os::raw::c_longlong,
    pub alpha: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GemvNf4 {
    pub g: Gemv,
    pub w: Nf4Blocks,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GemvGgml {
    pub g: Gemv,
    pub w: *const ::std::os::raw::c_uchar,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GgmlDequantise {
    pub y: *mut bf16,
    pub data: *const ::std::os::raw::c_uchar,
    pub count: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GradNormPartial {
    pub partial: *mut f64,
    pub g: *const f32,
    pub n: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct GradNormTotal {
    pub norm: *mut f64,
    pub partial: *const f64,
    pub chunks: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct KvWrite {
    pub cache_k: *mut bf16,
    pub cache_v: *mut bf16,
    pub k: *const bf16,
    pub v: *const bf16,
    pub at: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub cols: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LayerNormFwd {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub b: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub n: ::std::os::raw::c_int,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LayerNormBwd {
    pub dx: *mut bf16,
    pub stats: *mut f32,
    pub x: *const bf16,
    pub w: *const bf16,
    pub dy: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub n: ::std::os::raw::c_int,
    pub add: ::std::os::raw::c_int,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LayerNormWeight {
    pub dw: *mut f32,
    pub db: *mut f32,
    pub stats: *const f32,
    pub x: *const bf16,
    pub dy: *const bf16,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub n: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraBwd {
    pub q: *mut bf16,
    pub dy: *const bf16,
    pub b: *const bf16,
    pub p: *const bf16,
    pub db: *mut f32,
    pub q_parts: *mut f32,
    pub b_parts: *mut f32,
    pub out: ::std::os::raw::c_longlong,
    pub r: ::std::os::raw::c_int,
    pub scale: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct LoraBwdGroup {
    pub of: [LoraBwd; 3usize],
    pub ends: [::std::os::raw::c_uint; 3usize],
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Nf4Quantise {
    pub packed: *mut ::std::os::raw::c_uchar,
    pub absmax: *mut f32,
    pub x: *const bf16,
    pub x32: *const f32,
    pub n: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Nf4Mean {
    pub offset: *mut f32,
    pub absmax: *const f32,
    pub blocks: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Nf4QuantiseAbsmax {
    pub codes: *mut ::std::os::raw::c_uchar,
    pub absmax2: *mut f32,
    pub absmax: *const f32,
    pub offset: *const f32,
    pub code2: *const f32,
    pub blocks: ::std::os::raw::c_longlong,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Nf4Dequantise {
    pub y: *mut bf16,
    pub y32: *mut f32,
    pub w: Nf4Blocks,
    pub first: ::std::os::raw::c_longlong,
    pub count: ::std::os::raw::c_longlong,
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
pub struct RopeHeads {
    pub y: *mut bf16,
    pub x: *const bf16,
    pub w: *const bf16,
    pub heads: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RopeFwd {
    pub q: RopeHeads,
    pub k: RopeHeads,
    pub table: *const f32,
    pub positions: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub half: ::std::os::raw::c_int,
    pub shift: ::std::os::raw::c_int,
    pub sign: f32,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RopeHeadsGrad {
    pub dx: *mut bf16,
    pub dy: *mut bf16,
    pub rstd: *mut f32,
    pub x: *const bf16,
    pub w: *const bf16,
    pub heads: ::std::os::raw::c_int,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct RopeBwd {
    pub q: RopeHeadsGrad,
    pub k: RopeHeadsGrad,
    pub table: *const f32,
    pub positions: *const ::std::os::raw::c_uint,
    pub live: *const ::std::os::raw::c_uint,
    pub rows: ::std::os::raw::c_longlong,
    pub half: ::std::os::raw::c_int,
    pub shift: ::std::os::raw::c_int,
    pub eps: f32,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleSelect {
    pub bins: [::std::os::raw::c_uint; 256usize],
    pub digit: ::std::os::raw::c_uint,
    pub left: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleSplitSmem {
    pub x: [f32; 8448usize],
    pub select: SampleSelect,
    pub best: [::std::os::raw::c_ulonglong; 8usize],
    pub counts: [::std::os::raw::c_uint; 8usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleMergeSmem {
    pub select: SampleSelect,
    pub best: [::std::os::raw::c_ulonglong; 8usize],
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleMark {
    pub id: ::std::os::raw::c_uint,
    pub count: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleRow {
    pub logits: ::std::os::raw::c_ulonglong,
    pub repetition: f64,
    pub presence: f64,
    pub frequency: f64,
    pub marks: ::std::os::raw::c_ulonglong,
    pub marked: ::std::os::raw::c_uint,
    pub top_k: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SamplePart {
    pub best: ::std::os::raw::c_ulonglong,
    pub count: ::std::os::raw::c_uint,
    pub kept: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct SampleHead {
    pub max: f32,
    pub id: ::std::os::raw::c_uint,
    pub count: ::std::os::raw::c_uint,
    pub state: ::std::os::raw::c_uint,
}
#[repr(C)]
#[derive(Debug, Copy, Clone)]
pub struct Sample {
    pub heads: *mut SampleHead,
    pub ids: *mut ::std::os::raw::c_uint,
    pub logits: *mut f32,
    pub parts: *mut SamplePart,
    pub part_ids: *mut ::std::os::raw::c_uint,
    pub part_logits: *mut f32,
    pub rows: *const SampleRow,
    pub marks: *const SampleMark,
    pub vocab: ::std::os::raw::c_int,
    pub chunks: ::std::os::raw::c_int,
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
