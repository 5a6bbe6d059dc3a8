//! What host-run kernels promise to catch, by kernels that are wrong on purpose (kernels/host/probes.cu).

use crate::*;
use qlora_engine::Result;
use qlora_engine::device::{Kernel, Probing, abi, kernels};

fn probe(kernel: Kernel<abi::Probe>, p: Probing, input: &[f32]) -> [Result<Vec<f32>>; 2] {
    [false, true].map(|reversed| Device::host_kernels(1, reversed).unwrap().probe(kernel, p, input))
}

fn count(n: usize) -> Vec<f32> {
    (0..n).map(|i| i as f32).collect()
}

const RIGHT: Probing = Probing { which: 0, grid: [1; 3], block: 128, shared: 512, outputs: 128 };

#[test]
fn a_missing_barrier_is_seen() {
    let want: Vec<f32> = (0..128).map(|t| ((t + 32) % 128) as f32).collect();
    for out in probe(kernels::PROBE_BARRIER, RIGHT, &count(128)) {
        assert_eq!(out.unwrap(), want);
    }
    let [forward, reversed] =
        probe(kernels::PROBE_BARRIER, Probing { which: 1, ..RIGHT }, &count(128)).map(Result::unwrap);
    // Whoever comes too early reads what shared memory is full of.
    assert!(forward.iter().any(|x| x.is_nan()) && reversed.iter().any(|x| x.is_nan()));
    let bits = |x: &[f32]| x.iter().map(|x| x.to_bits()).collect::<Vec<_>>();
    assert_ne!(bits(&forward), bits(&reversed));
}

#[test]
fn shared_memory_is_poisoned_for_every_block() {
    // The second block would find the first one's values.
    let p = Probing { which: 1, grid: [2, 1, 1], ..RIGHT };
    for out in probe(kernels::PROBE_BARRIER, p, &count(128)) {
        assert!(out.unwrap().iter().any(|x| x.is_nan()));
    }
}

/// The line of probes.cu that holds `text`.
fn line(text: &str) -> usize {
    let source = include_str!("../../kernels/host/probes.cu");
    1 + source.lines().position(|l| l.contains(text)).expect("the probe is there")
}

#[test]
fn threads_that_part_are_an_error_with_the_line() {
    for out in probe(kernels::PROBE_DIVERGENCE, RIGHT, &count(128)) {
        assert_eq!(out.unwrap(), count(128));
    }
    let all = line("sync_block();  // all have come here");
    for (which, waits, at) in [
        (1, "waits for the block", all),
        (2, "waits for its warp", line("shfl_xor(p.in")),
        (3, "waits for its warp", line("    mma_bf16(d, a, b);")),
    ] {
        for out in probe(kernels::PROBE_DIVERGENCE, Probing { which, ..RIGHT }, &count(128)) {
            let why = out.unwrap_err().to_string();
            assert!(why.contains("threads diverge in block (0, 0, 0)") && why.contains("probe_divergence"), "{why}");
            assert!(why.contains(&format!("{waits} at line {at}")) && why.contains("thread 3 has ended"), "{why}");
        }
    }
    for out in probe(kernels::PROBE_DIVERGENCE, Probing { which: 4, ..RIGHT }, &count(128)) {
        let (why, half) = (out.unwrap_err().to_string(), line("sync_block();  // the other half's"));
        for at in [all, half] {
            assert!(why.contains(&format!("waits for the block at line {at}")), "{why}");
        }
    }
}

/// Forwards copies land at their wait, in reverse at once.
#[test]
fn a_copy_lands_between_its_start_and_its_wait() {
    let p = Probing { shared: 2048, outputs: 512, ..RIGHT };
    for out in probe(kernels::PROBE_COPY, p, &count(512)) {
        assert_eq!(out.unwrap(), count(512));
    }
    // No wait before the read; a wait that lets the last group be under way.
    for which in [1, 3] {
        let [late, early] = probe(kernels::PROBE_COPY, Probing { which, ..p }, &count(512)).map(Result::unwrap);
        assert!(late.iter().all(|x| x.is_nan()), "{which}: nothing had landed");
        assert_eq!(early, count(512), "{which}");
    }
    // A copy that begins before all have read what it overwrites.
    let next: Vec<f32> = (0..512).map(|i| if i < 508 { i + 4 } else { i } as f32).collect();
    let [late, early] = probe(kernels::PROBE_COPY, Probing { which: 4, ..p }, &count(512)).map(Result::unwrap);
    assert!(late == next && early != next, "{early:?}");
    for out in probe(kernels::PROBE_COPY, Probing { which: 2, ..p }, &count(512)) {
        let why = out.unwrap_err().to_string();
        assert!(why.contains("a thread ends before it has waited for its asynchronous copies"), "{why}");
        assert!(why.contains(&format!("line {}", line("cp_async16(s + at, p.in + at);"))), "{why}");
    }
}

#[test]
fn a_swapped_fragment_changes_the_product() {
    // bf16 rounded to f16 (which only the smallest are): numbers that both types hold.
    let input: Vec<f32> = bf16s(&random(7, 24 * 16)).iter().map(|&x| f16::from_f64(x).to_f32()).collect();
    let (a, b) = input.split_at(256);
    let plain: Vec<f64> = (0..16 * 8)
        .map(|i| (0..16).map(|k| f64::from(a[i / 8 * 16 + k]) * f64::from(b[i % 8 * 16 + k])).sum())
        .collect();
    let p = Probing { block: 32, shared: 1024, ..RIGHT };
    // 16 products, each of magnitude below 16, exact in f32 before they are added: 16 roundings of at most 256.
    let limit = 16.0 * 256.0 * 2f64.powi(-24);
    for kernel in [kernels::PROBE_PRODUCT, kernels::PROBE_PRODUCT_F16] {
        for which in 0..4 {
            for out in probe(kernel, Probing { which, ..p }, &input) {
                let out: Vec<f64> = out.unwrap().iter().map(|&x| f64::from(x)).collect();
                let e = max_err(&out, &plain);
                assert!(if which == 0 { e <= limit } else { e > 0.1 }, "{which}: {e}");
            }
        }
    }
}

/// Forwards the products of a warpgroup are made when they are issued, in reverse at their wait.
#[test]
fn a_product_reads_and_writes_between_its_issue_and_its_wait() {
    let numbers = bf16s(&random(9, (64 + 128) * 64));
    let bits = |x: f64| u32::from(bf16::from_f64(x).to_bits());
    let input: Vec<f32> = numbers.chunks(2).map(|two| f32::from_bits(bits(two[0]) | bits(two[1]) << 16)).collect();
    let (a, b) = numbers.split_at(64 * 64);
    let row = |m: &[f64], i: usize| m[i * 64..][..64].to_vec();
    let dot = |x: Vec<f64>, y: Vec<f64>| x.iter().zip(y).map(|(x, y)| x * y).sum::<f64>();
    let want: Vec<f64> = (0..64 * 128).map(|i| dot(row(a, i / 128), row(b, i % 128))).collect();
    // 64 products, each of magnitude below 32, exact in f32 before they are added: 64 roundings of at most 2048.
    let limit = 64.0 * 2048.0 * 2f64.powi(-24);
    let p = Probing { shared: (64 + 128) * 128, outputs: 64 * 128, ..RIGHT };
    let errors = |which| {
        probe(kernels::PROBE_WGMMA, Probing { which, ..p }, &input)
            .map(|out| max_err(&out.unwrap().iter().map(|&x| f64::from(x)).collect::<Vec<_>>(), &want))
    };
    assert!(errors(0).into_iter().all(|e| e <= limit), "{:?}", errors(0));
    // Sums read too early, and operands overwritten too early.
    for which in [3, 4] {
        let [at_issue, at_wait] = errors(which);
        assert!(at_issue <= limit && at_wait > 1.0, "{which}: {at_issue} {at_wait}");
    }
    for (which, why) in [
        (1, "a product while a thread's copies lack fence_async"),
        (2, "a product without wgmma_fence before its group"),
        (5, "a thread ends before it has waited for its products"),
        (6, "the warps of a warpgroup differ in their products"),
        (7, "a product of operands that pass the end of shared memory"),
        (8, "lanes name different operands of a product"),
    ] {
        for out in probe(kernels::PROBE_WGMMA, Probing { which, ..p }, &input) {
            let said = out.unwrap_err().to_string();
            assert!(said.contains(why) && said.contains(&line("wgmma<128, false>").to_string()), "{which}: {said}");
        }
    }
}

/// Every f16, what lies half way to the next one and just beside that, and what f16 cannot hold.
#[test]
fn f16_converts_as_the_standard_says() {
    let all = (0..=u16::MAX).map(|bits| f16::from_bits(bits).to_f32());
    let beside = |x: f32| [-1, 0, 1].map(|d: i32| f32::from_bits((x.to_bits() as i32 + d) as u32));
    let halves = (0..0x7C00u16).flat_map(|bits| {
        let [low, high] = [bits, bits + 1].map(|bits| f16::from_bits(bits).to_f64());
        // The last one is followed by infinity, in whose place 2^16 is meant.
        let half = ((low + high.min(65536.0)) / 2.0) as f32;
        [half, -half].into_iter().flat_map(beside)
    });
    let far = [1e5, -1e5, f32::MAX, f32::MIN_POSITIVE, 1e-45, -1e-45, f32::INFINITY, f32::NEG_INFINITY];
    let mut input: Vec<f32> = all.chain(halves).chain(far).collect();
    input.resize(input.len().next_multiple_of(128), 0.0);
    let p = Probing { grid: [input.len() / 128, 1, 1], outputs: input.len(), ..RIGHT };
    for out in probe(kernels::PROBE_F16, p, &input) {
        for (x, got) in input.iter().zip(out.unwrap()) {
            let want = f16::from_f32(*x).to_f32();
            let same = if x.is_nan() { got.is_nan() } else { got.to_bits() == want.to_bits() };
            assert!(same, "{x:e} became {got:e}, not {want:e}");
        }
    }
}

#[test]
fn what_a_card_refuses_is_refused() {
    for (p, what) in [
        (Probing { block: 1056, ..RIGHT }, "1056 threads a block"),
        (Probing { block: 48, ..RIGHT }, "48 threads a block; whole warps"),
        (Probing { block: 256, ..RIGHT }, "256 threads a block, it was declared with at most 128"),
        (Probing { shared: 101_377, ..RIGHT }, "101377 bytes of shared memory a block, the limit is 101376"),
        (Probing { grid: [1, 65_536, 1], ..RIGHT }, "65536 blocks along axis 1, the limit is 65535"),
        (Probing { grid: [1, 1, 65_536], ..RIGHT }, "65536 blocks along axis 2, the limit is 65535"),
        (Probing { grid: [1 << 31, 1, 1], ..RIGHT }, "2147483648 blocks along axis 0"),
    ] {
        for out in probe(kernels::PROBE_BARRIER, p, &count(128)) {
            let why = out.unwrap_err().to_string();
            assert!(why.contains(what) && why.starts_with("kernel probe_barrier"), "{why}");
        }
    }
    // The most that is allowed, and nothing at all, run.
    let most = Probing { shared: 101_376, grid: [2, 3, 2], ..RIGHT };
    assert!(probe(kernels::PROBE_BARRIER, most, &count(128)).into_iter().all(|out| out.is_ok()));
    let none = Probing { grid: [0, 1, 1], ..RIGHT };
    assert!(probe(kernels::PROBE_BARRIER, none, &count(128)).into_iter().all(|out| out.unwrap()[0].is_nan()));
}

/// Under the sanitizers an access past the end, or one that a GPU refuses because it is unaligned, ends the process: each is a
/// child of its own, which must die of it.
#[cfg(feature = "host-asan")]
#[test]
fn a_wrong_access_is_reported() {
    let input = count(37);
    let p = Probing { block: 32, shared: 37 * 4, outputs: 37, ..RIGHT };
    if let Ok(which) = std::env::var("PROBE_OVERRUN") {
        let which = which.parse().unwrap();
        let _ = Device::host_kernels(1, false).unwrap().probe(kernels::PROBE_OVERRUN, Probing { which, ..p }, &input);
        return;
    }
    for (which, words) in [
        (0, vec![]),
        (1, vec!["AddressSanitizer: heap-buffer-overflow", "WRITE of size 4"]),
        (2, vec!["AddressSanitizer: heap-buffer-overflow", "READ of size 4"]),
        (3, vec!["AddressSanitizer: heap-buffer-overflow", "WRITE of size 4"]),
        (4, vec!["AddressSanitizer: heap-buffer-overflow", "READ of size 4"]),
        (5, vec!["runtime error", "misaligned address", "requires 16 byte alignment"]),
    ] {
        let mut child = std::process::Command::new(std::env::current_exe().unwrap());
        child.args(["runtime::a_wrong_access_is_reported", "--exact"]).env("PROBE_OVERRUN", which.to_string());
        child.env("ASAN_OPTIONS", "detect_leaks=0");
        let done = child.output().unwrap();
        let err = String::from_utf8_lossy(&done.stderr);
        assert_eq!(done.status.success(), words.is_empty(), "access {which}: {err}");
        let missing: Vec<_> = words.iter().filter(|word| !err.contains(**word)).collect();
        assert!(
            missing.is_empty() && (which == 0 || which == 5 || err.contains("probes.cu")),
            "access {which}: {missing:?} in {err}"
        );
    }
}
