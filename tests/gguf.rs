//! GGUF files and ggml's blocks against what the `gguf` Python package wrote (tests/golden/gguf/make.py), and against
//! files that lie.

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::fs;
use std::path::{Path, PathBuf};

use proptest::prelude::*;
use qlora_engine::format::gguf::{Array, GgmlType, Gguf, Metadata, Value, Writer};
use qlora_engine::quant::ggml::{Blocks, dequantise, quantise};

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden/gguf").join(name)
}

fn f32s(bytes: &[u8]) -> Vec<f32> {
    bytes.as_chunks::<4>().0.iter().map(|b| f32::from_le_bytes(*b)).collect()
}

#[test]
fn every_pair_of_the_python_package_is_read() {
    let file = Gguf::open(&golden("types.gguf")).unwrap();
    let m = file.metadata();
    assert_eq!(m.string("general.architecture").unwrap(), Some("llama"));
    let text = "héllo\n世界".to_string();
    let want = [
        ("u8", Value::U8(200), Array::U8(vec![200; 3])),
        ("i8", Value::I8(-100), Array::I8(vec![-100; 3])),
        ("u16", Value::U16(60000), Array::U16(vec![60000; 3])),
        ("i16", Value::I16(-30000), Array::I16(vec![-30000; 3])),
        ("u32", Value::U32(4_000_000_000), Array::U32(vec![4_000_000_000; 3])),
        ("i32", Value::I32(-2_000_000_000), Array::I32(vec![-2_000_000_000; 3])),
        ("f32", Value::F32(0.1), Array::F32(vec![0.1; 3])),
        ("bool", Value::Bool(true), Array::Bool(vec![true, false, true])),
        ("string", Value::String(text.clone()), Array::String(vec![text; 3])),
        ("u64", Value::U64(u64::MAX), Array::U64(vec![u64::MAX; 3])),
        ("i64", Value::I64(i64::MIN), Array::I64(vec![i64::MIN; 3])),
        ("f64", Value::F64(0.1), Array::F64(vec![0.1; 3])),
    ];
    assert_eq!(m.len(), 1 + 2 * want.len());
    for (name, value, array) in want {
        assert_eq!(m.get(&format!("test.{name}")), Some(&value));
        assert_eq!(m.get(&format!("test.array.{name}")), Some(&Value::Array(array)));
    }
}

#[test]
fn dequantised_values_have_the_bits_of_the_python_package() {
    let file = Gguf::open(&golden("types.gguf")).unwrap();
    let want = f32s(&fs::read(golden("types.f32")).unwrap());
    assert_eq!(file.tensors().len(), GgmlType::ALL.len());
    assert_eq!(want.len(), file.tensors().len() * 1024);
    for (t, want) in file.tensors().iter().zip(want.chunks(1024)) {
        assert_eq!(t.name, format!("blk.0.{}.weight", t.ty));
        assert_eq!((t.cols(), t.rows(), t.shape()), (512, 2, vec![2, 512]));
        let mut got = vec![f32::NAN; 1024];
        dequantise(t.ty, file.bytes(t), &mut got);
        for (i, (got, want)) in got.iter().zip(want).enumerate() {
            assert_eq!(got.to_bits(), want.to_bits(), "{} value {i}: {got} for {want}", t.ty);
        }
        let mut row = vec![f32::NAN; 512];
        Blocks::of_file(&file, t).dequantise_row(1, &mut row);
        assert_eq!(row, got[512..]);
    }
}

/// splitmix64 of a counter.
fn mix(i: u64) -> u64 {
    let z = (i + 1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    let z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// `values()` of make.py: 40 blocks of 32.
fn values() -> Vec<f32> {
    let value = |i: u64| {
        let (top, b) = ((mix(i) >> 40) as i32, i as usize / 32);
        match b % 10 {
            kind @ 0..7 => (top - (1 << 23)) as f32 * 2f32.powi([0, -10, 8, -3, -20, -40, 30][kind] - 23),
            7 => (top % 17 - 8) as f32 * 0.25,
            8 => [0.0, 1.5, -1.5, 3.0][b / 10],
            _ => top as f32 * 2f32.powi(-24),
        }
    };
    (0..40 * 32).map(value).collect()
}

/// `SPECIAL` of make.py.
const SPECIAL: [u32; 24] = [
    0x477F_E000,
    0x477F_EFFF,
    0x477F_F000,
    0xC77F_F000,
    0x7F7F_FFFF,
    0x7F80_0000,
    0xFF80_0000,
    0x0000_0000,
    0x8000_0000,
    0x3F80_1000,
    0x3F80_3000,
    0x3F80_1001,
    0x3F80_8000,
    0x3F81_8000,
    0x3F80_8001,
    0x3300_0000,
    0x3300_0001,
    0x33C0_0000,
    0x3880_0000,
    0x387F_FFFF,
    0x0000_0001,
    0x0001_0000,
    0x7F7F_8000,
    0x7F7F_7FFF,
];

#[test]
fn quantised_blocks_are_those_of_the_python_package() {
    let want = fs::read(golden("quantised.bin")).unwrap();
    let mut at = 0;
    let mut check = |ty: GgmlType, values: &[f32]| {
        let mut got = Vec::new();
        quantise(ty, values, &mut got);
        let want = &want[at..at + got.len()];
        at += got.len();
        let differ = got.chunks(ty.block_bytes()).zip(want.chunks(ty.block_bytes())).position(|(a, b)| a != b);
        assert!(differ.is_none(), "{ty}: block {} differs", differ.unwrap_or(0));
    };
    use GgmlType::*;
    for ty in [Q4_0, Q4_1, Q5_0, Q5_1, Q8_0, F16, Bf16] {
        check(ty, &values());
    }
    let special = SPECIAL.map(f32::from_bits);
    check(F16, &special);
    check(Bf16, &special);
    assert_eq!(at, want.len());
    // NaN stays NaN.
    for ty in [F16, Bf16] {
        let (mut bytes, mut back) = (Vec::new(), [0f32; 2]);
        quantise(ty, &[f32::NAN, f32::from_bits(0xFF80_0001)], &mut bytes);
        dequantise(ty, &bytes, &mut back);
        assert!(back.iter().all(|x| x.is_nan()), "{ty}: {back:?}");
    }
}

/// Reading a file that the Python package wrote and writing it again gives the same bytes, so that it reads ours.
#[test]
fn a_file_is_written_as_the_python_package_writes_it() {
    let file = Gguf::open(&golden("types.gguf")).unwrap();
    let mut metadata = Metadata::new();
    file.metadata().iter().for_each(|(k, v)| metadata.set(k, v.clone()));
    let mut writer = Writer::new(metadata).unwrap();
    for t in file.tensors() {
        writer.tensor(&t.name, &t.dims, t.ty).unwrap();
    }
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("copy.gguf");
    writer.write(&path, |t, sink| sink.bytes(file.bytes(file.find(&t.name).unwrap()))).unwrap();
    assert_eq!(fs::read(&path).unwrap(), fs::read(golden("types.gguf")).unwrap());
    let padded: u64 = file.tensors().iter().map(|t| t.range().len().next_multiple_of(32) as u64).sum();
    assert_eq!(writer.data_bytes(), padded);
}

/// Counts what the current thread holds, and the most it held.
struct Counting;

thread_local! {
    static HELD: Cell<i64> = const { Cell::new(0) };
    static MOST: Cell<i64> = const { Cell::new(0) };
}

fn count(bytes: i64) {
    HELD.set(HELD.get() + bytes);
    MOST.set(MOST.get().max(HELD.get()));
}

// SAFETY: memory comes from and goes back to the system's allocator with the layout it was asked for; the counters are
// plain cells, which allocate nothing themselves.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size() as i64);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, at: *mut u8, layout: Layout) {
        count(-(layout.size() as i64));
        // SAFETY: as above.
        unsafe { System.dealloc(at, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

/// A small valid file with pairs of every shape and tensors of several types.
fn sample(path: &Path) -> Vec<u8> {
    let mut m = Metadata::new();
    m.set("general.architecture", Value::string("llama"));
    m.set("general.alignment", Value::U32(32));
    m.set("llama.block_count", Value::U32(2));
    m.set("tokenizer.ggml.tokens", Value::Array(Array::String((0..20).map(|i| format!("t{i}")).collect())));
    m.set("tokenizer.ggml.scores", Value::Array(Array::F32(vec![0.5; 20])));
    m.set("tokenizer.ggml.token_type", Value::Array(Array::I32(vec![1; 20])));
    m.set("flags", Value::Array(Array::Bool(vec![true, false])));
    m.set("wide", Value::F64(1.0));
    let mut w = Writer::new(m).unwrap();
    w.tensor("token_embd.weight", &[32, 4], GgmlType::Q8_0).unwrap();
    w.tensor("blk.0.attn_q.weight", &[256, 2], GgmlType::Q4K).unwrap();
    w.tensor("output_norm.weight", &[5], GgmlType::F32).unwrap();
    w.write(path, |t, sink| sink.bytes(&vec![7; t.range().len()])).unwrap();
    fs::read(path).unwrap()
}

#[derive(Debug, Clone)]
enum Change {
    Byte(u8),
    Flip(u8),
    Word(u32),
    Count(u64),
    Cut,
    Drop(usize),
    Double(usize),
}

fn change() -> impl Strategy<Value = Change> {
    let lies = [u64::MAX, 1 << 63, i64::MAX as u64, 1 << 32, u64::MAX / 8 + 1, u64::MAX - 31, 1 << 40, 0, 1, 1000];
    prop_oneof![
        any::<u8>().prop_map(Change::Byte),
        (0u8..8).prop_map(Change::Flip),
        (0u32..45).prop_map(Change::Word),
        prop::sample::select(lies.to_vec()).prop_map(Change::Count),
        any::<u64>().prop_map(Change::Count),
        Just(Change::Cut),
        (1usize..40).prop_map(Change::Drop),
        (1usize..40).prop_map(Change::Double),
    ]
}

fn put(bytes: &mut [u8], at: usize, new: &[u8]) {
    for (to, from) in bytes[at..].iter_mut().zip(new) {
        *to = *from;
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>, at: usize) {
        if bytes.is_empty() {
            return;
        }
        let at = at % bytes.len();
        match *self {
            Change::Byte(b) => bytes[at] = b,
            Change::Flip(bit) => bytes[at] ^= 1 << bit,
            Change::Word(w) => put(bytes, at, &w.to_le_bytes()),
            Change::Count(n) => put(bytes, at, &n.to_le_bytes()),
            Change::Cut => bytes.truncate(at),
            Change::Drop(n) => drop(bytes.drain(at..(at + n).min(bytes.len()))),
            Change::Double(n) => {
                let piece = bytes[at..(at + n).min(bytes.len())].to_vec();
                bytes.splice(at..at, piece);
            }
        }
    }
}

/// Reads all there is to read.
fn read_all(file: &Gguf) -> usize {
    let mut read = 0;
    for t in file.tensors() {
        assert_eq!(file.bytes(t).len(), t.ty.tensor_bytes(&t.dims).unwrap());
        let blocks = Blocks::of_file(file, t);
        let mut row = vec![0f32; t.cols()];
        for i in 0..t.rows() {
            blocks.dequantise_row(i, &mut row);
            read += row.len();
        }
    }
    for (key, _) in file.metadata().iter() {
        let m = file.metadata();
        let _ =
            (m.string(key), m.number(key), m.float(key), m.flag(key), m.strings(key), m.floats(key), m.integers(key));
    }
    read
}

/// Whatever was done to a file, opening it answers in one line, without a panic and without holding more than a small
/// multiple of the file; what opens can be read whole.
#[test]
fn a_changed_file_never_panics_nor_swells() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let good = sample(&path);
    let header = good.len() - 512;
    assert_eq!(read_all(&Gguf::open(&path).unwrap()), 128 + 512 + 5);
    let (opened, refused) = (Cell::new(0), Cell::new(0));
    let config = ProptestConfig { cases: 6000, failure_persistence: None, ..ProptestConfig::default() };
    let seed = proptest::test_runner::RngSeed::Fixed(11);
    let mut runner = proptest::test_runner::TestRunner::new(ProptestConfig { rng_seed: seed, ..config });
    // Most changes fall into the header.
    let place = prop_oneof![4 => 0..header, 1 => 0..good.len()];
    let changes = prop::collection::vec((place, change()), 1..4);
    let outcome = runner.run(&changes, |changes| {
        let mut bytes = good.clone();
        changes.iter().for_each(|(at, change)| change.apply(&mut bytes, *at));
        fs::write(&path, &bytes).unwrap();
        let before = HELD.get();
        MOST.set(before);
        let file = Gguf::open(&path);
        let held = MOST.get() - before;
        prop_assert!(held <= 16 * bytes.len() as i64 + 16384, "{held} bytes for a file of {}", bytes.len());
        match file {
            Ok(file) => {
                read_all(&file);
                opened.set(opened.get() + 1);
            }
            Err(e) => {
                let text = e.to_string();
                prop_assert!(!text.contains('\n') && text.contains("m.gguf: "), "{text}");
                refused.set(refused.get() + 1);
            }
        }
        Ok(())
    });
    outcome.unwrap();
    let (opened, refused) = (opened.get(), refused.get());
    assert!(opened > 300 && refused > 3000, "{opened} opened, {refused} refused: the changes try too little");
}

/// The same for every place at which a file can be cut, and every 8 bytes that can be a huge count.
#[test]
fn every_cut_and_every_huge_count() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("m.gguf");
    let good = sample(&path);
    // Padding follows the last tensor, of 20 bytes.
    for cut in (0..good.len() - 12).rev() {
        fs::write(&path, &good[..cut]).unwrap();
        assert!(Gguf::open(&path).is_err(), "cut at {cut}");
    }
    for at in 0..good.len() - 8 {
        let mut bytes = good.clone();
        bytes[at..at + 8].fill(0xff);
        fs::write(&path, &bytes).unwrap();
        if let Ok(file) = Gguf::open(&path) {
            read_all(&file);
        }
    }
}
