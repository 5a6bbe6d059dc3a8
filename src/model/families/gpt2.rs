//! GPT-2: learned positions, layer norms, biases everywhere, a plain MLP with GELU, and matrices stored as (in, out).

use super::{HfConfig, Result, Spec};
use crate::error::Error;
use crate::model::names::{MlpLayers, Names, QkvLayers};
use crate::model::spec::{NormKind, Position};
use crate::ops::gelu::Gelu;

pub(super) const NAME: &str = "gpt2";

const NAMES: Names = Names {
    embed: "transformer.wte",
    layers: "transformer.h",
    norm: "transformer.ln_f",
    norm1: "ln_1",
    qkv: QkvLayers::Fused("attn.c_attn"),
    o: "attn.c_proj",
    norm2: "ln_2",
    mlp: MlpLayers::Plain("mlp.c_fc", Gelu::Tanh),
    down: "mlp.c_proj",
    prefix: "transformer.",
};

/// The table of positions, which a sequence must fit into.
pub(super) fn position(c: &HfConfig, longest: usize) -> Result<Position> {
    let rows = c.max_position_embeddings;
    if longest > rows {
        let why = format!("lets sequences of {longest} tokens through; this model has learned {rows} positions");
        return Err(Error::config("cutoff_len", format!("{why}: set it to at most {rows}")));
    }
    Ok(Position::Learned { module: "transformer.wpe", rows })
}

pub(super) fn spec(c: &HfConfig, common: Spec) -> Result<Spec> {
    let form = match c.hidden_act.as_str() {
        "gelu" => Gelu::Exact,
        _ => Gelu::Tanh,
    };
    let names = Names { mlp: MlpLayers::Plain("mlp.c_fc", form), ..NAMES };
    Ok(Spec { norm: NormKind::Layer, qkv_bias: true, o_bias: true, mlp_bias: true, names, transposed: true, ..common })
}
