//! `env`: what this machine offers, for bug reports and for the question "will it run here".

use crate::device::{self, Gpu, kernels};

/// The report, a line each: `name  value`.
pub(super) fn report() -> String {
    let cores = std::thread::available_parallelism().map_or("unknown".to_string(), |n| n.to_string());
    let features = cpu_features();
    let mut rows = vec![
        ("qlora-engine", format!("{} ({})", env!("CARGO_PKG_VERSION"), profile())),
        ("platform", format!("{} {}", std::env::consts::OS, std::env::consts::ARCH)),
        ("processor", processor().unwrap_or_else(|| "unknown".to_string())),
        ("instructions", instruction_set(&features).to_string()),
        ("cpu features", if features.is_empty() { "none of those used".to_string() } else { features.join(" ") }),
        ("cores", cores),
        ("memory", memory().unwrap_or_else(|| "unknown".to_string())),
        ("gpu driver", driver()),
        ("gpu kernels", kernels()),
    ];
    rows.extend(gpus().into_iter().map(|gpu| ("gpu", gpu)));
    rows.push(("hub", std::env::var("HF_ENDPOINT").unwrap_or_else(|_| "https://huggingface.co".to_string())));
    rows.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

fn profile() -> &'static str {
    if cfg!(debug_assertions) { "development build" } else { "release build" }
}

/// Those features of the processor, and of the system's use of it, that compute kernels ask for.
fn cpu_features() -> Vec<&'static str> {
    let mut found = Vec::new();
    #[cfg(target_arch = "x86_64")]
    {
        macro_rules! look_for {
            ($($name:tt)*) => { $(if std::arch::is_x86_feature_detected!($name) { found.push($name); })* };
        }
        look_for!("avx" "avx2" "fma" "f16c" "avx512f" "avx512bw" "avx512vl" "avx512vnni" "avx512bf16");
    }
    #[cfg(target_arch = "aarch64")]
    {
        macro_rules! look_for {
            ($($name:tt)*) => { $(if std::arch::is_aarch64_feature_detected!($name) { found.push($name); })* };
        }
        look_for!("neon" "fp16" "bf16" "i8mm" "sve");
    }
    found
}

/// The widest of the instruction sets that kernels are written for.
fn instruction_set(features: &[&str]) -> &'static str {
    let has = |names: &[&str]| names.iter().all(|n| features.contains(n));
    if has(&["avx512f", "avx512bw", "avx512vl", "avx512bf16"]) {
        "AVX-512 with bf16"
    } else if has(&["avx512f"]) {
        "AVX-512"
    } else if has(&["avx2", "fma"]) {
        "AVX2"
    } else if has(&["neon"]) {
        "NEON"
    } else {
        "portable"
    }
}

/// The processor's name, where Linux tells it.
fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    let line = text.lines().find(|l| l.starts_with("model name"))?;
    Some(line.split_once(':')?.1.trim().to_string())
}

/// Total and available memory, where Linux tells it.
fn memory() -> Option<String> {
    let text = std::fs::read_to_string("/proc/meminfo").ok()?;
    let (total, free) = (meminfo(&text, "MemTotal:")?, meminfo(&text, "MemAvailable:")?);
    Some(format!("{:.1} GiB, {:.1} GiB of it available", gib(total), gib(free)))
}

/// A line of /proc/meminfo, in bytes.
fn meminfo(text: &str, name: &str) -> Option<u64> {
    let rest = text.lines().find_map(|l| l.strip_prefix(name))?;
    rest.trim().strip_suffix("kB")?.trim().parse::<u64>().ok()?.checked_mul(1024)
}

fn gib(bytes: u64) -> f64 {
    bytes as f64 / (1u64 << 30) as f64
}

/// NVIDIA's driver, by the CUDA version it offers.
fn driver() -> String {
    match device::driver_version() {
        Ok(Some((major, minor))) => format!("NVIDIA, for CUDA {major}.{minor}"),
        Ok(None) => "none found (libcuda.so.1)".to_string(),
        Err(e) => e.to_string(),
    }
}

/// What the kernels of this program were made with, and what they ask of the driver.
fn kernels() -> String {
    match (kernels::TOOLKIT, device::needed_driver()) {
        (Some((major, minor)), Some((_, driver))) => {
            format!("made with CUDA {major}.{minor}, for drivers from {driver} on")
        }
        _ => "none in this program: run `make setup`, then build again".to_string(),
    }
}

/// The GPUs, or why there is none.
fn gpus() -> Vec<String> {
    match device::cards() {
        Ok(cards) if cards.is_empty() => vec!["none: the driver shows none".to_string()],
        Ok(cards) => cards.iter().map(gpu).collect(),
        Err(e) => vec![format!("none: {e}")],
    }
}

fn gpu(card: &Gpu) -> String {
    let ((major, minor), gib) = (card.capability, gib(card.memory));
    let speed = card.bandwidth().map_or(String::new(), |b| format!(" at {:.0} GB/s", b / 1e9));
    let why_not = card.check().err().map_or(String::new(), |e| format!("; {e}"));
    let processors = card.multiprocessors;
    format!(
        "{}, compute capability {major}.{minor}, {processors} multiprocessors, {gib:.1} GiB{speed}{why_not}",
        card.name
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_report_is_complete() {
        let report = report();
        for name in ["qlora-engine", "instructions", "cores", "memory", "gpu driver", "gpu kernels", "gpu"] {
            assert!(report.lines().any(|l| l.starts_with(name)), "{name} is missing:\n{report}");
        }
        assert!(report.lines().all(|l| l.split_whitespace().count() > 1), "a value is missing:\n{report}");
    }

    #[test]
    fn the_widest_instruction_set_is_named() {
        assert_eq!(instruction_set(&[]), "portable");
        assert_eq!(instruction_set(&["avx", "avx2", "fma"]), "AVX2");
        assert_eq!(instruction_set(&["avx2", "fma", "avx512f"]), "AVX-512");
        let all = ["avx2", "fma", "avx512f", "avx512bw", "avx512vl", "avx512bf16"];
        assert_eq!(instruction_set(&all), "AVX-512 with bf16");
    }

    #[test]
    fn meminfo_in_bytes() {
        let text = "MemTotal:        4019796 kB\nMemFree: x kB\n";
        assert_eq!(meminfo(text, "MemTotal:"), Some(4_019_796 * 1024));
        assert_eq!(meminfo(text, "MemFree:"), None);
        assert_eq!(meminfo(text, "MemAvailable:"), None);
    }
}
