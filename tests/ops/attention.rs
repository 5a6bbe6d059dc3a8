use crate::*;
use qlora_engine::ops::attention::{self, Attention, Paged, Scores, store};

/// The definition, pair by pair.
fn naive(q: &[f64], k: &[f64], v: &[f64], a: Attention) -> Vec<f64> {
    let (d, group) = (a.head_dim, a.heads / a.kv_heads);
    let (qw, kw) = (a.heads * d, a.kv_heads * d);
    let mut o = vec![0.0; q.len()];
    for span in a.cu_seqlens.numbers().windows(2) {
        let (from, to) = (span[0] as usize, span[1] as usize);
        for i in from..to {
            for h in 0..a.heads {
                let first = a.window.map_or(from, |w| from.max((i + 1).saturating_sub(w)));
                let slope = a.scores.slopes.map_or(0.0, |t| t.to_f64()[h]);
                let score = |j: usize| {
                    let x = (0..d).map(|c| q[i * qw + h * d + c] * k[j * kw + h / group * d + c]).sum::<f64>()
                        / (d as f64).sqrt();
                    a.scores.soft_cap.map_or(x, |cap| cap * (x / cap).tanh()) + slope * (j as f64 - i as f64)
                };
                let scores: Vec<f64> = (first..=i).map(score).collect();
                let total: f64 = scores.iter().map(|s| s.exp()).sum();
                for (s, j) in scores.iter().zip(first..) {
                    for c in 0..d {
                        o[i * qw + h * d + c] += s.exp() / total * v[j * kw + h / group * d + c];
                    }
                }
            }
        }
    }
    o
}

struct Case {
    spans: Index<'static>,
    heads: usize,
    kv_heads: usize,
    head_dim: usize,
    window: Option<usize>,
    slopes: Option<Tensor>,
    soft_cap: Option<f64>,
}

/// A slope for each head: of ALiBi's size, one of them 0.
fn slopes(heads: usize) -> Tensor {
    let slopes: Vec<f32> = (0..heads).map(|h| if h == 1 { 0.0 } else { 0.5f32.powi(h as i32 + 1) }).collect();
    Tensor::from_slice(&slopes, 1, heads, &Device::cpu(1)).unwrap()
}

impl Case {
    fn plain(spans: &[u32], heads: usize, kv_heads: usize, head_dim: usize, window: Option<usize>) -> Case {
        let spans = Index::host(spans.to_vec());
        Case { spans, heads, kv_heads, head_dim, window, slopes: None, soft_cap: None }
    }

    /// A cap in the midst of the scores.
    fn with(self, alibi: bool, cap: bool) -> Case {
        Case { slopes: alibi.then(|| slopes(self.heads)), soft_cap: cap.then_some(1.5), ..self }
    }

    fn scores(&self) -> Scores<'_> {
        Scores { slopes: self.slopes.as_ref(), soft_cap: self.soft_cap }
    }

    fn attention(&self) -> Attention<'_> {
        let Case { heads, kv_heads, head_dim, window, .. } = *self;
        Attention { heads, kv_heads, head_dim, cu_seqlens: &self.spans, window, scores: self.scores() }
    }

    fn tokens(&self) -> usize {
        *self.spans.numbers().last().unwrap() as usize
    }

    fn inputs(&self, dtype: DType) -> [Vec<f64>; 3] {
        let (q, kv) = (self.heads * self.head_dim, self.kv_heads * self.head_dim);
        [(1, q), (2, kv), (3, kv)].map(|(seed, w)| rounded(&random(seed, self.tokens() * w), dtype))
    }

    fn tensors(&self, x: &[Vec<f64>; 3], dtype: DType) -> [Tensor; 3] {
        std::array::from_fn(|i| tensor(&x[i], self.tokens(), x[i].len() / self.tokens(), dtype))
    }
}

/// One token; spans shorter and longer than a tile, an empty one among them; grouped heads; windows narrower and wider
/// than a tile.
fn cases() -> Vec<Case> {
    let case = Case::plain;
    vec![
        case(&[0, 1], 1, 1, 2, None),
        case(&[0, 3, 3, 10], 4, 2, 5, None),
        case(&[0, 130, 135], 2, 1, 8, None),
        case(&[0, 130, 135], 2, 2, 8, Some(7)),
        case(&[0, 200], 2, 1, 16, Some(70)),
        case(&[0, 130, 135], 4, 2, 8, None).with(true, false),
        case(&[0, 3, 100], 2, 2, 16, None).with(false, true),
        case(&[0, 130, 135], 4, 1, 5, Some(70)).with(true, true),
    ]
}

#[test]
fn equals_the_definition() {
    for (i, case) in cases().iter().enumerate() {
        let x = case.inputs(DType::F64);
        let [q, k, v] = case.tensors(&x, DType::F64);
        let got = attention::fwd(&q, &k, &v, case.attention()).unwrap().0.to_f64();
        // Sums of up to 200 terms of order 1 in f64.
        let e = max_err(&got, &naive(&x[0], &x[1], &x[2], case.attention()));
        assert!(e <= 1e-12, "case {i}: {e:.3e}");
    }
}

fn grads(case: &Case, x: &[Vec<f64>; 3], c: &[f64], dtype: DType) -> [Vec<f64>; 3] {
    let [q, k, v] = case.tensors(x, dtype);
    let (o, saved) = attention::fwd(&q, &k, &v, case.attention()).unwrap();
    let d_o = tensor(c, case.tokens(), o.cols(), dtype);
    attention::bwd(saved, &q, &k, &v, &o, &d_o, case.attention()).unwrap().map(|t| t.to_f64())
}

#[test]
fn gradients() {
    for (alibi, cap) in [(false, false), (true, false), (false, true), (true, true)] {
        let small = Case::plain(&[0, 2, 6], 4, 2, 3, Some(3)).with(alibi, cap);
        let x = small.inputs(DType::F64);
        let c = random(4, x[0].len());
        let got = grads(&small, &x, &c, DType::F64);
        for (which, name) in ["dq", "dk", "dv"].into_iter().enumerate() {
            check_grad(name, &x[which], &got[which], |part| {
                let mut x = x.clone();
                x[which] = part.to_vec();
                dot(&naive(&x[0], &x[1], &x[2], small.attention()), &c)
            });
        }
    }
}

/// Errors enter through the scores, P and dS (rounded to the storage type: two units each, of values up to the largest)
/// and through sums of n f32 terms. The bounds are relative to the largest element, since errors of one row mix.
#[test]
fn low_precision() {
    for dtype in [DType::F32, DType::Bf16] {
        for (i, case) in cases().iter().enumerate() {
            let x = case.inputs(dtype);
            let c = rounded(&random(4, x[0].len()), dtype);
            let terms = case.tokens() as f64;
            // Scores reach about 10, so an error of a unit in them is one of 10 units in P.
            let rel = 8.0 * eps(dtype) + (20.0 + terms) * eps(DType::F32);
            let [q, k, v] = case.tensors(&x, dtype);
            let got = attention::fwd(&q, &k, &v, case.attention()).unwrap().0.to_f64();
            let want = naive(&x[0], &x[1], &x[2], case.attention());
            let e = max_err(&got, &want);
            assert!(e <= rel * max_abs(&want), "{dtype:?} case {i}: {e:.3e}");
            for (got, want) in grads(case, &x, &c, dtype).iter().zip(grads(case, &x, &c, DType::F64)) {
                let e = max_err(got, &want);
                assert!(e <= 2.0 * rel * max_abs(&want).max(1.0), "{dtype:?} case {i}: gradient {e:.3e}");
            }
        }
    }
}

#[test]
fn bits_do_not_depend_on_threads_or_on_other_spans() {
    let case = Case::plain(&[0, 130, 135], 4, 2, 16, None).with(true, true);
    let x = case.inputs(DType::F32);
    let run = |threads| {
        let dev = Device::cpu(threads);
        let t = |i: usize| {
            let v: Vec<f32> = x[i].iter().map(|&x| x as f32).collect();
            Tensor::from_slice(&v, 135, x[i].len() / 135, &dev).unwrap()
        };
        let (q, k, v) = (t(0), t(1), t(2));
        let (o, saved) = attention::fwd(&q, &k, &v, case.attention()).unwrap();
        let d = attention::bwd(saved, &q, &k, &v, &o, &q, case.attention()).unwrap();
        (o.to_f64(), d.map(|t| t.to_f64()))
    };
    let (o, _) = run(1);
    assert_eq!(run(1), run(3));
    // The second span alone.
    let alone = Case::plain(&[0, 5], 4, 2, 16, None).with(true, true);
    let tail = std::array::from_fn(|i| x[i][130 * (x[i].len() / 135)..].to_vec());
    let [q, k, v] = alone.tensors(&tail, DType::F32);
    let (o_alone, _) = attention::fwd(&q, &k, &v, alone.attention()).unwrap();
    assert_eq!(o_alone.to_f64(), o[130 * 64..]);
}

#[test]
fn refuses_spans_that_do_not_cover_the_tokens() {
    let case = Case::plain(&[0, 4], 1, 1, 2, None);
    let [q, k, v] = case.tensors(&case.inputs(DType::F32), DType::F32);
    for spans in [&[0u32, 3][..], &[1, 4], &[0, 4, 3, 4], &[]] {
        assert!(
            attention::fwd(&q, &k, &v, Attention { cu_seqlens: &Index::host(spans), ..case.attention() }).is_err(),
            "{spans:?}"
        );
    }
}

/// Read from pages, in passes of any size, a sequence has the bits of the whole pass: whatever its scores are.
#[test]
fn pages_give_the_bits_of_the_whole_pass() {
    const PAGE: usize = 16;
    for case in [
        Case::plain(&[0, 150], 4, 2, 8, None),
        Case::plain(&[0, 150], 4, 2, 8, Some(70)).with(true, false),
        Case::plain(&[0, 150], 4, 1, 8, None).with(false, true),
        Case::plain(&[0, 150], 2, 2, 5, Some(40)).with(true, true),
    ] {
        let x = case.inputs(DType::F32);
        let [q, k, v] = case.tensors(&x, DType::F32);
        let want = attention::fwd(&q, &k, &v, case.attention()).unwrap().0.to_f64();
        let (tokens, q_width, kv_width) = (150, q.cols(), k.cols());
        for step in [1, 7, 150] {
            let cache = || Tensor::zeros(12 * PAGE, kv_width, DType::F32, q.device()).unwrap();
            let (mut cache_k, mut cache_v) = (cache(), cache());
            // Pages from the last to the first.
            let pages: Vec<u32> = (0..10).map(|i| 11 - i).collect();
            let row = |i: usize| pages[i / PAGE] * PAGE as u32 + (i % PAGE) as u32;
            let mut got = Vec::new();
            for from in (0..tokens).step_by(step) {
                let rows = from..(from + step).min(tokens);
                let n = rows.len();
                let cut =
                    |x: &[f64], width: usize| tensor(&x[rows.start * width..rows.end * width], n, width, DType::F32);
                let at = Index::host(rows.clone().map(row).collect::<Vec<_>>());
                store(&cut(&x[1], kv_width), &cut(&x[2], kv_width), &at, &mut cache_k, &mut cache_v).unwrap();
                let all_pages = Index::host(pages.repeat(n));
                let lengths = Index::host(rows.clone().map(|i| i as u32 + 1).collect::<Vec<_>>());
                let Case { heads, kv_heads, head_dim, window, .. } = case;
                let a = Paged {
                    heads,
                    kv_heads,
                    head_dim,
                    window,
                    scores: case.scores(),
                    page: PAGE,
                    pages: &all_pages,
                    lengths: &lengths,
                };
                got.extend(attention::decode(&cut(&x[0], q_width), &cache_k, &cache_v, a).unwrap().to_f64());
            }
            assert_eq!(got, want, "steps of {step}");
        }
    }
}

#[test]
fn refuses_scores_that_make_no_sense() {
    let case = Case::plain(&[0, 4], 2, 1, 2, None);
    let [q, k, v] = case.tensors(&case.inputs(DType::F32), DType::F32);
    let refused = |scores: Scores, why: &str| {
        let e = attention::fwd(&q, &k, &v, Attention { scores, ..case.attention() }).map(|_| ()).unwrap_err();
        assert!(e.to_string().contains(why), "{e}");
    };
    for cap in [0.0, -1.0, f64::NAN, f64::INFINITY, 1e-60] {
        refused(Scores { soft_cap: Some(cap), slopes: None }, "soft_cap");
    }
    refused(Scores { slopes: Some(&slopes(3)), soft_cap: None }, "slopes");
}
