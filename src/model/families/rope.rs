//! Frequencies of the rotary embedding under each scaling, as transformers computes them.

use std::f64::consts::PI;

use crate::error::{Error, Result};
use crate::format::HfConfig;
use crate::format::hf_config::RopeKind;
use crate::model::spec::Rope;

/// The rotary embedding of a config, for sequences of up to `longest` tokens.
///
/// # Errors
/// [`Error::Config`] for dynamic and longrope scaling beyond the length that the model was made for.
pub(super) fn rope(c: &HfConfig, longest: usize) -> Result<Rope> {
    let mut rope = frequencies(c.head_dim, c.rope.theta, &c.rope.kind, c.max_position_embeddings, longest)?;
    if let Some(divisors) = &c.rope_divisors {
        rope.freq.iter_mut().zip(divisors).for_each(|(f, d)| *f /= d);
    }
    Ok(rope)
}

fn frequencies(head_dim: usize, theta: f64, kind: &RopeKind, made_for: usize, longest: usize) -> Result<Rope> {
    // f32 from the power on, as in PyTorch.
    let base: Vec<f32> =
        (0..head_dim / 2).map(|i| 1.0 / (theta as f32).powf((2 * i) as f32 / head_dim as f32)).collect();
    let plain = |freq: Vec<f32>| Ok(Rope { freq, factor: 1.0 });
    match kind.clone() {
        RopeKind::Default => plain(base),
        RopeKind::Linear { factor } => plain(base.iter().map(|f| f / factor as f32).collect()),
        // Below the length that the model was made for, dynamic scaling changes nothing.
        RopeKind::Dynamic { .. } if longest <= made_for => plain(base),
        RopeKind::Dynamic { .. } => {
            let why =
                format!("dynamic changes with the length of each batch and is not built beyond {made_for} tokens");
            Err(Error::config("rope_scaling", format!("{why}; use linear, yarn or llama3, or a cutoff_len up to that")))
        }
        RopeKind::LongRope { original_max_position_embeddings, .. } if longest > original_max_position_embeddings => {
            let why = format!(
                "longrope turns otherwise beyond {original_max_position_embeddings} tokens, which is not built"
            );
            Err(Error::config("rope_scaling", format!("{why}; use a cutoff_len up to that")))
        }
        RopeKind::LongRope { short_factor, attention_factor, factor, original_max_position_embeddings } => {
            let context = original_max_position_embeddings as f64;
            let ratio = factor.unwrap_or(made_for as f64 / context);
            let spread = if ratio <= 1.0 { 1.0 } else { (1.0 + ratio.ln() / context.ln()).sqrt() };
            let scaled = (0..head_dim / 2)
                .zip(&short_factor)
                .map(|(i, by)| 1.0 / (*by as f32 * (theta as f32).powf((2 * i) as f32 / head_dim as f32)));
            Ok(Rope { freq: scaled.collect(), factor: attention_factor.unwrap_or(spread) })
        }
        RopeKind::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_position_embeddings } => {
            let context = original_max_position_embeddings as f64;
            let scale = |&f: &f32| {
                let wavelength = 2.0 * PI / f64::from(f);
                if wavelength < context / high_freq_factor {
                    f
                } else if wavelength > context / low_freq_factor {
                    (f64::from(f) / factor) as f32
                } else {
                    let smooth = (context / wavelength - low_freq_factor) / (high_freq_factor - low_freq_factor);
                    ((1.0 - smooth) * f64::from(f) / factor + smooth * f64::from(f)) as f32
                }
            };
            plain(base.iter().map(scale).collect())
        }
        RopeKind::Yarn {
            factor,
            original_max_position_embeddings,
            attention_factor,
            mscale,
            mscale_all_dim,
            beta_fast,
            beta_slow,
            truncate,
        } => {
            let d = head_dim as f64;
            let turns =
                |n: f64| d * (original_max_position_embeddings as f64 / (n * 2.0 * PI)).ln() / (2.0 * theta.ln());
            let (low, high) = (turns(beta_fast), turns(beta_slow));
            let (low, high) = if truncate { (low.floor(), high.ceil()) } else { (low, high) };
            let (low, high) = (low.max(0.0), high.min(d - 1.0));
            let span = if low == high { 0.001 } else { high - low };
            let blend = |(i, &f): (usize, &f32)| {
                let interpolated = ((i as f64 - low) / span).clamp(0.0, 1.0);
                (f64::from(f) / factor * interpolated + f64::from(f) * (1.0 - interpolated)) as f32
            };
            let scale = |s: f64, m: f64| if s <= 1.0 { 1.0 } else { 0.1 * m * s.ln() + 1.0 };
            let ratio = match (mscale, mscale_all_dim) {
                (Some(a), Some(b)) if a != 0.0 && b != 0.0 => scale(factor, a) / scale(factor, b),
                _ => scale(factor, 1.0),
            };
            let freq = base.iter().enumerate().map(blend).collect();
            Ok(Rope { freq, factor: attention_factor.unwrap_or(ratio) })
        }
    }
}
