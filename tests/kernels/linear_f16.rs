//! Layers over NF4 in f16, held to arithmetic that is written out here: the CPU has no op in f16.

#[cfg(not(feature = "host-asan"))]
use std::sync::Arc;

use half::f16;

use crate::*;
use qlora_engine::device::{Nf4Path, Tile, Wish};
use qlora_engine::format::Dtype;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Lora, Matrix};
use qlora_engine::ops::swiglu;
use qlora_engine::quant::{Code2, DeviceNf4, Nf4, Nf4Builder};
use qlora_engine::tensor::Live;

fn rounded(x: f64) -> f64 {
    f16::from_f64(x).to_f64()
}

fn f16s(x: &[f64]) -> Vec<f64> {
    x.iter().map(|&x| rounded(x)).collect()
}

fn quantised(w: &[f64], out: usize, inn: usize, double: bool) -> Nf4 {
    let mut builder = Nf4Builder::new(out, inn, Dtype::BF16, double).unwrap();
    builder.push(&w.iter().map(|&x| x as f32).collect::<Vec<_>>(), 1).unwrap();
    builder.finish().unwrap()
}

/// Its elements as bitsandbytes dequantises them to float16: code * absmax in f32, rounded once.
fn values(q: &Nf4) -> Vec<f64> {
    let mut wide = vec![f32::NAN; q.rows * q.cols];
    q.dequantise_f32(&mut wide).unwrap();
    wide.iter().map(|&x| f16::from_f32(x).to_f64()).collect()
}

/// A layer and what it is given; numbers are f16.
#[derive(Clone)]
struct Case {
    rows: usize,
    inn: usize,
    out: usize,
    bias: bool,
    residual: bool,
    q: Nf4,
}

impl Case {
    fn new((rows, inn, out): (usize, usize, usize), bias: bool, residual: bool, double: bool) -> Self {
        let root = 1.0 / (inn as f64).sqrt();
        let w: Vec<f64> = random(7, out * inn).iter().map(|x| x * root).collect();
        Case { rows, inn, out, bias, residual, q: quantised(&w, out, inn, double) }
    }

    /// x, dy, the residual, what dx is added to, the bias.
    fn inputs(&self) -> [Vec<f64>; 5] {
        let Case { rows, inn, out, .. } = *self;
        let of = |seed, n| f16s(&random(seed, n));
        [of(1, rows * inn), of(2, rows * out), of(3, rows * out), of(4, rows * inn), of(5, out)]
    }

    /// y, dx, and dx added to what is there; on tensors of `total` rows, of which those past the case's hold NaN.
    fn run(&self, device: &Device, total: usize) -> Vec<Vec<f64>> {
        device.set_step(Step { tokens: self.rows as u32, ..no_step() });
        let [x, dy, residual, before, bias] = self.inputs();
        let of_rows = |mut v: Vec<f64>, cols: usize| {
            v.resize(total * cols, f64::NAN);
            let mut t = tensor(&v, total, cols, DType::F16, device);
            t.set_live(Live::tokens(device).filter(|_| total > self.rows));
            t
        };
        let (x, before) = (of_rows(x, self.inn), of_rows(before, self.inn));
        let (dy, residual) = (of_rows(dy, self.out), of_rows(residual, self.out));
        // The bias lies behind other parameters.
        let params = tensor(&[vec![f64::NAN; 24], bias].concat(), 1, 24 + self.out, DType::F16, device);
        let bias = Slot { offset: 24, cols: self.out, ..Slot::whole(&params) };
        let q = DeviceNf4::upload(&self.q, &Code2::new(device).unwrap()).unwrap();
        let l = Linear { w: Matrix::DeviceNf4(&q), bias: self.bias.then_some(bias), lora: None };
        let mut none = tensor(&[], 1, 0, DType::F32, device);
        let mut back = |dx| {
            let (_, saved) = linear::fwd(&x, &l, None).unwrap();
            linear::bwd(saved, &x, &l, &dy, dx, &mut none).unwrap()
        };
        assert!(back(Dx::Skip).is_none());
        let (dx, added) = (back(Dx::New).unwrap(), back(Dx::AddTo(before)).unwrap());
        let (y, _) = linear::fwd(&x, &l, self.residual.then_some(&residual)).unwrap();
        [y, dx, added].map(|t| t.to_f64()[..self.rows * t.cols()].to_vec()).into()
    }

    /// The same of the dequantised matrix in f64; and `plain`, with sums in f32, rounded to f16 once.
    fn computed(&self, plain: bool) -> Vec<Vec<f64>> {
        let Case { rows, inn, out, .. } = *self;
        let ([x, dy, residual, before, bias], w) = (self.inputs(), values(&self.q));
        let product = |k: usize, a: &dyn Fn(usize) -> f64, b: &dyn Fn(usize) -> f64, more: f64| match plain {
            false => (0..k).map(|i| a(i) * b(i)).sum::<f64>() + more,
            true => {
                let sum = (0..k).fold(0.0f32, |s, i| s + a(i) as f32 * b(i) as f32);
                f16::from_f32(sum + more as f32).to_f64()
            }
        };
        let all = |cols: usize, f: &dyn Fn(usize, usize) -> f64| -> Vec<f64> {
            (0..rows * cols).map(|at| f(at / cols, at % cols)).collect()
        };
        let y = all(out, &|r, o| {
            let more = if self.bias { bias[o] } else { 0.0 } + if self.residual { residual[r * out + o] } else { 0.0 };
            product(inn, &|i| x[r * inn + i], &|i| w[o * inn + i], more)
        });
        let dx = |before: &dyn Fn(usize) -> f64| {
            all(inn, &|r, i| product(out, &|o| dy[r * out + o], &|o| w[o * inn + i], before(r * inn + i)))
        };
        vec![y, dx(&|_| 0.0), dx(&|at| before[at])]
    }
}

/// (rows, in, out): one row, less than a tile with ragged edges, more tiles than one, several steps of depth.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 256, 130), (7, 64, 65), (64, 64, 64), (65, 128, 200), (130, 192, 64), (33, 320, 37)];

#[test]
fn layers_match_reference() {
    for (i, shape) in SHAPES.into_iter().enumerate() {
        for double in [false, true] {
            let c = Case::new(shape, i % 2 == 0, (i / 2 % 2 == 0) == double, double);
            let (want, plain) = (c.computed(false), c.computed(true));
            for tile in [Tile::Large, Tile::Small] {
                let got = on_each(|device| {
                    device.tuning().unwrap().set(Some(Wish { tile: Some(tile), nf4: None }));
                    c.run(device, c.rows)
                });
                for (i, (what, times)) in [("y", 2.0), ("dx", 3.0), ("dx + r", 3.0)].into_iter().enumerate() {
                    let what = format!("{what} {shape:?} double {double} {tile:?}");
                    check(&what, &got[i], &plain[i], &want[i], times);
                }
            }
        }
    }
}

/// Either tile, rows past the live ones full of NaN, the wish for a copy (of which there is none in f16): no bit differs.
#[test]
fn what_is_asked_for_changes_no_bit() {
    let c = Case::new((141, 128, 200), true, true, true);
    let run = |wish, total| {
        on_each(|device| {
            device.tuning().unwrap().set(Some(wish));
            c.run(device, total)
        })
    };
    let first = run(Wish { tile: Some(Tile::Small), nf4: None }, c.rows);
    assert!(first.iter().flatten().all(|x| x.is_finite()));
    let large = Some(Tile::Large);
    for (wish, total) in [
        (Wish { tile: large, nf4: None }, c.rows),
        (Wish { tile: large, nf4: Some(Nf4Path::Scratch) }, 192),
        (Wish::default(), 640),
    ] {
        assert!(run(wish, total) == first, "{wish:?}, {total} rows");
    }
}

/// A group has the bits of its layers alone.
#[test]
fn groups_equal_their_layers_alone() {
    let (rows, inn) = (70, 128);
    let layers = [64, 130, 37, 64].map(|out| quantised(&random(out as u64, out * inn), out, inn, out == 64));
    let run = |together: bool| {
        on_each(|device| {
            let of = |seed, cols: usize| tensor(&random(seed, rows * cols), rows, cols, DType::F16, device);
            let x = of(1, inn);
            let on_device = layers.each_ref().map(|q| DeviceNf4::upload(q, &Code2::new(device).unwrap()).unwrap());
            let l = on_device.each_ref().map(|q| Linear { w: Matrix::DeviceNf4(q), bias: None, lora: None });
            let dys = on_device.each_ref().map(|q| of(2, q.rows));
            let mut none = tensor(&[], 1, 0, DType::F32, device);
            if together {
                let made = linear::fwd_group(&x, l, [None; 4]).unwrap();
                let mut all: Vec<_> = made.iter().map(|(y, _)| y.to_f64()).collect();
                let dx = linear::bwd_group(made.map(|m| m.1), &x, l, dys.each_ref(), Dx::New, &mut none).unwrap();
                all.push(dx.unwrap().to_f64());
                return all;
            }
            let (mut all, mut sum) = (Vec::new(), Dx::New);
            for (l, dy) in l.iter().zip(&dys) {
                let (y, saved) = linear::fwd(&x, l, None).unwrap();
                all.push(y.to_f64());
                sum = Dx::AddTo(linear::bwd(saved, &x, l, dy, sum, &mut none).unwrap().unwrap());
            }
            let Dx::AddTo(dx) = sum else { panic!("there are layers") };
            all.push(dx.to_f64());
            all
        })
    };
    let alone = run(false);
    assert!(alone.iter().flatten().all(|x| x.is_finite()));
    assert!(run(true) == alone);
}

/// One launch forward for all members, one for each backward, whatever is wished; and the arena that the plan of the same code
/// gives it is enough.
#[cfg(not(feature = "host-asan"))] // there nothing is recorded
#[test]
fn a_group_shares_its_launches() {
    let (rows, inn, outs) = (40, 64, [128, 64, 64]);
    let (planned, device) = (Device::plan_kernels(), Device::host_kernels(2, false).unwrap());
    let layers = outs.map(|out| {
        let q = quantised(&random(7, out * inn), out, inn, true);
        DeviceNf4::upload(&q, &Code2::new(&device).unwrap()).unwrap()
    });
    let pass = |device: &Device| {
        device.tuning().unwrap().set(Some(Wish { tile: Some(Tile::Small), nf4: Some(Nf4Path::Scratch) }));
        let of = |cols: usize| Tensor::unwritten(rows, cols, DType::F16, device).unwrap();
        (of(inn), outs.map(of), Tensor::zeros(1, 0, DType::F32, device).unwrap())
    };
    let step = |(x, dys, none): &mut (Tensor, [Tensor; 3], Tensor)| {
        let l = layers.each_ref().map(|q| {
            let w = if x.device().is_plan() { Matrix::Planned(q.rows, q.cols) } else { Matrix::DeviceNf4(q) };
            Linear { w, bias: None, lora: None }
        });
        let made = linear::fwd_group(x, l, [None; 3])?;
        linear::bwd_group(made.map(|m| m.1), x, l, dys.each_ref(), Dx::New, none).map(drop)
    };
    let mut dry = pass(&planned);
    let _ = planned.take_plan();
    step(&mut dry).unwrap();
    let layout = Arc::new(planned.take_plan().unwrap().0.layout());
    let memory = device.reserve(layout.bytes()).unwrap();
    let mut inputs = pass(&device);
    let graph = memory.run(&layout, || device.capture(|| step(&mut inputs))).unwrap().unwrap();
    let want = ["gemm_nf4_nt_64_f16", "gemm_nf4_nn_64_f16", "gemm_nf4_nn_64_f16", "gemm_nf4_nn_64_f16"];
    assert_eq!(graph.kernels(), want);
}

/// Rows of the identity pick W's elements out: those of the product are the dequantised ones to the bit, subnormal ones (below
/// 2^-14) too.
#[test]
fn the_matrix_is_the_dequantised_one() {
    let identity = |n: usize| -> Vec<f64> { (0..n * n).map(|i| f64::from(u8::from(i / n == i % n))).collect() };
    for (inn, out, double, scale) in [(64, 130, false, 1.0), (192, 70, true, 1.0), (128, 64, true, 2e-6)] {
        let w: Vec<f64> = random(7, inn * out).iter().map(|x| x * scale).collect();
        let q = quantised(&w, out, inn, double);
        let want = values(&q);
        let subnormal = want.iter().filter(|x| **x != 0.0 && x.abs() < 2f64.powi(-14)).count();
        assert_eq!(subnormal > want.len() / 2, scale < 1.0, "{subnormal} of {}", want.len());
        let got = on_each(|device| {
            let q = DeviceNf4::upload(&q, &Code2::new(device).unwrap()).unwrap();
            let l = Linear { w: Matrix::DeviceNf4(&q), bias: None, lora: None };
            let of = |n: usize, rows: usize| {
                let mut v = identity(n);
                v.resize(rows * n, 0.0);
                tensor(&v, rows, n, DType::F16, device)
            };
            let rows = inn.max(out);
            let (x, dy) = (of(inn, rows), of(out, rows));
            let (y, saved) = linear::fwd(&x, &l, None).unwrap();
            let mut none = tensor(&[], 1, 0, DType::F32, device);
            let dx = linear::bwd(saved, &x, &l, &dy, Dx::New, &mut none).unwrap().unwrap();
            vec![y.to_f64()[..inn * out].to_vec(), dx.to_f64()[..inn * out].to_vec()]
        });
        for (at, w) in want.iter().enumerate() {
            let (o, i) = (at / inn, at % inn);
            assert_eq!((got[0][i * out + o], got[1][at]), (*w, *w), "W[{o}, {i}] of ({out}, {inn})");
        }
    }
}

/// Results of 65520 and more are infinite, those below are not, and sums may pass that on their way: W is 256 throughout.
#[test]
fn what_f16_cannot_hold_is_infinite() {
    let q = quantised(&[256.0; 2 * 64], 2, 64, false);
    assert_eq!(values(&q), [256.0; 2 * 64]);
    // 255.875 * 256 = 65504 is the largest number.
    let rows = [
        (vec![255.875], 65504.0),
        (vec![255.875, 15.0 / 256.0], 65504.0),
        (vec![255.875, 16.0 / 256.0], f64::INFINITY),
        (vec![-255.875, -16.0 / 256.0], f64::NEG_INFINITY),
        (vec![255.875, 255.875, -255.875], 65504.0),
        (vec![65504.0; 64], f64::INFINITY),
    ];
    let x: Vec<f64> = rows.iter().flat_map(|(x, _)| (0..64).map(|i| x.get(i).copied().unwrap_or(0.0))).collect();
    let y = on_each(|device| {
        let q = DeviceNf4::upload(&q, &Code2::new(device).unwrap()).unwrap();
        let l = Linear { w: Matrix::DeviceNf4(&q), bias: None, lora: None };
        let x = tensor(&x, rows.len(), 64, DType::F16, device);
        vec![linear::fwd(&x, &l, None).unwrap().0.to_f64()]
    });
    for (i, (x, want)) in rows.iter().enumerate() {
        assert_eq!(y[0][2 * i..][..2], [*want; 2], "{x:?}");
    }
}

#[test]
fn what_there_is_none_of_in_f16_is_refused() {
    let device = Device::host_kernels(1, false).unwrap();
    let t = |rows: usize, cols: usize, dtype| tensor(&vec![0.5; rows * cols], rows, cols, dtype, &device);
    let refused = |x: &Tensor, l: Linear, why: &str| {
        let error = linear::fwd(x, &l, None).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    };
    let on_host = quantised(&[0.5; 2 * 64], 2, 64, false);
    let code2 = Code2::new(&device).unwrap();
    let q = DeviceNf4::upload(&on_host, &code2).unwrap();
    let (x, w) = (t(3, 64, DType::F16), t(2, 64, DType::F16));
    let (a, b, bias) = (t(4, 64, DType::F16), t(2, 4, DType::F16), t(1, 2, DType::F16));
    let bare = Linear { w: Matrix::DeviceNf4(&q), bias: None, lora: None };
    assert!(linear::fwd(&x, &bare, None).is_ok());
    for w in [Matrix::Dense(Slot::whole(&w)), Matrix::Nf4(&on_host)] {
        refused(&x, Linear { w, ..bare }, "a matrix other than NF4 in the memory of a GPU");
    }
    let lora = Lora { a: Slot::whole(&a), b: Slot::whole(&b), scale: 1.0, dropout: None };
    refused(&x, Linear { lora: Some(lora), ..bare }, "an adapter");
    let trained = Slot { grad: true, ..Slot::whole(&bias) };
    refused(&x, Linear { bias: Some(trained), ..bare }, "a trained bias");
    let low = t(1, 2, DType::Bf16);
    refused(&x, Linear { bias: Some(Slot::whole(&low)), ..bare }, "is Bf16, x is F16");
    let ragged = DeviceNf4::upload(&quantised(&[0.5; 2 * 70], 2, 70, false), &code2).unwrap();
    let l = Linear { w: Matrix::DeviceNf4(&ragged), ..bare };
    refused(&t(3, 70, DType::F16), l, "70 in-features, no multiple of the 64");
    let decoded = linear::decode(&x, &bare, None).map(|_| ()).unwrap_err().to_string();
    assert!(decoded.contains("F16: kernels do not compute that"), "{decoded}");
    // Other ops, on kernels and on the CPU.
    let other = swiglu::fwd(&x, &x).map(|_| ()).unwrap_err().to_string();
    assert!(other.contains("F16: kernels do not compute that"), "{other}");
    let cpu = Device::cpu(1);
    let x = tensor(&[0.5; 64], 1, 64, DType::F16, &cpu);
    let other = swiglu::fwd(&x, &x).map(|_| ()).unwrap_err().to_string();
    assert!(other.contains("f16: is for layers over an NF4 matrix on a GPU alone"), "{other}");
    refused(&x, Linear { w: Matrix::Nf4(&on_host), ..bare }, "a matrix other than NF4 in the memory of a GPU");
}
