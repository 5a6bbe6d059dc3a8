//! Attention of one long sequence, forward and both ways; and of a step of generation over pages of a cache.

use super::case::{Case, How};
use super::inputs::tensor;
use qlora_engine::ops::attention::{self, Attention, Paged, Scores};
use qlora_engine::tensor::{Index, Live};

/// Keys of a page of the cache.
const PAGE: usize = 16;

pub fn trained(model: &str, tokens: usize, heads: usize, kv_heads: usize, head_dim: usize, backward: bool) -> Case {
    let (t, width, kv) = (tokens as f64, (heads * head_dim) as f64, (kv_heads * head_dim) as f64);
    Case {
        name: format!("{model} attention {heads}/{kv_heads}x{head_dim} {}", if backward { "fwd + bwd" } else { "fwd" }),
        flops: t * (t + 1.0) / 2.0 * width * if backward { 14.0 } else { 4.0 },
        bytes: 2.0 * t * (2.0 * width + 2.0 * kv) * if backward { 3.0 } else { 1.0 },
        how: How::Graph,
        make: Box::new(move |device| {
            let q = tensor(tokens, heads * head_dim, 1, device)?;
            let (k, v) =
                (tensor(tokens, kv_heads * head_dim, 2, device)?, tensor(tokens, kv_heads * head_dim, 3, device)?);
            let spans = attention::spans(vec![0, tokens as u32], tokens, device)?;
            Ok(Box::new(move || {
                let a = Attention {
                    heads,
                    kv_heads,
                    head_dim,
                    cu_seqlens: &spans,
                    window: None,
                    scores: Scores::default(),
                };
                let (o, saved) = attention::fwd(&q, &k, &v, a)?;
                if !backward {
                    return Ok(vec![o]);
                }
                Ok(attention::bwd(saved, &q, &k, &v, &o, &q, a)?.into())
            }))
        }),
    }
}

/// One query each of `sequences`, all with `keys` keys: the bound is reading keys and values.
pub fn decoded(model: &str, sequences: usize, keys: usize, heads: usize, kv_heads: usize, head_dim: usize) -> Case {
    let (width, kv) = (heads * head_dim, kv_heads * head_dim);
    let pages = keys.div_ceil(PAGE);
    Case {
        name: format!("{model} attention {heads}/{kv_heads}x{head_dim} {sequences} rows of {keys} keys"),
        flops: 4.0 * (sequences * keys * width) as f64,
        bytes: 2.0 * (sequences * (2 * keys * kv + 2 * width)) as f64,
        how: How::Graph,
        make: Box::new(move |device| {
            let q = tensor(sequences, width, 1, device)?;
            let (k, v) =
                (tensor(sequences * pages * PAGE, kv, 2, device)?, tensor(sequences * pages * PAGE, kv, 3, device)?);
            let places = sequences * pages;
            let of = Index::new((0..places as u32).collect::<Vec<_>>(), places, None::<Live>, device)?;
            let lengths = Index::new(vec![keys as u32; sequences], sequences, None::<Live>, device)?;
            Ok(Box::new(move || {
                let a = Paged {
                    heads,
                    kv_heads,
                    head_dim,
                    window: None,
                    page: PAGE,
                    pages: &of,
                    lengths: &lengths,
                    scores: Scores::default(),
                };
                Ok(vec![attention::decode(&q, &k, &v, a)?])
            }))
        }),
    }
}
