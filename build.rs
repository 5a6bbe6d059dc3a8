//! kernels/*.cu -> one fatbin a file (where nvcc is found), host-run kernels (feature `host-kernels`), the Rust view of
//! the parameter structs (feature `bindings`), and the table of kernels that src/device/kernel.rs includes.
//!
//! Nothing here asks what GPU this machine has.

use std::collections::hash_map::DefaultHasher;
use std::env;
use std::fmt::Write as _;
use std::fs;
use std::hash::{Hash, Hasher};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;

/// What is compiled for: machine code for each, and PTX of the oldest for cards that come later.
const ARCHITECTURES: [&str; 6] = [
    "arch=compute_80,code=[sm_80,compute_80]",
    "arch=compute_86,code=sm_86",
    "arch=compute_89,code=sm_89",
    "arch=compute_90a,code=sm_90a",
    "arch=compute_120,code=sm_120",
    "arch=compute_120,code=compute_120",
];
/// Files of this ending hold `wgmma`, which only compute capability 9.0 has.
const HOPPER_ONLY: &str = "_sm90";

/// Kernels that are wrong on purpose, on the CPU only.
#[cfg(feature = "host-kernels")]
const PROBES: &str = "kernels/host/probes.cu";

/// A `QE_KERNEL(name, Params, threads)` line.
struct Kernel {
    name: String,
    params: String,
    file: String,
}

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-changed=kernels");
    for name in ["CUDA_HOME", "LIBCLANG_PATH", "QLORA_WRITE_BINDINGS", "QLORA_NO_NVCC"] {
        println!("cargo:rerun-if-env-changed={name}");
    }
    let out = PathBuf::from(env::var("OUT_DIR").unwrap());
    let sources = sources();
    let kernels: Vec<Kernel> = sources.iter().flat_map(|path| kernels_of(path)).collect();
    let toolkit = find_nvcc();
    let fatbins = match &toolkit {
        Some(toolkit) => compile_fatbins(toolkit, &sources, &out),
        None => {
            println!("cargo:warning=no CUDA compiler found: this build runs on the CPU only (`make setup` brings one)");
            Vec::new()
        }
    };
    let on_host = host_kernels(&sources, &out);
    #[cfg(feature = "bindings")]
    bindings(&out);
    fs::write(out.join("kernels.rs"), table(&kernels, &on_host, &fatbins, toolkit.as_ref())).unwrap();
}

/// kernels/*.cu, by name.
fn sources() -> Vec<PathBuf> {
    let mut all: Vec<PathBuf> = fs::read_dir("kernels").unwrap().map(|e| e.unwrap().path()).collect();
    all.retain(|p| p.extension().is_some_and(|e| e == "cu"));
    all.sort();
    all
}

fn stem(path: &Path) -> String {
    path.file_stem().unwrap().to_string_lossy().into_owned()
}

fn kernels_of(path: &Path) -> Vec<Kernel> {
    let text = fs::read_to_string(path).unwrap();
    let args = text.lines().filter_map(|l| l.strip_prefix("QE_KERNEL(")).map(|l| l.split(')').next().unwrap_or(l));
    args.map(|args| {
        let parts: Vec<&str> = args.split(',').map(str::trim).collect();
        let [name, params, ..] = parts[..] else { panic!("{}: QE_KERNEL({args}): two names expected", path.display()) };
        Kernel { name: name.into(), params: params.into(), file: stem(path) }
    })
    .collect()
}

struct Toolkit {
    nvcc: PathBuf,
    version: (u32, u32),
}

/// nvcc of CUDA_HOME, of PATH, or of .toolchain/ (which `make setup` fills), if it is 12.8 or newer.
fn find_nvcc() -> Option<Toolkit> {
    if env::var_os("QLORA_NO_NVCC").is_some() {
        return None;
    }
    let home = env::var_os("CUDA_HOME").map(|home| PathBuf::from(home).join("bin"));
    let path = env::var_os("PATH").map(|p| env::split_paths(&p).collect::<Vec<_>>()).unwrap_or_default();
    let own = env::current_dir().unwrap().join(".toolchain/nvidia/cu13/bin");
    let nvcc = home.into_iter().chain(path).chain([own]).map(|dir| dir.join("nvcc")).find(|nvcc| nvcc.is_file())?;
    println!("cargo:rerun-if-changed={}", nvcc.display());
    let text = Command::new(&nvcc).arg("--version").output().ok()?.stdout;
    let text = String::from_utf8_lossy(&text).into_owned();
    let release = text.split("release ").nth(1).and_then(|t| t.split(',').next()).unwrap_or_default();
    let (major, minor) = release.split_once('.').unwrap_or_default();
    let version = (major.parse().unwrap_or(0), minor.parse().unwrap_or(0));
    if version < (12, 8) {
        println!("cargo:warning={} is release {release}; 12.8 or newer is needed, so it is not used", nvcc.display());
        return None;
    }
    Some(Toolkit { nvcc, version })
}

/// Compiles what no build of this target folder has compiled yet, as many files at once as cargo has jobs. Returns (stem,
/// fatbin).
fn compile_fatbins(toolkit: &Toolkit, sources: &[PathBuf], out: &Path) -> Vec<(String, PathBuf)> {
    // target/debug/build/NAME/out: what features and profiles differ in does not concern nvcc.
    let cache = out.ancestors().nth(4).unwrap_or(out).join("fatbins");
    fs::create_dir_all(&cache).unwrap();
    let jobs = env::var("NUM_JOBS").ok().and_then(|n| n.parse().ok()).unwrap_or(1);
    let queue = Mutex::new(sources.iter());
    let done = Mutex::new((Vec::new(), Vec::new()));
    std::thread::scope(|scope| {
        for _ in 0..jobs {
            scope.spawn(|| {
                loop {
                    let Some(source) = queue.lock().unwrap().next() else { break };
                    let compiled = compile_fatbin(toolkit, source, &cache, out);
                    let (fatbins, failures) = &mut *done.lock().unwrap();
                    match compiled {
                        Ok(fatbin) => fatbins.push((stem(source), fatbin)),
                        Err(why) => failures.push(why),
                    }
                }
            });
        }
    });
    let (mut fatbins, failures) = done.into_inner().unwrap();
    assert!(failures.is_empty(), "{}", failures.join("\n"));
    fatbins.sort();
    fatbins
}

fn compile_fatbin(toolkit: &Toolkit, source: &Path, cache: &Path, out: &Path) -> Result<PathBuf, String> {
    let mut command = Command::new(&toolkit.nvcc);
    command.args(["-fatbin", "-std=c++17", "-O3", "-Ikernels", "-Werror", "all-warnings", "-Xptxas", "-v"]);
    let hopper = stem(source).ends_with(HOPPER_ONLY);
    for arch in ARCHITECTURES.iter().filter(|a| !hopper || a.contains("90a")) {
        command.args(["-gencode", arch]);
    }
    if toolkit.version.0 >= 13 {
        command.arg("--compress-mode=size");
    }
    let mut text = String::new();
    read_with_includes(source, &mut Vec::new(), &mut text);
    let mut hasher = DefaultHasher::new();
    (command.get_args().collect::<Vec<_>>(), toolkit.version, text).hash(&mut hasher);
    let to = cache.join(format!("{}-{:016x}.fatbin", stem(source), hasher.finish()));
    if to.exists() {
        return Ok(to);
    }
    // Another build may be at the same: the file is whole or not there.
    let mine = out.join(stem(source)).with_extension("fatbin");
    let done = command.arg("-o").arg(&mine).arg(source).output();
    let done = done.map_err(|e| format!("{}: {e}", toolkit.nvcc.display()))?;
    if !done.status.success() {
        let text = String::from_utf8_lossy(&done.stderr).into_owned() + &String::from_utf8_lossy(&done.stdout);
        return Err(format!("nvcc could not compile {}:\n{text}", source.display()));
    }
    fs::write(to.with_extension("ptxas"), done.stderr).map_err(|e| format!("{}: {e}", to.display()))?;
    fs::rename(&mine, &to).map_err(|e| format!("{}: {e}", to.display()))?;
    Ok(to)
}

/// What the assembler said of each kernel on each architecture, as Rust: `Usage { .. },` a line.
fn usages(fatbins: &[(String, PathBuf)]) -> String {
    let mut s = String::new();
    for (file, path) in fatbins {
        let text = fs::read_to_string(path.with_extension("ptxas")).unwrap();
        let (mut name, mut arch, mut spills) = ("", "", (0u32, 0u32, 0u32));
        for line in text.lines() {
            let numbers: Vec<u32> = line.split_whitespace().filter_map(|w| w.parse().ok()).collect();
            if line.contains("Compiling entry function") {
                let quoted: Vec<&str> = line.split('\'').collect();
                (name, arch) = (quoted[1], quoted[3]);
            } else if line.contains("bytes stack frame") {
                spills = (numbers[0], numbers[1], numbers[2]);
            } else if line.contains("Used") && line.contains("registers") && !name.is_empty() {
                let (registers, (stack, stores, loads)) = (numbers[0], spills);
                let spilled = stores + loads;
                writeln!(s, "Usage {{ kernel: {name:?}, file: {file:?}, arch: {arch:?}, registers: {registers}, stack: {stack}, spilled: {spilled} }},").unwrap();
                name = "";
            }
        }
    }
    s
}

/// Appends a file and what it includes from kernels/, each once.
fn read_with_includes(path: &Path, seen: &mut Vec<PathBuf>, text: &mut String) {
    let Ok(path) = path.canonicalize() else { return };
    if seen.contains(&path) {
        return;
    }
    let own = fs::read_to_string(&path).unwrap();
    text.push_str(&own);
    seen.push(path.clone());
    for name in own.lines().filter_map(|l| l.trim().strip_prefix("#include \"")?.strip_suffix('"')) {
        for folder in [path.parent().unwrap_or(Path::new(".")), Path::new("kernels")] {
            read_with_includes(&folder.join(name), seen, text);
        }
    }
}

#[cfg(not(feature = "host-kernels"))]
fn host_kernels(_: &[PathBuf], _: &Path) -> Vec<Kernel> {
    Vec::new()
}

/// Compiles the kernels for the CPU, the probes among them, and returns them.
#[cfg(feature = "host-kernels")]
fn host_kernels(sources: &[PathBuf], out: &Path) -> Vec<Kernel> {
    let sources: Vec<PathBuf> = sources.iter().cloned().chain([PROBES.into()]).collect();
    let kernels: Vec<Kernel> = sources.iter().flat_map(|path| kernels_of(path)).collect();
    let asan = env::var_os("CARGO_FEATURE_HOST_ASAN").is_some();
    compile_host(&sources, asan);
    if !asan {
        compile_stub(&kernels, out);
    }
    kernels
}

/// The C++ compiler, as host-run kernels need it.
#[cfg(feature = "host-kernels")]
fn host_compiler() -> cc::Build {
    let mut build = cc::Build::new();
    build.cpp(true).std("c++17").opt_level(2).debug(true).include("kernels").warnings(true).warnings_into_errors(true);
    // No C++ library is linked; fused multiply-adds only where a kernel asks for them.
    build.cpp_link_stdlib(None).flag("-fno-exceptions").flag("-fno-rtti").flag("-ffp-contract=off");
    build.flag("-Wno-unknown-pragmas").flag("-x").flag("c++");
    build
}

/// The same files as C++, with the scheduler that runs them.
#[cfg(feature = "host-kernels")]
fn compile_host(sources: &[PathBuf], asan: bool) {
    let mut build = host_compiler();
    if asan {
        build.flag("-fsanitize=address").flag("-fno-omit-frame-pointer");
        // A GPU faults on unaligned packs, which this machine reads; and an int that overflows is no address.
        build.flag("-fsanitize=alignment,signed-integer-overflow").flag("-fno-sanitize-recover=all");
        // rustc links without the compiler's default libraries, so the runtimes are named: the first whole, since what replaces
        // malloc is not otherwise asked for; from the first moment on (preinit).
        let [whole, preinit, undefined] = ["libasan.a", "libasan_preinit.o", "libubsan.a"].map(|name| {
            let mut compiler = build.get_compiler().to_command();
            let said = compiler.arg(format!("-print-file-name={name}")).output().expect("the C++ compiler runs");
            let path = PathBuf::from(String::from_utf8_lossy(&said.stdout).trim());
            assert!(path.is_file(), "host-asan: {name} of gcc is needed; apt-get install libgcc-dev brings it");
            path.display().to_string()
        });
        for arg in [&preinit, "-Wl,--whole-archive", &whole, "-Wl,--no-whole-archive", &undefined, "-lstdc++", "-lm"] {
            println!("cargo:rustc-link-arg={arg}");
        }
    }
    let twins = ["kernels/host/runtime.cpp", "kernels/host/wgmma.cpp"];
    build.files(sources).files(twins).compile("qe_host_kernels");
}

/// A `libcuda.so.1` whose launches run the host-run kernels, for tests/cuda_stub.rs, in a folder of its own.
#[cfg(feature = "host-kernels")]
fn compile_stub(kernels: &[Kernel], out: &Path) {
    let folder = out.join("stub");
    fs::create_dir_all(&folder).unwrap();
    println!("cargo:rustc-env=QLORA_STUB_CUDA={}", folder.display());
    let mut table = String::new();
    for Kernel { name, .. } in kernels {
        writeln!(table, "STUB_KERNEL({name})").unwrap();
    }
    fs::write(out.join("stub_kernels.inc"), table).unwrap();
    let library = folder.join("libcuda.so.1");
    let mut command = host_compiler().include(out).get_compiler().to_command();
    command.args(["-shared", "-Wl,-Bsymbolic", "-o"]).arg(&library).arg("kernels/host/stub_cuda.cpp");
    command.args(["-x", "none"]).arg(out.join("libqe_host_kernels.a"));
    let done = command.output().expect("the C++ compiler runs");
    assert!(done.status.success(), "{command:?}:\n{}", String::from_utf8_lossy(&done.stderr));
    // The name that is looked for first. A file of its own each time: a test that runs may have opened the last one.
    let first = folder.join("libcuda.so");
    let _ = fs::remove_file(&first);
    fs::copy(&library, &first).unwrap();
}

/// bindgen's view of kernels/*.h, held to the committed src/device/abi.rs (or written there on request).
#[cfg(feature = "bindings")]
fn bindings(out: &Path) {
    println!("cargo:rerun-if-changed=src/device/abi.rs");
    let mut headers: Vec<PathBuf> = fs::read_dir("kernels").unwrap().map(|e| e.unwrap().path()).collect();
    headers.retain(|p| p.extension().is_some_and(|e| e == "h"));
    headers.sort();
    let names = headers.iter().map(|h| h.file_name().unwrap().to_string_lossy().into_owned());
    let all: String = names.chain(["host/probes.h".into()]).map(|h| format!("#include \"{h}\"\n")).collect();
    let header = "//! What Rust and the kernels share: parameter structs and constants, made by bindgen from kernels/*.h.\n\
                  //! Do not edit: change the header and run `make bindings`.\n\
                  #![allow(missing_docs, non_camel_case_types)]\n\
                  use half::bf16;";
    let text = bindgen::Builder::default()
        .header_contents("kernels.h", &all)
        .clang_args(["-DQE_BINDGEN", "-Ikernels", "-xc"])
        .blocklist_type("bf16|__.*|_.*|wchar_t|max_align_t|size_t")
        .blocklist_var("_.*|true_|false_")
        .default_macro_constant_type(bindgen::MacroTypeVariation::Unsigned)
        .layout_tests(false)
        .disable_header_comment()
        .raw_line(header)
        .generate()
        .expect("bindgen reads the kernels' headers")
        .to_string();
    let fresh = out.join("abi.rs");
    fs::write(&fresh, text).unwrap();
    // As `cargo fmt` leaves it.
    let formatted = Command::new("rustfmt").args(["--edition", "2024"]).arg(&fresh).status();
    assert!(formatted.is_ok_and(|s| s.success()), "rustfmt formats the bindings");
    let text = fs::read_to_string(&fresh).unwrap();
    let committed = Path::new("src/device/abi.rs");
    if env::var_os("QLORA_WRITE_BINDINGS").is_some() {
        fs::write(committed, text).unwrap();
    } else if fs::read_to_string(committed).ok() != Some(text) {
        panic!("src/device/abi.rs is not what kernels/*.h say: run `make bindings`");
    }
}

/// The Rust that src/device/kernel.rs includes.
fn table(kernels: &[Kernel], on_host: &[Kernel], fatbins: &[(String, PathBuf)], toolkit: Option<&Toolkit>) -> String {
    let mut s = String::new();
    let mut params: Vec<&str> = kernels.iter().chain(on_host).map(|k| k.params.as_str()).collect();
    params.sort_unstable();
    params.dedup();
    for p in params {
        writeln!(
            s,
            "// SAFETY: made by bindgen from the struct that the kernel takes.\nunsafe impl Params for abi::{p} {{}}"
        )
        .unwrap();
    }
    let mut all: Vec<&Kernel> = kernels.iter().chain(on_host).collect();
    all.sort_by_key(|k| &k.name);
    all.dedup_by_key(|k| &k.name);
    for Kernel { name, params, file } in all {
        let constant = name.to_uppercase();
        writeln!(s, "/// `{name}` of kernels/{file}.cu.").unwrap();
        writeln!(s, "pub const {constant}: Kernel<abi::{params}> = Kernel::new({name:?}, {file:?});").unwrap();
    }
    writeln!(s, "/// Ending of the files whose kernels only compute capability 9.0 can run.").unwrap();
    writeln!(s, "pub(crate) const HOPPER_ONLY: &str = {HOPPER_ONLY:?};").unwrap();
    writeln!(s, "/// Every kernel and its file.\npub(crate) static ALL: &[(&str, &str)] = &[").unwrap();
    kernels.iter().for_each(|k| writeln!(s, "({:?}, {:?}),", k.name, k.file).unwrap());
    writeln!(s, "];\n/// Machine code by file.\npub(crate) static FATBINS: &[(&str, &[u8])] = &[").unwrap();
    fatbins.iter().for_each(|(stem, path)| writeln!(s, "({stem:?}, include_bytes!({path:?})),").unwrap());
    writeln!(s, "];\n/// What the compiler made of each kernel on each architecture.\npub static USAGE: &[Usage] = &[")
        .unwrap();
    s += &usages(fatbins);
    let version = toolkit.map(|t| t.version);
    writeln!(
        s,
        "];\n/// Release of the compiler they were made with.\npub const TOOLKIT: Option<(u32, u32)> = {version:?};"
    )
    .unwrap();
    writeln!(s, "#[cfg(feature = \"host-kernels\")]\nunsafe extern \"C\" {{").unwrap();
    for Kernel { name, .. } in on_host {
        writeln!(s, "fn qe_host_{name}(params: *const std::ffi::c_void);\nstatic qe_host_{name}_threads: u32;")
            .unwrap();
    }
    writeln!(s, "}}\n/// Host-run kernels: name, entry, most threads a block.").unwrap();
    writeln!(s, "#[cfg(feature = \"host-kernels\")]\npub(crate) static HOST: &[crate::device::host::Entry] = &[")
        .unwrap();
    for Kernel { name, .. } in on_host {
        writeln!(s, "crate::device::host::Entry {{ name: {name:?}, run: qe_host_{name}, threads: &raw const qe_host_{name}_threads }},").unwrap();
    }
    s + "];\n"
}
