use crate::*;
use qlora_engine::infer::sample::{Sampler, Sampling};
use qlora_engine::ops::sample::{self, Ask, CANDIDATES, Mark, Penalties, Picked, Row};

const OFF: Penalties = Penalties { repetition: 1.0, presence: 0.0, frequency: 0.0 };

/// Smaller than a warp; ragged; a chunk of 8192 and beside it; real vocabularies, one that is not read in packs.
const VOCABULARIES: [usize; 8] = [32, 257, 1000, 8192, 8193, 32_000, 50_257, 152_000];

/// Logits that are hard to choose from, by name.
fn logits(kind: &str, n: usize) -> Vec<f64> {
    let level = |i: usize, levels: usize| (i * 7919 % levels) as f64;
    let x: Vec<f64> = match kind {
        "random" => random(n as u64, n).iter().map(|x| 4.0 * x).collect(),
        // Tens of thousands of equal ones are more than there is room for.
        "tied" => (0..n).map(|i| level(i, 97)).collect(),
        "equal" => vec![-2.5; n],
        "ascending" => (0..n).map(|i| i as f64 / 64.0).collect(),
        "descending" => (0..n).map(|i| -(i as f64) / 64.0).collect(),
        // Zeros of both signs, the smallest and the largest numbers, few of each.
        "extreme" => (0..n)
            .map(|i| {
                let sign = if i % 2 == 0 { 1.0 } else { -1.0 };
                sign * [0.0, 2f64.powi(-133), 2f64.powi(-126), 3.38e38, 1.0][i * i % 5]
            })
            .collect(),
        _ => unreachable!("{kind}"),
    };
    bf16s(&x)
}

/// Every seventh token occurred, some of them in the answer.
fn marks(n: usize) -> Vec<Mark> {
    let ids = (0..n).step_by(7).map(|i| i * 31 % n);
    let mut all: Vec<Mark> = ids.map(|id| Mark { id: id as u32, count: (id % 4) as u32 }).collect();
    all.sort_by_key(|m| m.id);
    all.dedup_by_key(|m| m.id);
    // In no particular order.
    all.reverse();
    all
}

/// The definition, by sorting.
fn naive(x: &[f64], ask: &Ask) -> Option<Picked> {
    let mut x: Vec<f32> = x.iter().map(|&x| x as f32).collect();
    let p = ask.penalties;
    for m in ask.marks {
        let logit = &mut x[m.id as usize];
        let y = f64::from(*logit);
        *logit = (if y < 0.0 { y * p.repetition } else { y / p.repetition }) as f32;
        if m.count > 0 {
            *logit = (f64::from(*logit) - p.presence - p.frequency * f64::from(m.count)) as f32;
        }
    }
    if x.iter().any(|x| !x.is_finite()) {
        return None;
    }
    let mut sorted = x.clone();
    sorted.sort_by(|a, b| b.partial_cmp(a).unwrap());
    let id = x.iter().position(|x| *x == sorted[0]).unwrap() as u32;
    let least = if ask.top_k > 0 { sorted[ask.top_k - 1] } else { f32::INFINITY };
    let ids = (0..x.len()).filter(|&i| x[i] >= least);
    let candidates: Vec<(u32, f32)> = ids.map(|i| (i as u32, x[i])).collect();
    (candidates.len() <= CANDIDATES).then_some(Picked { max: sorted[0], id, candidates })
}

/// What a device says, in numbers that must be the same bits on each.
fn flat(picked: &[Option<Picked>]) -> Vec<Vec<f64>> {
    let of = |p: &Option<Picked>| match p {
        None => vec![f64::NAN],
        Some(p) => {
            let ends = [f64::from(p.max), f64::from(p.id)];
            ends.into_iter().chain(p.candidates.iter().flat_map(|c| [f64::from(c.0), f64::from(c.1)])).collect()
        }
    };
    picked.iter().map(of).collect()
}

/// Rows of all kinds with settings of their own in one launch: what kernels and the CPU say is the definition.
#[test]
fn rows_are_picked_exactly() {
    let kinds = ["random", "tied", "equal", "ascending", "descending", "extreme"];
    let cpu = Device::cpu(1);
    let (mut fine, mut many) = (0, 0);
    for n in VOCABULARIES {
        let rows: Vec<f64> = kinds.iter().flat_map(|kind| logits(kind, n)).collect();
        let marks = marks(n);
        let harsh = Penalties { repetition: 1.7, presence: 0.3, frequency: -0.11 };
        let mut asks = Vec::new();
        for (row, k) in (0..kinds.len()).flat_map(|row| [0, 1, 2, 50, 1000].map(|k| (row, k))) {
            let (penalties, marks) = if (row + k) % 2 == 0 { (OFF, &[][..]) } else { (harsh, &marks[..]) };
            asks.push((row, Ask { penalties, marks, top_k: k.min(n - 1) }));
        }
        // A large vocabulary with fewer rows, and from a tensor of several rows not the first.
        let asks: Vec<(usize, Ask)> = asks.into_iter().step_by(if n > 10_000 { 3 } else { 1 }).collect();
        let want: Vec<Option<Picked>> = asks.iter().map(|(row, ask)| naive(&rows[row * n..][..n], ask)).collect();
        let run = |device: &Device| {
            let logits = tensor(&rows, kinds.len(), n, DType::Bf16, device);
            let rows: Vec<Row> = asks.iter().map(|&(row, ask)| Row { logits: &logits, row, ask }).collect();
            sample::pick(&rows).unwrap()
        };
        let all = |device: &Device| {
            let got = run(device);
            // (0 and -0 are equal.)
            for (i, (got, want)) in got.iter().zip(&want).enumerate() {
                assert!(got == want, "vocabulary {n}, row {:?}: {got:?} for {want:?}", asks[i].0);
            }
            flat(&got)
        };
        on_each(all);
        all(&cpu);
        fine += want.iter().flatten().count();
        many += want.iter().filter(|p| p.is_none()).count();
    }
    assert!(fine > 100 && many > 10, "{fine} rows are fine, {many} have too many candidates");
}

/// Exactly as many candidates as there is room for are given, one more is too many; in one chunk and across chunks.
#[test]
fn as_many_as_there_is_room_for() {
    for n in [5000, 30_000] {
        for tied in [CANDIDATES, CANDIDATES + 1] {
            // Every fourth logit ties with the largest but one.
            let mut x = vec![-1.0; n];
            (0..tied - 1).for_each(|i| x[i * 4] = 2.0);
            x[4 * tied + 1] = 3.0;
            let ask = Ask { penalties: OFF, marks: &[], top_k: 7 };
            let got = on_each(|device| {
                let logits = tensor(&x, 1, n, DType::Bf16, device);
                flat(&sample::pick(&[Row { logits: &logits, row: 0, ask }]).unwrap())
            });
            let ids: Vec<usize> = got[0].iter().skip(2).step_by(2).map(|&id| id as usize).collect();
            let want: Vec<usize> = (0..n).filter(|&i| x[i] > 0.0).collect();
            assert_eq!(ids, if tied == CANDIDATES { want } else { vec![] }, "{n} {tied}");
            assert_eq!(got[0].len() == 1, tied > CANDIDATES);
        }
    }
}

/// What is no finite number is seen wherever it stands, also if a penalty makes it or would hide it.
#[test]
fn what_is_not_finite_is_seen() {
    let n = 20_000;
    let none = |x: &[f64], penalties: Penalties, marks: &[Mark]| {
        for top_k in [0, 3] {
            let got = on_each(|device| {
                let logits = tensor(x, 1, n, DType::Bf16, device);
                flat(&sample::pick(&[Row { logits: &logits, row: 0, ask: Ask { penalties, marks, top_k } }]).unwrap())
            });
            assert!(got[0][0].is_nan());
        }
    };
    let mark = |id| [Mark { id, count: 1 }];
    for bad in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
        for at in [0, 8191, 8192, n - 1] {
            let mut x = logits("random", n);
            x[at] = bad;
            none(&x, OFF, &[]);
            none(&x, Penalties { repetition: 1e300, ..OFF }, &mark(at as u32));
        }
    }
    none(&vec![1.0; n], Penalties { repetition: 1e-40, ..OFF }, &mark(9000));
    none(&vec![-1.0; n], Penalties { repetition: 1e40, ..OFF }, &mark(0));
}

/// Tokens drawn from what kernels say are those that the sampler draws from whole rows.
#[test]
fn tokens_are_the_samplers() {
    let n = 9000;
    let s = Sampling { do_sample: true, ..Sampling::greedy() };
    let penalised = Sampling { repetition_penalty: 1.2, presence_penalty: 0.7, frequency_penalty: 0.4, ..s.clone() };
    let history: Vec<u32> = (0..300u32).map(|i| i * i % 8999).collect();
    let cases = [
        Sampling::greedy(),
        Sampling { do_sample: false, ..penalised.clone() },
        Sampling { top_k: 1, ..s.clone() },
        Sampling { top_k: 20, temperature: 0.6, top_p: 0.95, seed: 5, ..s.clone() },
        Sampling { top_k: 600, temperature: 3.0, min_p: 0.01, seed: 6, ..s.clone() },
        Sampling { top_k: 64, top_p: 0.5, seed: 7, ..penalised.clone() },
        Sampling { top_k: 64, seed: 8, presence_penalty: 0.0, frequency_penalty: 0.0, ..penalised.clone() },
        Sampling { top_k: 64, seed: 9, repetition_penalty: 1.0, ..penalised },
    ];
    let rows: Vec<f64> = ["random", "tied", "extreme"].iter().flat_map(|kind| logits(kind, n)).collect();
    for sampling in cases {
        let run = |device: &Device| {
            let logits = tensor(&rows, 3, n, DType::Bf16, device);
            let (mut drawn, mut wholly) = (Vec::new(), Sampler::new(sampling.clone()).unwrap());
            let mut sampler = Sampler::new(sampling.clone()).unwrap();
            for position in 0..12 {
                let row = position % 3;
                let prompt = 290 + position % 20;
                let ask = sampler.ask(n, &history, prompt).unwrap().unwrap();
                let picked = sample::pick(&[Row { logits: &logits, row, ask }]).unwrap().remove(0);
                let mut whole: Vec<f32> = rows[row * n..][..n].iter().map(|&x| x as f32).collect();
                let want = wholly.pick(&mut whole, &history, prompt, position).unwrap();
                if let Some(picked) = picked {
                    assert_eq!(sampler.pick_from(&picked, position).unwrap(), want, "{sampling:?}, row {row}");
                    drawn.push(f64::from(want));
                }
            }
            assert!(drawn.len() >= 4, "{sampling:?}: {} of 12 rows", drawn.len());
            vec![drawn]
        };
        on_each(run);
    }
    for sampling in [s.clone(), Sampling { top_k: 1025, ..s.clone() }, Sampling { top_k: n, ..s }] {
        assert!(Sampler::new(sampling).unwrap().ask(n, &history, 9).unwrap().is_none(), "a whole row is needed");
    }
}

#[test]
fn refuses_what_it_cannot_pick() {
    for (_, device) in kernel_devices() {
        let t = |cols, dtype| tensor(&vec![0.0; 2 * cols], 2, cols, dtype, &device);
        let (a, b, wide) = (t(10, DType::Bf16), t(11, DType::Bf16), t(10, DType::F32));
        let ask = Ask { penalties: OFF, marks: &[], top_k: 0 };
        let far = [Mark { id: 10, count: 0 }];
        let row = |logits, row, ask| Row { logits, row, ask };
        for (rows, why) in [
            (vec![row(&a, 2, ask)], "row 2"),
            (vec![row(&a, 0, ask), row(&b, 0, ask)], "vocabularies"),
            (vec![row(&a, 0, Ask { marks: &far, ..ask })], "token 10"),
            (vec![row(&a, 0, Ask { top_k: 10, ..ask })], "at most 9"),
            (vec![row(&wide, 0, ask)], "F32"),
        ] {
            let e = sample::pick(&rows).unwrap_err().to_string();
            assert!(e.contains(why), "{e}");
        }
        assert_eq!(sample::pick(&[]).unwrap(), vec![]);
    }
}
