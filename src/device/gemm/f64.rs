//! The f64 product: one plain loop, the oracle for the others. Each element is one chain of `sum += a * b` in ascending k.

use super::{Dst, DstView, Src, View};
use crate::device::pool::Pool;
use half::bf16;

fn get(src: &Src<'_>, i: usize) -> f64 {
    match src {
        Src::F64(x) => x[i],
        Src::F32(x) => f64::from(x[i]),
        Src::Bf16(x) => x[i].to_f64(),
        Src::Nf4(q) => f64::from(q.get(i)),
        Src::Ggml(q) => f64::from(q.get(i)),
    }
}

/// Columns summed at a time.
const COLS: usize = 64;

/// A result that tasks write row by row.
enum Out {
    F64(*mut f64),
    F32(*mut f32),
    Bf16(*mut bf16),
}
// SAFETY: each task writes rows of its own.
unsafe impl Sync for Out {}

/// C = alpha * A * B + beta * C for checked views.
pub(super) fn gemm(pool: Option<&Pool>, alpha: f32, a: &View<'_>, b: &View<'_>, beta: f32, c: &mut DstView<'_>) {
    let (m, n, ldc) = (c.rows, c.cols, c.row_stride);
    let out = match &mut c.dst {
        Dst::F64(x) => Out::F64(x.as_mut_ptr()),
        Dst::F32(x) => Out::F32(x.as_mut_ptr()),
        Dst::Bf16(x) => Out::Bf16(x.as_mut_ptr()),
    };
    let out = &out;
    let row = |i: usize| {
        for j0 in (0..n).step_by(COLS) {
            let cols = COLS.min(n - j0);
            let mut sum = [0.0f64; COLS];
            for k in 0..a.cols {
                let x = get(&a.src, i * a.row_stride + k * a.col_stride);
                let at = k * b.row_stride + j0 * b.col_stride;
                if let (Src::F64(b), 1) = (&b.src, b.col_stride) {
                    for (s, y) in sum[..cols].iter_mut().zip(&b[at..at + cols]) {
                        *s += x * y;
                    }
                    continue;
                }
                for (j, s) in sum.iter_mut().enumerate().take(cols) {
                    *s += x * get(&b.src, at + j * b.col_stride);
                }
            }
            for (j, s) in sum.iter().enumerate().take(cols) {
                let at = i * ldc + j0 + j;
                let v = f64::from(alpha) * s;
                // SAFETY: inside the checked view; row i is this task's alone.
                unsafe {
                    match out {
                        Out::F64(p) => *p.add(at) = if beta == 0.0 { v } else { v + *p.add(at) },
                        Out::F32(p) => *p.add(at) = if beta == 0.0 { v } else { v + f64::from(*p.add(at)) } as f32,
                        Out::Bf16(p) => {
                            let v = if beta == 0.0 { v } else { v + (*p.add(at)).to_f64() };
                            *p.add(at) = bf16::from_f64(v);
                        }
                    }
                }
            }
        }
    };
    match pool {
        Some(p) if m * n * a.cols > 100_000 => p.run(m, &row),
        _ => (0..m).for_each(row),
    }
}
