use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Lora, Matrix};

const ROWS: usize = 5;
const IN: usize = 7;
const OUT: usize = 6;
const R: usize = 3;
const SCALE: f64 = 1.7;

/// W (6, 7), bias (6), A (3, 7), B (6, 3), one after the other in one flat tensor.
const SIZES: [(usize, usize); 4] = [(OUT, IN), (1, OUT), (R, IN), (OUT, R)];

fn slots(flat: &Tensor) -> [Slot<'_>; 4] {
    let mut offset = 0;
    SIZES.map(|(rows, cols)| {
        offset += rows * cols;
        Slot { tensor: flat, offset: offset - rows * cols, rows, cols, grad: true }
    })
}

fn layer<'a>(flat: &'a Tensor, dropout: Option<(f64, Stream)>) -> Linear<'a> {
    let [w, bias, a, b] = slots(flat);
    Linear { w: Matrix::Dense(w), bias: Some(bias), lora: Some(Lora { a, b, scale: SCALE, dropout }) }
}

fn fwd(x: &[f64], flat: &[f64], dropout: Option<(f64, Stream)>) -> Vec<f64> {
    let flat = tensor(flat, 1, flat.len(), DType::F64);
    linear::fwd(&tensor(x, ROWS, IN, DType::F64), &layer(&flat, dropout), None).unwrap().0.to_f64()
}

fn total() -> usize {
    SIZES.iter().map(|(r, c)| r * c).sum()
}

#[test]
fn formula() {
    let (x, flat) = (random(1, ROWS * IN), random(2, total()));
    let y = fwd(&x, &flat, None);
    let (w, bias, a, b) = (&flat[..42], &flat[42..48], &flat[48..69], &flat[69..]);
    for r in 0..ROWS {
        let x = &x[r * IN..][..IN];
        let mid: Vec<f64> = (0..R).map(|j| dot(x, &a[j * IN..][..IN])).collect();
        for o in 0..OUT {
            let want = dot(x, &w[o * IN..][..IN]) + bias[o] + SCALE * dot(&mid, &b[o * R..][..R]);
            assert!((y[r * OUT + o] - want).abs() <= 1e-13);
        }
    }
}

#[test]
fn gradients_with_and_without_dropout() {
    let stream = Stream { seed: 5, step: 1, module: 2 };
    for dropout in [None, Some((0.4, stream))] {
        let (x, flat, c) = (random(1, ROWS * IN), random(2, total()), random(3, ROWS * OUT));
        let flat_t = tensor(&flat, 1, total(), DType::F64);
        let (xt, dy) = (tensor(&x, ROWS, IN, DType::F64), tensor(&c, ROWS, OUT, DType::F64));
        let l = layer(&flat_t, dropout);
        let mut grads = tensor(&vec![0.0; total()], 1, total(), DType::F64);
        let (_, saved) = linear::fwd(&xt, &l, None).unwrap();
        let dx = linear::bwd(saved, &xt, &l, &dy, Dx::New, &mut grads).unwrap().unwrap().to_f64();
        check_grad("dx", &x, &dx, |x| dot(&fwd(x, &flat, dropout), &c));
        check_grad("dparams", &flat, &grads.to_f64(), |flat| dot(&fwd(&x, flat, dropout), &c));

        // Added to what is there, and skipped where nobody asks.
        let (_, saved) = linear::fwd(&xt, &l, None).unwrap();
        let base = random(9, ROWS * IN);
        let sum = linear::bwd(saved, &xt, &l, &dy, Dx::AddTo(tensor(&base, ROWS, IN, DType::F64)), &mut grads)
            .unwrap()
            .unwrap();
        let want: Vec<f64> = dx.iter().zip(&base).map(|(a, b)| a + b).collect();
        assert!(max_err(&sum.to_f64(), &want) <= 1e-13);
        let (_, saved) = linear::fwd(&xt, &l, None).unwrap();
        assert!(linear::bwd(saved, &xt, &l, &dy, Dx::Skip, &mut grads).unwrap().is_none());
    }
}

#[test]
fn dropout_zeroes_its_share_and_keeps_the_mean() {
    // With A = the identity, B = the identity and W = 0, y is drop(x) itself.
    let (n, rows, rate) = (8, 4000, 0.25);
    let eye: Vec<f64> = (0..n * n).map(|i| if i / n == i % n { 1.0 } else { 0.0 }).collect();
    let (w, a, b) =
        (tensor(&vec![0.0; n * n], n, n, DType::F32), tensor(&eye, n, n, DType::F32), tensor(&eye, n, n, DType::F32));
    let stream = Stream { seed: 1, step: 0, module: 0 };
    let lora = Lora { a: Slot::whole(&a), b: Slot::whole(&b), scale: 1.0, dropout: Some((rate, stream)) };
    let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: Some(lora) };
    let y = linear::fwd(&tensor(&vec![1.0; n * rows], rows, n, DType::F32), &l, None).unwrap().0.to_f64();
    let dropped = y.iter().filter(|&&y| y == 0.0).count() as f64 / y.len() as f64;
    // Standard deviation sqrt(p (1 - p) / 32000) = 0.0024; five of them.
    assert!((dropped - rate).abs() <= 0.0121, "{dropped}");
    assert!(y.iter().all(|&y| y == 0.0 || (y - 1.0 / (1.0 - rate)).abs() <= 1e-6));
}

#[test]
fn a_residual_is_added() {
    let (x, w, r) = (random(1, 20), random(2, 12), random(3, 15));
    let w = tensor(&w, 3, 4, DType::F64);
    let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: None };
    let x = tensor(&x, 5, 4, DType::F64);
    let plain = linear::fwd(&x, &l, None).unwrap().0.to_f64();
    let with = linear::fwd(&x, &l, Some(&tensor(&r, 5, 3, DType::F64))).unwrap().0.to_f64();
    let want: Vec<f64> = plain.iter().zip(&r).map(|(a, b)| a + b).collect();
    assert!(max_err(&with, &want) <= 1e-14);
}

#[test]
fn refuses_shapes_that_do_not_fit() {
    let w = tensor(&[0.0; 12], 3, 4, DType::F32);
    let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: None };
    assert!(linear::fwd(&tensor(&[0.0; 5], 1, 5, DType::F32), &l, None).is_err());
    assert!(linear::fwd(&tensor(&[0.0; 4], 1, 4, DType::F64), &l, None).is_err(), "another dtype");
}

/// A quantised weight multiplies exactly as its dequantised values do: it is expanded inside the product.
#[test]
fn nf4_equals_its_dequantised_values() {
    use qlora_engine::format::Dtype;
    use qlora_engine::quant::nf4::{Nf4, Nf4Builder};
    for (out, inn) in [(64, 32), (48, 80), (130, 70)] {
        for double in [false, true] {
            let values: Vec<f32> = random(1, out * inn).iter().map(|&x| x as f32).collect();
            let mut builder = Nf4Builder::new(out, inn, Dtype::F32, double).unwrap();
            builder.push(&values, 1).unwrap();
            let q: Nf4 = builder.finish().unwrap();
            let mut dense = vec![0.0f32; out * inn];
            q.dequantise_f32(&mut dense).unwrap();
            let dense: Vec<f64> = dense.iter().map(|&x| f64::from(x)).collect();
            for dtype in [DType::F32, DType::Bf16] {
                let w = tensor(&dense, out, inn, dtype);
                let (x, c) = (tensor(&random(2, 9 * inn), 9, inn, dtype), tensor(&random(3, 9 * out), 9, out, dtype));
                let mut none = tensor(&[], 1, 0, DType::F32);
                let mut run = |w: Matrix| {
                    let l = Linear { w, bias: None, lora: None };
                    let (y, saved) = linear::fwd(&x, &l, None).unwrap();
                    let dx = linear::bwd(saved, &x, &l, &c, Dx::New, &mut none).unwrap().unwrap();
                    (y.to_f64(), dx.to_f64())
                };
                let (quantised, dense) = (run(Matrix::Nf4(&q)), run(Matrix::Dense(Slot::whole(&w))));
                assert_eq!(quantised, dense, "({out}, {inn}) double {double} {dtype:?}");
            }
        }
    }
}

/// A matrix in ggml blocks multiplies exactly as its values do in the activations' dtype, forward and backward, alone or
/// among many rows.
#[test]
fn ggml_equals_its_dequantised_values() {
    use qlora_engine::quant::ggml::{Blocks, GgmlType, can_quantise, dequantise, quantise};
    let (out, inn) = (70, 512);
    let values: Vec<f32> = random(1, out * inn).iter().map(|&x| x as f32).collect();
    for ty in GgmlType::ALL {
        let mut bytes = Vec::new();
        if can_quantise(ty) {
            quantise(ty, &values, &mut bytes);
        } else {
            // Any bytes are blocks: those of another type, with the scales at their ends made finite.
            quantise(GgmlType::Q8_0, &values, &mut bytes);
            bytes.truncate(ty.tensor_bytes(&[inn, out]).unwrap());
            for block in bytes.chunks_exact_mut(ty.block_bytes()) {
                block[ty.block_bytes() - 4..].copy_from_slice(&[0x11, 0x1c, 0x22, 0x1c]);
            }
        }
        let mut dense = vec![f32::NAN; out * inn];
        dequantise(ty, &bytes, &mut dense);
        assert!(dense.iter().all(|x| x.is_finite()), "{ty}");
        let dense: Vec<f64> = dense.iter().map(|&x| f64::from(x)).collect();
        let q = Blocks::new(ty, out, inn, bytes).unwrap();
        for dtype in [DType::F32, DType::Bf16] {
            let w = tensor(&dense, out, inn, dtype);
            for rows in [1, 37] {
                let x = tensor(&random(2, rows * inn), rows, inn, dtype);
                let c = tensor(&random(3, rows * out), rows, out, dtype);
                let mut none = tensor(&[], 1, 0, DType::F32);
                let mut run = |w: Matrix| {
                    let l = Linear { w, bias: None, lora: None };
                    let (y, saved) = linear::fwd(&x, &l, None).unwrap();
                    let dx = linear::bwd(saved, &x, &l, &c, Dx::New, &mut none).unwrap().unwrap();
                    (y.to_f64(), dx.to_f64())
                };
                let (quantised, dense) = (run(Matrix::Ggml(&q)), run(Matrix::Dense(Slot::whole(&w))));
                assert_eq!(quantised, dense, "{ty} {dtype:?} {rows} rows");
            }
        }
        let l = Linear { w: Matrix::Ggml(&q), bias: None, lora: None };
        let e = linear::fwd(&tensor(&random(2, inn), 1, inn, DType::F64), &l, None).err().unwrap().to_string();
        assert!(e.contains(ty.name()), "{e}");
    }
}
