use super::{Attention, Paged, Scores, table_len};
use crate::device::{Kernel, Launcher, abi, kernels};
use crate::error::Result;
use crate::ops::{bf16_only, no_kernel, on_device, size};
use crate::tensor::{Index, Tensor};

const TILE: usize = abi::ATTENTION_TILE as usize;

/// The kernels of one size of tiles.
struct Instance {
    /// Columns of a tile, at least head_dim.
    dim: usize,
    /// Queries that `bwd_kv` holds at a time.
    queries: u32,
    fwd: Kernel<abi::AttentionFwd>,
    bwd_q: Kernel<abi::AttentionBwd>,
    bwd_kv: Kernel<abi::AttentionBwd>,
    decode: Kernel<abi::AttentionDecode>,
}

macro_rules! instance {
    ($dim:literal, $queries:ident, $fwd:ident, $bwd_q:ident, $bwd_kv:ident, $decode:ident) => {
        Instance {
            dim: $dim,
            queries: abi::$queries,
            fwd: kernels::$fwd,
            bwd_q: kernels::$bwd_q,
            bwd_kv: kernels::$bwd_kv,
            decode: kernels::$decode,
        }
    };
}

impl Instance {
    /// The smallest that holds `head_dim`.
    #[rustfmt::skip]
    fn of(head_dim: usize) -> Result<Self> {
        Ok(match head_dim {
            ..=32 => instance!(32, ATTENTION_QUERIES_32, ATTENTION_FWD_32, ATTENTION_BWD_Q_32, ATTENTION_BWD_KV_32, ATTENTION_DECODE_SPLIT_32),
            33..=64 => instance!(64, ATTENTION_QUERIES_64, ATTENTION_FWD_64, ATTENTION_BWD_Q_64, ATTENTION_BWD_KV_64, ATTENTION_DECODE_SPLIT_64),
            65..=80 => instance!(80, ATTENTION_QUERIES_80, ATTENTION_FWD_80, ATTENTION_BWD_Q_80, ATTENTION_BWD_KV_80, ATTENTION_DECODE_SPLIT_80),
            81..=96 => instance!(96, ATTENTION_QUERIES_96, ATTENTION_FWD_96, ATTENTION_BWD_Q_96, ATTENTION_BWD_KV_96, ATTENTION_DECODE_SPLIT_96),
            97..=128 => instance!(128, ATTENTION_QUERIES_128, ATTENTION_FWD_128, ATTENTION_BWD_Q_128, ATTENTION_BWD_KV_128, ATTENTION_DECODE_SPLIT_128),
            129..=256 => instance!(256, ATTENTION_QUERIES_256, ATTENTION_FWD_256, ATTENTION_BWD_Q_256, ATTENTION_BWD_KV_256, ATTENTION_DECODE_SPLIT_256),
            _ => return Err(no_kernel("attention", &format!("head_dim {head_dim}, over 256"))),
        })
    }

    /// Whether Q and d_o have tiles of their own, and two warps share the scores of `bwd_kv`.
    fn wide(&self) -> bool {
        self.dim > 128
    }

    /// Bytes of `rows` rows of tiles.
    fn tiles(&self, rows: usize) -> usize {
        rows * self.dim * size_of::<half::bf16>()
    }
}

/// The (rows + 1, 2) table that kernels read.
fn spans(q: &Tensor, a: &Attention) -> Result<*const u32> {
    if a.cu_seqlens.rows() != table_len(q.rows()) {
        return Err(no_kernel("attention", "cu_seqlens not made by `attention::spans` for as many rows"));
    }
    Ok(a.cu_seqlens.ptr())
}

/// A window over all rows is one that fits into an int.
fn window(window: Option<usize>, rows: usize) -> Result<i32> {
    size("attention window", window.map_or(0, |w| w.min(rows)))
}

fn slopes(scores: Scores) -> *const f32 {
    scores.slopes.map_or(std::ptr::null(), Tensor::ptr)
}

/// 0: none.
fn soft_cap(scores: Scores) -> f32 {
    scores.soft_cap.map_or(0.0, |cap| cap as f32)
}

fn scale(head_dim: usize) -> f32 {
    (1.0 / (head_dim as f64).sqrt()) as f32
}

/// Enqueues `attention_fwd_D`; formula, shapes and launches: kernels/attention.h. Shapes were checked by [`super::fwd`].
pub(super) fn fwd(
    l: &Launcher,
    o: &mut Tensor,
    lse: &mut Tensor,
    [q, k, v]: [&Tensor; 3],
    a: &Attention,
) -> Result<()> {
    bf16_only("attention q", q)?;
    let i = Instance::of(a.head_dim)?;
    let p = abi::AttentionFwd {
        o: o.ptr_mut(),
        lse: lse.ptr_mut(),
        q: q.ptr(),
        k: k.ptr(),
        v: v.ptr(),
        spans: spans(q, a)?,
        slopes: slopes(a.scores),
        heads: size("attention heads", a.heads)?,
        kv_heads: size("attention kv heads", a.kv_heads)?,
        head_dim: size("attention head_dim", a.head_dim)?,
        window: window(a.window, q.rows())?,
        scale: scale(a.head_dim),
        softcap: soft_cap(a.scores),
    };
    let shared = i.tiles(if i.wide() { 3 * TILE } else { 2 * TILE });
    let grid = q.rows().div_ceil(TILE);
    l.kernel(i.fwd).grid3(a.heads, grid, 1).block(abi::ATTENTION_BLOCK).shared(shared).launch(&p)
}

/// Enqueues `attention_bwd_delta`, which fills `delta`, then `attention_bwd_q_D` and `attention_bwd_kv_D`. Shapes were
/// checked by [`super::bwd`].
pub(super) fn bwd(
    l: &Launcher,
    [dq, dk, dv]: [&mut Tensor; 3],
    delta: Option<&mut Tensor>,
    lse: &Tensor,
    [q, k, v, o, d_o]: [&Tensor; 5],
    a: &Attention,
) -> Result<()> {
    bf16_only("attention q", q)?;
    let i = Instance::of(a.head_dim)?;
    let p = abi::AttentionBwd {
        dq: dq.ptr_mut(),
        dk: dk.ptr_mut(),
        dv: dv.ptr_mut(),
        delta: delta.map_or(std::ptr::null_mut(), Tensor::ptr_mut),
        q: q.ptr(),
        k: k.ptr(),
        v: v.ptr(),
        o: o.ptr(),
        d_o: d_o.ptr(),
        lse: lse.ptr(),
        spans: spans(q, a)?,
        slopes: slopes(a.scores),
        heads: size("attention heads", a.heads)?,
        kv_heads: size("attention kv heads", a.kv_heads)?,
        head_dim: size("attention head_dim", a.head_dim)?,
        window: window(a.window, q.rows())?,
        scale: scale(a.head_dim),
        softcap: soft_cap(a.scores),
    };
    let (block, grid) = (abi::ATTENTION_BLOCK, q.rows().div_ceil(TILE));
    let warps = (block / abi::QE_WARP) as usize;
    let shared_q = i.tiles(if i.wide() { 3 * TILE } else { 2 * TILE });
    let queries = i.queries as usize;
    // and lse and delta of the queries
    let shared_kv = i.tiles(2 * TILE + 2 * queries) + 2 * queries * size_of::<f32>();
    let block_kv = if i.wide() { 2 * block } else { block };
    l.kernel(kernels::ATTENTION_BWD_DELTA).grid((q.rows() * a.heads).div_ceil(warps)).block(block).launch(&p)?;
    l.kernel(i.bwd_q).grid3(a.heads, grid, 1).block(block).shared(shared_q).launch(&p)?;
    l.kernel(i.bwd_kv).grid3(a.kv_heads, grid, 1).block(block_kv).shared(shared_kv).launch(&p)
}

/// Splits of as many keys as `width` pages hold.
pub(super) fn splits(a: &Paged, width: usize) -> usize {
    (width * a.page).div_ceil(abi::ATTENTION_DECODE_KEYS as usize)
}

/// Enqueues `attention_decode_split_D`, which fills `partial`, then `attention_decode_merge`; kernels/attention_decode.h.
/// Shapes were checked by [`super::decode`].
pub(super) fn decode(
    l: &Launcher,
    o: &mut Tensor,
    partial: Option<&mut Tensor>,
    [q, k, v]: [&Tensor; 3],
    a: &Paged,
    width: usize,
) -> Result<()> {
    bf16_only("attention q", q)?;
    let (i, splits) = (Instance::of(a.head_dim)?, splits(a, width));
    let p = abi::AttentionDecode {
        o: o.ptr_mut(),
        partial: partial.map_or(std::ptr::null_mut(), Tensor::ptr_mut),
        q: q.ptr(),
        k: k.ptr(),
        v: v.ptr(),
        pages: a.pages.ptr(),
        lengths: a.lengths.ptr(),
        slopes: slopes(a.scores),
        sequences: size("attention sequences", q.rows())?,
        width: size("attention pages", width)?,
        page: size("attention page", a.page)?,
        heads: size("attention heads", a.heads)?,
        kv_heads: size("attention kv heads", a.kv_heads)?,
        head_dim: size("attention head_dim", a.head_dim)?,
        window: window(a.window, width * a.page)?,
        splits: size("attention splits", splits)?,
        scale: scale(a.head_dim),
        softcap: soft_cap(a.scores),
    };
    let block = abi::ATTENTION_DECODE_BLOCK;
    let shared = block as usize * (2 * i.dim + size_of::<f32>());
    let parts = (a.heads / a.kv_heads).div_ceil(abi::ATTENTION_DECODE_HEADS as usize);
    l.kernel(i.decode).grid3(splits, a.kv_heads * parts, q.rows()).block(block).shared(shared).launch(&p)?;
    let warps = (block / abi::QE_WARP) as usize;
    l.kernel(kernels::ATTENTION_DECODE_MERGE).grid((q.rows() * a.heads).div_ceil(warps)).block(block).launch(&p)
}

/// Enqueues `kv_write`; kernels/kv_write.h. Shapes were checked by [`super::store`].
pub(super) fn store(l: &Launcher, [k, v]: [&Tensor; 2], rows: &Index, cache: [&mut Tensor; 2]) -> Result<()> {
    bf16_only("attention k", k)?;
    let [cache_k, cache_v] = cache;
    let of_index = rows.live_rows().map_or(std::ptr::null(), |live| live.0 as *const u32);
    let p = abi::KvWrite {
        cache_k: cache_k.ptr_mut(),
        cache_v: cache_v.ptr_mut(),
        k: k.ptr(),
        v: v.ptr(),
        at: on_device("attention rows", rows)?,
        live: if k.live().is_null() { of_index } else { k.live() },
        rows: size("attention rows", k.rows())?,
        cols: size("attention width", k.cols())?,
    };
    let warps = (abi::KV_WRITE_BLOCK / abi::QE_WARP) as usize;
    l.kernel(kernels::KV_WRITE).grid(k.rows().div_ceil(warps)).block(abi::KV_WRITE_BLOCK).launch(&p)
}
