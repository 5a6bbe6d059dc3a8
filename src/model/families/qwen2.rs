//! Qwen2 and Qwen2.5: biases on q, k and v.

use super::{HfConfig, Result, Spec};

pub(super) fn spec(c: &HfConfig, common: Spec) -> Result<Spec> {
    Ok(Spec { windows: c.windows.clone(), qkv_bias: true, o_bias: false, mlp_bias: false, ..common })
}
