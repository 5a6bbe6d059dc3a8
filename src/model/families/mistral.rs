//! Mistral: every layer sees a sliding window, where the config has one.

use super::{HfConfig, Result, Spec};

pub(super) fn spec(c: &HfConfig, common: Spec) -> Result<Spec> {
    Ok(Spec { windows: c.windows.clone(), qkv_bias: false, o_bias: false, mlp_bias: false, ..common })
}
