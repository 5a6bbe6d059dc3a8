//! NF4 on kernels: the bits of the CPU's, which are those of bitsandbytes (tests/parity/quantisation.rs).

use std::path::Path;

use crate::*;
use qlora_engine::format::{Checkpoint, Dtype, TensorView};
use qlora_engine::quant::nf4::{Absmax, double_quantise};
use qlora_engine::quant::{Code2, DeviceNf4, Nf4, Nf4Builder, Quantiser};
use qlora_engine::{Error, Result};

/// Values over many magnitudes, with blocks of zeros, of both zeros, and of numbers below the smallest normal one.
fn weights(n: usize, seed: u64) -> Vec<f32> {
    let sizes = [0.02, 1.0, 3e-5, 0.0, 1e-30, 3e-39, -0.0, 1e30, 0.1];
    random(seed, n).iter().enumerate().map(|(i, x)| (x * sizes[i / 64 % sizes.len()]) as f32).collect()
}

fn on_cpu(x: &[f32], rows: usize, cols: usize, source: Dtype, double: bool) -> Nf4 {
    let mut builder = Nf4Builder::new(rows, cols, source, double).unwrap();
    builder.push(x, 2).unwrap();
    builder.finish().unwrap()
}

/// x as a file holds it: rounded to the source's dtype.
struct Stored {
    bytes: Vec<u8>,
    shape: [usize; 2],
    source: Dtype,
}

impl Stored {
    fn new(x: &[f32], rows: usize, cols: usize, source: Dtype) -> Self {
        let bytes = match source {
            Dtype::BF16 => x.iter().flat_map(|&x| bf16::from_f32(x).to_le_bytes()).collect(),
            Dtype::F16 => x.iter().flat_map(|&x| half::f16::from_f32(x).to_le_bytes()).collect(),
            _ => x.iter().flat_map(|x| x.to_le_bytes()).collect(),
        };
        Stored { bytes, shape: [rows, cols], source }
    }

    fn view(&self) -> TensorView<'_> {
        let file = Path::new("a.safetensors");
        TensorView { name: "the.weight", dtype: self.source, shape: &self.shape, bytes: &self.bytes, file }
    }

    /// The values that it holds.
    fn held(&self) -> Vec<f32> {
        let mut x = vec![f32::NAN; self.view().len()];
        self.view().read_f32(&mut x).unwrap();
        x
    }

    /// Quantised on the device.
    fn quantised(&self, double: bool, device: &Device) -> Result<DeviceNf4> {
        Quantiser::new(device)?.quantise(&self.view(), double)
    }
}

fn assert_same(got: &Nf4, want: &Nf4, what: &str) {
    let first = got.packed.iter().zip(&want.packed).position(|(a, b)| a != b);
    assert!(got.packed == want.packed, "{what}: codes differ, first in byte {first:?}");
    // (Numbers, and no -0 among them.)
    assert!(got.absmax == want.absmax, "{what}: absmax differ");
    assert!(got == want, "{what}");
}

fn f32_bits(x: &[f32]) -> Vec<u32> {
    x.iter().map(|x| x.to_bits()).collect()
}

fn bf16_bits(x: &[bf16]) -> Vec<u16> {
    x.iter().map(|x| x.to_bits()).collect()
}

/// Dequantises `rows` and compares with the CPU.
fn check_rows(q: &Nf4, on_device: &DeviceNf4, rows: std::ops::Range<usize>, what: &str) {
    let (device, n) = (on_device.device(), rows.len() * q.cols);
    let (mut low, mut wide) = (vec![bf16::NAN; n], vec![f32::NAN; n]);
    q.rows_bf16(rows.clone(), &mut low).unwrap();
    q.rows_f32(rows.clone(), &mut wide).unwrap();
    let mut out = Tensor::unwritten(rows.len(), q.cols, DType::Bf16, device).unwrap();
    on_device.dequantise(rows.clone(), &mut out).unwrap();
    assert!(bf16_bits(&out.read::<bf16>(0, n)) == bf16_bits(&low), "{what}: bf16 of rows {rows:?}");
    let mut out = Tensor::unwritten(rows.len(), q.cols, DType::F32, device).unwrap();
    on_device.dequantise(rows.clone(), &mut out).unwrap();
    assert!(f32_bits(&out.read::<f32>(0, n)) == f32_bits(&wide), "{what}: f32 of rows {rows:?}");
}

/// Every tail of a block, every tail of the second level's blocks that matters, and matrices whose rows straddle blocks.
#[test]
fn has_the_bits_of_the_cpu() {
    let mut shapes: Vec<(usize, usize)> = (1..=65).map(|n| (1, n)).collect();
    shapes.extend([(1, 127), (3, 43), (37, 45), (1, 2048), (1, 2049), (64, 1000), (5, 8192), (257, 64), (129, 257)]);
    for (seed, &(rows, cols)) in shapes.iter().enumerate() {
        let x = weights(rows * cols, seed as u64);
        let devices = if rows * cols < 200 { &kernel_devices()[..1] } else { &kernel_devices()[..] };
        for (name, device) in devices {
            let code2 = Code2::new(device).unwrap();
            for source in [Dtype::F32, Dtype::BF16] {
                let stored = Stored::new(&x, rows, cols, source);
                let held = stored.held();
                for double in [false, true] {
                    let what = format!("({rows}, {cols}) {source:?} double {double} on {name}");
                    let want = on_cpu(&held, rows, cols, source, double);
                    let got = stored.quantised(double, device).unwrap();
                    assert_same(&got.download(), &want, &what);
                    assert_eq!(got.bytes() as u64, Nf4::bytes(rows, cols, double), "{what}");
                    check_rows(&want, &got, 0..rows, &what);
                    let uploaded = DeviceNf4::upload(&want, &code2).unwrap();
                    assert_same(&uploaded.download(), &want, &what);
                    check_rows(&want, &uploaded, 0..rows, &what);
                }
            }
        }
    }
}

/// Some rows alone: starts at odd elements, inside a block at a whole word, at a block.
#[test]
fn rows_are_dequantised_alone() {
    for (rows, cols) in [(37, 45), (9, 1000), (7, 2056), (12, 4096)] {
        let q = on_cpu(&weights(rows * cols, 3), rows, cols, Dtype::F32, true);
        for (name, device) in kernel_devices() {
            let on_device = DeviceNf4::upload(&q, &Code2::new(&device).unwrap()).unwrap();
            for range in [0..rows, 1..rows, 2..rows - 1, rows - 1..rows, 3..3] {
                check_rows(&q, &on_device, range, &format!("({rows}, {cols}) on {name}"));
            }
            let mut out = Tensor::unwritten(2, cols, DType::Bf16, &device).unwrap();
            assert!(on_device.dequantise(rows - 1..rows + 1, &mut out).is_err());
            assert!(on_device.dequantise(0..1, &mut out).is_err());
        }
    }
}

/// More blocks than the mean has partial sums, ordinary weights: the mean and all that follows from it.
#[test]
fn the_mean_of_many_blocks_has_the_bits_of_the_cpu() {
    let (rows, cols) = (300, 517);
    let x: Vec<f32> = random(11, rows * cols).iter().map(|&x| 0.02 * x as f32).collect();
    for (name, device) in kernel_devices() {
        let got = Stored::new(&x, rows, cols, Dtype::F32).quantised(true, &device).unwrap();
        assert_same(&got.download(), &on_cpu(&x, rows, cols, Dtype::F32, true), name);
    }
}

/// One quantiser for matrices of many sizes, one after the other, smaller and larger, of each dtype that files have: in pieces
/// of any number of blocks, with the bits of the CPU.
#[test]
fn pieces_do_not_change_a_bit() {
    let shapes = [(3, 43), (129, 257), (1, 1), (64, 64), (5, 1000), (200, 300), (1, 63)];
    for (name, device) in kernel_devices() {
        for elements in [1, 64, 1000, 4096, 1 << 20] {
            let mut quantiser = Quantiser::in_pieces(elements, &device).unwrap();
            // The results outlive what came after them.
            let mut all = Vec::new();
            for (i, (rows, cols)) in shapes.into_iter().enumerate() {
                // (f16 has no room for what `weights` spans.)
                let source = [Dtype::F32, Dtype::BF16, Dtype::F16][i % 3];
                let x: Vec<f32> = match source {
                    Dtype::F16 => random(i as u64, rows * cols).iter().map(|&x| x as f32).collect(),
                    _ => weights(rows * cols, i as u64),
                };
                let stored = Stored::new(&x, rows, cols, source);
                let double = i % 2 == 0;
                // In memory of the device already: the same.
                if source != Dtype::F16 {
                    let there = match source {
                        Dtype::BF16 => Tensor::from_slice(
                            &x.iter().map(|&x| bf16::from_f32(x)).collect::<Vec<_>>(),
                            rows,
                            cols,
                            &device,
                        ),
                        _ => Tensor::from_slice(&x, rows, cols, &device),
                    };
                    all.push((
                        quantiser.quantise_resident(&there.unwrap(), double).unwrap(),
                        Stored::new(&x, rows, cols, source),
                        double,
                    ));
                }
                all.push((quantiser.quantise(&stored.view(), double).unwrap(), stored, double));
            }
            for (got, stored, double) in all {
                let [rows, cols] = stored.shape;
                let want = on_cpu(&stored.held(), rows, cols, stored.source, double);
                assert_same(&got.download(), &want, &format!("({rows}, {cols}) by {elements} on {name}"));
            }
        }
    }
}

#[test]
fn what_is_not_finite_is_refused() {
    let device = Device::host_kernels(2, false).unwrap();
    for bad in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
        for at in [0, 63, 64, 99] {
            for (source, double) in [(Dtype::F32, true), (Dtype::F32, false), (Dtype::BF16, true), (Dtype::F16, true)] {
                let mut x = vec![1.0; 100];
                x[at] = bad;
                let mut quantiser = Quantiser::in_pieces(64, &device).unwrap();
                let result = quantiser.quantise(&Stored::new(&x, 10, 10, source).view(), double).map(drop);
                let why = result.unwrap_err().to_string();
                let place = format!("`the.weight` holds NaN or infinity near element {}", at / 64 * 64);
                assert!(why.contains("a.safetensors") && why.contains(&place), "{bad} at {at}: {why}");
                // And the next matrix is none the worse for it.
                let fine = Stored::new(&[1.0; 100], 10, 10, source);
                let got = quantiser.quantise(&fine.view(), double).unwrap().download();
                assert_same(&got, &on_cpu(&[1.0; 100], 10, 10, source, double), "after it");
            }
        }
    }
    let x = Tensor::from_slice(&[1.0f32, f32::NAN, 1.0], 1, 3, &device).unwrap();
    let why = Quantiser::new(&device).unwrap().quantise_resident(&x, true).map(drop).unwrap_err().to_string();
    assert!(why.contains("NaN or infinity near element 0"), "{why}");
    // Kernels do not run on the CPU's device.
    let stored = Stored::new(&[1.0; 4], 2, 2, Dtype::F32);
    assert!(stored.quantised(false, &Device::cpu(1)).is_err());
    // Numbers of another kind are refused by name.
    let ints = Stored { source: Dtype::I32, ..stored };
    let why = ints.quantised(true, &device).map(drop).unwrap_err();
    assert!(matches!(why, Error::Weights { .. }) && why.to_string().contains("the.weight"), "{why}");
}

/// bitsandbytes' own results, given its offset: its sum depends on its number of threads.
#[test]
fn equals_bitsandbytes() {
    let file = Checkpoint::open_file(&root().join("tests/golden/models/nf4.safetensors")).unwrap();
    let bytes = |key: &str| file.get(key).unwrap().bytes.to_vec();
    for (name, device) in kernel_devices() {
        let code2 = Code2::new(&device).unwrap();
        for case in ["ragged", "zeros"] {
            let weight = file.get(&format!("{case}.weight")).unwrap();
            let (rows, cols) = weight.rows_cols();
            for kind in ["double", "single"] {
                let key = |part: &str| format!("{case}.{kind}.{part}");
                let what = format!("{case} {kind} on {name}");
                let mut q = Quantiser::new(&device).unwrap().quantise(&weight, false).unwrap();
                if kind == "double" {
                    let mut offset = [f32::NAN];
                    file.get(&key("offset")).unwrap().read_f32(&mut offset).unwrap();
                    q = q.double_quantise(offset[0], &code2).unwrap();
                }
                let host = q.download();
                assert!(host.packed == bytes(&key("codes")), "{what}: codes");
                let le = |x: &[f32]| x.iter().flat_map(|x| x.to_le_bytes()).collect::<Vec<u8>>();
                match &host.absmax {
                    Absmax::Double { codes, absmax2, .. } => {
                        assert!(*codes == bytes(&key("absmax_codes")), "{what}: codes of absmax");
                        assert!(le(absmax2) == bytes(&key("nested_absmax")), "{what}: absmax2");
                    }
                    Absmax::Plain(absmax) => assert!(le(absmax) == bytes(&key("absmax")), "{what}: absmax"),
                }
                if !file.contains(&key("dequantised")) {
                    assert_eq!(what, format!("ragged single on {name}"), "the others are in the file");
                    continue;
                }
                let want = file.get(&key("dequantised")).unwrap();
                let dtype = if want.dtype == Dtype::BF16 { DType::Bf16 } else { DType::F32 };
                let mut out = Tensor::unwritten(rows, cols, dtype, &device).unwrap();
                q.dequantise(0..rows, &mut out).unwrap();
                let got: Vec<u8> = match dtype {
                    DType::Bf16 => out.read::<bf16>(0, out.len()).iter().flat_map(|x| x.to_le_bytes()).collect(),
                    _ => le(&out.read::<f32>(0, out.len())),
                };
                assert!(got == want.bytes.to_vec(), "{what}: dequantised");
            }
        }
    }
}

/// As above for every case of tests/golden/nf4: ties, neighbours of ties, the largest and the smallest numbers, f16, tails.
#[test]
fn equals_bitsandbytes_in_every_case() {
    let file = Checkpoint::open(root().join("tests/golden/nf4/nf4.safetensors")).unwrap();
    let device = Device::host_kernels(2, false).unwrap();
    let code2 = Code2::new(&device).unwrap();
    let mut cases = 0;
    for name in file.names().filter_map(|n| n.strip_suffix(".w")) {
        cases += 1;
        let f32s = |part: &str| {
            let view = file.get(&format!("{name}.{part}")).unwrap();
            let mut x = vec![f32::NAN; view.len()];
            view.read_f32(&mut x).unwrap();
            x
        };
        let bytes = |part: &str| file.get(&format!("{name}.{part}")).unwrap().bytes.to_vec();
        let w = file.get(&format!("{name}.w")).unwrap();
        let (rows, cols) = w.rows_cols();
        let plain = Quantiser::new(&device).unwrap().quantise(&w, false).unwrap();
        let host = plain.download();
        assert!(host.packed == bytes("packed"), "{name}: codes");
        let Absmax::Plain(absmax) = &host.absmax else { panic!("not plain") };
        assert_eq!(f32_bits(absmax), f32_bits(&f32s("absmax")), "{name}: absmax");
        check_rows(&host, &plain, 0..rows, name);
        let double = plain.double_quantise(f32s("offset")[0], &code2).unwrap();
        let host = double.download();
        let Absmax::Double { codes, absmax2, .. } = &host.absmax else { panic!("not double") };
        assert!(*codes == bytes("codes"), "{name}: codes of absmax");
        assert_eq!(f32_bits(absmax2), f32_bits(&f32s("absmax2")), "{name}: absmax2");
        if name != "bf16.wide" {
            let mut out = Tensor::unwritten(rows, cols, DType::F32, &device).unwrap();
            double.dequantise(0..rows, &mut out).unwrap();
            let got = out.read::<f32>(0, out.len());
            assert_eq!(f32_bits(&got), f32_bits(&f32s("f32_double")), "{name}: dequantised");
        }
        check_rows(&host, &double, 0..rows, name);
    }
    assert_eq!(cases, 12);
}

/// Absmax that sit at every distance from their mean, down to below the smallest normal number: the second level alone.
#[test]
fn the_second_level_has_the_bits_of_the_cpu() {
    for (seed, n) in [1usize, 2, 255, 256, 257, 1000].into_iter().enumerate() {
        let absmax: Vec<f32> = random(seed as u64, n).iter().map(|x| x.abs() as f32).collect();
        let small = 2f32.powi(-120);
        for (offset, scale) in [(0.8f32, 1.0f32), (0.0, 1.0), (absmax[0], 1.0), (0.7 * small, small), (0.0, 1e-40)] {
            let absmax: Vec<f32> = absmax.iter().map(|a| a * scale).collect();
            let plain = Nf4 {
                rows: n,
                cols: 64,
                packed: vec![0x77; n * 32],
                absmax: Absmax::Plain(absmax.clone()),
                source: Dtype::F32,
            };
            let want = double_quantise(&absmax, offset);
            for (name, device) in kernel_devices() {
                let code2 = Code2::new(&device).unwrap();
                let q = DeviceNf4::upload(&plain, &code2).unwrap().double_quantise(offset, &code2).unwrap();
                assert!(q.download().absmax == want, "{n} absmax around {offset:e} on {name}");
            }
        }
    }
}
