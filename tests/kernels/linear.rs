#[cfg(not(feature = "host-asan"))]
use std::sync::Arc;

use crate::*;
use qlora_engine::device::abi::Step;
use qlora_engine::device::{HOPPER, Nf4Path, Tile, Wish};
use qlora_engine::format::Dtype;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Dx, Linear, Lora, Matrix};
use qlora_engine::quant::{Code2, DeviceNf4, Nf4, Nf4Builder};
use qlora_engine::tensor::Live;

const STREAM: Stream = Stream { seed: 0x0123_4567_89AB_CDEF, step: 9, module: 5 };
const SCALE: f64 = 1.25;
const RATE: f64 = 0.3;

/// A layer and what it is given; numbers are bf16.
#[derive(Clone, Copy)]
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
    matches_as(c, None);
}

/// The same, with what is asked for of the kernels.
fn matches_as(c: &Case, wish: Option<Wish>) {
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
    let got = on_each(|device| {
        device.tuning().unwrap().set(wish);
        of(DType::Bf16, device)
    });
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

/// Adapters of more columns and rows than a block of `lora_bwd` has, with ranks on both sides of its limits.
#[test]
fn adapters_of_many_blocks_match_reference() {
    for (r, out) in [(1, 257), (17, 300), (24, 530), (32, 264), (33, 264)] {
        let dropout = r == 24;
        matches(&Case { rows: 290, inn: 24, out, r, bias: false, residual: false, dropout, nf4: None, seed: 3 });
    }
}

/// The tiles of kernels/gemm_sm90.h, several of them down and across, with ragged edges, and by a copy of an NF4 matrix.
/// A GPU of another compute capability refuses them.
#[test]
fn tiles_by_wgmma_match_reference() {
    let of = |rows, inn, out, r| Case {
        rows,
        inn,
        out,
        r,
        bias: r == 0,
        residual: r > 0,
        dropout: false,
        nf4: None,
        seed: 4,
    };
    let dense = of(290, 72, 328, 16);
    let refused = kernel_devices().into_iter().any(|(_, d)| d.gpu().is_some_and(|gpu| gpu.capability != HOPPER));
    for tile in [Tile::Wgmma128, Tile::Wgmma256] {
        let wish = Wish { tile: Some(tile), nf4: Some(Nf4Path::Scratch) };
        if refused {
            let device = &kernel_devices()[0].1;
            device.tuning().unwrap().set(Some(wish));
            let t = |rows: usize| tensor(&random(1, rows * 64), rows, 64, DType::Bf16, device);
            let (x, w) = (t(130), t(40));
            let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: None };
            let why = linear::fwd(&x, &l, None).err().expect("refused").to_string();
            assert!(why.contains("needs compute capability 9.0"), "{why}");
            continue;
        }
        for c in [dense, of(130, 264, 64, 0), of(64, 520, 272, 8), Case { nf4: Some(true), ..of(150, 192, 264, 8) }] {
            matches_as(&c, Some(wish));
        }
    }
}

/// Neither by `lora_bwd` nor by the products for larger ranks; the gradients of A and x, which come by way of Q, stay.
#[test]
fn a_frozen_b_gets_no_gradient() {
    let device = Device::host_kernels(2, false).unwrap();
    let (rows, inn, out) = (70, 24, 40);
    let t = |seed, rows: usize, cols: usize| tensor(&random(seed, rows * cols), rows, cols, DType::Bf16, &device);
    for r in [8, 40] {
        let (x, dy, w, ab) = (t(1, rows, inn), t(2, rows, out), t(3, out, inn), t(4, 1, r * (inn + out)));
        let run = |grad: bool| {
            let a = Slot { tensor: &ab, offset: 0, rows: r, cols: inn, grad: true };
            let b = Slot { tensor: &ab, offset: r * inn, rows: out, cols: r, grad };
            let lora = Lora { a, b, scale: SCALE, dropout: None };
            let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: Some(lora) };
            let mut grads = tensor(&vec![1.0; ab.len()], 1, ab.len(), DType::F32, &device);
            let (_, saved) = linear::fwd(&x, &l, None).unwrap();
            let dx = linear::bwd(saved, &x, &l, &dy, Dx::New, &mut grads).unwrap().unwrap();
            let grads = grads.to_f64();
            let (of_a, of_b) = grads.split_at(r * inn);
            (dx.to_f64(), of_a.to_vec(), of_b.to_vec())
        };
        let (trained, frozen) = (run(true), run(false));
        assert!((&trained.0, &trained.1) == (&frozen.0, &frozen.1), "rank {r}");
        assert!(frozen.2.iter().all(|&g| g == 1.0) && trained.2.iter().all(|&g| g != 1.0), "rank {r}");
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

/// A layer of a group: columns, rank (0: no adapter) and how W lies.
#[derive(Clone, Copy, Debug)]
struct Member {
    out: usize,
    r: usize,
    w: Kept,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Kept {
    /// Trained or frozen.
    Dense(bool),
    /// Quantised, its absmax too.
    Nf4(bool),
}

/// What a layer of a group is made of, on a device.
struct Made {
    /// Its parameters, after as many numbers as the layers before it have: gradients share one flat tensor.
    flat: Tensor,
    before: usize,
    nf4: Option<DeviceNf4>,
}

impl Made {
    fn new(m: &Member, inn: usize, seed: u64, before: usize, device: &Device) -> Self {
        let of = |seed, n: usize, by: f64| random(seed, n).into_iter().map(move |v| v * by);
        let root = 1.0 / (inn as f64).sqrt();
        let w: Vec<f64> = of(seed, m.out * inn, root).collect();
        let nf4 = match m.w {
            Kept::Dense(_) => None,
            Kept::Nf4(double) => {
                let mut builder = Nf4Builder::new(m.out, inn, Dtype::BF16, double).unwrap();
                builder.push(&w.iter().map(|&x| x as f32).collect::<Vec<_>>(), 1).unwrap();
                let q = builder.finish().unwrap();
                Some(DeviceNf4::upload(&q, &Code2::new(device).unwrap()).unwrap())
            }
        };
        let rest = of(seed + 1, m.out, 0.5).chain(of(seed + 2, m.r * inn, root)).chain(of(seed + 3, m.out * m.r, 0.5));
        let flat: Vec<f64> = std::iter::repeat_n(0.0, before).chain(w).chain(rest).collect();
        Made { flat: tensor(&flat, 1, flat.len(), DType::Bf16, device), before, nf4 }
    }

    fn layer(&self, m: &Member, inn: usize, module: u32, dropout: bool) -> Linear<'_> {
        let mut offset = self.before;
        let [w, bias, a, b] = [(m.out, inn), (1, m.out), (m.r, inn), (m.out, m.r)].map(|(rows, cols)| {
            offset += rows * cols;
            Slot { tensor: &self.flat, offset: offset - rows * cols, rows, cols, grad: true }
        });
        let w = match (&self.nf4, m.w) {
            (Some(q), _) => Matrix::DeviceNf4(q),
            (None, kept) => Matrix::Dense(Slot { grad: kept == Kept::Dense(true), ..w }),
        };
        let dropout = dropout.then_some((RATE, Stream { module, ..STREAM }));
        Linear { w, bias: Some(bias), lora: (m.r > 0).then_some(Lora { a, b, scale: SCALE, dropout }) }
    }
}

/// All that a group makes: every y, dx, and the gradients; together, or by its layers one after the other.
fn group<const N: usize>(
    members: [Member; N],
    (rows, live, inn): (usize, usize, usize),
    dropout: bool,
    together: bool,
    device: &Device,
) -> Vec<Vec<f64>> {
    let tokens = live as u32;
    let step = Step { tokens, sequences: 1, micro_step: STREAM.step, seed: STREAM.seed, ..no_step() };
    device.set_step(step);
    let of_rows = |seed, cols: usize| {
        let mut v = random(seed, rows * cols);
        v[live * cols..].fill(f64::NAN);
        let mut t = tensor(&v, rows, cols, DType::Bf16, device);
        t.set_live(Live::tokens(device));
        t
    };
    let x = of_rows(1, inn);
    let (mut seed, mut before) = (0, 0);
    let made = members.map(|m| {
        seed += 10;
        let layer = Made::new(&m, inn, seed, before, device);
        before = layer.flat.len();
        (layer, of_rows(seed + 5, m.out), of_rows(seed + 6, m.out))
    });
    let mut modules = 0;
    let layers: [Linear; N] = std::array::from_fn(|i| {
        modules += 3;
        made[i].0.layer(&members[i], inn, modules, dropout)
    });
    let (dys, adds) = (made.each_ref().map(|m| &m.1), made.each_ref().map(|m| Some(&m.2)));
    let mut grads = tensor(&vec![0.25; before], 1, before, DType::F32, device);
    let (ys, saved): (Vec<Tensor>, Vec<linear::Saved>) = match together {
        true => linear::fwd_group(&x, layers, adds).unwrap().into_iter().unzip(),
        false => (0..N).map(|i| linear::fwd(&x, &layers[i], adds[i]).unwrap()).unzip(),
    };
    let dx = match together {
        true => {
            let Ok(saved) = <[_; N]>::try_from(saved) else { panic!("one a layer") };
            linear::bwd_group(saved, &x, layers, dys, Dx::New, &mut grads).unwrap()
        }
        false => saved.into_iter().enumerate().fold(None, |sum, (i, saved)| {
            let to = sum.map_or(Dx::New, Dx::AddTo);
            linear::bwd(saved, &x, &layers[i], dys[i], to, &mut grads).unwrap()
        }),
    };
    let live = |t: &Tensor| t.to_f64()[..live * t.cols()].to_vec();
    let mut all: Vec<Vec<f64>> = ys.iter().map(live).collect();
    all.extend([live(&dx.unwrap()), grads.to_f64()]);
    all
}

/// A group has the bits of its layers alone: sizes of grouped-query attention and ragged ones, ranks that need different
/// kernels and none, kinds that go together and kinds that cannot, rows that are split.
#[test]
fn groups_equal_their_layers_alone() {
    let of = |out, r, w| Member { out, r, w };
    let (nf4, plain, dense, trained) = (Kept::Nf4(true), Kept::Nf4(false), Kept::Dense(false), Kept::Dense(true));
    let check = |what: &str, f: &dyn Fn(bool, &Device) -> Vec<Vec<f64>>| {
        let alone = on_each(|device| f(false, device));
        assert!(alone.iter().flatten().all(|x| x.is_finite()), "{what}");
        for (i, (a, b)) in alone.iter().zip(on_each(|device| f(true, device))).enumerate() {
            assert!(
                a.iter().zip(&b).all(|(a, b)| a.to_bits() == b.to_bits()),
                "{what}: result {i} of the group differs"
            );
        }
    };
    let sizes = [(70, 61, 128), (33, 33, 192), (1100, 1030, 64)];
    let threes = [
        [of(256, 8, nf4), of(64, 8, nf4), of(64, 8, nf4)],
        [of(130, 16, dense), of(70, 40, dense), of(7, 4, dense)],
        [of(200, 8, nf4), of(65, 0, dense), of(90, 16, plain)],
        [of(40, 0, trained), of(150, 4, trained), of(20, 33, trained)],
    ];
    for size in sizes {
        for dropout in [false, true] {
            for m in threes {
                let tall = size.0 > 1000;
                if tall && dropout == (m[0].r == 16) {
                    continue; // a half of the slow ones
                }
                check(&format!("{m:?} {size:?} dropout {dropout}"), &|t, d| group(m, size, dropout, t, d));
                if !tall {
                    let two = [m[1], m[0]];
                    check(&format!("{two:?} {size:?} dropout {dropout}"), &|t, d| group(two, size, dropout, t, d));
                }
            }
        }
    }
    // Blocks that straddle rows need a copy of W; ragged rows of the dense ones.
    let mixed = [of(65, 8, nf4), of(33, 8, dense), of(48, 8, plain)];
    check("a copy", &|t, d| group(mixed, (40, 31, 70), true, t, d));
    let four = [of(64, 8, nf4), of(30, 8, nf4), of(96, 8, nf4), of(33, 8, nf4)];
    check("more than a launch takes", &|t, d| group(four, (40, 31, 64), false, t, d));
}

/// Forward and backward through q, k and v of grouped-query attention, with split rows: the launches that they take, and the
/// bytes of the arena, which is planned by the same code.
#[cfg(not(feature = "host-asan"))] // there nothing is recorded
fn launches(path: Nf4Path) -> (Vec<&'static str>, usize) {
    let (rows, inn, members) = (600, 64, [128, 64, 64].map(|out| Member { out, r: 8, w: Kept::Nf4(true) }));
    let (planned, device) = (Device::plan_kernels(), Device::host_kernels(2, false).unwrap());
    let pass = |device: &Device| {
        device.tuning().unwrap().set(Some(Wish { tile: Some(Tile::Small), nf4: Some(path) }));
        let made = members.map(|m| match device.is_plan() {
            true => {
                let n = m.out * inn + m.out + m.r * (inn + m.out);
                Made { flat: Tensor::unwritten(1, n, DType::Bf16, device).unwrap(), before: 0, nf4: None }
            }
            false => Made::new(&m, inn, 1, 0, device),
        });
        let of_rows = |cols| Tensor::unwritten(rows, cols, DType::Bf16, device).unwrap();
        (made, of_rows(inn), members.map(|m| of_rows(m.out)), Tensor::zeros(1, 1 << 15, DType::F32, device).unwrap())
    };
    let step = |(made, x, dys, grads): &mut ([Made; 3], Tensor, [Tensor; 3], Tensor)| {
        let layers = std::array::from_fn(|i| {
            let l = made[i].layer(&members[i], inn, 0, false);
            let w = if made[i].nf4.is_some() { l.w } else { Matrix::Planned(members[i].out, inn) };
            Linear { w, bias: None, ..l }
        });
        let [(_, q), (_, k), (_, v)] = linear::fwd_group(x, layers, [None; 3])?;
        let [dq, dk, dv] = &*dys;
        linear::bwd_group([q, k, v], x, layers, [dq, dk, dv], Dx::New, grads).map(drop)
    };
    let mut dry = pass(&planned);
    let _ = planned.take_plan();
    step(&mut dry).unwrap();
    let layout = Arc::new(planned.take_plan().unwrap().0.layout());
    let memory = device.reserve(layout.bytes()).unwrap();
    let mut inputs = pass(&device);
    let graph = memory.run(&layout, || device.capture(|| step(&mut inputs))).unwrap().unwrap();
    (graph.kernels(), layout.bytes())
}

/// One launch for all members where there can be one; dX is a sum, and a copy of W serves one member.
#[cfg(not(feature = "host-asan"))]
#[test]
fn a_group_shares_its_launches() {
    let gradients = ["lora_bwd_parts", "lora_bwd_sum", "gemm_tn_wide", "gemm_tn_sum"];
    let (fused, fused_bytes) = launches(Nf4Path::Fused);
    assert_eq!(fused, [&["gemm_nt_thin", "gemm_nf4_nt_64"], &gradients[..], &["gemm_nf4_nn_64"; 3]].concat());
    let (copied, bytes) = launches(Nf4Path::Scratch);
    let by_copy = |product| ["nf4_dequantise_bf16", product].repeat(3);
    let want = [vec!["gemm_nt_thin"], by_copy("gemm_nt_64"), gradients.to_vec(), by_copy("gemm_nn_64")].concat();
    assert_eq!(copied, want);
    assert!(bytes > fused_bytes, "the plan has no room for a copy: {bytes}, {fused_bytes}");
}

/// NF4 by a copy of W, and either tile: no bit differs.
#[test]
fn what_is_asked_for_changes_no_bit() {
    let of = |out, r| Member { out, r, w: Kept::Nf4(true) };
    let members = [of(200, 8), of(64, 8), of(33, 40)];
    let run = |wish: Wish| {
        on_each(|device| {
            device.tuning().unwrap().set(Some(wish));
            group(members, (150, 141, 128), true, true, device)
        })
    };
    let first = run(Wish { tile: Some(Tile::Small), nf4: Some(Nf4Path::Fused) });
    for wish in [
        Wish { tile: Some(Tile::Large), nf4: Some(Nf4Path::Fused) },
        Wish { tile: Some(Tile::Small), nf4: Some(Nf4Path::Scratch) },
        Wish { tile: Some(Tile::Large), nf4: Some(Nf4Path::Scratch) },
        Wish::default(),
    ] {
        assert!(run(wish) == first, "{wish:?}");
    }
}
