//! Random numbers by counter: the same (seed, stream, index) always gives the same number, so nothing has to be stored
//! to regenerate a mask in the backward pass or after a resume.
//!
//! Philox4x32-10, Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3".

/// What a stream of random numbers is for, so that no two uses share one.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Stream {
    pub seed: u64,
    /// Micro-batch counter of the run; 0 outside a step.
    pub step: u32,
    /// Which tensor or module.
    pub module: u32,
}

/// Four random words for the block `index` of a stream.
#[inline(always)]
pub fn words(stream: Stream, index: u64) -> [u32; 4] {
    let mut key = [stream.seed as u32, (stream.seed >> 32) as u32];
    let mut c = [index as u32, (index >> 32) as u32, stream.step, stream.module];
    for _ in 0..10 {
        let p0 = u64::from(c[0]) * 0xD251_1F53;
        let p1 = u64::from(c[2]) * 0xCD9E_8D57;
        c = [(p1 >> 32) as u32 ^ c[1] ^ key[0], p1 as u32, (p0 >> 32) as u32 ^ c[3] ^ key[1], p0 as u32];
        key = [key[0].wrapping_add(0x9E37_79B9), key[1].wrapping_add(0xBB67_AE85)];
    }
    c
}

/// The `index`-th uniform number of a stream, in [0, 1), with 24 bits.
#[inline(always)]
pub fn uniform(stream: Stream, index: u64) -> f32 {
    (words(stream, index / 4)[(index % 4) as usize] >> 8) as f32 * (1.0 / 16_777_216.0)
}

/// The `index`-th normal number of a stream (Box and Muller), mean 0, deviation 1.
pub fn normal(stream: Stream, index: u64) -> f32 {
    let w = words(stream, index / 2);
    let (a, b) = if index.is_multiple_of(2) { (w[0], w[1]) } else { (w[2], w[3]) };
    let u = (f64::from(a) + 1.0) / 4_294_967_297.0; // never 0
    let angle = std::f64::consts::TAU * f64::from(b) / 4_294_967_296.0;
    ((-2.0 * u.ln()).sqrt() * angle.cos()) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The known answers of the authors' Random123 library (kat_vectors, philox4x32 with 10 rounds).
    #[test]
    fn known_answers() {
        let zero = Stream { seed: 0, step: 0, module: 0 };
        assert_eq!(words(zero, 0), [0x6627_e8d5, 0xe169_c58d, 0xbc57_ac4c, 0x9b00_dbd8]);
        let ones = Stream { seed: u64::MAX, step: u32::MAX, module: u32::MAX };
        assert_eq!(words(ones, u64::MAX), [0x408f_276d, 0x41c8_3b0e, 0xa20b_c7c6, 0x6d54_51fd]);
    }

    #[test]
    fn moments() {
        let s = Stream { seed: 7, step: 1, module: 2 };
        let n = 40_000u64;
        let mean = (0..n).map(|i| f64::from(uniform(s, i))).sum::<f64>() / n as f64;
        // Standard error of the mean 0.289 / sqrt(n) = 0.0014; five of them.
        assert!((mean - 0.5).abs() < 0.0072, "{mean}");
        let var = (0..n).map(|i| f64::from(normal(s, i)).powi(2)).sum::<f64>() / n as f64;
        // The variance of z^2 is 2: standard error 0.0071; five of them.
        assert!((var - 1.0).abs() < 0.036, "{var}");
    }
}
