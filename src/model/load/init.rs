//! What the trained parameters start with.

use super::{INITIALIZER_RANGE, Options};
use crate::error::Result;
use crate::format::AdapterFile;
use crate::model::base::Base;
use crate::model::params::Entry;
use crate::model::spec::Spec;
use crate::ops::philox::{Stream, normal, uniform};

/// Where a trained parameter's first values come from.
pub(super) enum Init {
    Base(String),
    /// (adapter, tensor name)
    Adapter(usize, String),
    /// Uniform in +-1/sqrt(fan_in), which is what kaiming_uniform with a = sqrt(5) gives.
    KaimingUniform {
        fan_in: usize,
    },
    Zero,
}

/// The values of entry `e`, the `index`-th, whose place of origin is `from`.
///
/// # Errors
/// Those of reading base and adapters.
pub(super) fn first_values(
    e: &Entry,
    index: usize,
    from: &Init,
    o: &Options,
    (spec, base): (&Spec, Option<&Base>),
    adapters: &[AdapterFile],
) -> Result<Vec<f32>> {
    let n = e.rows * e.cols;
    let stream = Stream { seed: o.seed, step: 0, module: index as u32 };
    let mut values = vec![0.0f32; n];
    match (from, base) {
        (Init::Zero, _) => {}
        (Init::KaimingUniform { fan_in }, _) => {
            let bound = 1.0 / (*fan_in as f64).sqrt();
            for (i, x) in values.iter_mut().enumerate() {
                *x = ((f64::from(uniform(stream, i as u64)) * 2.0 - 1.0) * bound) as f32;
            }
        }
        (Init::Adapter(i, name), _) => adapters[*i].tensors.expect(name, &e.shape)?.read_f32(&mut values)?,
        (Init::Base(name), Some(base)) => base.read(spec, name, &e.shape, false, true)?.read_f32(&mut values)?,
        (Init::Base(_), None) if e.name.ends_with(".bias") => {}
        // A norm's scales.
        (Init::Base(_), None) if e.shape.len() == 1 => values.fill(1.0),
        (Init::Base(_), None) => {
            for (i, x) in values.iter_mut().enumerate() {
                *x = (f64::from(normal(stream, i as u64)) * INITIALIZER_RANGE) as f32;
            }
        }
    }
    Ok(values)
}
