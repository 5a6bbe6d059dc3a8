//! Golden files, distances, and a list of everything that failed.

use std::path::{Path, PathBuf};

use qlora_engine::format::safetensors::{Dtype, TensorSpec, write_file};
use qlora_engine::format::{Checkpoint, TensorView};

/// A file or folder under `tests/golden`.
pub fn golden(path: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(path)
}

/// Parses a JSON file.
pub fn json(path: &Path) -> serde_json::Value {
    let text = std::fs::read_to_string(path).unwrap_or_else(|e| panic!("{}: {e}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|e| panic!("{}: {e}", path.display()))
}

/// A tensor's values.
pub fn values(file: &Checkpoint, name: &str) -> Vec<f32> {
    let view = file.get(name).unwrap();
    let mut out = vec![f32::NAN; view.len()];
    view.read_f32(&mut out).unwrap();
    out
}

/// Whether a matrix lies in its checkpoint as (in, out).
pub fn lies_transposed(name: &str) -> bool {
    [".c_attn.weight", ".c_proj.weight", ".c_fc.weight"].iter().any(|end| name.ends_with(end))
}

/// A (rows, cols) matrix -> (cols, rows).
pub fn transposed<T: Copy>(x: &[T], rows: usize, cols: usize) -> Vec<T> {
    (0..cols).flat_map(|c| (0..rows).map(move |r| x[r * cols + c])).collect()
}

/// A linear layer's matrix as (out, in).
pub fn with_matrix<R>(file: &Checkpoint, name: &str, f: impl FnOnce(&TensorView) -> R) -> R {
    let view = file.get(name).unwrap();
    if !lies_transposed(name) {
        return f(&view);
    }
    let ([rows, cols], size) = (<[usize; 2]>::try_from(view.shape).unwrap(), view.dtype.size());
    let elements: Vec<&[u8]> = view.bytes.chunks_exact(size).collect();
    let bytes = transposed(&elements, rows, cols).concat();
    f(&TensorView { shape: &[cols, rows], bytes: &bytes, ..view })
}

pub fn widen(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&x| f64::from(x)).collect()
}

/// |got - want| / |want| in the 2-norm. NaN if either holds one.
pub fn distance(got: &[f64], want: &[f64]) -> f64 {
    assert_eq!(got.len(), want.len(), "as many values");
    let norm = |x: &mut dyn Iterator<Item = f64>| x.map(|x| x * x).sum::<f64>().sqrt();
    let off = norm(&mut got.iter().zip(want).map(|(g, w)| g - w));
    if off == 0.0 { 0.0 } else { off / norm(&mut want.iter().copied()) }
}

/// |got - want| / |want|; the distance itself from a 0.
pub fn relative(got: f64, want: f64) -> f64 {
    (got - want).abs() / if want == 0.0 { 1.0 } else { want.abs() }
}

/// Collects what failed, so that one run of the test shows all of it.
#[derive(Default)]
pub struct Failures(pub Vec<String>);

impl Failures {
    /// `error` at most `limit`; NaN fails.
    pub fn at_most(&mut self, what: &str, error: f64, limit: f64) {
        let within = error <= limit;
        if !within {
            self.0.push(format!("{what}: off by {error:.2e}, limit {limit:.2e}"));
        }
    }

    pub fn equal<T: PartialEq + std::fmt::Debug>(&mut self, what: &str, got: &T, want: &T) {
        if got != want {
            let (mut got, mut want) = (format!("{got:?}"), format!("{want:?}"));
            for text in [&mut got, &mut want] {
                if text.chars().count() > 200 {
                    *text = text.chars().take(200).collect::<String>() + "…";
                }
            }
            self.0.push(format!("{what}: {got}, must be {want}"));
        }
    }

    /// # Panics
    /// With everything that failed.
    pub fn report(self) {
        assert!(self.0.is_empty(), "{} failures\n{}", self.0.len(), self.0.join("\n"));
    }
}

/// Copies the folder `from` to `to` with every tensor of its `file` replaced by what `change(name, values)` makes of it,
/// stored as `dtype`. Folders inside are left out.
pub fn rewritten(from: &Path, to: &Path, file: &str, dtype: Dtype, mut change: impl FnMut(&str, &mut Vec<f32>)) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_file() && entry.file_name() != file {
            std::fs::copy(entry.path(), to.join(entry.file_name())).unwrap();
        }
    }
    let tensors = Checkpoint::open_file(&from.join(file)).unwrap();
    let names: Vec<String> = tensors.names().map(String::from).collect();
    let specs: Vec<TensorSpec> =
        names.iter().map(|n| TensorSpec::new(n, dtype, tensors.get(n).unwrap().shape)).collect();
    write_file(&to.join(file), &specs, |spec, sink| {
        let mut x = values(&tensors, &spec.name);
        change(&spec.name, &mut x);
        match dtype {
            Dtype::BF16 => sink.bf16(&x.iter().map(|&x| half::bf16::from_f32(x)).collect::<Vec<_>>()),
            _ => sink.f32(&x),
        }
    })
    .unwrap();
}
