use crate::*;
use qlora_engine::ops::attention::{self, Attention};
use qlora_engine::tensor::Index;

struct Case {
    spans: &'static [u32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
}

const fn case(spans: &'static [u32], heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Case {
    Case { spans, heads, kv_heads, head_dim, window }
}

/// Each size of tiles filled and padded; one token, spans shorter and longer than a tile, ending on and beside its edge,
/// empty ones; 1, 2, 4 and 8 query heads a kv head; windows narrower and wider than a tile; rows of odd length, which are
/// not read in packs.
const CASES: [Case; 15] = [
    case(&[0, 1], 1, 1, 2, None),
    case(&[0, 3, 3, 10, 10], 4, 2, 3, Some(4)),
    case(&[0, 130, 135], 2, 2, 16, None),
    case(&[0, 64, 64, 128], 2, 1, 32, None),
    case(&[0, 130, 135], 2, 1, 64, Some(7)),
    case(&[0, 1, 2, 63, 65, 129, 200], 4, 1, 64, None),
    case(&[0, 200], 1, 1, 64, Some(100)),
    case(&[0, 70], 8, 1, 40, None),
    case(&[0, 20, 150], 2, 1, 80, Some(70)),
    case(&[0, 5, 130], 2, 1, 96, None),
    case(&[0, 150], 2, 1, 128, None),
    case(&[0, 30, 140], 4, 2, 128, Some(33)),
    case(&[0, 30, 100], 2, 1, 256, None),
    case(&[0, 140], 1, 1, 256, Some(50)),
    case(&[0, 70], 2, 1, 131, None),
];

impl Case {
    fn tokens(&self) -> usize {
        self.spans[self.spans.len() - 1] as usize
    }

    /// q, k, v and d_o.
    fn inputs(&self) -> [Vec<f64>; 4] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [(1, q), (2, kv), (3, kv), (4, q)].map(|(seed, width)| bf16s(&random(seed, self.tokens() * width)))
    }

    /// o, dq, dk, dv of the tokens, the tensors being `rows` rows of which those past the tokens hold NaN.
    fn run(&self, x: &[Vec<f64>; 4], rows: usize, dtype: DType, device: &Device) -> Vec<Vec<f64>> {
        let Case { heads, kv_heads, head_dim, window, .. } = *self;
        let width = |x: &[f64]| x.len() / self.tokens();
        let [q, k, v, d_o] = x.each_ref().map(|x| {
            let mut all = x.clone();
            all.resize(rows * width(x), f64::NAN);
            tensor(&all, rows, width(x), dtype, device)
        });
        let cu_seqlens = attention::spans(self.spans, rows, device).unwrap();
        let a = Attention { heads, kv_heads, head_dim, cu_seqlens: &cu_seqlens, window };
        let (o, saved) = attention::fwd(&q, &k, &v, a).unwrap();
        let [dq, dk, dv] = attention::bwd(saved, &q, &k, &v, &o, &d_o, a).unwrap();
        [o, dq, dk, dv].map(|t| t.to_f64()[..self.tokens() * t.cols()].to_vec()).to_vec()
    }
}

#[test]
fn kernels_match_reference() {
    for (i, case) in CASES.iter().enumerate() {
        let x = case.inputs();
        let (cpu, tokens) = (Device::cpu(2), case.tokens());
        let want = case.run(&x, tokens, DType::F64, &cpu);
        let plain = case.run(&x, tokens, DType::Bf16, &cpu);
        let got = on_each(|device| case.run(&x, tokens.next_multiple_of(64), DType::Bf16, device));
        for (j, (what, times)) in [("o", 2.0), ("dq", 3.0), ("dk", 3.0), ("dv", 3.0)].into_iter().enumerate() {
            check(&format!("{what}, case {i}"), &got[j], &plain[j], &want[j], times);
        }
    }
}

/// A span that begins where a tile does has the same bits whatever else is in the batch, and however many rows there are.
#[test]
fn bits_do_not_depend_on_other_spans() {
    let case = case(&[0, 64, 150], 2, 1, 64, None);
    let alone = Case { spans: &[0, 86], ..case };
    let x = case.inputs();
    let tail = x.each_ref().map(|x| x[x.len() / 150 * 64..].to_vec());
    let device = Device::host_kernels(2, false).unwrap();
    let all = case.run(&x, 192, DType::Bf16, &device);
    let got = alone.run(&tail, 86, DType::Bf16, &device);
    for (all, got) in all.iter().zip(&got) {
        assert_eq!(all[all.len() / 150 * 64..], got[..]);
    }
}

/// Another dtype, a head too large, and spans that were not made for kernels are refused by name.
#[test]
fn refuses_what_it_cannot_compute() {
    let device = Device::host_kernels(1, false).unwrap();
    let spans = attention::spans(&[0, 4][..], 4, &device).unwrap();
    let copied = Index::new(&[0, 4][..], 5, None, &device).unwrap();
    for (dtype, head_dim, spans, why) in [
        (DType::F32, 8, &spans, "F32"),
        (DType::Bf16, 257, &spans, "over 256"),
        (DType::Bf16, 8, &copied, "attention::spans"),
    ] {
        let q = tensor(&vec![0.0; 4 * head_dim], 4, head_dim, dtype, &device);
        let a = Attention { heads: 1, kv_heads: 1, head_dim, cu_seqlens: spans, window: None };
        let error = attention::fwd(&q, &q, &q, a).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}
