//! Scales of sub-blocks by weighted least squares over candidate roundings, the method of llama.cpp's K quantisation:
//! round with a step near that of the extremes, fit scale (and min) to the rounded numbers, keep the best fit.
//!
//! All candidates of a sub-block are tried at once, a lane each, so that sums over its values run in their order: nothing is
//! fused or reordered, and the bits do not depend on the machine.

/// Lanes for candidates: at least 21, in vectors of 8.
const LANES: usize = 24;

/// Adding and taking away 1.5 x 2^23 rounds to the nearest integer, ties to even, below 2^22.
const ROUND: f32 = 12_582_912.0;

/// `x` clamped to `[least, most]` and rounded to the nearest integer, ties to even.
#[inline(always)]
pub(super) fn nearest(x: f32, least: f32, most: f32) -> f32 {
    let x = if x > least { x } else { least }; // a NaN becomes `least`
    let x = if x < most { x } else { most };
    (x + ROUND) - ROUND
}

/// Candidate roundings: numbers are round(factor / range x), with x in a range from 0.
pub(super) struct Steps {
    /// The largest number.
    pub(super) levels: f32,
    factors: [f32; LANES],
    /// How many of the factors are candidates.
    pub(super) count: usize,
}

impl Steps {
    /// The `count` factors `levels + from`, `levels + from + by`, ...
    pub(super) const fn new(levels: f32, from: f32, by: f32, count: usize) -> Steps {
        let mut factors = [levels; LANES];
        let mut i = 0;
        while i < count {
            factors[i] = levels + from + by * i as f32;
            i += 1;
        }
        Steps { levels, factors, count }
    }
}

/// (scale, min), both 0 or more, such that x ~ scale q - min with q of 0 to `levels`. An error counts the more the larger
/// the value is: its square weighs rms + |x|.
#[inline(always)]
pub(super) fn affine(x: &[f32; 32], steps: &Steps) -> (f32, f32) {
    // A min above 0 cannot be stored, so the range begins at 0 or below.
    let (mut least, mut most, mut squares) = (0f32, f32::NEG_INFINITY, 0f32);
    for &x in x {
        least = if x < least { x } else { least };
        most = if x > most { x } else { most };
        squares += x * x;
    }
    let range = most - least;
    if range.is_nan() || range <= 0.0 {
        return (0.0, -least);
    }
    // Sums are taken of y = x - least, so that a large common offset does not swamp them.
    let rms = (squares / 32.0).sqrt();
    let inverse = steps.factors.map(|f| f / range);
    let (mut sw, mut sy) = (0f32, 0f32);
    let (mut sq, mut sqq, mut sqy) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for &x in x {
        let (w, y) = (rms + x.abs(), x - least);
        let wy = w * y;
        sw += w;
        sy += wy;
        for c in 0..LANES {
            let q = nearest(inverse[c] * y, 0.0, steps.levels);
            let wq = w * q;
            sq[c] += wq;
            sqq[c] += wq * q;
            sqy[c] += wy * q;
        }
    }
    let (mut scale, mut shift, mut left) = ([0f32; LANES], [0f32; LANES], [0f32; LANES]);
    for c in 0..LANES {
        // y ~ s q + t by the normal equations; where that puts the min above 0, it is held at 0: x ~ s q.
        let det = sw * sqq[c] - sq[c] * sq[c];
        let fit = (sw * sqy[c] - sy * sq[c]) / det;
        let free = (sqq[c] * sy - sq[c] * sqy[c]) / det;
        let held = (sqy[c] + least * sq[c]) / sqq[c];
        let (s, t) = if free + least > 0.0 { (held, -least) } else { (fit, free) };
        // The weighted squares that are left, less those of y, which are the same for all candidates.
        let rest = s * (s * sqq[c] + 2.0 * (t * sq[c] - sqy[c])) + t * (t * sw - 2.0 * sy);
        // Where all numbers are equal, det is 0 but for rounding (32 terms, 6e-8 each); where one differs by 1 of 31, it is
        // 3e-5 of its first term.
        let fits = det > 1e-5 * sw * sqq[c];
        (scale[c], shift[c], left[c]) = (s, t, if fits { rest } else { f32::INFINITY });
    }
    let (mut best, mut found) = (f32::INFINITY, (range / steps.levels, -least));
    for c in 0..steps.count {
        if left[c] < best {
            (best, found) = (left[c], (scale[c], -(shift[c] + least)));
        }
    }
    found
}

/// Candidates of [`linear`]: the plain step first, for another one has to be better than it.
const AROUND: [f32; LANES] = {
    let mut factors = [0f32; LANES];
    let mut i = 0;
    while i < 9 {
        factors[1 + i] = -0.1 * (9 - i) as f32;
        factors[10 + i] = 0.1 * (i + 1) as f32;
        i += 1;
    }
    factors
};

/// A signed scale such that x ~ scale q with q of -`levels` to `levels` - 1. Errors weigh x^2. 0 where x is all but 0.
#[inline(always)]
pub(super) fn linear(x: &[f32; 16], levels: f32) -> f32 {
    let extreme = x.iter().fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    if extreme.is_nan() || extreme.abs() < 1e-15 {
        return 0.0;
    }
    let inverse = AROUND.map(|f| -(levels + f) / extreme);
    let (mut sqx, mut sqq) = ([0f32; LANES], [0f32; LANES]);
    for &x in x {
        let w = x * x;
        let wx = w * x;
        for c in 0..LANES {
            let q = nearest(inverse[c] * x, -levels, levels - 1.0);
            sqx[c] += wx * q;
            sqq[c] += w * q * q;
        }
    }
    let (mut best, mut found) = (0.0, 0.0);
    for c in 0..LANES {
        // The fit explains sqx^2 / sqq of the squares.
        if sqq[c] > 0.0 && sqx[c] * sqx[c] > best * sqq[c] {
            found = sqx[c] / sqq[c];
            best = found * sqx[c];
        }
    }
    found
}
