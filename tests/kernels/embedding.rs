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

/// Page-locked memory of the CPU is like the device's to whoever uses it: rows are gathered from it, and it is read, written,
/// filled and copied; but it has no place in a recorded graph.
#[test]
fn a_table_in_pinned_memory_gives_the_same_bits() {
    let (rows, cols) = (VOCAB, 2101);
    let values: Vec<f64> = bf16s(&random(1, rows * cols));
    let on_cpu = tensor(&values, rows, cols, DType::Bf16, &Device::cpu(1));
    for (name, device) in kernel_devices() {
        let near = tensor(&values, rows, cols, DType::Bf16, &device);
        let mut far = on_cpu.pinned_copy(&device).unwrap();
        assert!(far.is_pinned() && !near.is_pinned(), "{name}");
        let ids = Index::new(vec![3, 18, 0, 3], 4, None, &device).unwrap();
        let rows_of = |t: &Tensor| embedding::fwd(Slot::whole(t), &ids, None).unwrap().to_f64();
        assert_eq!(rows_of(&far), rows_of(&near), "{name}");
        // Written while a launch that reads it may be under way.
        let before = embedding::fwd(Slot::whole(&far), &ids, None).unwrap();
        far.write(3 * cols, &[bf16::from_f32(7.0)]);
        assert_eq!(before.to_f64(), rows_of(&near), "{name}: what was enqueued before a write");
        assert_eq!(rows_of(&far)[0], 7.0, "{name}: and after it");
        assert_eq!(far.read::<bf16>(3 * cols, 2), [bf16::from_f32(7.0), bf16::from_f64(values[3 * cols + 1])]);
        assert_eq!(far.read_later::<bf16>(3 * cols, 1).wait().unwrap(), bf16::from_f32(7.0).to_ne_bytes());
        let copy = far.copy().unwrap();
        assert!(!copy.is_pinned() && copy.to_f64() == far.to_f64());
        far.fill_zero();
        assert!(far.to_f64().iter().all(|&x| x == 0.0) && copy.to_f64()[3 * cols] == 7.0);
        if cfg!(feature = "host-asan") {
            continue; // nothing is recorded there
        }
        let why = device.capture(|| {
            far.fill_zero();
            Ok(())
        });
        let why = why.err().expect("it is refused").to_string();
        assert!(why.contains("pinned memory while a graph was recorded"), "{why}");
        device.synchronize().unwrap();
    }
}
