//! Qwen3: an RMS norm on every head of q and k.

use super::{HfConfig, Result, Spec};

pub(super) fn spec(c: &HfConfig, common: Spec) -> Result<Spec> {
    Ok(Spec { windows: c.windows.clone(), qk_norm: true, mlp_bias: false, ..common })
}
