//! Which tile a product is computed in, and how it reads an NF4 matrix: a table by architecture and kind of product. Neither
//! changes a bit, but that tiles by `wgmma` need not have those of the others.
//!
//! **Tiles.** A card of `s` multiprocessors, each of which holds `r` blocks, computes `s r` tiles at a time: a wave, of which
//! the last is seldom full. A product of `t` tiles takes ceil(t / (s r)) waves, in which the card could have computed that
//! many times `s r` tiles: this is its cost in tiles of that size. The large tile is taken where small ones would cost at
//! least `margin` % of what large ones do: below 100, since an operation costs more in a small tile. For each 2^17
//! multiply-adds a small tile copies 8 KB to shared memory and reads 16 KB from it (64 + 64 rows of 32 for 64 x 64 x 32; 64
//! rows a warp for 32 x 32), a large one 4 and 12. At 256 multiply-adds a clock (8.6, 8.9, 12.0; NVIDIA's white papers), 128
//! bytes of shared memory and 64 of L2 these are 512 + 192 + 128 clocks against 512 + 128 + 64, were nothing overlapped:
//! 85 %; at 1024 (8.0 and 9.0) 128 + 192 + 128 against 128 + 128 + 64: 71 %.
//!
//! **NF4.** From `scratch_from` rows on the matrix is dequantised to a bf16 copy, which the dense product reads.
//!
//! **wgmma.** On compute capability 9.0 dense products of [`WGMMA_FROM`] rows or more go to kernels/gemm_sm90.h. An operation
//! costs at least 5/4 as much in its tiles of 128 columns as in those of 256 (shared memory, as the header reckons), of which
//! fewer fill the card. The bits of training on such a card then depend on the rows of a step; decoding has kernels of its own.
//!
//! Resident blocks follow from the registers and the shared memory of the compiled kernels (`make kernels-report`). Nothing
//! here was measured on a card yet, so no copy is made. `cargo bench --bench kernels -- tiles` prints lines for the card at hand.

use crate::device::{Chip, HOPPER, Nf4Path, Tile, Tuning, abi};
use crate::error::Result;

/// The products of kernels/gemm.h and, with an NF4 matrix, of kernels/gemm_nf4.h.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Nt,
    Nn,
    Tn,
    Nf4Nt,
    Nf4Nn,
}

impl Kind {
    /// In the order of a line's columns.
    pub const ALL: [Kind; 5] = [Kind::Nt, Kind::Nn, Kind::Tn, Kind::Nf4Nt, Kind::Nf4Nn];
}

/// The rule of a kind on an architecture.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rule {
    /// Blocks of large and of small tiles that a multiprocessor holds.
    pub resident: [usize; 2],
    /// Percent.
    pub margin: u64,
    /// Rows.
    pub scratch_from: usize,
}

const NEVER: usize = usize::MAX;

/// From so many rows on `wgmma` computes nt and nn. None before its kernels have run on a card.
const WGMMA_FROM: Option<usize> = None;

/// Percent of what large tiles by `wgmma` cost that small ones may.
const WGMMA_MARGIN: u64 = 80;

const fn rule(large: usize, small: usize, margin: u64, scratch_from: usize) -> Rule {
    Rule { resident: [large, small], margin, scratch_from }
}

/// The rules of an architecture, in the order of [`Kind::ALL`].
type Line = ((u32, u32), [Rule; 5]);

/// Compute capabilities ascend.
#[rustfmt::skip]
const TABLE: [Line; 5] = [
    //        nt                      nn                      tn                      nf4 nt                  nf4 nn
    ((8, 0),  [rule(2, 4, 71, NEVER), rule(2, 4, 71, NEVER), rule(2, 4, 71, NEVER), rule(2, 5, 71, NEVER), rule(2, 5, 71, NEVER)]),
    ((8, 6),  [rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER)]),
    ((8, 9),  [rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER)]),
    ((9, 0),  [rule(2, 5, 71, NEVER), rule(2, 5, 71, NEVER), rule(2, 5, 71, NEVER), rule(2, 5, 71, NEVER), rule(2, 6, 71, NEVER)]),
    ((12, 0), [rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER), rule(2, 3, 85, NEVER)]),
];

/// A product as it was timed.
#[derive(Debug, Clone, Copy)]
pub struct Sample {
    pub rows: usize,
    /// Large and small tiles of its result.
    pub large: usize,
    pub small: usize,
    /// With large and with small tiles.
    pub seconds: [f64; 2],
    /// By a copy of its NF4 matrix.
    pub scratch: Option<f64>,
}

impl Rule {
    /// With the margin, and then the rows, that lose least to the best way of each sample; as they were among equals.
    #[must_use]
    pub fn fitted(self, chip: Chip, samples: &[Sample]) -> Rule {
        let fused = |rule: &Rule, s: &Sample| {
            let fits = small_cost(chip, rule, s.large, s.small) >= rule.margin;
            s.seconds[usize::from(!fits)]
        };
        let taken = |rule: &Rule, s: &Sample| match s.scratch {
            Some(scratch) if s.rows >= rule.scratch_from => scratch,
            _ => fused(rule, s),
        };
        let least = |rules: Vec<Rule>, time: &dyn Fn(&Rule, &Sample) -> f64| {
            let loss = |r: &Rule| -> f64 {
                samples.iter().map(|s| time(r, s) / s.seconds[0].min(s.seconds[1])).sum() // a share of each sample's time
            };
            rules.into_iter().min_by(|a, b| loss(a).total_cmp(&loss(b))).unwrap_or(self)
        };
        let costs = samples.iter().flat_map(|s| [0, 1].map(|more| small_cost(chip, &self, s.large, s.small) + more));
        let margins: Vec<u64> = [self.margin].into_iter().chain(costs).collect();
        let rule = least(margins.into_iter().map(|margin| Rule { margin, ..self }).collect(), &fused);
        let rows = [self.scratch_from, NEVER].into_iter().chain(samples.iter().map(|s| s.rows));
        least(rows.map(|scratch_from| Rule { scratch_from, ..rule }).collect(), &taken)
    }
}

/// The rule for a kind: of the newest architecture of the table that is no newer than the chip.
pub fn rule_of(chip: Chip, kind: Kind) -> Rule {
    let line = TABLE.iter().rev().find(|(capability, _)| *capability <= chip.capability).unwrap_or(&TABLE[0]);
    line.1[kind as usize]
}

/// A line of the table as the source has it.
pub fn line(capability: (u32, u32), rules: &[Rule; 5]) -> String {
    let of = |r: &Rule| {
        let from = if r.scratch_from == NEVER { "NEVER".to_string() } else { r.scratch_from.to_string() };
        format!("rule({}, {}, {}, {from})", r.resident[0], r.resident[1], r.margin)
    };
    format!("({capability:?}, [{}]),", rules.iter().map(of).collect::<Vec<_>>().join(", "))
}

/// What small tiles cost, in percent of what large ones do, where a result has so many of them; at least 1.
pub fn small_cost(chip: Chip, rule: &Rule, large: usize, small: usize) -> u64 {
    let of_large = cost(chip, large, rule.resident[0], abi::GEMM_128_M * abi::GEMM_128_N).max(1);
    (100 * cost(chip, small, rule.resident[1], abi::GEMM_64_M * abi::GEMM_64_N) / of_large).max(1)
}

/// What so many tiles of an area cost: that of the waves that they take.
fn cost(chip: Chip, tiles: usize, resident: usize, area: u32) -> u64 {
    let wave = chip.multiprocessors.max(1) as usize * resident;
    (tiles.div_ceil(wave) * wave) as u64 * u64::from(area)
}

/// The tile of a launch of so many rows that takes `count` tiles of each kind.
///
/// # Errors
/// [`crate::Error::Config`] if the environment asks for a tile that there is not.
pub(crate) fn tile(tuning: &Tuning, kind: Kind, rows: usize, count: impl Fn(Tile) -> usize) -> Result<Tile> {
    if let Some(wish) = tuning.wish()?.tile {
        return Ok(wish);
    }
    let chip = tuning.chip();
    let by_wgmma = chip.capability == HOPPER && matches!(kind, Kind::Nt | Kind::Nn);
    if by_wgmma && WGMMA_FROM.is_some_and(|from| rows >= from) {
        return Ok(wgmma_tile(chip, count(Tile::Wgmma256), count(Tile::Wgmma128)));
    }
    let rule = rule_of(chip, kind);
    let fits = small_cost(chip, &rule, count(Tile::Large), count(Tile::Small)) >= rule.margin;
    Ok(if fits { Tile::Large } else { Tile::Small })
}

/// The tile by `wgmma` of a launch of so many wide or so many narrow ones; a multiprocessor holds one of either.
fn wgmma_tile(chip: Chip, wide: usize, narrow: usize) -> Tile {
    let of_wide = cost(chip, wide, 1, 256 * abi::GEMM_SM90_M).max(1);
    let fits = 100 * cost(chip, narrow, 1, 128 * abi::GEMM_SM90_M) / of_wide >= WGMMA_MARGIN;
    if fits { Tile::Wgmma256 } else { Tile::Wgmma128 }
}

/// How a product of this many rows reads an NF4 matrix.
///
/// # Errors
/// As [`tile`].
pub(crate) fn nf4_path(tuning: &Tuning, kind: Kind, rows: usize) -> Result<Nf4Path> {
    let by_table = if rows < rule_of(tuning.chip(), kind).scratch_from { Nf4Path::Fused } else { Nf4Path::Scratch };
    Ok(tuning.wish()?.nf4.unwrap_or(by_table))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chip(capability: (u32, u32), multiprocessors: u32) -> Chip {
        Chip { capability, multiprocessors }
    }

    #[test]
    fn the_table_ascends_and_unknown_cards_take_the_line_below() {
        assert!(TABLE.windows(2).all(|w| w[0].0 < w[1].0));
        let of = |capability| rule_of(chip(capability, 100), Kind::Nt);
        for (asked, meant) in
            [((8, 7), (8, 6)), ((9, 9), (9, 0)), ((10, 0), (9, 0)), ((12, 1), (12, 0)), ((7, 5), (8, 0))]
        {
            assert_eq!(of(asked), of(meant), "{asked:?}");
        }
        assert_ne!(of((8, 0)), of((9, 0)), "the lines do differ");
    }

    /// Worked out by hand, in small tiles: a wave of an RTX 3080 is 136 large ones (544 small) or 204 small ones.
    #[test]
    fn large_tiles_where_they_fill_their_waves_as_well() {
        let card = Chip::STAND_IN;
        for (large, small, percent) in [
            (1, 1, 37),
            (64, 256, 75),
            (96, 384, 75),
            (102, 408, 75),
            (103, 409, 112),
            (136, 544, 112),
            (137, 548, 56),
            (1024, 4096, 98),
        ] {
            assert_eq!(small_cost(card, &rule_of(card, Kind::Nt), large, small), percent, "{large} or {small}");
            let device = crate::device::Device::plan_on(card);
            let count = |tile| if tile == Tile::Large { large } else { small };
            let tile = tile(device.tuning().unwrap(), Kind::Nt, 1 << 20, count).unwrap();
            assert_eq!(tile == Tile::Large, percent >= 85, "{large} or {small}");
        }
    }

    /// Worked out by hand, for the 132 multiprocessors of an H100.
    #[test]
    fn wide_tiles_where_they_fill_their_waves_as_well() {
        for (wide, narrow, want) in [
            (64, 128, Tile::Wgmma128), // one wave of either
            (66, 132, Tile::Wgmma128),
            (67, 133, Tile::Wgmma256),  // one wave against two
            (128, 256, Tile::Wgmma256), // the same
            (132, 264, Tile::Wgmma256),
            (133, 265, Tile::Wgmma128), // two against three: 75 %
            (300, 600, Tile::Wgmma256), // three against five: 83 %
        ] {
            assert_eq!(wgmma_tile(chip((9, 0), 132), wide, narrow), want, "{wide} or {narrow}");
        }
    }

    /// Large tiles win from 112 % on and lose at 75 %; a copy wins from 1024 rows on.
    #[test]
    fn a_rule_is_fitted_to_what_was_timed() {
        let card = Chip::STAND_IN;
        let start = Rule { margin: 60, ..rule_of(card, Kind::Nf4Nt) };
        let of = |rows, large, seconds, scratch| Sample { rows, large, small: 4 * large, seconds, scratch };
        let mut samples = vec![of(512, 64, [2.0, 1.0], Some(3.0)), of(1024, 136, [2.0, 3.0], Some(1.9))];
        let rule = start.fitted(card, &samples);
        assert!((76..=112).contains(&rule.margin), "{rule:?}");
        assert_eq!(rule.scratch_from, 1024);
        samples.iter_mut().for_each(|s| s.scratch = None);
        assert_eq!(start.fitted(card, &samples).scratch_from, NEVER);
        assert_eq!(start.fitted(card, &[]), start);
    }

    #[test]
    fn a_line_is_printed_as_it_is_written() {
        let source = include_str!("tiles.rs");
        for (capability, rules) in &TABLE {
            let squeezed = |s: &str| s.replace(' ', "");
            assert!(squeezed(source).contains(&squeezed(&line(*capability, rules))), "{capability:?}");
        }
    }
}
