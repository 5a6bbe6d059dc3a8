//! Scales of sub-blocks by weighted least squares over candidate roundings, the method of llama.cpp's K quantisation:
//! round with a step near that of the extremes, fit scale (and min) to the rounded numbers, keep the best fit.
//!
//! Sums run over 16 lanes in a fixed order, and nothing is fused: the bits do not depend on the machine.

/// Adding and taking away 1.5 x 2^23 rounds to the nearest integer, ties to even, below 2^22.
const ROUND: f32 = 12_582_912.0;

/// `x` clamped to `[least, most]` and rounded to the nearest integer, ties to even.
#[inline(always)]
pub(super) fn nearest(x: f32, least: f32, most: f32) -> f32 {
    let x = if x > least { x } else { least }; // a NaN becomes `least`
    let x = if x < most { x } else { most };
    (x + ROUND) - ROUND
}

#[inline(always)]
fn total(lanes: [f32; 16]) -> f32 {
    let mut lanes = lanes;
    for n in [8, 4, 2, 1] {
        for i in 0..n {
            lanes[i] += lanes[i + n];
        }
    }
    lanes[0]
}

/// A sum over the values, 16 at a time.
#[inline(always)]
fn sum<const N: usize>(f: impl Fn(usize) -> f32) -> f32 {
    let mut lanes = [0f32; 16];
    for at in (0..N).step_by(16) {
        for (i, lane) in lanes.iter_mut().enumerate() {
            *lane += f(at + i);
        }
    }
    total(lanes)
}

/// Candidate steps of [`affine`]: with x in `[least, most]`, numbers are round((levels + from + by i) / (most - least) x).
pub(super) struct Steps {
    /// The largest number.
    pub(super) levels: f32,
    pub(super) from: f32,
    pub(super) by: f32,
    pub(super) count: u8,
}

/// (scale, min), both 0 or more, such that x ~ scale q - min with q of 0 to `levels`. An error counts the more the larger
/// the value is: its square weighs rms + |x|.
#[inline(always)]
pub(super) fn affine(x: &[f32; 32], steps: &Steps) -> (f32, f32) {
    let (mut least, mut most) = ([0f32; 16], [f32::NEG_INFINITY; 16]);
    for x in x.as_chunks::<16>().0 {
        for ((least, most), x) in least.iter_mut().zip(&mut most).zip(x) {
            *least = if *x < *least { *x } else { *least };
            *most = if *x > *most { *x } else { *most };
        }
    }
    let least = least.into_iter().fold(0.0, f32::min); // a min above 0 cannot be stored
    let most = most.into_iter().fold(f32::NEG_INFINITY, f32::max);
    let range = most - least;
    if range.is_nan() || range <= 0.0 {
        return (0.0, -least);
    }
    // Sums are taken of y = x - least, so that a large common offset does not swamp them.
    let rms = (sum::<32>(|i| x[i] * x[i]) / 32.0).sqrt();
    let (mut w, mut y) = ([0f32; 32], [0f32; 32]);
    for i in 0..32 {
        w[i] = rms + x[i].abs();
        y[i] = x[i] - least;
    }
    let sw = sum::<32>(|i| w[i]);
    let sy = sum::<32>(|i| w[i] * y[i]);
    let (mut best, mut found) = (f32::INFINITY, (range / steps.levels, -least));
    for step in 0..steps.count {
        let inverse = (steps.levels + steps.from + steps.by * f32::from(step)) / range;
        let (mut lq, mut lqq, mut lqy) = ([0f32; 16], [0f32; 16], [0f32; 16]);
        for at in [0, 16] {
            for i in 0..16 {
                let q = nearest(inverse * y[at + i], 0.0, steps.levels);
                let wq = w[at + i] * q;
                lq[i] += wq;
                lqq[i] += wq * q;
                lqy[i] += wq * y[at + i];
            }
        }
        let (sq, sqq, sqy) = (total(lq), total(lqq), total(lqy));
        let det = sw * sqq - sq * sq;
        if det.is_nan() || det <= 0.0 {
            continue;
        }
        // y ~ scale q + shift; what is left of the weighted squares is their sum less what the fit explains. That sum
        // is the same for all candidates, so only the explained part is compared.
        let (mut scale, mut shift) = ((sw * sqy - sy * sq) / det, (sqq * sy - sq * sqy) / det);
        let mut left = -(scale * sqy + shift * sy);
        if shift + least > 0.0 {
            // The min is held at 0: x ~ scale q, and of y the shift is -least.
            shift = -least;
            scale = (sqy + least * sq) / sqq;
            left = scale * (scale * sqq - 2.0 * (sqy - shift * sq)) + shift * (shift * sw - 2.0 * sy);
        }
        if left < best {
            (best, found) = (left, (scale, -(shift + least)));
        }
    }
    found
}

/// A signed scale such that x ~ scale q with q of -`levels` to `levels` - 1. Errors weigh x^2. 0 where x is all but 0.
#[inline(always)]
pub(super) fn linear(x: &[f32; 16], levels: f32) -> f32 {
    let extreme = x.iter().fold(0f32, |m, x| if x.abs() > m.abs() { *x } else { m });
    if extreme.is_nan() || extreme.abs() < 1e-15 {
        return 0.0;
    }
    let (mut best, mut found) = (0.0, 0.0);
    // The plain step first: another one has to be better than it.
    for step in [0i8, -9, -8, -7, -6, -5, -4, -3, -2, -1, 1, 2, 3, 4, 5, 6, 7, 8, 9] {
        let inverse = -(levels + 0.1 * f32::from(step)) / extreme;
        let (mut lx, mut lq) = ([0f32; 16], [0f32; 16]);
        for i in 0..16 {
            let q = nearest(inverse * x[i], -levels, levels - 1.0);
            let wq = x[i] * x[i] * q;
            lx[i] = wq * x[i];
            lq[i] = wq * q;
        }
        let (sqx, sqq) = (total(lx), total(lq));
        // The fit explains sqx^2 / sqq of the squares.
        if sqq > 0.0 && sqx * sqx > best * sqq {
            found = sqx / sqq;
            best = found * sqx;
        }
    }
    found
}
