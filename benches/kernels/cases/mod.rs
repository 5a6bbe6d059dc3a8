//! Every case, a file per group of kernels.

mod attention;
pub mod case;
mod embedding;
mod head;
pub mod inputs;
mod linear;
pub mod measure;
mod nf4;
mod optimizer;
mod rope;
mod rows;
mod sample;

use case::Case;

/// Sizes beside those of a layer.
#[derive(Clone, Copy)]
pub struct Sizes {
    /// Of a micro-batch.
    pub tokens: usize,
    /// Rows that reach the head.
    pub labelled: usize,
    /// Keys of a sequence that is being answered.
    pub keys: usize,
    /// Of the model: how many adapters the optimizer has.
    pub blocks: usize,
}

/// A layer: (model, hidden, MLP, heads, kv heads, head_dim, vocabulary).
pub type Layer = (&'static str, usize, usize, usize, usize, usize, usize);

pub fn of_layer((model, hidden, mlp, heads, kv_heads, head_dim, vocab): Layer, s: Sizes) -> Vec<Case> {
    let mut all = rows::cases(model, s.tokens, hidden, mlp);
    all.push(embedding::case(model, s.tokens, hidden, vocab));
    let turned = rope::Heads { tokens: s.tokens, heads, kv_heads, head_dim };
    all.push(rope::alone(model, turned));
    all.extend([false, true].map(|backward| rope::with_norm(model, turned, backward)));
    all.extend(trained((model, hidden, mlp, heads, kv_heads, head_dim, vocab), s.tokens));
    all.extend([false, true].map(|backward| linear::bare_f16(model, s.tokens, mlp, hidden, backward)));
    all.push(head::case(model, s.labelled, hidden, vocab));
    all.push(nf4::dequantise(model, mlp, hidden));
    all.push(nf4::quantise(model, mlp, hidden));
    all.extend([1, 16].map(|rows| sample::case(model, rows, vocab)));
    for rows in [1, 8] {
        for nf4 in [true, false] {
            all.push(linear::decoded(model, rows, mlp, hidden, nf4));
        }
        all.push(attention::decoded(model, rows, s.keys, heads, kv_heads, head_dim));
    }
    // A and B of the seven layers of a block: q and o, k and v, gate and up, down.
    let (width, kv) = (heads * head_dim, kv_heads * head_dim);
    let sides = 2 * (width + hidden) + 2 * (kv + hidden) + 3 * (mlp + hidden);
    all.push(optimizer::case(model, s.blocks * linear::RANK * sides));
    all
}

/// Attention and the layers with an adapter, as they are trained.
fn trained((model, hidden, mlp, heads, kv_heads, head_dim, _): Layer, tokens: usize) -> Vec<Case> {
    let mut all = Vec::new();
    for backward in [false, true] {
        all.push(attention::trained(model, tokens, heads, kv_heads, head_dim, backward));
        for nf4 in [true, false] {
            all.push(linear::trained(model, tokens, mlp, hidden, nf4, backward));
        }
    }
    all
}

/// The same with more tokens, which the names say.
pub fn of_many_tokens(layer: Layer, tokens: usize) -> Vec<Case> {
    let mut all = trained(layer, tokens);
    let named = format!("{}@{tokens}", layer.0);
    all.iter_mut().for_each(|case| case.name = case.name.replacen(layer.0, &named, 1));
    all
}
