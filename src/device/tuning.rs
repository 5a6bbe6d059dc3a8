//! What decides which of several kernels computes a product: the chip, and what somebody asks for.

use std::sync::{Mutex, OnceLock};

use super::lock;
use crate::error::{Error, Result};

/// What a choice of kernels depends on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Chip {
    /// Compute capability.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
}

impl Chip {
    /// What kernels on the CPU pass for, and a plan for no card in particular: an RTX 3080.
    pub const STAND_IN: Chip = Chip { capability: (8, 6), multiprocessors: 68 };
}

/// The compute capability whose tensor cores have `wgmma`.
pub const HOPPER: (u32, u32) = (9, 0);

/// The tile of a result that a block of threads computes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tile {
    /// 128 x 128.
    Large,
    /// 64 x 64.
    Small,
    /// 128 x 128 by `wgmma`, on compute capability 9.0; where it cannot be used (kernels/gemm_sm90.h), [`Tile::Small`].
    Wgmma128,
    /// 128 x 256, the same.
    Wgmma256,
}

/// How a product reads an NF4 matrix.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Nf4Path {
    /// Dequantised inside the product.
    Fused,
    /// From a bf16 copy, made for each product.
    Scratch,
}

/// What is asked for in place of the table of `ops::tiles`. None of it changes a bit, but that tiles by `wgmma` need not have
/// those of the others.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Wish {
    pub tile: Option<Tile>,
    pub nf4: Option<Nf4Path>,
}

/// `64`, `128`, `wgmma-128` or `wgmma-256`.
const TILE: &str = "QLORA_GEMM_TILE";
/// `fused` or `scratch`.
const NF4_PATH: &str = "QLORA_NF4_PATH";

impl Wish {
    /// By the values of the two variables.
    ///
    /// # Errors
    /// [`Error::Config`] for values that they do not have.
    fn parse(tile: Option<&str>, path: Option<&str>) -> Result<Self> {
        let tile = match tile {
            None => None,
            Some("128") => Some(Tile::Large),
            Some("64") => Some(Tile::Small),
            Some("wgmma-128") => Some(Tile::Wgmma128),
            Some("wgmma-256") => Some(Tile::Wgmma256),
            Some(other) => {
                let why = format!("must be 64, 128, wgmma-128 or wgmma-256, got `{other}`");
                return Err(Error::config(TILE, why));
            }
        };
        let nf4 = match path {
            None => None,
            Some("fused") => Some(Nf4Path::Fused),
            Some("scratch") => Some(Nf4Path::Scratch),
            Some(other) => return Err(Error::config(NF4_PATH, format!("must be fused or scratch, got `{other}`"))),
        };
        Ok(Wish { tile, nf4 })
    }

    /// By the environment, which is read once.
    fn of_environment() -> Result<Self> {
        static READ: OnceLock<[Option<String>; 2]> = OnceLock::new();
        let [tile, path] = READ.get_or_init(|| {
            [TILE, NF4_PATH]
                .map(|name| std::env::var_os(name).filter(|v| !v.is_empty()).map(|v| v.to_string_lossy().into_owned()))
        });
        Wish::parse(tile.as_deref(), path.as_deref())
    }
}

/// The chip of a device that runs kernels, or plans for one, and what is asked for there.
pub struct Tuning {
    chip: Chip,
    /// None: what the environment asks for.
    wish: Mutex<Option<Wish>>,
}

impl Tuning {
    pub(super) fn new(chip: Chip) -> Self {
        Tuning { chip, wish: Mutex::new(None) }
    }

    pub fn chip(&self) -> Chip {
        self.chip
    }

    /// What is asked for.
    ///
    /// # Errors
    /// [`Error::Config`] if the environment asks for what there is not.
    pub fn wish(&self) -> Result<Wish> {
        let set = *lock(&self.wish);
        set.map_or_else(Wish::of_environment, Ok)
    }

    /// Asks for something from now on; None: for what the environment asks for.
    pub fn set(&self, wish: Option<Wish>) {
        *lock(&self.wish) = wish;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_environment_is_understood_or_refused() {
        assert_eq!(Wish::parse(None, None).unwrap(), Wish::default());
        let both = Wish { tile: Some(Tile::Small), nf4: Some(Nf4Path::Scratch) };
        assert_eq!(Wish::parse(Some("64"), Some("scratch")).unwrap(), both);
        assert_eq!(Wish::parse(Some("128"), Some("fused")).unwrap().tile, Some(Tile::Large));
        assert_eq!(Wish::parse(Some("wgmma-256"), None).unwrap().tile, Some(Tile::Wgmma256));
        for (tile, path, why) in [
            (Some("96"), None, "config: `QLORA_GEMM_TILE` must be 64, 128, wgmma-128 or wgmma-256, got `96`"),
            (None, Some("Scratch"), "config: `QLORA_NF4_PATH` must be fused or scratch, got `Scratch`"),
        ] {
            assert_eq!(Wish::parse(tile, path).unwrap_err().to_string(), why);
        }
    }

    #[test]
    fn what_is_set_counts() {
        let tuning = Tuning::new(Chip::STAND_IN);
        let wish = Wish { tile: Some(Tile::Large), nf4: None };
        tuning.set(Some(wish));
        assert_eq!(tuning.wish().unwrap(), wish);
    }
}
