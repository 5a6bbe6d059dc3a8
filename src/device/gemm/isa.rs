//! Which kernels this machine can run.

use std::fmt;
use std::sync::OnceLock;

/// A set of kernels, named after the instructions they need. Later ones include the earlier ones' needs.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Isa {
    /// Plain Rust; any machine.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ, VL.
    Avx512,
    /// AVX-512 and its bf16 dot product (Zen 4, Cooper Lake and later).
    Avx512Bf16,
    /// The bf16 tile unit (Sapphire Rapids and later), with the system's permission.
    Amx,
}

impl Isa {
    /// Every set, the least first.
    pub const ALL: [Isa; 5] = [Isa::Portable, Isa::Avx2, Isa::Avx512, Isa::Avx512Bf16, Isa::Amx];

    /// The best set of this machine, looked up once per process. The environment variable `QLORA_ISA`
    /// (`portable`, `avx2`, `avx512`, `avx512bf16`, `amx`) chooses a lesser one.
    pub fn best() -> Isa {
        static BEST: OnceLock<Isa> = OnceLock::new();
        *BEST.get_or_init(|| {
            let best = Isa::ALL.into_iter().filter(|i| i.is_available()).max().unwrap_or(Isa::Portable);
            let Ok(wish) = std::env::var("QLORA_ISA") else { return best };
            match Isa::ALL.into_iter().find(|i| i.to_string() == wish) {
                Some(i) if i.is_available() => i,
                Some(_) => {
                    log::warn!("QLORA_ISA: this machine has no {wish}; using {best}");
                    best
                }
                None => {
                    let names = Isa::ALL.map(|i| i.to_string()).join(", ");
                    log::warn!("QLORA_ISA: `{wish}` is none of {names}; using {best}");
                    best
                }
            }
        })
    }

    /// Whether this machine (and its operating system) can run the set.
    pub fn is_available(self) -> bool {
        static AVAILABLE: OnceLock<[bool; 5]> = OnceLock::new();
        AVAILABLE.get_or_init(detect)[self as usize]
    }
}

impl fmt::Display for Isa {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Isa::Portable => "portable",
            Isa::Avx2 => "avx2",
            Isa::Avx512 => "avx512",
            Isa::Avx512Bf16 => "avx512bf16",
            Isa::Amx => "amx",
        })
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> [bool; 5] {
    [true, false, false, false, false]
}

#[cfg(target_arch = "x86_64")]
fn detect() -> [bool; 5] {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = avx2
        && is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    let bf16 = avx512 && is_x86_feature_detected!("avx512bf16");
    [true, avx2, avx512, bf16, bf16 && super::amx::permitted()]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_distinct_and_sets_nest() {
        for (i, a) in Isa::ALL.into_iter().enumerate() {
            assert!(Isa::ALL[..i].iter().all(|b| b.to_string() != a.to_string() && *b < a));
            assert!(!a.is_available() || Isa::ALL[..i].iter().all(|b| b.is_available()));
        }
        assert!(Isa::best().is_available());
    }
}
