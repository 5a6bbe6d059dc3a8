use super::{Group, Linear, Lora, Matrix, ggml_ref, nf4_ref};
use crate::device::gemm::{Src, View, gemm};
use crate::device::par::{for_ranges, for_rows, rows_of};
use crate::device::pool::Pool;
use crate::device::simd::wide;
use crate::ops::philox::{Stream, uniform};
use crate::ops::{mat, out};
use crate::tensor::{Float, Real, Tensor};

impl<'a> Matrix<'a> {
    /// (out, in) for the backward pass, its transpose for the forward pass.
    ///
    /// bitsandbytes dequantises to the activations' dtype in the forward pass and to the checkpoint's in the backward
    /// pass, so with f32 activations over a bf16 checkpoint only the latter rounds.
    fn view<T: Float>(&self, transpose: bool) -> View<'a> {
        let (o, i) = self.dims();
        let src = match self {
            Matrix::Dense(s) => T::src(s.slice::<T>()),
            Matrix::Nf4(q) => Src::Nf4(nf4_ref(q, !transpose)),
            Matrix::Ggml(q) => Src::Ggml(ggml_ref(q)),
            Matrix::DeviceNf4(_) | Matrix::DeviceGgml(_) | Matrix::Planned(..) => {
                unreachable!("refused by the op's check, or only counted")
            }
        };
        let view = View::new(src, o, i);
        if transpose { view.t() } else { view }
    }
}

pub(super) fn fwd<T: Float>(
    pool: &Pool,
    y: &mut [T],
    x: &[T],
    dropped: Option<&[T]>,
    l: &Linear,
    add: bool,
    p: Option<&mut [T]>,
) {
    let (o, i) = l.w.dims();
    let rows = x.len() / i;
    gemm(Some(pool), 1.0, mat(x, rows, i), l.w.view::<T>(true), if add { 1.0 } else { 0.0 }, out(y, o));
    if let Some(bias) = &l.bias {
        let bias = bias.slice::<T>();
        for_rows(pool, 16, rows_of(y, o), |_, y| {
            wide!({
                y.chunks_exact_mut(o)
                    .for_each(|row| row.iter_mut().zip(bias).for_each(|(y, b)| *y = T::narrow(y.acc() + b.acc())))
            })
        });
    }
    if let (Some(lora), Some(p)) = (&l.lora, p) {
        self::lora(Some(pool), y, dropped.unwrap_or(x), lora, p);
    }
}

/// As [`lora`], of each group's rows with its adapter. Several share the threads.
pub(super) fn loras<T: Float>(pool: &Pool, y: &mut [T], x: &[T], groups: &[Group]) {
    let with: Vec<_> = groups.iter().filter_map(|(rows, lora)| Some((rows.clone(), lora.as_ref()?))).collect();
    let Some((_, first)) = with.first() else { return };
    let (o, i) = (first.b.rows, first.a.cols);
    let ranges: Vec<_> = with.iter().map(|(rows, _)| rows.clone()).collect();
    let one = |pool: Option<&Pool>, at: usize, y: &mut [T]| {
        let (rows, lora) = &with[at];
        let mut p = vec![T::narrow(T::Acc::of(0.0)); rows.len() * lora.a.rows];
        self::lora(pool, y, &x[rows.start * i..rows.end * i], lora, &mut p);
    };
    match &*ranges {
        [rows] => one(Some(pool), 0, &mut y[rows.start * o..rows.end * o]),
        ranges => for_ranges(pool, ranges, rows_of(y, o), |at, y| one(None, at, y)),
    }
}

/// y += p B^T, with p = s x A^T.
fn lora<T: Float>(pool: Option<&Pool>, y: &mut [T], x: &[T], lora: &Lora, p: &mut [T]) {
    let (o, r, i) = (lora.b.rows, lora.a.rows, lora.a.cols);
    let rows = x.len() / i;
    gemm(pool, 1.0, mat(x, rows, i), mat(lora.a.slice::<T>(), r, i).t(), 0.0, out(p, r));
    scale(p, lora.scale);
    gemm(pool, 1.0, mat(p, rows, r), mat(lora.b.slice::<T>(), o, r).t(), 1.0, out(y, o));
}

#[allow(clippy::too_many_arguments)] // the operands of three products
pub(super) fn bwd<T: Float>(
    pool: &Pool,
    mut dx: Option<&mut [T]>,
    accumulate: bool,
    x: &[T],
    dropped: Option<&mut [T]>,
    l: &Linear,
    dy: &[T],
    lora_mid: Option<(&[T], &mut [T])>,
    grads: &mut Tensor,
) {
    let (o, i) = l.w.dims();
    let rows = x.len() / i;
    if let Some(w) = l.w.trained() {
        gemm(Some(pool), 1.0, mat(dy, rows, o).t(), mat(x, rows, i), 1.0, out(w.grad_of::<T::Acc>(grads), i));
    }
    if let Some(bias) = l.bias.filter(|b| b.grad) {
        let g = bias.grad_of::<T::Acc>(grads);
        wide!(dy.chunks_exact(o).for_each(|row| g.iter_mut().zip(row).for_each(|(g, d)| *g += d.acc())));
    }
    if let Some(dx) = dx.as_deref_mut() {
        gemm(Some(pool), 1.0, mat(dy, rows, o), l.w.view::<T>(false), if accumulate { 1.0 } else { 0.0 }, out(dx, i));
    }
    let (Some(lora), Some((p, q))) = (&l.lora, lora_mid) else { return };
    let r = lora.a.rows;
    if lora.b.grad {
        gemm(Some(pool), 1.0, mat(dy, rows, o).t(), mat(p, rows, r), 1.0, out(lora.b.grad_of::<T::Acc>(grads), r));
    }
    gemm(Some(pool), 1.0, mat(dy, rows, o), mat(lora.b.slice::<T>(), o, r), 0.0, out(q, r));
    scale(q, lora.scale);
    if lora.a.grad {
        let xd = dropped.as_deref().unwrap_or(x);
        gemm(Some(pool), 1.0, mat(q, rows, r).t(), mat(xd, rows, i), 1.0, out(lora.a.grad_of::<T::Acc>(grads), i));
    }
    let Some(dx) = dx else { return };
    match (dropped, lora.dropout) {
        (Some(masked), Some((rate, stream))) => {
            // drop(x) is not needed any more: its place takes Q A, whose mask is then applied on the way into dx.
            gemm(Some(pool), 1.0, mat(q, rows, r), mat(lora.a.slice::<T>(), r, i), 0.0, out(masked, i));
            let keep = T::Acc::of(1.0 / (1.0 - rate));
            for_rows(pool, 4096, rows_of(dx, 1), |range, dx| {
                for (k, dx) in range.zip(dx) {
                    if f64::from(uniform(stream, k as u64)) >= rate {
                        *dx = T::narrow(dx.acc() + masked[k].acc() * keep);
                    }
                }
            });
        }
        _ => gemm(Some(pool), 1.0, mat(q, rows, r), mat(lora.a.slice::<T>(), r, i), 1.0, out(dx, i)),
    }
}

fn scale<T: Float>(x: &mut [T], by: f64) {
    let by = T::Acc::of(by);
    wide!(x.iter_mut().for_each(|x| *x = T::narrow(x.acc() * by)));
}

/// y = x / (1 - rate), or 0 with probability `rate`.
pub(super) fn dropout<T: Float>(pool: &Pool, y: &mut [T], x: &[T], rate: f64, stream: Stream) {
    let keep = T::Acc::of(1.0 / (1.0 - rate));
    for_rows(pool, 4096, rows_of(y, 1), |range, y| {
        for (k, y) in range.zip(y) {
            let kept = f64::from(uniform(stream, k as u64)) >= rate;
            *y = if kept { T::narrow(x[k].acc() * keep) } else { T::narrow(T::Acc::of(0.0)) };
        }
    });
}
