use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::rope::{self, Norm, Table, Turn};
use qlora_engine::tensor::{Index, Live};

const EPS: f64 = 1e-6;
const POSITIONS: usize = 50;
/// (rows, heads of q, heads of k, head_dim): one pair, halves that are no multiple of 8, real heads, as many of both, a warp
/// with heads of both, more than a warp's packs.
const SHAPES: [(usize, usize, usize, usize); 9] = [
    (1, 1, 1, 2),
    (3, 2, 1, 66),
    (5, 3, 1, 80),
    (7, 4, 4, 64),
    (9, 2, 2, 96),
    (20, 5, 1, 128),
    (2, 2, 1, 256),
    (2, 1, 1, 600),
    (2, 1, 1, 608),
];

/// q, then k.
struct Case {
    x: [Vec<f64>; 2],
    w: [Vec<f64>; 2],
    dy: [Vec<f64>; 2],
    positions: Vec<u32>,
    rows: usize,
}

impl Case {
    fn new(seed: u64, (rows, heads, kv_heads, dim): (usize, usize, usize, usize)) -> Self {
        let r = |seed, n| bf16s(&random(seed, n));
        let both = |seed| [r(seed, rows * heads * dim), r(seed + 100, rows * kv_heads * dim)];
        let positions = (0..rows).map(|i| (i * 17 % POSITIONS) as u32).collect();
        Case { x: both(seed), w: [r(50, dim), r(51, dim)], dy: both(60 + seed), positions, rows }
    }

    /// q and k change places.
    fn swapped(self) -> Self {
        let swap = |[q, k]: [Vec<f64>; 2]| [k, q];
        Case { x: swap(self.x), w: swap(self.w), dy: swap(self.dy), ..self }
    }

    /// Turned and turned back in place, normalised and turned; the gradients of that, the norms frozen and trained; and the
    /// trained norms' (added to 1): of each what is q's, then what is k's. With `slack` that many more rows, full of NaN.
    fn run(&self, dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
        let dim = self.w[0].len();
        let freq: Vec<f32> = (0..dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let table = Table::new(&freq, 1.1, POSITIONS).on(device).unwrap();
        device.set_step(Step { tokens: self.rows as u32, ..no_step() });
        let live = (slack > 0).then(|| Live::tokens(device)).flatten();
        let rows = self.rows + slack;
        let one = |v: &[f64]| {
            let cols = v.len() / self.rows;
            let mut t = tensor(&[v, &vec![f64::NAN; slack * cols]].concat(), rows, cols, dtype, device);
            t.set_live(live);
            t
        };
        let t = |v: &[Vec<f64>; 2]| [one(&v[0]), one(&v[1])];
        let positions = Index::new(&self.positions, rows, live, device).unwrap();
        let scales = tensor(&self.w.concat(), 1, 2 * dim, dtype, device);
        let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut grads = tensor(&vec![1.0; 2 * dim], 1, 2 * dim, acc, device);
        let norms = |grad| {
            let w = |offset| Slot { tensor: &scales, offset, rows: 1, cols: dim, grad };
            [Norm { w: w(0), eps: EPS }, Norm { w: w(dim), eps: EPS }]
        };
        let mut all = Vec::new();
        for way in [Turn::Forward, Turn::Back] {
            let [mut q, mut k] = t(&self.x);
            rope::apply([&mut q, &mut k], &positions, &table, way).unwrap();
            all.push([q, k]);
        }
        let [q, k] = t(&self.x);
        all.push(rope::fwd([&q, &k], norms(false), &positions, &table).unwrap());
        for trained in [false, true] {
            all.push(rope::bwd([&q, &k], norms(trained), &positions, &table, t(&self.dy), &mut grads).unwrap());
        }
        let grads = grads.to_f64();
        let live = |t: &Tensor| t.to_f64()[..self.rows * t.cols()].to_vec();
        all.iter().flatten().map(live).chain([grads[..dim].to_vec(), grads[dim..].to_vec()]).collect()
    }
}

#[test]
fn kernels_match_reference() {
    let names = ["turned", "turned back", "y of the norm", "dx of the norm", "dx of the trained norm", "dw"];
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let case = Case::new(seed as u64, shape);
        let cpu = Device::cpu(2);
        let (want, plain) = (case.run(DType::F64, &cpu, 0), case.run(DType::Bf16, &cpu, 0));
        let got = on_each(|device| case.run(DType::Bf16, device, 0));
        assert_eq!(got.len(), 2 * names.len());
        for (i, (what, of)) in names.into_iter().flat_map(|n| [(n, "q"), (n, "k")]).enumerate() {
            let times = if i < 6 { 2.0 } else { 3.0 };
            check(&format!("{what} of {of} {shape:?}"), &got[i], &plain[i], &want[i], times);
        }
    }
}

/// A head's bits depend on nothing but the head: not on what else the launch turns, nor on whose head it is.
#[test]
fn together_as_alone() {
    for shape in [(7, 4, 4, 64), (5, 3, 1, 80), (3, 2, 1, 66), (20, 5, 1, 128), (2, 1, 1, 608)] {
        let case = || Case::new(5, shape);
        let twice = |i: usize| {
            let both = |v: [Vec<f64>; 2]| [v[i].clone(), v[i].clone()];
            let case = case();
            Case { x: both(case.x), w: both(case.w), dy: both(case.dy), ..case }
        };
        let run = |case: Case| on_each(|device| case.run(DType::Bf16, device, 0));
        let together = run(case());
        for (other, places) in [(run(case().swapped()), [1, 0]), (run(twice(0)), [0, 0]), (run(twice(1)), [1, 1])] {
            for (i, got) in other.iter().enumerate() {
                assert_eq!(*got, together[i / 2 * 2 + places[i % 2]], "{shape:?}, result {i}, {places:?}");
            }
        }
    }
}

#[test]
fn slack_rows_are_not_read() {
    for shape in [(7, 4, 2, 64), (5, 3, 1, 80), (3, 2, 1, 66)] {
        let case = Case::new(9, shape);
        assert_eq!(
            on_each(|device| case.run(DType::Bf16, device, 0)),
            on_each(|device| case.run(DType::Bf16, device, 6)),
            "{shape:?}"
        );
    }
}

#[test]
fn refuses_what_does_not_fit() {
    let device = &kernel_devices()[0].1;
    let x = || tensor(&[0.0; 8], 2, 4, DType::Bf16, device);
    let positions = Index::new(vec![0, 3], 2, None, device).unwrap();
    let table = |n| Table::new(&[1.0, 0.5], 1.0, n);
    let turn = |positions: &Index, table: &Table| {
        let [mut q, mut k] = [x(), x()];
        rope::apply([&mut q, &mut k], positions, table, Turn::Forward).map(|()| q.to_f64())
    };
    assert!(turn(&positions, &table(3).on(device).unwrap()).is_err(), "a position beyond the table");
    assert!(turn(&positions, &table(4)).is_err(), "a table of the CPU");
    let whole = table(4).on(device).unwrap();
    assert!(turn(&Index::host(vec![0, 3]), &whole).is_err(), "positions of the CPU");
    assert_eq!(turn(&positions, &whole).unwrap(), [0.0; 8]);
}
