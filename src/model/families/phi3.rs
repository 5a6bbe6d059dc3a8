//! Phi-3: q, k and v from one layer, gate and up from another, no biases.

use super::{HfConfig, Result, Spec};
use crate::model::names::{self, MlpLayers, Names, QkvLayers};

const NAMES: Names = Names {
    qkv: QkvLayers::Fused("self_attn.qkv_proj"),
    mlp: MlpLayers::GatedFused("mlp.gate_up_proj"),
    ..names::LLAMA
};

pub(super) fn spec(c: &HfConfig, common: Spec) -> Result<Spec> {
    let windows = c.windows.clone();
    Ok(Spec { windows, qkv_bias: false, o_bias: false, mlp_bias: false, names: NAMES, ..common })
}
