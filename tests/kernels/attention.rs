use crate::*;
use qlora_engine::ops::attention::{self, Attention, Paged, Scores};
use qlora_engine::tensor::Index;

struct Case {
    spans: &'static [u32],
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    alibi: bool,
    soft_cap: Option<f64>,
}

const fn case(spans: &'static [u32], heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Case {
    Case { spans, heads, kv_heads, head_dim, window, alibi: false, soft_cap: None }
}

/// With other scores; a cap in the midst of the products.
const fn scored(case: Case, alibi: bool, cap: bool) -> Case {
    Case { alibi, soft_cap: if cap { Some(1.5) } else { None }, ..case }
}

/// A slope for each head, as ALiBi has them; one is 0.
fn slopes(alibi: bool, heads: usize, device: &Device) -> Option<Tensor> {
    let of = |h: usize| if h == 1 { 0.0 } else { 0.5f64.powi(h as i32 % 8 + 1) };
    alibi.then(|| tensor(&(0..heads).map(of).collect::<Vec<_>>(), 1, heads, DType::F32, device))
}

/// Each size of tiles filled and padded; one token, spans shorter and longer than a tile, ending on and beside its edge,
/// empty ones; 1, 2, 4 and 8 query heads a kv head; windows narrower and wider than a tile; rows of odd length, which are
/// not read in packs.
const CASES: [Case; 24] = [
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
    scored(case(&[0, 130, 135], 2, 2, 16, None), true, false),
    scored(case(&[0, 3, 3, 10, 10], 4, 2, 3, Some(4)), true, true),
    scored(case(&[0, 1, 2, 63, 65, 129, 200], 4, 1, 64, None), true, true),
    scored(case(&[0, 130, 135], 2, 1, 64, Some(70)), false, true),
    scored(case(&[0, 20, 150], 2, 1, 80, Some(70)), true, false),
    scored(case(&[0, 5, 130], 2, 1, 96, None), false, true),
    scored(case(&[0, 30, 140], 4, 2, 128, Some(33)), true, true),
    scored(case(&[0, 30, 100], 2, 1, 256, None), true, true),
    scored(case(&[0, 140], 1, 1, 256, Some(50)), false, true),
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
        let slopes = slopes(self.alibi, heads, device);
        let scores = Scores { slopes: slopes.as_ref(), soft_cap: self.soft_cap };
        let a = Attention { heads, kv_heads, head_dim, cu_seqlens: &cu_seqlens, window, scores };
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
    let case = scored(case(&[0, 64, 150], 2, 1, 64, None), true, true);
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
        let a =
            Attention { heads: 1, kv_heads: 1, head_dim, cu_seqlens: spans, window: None, scores: Scores::default() };
        let error = attention::fwd(&q, &q, &q, a).map(|_| ()).unwrap_err().to_string();
        assert!(error.contains(why), "{error}");
    }
}

/// Keys of each sequence, heads, kv heads, head_dim, window, keys of a page; whether with ALiBi, and with a cap.
type DecodeCase = (&'static [u32], usize, usize, usize, Option<usize>, usize, bool, bool);

/// Each size of tiles; no key, one key, fewer and more keys than a split, at its edge; more query heads a kv head than a
/// product has rows; windows.
const DECODE_CASES: [DecodeCase; 13] = [
    (&[1, 0, 17], 4, 2, 5, None, 16, false, false),
    (&[40, 3], 2, 2, 32, Some(9), 16, false, false),
    (&[300, 16, 700], 4, 1, 64, None, 32, false, false),
    (&[600, 255, 256, 257], 2, 1, 80, Some(100), 16, false, false),
    (&[33, 300], 40, 2, 96, None, 48, false, false),
    (&[600], 8, 1, 128, None, 256, false, false),
    (&[300, 5], 2, 1, 256, Some(290), 64, false, false),
    (&[100, 300], 24, 1, 33, Some(300), 16, false, false),
    (&[1, 0, 17], 4, 2, 5, None, 16, true, true),
    (&[300, 16, 700], 4, 1, 64, None, 32, true, false),
    (&[600, 255, 256, 257], 2, 1, 80, Some(100), 16, true, true),
    (&[33, 300], 40, 2, 96, None, 48, false, true),
    (&[300, 5], 2, 1, 256, Some(290), 64, true, true),
];

#[test]
fn decode_matches_reference() {
    for (i, (lengths, heads, kv_heads, head_dim, window, page, alibi, cap)) in DECODE_CASES.into_iter().enumerate() {
        let most = lengths.iter().fold(0, |m: u32, &n| m.max(n)) as usize;
        let width = most.div_ceil(page) + 1;
        let count = width * lengths.len();
        // Pages from the last to the first; what no key was written to holds NaN.
        let pages: Vec<u32> = (0..count as u32).rev().collect();
        let row_len = kv_heads * head_dim;
        let mut written = vec![false; count * page];
        for (n, &keys) in lengths.iter().enumerate() {
            (0..keys as usize).for_each(|j| written[pages[n * width + j / page] as usize * page + j % page] = true);
        }
        let cache = |seed| {
            let mut x = bf16s(&random(seed, count * page * row_len));
            for (x, _) in x.chunks_exact_mut(row_len).zip(&written).filter(|(_, written)| !**written) {
                x.fill(f64::NAN);
            }
            x
        };
        let (q, k, v) = (bf16s(&random(1, lengths.len() * heads * head_dim)), cache(2), cache(3));
        // The sequences from `first` on alone.
        let run = |first: usize, dtype, device: &Device| {
            let n = lengths.len() - first;
            let q = tensor(&q[first * heads * head_dim..], n, heads * head_dim, dtype, device);
            let [k, v] = [&k, &v].map(|x| tensor(x, count * page, row_len, dtype, device));
            let pages = Index::new(&pages[first * width..], n * width, None, device).unwrap();
            let counts = Index::new(&lengths[first..], n, None, device).unwrap();
            let slopes = slopes(alibi, heads, device);
            let scores = Scores { slopes: slopes.as_ref(), soft_cap: cap.then_some(1.5) };
            let a = Paged { heads, kv_heads, head_dim, window, scores, page, pages: &pages, lengths: &counts };
            let o = attention::decode(&q, &k, &v, a).unwrap().to_f64();
            let rows = o.chunks_exact(heads * head_dim).zip(&lengths[first..]);
            vec![rows.filter(|(_, keys)| **keys > 0).flat_map(|(o, _)| o.to_vec()).collect::<Vec<f64>>()]
        };
        let cpu = Device::cpu(2);
        let (want, plain) = (run(0, DType::F64, &cpu), run(0, DType::Bf16, &cpu));
        let got = on_each(|device| run(0, DType::Bf16, device));
        check(&format!("o, case {i}"), &got[0], &plain[0], &want[0], 2.0);
        // A sequence's bits do not depend on what else is in the batch.
        let last = on_each(|device| run(lengths.len() - 1, DType::Bf16, device));
        assert!(got[0].ends_with(&last[0]), "case {i}");
    }
}
