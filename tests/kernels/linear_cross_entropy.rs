use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::linear_cross_entropy::{self, kernel_chunk_rows};
use qlora_engine::tensor::{Index, Live};

/// (rows, hidden, vocabulary): one of each, small ones, more columns than a block's, odd ones.
const SHAPES: [(usize, usize, usize); 6] =
    [(1, 1, 1), (5, 4, 11), (33, 64, 500), (70, 40, 4096), (3, 24, 4099), (2, 16, 9001)];
const SCALE: f64 = 0.375;

struct Case {
    h: Vec<f64>,
    w: Vec<f64>,
    targets: Vec<u32>,
    hidden: usize,
}

impl Case {
    fn new((rows, hidden, vocab): (usize, usize, usize)) -> Self {
        let r = |seed, n| bf16s(&random(seed, n));
        let targets = (0..rows).map(|i| (i * 7919 % vocab) as u32).collect();
        Case { h: r(1, rows * hidden), w: r(2, vocab * hidden), targets, hidden }
    }

    /// The loss (added to 2) without and with gradients, dh, dw (added to 1); and dh where the head is frozen. With
    /// `slack` that many more rows, full of NaN.
    fn run(&self, dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
        let (rows, vocab) = (self.targets.len(), self.w.len() / self.hidden);
        device.set_step(Step { loss_rows: rows as u32, scale: SCALE as f32, ..no_step() });
        let live = (slack > 0).then(|| Live::loss_rows(device)).flatten();
        let h = || {
            let h = [&self.h[..], &vec![f64::NAN; slack * self.hidden]].concat();
            let mut h = tensor(&h, rows + slack, self.hidden, dtype, device);
            h.set_live(live);
            h
        };
        let targets = Index::new(&self.targets, rows + slack, live, device).unwrap();
        let w = tensor(&self.w, vocab, self.hidden, dtype, device);
        let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
        let mut grads = tensor(&vec![1.0; self.w.len()], 1, self.w.len(), acc, device);
        let two = || tensor(&[2.0], 1, 1, DType::F64, device);
        let (mut loss, mut loss_too, mut loss_frozen) = (two(), two(), two());
        let frozen = Slot::whole(&w);
        let trained = Slot { grad: true, ..frozen };
        linear_cross_entropy::fwd(&h(), frozen, &targets, &mut loss).unwrap();
        let both = |w, loss: &mut Tensor, grads: &mut Tensor| {
            let dh = linear_cross_entropy::fwd_bwd(h(), w, &targets, SCALE, loss, grads).unwrap();
            dh.to_f64()[..rows * self.hidden].to_vec()
        };
        let dh = both(trained, &mut loss_too, &mut grads);
        let dw = grads.to_f64();
        let dh_frozen = both(frozen, &mut loss_frozen, &mut grads);
        assert_eq!(dh, dh_frozen, "the head's gradient changes nothing else");
        assert_eq!(dw, grads.to_f64(), "a frozen head gets no gradient");
        assert_eq!(loss.to_f64(), loss_too.to_f64(), "the gradient does not change the loss");
        vec![loss.to_f64(), dh, dw]
    }
}

#[test]
fn kernels_match_reference() {
    for shape in SHAPES {
        let case = Case::new(shape);
        let (rows, hidden, vocab) = shape;
        let cpu = Device::cpu(2);
        let (want, plain) = (case.run(DType::F64, &cpu, 0), case.run(DType::Bf16, &cpu, 0));
        let got = on_each(|device| case.run(DType::Bf16, device, 0));
        // Products of bf16 are exact in f32, so that a logit errs by its sum: `hidden` roundings of at most `most`, the
        // sum of its terms' magnitudes. Beside that e^x and the logarithm err by 4 units, and a thread's sum by one for
        // each of its columns and of the block's levels.
        let eps = 2f64.powi(-24);
        let (h, w) = (case.h.chunks(hidden), || case.w.chunks(hidden));
        let terms = |h: &[f64], w: &[f64]| h.iter().zip(w).map(|(h, w)| (h * w).abs()).sum::<f64>();
        let most = h.flat_map(|h| w().map(move |w| terms(h, w))).fold(0.0, f64::max);
        let limit = rows as f64 * eps * (2.0 * hidden as f64 * most + 4.0 * most + vocab as f64 / 512.0 + 14.0);
        let e = max_err(&got[0], &want[0]);
        assert!(e <= limit, "loss {shape:?}: error {e:.3e} > {limit:.3e}");
        check(&format!("dh {shape:?}"), &got[1], &plain[1], &want[1], 3.0);
        check(&format!("dw {shape:?}"), &got[2], &plain[2], &want[2], 3.0);
    }
}

/// Slack rows in the last chunk, and a chunk of nothing else: the bits of a batch without any.
#[test]
fn slack_rows_are_not_read() {
    for (shape, slack) in [((5, 4, 11), 59), ((1030, 8, 11), 100), ((1000, 8, 11), 300)] {
        assert!(kernel_chunk_rows(shape.2) == 1024, "so that the second and third have two chunks");
        let case = Case::new(shape);
        let of = |slack| on_each(|device| case.run(DType::Bf16, device, slack));
        assert_eq!(of(0), of(slack), "{shape:?}");
    }
}

#[test]
fn chunks_fit_their_memory() {
    for vocab in [11, 32_000, 128_256, 151_936, 256_000] {
        let rows = kernel_chunk_rows(vocab);
        assert!((128..=1024).contains(&rows) && rows.is_multiple_of(128), "{rows} rows of {vocab}");
        assert!(rows * vocab <= 64 << 20, "{rows} rows of {vocab}");
    }
}
