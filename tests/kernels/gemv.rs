use crate::ggml::{blocks, dequantised};
use crate::*;
use qlora_engine::format::Dtype;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear::{self, Linear, Lora, Matrix};
use qlora_engine::quant::ggml::{Blocks, GgmlType};
use qlora_engine::quant::{Code2, DeviceGgml, DeviceNf4, Nf4, Nf4Builder};
use qlora_engine::tensor::Live;

const SCALE: f64 = 1.25;

/// How W is kept.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Kind {
    Dense,
    /// With its absmax quantised, or not.
    Nf4(bool),
    Ggml(GgmlType),
}

/// A layer and how many rows it is given.
#[derive(Clone, Copy, Debug)]
struct Case {
    kind: Kind,
    rows: usize,
    inn: usize,
    out: usize,
    /// 0: no adapter.
    r: usize,
    bias: bool,
    residual: bool,
}

/// W as kernels hold it, and its values.
struct Weights {
    nf4: Option<Nf4>,
    blocks: Option<Blocks>,
    values: Vec<f64>,
}

fn weights(c: &Case) -> Weights {
    let (n, root) = (c.inn * c.out, 1.0 / (c.inn as f64).sqrt());
    let plain: Vec<f64> = random(5, n).iter().map(|w| w * root).collect();
    match c.kind {
        Kind::Dense => Weights { nf4: None, blocks: None, values: bf16s(&plain) },
        Kind::Nf4(double) => {
            let mut builder = Nf4Builder::new(c.out, c.inn, Dtype::BF16, double).unwrap();
            builder.push(&plain.iter().map(|&x| x as f32).collect::<Vec<_>>(), 1).unwrap();
            let q = builder.finish().unwrap();
            let mut dense = vec![bf16::NAN; n];
            q.dequantise_bf16(&mut dense).unwrap();
            let values = dense.iter().map(|x| f64::from(x.to_f32())).collect();
            Weights { nf4: Some(q), blocks: None, values }
        }
        Kind::Ggml(ty) => {
            let blocks = blocks(ty, c.out, c.inn, 5);
            let values = dequantised(&blocks);
            Weights { nf4: None, blocks: Some(blocks), values }
        }
    }
}

/// y of the rows from `first` on, of tensors that have `slack` rows more, full of NaN.
fn run(c: &Case, w: &Weights, dtype: DType, device: &Device, first: usize, slack: usize) -> Vec<f64> {
    let rows = c.rows - first;
    device.set_step(Step { tokens: rows as u32, ..no_step() });
    let of_rows = |seed: u64, cols: usize| {
        let mut v = bf16s(&random(seed, c.rows * cols)).split_off(first * cols);
        v.resize((rows + slack) * cols, f64::NAN);
        let mut t = tensor(&v, rows + slack, cols, dtype, device);
        t.set_live(Live::tokens(device).filter(|_| slack > 0));
        t
    };
    let small = |seed, rows: usize, cols: usize, scale: f64| {
        let v: Vec<f64> = random(seed, rows * cols).iter().map(|x| x * scale).collect();
        tensor(&bf16s(&v), rows, cols, dtype, device)
    };
    let root = 1.0 / (c.inn as f64).sqrt();
    let (bias, a, b) = (small(6, 1, c.out, 0.5), small(7, c.r, c.inn, root), small(8, c.out, c.r, 0.5));
    let dense = tensor(&w.values, c.out, c.inn, dtype, device);
    let kernels = device.runs_kernels();
    let nf4 = w.nf4.as_ref().filter(|_| kernels);
    let nf4 = nf4.map(|q| DeviceNf4::upload(q, &Code2::new(device).unwrap()).unwrap());
    let ggml = w.blocks.as_ref().filter(|_| kernels).map(|q| DeviceGgml::upload(q, device).unwrap());
    let matrix = match (&nf4, &ggml) {
        (Some(q), _) => Matrix::DeviceNf4(q),
        (_, Some(q)) => Matrix::DeviceGgml(q),
        _ => Matrix::Dense(Slot::whole(&dense)),
    };
    let lora = Lora { a: Slot::whole(&a), b: Slot::whole(&b), scale: SCALE, dropout: None };
    let l = Linear { w: matrix, bias: c.bias.then_some(Slot::whole(&bias)), lora: (c.r > 0).then_some(lora) };
    let (x, residual) = (of_rows(1, c.inn), of_rows(3, c.out));
    let y = linear::decode(&x, &l, c.residual.then_some(&residual)).unwrap();
    y.to_f64()[..rows * c.out].to_vec()
}

/// (rows, in, out): one element; ragged in every direction; more steps than warps and a ragged last one; rows of one kernel and
/// of the other, and more than a block has.
const DENSE: [(usize, usize, usize); 8] =
    [(1, 1, 1), (3, 40, 17), (5, 131, 33), (8, 1100, 20), (9, 2304, 16), (33, 256, 70), (2, 1032, 48), (70, 200, 40)];
/// Rows of whole blocks of 64 and others.
const NF4: [(usize, usize, usize); 6] =
    [(1, 64, 17), (7, 192, 33), (8, 1088, 16), (9, 1024, 40), (40, 128, 70), (3, 100, 33)];
const GGML: [(usize, usize, usize); 3] = [(1, 1280, 17), (5, 256, 33), (40, 512, 20)];

/// The types that have kernels of their own, and one that is dequantised first.
const TYPES: [GgmlType; 7] =
    [GgmlType::Q4_0, GgmlType::Q5_0, GgmlType::Q8_0, GgmlType::Q4K, GgmlType::Q5K, GgmlType::Q6K, GgmlType::Q3K];

fn cases() -> Vec<Case> {
    let mut kinds = vec![(Kind::Dense, &DENSE[..]), (Kind::Nf4(false), &NF4), (Kind::Nf4(true), &NF4)];
    kinds.extend(TYPES.map(|ty| (Kind::Ggml(ty), &GGML[..])));
    let mut all = Vec::new();
    for (kind, shapes) in kinds {
        for (i, &(rows, inn, out)) in shapes.iter().enumerate() {
            let r = [0, 8, 3, 16, 40][(i + all.len()) % 5];
            all.push(Case { kind, rows, inn, out, r, bias: i % 2 == 0, residual: i % 3 != 1 });
        }
    }
    all
}

#[test]
fn decoding_matches_reference() {
    let cpu = Device::cpu(2);
    for c in cases() {
        let w = weights(&c);
        let (want, plain) = (run(&c, &w, DType::F64, &cpu, 0, 0), run(&c, &w, DType::Bf16, &cpu, 0, 0));
        let got = on_each(|device| vec![run(&c, &w, DType::Bf16, device, 0, 0)]);
        // Of few numbers plain arithmetic may hit one exactly: then half a unit of bf16 in the largest.
        let largest = want.iter().fold(0.0, |m: f64, x| m.max(x.abs()));
        let (e, limit) = (max_err(&got[0], &want), (2.0 * max_err(&plain, &want)).max(2f64.powi(-8) * largest));
        assert!(e <= limit, "{c:?}: error {e:.3e} > {limit:.3e}");
    }
}

/// A row's bits depend on nothing else in the batch, on how many rows there are, or on rows that hold nothing.
#[test]
fn rows_are_independent() {
    for c in cases().into_iter().filter(|c| c.rows > 2) {
        let w = weights(&c);
        let all = on_each(|device| vec![run(&c, &w, DType::Bf16, device, 0, 0)]).remove(0);
        assert!(all.iter().all(|x| x.is_finite()));
        for first in [1, c.rows / 2, c.rows - 1] {
            let some = on_each(|device| vec![run(&c, &w, DType::Bf16, device, first, 0)]).remove(0);
            assert_eq!(some, all[first * c.out..], "{c:?} from row {first} on");
        }
        for slack in [1, 40] {
            let live = on_each(|device| vec![run(&c, &w, DType::Bf16, device, 0, slack)]).remove(0);
            assert_eq!(live, all, "{c:?} with {slack} rows of NaN");
        }
    }
}

/// Rows of x with a single 1 pick elements of W: those that dequantising gives, to the bit.
#[test]
fn elements_are_the_dequantised_ones() {
    let kinds = [Kind::Nf4(false), Kind::Nf4(true)].into_iter().chain(TYPES.map(Kind::Ggml));
    for kind in kinds {
        let (inn, out) = (256, 19);
        let c = Case { kind, rows: inn, inn, out, r: 0, bias: false, residual: false };
        let w = weights(&c);
        let one_hot: Vec<f64> = (0..inn * inn).map(|i| if i / inn == i % inn { 1.0 } else { 0.0 }).collect();
        for (_, device) in kernel_devices() {
            let q = w.nf4.as_ref().map(|q| DeviceNf4::upload(q, &Code2::new(&device).unwrap()).unwrap());
            let blocks = w.blocks.as_ref().map(|q| DeviceGgml::upload(q, &device).unwrap());
            let matrix = q.as_ref().map(Matrix::DeviceNf4).or(blocks.as_ref().map(Matrix::DeviceGgml)).unwrap();
            let l = Linear { w: matrix, bias: None, lora: None };
            for rows in [8, inn] {
                let x = tensor(&one_hot[..rows * inn], rows, inn, DType::Bf16, &device);
                let y = linear::decode(&x, &l, None).unwrap().to_f64();
                for (i, y) in y.into_iter().enumerate() {
                    let (row, col) = (i / out, i % out);
                    assert_eq!(y, w.values[col * inn + row], "{kind:?} element ({col}, {row})");
                }
            }
        }
    }
}

#[test]
fn the_cpu_decodes_as_it_trains() {
    let cpu = Device::cpu(2);
    let t = |seed, rows: usize, cols: usize| tensor(&random(seed, rows * cols), rows, cols, DType::Bf16, &cpu);
    let (x, w, a, b, add) = (t(1, 5, 64), t(2, 48, 64), t(3, 8, 64), t(4, 48, 8), t(5, 5, 48));
    let lora = Lora { a: Slot::whole(&a), b: Slot::whole(&b), scale: SCALE, dropout: None };
    let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: Some(lora) };
    let want = linear::fwd(&x, &l, Some(&add)).unwrap().0.to_f64();
    assert_eq!(linear::decode(&x, &l, Some(&add)).unwrap().to_f64(), want);
}

/// Groups of rows with adapters of their own, or none, have the bits that their rows have alone; on the CPU and on kernels.
#[test]
fn each_group_has_its_adapter() {
    for device in [Device::cpu(1), Device::cpu(3)].into_iter().chain(kernel_devices().into_iter().map(|(_, d)| d)) {
        let t = |seed, rows: usize, cols: usize| tensor(&random(seed, rows * cols), rows, cols, DType::Bf16, &device);
        let (values, rest) = (random(1, 12 * 64), random(5, 12 * 48));
        let part = |v: &[f64], r: &std::ops::Range<usize>, cols: usize| {
            tensor(&v[r.start * cols..r.end * cols], r.len(), cols, DType::Bf16, &device)
        };
        let (w, bias) = (t(2, 48, 64), t(8, 1, 48));
        let adapters = [(t(3, 8, 64), t(4, 48, 8)), (t(6, 16, 64), t(7, 48, 16))];
        let lora = |i: usize| {
            let (a, b) = &adapters[i];
            Lora { a: Slot::whole(a), b: Slot::whole(b), scale: SCALE, dropout: None }
        };
        let layer = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: Some(Slot::whole(&bias)), lora: None };
        let groups = [(0..3, Some(lora(0))), (3..4, None), (4..11, Some(lora(1))), (11..12, Some(lora(0)))];
        let (x, add) = (part(&values, &(0..12), 64), part(&rest, &(0..12), 48));
        let got = linear::decode_grouped(&x, &layer, &groups, Some(&add)).unwrap().to_f64();
        for (rows, lora) in &groups {
            let alone = Linear { lora: *lora, ..layer };
            let want = linear::decode(&part(&values, rows, 64), &alone, Some(&part(&rest, rows, 48))).unwrap().to_f64();
            assert_eq!(got[rows.start * 48..rows.end * 48], want, "{rows:?}");
            assert!(want.iter().all(|x| x.is_finite()));
        }
        for wrong in [vec![(0..3, None), (2..4, None)], vec![(4..8, None), (0..2, None)], vec![(0..13, None)]] {
            let e = linear::decode_grouped(&x, &layer, &wrong, None).map(|_| ()).unwrap_err().to_string();
            assert!(e.contains("groups"), "{e}");
        }
    }
}

#[test]
fn a_plan_counts_what_runs() {
    let device = Device::plan_kernels();
    let q = DeviceGgml::unwritten(GgmlType::Q2K, 48, 256, &device).unwrap();
    let x = Tensor::unwritten(5, 256, DType::Bf16, &device).unwrap();
    let l = Linear { w: Matrix::DeviceGgml(&q), bias: None, lora: None };
    assert_eq!(linear::decode(&x, &l, None).unwrap().cols(), 48);
    let (_, flops) = device.take_plan().unwrap();
    assert_eq!(flops, 2.0 * 5.0 * 48.0 * 256.0);
}

#[test]
fn what_does_not_fit_is_refused() {
    for device in [Device::cpu(1), Device::host_kernels(1, false).unwrap()] {
        let t = |rows: usize, cols: usize| tensor(&vec![0.0; rows * cols], rows, cols, DType::Bf16, &device);
        let (x, w, a, b) = (t(2, 16), t(8, 16), t(4, 16), t(8, 4));
        let stream = Stream { seed: 1, step: 2, module: 3 };
        let lora = Lora { a: Slot::whole(&a), b: Slot::whole(&b), scale: 1.0, dropout: Some((0.1, stream)) };
        let mut l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: Some(lora) };
        let why = |l: &Linear, add: &Tensor| linear::decode(&x, l, Some(add)).map(|_| ()).unwrap_err().to_string();
        assert!(why(&l, &t(2, 8)).contains("dropout"));
        l.lora = None;
        assert!(why(&l, &t(2, 9)).contains("linear add"));
        assert!(linear::decode(&x, &l, Some(&t(2, 8))).is_ok());
    }
}
