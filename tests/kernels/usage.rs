//! What the compiler made of the kernels. `make kernels-report` prints the table.

use qlora_engine::device::kernels::{TOOLKIT, USAGE};
use qlora_engine::device::{Chip, abi};
use qlora_engine::ops::tiles::{Kind, rule_of};

/// Files whose kernels must not spill: a spilled register costs a memory access in a loop that is made of few.
const HOT: [&str; 6] = ["gemm", "gemv", "ggml", "linear", "attention", "rms_norm"];

/// What a multiprocessor holds: CUDA C++ Programming Guide, technical specifications by compute capability.
struct Limits {
    threads: u32,
    blocks: u32,
    /// Bytes of shared memory, in all and of a block.
    shared: u32,
    shared_of_block: u32,
}

fn limits(arch: &str) -> Limits {
    let (threads, blocks, kilobytes) = match arch {
        "sm_80" => (2048, 32, 164),
        "sm_86" => (1536, 16, 100),
        "sm_89" | "sm_120" => (1536, 24, 100),
        "sm_90a" => (2048, 32, 228),
        _ => panic!("no limits are known of {arch}: add them here"),
    };
    Limits { threads, blocks, shared: kilobytes << 10, shared_of_block: (kilobytes - 1) << 10 }
}

/// Registers of each of a multiprocessor's four parts, given to warps in units of 256.
const PART_REGISTERS: u32 = 16_384;
/// Shared memory that the driver takes of each block, and the unit in which it is given.
const RESERVED: u32 = 1024;
const SHARED_UNIT: u32 = 128;

/// (threads, bytes of shared memory) of a block, as src/ops and src/quant launch it; the most, where that depends on sizes.
fn launch(kernel: &str) -> (u32, u32) {
    let (stem, last) = kernel.rsplit_once('_').unwrap_or((kernel, ""));
    let dim = last.parse().unwrap_or(0);
    let (tile, wide) = (abi::ATTENTION_TILE, dim > 128);
    let rows = |n: u32| n * dim * 2;
    match (stem, last) {
        ("attention_fwd" | "attention_bwd_q", _) => {
            (abi::ATTENTION_BLOCK, rows(if wide { 3 * tile } else { 2 * tile }))
        }
        ("attention_bwd_kv", _) => {
            let queries = if dim == 64 || dim == 80 { abi::ATTENTION_QUERIES_64 } else { abi::ATTENTION_QUERIES_32 };
            let block = if wide { 2 * abi::ATTENTION_BLOCK } else { abi::ATTENTION_BLOCK };
            (block, rows(2 * tile + 2 * queries) + 2 * queries * 4)
        }
        ("attention_decode_split", _) => (abi::ATTENTION_DECODE_BLOCK, abi::ATTENTION_DECODE_BLOCK * (2 * dim + 4)),
        ("attention_bwd", "delta") => (abi::ATTENTION_BLOCK, 0),
        ("attention_decode", "merge") => (abi::ATTENTION_DECODE_BLOCK, 0),
        ("gemm_nf4_nn" | "gemm_nf4_nt", "128") => (abi::GEMM_128_BLOCK, abi::GEMM_NF4_128_SHARED),
        ("gemm_nf4_nn" | "gemm_nf4_nt", "64") => (abi::GEMM_64_BLOCK, abi::GEMM_NF4_64_SHARED),
        ("gemm_nf4_nn_128" | "gemm_nf4_nt_128", "f16") => (abi::GEMM_128_BLOCK, abi::GEMM_NF4_128_SHARED),
        ("gemm_nf4_nn_64" | "gemm_nf4_nt_64", "f16") => (abi::GEMM_64_BLOCK, abi::GEMM_NF4_64_SHARED),
        ("gemm_nn" | "gemm_nt" | "gemm_tn", "128") => (abi::GEMM_128_BLOCK, abi::GEMM_128_SHARED),
        ("gemm_nn" | "gemm_nt" | "gemm_tn", "64") => (abi::GEMM_64_BLOCK, abi::GEMM_64_SHARED),
        ("gemm_nn_128" | "gemm_nt_128", "sm90") => (abi::GEMM_SM90_BLOCK, abi::GEMM_SM90_128_SHARED),
        ("gemm_nn_256" | "gemm_nt_256", "sm90") => (abi::GEMM_SM90_BLOCK, abi::GEMM_SM90_256_SHARED),
        ("gemm_nt", "thin") => (abi::GEMM_THIN_BLOCK, abi::GEMM_THIN_SHARED),
        ("gemm_tn", "wide") => (abi::GEMM_WIDE_BLOCK, abi::GEMM_WIDE_SHARED),
        ("gemm_tn", "sum") => (abi::GEMM_SUM_BLOCK, 0),
        ("lora_bwd", "parts") => (abi::LORA_BWD_BLOCK, abi::LORA_BWD_SHARED),
        ("lora_bwd", "sum") => (abi::LORA_BWD_SUM_BLOCK, 0),
        ("gemm", "columns") => (abi::GEMM_COLUMNS_BLOCK, abi::GEMM_COLUMNS_SHARED),
        ("gemv_nf4", "8") => (abi::GEMV_BLOCK, abi::GEMV_NF4_8_SHARED),
        ("gemv_nf4", "32") => (abi::GEMV_BLOCK, abi::GEMV_NF4_32_SHARED),
        (gemv, "8") if gemv.starts_with("gemv_") => (abi::GEMV_BLOCK, abi::GEMV_8_SHARED),
        (gemv, "32") if gemv.starts_with("gemv_") => (abi::GEMV_BLOCK, abi::GEMV_32_SHARED),
        _ if kernel.starts_with("ggml_dequantise_") => (abi::GGML_BLOCK, abi::GGML_SHARED),
        ("rms_norm", "weight") => (abi::RMS_NORM_BLOCK, abi::RMS_NORM_SUMS),
        ("rms_norm", _) => (abi::RMS_NORM_BLOCK, abi::RMS_NORM_SHARED),
        ("layer_norm", "weight") => (abi::LAYER_NORM_BLOCK, abi::LAYER_NORM_SUMS),
        ("layer_norm", _) => (abi::LAYER_NORM_BLOCK, abi::LAYER_NORM_SHARED),
        ("cross_entropy", "live") => (abi::CROSS_ENTROPY_BLOCK, 0),
        ("cross_entropy", _) => (abi::CROSS_ENTROPY_BLOCK, bytes::<abi::CrossEntropySmem>()),
        ("embedding", "bwd") => (abi::EMBEDDING_BLOCK, bytes::<abi::EmbeddingSmem>()),
        ("embedding", _) => (abi::EMBEDDING_BLOCK, 0),
        ("grad_norm", _) => (abi::GRAD_NORM_BLOCK, abi::GRAD_NORM_BLOCK / abi::QE_WARP * 8),
        ("nf4", "mean") => (abi::NF4_MEAN_LANES, abi::NF4_MEAN_LANES * 8),
        ("nf4_quantise", "absmax") => (abi::NF4_BLOCK2, (abi::NF4_BLOCK2 + abi::NF4_BLOCK2 / abi::QE_WARP) * 4),
        ("nf4_quantise", _) => (abi::NF4_THREADS, 0),
        ("nf4_dequantise", _) => (abi::NF4_THREADS, 16 * 4),
        ("adamw", "step") => (abi::ADAMW_BLOCK, 0),
        ("adamw_step", "8bit") => (abi::ADAMW_BLOCK, 4 * 256 * 4),
        ("columns", _) => (abi::COLUMNS_BLOCK, 0),
        ("convert_f32", _) => (abi::CONVERT_BLOCK, 0),
        ("gelu", _) => (abi::GELU_BLOCK, 0),
        ("kv", "write") => (abi::KV_WRITE_BLOCK, 0),
        ("sample", "split") => (abi::SAMPLE_BLOCK, bytes::<abi::SampleSplitSmem>()),
        ("sample", _) => (abi::SAMPLE_BLOCK, bytes::<abi::SampleMergeSmem>()),
        ("rope", _) => (abi::ROPE_BLOCK, 0),
        ("swiglu", _) => (abi::SWIGLU_BLOCK, 0),
        _ => panic!("nothing is known of the launches of {kernel}: add its block and shared memory here"),
    }
}

fn bytes<T>() -> u32 {
    u32::try_from(size_of::<T>()).unwrap()
}

/// How many of a kernel's blocks a multiprocessor holds at once, the share of its threads that they are, and what keeps it
/// from more.
fn resident(arch: &str, registers: u32, (threads, shared): (u32, u32)) -> (u32, f64, &'static str) {
    let (l, warps) = (limits(arch), threads.div_ceil(abi::QE_WARP));
    let of_warp = (registers * abi::QE_WARP).next_multiple_of(256);
    let of_block = (shared + RESERVED).next_multiple_of(SHARED_UNIT);
    let by_shared = if shared > l.shared_of_block { 0 } else { l.shared / of_block };
    let (blocks, why) = [
        (l.threads / (warps * abi::QE_WARP), "threads"),
        (l.blocks, "blocks"),
        (4 * (PART_REGISTERS / of_warp) / warps, "registers"),
        (by_shared, "shared memory"),
    ]
    .into_iter()
    .min_by_key(|(blocks, _)| *blocks)
    .expect("there are four");
    (blocks, f64::from(blocks * warps * abi::QE_WARP) / f64::from(l.threads), why)
}

/// Worked out by hand.
#[test]
fn the_scarcest_resource_counts() {
    for (arch, registers, block, want) in [
        ("sm_86", 32, (256, 0), (6, 1.0, "threads")),
        ("sm_80", 32, (32, 0), (32, 0.5, "blocks")),
        ("sm_86", 126, (256, 49_152), (2, 1.0 / 3.0, "registers")),
        ("sm_80", 64, (128, 49_152), (3, 0.1875, "shared memory")),
        ("sm_90a", 255, (128, 0), (2, 0.125, "registers")),
        ("sm_120", 40, (128, 50_176), (2, 1.0 / 6.0, "shared memory")),
        ("sm_120", 40, (128, 50_177), (1, 1.0 / 12.0, "shared memory")),
        ("sm_89", 40, (128, 101_376), (1, 1.0 / 12.0, "shared memory")),
        ("sm_89", 40, (128, 101_377), (0, 0.0, "shared memory")),
    ] {
        let (blocks, share, why) = resident(arch, registers, block);
        assert_eq!((blocks, why), (want.0, want.2), "{arch} {registers} {block:?}");
        assert!((share - want.1).abs() < 1e-12, "{arch} {registers} {block:?}: {share}");
    }
}

#[test]
fn every_kernel_fits_and_hot_ones_do_not_spill() {
    assert!(TOOLKIT.is_some(), "the tests compile the kernels: run `make setup`");
    assert!(USAGE.len() >= 5, "only {} kernels were reported", USAGE.len());
    println!(
        "{:<34} {:>7} {:>9} {:>6} {:>7} {:>7} {:>6} {:>6}  occupancy",
        "kernel", "arch", "registers", "stack", "spilled", "threads", "shared", "blocks"
    );
    let mut too_large = Vec::new();
    for u in USAGE {
        let (threads, shared) = launch(u.kernel);
        let (blocks, share, why) = resident(u.arch, u.registers, (threads, shared));
        println!(
            "{:<34} {:>7} {:>9} {:>6} {:>7} {threads:>7} {shared:>6} {blocks:>6}  {:.0} % by {why}",
            u.kernel,
            u.arch,
            u.registers,
            u.stack,
            u.spilled,
            100.0 * share
        );
        if blocks == 0 {
            too_large.push(format!("{} does not fit on {}: {why}", u.kernel, u.arch));
        }
    }
    assert!(too_large.is_empty(), "{}", too_large.join("\n"));
    let spills: Vec<String> = USAGE
        .iter()
        .filter(|u| u.spilled > 0 && HOT.iter().any(|file| u.file.starts_with(file)))
        .map(|u| format!("{} on {} spills {} bytes", u.kernel, u.arch, u.spilled))
        .collect();
    assert!(spills.is_empty(), "{}", spills.join("\n"));
}

/// The table of tiles counts on as many resident blocks as the compiled kernels have.
#[test]
fn the_table_of_tiles_knows_the_resident_blocks() {
    assert!(TOOLKIT.is_some(), "the tests compile the kernels: run `make setup`");
    let mut seen = 0;
    for u in USAGE {
        if u.kernel.ends_with("_sm90") {
            assert_eq!(resident(u.arch, u.registers, launch(u.kernel)).0, 1, "{} on {}", u.kernel, u.arch);
            continue;
        }
        let of_bf16 = u.kernel.trim_end_matches("_f16"); // those of f16 go by the same rules
        let Some((stem, tile @ ("128" | "64"))) = of_bf16.rsplit_once('_') else { continue };
        let kind = match stem {
            "gemm_nt" => Kind::Nt,
            "gemm_nn" => Kind::Nn,
            "gemm_tn" => Kind::Tn,
            "gemm_nf4_nt" => Kind::Nf4Nt,
            "gemm_nf4_nn" => Kind::Nf4Nn,
            _ => continue,
        };
        let number: u32 = u.arch.trim_start_matches("sm_").trim_end_matches('a').parse().unwrap();
        let chip = Chip { capability: (number / 10, number % 10), multiprocessors: 1 };
        let [large, small] = rule_of(chip, kind).resident;
        let (blocks, ..) = resident(u.arch, u.registers, launch(u.kernel));
        assert_eq!(blocks as usize, if tile == "128" { large } else { small }, "{} on {}", u.kernel, u.arch);
        seen += 1;
    }
    assert_eq!(seen % 14, 0, "both tiles of five kinds, two of them in f16 too, on every architecture: {seen}");
    assert!(seen > 0, "no kernel was found");
}
