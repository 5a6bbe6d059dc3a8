use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::rope::{self, Norm, Table, Turn};
use qlora_engine::tensor::{Index, Live};

const EPS: f64 = 1e-6;
const POSITIONS: usize = 50;
/// (rows, heads, head_dim): one pair, halves that are no multiple of 8, real heads, more than a warp's packs.
const SHAPES: [(usize, usize, usize); 9] =
    [(1, 1, 2), (3, 2, 66), (5, 3, 80), (7, 4, 64), (9, 2, 96), (20, 5, 128), (2, 2, 256), (2, 1, 600), (2, 1, 608)];

struct Case {
    x: Vec<f64>,
    w: Vec<f64>,
    dy: Vec<f64>,
    positions: Vec<u32>,
    rows: usize,
}

impl Case {
    fn new(seed: u64, (rows, heads, dim): (usize, usize, usize)) -> Self {
        let r = |seed, n| bf16s(&random(seed, n));
        let positions = (0..rows).map(|i| (i * 17 % POSITIONS) as u32).collect();
        Case { x: r(seed, rows * heads * dim), w: r(50, dim), dy: r(60 + seed, rows * heads * dim), positions, rows }
    }

    /// Turned and turned back in place, turned out of place, normalised and turned; the gradients of the last two, the
    /// norm frozen and trained; and the trained norm's (added to 1). With `slack` that many more rows, full of NaN.
    fn run(&self, dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
        let (cols, dim) = (self.x.len() / self.rows, self.w.len());
        let freq: Vec<f32> = (0..dim / 2).map(|i| 0.7f32.powi(i as i32)).collect();
        let table = Table::new(&freq, 1.1, POSITIONS).on(device).unwrap();
        device.set_step(Step { tokens: self.rows as u32, ..no_step() });
        let live = (slack > 0).then(|| Live::tokens(device)).flatten();
        let rows = self.rows + slack;
        let t = |v: &[f64]| {
            let mut t = tensor(&[v, &vec![f64::NAN; slack * cols]].concat(), rows, cols, dtype, device);
            t.set_live(live);
            t
        };
        let positions = Index::new(&self.positions, rows, live, device).unwrap();
        let w = tensor(&self.w, 1, dim, dtype, device);
        let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut grads = tensor(&vec![1.0; dim], 1, dim, acc, device);
        let turned = |way| {
            let mut x = t(&self.x);
            rope::apply(&mut x, &positions, &table, way).unwrap();
            x
        };
        let x = t(&self.x);
        let frozen = Norm { w: Slot::whole(&w), eps: EPS };
        let trained = Norm { w: Slot { grad: true, ..frozen.w }, ..frozen };
        let mut all = vec![turned(Turn::Forward), turned(Turn::Back)];
        for norm in [None, Some(frozen)] {
            all.push(rope::fwd(&x, norm, &positions, &table).unwrap());
        }
        for norm in [None, Some(frozen), Some(trained)] {
            all.push(rope::bwd(&x, norm, &positions, &table, t(&self.dy), &mut grads).unwrap());
        }
        let live: usize = self.rows * cols;
        all.iter().map(|t| t.to_f64()[..live].to_vec()).chain([grads.to_f64()]).collect()
    }
}

#[test]
fn kernels_match_reference() {
    let names = ["turned", "turned back", "y", "y of the norm", "dx", "dx of the norm", "dx of the trained norm", "dw"];
    for (seed, shape) in SHAPES.into_iter().enumerate() {
        let case = Case::new(seed as u64, shape);
        let cpu = Device::cpu(2);
        let (want, plain) = (case.run(DType::F64, &cpu, 0), case.run(DType::Bf16, &cpu, 0));
        let got = on_each(|device| case.run(DType::Bf16, device, 0));
        for (i, what) in names.into_iter().enumerate() {
            let times = if i < 4 { 2.0 } else { 3.0 };
            check(&format!("{what} {shape:?}"), &got[i], &plain[i], &want[i], times);
        }
    }
}

#[test]
fn slack_rows_are_not_read() {
    for shape in [(7, 4, 64), (5, 3, 80), (3, 2, 66)] {
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
    let x = tensor(&[0.0; 8], 2, 4, DType::Bf16, device);
    let positions = Index::new(vec![0, 3], 2, None, device).unwrap();
    let table = |n| Table::new(&[1.0, 0.5], 1.0, n);
    let fwd = |norm, table: &Table| rope::fwd(&x, norm, &positions, table).map(|y| y.to_f64());
    assert!(fwd(None, &table(3).on(device).unwrap()).is_err(), "a position beyond the table");
    assert!(fwd(None, &table(4)).is_err(), "a table of the CPU");
    let whole = table(4).on(device).unwrap();
    assert!(rope::fwd(&x, None, &Index::host(vec![0, 3]), &whole).is_err(), "positions of the CPU");
    let w = tensor(&[1.0; 2], 1, 2, DType::Bf16, device);
    let norm = Norm { w: Slot::whole(&w), eps: EPS };
    assert!(fwd(Some(norm), &table(4).on(device).unwrap()).is_err(), "a norm of half a head");
    assert_eq!(fwd(None, &table(4).on(device).unwrap()).unwrap(), [0.0; 8]);
}
