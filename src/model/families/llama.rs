//! Llama 2 and 3: the plain block.

use super::{HfConfig, Result, Spec};

pub(super) fn spec(_: &HfConfig, common: Spec) -> Result<Spec> {
    Ok(common)
}
