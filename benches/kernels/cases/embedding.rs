//! Rows of the embedding by token id: the bound is memory.

use super::case::{Case, How};
use super::inputs::tensor;
use qlora_engine::ops::{Slot, embedding};
use qlora_engine::tensor::{Index, Live};

/// Rows of the table for each that is gathered. Others are not touched: a whole vocabulary for every set of inputs would only
/// take memory, up to a gigabyte each.
const ROWS_A_TOKEN: usize = 8;

pub fn case(model: &str, tokens: usize, hidden: usize, vocab: usize) -> Case {
    let rows = vocab.min(ROWS_A_TOKEN * tokens);
    let elements = (tokens * hidden) as f64;
    Case {
        name: format!("{model} embedding {rows}x{hidden}"),
        flops: 0.0,
        bytes: 4.0 * elements + 4.0 * tokens as f64,
        how: How::Graph,
        make: Box::new(move |device| {
            let table = tensor(rows, hidden, 1, device)?;
            // Far apart, and in no order.
            let ids: Vec<u32> = (0..tokens).map(|i| (i * 4099 % rows) as u32).collect();
            let ids = Index::new(ids, tokens, None::<Live>, device)?;
            Ok(Box::new(move || Ok(vec![embedding::fwd(Slot::whole(&table), &ids, None)?])))
        }),
    }
}
