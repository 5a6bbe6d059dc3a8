use crate::*;
use qlora_engine::ops::Slot;
use qlora_engine::ops::embedding::{self, Noise};
use qlora_engine::ops::philox::Stream;
use qlora_engine::tensor::{Index, Live};

/// (tokens, columns): one element, odd columns, more ids than a block looks at between two barriers, more columns than a
/// block's, with and without 16-byte packs.
const SHAPES: [(usize, usize); 6] = [(1, 1), (5, 13), (300, 12), (1100, 8), (9, 2304), (4, 2101)];
const VOCAB: usize = 19;
const SEED: u64 = 0x1234_5678_9ABC_DEF0;

/// x, x with noise, x with another row added, dtable (added to 1), the rows gathered from x and scattered back. With `slack` that many more tokens
/// and rows than are live.
fn run((tokens, cols): (usize, usize), dtype: DType, device: &Device, slack: usize) -> Vec<Vec<f64>> {
    let picked: Vec<u32> = (0..tokens as u32).filter(|r| r % 3 != 1).collect();
    device.set_step(Step {
        tokens: tokens as u32,
        loss_rows: picked.len() as u32,
        seed: SEED,
        micro_step: 7,
        noise: 0.25,
        ..no_step()
    });
    let of = |live: Option<Live>| live.filter(|_| slack > 0);
    let live = of(Live::tokens(device));
    let ids: Vec<u32> = (0..tokens).map(|i| (i * i * 31 + i / 7) as u32 % VOCAB as u32).collect();
    let ids = Index::new(ids, tokens + slack, live, device).unwrap();
    let rows = Index::new(&picked, picked.len() + slack, of(Live::loss_rows(device)), device).unwrap();
    let table = tensor(&bf16s(&random(1, VOCAB * cols)), VOCAB, cols, dtype, device);
    let slot = Slot { grad: true, ..Slot::whole(&table) };
    let noise = Noise { bound: 0.25, stream: Stream { seed: SEED, step: 7, module: u32::MAX } };
    let x = embedding::fwd(slot, &ids, None).unwrap();
    let noisy = embedding::fwd(slot, &ids, Some(noise)).unwrap();
    let mut added = embedding::fwd(slot, &ids, None).unwrap();
    let more = tensor(&random(3, VOCAB * cols), VOCAB, cols, dtype, device);
    embedding::add(&mut added, Slot::whole(&more), &ids).unwrap();
    let acc = if dtype == DType::F64 { DType::F64 } else { DType::F32 };
    let mut grads = tensor(&vec![1.0; VOCAB * cols], 1, VOCAB * cols, acc, device);
    let dx = [bf16s(&random(2, tokens * cols)), vec![f64::NAN; slack * cols]].concat();
    let mut dx = tensor(&dx, tokens + slack, cols, dtype, device);
    dx.set_live(live);
    embedding::bwd(slot, &ids, &dx, &mut grads).unwrap();
    let gathered = embedding::gather(&dx, &rows).unwrap();
    let scattered = embedding::scatter(&gathered, &rows, &dx).unwrap();
    let first = |t: &Tensor, rows: usize| t.to_f64()[..rows * cols].to_vec();
    vec![
        first(&x, tokens),
        first(&noisy, tokens),
        first(&added, tokens),
        grads.to_f64(),
        first(&gathered, picked.len()),
        first(&scattered, tokens),
    ]
}

/// Nothing here rounds but as the CPU does: sums are in the order of the rows, and the noise's bound is a power of two.
#[test]
fn kernels_give_the_bits_of_the_cpu() {
    for shape in SHAPES {
        let want = run(shape, DType::Bf16, &Device::cpu(2), 0);
        assert_ne!(want[0], want[1], "noise does something");
        for slack in [0, 70] {
            let got = on_each(|device| run(shape, DType::Bf16, device, slack));
            for (i, what) in
                ["x", "x with noise", "x with a row added", "dtable", "gathered", "scattered"].into_iter().enumerate()
            {
                assert_eq!(got[i], want[i], "{what} {shape:?}, {slack} rows of slack");
            }
        }
    }
}
