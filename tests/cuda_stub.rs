//! src/device/cuda.rs itself, on a `libcuda.so.1` made for tests (kernels/host/stub_cuda.cpp): work is put off until
//! something waits for it, and launches run the host-run kernels. The library is opened once a process, so each test runs
//! itself again as a child that finds the stub.
#![cfg(not(feature = "host-asan"))]

#[path = "../benches/kernels/cases/mod.rs"]
mod cases;
#[path = "../benches/kernels/tiles.rs"]
mod tiles;

use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, OnceLock};

use cases::case::How;
use half::bf16;
use qlora_engine::config::{self, Format};
use qlora_engine::device::{Card, Chip, Device, Graph, Probing, Tile, Wish, kernels};
use qlora_engine::infer::{self, Answer, Request, Sampling, generate};
use qlora_engine::model;
use qlora_engine::ops::linear::{self, Linear, Matrix};
use qlora_engine::ops::{Slot, rms_norm};
use qlora_engine::tensor::{DType, Tensor};
use qlora_engine::train::{Control, Event, Target, plan, train_on};
use qlora_engine::{Error, Result};

const STUB: &str = env!("QLORA_STUB_CUDA");
/// The first bytes of a fatbin: all that the stub looks at.
const FATBIN: [u8; 8] = [0x50, 0xED, 0x55, 0xBA, 1, 0, 16, 0];

/// Runs `body` in a child that finds the stub, with these variables set and a folder of fatbins. `name` is the test's.
fn on_stub(name: &str, vars: &[(&str, &str)], body: impl FnOnce()) {
    if std::env::var("STUB_TEST").is_ok_and(|n| n == name) {
        return body();
    }
    let folder = tempfile::tempdir().unwrap();
    fill(folder.path());
    let mut child = Command::new(std::env::current_exe().unwrap());
    child.args([name, "--exact", "--nocapture", "--test-threads=1"]);
    child.env("STUB_TEST", name).env("LD_LIBRARY_PATH", library_path()).env("QLORA_KERNELS", folder.path());
    child.env("RUST_BACKTRACE", "0");
    let done = child.envs(vars.iter().copied()).output().unwrap();
    let (out, err) = (String::from_utf8_lossy(&done.stdout), String::from_utf8_lossy(&done.stderr));
    assert!(done.status.success() && out.contains("1 passed"), "{name} {vars:?}: {}\n{out}\n{err}", done.status);
    assert!(!err.contains("left behind"), "{name} {vars:?}: {err}");
}

fn library_path() -> std::ffi::OsString {
    let before = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    std::env::join_paths([STUB.into()].into_iter().chain(std::env::split_paths(&before))).unwrap()
}

/// What passes for a fatbin of every file of kernels/, and of the probes.
fn fill(folder: &Path) {
    let files = std::fs::read_dir(Path::new(env!("CARGO_MANIFEST_DIR")).join("kernels")).unwrap();
    let names = files.map(|f| f.unwrap().path()).filter(|p| p.extension().is_some_and(|e| e == "cu"));
    for name in names.chain(["probes.cu".into()]) {
        let to = folder.join(name.file_name().unwrap()).with_extension("fatbin");
        std::fs::write(to, FATBIN).unwrap();
    }
}

/// Numbers that are not all alike, exact in bf16.
fn numbers(n: usize, seed: usize) -> Vec<bf16> {
    (0..n).map(|i| bf16::from_f32(((i * 37 + seed * 11) % 251) as f32 / 64.0 - 2.0)).collect()
}

fn tensor(rows: usize, cols: usize, seed: usize, device: &Device) -> Tensor {
    Tensor::from_slice(&numbers(rows * cols, seed), rows, cols, device).unwrap()
}

/// A little step: y = norm(x), dx, and dw added to `grads`.
fn step(x: &Tensor, w: &Tensor, grads: &mut Tensor, out: &mut Option<Tensor>) -> Result<()> {
    let slot = Slot { grad: true, ..Slot::whole(w) };
    let y = rms_norm::fwd(x, slot, 1e-6)?;
    *out = Some(rms_norm::bwd(x, slot, 1e-6, &y, None, Some(grads))?);
    Ok(())
}

/// A graph that sets `x` to 0.
fn zeroing(device: &Device, x: &mut Tensor) -> Result<Graph> {
    let graph = device.capture(|| {
        x.fill_zero();
        Ok(())
    })?;
    Ok(graph.expect("the device records"))
}

fn bits(x: &Tensor) -> Vec<u64> {
    x.to_f64().iter().map(|x| x.to_bits()).collect()
}

#[test]
fn a_kernel_gives_the_same_bits() {
    on_stub("a_kernel_gives_the_same_bits", &[], || {
        let results = [Device::cuda(0).unwrap(), Device::host_kernels(2, false).unwrap()].map(|device| {
            let (x, w) = (tensor(5, 300, 1, &device), tensor(1, 300, 2, &device));
            let mut grads = Tensor::zeros(1, 300, DType::F32, &device).unwrap();
            let mut dx = None;
            step(&x, &w, &mut grads, &mut dx).unwrap();
            device.synchronize().unwrap();
            (bits(&dx.unwrap()), bits(&grads))
        });
        assert_eq!(results[0], results[1]);
        assert!(results[0].1.iter().any(|&b| b != 0), "something was computed");
    });
}

/// A whole training run, whose passes are captured when their shape comes again and then replayed, against the same run
/// on host-run kernels launch by launch: the same bits.
#[test]
fn a_training_run_gives_the_same_bits() {
    on_stub("a_training_run_gives_the_same_bits", &[], || {
        let root = env!("CARGO_MANIFEST_DIR");
        let dir = tempfile::tempdir().unwrap();
        let adapters = ["gpu", "host"].map(|name| {
            let output = dir.path().join(name);
            let text = format!(
                "model_name_or_path: {root}/assets/tiny-base\ndataset_dir: {root}/assets/data\n\
                 dataset: medical_demo\ntemplate: qwen3_nothink\ncutoff_len: 32\nstage: sft\ndo_train: true\n\
                 finetuning_type: lora\nlora_target: all\nlora_rank: 4\nlora_dropout: 0.1\nquantization_bit: 4\n\
                 neftune_noise_alpha: 5\nmax_steps: 4\nper_device_train_batch_size: 1\n\
                 gradient_accumulation_steps: 2\nreport_to: none\nlogging_steps: 3\noutput_dir: {}\n",
                output.display()
            );
            let config = config::from_str(&text, Format::Yaml, &[]).unwrap();
            let device = if name == "gpu" { Device::cuda(0).unwrap() } else { Device::host_kernels(2, false).unwrap() };
            let mut steps = 0;
            let mut watch = |event: &Event<'_>| {
                steps += u64::from(matches!(event, Event::Step(s) if s.loss.is_finite()));
                Control::Continue
            };
            train_on(&config, &device, &Target::Gpu(card()), &mut watch).unwrap();
            assert_eq!(steps, 4, "each step is reported once");
            std::fs::read(output.join("adapter_model.safetensors")).unwrap()
        });
        assert!(adapters[0] == adapters[1], "the adapters differ");
    });
}

/// The benches' own code, at sizes that the stub can compute: every case has the CPU's result, is captured (but one) and
/// timed, and its line can be read.
#[test]
fn the_kernels_can_be_timed() {
    on_stub("the_kernels_can_be_timed", &[], || {
        let device = Device::cuda(0).unwrap();
        let folder = tempfile::tempdir().unwrap();
        let mut criterion = criterion::Criterion::default()
            .without_plots()
            .output_directory(folder.path())
            .sample_size(cases::measure::SAMPLES)
            .nresamples(2)
            .warm_up_time(std::time::Duration::from_nanos(1))
            .measurement_time(std::time::Duration::from_nanos(1));
        let card = Card { name: "stub".into(), memory: 4 << 30, flops: 1e12, bandwidth: 1e11, chip: Chip::STAND_IN };
        let sizes = cases::Sizes { tokens: 40, labelled: 8, keys: 33, blocks: 1 };
        let layer = ("small", 64, 128, 2, 1, 64, 96);
        let mut all = cases::of_layer(layer, sizes);
        all.extend(cases::of_many_tokens(layer, 48));
        assert!(all.iter().any(|case| case.name == "small@48 linear 128x64 nf4 fwd"));
        let count = |how| all.iter().filter(|case| case.how == how).count();
        let counts = [How::Graph, How::Launched, How::Asking].map(count);
        assert!(all.len() > 25 && counts[1..] == [1, 3], "{counts:?}");
        for case in all {
            // Two sets of inputs each.
            let seconds = cases::measure::time(&mut criterion, &case, &device, case.bytes).unwrap();
            assert!(seconds.is_finite() && seconds > 0.0, "{}: {seconds}", case.name);
            let line = cases::measure::line(&case, seconds, &card, true);
            let ends = if case.how == How::Graph { "% of mma.sync graph" } else { "% of mma.sync launched" };
            assert!(line.starts_with(&case.name) && line.contains("TFLOP/s") && line.ends_with(ends), "{line}");
        }
    });
}

/// The sweep of the tiles, on what passes for a card of compute capability 9.0: all kinds, in every way that they have.
#[test]
fn the_tiles_can_be_timed() {
    on_stub("the_tiles_can_be_timed", &[("QLORA_STUB_CAPABILITY", "9.0")], || {
        let device = Device::cuda(0).unwrap();
        let layer = ("small", 64, 136, 1, 1, 64, 96);
        let shapes = tiles::shapes(&[layer]);
        assert_eq!(shapes, [(64, 64), (136, 64), (64, 136)]);
        // The second: rows of whole blocks, and more tiles than one across.
        tiles::sweep(&device, &[], (&shapes[1..2], &[72])).unwrap();
        assert!(tiles::ROWS.iter().all(|rows| rows % 64 == 0));
        let why = tiles::sweep(&device, &["tt".into()], (&shapes, &[8])).unwrap_err().to_string();
        assert!(why.contains("nf4-nn, not `tt`"), "{why}");
    });
}

/// wgmma through the driver: 192 KB of shared memory, and the bits of host-run kernels. Another card refuses it by name.
#[test]
fn only_hopper_runs_wgmma() {
    let wish = Wish { tile: Some(Tile::Wgmma256), nf4: None };
    let product = |device: &Device| {
        device.tuning().unwrap().set(Some(wish));
        let (x, w) = (tensor(130, 72, 1, device), tensor(264, 72, 2, device));
        let l = Linear { w: Matrix::Dense(Slot::whole(&w)), bias: None, lora: None };
        linear::fwd(&x, &l, None).map(|(y, _)| bits(&y))
    };
    for capability in ["9.0", "8.9"] {
        on_stub("only_hopper_runs_wgmma", &[("QLORA_STUB_CAPABILITY", capability)], || {
            let made = product(&Device::cuda(0).unwrap());
            if std::env::var("QLORA_STUB_CAPABILITY").unwrap() == "9.0" {
                return assert!(made.unwrap() == product(&Device::host_kernels(2, true).unwrap()).unwrap());
            }
            let why = made.unwrap_err().to_string();
            assert!(why.contains("needs compute capability 9.0; Stub 3080 has 8.9"), "{why}");
        });
        if std::env::var_os("STUB_TEST").is_some() {
            break;
        }
    }
}

/// A batch of answers, of which kernels pick what is drawn from, against the same on host-run kernels.
#[test]
fn a_batch_of_answers_gives_the_same_tokens() {
    on_stub("a_batch_of_answers_gives_the_same_tokens", &[], || {
        let base = Path::new(env!("CARGO_MANIFEST_DIR")).join("assets/tiny-base");
        let text = format!(
            "model_name_or_path: {}\ndataset: x\noutput_dir: x\ndo_train: true\nquantization_bit: 4\n",
            base.display()
        );
        let config = config::from_str(&text, Format::Yaml, &[]).unwrap();
        let answers = [Device::cuda(0).unwrap(), Device::host_kernels(2, false).unwrap()].map(|device| {
            let card = Target::Gpu(Card {
                name: "test".into(),
                memory: 4 << 30,
                flops: 1e12,
                bandwidth: 1e11,
                chip: Chip::STAND_IN,
            });
            let options = model::Options { dtype: DType::Bf16, ..plan::use_options(&config, &[], 64, &card) };
            let model = model::load(&base, &options, &device, &|_, _| {}).unwrap();
            let drawn =
                Sampling { do_sample: true, top_k: 20, top_p: 0.9, repetition_penalty: 1.2, ..Sampling::greedy() };
            let requests =
                [Sampling::greedy(), drawn.clone(), Sampling { top_k: 0, seed: 3, ..drawn }].map(|sampling| Request {
                    prompt: vec![5, 6, 7, 8],
                    max_new_tokens: 5,
                    stops: vec![],
                    sampling,
                    adapter: None,
                    logprobs: None,
                });
            generate(&model, &requests, 3, &mut |_, _| infer::Control::Continue).unwrap()
        });
        assert_eq!(answers[0], answers[1]);
        assert!(answers[0].iter().all(|a| a.ids.len() == 5));
    });
}

/// What the program says while it runs.
struct Said(Mutex<Vec<String>>);

static SAID: Said = Said(Mutex::new(Vec::new()));

impl log::Log for Said {
    fn enabled(&self, _: &log::Metadata<'_>) -> bool {
        true
    }
    fn log(&self, record: &log::Record<'_>) {
        self.0.lock().unwrap().push(record.args().to_string());
    }
    fn flush(&self) {}
}

/// Where embedding and head are apart the embedding lies in pinned memory of the CPU; if the system allows less of that than
/// it takes, on the card. Trained or answering, with adapters and without, the bits are the same: host-run kernels, launch
/// by launch, are both times what they are compared with.
#[test]
fn the_embedding_may_lie_on_either_side() {
    let name = "the_embedding_may_lie_on_either_side";
    // The two blocks for writing and the one for reading, and a little for results: not the 20,480 bytes of the table.
    let little = (3 * (8 << 20) + 20_000).to_string();
    for vars in [&[][..], &[("QLORA_STUB_LOCKED", little.as_str())]] {
        on_stub(name, vars, || {
            log::set_logger(&SAID).unwrap();
            log::set_max_level(log::LevelFilter::Warn);
            let roomy = std::env::var_os("QLORA_STUB_LOCKED").is_none();
            let all = [Device::cuda(0).unwrap(), Device::host_kernels(2, false).unwrap()]
                .map(|device| (trained(&device), answered(&device, roomy || device.gpu().is_none())));
            assert!(all[0].0 == all[1].0, "the losses or the adapters differ");
            assert!(all[0].1 == all[1].1, "the answers differ");
            let said = SAID.0.lock().unwrap();
            let about = said.iter().filter(|line| line.contains("20480 bytes of the GPU's memory")).count();
            assert_eq!(about, if roomy { 0 } else { 2 }, "{said:?}");
            let why = "20480 bytes of the CPU's memory were to be page-locked: cuMemHostAlloc: out of memory";
            assert!(roomy || said.iter().any(|line| line.contains(why)), "{said:?}");
        });
        if std::env::var_os("STUB_TEST").is_some() {
            return;
        }
    }
}

fn golden(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(name)
}

/// Losses and adapter of a short run on a model whose embedding and head are apart.
fn trained(device: &Device) -> (Vec<f64>, Vec<u8>) {
    let dir = tempfile::tempdir().unwrap();
    let text = format!(
        "model_name_or_path: {}\ndataset_dir: {}\ndataset: alpaca\ntemplate: llama3\ncutoff_len: 48\nstage: sft\n\
         do_train: true\nfinetuning_type: lora\nlora_target: all\nlora_rank: 4\nquantization_bit: 4\n\
         neftune_noise_alpha: 5\nmax_steps: 3\nper_device_train_batch_size: 1\nlogging_steps: 1\n\
         report_to: none\noutput_dir: {}\n",
        golden("models/llama3").display(),
        golden("runs/data").display(),
        dir.path().display()
    );
    let config = config::from_str(&text, Format::Yaml, &[]).unwrap();
    let mut losses = Vec::new();
    let mut watch = |event: &Event<'_>| {
        if let Event::Step(step) = event {
            losses.push(step.loss);
        }
        Control::Continue
    };
    train_on(&config, device, &Target::Gpu(card()), &mut watch).unwrap();
    assert!(losses.len() == 3 && losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
    (losses, std::fs::read(dir.path().join("adapter_model.safetensors")).unwrap())
}

fn card() -> Card {
    Card { name: "test".into(), memory: 4 << 30, flops: 1e12, bandwidth: 1e11, chip: Chip::STAND_IN }
}

/// What the same model answers with each of its adapters and without, in one batch.
fn answered(device: &Device, pinned: bool) -> Vec<Answer> {
    let base = golden("models/llama3");
    let text = format!("model_name_or_path: {}\ndataset: x\noutput_dir: x\nquantization_bit: 4\n", base.display());
    let config = config::from_str(&text, Format::Yaml, &[]).unwrap();
    let options = plan::use_options(&config, &[], 64, &Target::Gpu(card()));
    let mut model = model::load(&base, &options, device, &|_, _| {}).unwrap();
    let frozen = model.frozen_bytes();
    assert_eq!(frozen.pinned, if pinned { 320 * 32 * 2 } else { 0 });
    let adapters = ["adapter", "adapter_lm_head"].map(|name| Some(model.attach(&base.join(name)).unwrap()));
    let requests: Vec<Request> = adapters
        .into_iter()
        .chain([None])
        .enumerate()
        .map(|(i, adapter)| Request {
            prompt: (0..9 + i as u32).map(|n| 5 + n * 31 % 300).collect(),
            max_new_tokens: 6,
            stops: vec![],
            sampling: Sampling::greedy(),
            adapter,
            logprobs: None,
        })
        .collect();
    generate(&model, &requests, 3, &mut |_, _| infer::Control::Continue).unwrap()
}

/// The machine code in this program is found, where there is some.
#[test]
fn the_embedded_kernels_are_loaded() {
    on_stub("the_embedded_kernels_are_loaded", &[("QLORA_KERNELS", "")], || {
        match (Device::cuda(0), kernels::TOOLKIT) {
            (Ok(device), Some(_)) => {
                let (x, w) = (tensor(2, 64, 1, &device), tensor(1, 64, 2, &device));
                assert!(rms_norm::fwd(&x, Slot::whole(&w), 1e-6).unwrap().to_f64().iter().all(|y| y.is_finite()));
                assert!(device.capture(|| Ok(())).unwrap().is_some(), "every kernel is loaded");
            }
            (Err(e), None) => assert!(e.to_string().contains("make setup"), "{e}"),
            (Ok(_), None) => panic!("there are no kernels"),
            (Err(e), Some(_)) => panic!("{e}"),
        }
    });
}

#[test]
fn memory_is_written_read_filled_and_copied() {
    on_stub("memory_is_written_read_filled_and_copied", &[], || {
        let device = Device::cuda(0).unwrap();
        // More than both blocks of pinned memory, and not a multiple of anything.
        let n = (21 << 20) / 4 + 3;
        let mut data: Vec<f32> = (0..n).map(|i| i as f32).collect();
        let mut t = Tensor::from_slice(&data, 1, n, &device).unwrap();
        // Enqueued, not run yet: the source may change.
        let before = std::mem::replace(&mut data, vec![-1.0; n]);
        assert_eq!(t.read::<f32>(0, n), before);
        t.write(5, &[7.5f32, 8.5]);
        let later = t.read_later::<f32>(4, 4);
        t.write(5, &[0.0f32]);
        let copy = t.copy().unwrap();
        t.fill_zero();
        let later: Vec<f32> =
            later.wait().unwrap().chunks_exact(4).map(|b| f32::from_ne_bytes(b.try_into().unwrap())).collect();
        assert_eq!(later, [4.0, 7.5, 8.5, 7.0], "the bytes of when it was asked for");
        assert_eq!(copy.read::<f32>(4, 4), [4.0, 0.0, 8.5, 7.0]);
        assert!(t.read::<f32>(0, n).iter().all(|&x| x == 0.0));
        // Not waited for: its pinned memory is not handed on before the copy is done.
        drop(copy.read_later::<f32>(0, 4));
        let all = copy.read_later::<f32>(n - 2, 2).wait().unwrap();
        assert_eq!(all, [before[n - 2], before[n - 1]].map(f32::to_ne_bytes).concat());
        // What is too long for that is read at once.
        assert_eq!(copy.read_later::<f32>(0, 5000).wait().unwrap().len(), 20_000);
        let empty = Tensor::zeros(0, 7, DType::F32, &device).unwrap();
        assert_eq!(empty.copy().unwrap().to_f64(), [0.0; 0]);
        device.synchronize().unwrap();
    });
}

#[test]
fn any_thread_may_use_the_device() {
    on_stub("any_thread_may_use_the_device", &[], || {
        let device = Device::cuda(0).unwrap();
        let x = std::thread::scope(|s| s.spawn(|| tensor(2, 64, 1, &device)).join().unwrap());
        assert_eq!(x.read::<bf16>(0, 128), numbers(128, 1));
        std::thread::spawn(move || drop((x, device))).join().unwrap();
    });
}

/// Each thread has a device of its own, as the tests of a process have. One allocates while another records; the results
/// are those of a thread alone.
#[test]
fn several_devices_work_at_once() {
    on_stub("several_devices_work_at_once", &[], || {
        let work = || {
            let device = Device::cuda(0).unwrap();
            let (mut x, w) = (tensor(3, 64, 1, &device), tensor(1, 64, 2, &device));
            for _ in 0..100 {
                let mut grads = Tensor::zeros(1, 64, DType::F32, &device).unwrap();
                let mut dx = None;
                step(&x, &w, &mut grads, &mut dx).unwrap();
                let dx = bits(&dx.unwrap());
                let graph = zeroing(&device, &mut x).unwrap();
                graph.launch().unwrap();
                assert_eq!(bits(&x), [0; 3 * 64]);
                drop(graph);
                x = tensor(3, 64, 1, &device);
                device.synchronize().unwrap();
                assert_eq!((dx, bits(&grads)), alone());
            }
        };
        std::thread::scope(|s| (0..8).for_each(|_| drop(s.spawn(work))));
    });
}

/// dx and the gradient of [`step`] on host-run kernels.
fn alone() -> (Vec<u64>, Vec<u64>) {
    static ALONE: OnceLock<(Vec<u64>, Vec<u64>)> = OnceLock::new();
    let made = ALONE.get_or_init(|| {
        let device = Device::host_kernels(1, false).unwrap();
        let (x, w) = (tensor(3, 64, 1, &device), tensor(1, 64, 2, &device));
        let mut grads = Tensor::zeros(1, 64, DType::F32, &device).unwrap();
        let mut dx = None;
        step(&x, &w, &mut grads, &mut dx).unwrap();
        (bits(&dx.unwrap()), bits(&grads))
    });
    made.clone()
}

/// Eager steps and replays of one give the same bits, on the driver and on host-run kernels.
#[test]
fn a_graph_is_recorded_and_replayed() {
    on_stub("a_graph_is_recorded_and_replayed", &[], || {
        let (rows, cols) = (6, 200);
        let make = |device: &Device| {
            (
                tensor(rows, cols, 0, device),
                tensor(1, cols, 9, device),
                Tensor::zeros(1, cols, DType::F32, device).unwrap(),
            )
        };
        let plan = Device::plan_kernels();
        let (x, w, mut grads) = make(&plan);
        plan.take_plan();
        step(&x, &w, &mut grads, &mut None).unwrap();
        let layout = Arc::new(plan.take_plan().unwrap().0.layout());
        assert!(layout.bytes() > 0);
        let mut all = Vec::new();
        for device in [Device::cuda(0).unwrap(), Device::host_kernels(1, false).unwrap()] {
            for record in [false, true] {
                let memory = device.reserve(layout.bytes()).unwrap();
                let (mut x, w, mut grads) = make(&device);
                let mut graph: Option<Graph> = None;
                let mut seen = Vec::new();
                for i in 0..4 {
                    x.write(0, &numbers(rows * cols, i));
                    let run =
                        |grads: &mut Tensor, dx: &mut Option<Tensor>| memory.run(&layout, || step(&x, &w, grads, dx));
                    let mut dx = None;
                    match &graph {
                        Some(graph) => graph.launch().unwrap(),
                        // The first one is eager, the second is recorded and then launched.
                        None if record && i == 1 => {
                            let recorded = device.capture(|| run(&mut grads, &mut dx)).unwrap().unwrap();
                            assert_eq!(bits(&grads), *seen.last().unwrap(), "recording runs nothing");
                            recorded.launch().unwrap();
                            graph = Some(recorded);
                        }
                        None => run(&mut grads, &mut dx).unwrap(),
                    }
                    seen.push(bits(&grads));
                }
                device.synchronize().unwrap();
                assert!(seen.windows(2).all(|w| w[0] != w[1]), "every step adds something");
                all.push(seen);
            }
        }
        assert!(all.iter().all(|seen| *seen == all[0]));
    });
}

#[test]
fn what_a_graph_cannot_hold_is_refused() {
    on_stub("what_a_graph_cannot_hold_is_refused", &[], || {
        for device in [Device::cuda(0).unwrap(), Device::host_kernels(1, false).unwrap()] {
            let mut x = tensor(2, 64, 1, &device);
            let says = |r: Result<Option<Graph>>, what: &str| {
                let why = r.err().expect("it is refused").to_string();
                assert!(why.contains(what), "{why}");
            };
            let written = device.capture(|| {
                x.write(0, &numbers(3, 0));
                Ok(())
            });
            says(written, "wrote to device memory");
            let read = device.capture(|| {
                x.to_f64();
                Ok(())
            });
            says(read, "read device memory");
            says(
                device.capture(|| Tensor::unwritten(1, 1, DType::F32, &device).map(drop)),
                "outside of the step's arena",
            );
            says(device.capture(|| device.capture(|| Ok(())).map(drop)), "already being recorded");
            says(device.capture(|| Err(Error::NotYet("my own".into()))), "my own");
            let panicked =
                std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| device.capture(|| panic!("on purpose"))));
            assert!(panicked.is_err());
            // The device is as before.
            assert_eq!(x.read::<bf16>(0, 128), numbers(128, 1));
            zeroing(&device, &mut x).unwrap().launch().unwrap();
            assert!(x.to_f64().iter().all(|&x| x == 0.0));
            device.synchronize().unwrap();
        }
    });
}

#[test]
fn memory_stays_while_a_graph_uses_it() {
    on_stub("memory_stays_while_a_graph_uses_it", &[], || {
        let device = Device::cuda(0).unwrap();
        let free = || device.gpu_memory().unwrap().unwrap().0;
        let at_first = free();
        let mut x = tensor(1, 1000, 1, &device);
        let graph = zeroing(&device, &mut x).unwrap();
        let with_x = free();
        drop(x);
        assert_eq!(free(), with_x, "x is gone, but the graph writes to it");
        graph.launch().unwrap();
        // What came after the graph is nothing to it.
        drop(tensor(1, 1000, 1, &device));
        assert_eq!(free(), with_x);
        drop(graph);
        assert_eq!(free(), at_first);
    });
}

/// Memory that was given up is used again, until somebody asks what is free.
#[test]
fn small_memory_is_kept_for_the_next() {
    on_stub("small_memory_is_kept_for_the_next", &[], || {
        let device = Device::cuda(0).unwrap();
        let free = || device.gpu_memory().unwrap().unwrap().0;
        let before = free();
        let filled = |x: f32| Tensor::from_slice(&vec![x; 5000], 1, 5000, &device).unwrap();
        // Each takes the memory of the one before, whose work comes first in the queue.
        let sums: Vec<f64> = (1..=20)
            .map(|i| {
                let x = filled(i as f32);
                let y = x.copy().unwrap();
                drop(x);
                let other = filled(-1.0);
                drop(other);
                y.to_f64().iter().sum()
            })
            .collect();
        assert_eq!(sums, (1..=20).map(|i| 5000.0 * f64::from(i)).collect::<Vec<_>>());
        assert_eq!(free(), before);
        // All that there is can be had, though some was kept.
        drop(filled(1.0));
        let most = Tensor::unwritten(1, before / 4, DType::F32, &device).unwrap();
        assert_eq!(free(), before - most.bytes());
    });
}

#[test]
fn a_fault_in_a_kernel_is_told() {
    // With the context everything in it is lost, so nothing can be given back.
    on_stub("a_fault_in_a_kernel_is_told", &[("QLORA_STUB_QUIET", "1")], || {
        let device = Device::cuda(0).unwrap();
        let p = Probing { which: 1, grid: [1; 3], block: 128, shared: 0, outputs: 128 };
        let why = device.probe(kernels::PROBE_DIVERGENCE, p, &[0.0; 128]).unwrap_err().to_string();
        assert!(why.contains("unspecified launch failure (CUDA_ERROR_LAUNCH_FAILED)"), "{why}");
        if cfg!(debug_assertions) {
            assert!(why.contains("probe_divergence") && why.contains("cuStreamSynchronize"), "{why}");
        }
        // And so says every call from now on.
        assert!(device.synchronize().is_err());
    });
}

#[test]
fn a_card_has_limits() {
    on_stub("a_card_has_limits", &[], || {
        let device = Device::cuda(0).unwrap();
        let right = Probing { which: 0, grid: [1; 3], block: 128, shared: 101_376, outputs: 128 };
        let input: Vec<f32> = (0..128).map(|i| i as f32).collect();
        let out = device.probe(kernels::PROBE_BARRIER, right, &input).unwrap();
        assert_eq!(out[..2], [32.0, 33.0]);
        for (p, what) in [
            (Probing { block: 256, ..right }, "256 threads a block, this card can run it with 128"),
            (Probing { shared: 101_380, ..right }, "101380 bytes of shared memory a block, the limit is 101376"),
            (Probing { grid: [1, 65_536, 1], ..right }, "65536 blocks along axis 1"),
        ] {
            let why = device.probe(kernels::PROBE_BARRIER, p, &input).unwrap_err().to_string();
            assert!(why.contains("probe_barrier") && why.contains(what), "{why}");
        }
    });
}

#[test]
fn too_little_memory_is_told_with_the_figures() {
    let vars = [("QLORA_STUB_MEMORY", "1000000")];
    on_stub("too_little_memory_is_told_with_the_figures", &vars, || {
        let device = Device::cuda(0).unwrap();
        let whys = [
            device.reserve(2_000_000).map(drop).unwrap_err(),
            Tensor::unwritten(1000, 500, DType::F32, &device).map(drop).unwrap_err(),
        ];
        for why in whys {
            assert!(matches!(why, Error::Memory(_)), "{why:?}");
            let why = why.to_string();
            assert!(why.contains("Stub 3080: 2000000 bytes were asked for, 999"), "{why}");
            assert!(why.contains("of 1000000 are free") && !why.contains('\n'), "{why}");
        }
        device.synchronize().unwrap();
    });
}

/// Each refusal is one line that says what is needed.
#[test]
fn what_cannot_be_used_is_refused() {
    let name = "what_cannot_be_used_is_refused";
    let cases: [(&[(&str, &str)], &str); 8] = [
        (&[("QLORA_STUB_DRIVER", "11080")], "the NVIDIA driver offers CUDA 11.8; this program needs"),
        (&[("QLORA_STUB_GPUS", "0")], "no CUDA-capable device is detected (CUDA_ERROR_NO_DEVICE)"),
        (&[("QLORA_STUB_CAPABILITY", "7.5")], "Stub 3080 has compute capability 7.5; 8.0 is needed"),
        (&[("STUB_ORDINAL", "3")], "GPU 3 was asked for; the driver sees 1"),
        (&[("QLORA_STUB_FAIL", "cuInit:999")], "cuInit: unknown error (CUDA_ERROR_UNKNOWN)"),
        // A code that neither this program nor the driver has a name for.
        (&[("QLORA_STUB_FAIL", "cuInit:12345")], "cuInit: error 12345, which this driver does not explain"),
        (&[("QLORA_KERNELS", "/nonexistent")], "QLORA_KERNELS: /nonexistent/rms_norm.fatbin"),
        (
            &[("QLORA_KERNELS", "STUB_BAD")],
            "kernels/rms_norm.cu on Stub 3080: cuModuleLoadData: device kernel image is invalid",
        ),
    ];
    for (vars, want) in cases {
        let bad = tempfile::tempdir().unwrap();
        std::fs::write(bad.path().join("rms_norm.fatbin"), "not a fatbin").unwrap();
        let set = |v: &str| if v == "STUB_BAD" { bad.path().display().to_string() } else { v.to_string() };
        let mut vars: Vec<(&str, String)> = vars.iter().map(|(k, v)| (*k, set(v))).collect();
        vars.push(("STUB_WANT", want.to_string()));
        let vars: Vec<(&str, &str)> = vars.iter().map(|(k, v)| (*k, v.as_str())).collect();
        on_stub(name, &vars, || {
            let want = std::env::var("STUB_WANT").unwrap();
            let why = scenario().expect_err("it is refused").to_string();
            assert!(why.contains(&want) && !why.contains('\n'), "{why}");
        });
        if std::env::var_os("STUB_TEST").is_some() {
            return;
        }
    }
    if let Some((major, _)) = kernels::TOOLKIT.filter(|t| t.0 >= 13) {
        let vars =
            [("QLORA_STUB_DRIVER", "12090"), ("STUB_WANT", "needs 13.0, which comes with driver 580; its kernels")];
        assert!(major >= 13);
        on_stub(name, &vars, || {});
    }
}

/// All that this program asks of a driver.
fn scenario() -> Result<()> {
    let ordinal = std::env::var("STUB_ORDINAL").map_or(0, |n| n.parse().unwrap());
    let device = Device::cuda(ordinal)?;
    device.gpu_memory()?;
    let memory = device.reserve(1000)?;
    let n = (9 << 20) / 4;
    let mut x = Tensor::from_slice(&vec![1.0f32; n], 1, n, &device)?;
    // Past the end of the second block of pinned memory.
    x.write(0, &vec![2.0f32; n]);
    let y = x.copy()?;
    let w = tensor(1, 64, 2, &device);
    rms_norm::fwd(&tensor(2, 64, 1, &device), Slot::whole(&w), 1e-6)?;
    let graph = zeroing(&device, &mut x)?;
    graph.launch()?;
    y.read_later::<f32>(0, 2).wait()?;
    if y.read::<f32>(n - 1, 1) != [2.0] || x.read::<f32>(0, 1) != [0.0] {
        device.synchronize()?;
        panic!("wrong values without an error");
    }
    let far = Tensor::from_slice(&[1.0f32; 3], 1, 3, &Device::cpu(1))?.pinned_copy(&device)?;
    if far.read::<f32>(0, 3) != [1.0; 3] {
        device.synchronize()?;
        panic!("wrong values without an error");
    }
    if device.timed(|| graph.launch())?.is_zero() {
        panic!("no time between two events without an error");
    }
    drop((x, y, graph, w, memory, far));
    // What is free can only be said when nothing is kept for the next.
    device.gpu_memory()?;
    device.synchronize()
}

/// Whichever call fails, the error names it; nothing panics, nothing goes on with wrong values.
#[test]
fn every_return_code_is_checked() {
    let name = "every_return_code_is_checked";
    // Not among them: freeing, which has nobody to tell but the next call.
    let calls = "none cuDriverGetVersion cuInit cuDeviceGetCount cuDeviceGet cuDeviceGetName cuDeviceTotalMem_v2 \
                 cuDeviceGetAttribute cuDevicePrimaryCtxRetain cuMemGetInfo_v2 cuMemAlloc_v2 cuMemFree_v2 cuMemHostAlloc \
                 cuStreamCreate cuStreamSynchronize cuEventCreate cuEventElapsedTime cuEventRecord cuEventSynchronize cuMemcpyHtoDAsync_v2 \
                 cuMemcpyDtoHAsync_v2 cuMemcpyDtoDAsync_v2 cuMemsetD8Async cuModuleLoadData cuModuleGetFunction \
                 cuFuncGetAttribute cuFuncSetAttribute cuLaunchKernel cuStreamBeginCapture_v2 \
                 cuGraphInstantiateWithFlags cuGraphLaunch";
    for call in calls.split_whitespace() {
        // What is left behind where freeing fails says nothing.
        let failing = format!("{call}:1");
        let vars = [("QLORA_STUB_FAIL", failing.as_str()), ("QLORA_STUB_QUIET", "1")];
        on_stub(name, &vars, || {
            let call = std::env::var("QLORA_STUB_FAIL").unwrap().replace(":1", "");
            if call == "none" {
                return scenario().unwrap();
            }
            let why = scenario().expect_err("a call failed").to_string();
            assert!(why.contains(&format!("{call}: invalid argument (CUDA_ERROR_INVALID_VALUE)")), "{call}: {why}");
        });
        if std::env::var_os("STUB_TEST").is_some() {
            return;
        }
    }
}

#[test]
fn the_program_says_what_is_here() {
    let report = |vars: &[(&str, &str)]| {
        let mut program = Command::new(env!("CARGO_BIN_EXE_qlora-engine"));
        let ran =
            program.arg("env").env("LD_LIBRARY_PATH", library_path()).envs(vars.iter().copied()).output().unwrap();
        assert!(ran.status.success());
        String::from_utf8(ran.stdout).unwrap()
    };
    let has = |report: &str, name: &str, value: &str| {
        assert!(report.lines().any(|l| l.starts_with(name) && l.contains(value)), "{name} {value}:\n{report}");
    };
    let usual = report(&[]);
    has(&usual, "gpu driver", "for CUDA 13.0");
    has(&usual, "gpu  ", "Stub 3080, compute capability 8.6, 68 multiprocessors, 1.0 GiB at 760 GB/s");
    match kernels::TOOLKIT {
        Some((13.., _)) => has(&usual, "gpu kernels", "for drivers from 580 on"),
        Some(_) => has(&usual, "gpu kernels", "for drivers from 570 on"),
        None => has(&usual, "gpu kernels", "make setup"),
    }
    let old = report(&[("QLORA_STUB_DRIVER", "11040")]);
    has(&old, "gpu driver", "for CUDA 11.4");
    has(&old, "gpu  ", "none: gpu: the NVIDIA driver offers CUDA 11.4");
    has(&report(&[("QLORA_STUB_CAPABILITY", "7.5")]), "gpu  ", "7.5; 8.0 is needed");
    has(&report(&[("QLORA_STUB_GPUS", "0")]), "gpu  ", "no CUDA-capable device");
}
