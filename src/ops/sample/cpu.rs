use super::{Ask, CANDIDATES, Mark, Penalties, Picked};

/// What [`super::pick`] says of one row, whose logits are changed by the penalties.
pub(super) fn pick(logits: &mut [f32], ask: &Ask) -> Option<Picked> {
    if !all_finite(logits) {
        return None;
    }
    penalise(logits, &ask.penalties, ask.marks);
    if !all_finite(logits) {
        return None;
    }
    let max = max(logits);
    // The maximum is one of them, and no NaN is: there is such a place.
    let id = logits.iter().position(|&x| x == max).unwrap_or(0) as u32;
    let mut candidates = Vec::new();
    if ask.top_k > 0 {
        let least = kth_largest(logits, ask.top_k, &mut Vec::new());
        candidates = at_least(logits, least).collect();
    }
    (candidates.len() <= CANDIDATES).then_some(Picked { max, id, candidates })
}

/// In f64, each of the two lines rounded to f32: kernels/sample.h.
pub(crate) fn penalise(logits: &mut [f32], p: &Penalties, marks: &[Mark]) {
    for mark in marks {
        let logit = &mut logits[mark.id as usize];
        if p.repetition != 1.0 {
            let x = f64::from(*logit);
            *logit = (if x < 0.0 { x * p.repetition } else { x / p.repetition }) as f32;
        }
        if mark.count > 0 {
            *logit = (f64::from(*logit) - p.presence - p.frequency * f64::from(mark.count)) as f32;
        }
    }
}

pub(crate) fn all_finite(logits: &[f32]) -> bool {
    // Without an early end, which would keep a block from being looked at in wide instructions.
    let strange = |block: &[f32]| block.iter().fold(false, |bad, x| bad | !x.is_finite());
    !logits.chunks(4096).any(strange)
}

/// Tokens whose logits are at least `least`, ascending.
pub(crate) fn at_least(logits: &[f32], least: f32) -> impl Iterator<Item = (u32, f32)> + '_ {
    logits.iter().enumerate().filter(move |(_, x)| **x >= least).map(|(id, &x)| (id as u32, x))
}

/// The largest of finite numbers.
pub(crate) fn max(values: &[f32]) -> f32 {
    const LANES: usize = 16;
    let mut lanes = [f32::NEG_INFINITY; LANES];
    let mut chunks = values.chunks_exact(LANES);
    for chunk in &mut chunks {
        for (m, &x) in lanes.iter_mut().zip(chunk) {
            *m = if x > *m { x } else { *m };
        }
    }
    chunks.remainder().iter().chain(&lanes).fold(f32::NEG_INFINITY, |m, &x| if x > m { x } else { m })
}

/// The `k`-th largest of finite `values`, `1 <= k <= values.len()`. One pass: `top` keeps the largest so far, and is cut
/// down to `k` whenever it has grown to twice that.
pub(crate) fn kth_largest(values: &[f32], k: usize, top: &mut Vec<f32>) -> f32 {
    let descending = |a: &f32, b: &f32| b.total_cmp(a);
    let full = k.saturating_mul(2).max(64);
    top.clear();
    let mut least = f32::NEG_INFINITY;
    for &x in values {
        if x > least || top.len() < k {
            top.push(x);
            if top.len() == full {
                least = *top.select_nth_unstable_by(k - 1, descending).1;
                top.truncate(k);
            }
        }
    }
    *top.select_nth_unstable_by(k - 1, descending).1
}
