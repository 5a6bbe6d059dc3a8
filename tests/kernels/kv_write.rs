use crate::*;
use qlora_engine::ops::attention;
use qlora_engine::tensor::{Index, Live};

/// (tokens, width, rows of the cache): one element, odd widths, more tokens than a block has warps, a real width.
const SHAPES: [(usize, usize, usize); 5] = [(1, 1, 1), (3, 13, 5), (9, 40, 16), (17, 101, 40), (6, 1024, 16)];

/// Rows of the cache in no order, each once.
fn places(tokens: usize, cache: usize) -> Vec<u32> {
    (0..tokens).map(|i| ((i * 7 + 3) % cache) as u32).collect()
}

/// The cache, 1 everywhere before. With `slack` that many more tokens than are live: NaN, and numbers that name row 0.
fn run((tokens, width, cache): (usize, usize, usize), dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
    device.set_step(Step { tokens: tokens as u32, ..no_step() });
    let live = Live::tokens(device).filter(|_| slack > 0);
    let rows = Index::new(places(tokens, cache), tokens + slack, live, device).unwrap();
    let [k, v] = [1, 2].map(|seed| {
        let x = [bf16s(&random(seed, tokens * width)), vec![f64::NAN; slack * width]].concat();
        tensor(&x, tokens + slack, width, dtype, device)
    });
    let [mut cache_k, mut cache_v] = [0; 2].map(|_| tensor(&vec![1.0; cache * width], cache, width, dtype, device));
    attention::store(&k, &v, &rows, &mut cache_k, &mut cache_v).unwrap();
    vec![cache_k.to_f64(), cache_v.to_f64()]
}

#[test]
fn rows_of_the_cache_are_those_written() {
    for shape @ (tokens, width, cache) in SHAPES {
        let want = [1, 2].map(|seed| {
            let (mut all, x) = (vec![1.0; cache * width], bf16s(&random(seed, tokens * width)));
            for (row, x) in places(tokens, cache).into_iter().zip(x.chunks_exact(width)) {
                all[row as usize * width..][..width].copy_from_slice(x);
            }
            all
        });
        for dtype in [DType::F64, DType::F32, DType::Bf16] {
            assert_eq!(run(shape, dtype, &Device::cpu(2), 0), want, "{dtype:?} {shape:?} on the CPU");
        }
        for slack in [0, 1, 70] {
            assert_eq!(on_each(|device| run(shape, DType::Bf16, device, slack)), want, "{shape:?}, {slack} of slack");
        }
    }
}

#[test]
fn rows_that_do_not_fit_are_refused() {
    for device in [Device::cpu(1), Device::host_kernels(1, false).unwrap()] {
        let try_rows = |rows: &[u32], tokens: usize| {
            let rows = Index::new(rows, tokens, None, &device).unwrap();
            let k = tensor(&vec![0.0; rows.rows() * 8], rows.rows(), 8, DType::Bf16, &device);
            let [mut a, mut b] = [0; 2].map(|_| tensor(&[0.0; 32], 4, 8, DType::Bf16, &device));
            attention::store(&k, &k, &rows, &mut a, &mut b).map_err(|e| e.to_string())
        };
        assert_eq!(try_rows(&[3, 0], 2), Ok(()));
        for (rows, why) in
            [(&[3, 4][..], "row 4"), (&[u32::MAX], "4294967295"), (&[2, 1, 2], "row 2 of the cache twice")]
        {
            let error = try_rows(rows, rows.len()).unwrap_err();
            assert!(error.contains(why), "{error}");
        }
        if device.runs_kernels() {
            let error = try_rows(&[1], 2).unwrap_err();
            assert!(error.contains("without a count"), "{error}");
        }
    }
}
