use std::ops::Range;

use crate::error::{Error, Result};
use crate::tensor::{DType, Real, Tensor};

/// What the products Q K^T / sqrt(d) become before the softmax; by default nothing else.
#[derive(Clone, Copy, Default)]
pub struct Scores<'a> {
    /// (1, heads) f32, ALiBi's: `slopes[h] * (j - i)` is added to the score of query i and key j. (Press et al. 2021,
    /// arXiv:2108.12409, section 3.)
    pub slopes: Option<&'a Tensor>,
    /// Scores become `cap * tanh(score / cap)`, before ALiBi's part is added; above 0. (Gemma 2, arXiv:2408.00118, section 2,
    /// "logit soft-capping".)
    pub soft_cap: Option<f64>,
}

impl Scores<'_> {
    /// # Errors
    /// [`Error::Shape`] unless the slopes are those of as many heads, and on kernels where `q` is; for a cap that is not above 0 in f32.
    pub(super) fn check(&self, q: &Tensor, heads: usize) -> Result<()> {
        if let Some(slopes) = self.slopes {
            slopes.expect("attention slopes", 1, heads, DType::F32)?;
            if slopes.device().runs_kernels() != q.device().runs_kernels() {
                return Err(Error::shape("attention slopes", "are not where q is"));
            }
        }
        let fits = |cap: f64| (cap as f32) > 0.0 && (cap as f32).is_finite();
        match self.soft_cap {
            Some(cap) if !fits(cap) => Err(Error::shape("attention soft_cap", format!("is {cap}; must be above 0"))),
            _ => Ok(()),
        }
    }

    /// As one head sees them, on the CPU.
    pub(super) fn of<A: Real>(&self, head: usize, head_dim: usize) -> Head<A> {
        let slope = self.slopes.map_or(0.0, |t| t.slice::<f32>()[head]);
        Head {
            scale: A::of(1.0 / (head_dim as f64).sqrt()),
            slope: A::of(f64::from(slope)),
            cap: self.soft_cap.map(A::of),
            plain: self.slopes.is_none() && self.soft_cap.is_none(),
        }
    }
}

/// Scores of one head.
#[derive(Clone, Copy)]
pub(super) struct Head<A> {
    pub scale: A,
    slope: A,
    cap: Option<A>,
    /// A score is `scale` times its product.
    pub plain: bool,
}

impl<A: Real> Head<A> {
    /// The score of a product q . k of a key `behind` places before its query, and its derivative by the product.
    #[inline(always)]
    pub fn of(&self, product: A, behind: usize) -> (A, A) {
        let (mut x, mut slack) = (self.scale * product, self.scale);
        if let Some(cap) = self.cap {
            let t = (x / cap).tanh();
            x = cap * t;
            slack *= A::of(1.0) - t * t;
        }
        (x - self.slope * A::of(behind as f64), slack)
    }

    /// Turns the products of a query with the keys that it sees, its own last, into scores; returns what is still to multiply
    /// them with.
    #[inline(always)]
    pub fn prepare(&self, products: &mut [A], see: &Range<usize>) -> A {
        if self.plain {
            return self.scale;
        }
        for (c, s) in products[see.clone()].iter_mut().enumerate() {
            *s = self.of(*s, see.len() - 1 - c).0;
        }
        A::of(1.0)
    }
}
