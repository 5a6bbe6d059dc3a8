//! What the compiler made of the kernels. `make kernels-report` prints the table.

use qlora_engine::device::abi;
use qlora_engine::device::kernels::{TOOLKIT, USAGE};

/// Files whose kernels must not spill: a spilled register costs a memory access in a loop that is made of few.
const HOT: [&str; 6] = ["gemm", "gemv", "ggml", "linear", "attention", "rms_norm"];

/// (registers, threads) an SM holds: CUDA C++ Programming Guide, technical specifications by compute capability.
fn limits(arch: &str) -> (u32, u32) {
    let threads = if ["sm_80", "sm_90a"].contains(&arch) { 2048 } else { 1536 };
    (65_536, threads)
}

/// Share of the threads of an SM that can be resident, as registers allow: they are given to warps in units of 256.
fn occupancy(arch: &str, registers: u32) -> f64 {
    let (file, threads) = limits(arch);
    let warp = (registers * abi::QE_WARP).next_multiple_of(256);
    let warps = (file / warp).min(threads / abi::QE_WARP);
    f64::from(warps * abi::QE_WARP) / f64::from(threads)
}

#[test]
fn hot_kernels_do_not_spill() {
    assert!(TOOLKIT.is_some(), "the tests compile the kernels: run `make setup`");
    assert!(USAGE.len() >= 5, "only {} kernels were reported", USAGE.len());
    println!(
        "{:<34} {:>7} {:>9} {:>6} {:>7}  occupancy by registers",
        "kernel", "arch", "registers", "stack", "spilled"
    );
    for u in USAGE {
        let share = 100.0 * occupancy(u.arch, u.registers);
        println!("{:<34} {:>7} {:>9} {:>6} {:>7}  {share:.0} %", u.kernel, u.arch, u.registers, u.stack, u.spilled);
    }
    let spills: Vec<String> = USAGE
        .iter()
        .filter(|u| u.spilled > 0 && HOT.iter().any(|file| u.file.starts_with(file)))
        .map(|u| format!("{} on {} spills {} bytes", u.kernel, u.arch, u.spilled))
        .collect();
    assert!(spills.is_empty(), "{}", spills.join("\n"));
}
