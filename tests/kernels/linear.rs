use crate::*;
use qlora_engine::device::abi::Step;
use qlora_engine::format::Dtype;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Lora, Matrix};
use qlora_engine::quant::{Code2, DeviceNf4, Nf4, Nf4Builder};
use qlora_engine::tensor::Live;

const STREAM: Stream = Stream { seed: 0x0123_4567_89AB_CDEF, step: 9, module: 5 };
const SCALE: f64 = 1.25;
const RATE: f64 = 0.3;

/// A layer and what it is given; numbers are bf16.
struct Case {
    rows: usize,
    inn: usize,
    out: usize,
    /// 0: no adapter.
    r: usize,
    bias: bool,
    residual: bool,
    dropout: bool,
    /// Quantised, its absmax too: `Some(double)`.
    nf4: Option<bool>,
    seed: u64,
}

impl std::fmt::Display for Case {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Case { rows, inn, out, r, bias, residual, dropout, nf4, .. } = self;
        write!(
            f,
            "({rows}, {inn}) -> {out}, rank {r}, bias {bias}, residual {residual}, dropout {dropout}, nf4 {nf4:?}"
        )
    }
}

/// How the rows of the run are laid out: all of them hold something, or the tensors have more, full of NaN.
#[derive(Clone, Copy)]
enum Rows {
    All,
    Of(usize),
}

/// y, dx, dx added to what is there, the flat gradient (W where it is dense, bias, A, B) added to 1.
fn run(c: &Case, dtype: DType, device: &Device, rows: Rows) -> Vec<Vec<f64>> {
    let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let total = if let Rows::Of(n) = rows { n } else { c.rows };
    let step = Step {
        tokens: c.rows as u32,
        sequences: 1,
        loss_rows: 0,
        micro_step: STREAM.step,
        seed: STREAM.seed,
        scale: 0.0,
        noise: 0.0,
    };
    device.set_step(step);
    let of_rows = |seed: u64, cols: usize| {
        let mut v = bf16s(&random(c.seed + seed, c.rows * cols));
        v.resize(total * cols, f64::NAN);
        let mut t = tensor(&v, total, cols, dtype, device);
        if total > c.rows {
            t.set_live(Live::tokens(device));
        }
        t
    };
    let (x, dy) = (of_rows(1, c.inn), of_rows(2, c.out));
    let (residual, dx0) = (of_rows(3, c.out), of_rows(4, c.inn));

    // W, bias, A, B in one flat tensor; the gradients at the same places.
    let root = 1.0 / (c.inn as f64).sqrt();
    let sizes = [(c.out, c.inn), (1, c.out), (c.r, c.inn), (c.out, c.r)];
    let w: Vec<f64> = random(c.seed + 5, c.out * c.inn).iter().map(|w| w * root).collect();
    let mut flat = bf16s(&w);
    for (i, (rows, cols)) in sizes.into_iter().enumerate().skip(1) {
        let scale = if i == 2 { root } else { 0.5 };
        flat.extend(bf16s(&random(c.seed + 5 + i as u64, rows * cols).iter().map(|v| v * scale).collect::<Vec<_>>()));
    }
    let quantised = c.nf4.map(|double| {
        let low: Vec<f32> = flat[..w.len()].iter().map(|&x| x as f32).collect();
        let mut builder = Nf4Builder::new(c.out, c.inn, Dtype::BF16, double).unwrap();
        builder.push(&low, 1).unwrap();
        builder.finish().unwrap()
    });
    if let Some(q) = &quantised {
        let mut dense = vec![bf16::NAN; q.len()];
        q.dequantise_bf16(&mut dense).unwrap();
        flat.iter_mut().zip(&dense).for_each(|(f, d)| *f = f64::from(d.to_f32()));
    }
    let params = tensor(&flat, 1, flat.len(), dtype, device);
    let mut grads = tensor(&vec![1.0; flat.len()], 1, flat.len(), acc, device);
    let mut offset = 0;
    let [w, bias, a, b] = sizes.map(|(rows, cols)| {
        offset += rows * cols;
        Slot { tensor: &params, offset: offset - rows * cols, rows, cols, grad: true }
    });
    let uploaded = quantised.as_ref().filter(|_| device.runs_kernels());
    let uploaded = uploaded.map(|q| DeviceNf4::upload(q, &Code2::new(device).unwrap()).unwrap());
    let matrix = match (&uploaded, &quantised) {
        (Some(q), _) => Matrix::DeviceNf4(q),
        (None, Some(q)) if dtype == DType::Bf16 => Matrix::Nf4(q),
        // In f64 its values.
        (None, Some(_)) => Matrix::Dense(Slot { grad: false, ..w }),
        (None, None) => Matrix::Dense(w),
    };
    let dropout = c.dropout.then_some((RATE, STREAM));
    let lora = (c.r > 0).then_some(Lora { a, b, scale: SCALE, dropout });
    let l = Linear { w: matrix, bias: c.bias.then_some(bias), lora };

    let (y, saved) = linear::fwd(&x, &l, c.residual.then_some(&residual)).unwrap();
    let dx = linear::bwd(saved, &x, &l, &dy, Dx::New, &mut grads).unwrap().unwrap();
    let once = grads.to_f64();
    let (_, saved) = linear::fwd(&x, &l, None).unwrap();
    let added = linear::bwd(saved, &x, &l, &dy, Dx::AddTo(dx0), &mut grads).unwrap().unwrap();
    let (_, saved) = linear::fwd(&x, &l, None).unwrap();
    assert!(linear::bwd(saved, &x, &l, &dy, Dx::Skip, &mut grads).unwrap().is_none());
    let live = |t: &Tensor| t.to_f64()[..c.rows * t.cols()].to_vec();
    vec![live(&y), live(&dx), live(&added), once]
}

/// Of few numbers, the errors of several draws are taken together: by chance plain arithmetic may hit one exactly.
fn matches(c: &Case) {
    let draws = 64usize.div_ceil(c.rows * c.inn.min(c.out)) as u64;
    let cpu = Device::cpu(2);
    let of = |dtype, device: &Device| {
        let draw = |i| run(&Case { seed: 100 * i, ..*c }, dtype, device, Rows::All);
        (0..draws)
            .map(draw)
            .reduce(|all, next| all.into_iter().zip(next).map(|(a, b)| [a, b].concat()).collect())
            .unwrap()
    };
    let (want, plain) = (of(DType::F64, &cpu), of(DType::Bf16, &cpu));
    let got = on_each(|device| of(DType::Bf16, device));
    for (i, (what, times)) in [("y", 2.0), ("dx", 3.0), ("dx + r", 3.0), ("gradients", 3.0)].into_iter().enumerate() {
        check(&format!("{what} {c}"), &got[i], &plain[i], &want[i], times);
    }
}

/// (rows, in, out): one element, less than a chunk, a tile with ragged edges on every side, more tiles than one; last rows
/// that are split.
const DENSE: [(usize, usize, usize); 9] = [
    (1, 1, 1),
    (7, 31, 65),
    (64, 130, 200),
    (65, 200, 64),
    (31, 64, 7),
    (130, 65, 130),
    (200, 7, 31),
    (64, 64, 64),
    (1100, 24, 40),
];

#[test]
fn dense_layers_match_reference() {
    for (i, (rows, inn, out)) in DENSE.into_iter().enumerate() {
        for (r, k) in [(0, 1), (4, 2), (8, 3), (16, 5), (40, 6)] {
            let bit = |b: usize| (i + k) >> b & 1 == 1;
            let c = Case {
                rows,
                inn,
                out,
                r,
                bias: bit(0),
                residual: bit(1),
                dropout: r > 0 && (bit(2) || r == 16),
                nf4: None,
                seed: 0,
            };
            matches(&c);
        }
    }
}

/// Rows of whole blocks, and rows that blocks straddle.
const NF4: [(usize, usize, usize); 6] =
    [(7, 64, 65), (65, 128, 200), (130, 192, 64), (33, 70, 48), (1, 256, 130), (64, 100, 33)];

#[test]
fn nf4_layers_match_reference() {
    for (i, (rows, inn, out)) in NF4.into_iter().enumerate() {
        for (r, double) in [(0, true), (4, false), (8, true), (16, false), (16, true)] {
            let bit = |b: usize| (i + r) >> b & 1 == 1;
            let c =
                Case { rows, inn, out, r, bias: bit(0), residual: bit(1), dropout: r > 4, nf4: Some(double), seed: 0 };
            matches(&c);
        }
    }
}

/// The matrix inside the product is the dequantised one: the same bits.
#[test]
fn nf4_equals_its_dequantised_values() {
    for (inn, out, double) in [(64, 130, false), (192, 70, true), (130, 40, true)] {
        let values: Vec<f32> = random(7, inn * out).iter().map(|&x| x as f32).collect();
        let mut builder = Nf4Builder::new(out, inn, Dtype::BF16, double).unwrap();
        builder.push(&values, 1).unwrap();
        let q: Nf4 = builder.finish().unwrap();
        let mut dense = vec![bf16::NAN; inn * out];
        q.dequantise_bf16(&mut dense).unwrap();
        for (_, device) in kernel_devices() {
            let w = Tensor::from_slice(&dense, out, inn, &device).unwrap();
            let q = DeviceNf4::upload(&q, &Code2::new(&device).unwrap()).unwrap();
            let (x, dy) = (random(1, 70 * inn), random(2, 70 * out));
            let (x, dy) = (tensor(&x, 70, inn, DType::Bf16, &device), tensor(&dy, 70, out, DType::Bf16, &device));
            let run = |w: Matrix| {
                let l = Linear { w, bias: None, lora: None };
                let (y, saved) = linear::fwd(&x, &l, None).unwrap();
                let mut none = tensor(&[], 1, 0, DType::F32, &device);
                let dx = linear::bwd(saved, &x, &l, &dy, Dx::New, &mut none).unwrap().unwrap();
                (y.to_f64(), dx.to_f64())
            };
            assert_eq!(run(Matrix::DeviceNf4(&q)), run(Matrix::Dense(Slot::whole(&w))), "({out}, {inn})");
        }
    }
}

/// Rows past the live ones hold NaN and change nothing; nor does their number.
#[test]
fn slack_changes_no_bit() {
    for (nf4, r) in [(None, 8), (Some(true), 8), (None, 0)] {
        let c = Case { rows: 37, inn: 128, out: 70, r, bias: true, residual: true, dropout: r > 0, nf4, seed: 0 };
        let bare = on_each(|device| run(&c, DType::Bf16, device, Rows::All));
        for total in [64, 192, 640] {
            let got = on_each(|device| run(&c, DType::Bf16, device, Rows::Of(total)));
            assert!(bare.iter().flatten().all(|x| x.is_finite()));
            assert_eq!(got, bare, "{c} of {total}");
        }
    }
}

/// A row's result does not depend on what else is in the batch, nor on how many rows there are.
#[test]
fn rows_are_independent() {
    let device = Device::host_kernels(2, false).unwrap();
    let (inn, out, r) = (200, 150, 8);
    let t = |seed, rows: usize, cols: usize| tensor(&random(seed, rows * cols), rows, cols, DType::Bf16, &device);
    let (w, a, b) = (t(1, out, inn), t(2, r, inn), t(3, out, r));
    let lora = Lora { a: Slot::whole(&a), b: Slot::whole(&b), scale: SCALE, dropout: None };
    let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: Some(lora) };
    let y = |rows| linear::fwd(&t(4, rows, inn), &l, None).unwrap().0.to_f64();
    let all = y(140);
    for rows in [1, 5, 16, 65] {
        assert_eq!(y(rows), all[..rows * out], "{rows} rows");
    }
}

#[test]
fn what_kernels_do_not_compute_is_refused() {
    let device = Device::host_kernels(1, false).unwrap();
    let low = tensor(&[0.0; 64], 1, 64, DType::Bf16, &device);
    let q = {
        let mut builder = Nf4Builder::new(2, 64, Dtype::BF16, false).unwrap();
        builder.push(&[0.5; 128], 1).unwrap();
        builder.finish().unwrap()
    };
    let fwd = |x: &Tensor, w: Matrix| linear::fwd(x, &Linear { w, bias: None, lora: None }, None).map(|_| ());
    assert!(fwd(&low, Matrix::Nf4(&q)).unwrap_err().to_string().contains("outside device memory"));
    let w = tensor(&[0.0; 128], 2, 64, DType::F32, &device);
    let x = tensor(&[0.0; 64], 1, 64, DType::F32, &device);
    assert!(fwd(&x, Matrix::Dense(Slot::whole(&w))).unwrap_err().to_string().contains("kernels do not compute"));
    let other = Device::host_kernels(1, false).unwrap();
    let far = DeviceNf4::upload(&q, &Code2::new(&other).unwrap()).unwrap();
    assert!(fwd(&low, Matrix::DeviceNf4(&far)).unwrap_err().to_string().contains("another device"));
}
