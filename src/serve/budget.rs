//! How many tokens' keys and values fit beside a model.

use crate::config::Config;
use crate::error::{Error, Result};
use crate::model::{Model, PAGE};
use crate::train::Target;
use crate::train::plan::human;

/// Of the memory that is left so much is taken for keys and values; the rest is for what a pass computes.
const SHARE: f64 = 0.8;

/// Tokens, in whole pages, whose keys and values fit beside the model and its adapters, in what the config or the machine
/// allows.
///
/// # Errors
/// [`Error::Memory`] with the figures if that is not even one page.
pub(super) fn fitting(config: &Config, target: &Target, model: &Model) -> Result<usize> {
    let Some(limit) = target.limit(config) else { return Ok(usize::MAX) };
    let held = model.resident_bytes();
    // What the machine has free is counted with the model already in it; `max_memory` is for both.
    let left = match config.model.max_memory {
        Some(most) => most.saturating_sub(held),
        None => limit,
    };
    let pinned = match model.frozen_bytes().pinned {
        0 => String::new(),
        n => format!("; the embedding's {} are in the CPU's memory, page-locked, and count for nothing here", human(n)),
    };
    let token = 2 * model.spec.layers * model.spec.kv_heads * model.spec.head_dim * model.dtype.size();
    let tokens = (left as f64 * SHARE) as usize / token.max(1) / PAGE * PAGE;
    if tokens == 0 {
        let page = human((token * PAGE) as u64);
        let why = format!(
            "beside the model's {} there are {} left, of which {:.0} % are for keys and values: {PAGE} tokens, the least, \
             take {page}; {}{pinned}",
            human(held),
            human(left),
            SHARE * 100.0,
            match config.model.max_memory {
                Some(_) => "raise `max_memory`",
                None => "free some of it",
            }
        );
        return Err(Error::Memory(why));
    }
    log::info!(
        "memory: the model takes {}, and {} are left for keys and values and for what a pass computes{pinned}",
        human(held),
        human(left)
    );
    Ok(tokens)
}

#[cfg(all(test, feature = "host-kernels"))]
mod tests {
    use super::*;
    use crate::config::{self, Format};
    use crate::device::{Card, Chip, Device};
    use crate::model;
    use crate::train::plan;

    /// Positions that the table of rotations covers: it is larger than the rest of the little model.
    const POSITIONS: usize = 4096;

    fn config(base: &std::path::Path) -> Config {
        let text = format!("model_name_or_path: {}\nquantization_bit: 4\n", base.display());
        config::from_str(&text, Format::Yaml, &[]).unwrap()
    }

    /// Everything that lies on the card counts, and the pinned embedding, which does not, is named.
    #[test]
    fn the_budget_counts_what_lies_on_the_card() {
        let root =
            std::env::var_os("QLORA_TEST_ROOT").map_or(env!("CARGO_MANIFEST_DIR").into(), std::path::PathBuf::from);
        let base = root.join("tests/golden/models/llama3");
        let mut config = config(&base);
        let card = Card { name: "test".into(), memory: 1 << 30, flops: 1e12, bandwidth: 1e11, chip: Chip::STAND_IN };
        let target = Target::Gpu(card);
        let device = Device::host_kernels(2, false).unwrap();
        let options = plan::use_options(&config, &[], POSITIONS, &target);
        let mut model = model::load(&base, &options, &device, &|_, _| {}).unwrap();

        let s = &model.spec;
        let (bare, table) = (model.resident_bytes(), (POSITIONS * s.head_dim * 4) as u64);
        let token = 2 * s.layers * s.kv_heads * s.head_dim * 2;
        let frozen = model.frozen_bytes();
        assert_eq!(frozen.pinned, (s.vocab * s.hidden * 2) as u64);
        assert_eq!(bare, frozen.dense + frozen.quantised + table, "and nothing is trained");
        // An adapter beside it: each of its values in f32 and in bf16.
        model.attach(&base.join("adapter")).unwrap();
        let held = model.resident_bytes();
        assert!(held > bare && (held - bare).is_multiple_of(6), "{bare} {held}");

        // What the config allows is for all of it; what a card has free is counted without.
        let tokens = |left: u64| (left as f64 * 0.8) as usize / token / PAGE * PAGE;
        let left = 5 << 20;
        config.model.max_memory = Some(held + left);
        assert_eq!(fitting(&config, &target, &model).unwrap(), tokens(left));
        assert_ne!(tokens(left), tokens(left + table), "or the test shows nothing");
        config.model.max_memory = None;
        assert_eq!(fitting(&config, &target, &model).unwrap(), tokens(1 << 30));

        // One byte less than a page takes.
        let page = (token * PAGE) as u64;
        let least = (page as f64 / 0.8).ceil() as u64;
        config.model.max_memory = Some(held + least);
        assert_eq!(fitting(&config, &target, &model).unwrap(), PAGE);
        config.model.max_memory = Some(held + page - 1);
        let why = fitting(&config, &target, &model).unwrap_err().to_string();
        for said in [human(held), human(page - 1), human(page), human(frozen.pinned), "raise `max_memory`".into()] {
            assert!(why.contains(&said), "{why}: {said}");
        }
        assert!(why.contains("page-locked"), "{why}");
    }
}
