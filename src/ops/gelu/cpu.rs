use std::f64::consts::{FRAC_1_SQRT_2, FRAC_2_SQRT_PI, PI};

use super::Gelu;
use crate::device::par::{for_rows, rows_of};
use crate::device::pool::Pool;
use crate::tensor::{Float, Real};

/// Elements of a task: enough to outweigh handing it out.
const GRAIN: usize = 2048;

/// The complementary error function: below 2.5 by the series of erf whose terms are all positive (Abramowitz & Stegun
/// 7.1.6), above by its continued fraction (7.1.14), of which 60 terms then leave less than 1e-20.
fn erfc(x: f64) -> f64 {
    if x < 0.0 {
        return 2.0 - erfc(-x);
    }
    let density = FRAC_2_SQRT_PI * (-x * x).exp();
    if x < 2.5 {
        let (mut term, mut sum, mut n) = (x, x, 1.0);
        while term > 1e-18 * sum {
            term *= 2.0 * x * x / (2.0 * n + 1.0);
            sum += term;
            n += 1.0;
        }
        return 1.0 - density * sum;
    }
    0.5 * density / (1..=60).rev().fold(x, |below, k| x + 0.5 * f64::from(k) / below)
}

/// The share of x that passes, and its slope.
fn gate(x: f64, form: Gelu) -> (f64, f64) {
    match form {
        Gelu::Exact => (0.5 * erfc(-x * FRAC_1_SQRT_2), (-0.5 * x * x).exp() / (2.0 * PI).sqrt()),
        Gelu::Tanh => {
            let k = (2.0 / PI).sqrt();
            let s = 1.0 / (1.0 + (-2.0 * k * (x + 0.044_715 * x * x * x)).exp());
            (s, s * (1.0 - s) * 2.0 * k * (1.0 + 3.0 * 0.044_715 * x * x))
        }
    }
}

pub(super) fn fwd<T: Float>(pool: &Pool, y: &mut [T], x: &[T], form: Gelu) {
    for_rows(pool, GRAIN, rows_of(y, 1), |r, y| {
        for (y, x) in y.iter_mut().zip(&x[r]) {
            let x = x.acc().f64();
            *y = T::narrow(T::Acc::of(x * gate(x, form).0));
        }
    });
}

pub(super) fn bwd<T: Float>(pool: &Pool, x: &mut [T], dy: &[T], form: Gelu) {
    for_rows(pool, GRAIN, rows_of(x, 1), |r, x| {
        for (x, dy) in x.iter_mut().zip(&dy[r]) {
            let at = x.acc().f64();
            let (s, slope) = gate(at, form);
            *x = T::narrow(T::Acc::of(dy.acc().f64() * (s + at * slope)));
        }
    });
}

#[cfg(test)]
mod tests {
    /// Abramowitz & Stegun, table 7.1 continued to 16 digits.
    #[test]
    fn erfc_is_exact() {
        for (x, want) in [
            (0.0, 1.0),
            (0.5, 0.479_500_122_186_953_5),
            (1.0, 0.157_299_207_050_285_13),
            (-1.0, 1.842_700_792_949_715),
            (3.0, 2.209_049_699_858_544e-5),
        ] {
            let e = (super::erfc(x) - want).abs() / want;
            assert!(e <= 1e-14, "erfc({x}) is off by {e:e}");
        }
        // Both formulas where one takes over from the other.
        let (below, above) = (super::erfc(2.5 - 1e-15), super::erfc(2.5));
        assert!((below - above).abs() <= 1e-15, "{below} and {above}");
    }
}
