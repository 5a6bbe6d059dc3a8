//! Plain loops compiled for the widest vectors of the machine, and an exponential that vectorises.
//!
//! What is handed to [`wide`] is inlined into a function with the vector features switched on, so the compiler
//! vectorises its loops for them. No fused multiply-add is ever introduced by that, so the bits are those of the
//! portable build.

#[cfg(target_arch = "x86_64")]
mod x86 {
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma,f16c")]
    pub(super) fn avx512<R>(f: impl FnOnce() -> R) -> R {
        f()
    }

    #[target_feature(enable = "avx2,f16c")]
    pub(super) fn avx2<R>(f: impl FnOnce() -> R) -> R {
        f()
    }
}

/// Evaluates an expression, compiled for the machine's vectors. The bodies of its loops have to be inlined too: mark the
/// functions they call `#[inline(always)]`.
macro_rules! wide {
    ($body:expr) => {
        $crate::device::simd::widened(
            // Left to itself, the compiler does not inline a larger closure: it would run without the vectors.
            #[inline(always)]
            || $body,
        )
    };
}
pub(crate) use wide;

/// Runs `f` in a function with the machine's vector features. By [`wide!`] alone, which sees to it that `f` is inlined.
#[inline(always)]
pub(crate) fn widened<R>(f: impl FnOnce() -> R) -> R {
    #[cfg(target_arch = "x86_64")]
    {
        if is_x86_feature_detected!("avx512bw")
            && is_x86_feature_detected!("avx512dq")
            && is_x86_feature_detected!("avx512vl")
            && is_x86_feature_detected!("fma")
            && is_x86_feature_detected!("f16c")
        {
            // SAFETY: the features that the function is compiled for were just found.
            return unsafe { x86::avx512(f) };
        }
        if is_x86_feature_detected!("avx2") && is_x86_feature_detected!("f16c") {
            // SAFETY: as above.
            return unsafe { x86::avx2(f) };
        }
    }
    f()
}

/// e^x in f32, with a relative error below 2e-7 (three units in the last place) over the range where the result is
/// normal; 0 below it, infinity above, NaN for NaN.
///
/// Cody and Waite's reduction x = n ln 2 + r, |r| <= ln 2 / 2, and the Taylor polynomial of degree 7 in r: its
/// remainder is r^8/8! < 6e-9 there.
#[inline(always)]
pub fn exp(x: f32) -> f32 {
    const LN2_HI: f32 = 0.693_359_4; // 355/512, exact in 10 bits, so n * LN2_HI is exact
    const LN2_LO: f32 = -2.121_944_4e-4;
    const ROUND: f32 = 12_582_912.0; // 1.5 * 2^23: adding it rounds to an integer
    let clamped = x.clamp(-87.3, 88.7);
    let shifted = clamped * std::f32::consts::LOG2_E + ROUND;
    let n = shifted - ROUND;
    let r = (clamped - n * LN2_HI) - n * LN2_LO;
    let mut p = 1.0 / 5040.0;
    for c in [1.0 / 720.0, 1.0 / 120.0, 1.0 / 24.0, 1.0 / 6.0, 0.5, 1.0, 1.0] {
        p = p * r + c;
    }
    // 2^n in two halves: n = 128 alone is not a finite f32.
    // Between 2^23 and 2^24 neighbours are 1 apart: the bits count. (A NaN counts as anything, and is put right below.)
    let k = shifted.to_bits().wrapping_sub(ROUND.to_bits()) as i32;
    let half = k >> 1;
    let rest = k.wrapping_sub(half);
    let pow2 = |k: i32| f32::from_bits((k.wrapping_add(127) as u32) << 23);
    let y = p * pow2(half) * pow2(rest);
    let y = if x < -87.3 { 0.0 } else { y };
    let y = if x > 88.72 { f32::INFINITY } else { y };
    if x.is_nan() { x } else { y }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn exp_is_within_its_bound() {
        let mut worst = 0.0f64;
        for i in -870_000..887_000 {
            let x = i as f32 * 1e-4;
            let want = f64::from(x).exp();
            let e = (f64::from(exp(x)) - want).abs() / want;
            worst = if e > worst || e.is_nan() { e } else { worst };
        }
        assert!(worst <= 2e-7, "relative error {worst:.3e}");
        assert_eq!(exp(0.0), 1.0);
        assert_eq!(exp(f32::NEG_INFINITY), 0.0);
        assert_eq!(exp(200.0), f32::INFINITY);
        assert!(exp(f32::NAN).is_nan());
    }

    #[test]
    fn wide_gives_the_bits_of_the_portable_build() {
        let xs: Vec<f32> = (0..10_000).map(|i| (i as f32) * 0.013 - 80.0).collect();
        let portable: Vec<f32> = xs.iter().map(|&x| exp(x)).collect();
        let wide = wide!(xs.iter().map(|&x| exp(x)).collect::<Vec<f32>>());
        assert!(portable.iter().zip(&wide).all(|(a, b)| a.to_bits() == b.to_bits()));
    }
}
