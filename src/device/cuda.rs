//! A GPU by way of NVIDIA's driver: one stream, its memory, kernels and graphs.
//!
//! [`driver_version`] is asked before anything else is called: without the driver's library nothing can be.

use std::collections::HashMap;
use std::ffi::{CStr, CString, c_char, c_int, c_uint};
use std::path::{Path, PathBuf};
use std::ptr;
use std::sync::Mutex;
use std::time::Duration;

use super::driver::types::{self as sys, CUdevice_attribute as Attr, CUfunction_attribute as FuncAttr};
use super::driver::{self, is_present};
use super::kernel::kernels;
use super::lock;
use super::queue::{Said, Work};
use super::tuning::{Chip, HOPPER};
use crate::error::{Error, Result};

/// The oldest cards: asynchronous copies to shared memory and bf16 products came with them.
const OLDEST: (u32, u32) = (8, 0);
/// Folder of `FILE.fatbin` to load kernels from instead of those in the binary.
const FOLDER: &str = "QLORA_KERNELS";
/// Dynamic shared memory that a kernel may have without asking for more.
const SHARED_BY_DEFAULT: u32 = 48 << 10;
/// Pinned memory on the way to the GPU: two blocks, one filled while the other is copied.
const STAGING_BYTES: usize = 8 << 20;
/// Flags of memory that kernels read in place, whichever context made it (cuda.h: CU_MEMHOSTALLOC_PORTABLE and _DEVICEMAP).
const READ_BY_KERNELS: c_uint = 1 | 2;
/// Most bytes that [`Cuda::read_later`] takes.
pub(super) const LATER_BYTES: usize = 4096;

/// First driver of each CUDA version, by NVIDIA's table (CUDA toolkit release notes, table 3).
const DRIVERS: [((u32, u32), u32); 11] = [
    ((12, 0), 525),
    ((12, 1), 530),
    ((12, 2), 535),
    ((12, 3), 545),
    ((12, 4), 550),
    ((12, 5), 555),
    ((12, 6), 560),
    ((12, 8), 570),
    ((12, 9), 575),
    ((13, 0), 580),
    ((13, 1), 590),
];

fn folder() -> Option<PathBuf> {
    std::env::var_os(FOLDER).filter(|folder| !folder.is_empty()).map(PathBuf::from)
}

/// Calls the driver. An error becomes its text, with the call's name.
macro_rules! call {
    ($f:ident($($arg:expr),* $(,)?)) => {
        // SAFETY: the library is there (see above). Handles are those that `Cuda` made and still holds, on the context that
        // `bind` made current; pointers lead to variables or memory that outlive the call, or, for asynchronous copies, to
        // memory that is kept until an event or a synchronisation says that they are done.
        unsafe { driver::$f($($arg),*) }
    };
}

/// The CUDA version of the driver; None where there is no driver.
///
/// # Errors
/// [`Error::Gpu`] if its library is there but does not answer.
pub fn driver_version() -> Result<Option<(u32, u32)>> {
    if !is_present() {
        return Ok(None);
    }
    let mut version = 0;
    call!(cuDriverGetVersion(&mut version)).map_err(Error::Gpu)?;
    let version = u32::try_from(version).unwrap_or(0);
    Ok(Some((version / 1000, version % 1000 / 10)))
}

/// The CUDA version that a driver must have for the kernels of this binary, and the first driver that has it; None without
/// kernels.
pub fn needed_driver() -> Option<((u32, u32), u32)> {
    let version = kernels::TOOLKIT.map(|(major, _)| if major >= 13 { (13, 0) } else { (12, 8) })?;
    Some((version, driver_number(version)?))
}

fn driver_number(version: (u32, u32)) -> Option<u32> {
    DRIVERS.iter().find(|(v, _)| *v == version).map(|(_, number)| *number)
}

/// Says so if there is a driver, but this binary was built without kernels for its GPU.
pub fn built_without_kernels() -> Option<String> {
    let none = kernels::FATBINS.is_empty() && folder().is_none();
    (none && is_present()).then(|| {
        "an NVIDIA driver is here, but this program was built without GPU kernels and runs on the CPU; \
         for the GPU run `make setup`, then build again"
            .to_string()
    })
}

/// A GPU, as its driver describes it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Gpu {
    pub name: String,
    /// Compute capability.
    pub capability: (u32, u32),
    pub multiprocessors: u32,
    /// Bytes in all.
    pub memory: u64,
    /// Most shared memory a block, in bytes.
    pub shared: u32,
    /// Bytes of the second-level cache.
    pub l2: u32,
    /// Of the processors, in kHz.
    pub clock: u32,
    /// In kHz.
    pub memory_clock: u32,
    /// Width of the bus to memory, in bits.
    pub memory_bus: u32,
}

impl Gpu {
    /// Bytes a second between memory and processors; None if the driver does not tell. Memory transfers twice a clock.
    pub fn bandwidth(&self) -> Option<f64> {
        let bandwidth = 2.0 * f64::from(self.memory_clock) * 1e3 * f64::from(self.memory_bus) / 8.0;
        (bandwidth > 0.0).then_some(bandwidth)
    }

    /// Peak of dense bf16 products summed in f32, in FLOP/s: multiply-adds a clock and processor by compute capability
    /// (NVIDIA's architecture white papers; GeForce halves the rate when the sums are f32).
    pub fn flops(&self) -> f64 {
        let each = match self.capability {
            (8, 0) => 2048.0,
            (9, 0) => 4096.0,
            (10, _) => 8192.0,
            _ => 512.0,
        };
        each * f64::from(self.multiprocessors) * f64::from(self.clock) * 1e3
    }

    /// What a choice of kernels depends on.
    pub fn chip(&self) -> Chip {
        Chip { capability: self.capability, multiprocessors: self.multiprocessors }
    }

    /// # Errors
    /// [`Error::Gpu`] if it is too old for the kernels.
    pub fn check(&self) -> Result<()> {
        if self.capability >= OLDEST {
            return Ok(());
        }
        let ((major, minor), (want, least)) = (self.capability, OLDEST);
        let why = format!(
            "{} has compute capability {major}.{minor}; {want}.{least} is needed (Ampere, from 2020)",
            self.name
        );
        Err(Error::Gpu(why))
    }
}

/// The GPUs of this machine.
///
/// # Errors
/// [`Error::Gpu`] if there is no driver, or if it is too old for this binary's kernels, or refuses.
pub fn cards() -> Result<Vec<Gpu>> {
    initialise()?;
    let mut count = 0;
    call!(cuDeviceGetCount(&mut count)).map_err(Error::Gpu)?;
    (0..count).map(|i| card(device(i)?).map_err(Error::Gpu)).collect()
}

fn initialise() -> Result<()> {
    let Some(version) = driver_version()? else {
        return Err(Error::Gpu("there is no NVIDIA driver here (libcuda.so.1)".into()));
    };
    let (needed, number) = needed_driver().unwrap_or(DRIVERS[0]);
    if version < needed {
        let made = kernels::TOOLKIT
            .map_or_else(String::new, |(major, minor)| format!("; its kernels were made with CUDA {major}.{minor}"));
        let why = format!(
            "the NVIDIA driver offers CUDA {}.{}; this program needs {}.{}, which comes with driver {number}{made}",
            version.0, version.1, needed.0, needed.1
        );
        return Err(Error::Gpu(why));
    }
    call!(cuInit(0)).map_err(Error::Gpu)
}

fn device(ordinal: c_int) -> Result<sys::CUdevice> {
    let mut device = 0;
    call!(cuDeviceGet(&mut device, ordinal)).map_err(Error::Gpu)?;
    Ok(device)
}

fn card(device: sys::CUdevice) -> Said<Gpu> {
    let mut name = [0u8; 256];
    call!(cuDeviceGetName(name.as_mut_ptr().cast::<c_char>(), 255, device))?;
    let name = CStr::from_bytes_until_nul(&name).map_or("?".into(), |n| n.to_string_lossy().into_owned());
    let mut memory = 0usize;
    call!(cuDeviceTotalMem_v2(&mut memory, device))?;
    let attribute = |which| {
        let mut value = 0;
        call!(cuDeviceGetAttribute(&mut value, which, device))?;
        Ok::<u32, String>(u32::try_from(value).unwrap_or(0))
    };
    Ok(Gpu {
        name,
        capability: (
            attribute(Attr::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR)?,
            attribute(Attr::CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MINOR)?,
        ),
        multiprocessors: attribute(Attr::CU_DEVICE_ATTRIBUTE_MULTIPROCESSOR_COUNT)?,
        memory: memory as u64,
        shared: attribute(Attr::CU_DEVICE_ATTRIBUTE_MAX_SHARED_MEMORY_PER_BLOCK_OPTIN)?,
        l2: attribute(Attr::CU_DEVICE_ATTRIBUTE_L2_CACHE_SIZE)?,
        clock: attribute(Attr::CU_DEVICE_ATTRIBUTE_CLOCK_RATE)?,
        memory_clock: attribute(Attr::CU_DEVICE_ATTRIBUTE_MEMORY_CLOCK_RATE)?,
        memory_bus: attribute(Attr::CU_DEVICE_ATTRIBUTE_GLOBAL_MEMORY_BUS_WIDTH)?,
    })
}

/// One GPU and its stream.
pub(super) struct Cuda {
    device: sys::CUdevice,
    /// The device's primary context; null before it is retained.
    context: sys::CUcontext,
    stream: sys::CUstream,
    card: Gpu,
    folder: Option<PathBuf>,
    loaded: Mutex<Loaded>,
    staging: Mutex<Staging>,
    /// A block of pinned memory for reading: whatever becomes of a copy, its target stays. Empty before `start`.
    reading: Mutex<Vec<Pinned>>,
    /// Pinned memory for reading later, not in use.
    landing: Mutex<Vec<Pinned>>,
}

// SAFETY: the driver's calls may come from any thread that has made the context current, as `bind` does; handles are
// neither changed nor freed before `drop`, and what is not thread-safe by itself is behind a mutex.
unsafe impl Send for Cuda {}
// SAFETY: as above.
unsafe impl Sync for Cuda {}

#[derive(Default)]
struct Loaded {
    modules: HashMap<&'static str, sys::CUmodule>,
    functions: HashMap<&'static str, Function>,
    /// Machine code, aligned. Kept: modules may be loaded from it later, kernel by kernel.
    images: Vec<Vec<u64>>,
}

#[derive(Clone, Copy)]
struct Function {
    handle: sys::CUfunction,
    /// Most threads a block.
    threads: u32,
    /// Most dynamic shared memory a block, in bytes.
    shared: u32,
}

/// Pinned memory of the CPU, and an event after its last use by the GPU.
pub(super) struct Pinned {
    at: *mut u8,
    event: sys::CUevent,
    /// Whether the event was recorded since it was last waited for.
    in_use: bool,
}

// SAFETY: the memory is owned; the event may be used from any thread.
unsafe impl Send for Pinned {}

/// Bytes on their way to the CPU.
pub(super) struct UnderWay(Pinned);

// SAFETY: only `Cuda::arrived` looks inside, by value.
unsafe impl Sync for UnderWay {}

/// The two blocks, filled one after the other from the beginning on.
#[derive(Default)]
struct Staging {
    blocks: Vec<Pinned>,
    current: usize,
    used: usize,
}

/// A graph as the driver runs it.
pub(super) struct Exec(sys::CUgraphExec);

// SAFETY: a handle; it is used under the context's own locks.
unsafe impl Send for Exec {}
// SAFETY: as above.
unsafe impl Sync for Exec {}

impl Cuda {
    /// The `ordinal`-th GPU, ready to run kernels.
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is no driver, no such GPU, no kernel for it in this binary, or if driver or GPU are too old.
    pub(super) fn open(ordinal: usize) -> Result<Self> {
        if !is_present() {
            return Err(Error::Gpu(
                "there is no NVIDIA driver here (libcuda.so.1); without a GPU the CPU is used".into(),
            ));
        }
        let folder = folder();
        if kernels::FATBINS.is_empty() && folder.is_none() {
            let why = "this program was built without GPU kernels; run `make setup`, then build again";
            return Err(Error::Gpu(why.into()));
        }
        let cards = cards()?;
        let Some(card) = cards.get(ordinal) else {
            let why = format!("GPU {ordinal} was asked for; the driver sees {} (CUDA_VISIBLE_DEVICES)", cards.len());
            return Err(Error::Gpu(why));
        };
        card.check()?;
        let mut cuda = Cuda {
            device: device(ordinal as c_int)?,
            context: ptr::null_mut(),
            stream: ptr::null_mut(),
            card: card.clone(),
            folder,
            loaded: Mutex::default(),
            staging: Mutex::default(),
            reading: Mutex::default(),
            landing: Mutex::default(),
        };
        cuda.start().map_err(Error::Gpu)?;
        Ok(cuda)
    }

    fn start(&mut self) -> Said<()> {
        call!(cuDevicePrimaryCtxRetain(&mut self.context, self.device))?;
        self.bind()?;
        // The default stream cannot be recorded, and one that waits for it neither.
        call!(cuStreamCreate(&mut self.stream, sys::CUstream_flags::CU_STREAM_NON_BLOCKING as u32))?;
        let blocks = [self.pinned(STAGING_BYTES)?, self.pinned(STAGING_BYTES)?];
        lock(&self.staging).blocks.extend(blocks);
        lock(&self.reading).push(self.pinned(STAGING_BYTES)?);
        Ok(())
    }

    /// Makes the context this thread's.
    fn bind(&self) -> Said<()> {
        call!(cuCtxSetCurrent(self.context))
    }

    pub(super) fn gpu(&self) -> &Gpu {
        &self.card
    }

    /// (free, all) bytes of the GPU's memory.
    pub(super) fn memory(&self) -> Said<(usize, usize)> {
        self.bind()?;
        let (mut free, mut all) = (0, 0);
        call!(cuMemGetInfo_v2(&mut free, &mut all))?;
        Ok((free, all))
    }

    pub(super) fn alloc(&self, bytes: usize) -> Said<u64> {
        self.bind()?;
        let mut addr = 0;
        call!(cuMemAlloc_v2(&mut addr, bytes.max(1))).map_err(|why| match self.memory() {
            Ok((free, all)) => {
                format!("{}: {bytes} bytes were asked for, {free} of {all} are free: {why}", self.card.name)
            }
            Err(_) => why,
        })?;
        Ok(addr)
    }

    /// Work that uses the memory has run when this returns.
    pub(super) fn free(&self, addr: u64) -> Said<()> {
        self.synchronize()?;
        call!(cuMemFree_v2(addr))
    }

    /// Page-locked memory of the CPU. With unified addressing, which every card here has, kernels know it by the same address.
    pub(super) fn lock_pages(&self, bytes: usize) -> Said<u64> {
        self.bind()?;
        let mut at = ptr::null_mut();
        call!(cuMemHostAlloc(&mut at, bytes.max(1), READ_BY_KERNELS))
            .map_err(|why| format!("{bytes} bytes of the CPU's memory were to be page-locked: {why}"))?;
        Ok(at as u64)
    }

    /// Gives back what [`Cuda::lock_pages`] gave. Work that uses it has run when this returns.
    pub(super) fn unlock_pages(&self, addr: u64) -> Said<()> {
        self.synchronize()?;
        call!(cuMemFreeHost(addr as *mut _))
    }

    fn pinned(&self, bytes: usize) -> Said<Pinned> {
        let mut at = ptr::null_mut();
        call!(cuMemHostAlloc(&mut at, bytes, 0))?;
        let mut pinned = Pinned { at: at.cast(), event: ptr::null_mut(), in_use: false };
        let made = call!(cuEventCreate(&mut pinned.event, sys::CUevent_flags::CU_EVENT_DISABLE_TIMING as u32));
        made.inspect_err(|_| self.unpin(&pinned))?;
        Ok(pinned)
    }

    /// Frees it; for clearing up, so that a failure has nobody to tell.
    fn unpin(&self, pinned: &Pinned) {
        if !pinned.event.is_null() {
            let _ = call!(cuEventDestroy_v2(pinned.event));
        }
        let _ = call!(cuMemFreeHost(pinned.at.cast()));
    }

    /// Enqueues a copy of `from`, by way of pinned memory; `from` may change when this returns.
    pub(super) fn write(&self, addr: u64, from: &[u8]) -> Said<()> {
        self.bind()?;
        let mut staging = lock(&self.staging);
        let mut done = 0;
        while done < from.len() {
            if staging.used == STAGING_BYTES {
                staging.turn(self.stream)?;
            }
            let n = (from.len() - done).min(STAGING_BYTES - staging.used);
            // SAFETY: `n` bytes from `used` on are inside the block, and no copy from them is under way: `turn` waited.
            let at = unsafe { staging.blocks[staging.current].at.add(staging.used) };
            // SAFETY: as above; pinned memory and the caller's slice do not overlap.
            unsafe { ptr::copy_nonoverlapping(from[done..].as_ptr(), at, n) };
            call!(cuMemcpyHtoDAsync_v2(addr + done as u64, at.cast(), n, self.stream))?;
            staging.used = (staging.used + n).next_multiple_of(64);
            done += n;
        }
        Ok(())
    }

    /// Waits for all work so far and copies.
    pub(super) fn read(&self, addr: u64, to: &mut [u8]) -> Said<()> {
        self.bind()?;
        let reading = lock(&self.reading);
        for (i, chunk) in to.chunks_mut(STAGING_BYTES).enumerate() {
            let (from, at) = (addr + (i * STAGING_BYTES) as u64, reading[0].at);
            call!(cuMemcpyDtoHAsync_v2(at.cast(), from, chunk.len(), self.stream))?;
            call!(cuStreamSynchronize(self.stream))?;
            // SAFETY: the block is as long as any chunk, and the copy into it is done.
            unsafe { ptr::copy_nonoverlapping(at, chunk.as_mut_ptr(), chunk.len()) };
        }
        Ok(())
    }

    /// Enqueues a copy of at most [`LATER_BYTES`] bytes to the CPU.
    pub(super) fn read_later(&self, addr: u64, bytes: usize) -> Said<UnderWay> {
        self.bind()?;
        let free = lock(&self.landing).pop();
        let mut pinned = match free {
            Some(pinned) => pinned,
            None => self.pinned(LATER_BYTES)?,
        };
        let copied = call!(cuMemcpyDtoHAsync_v2(pinned.at.cast(), addr, bytes, self.stream))
            .and_then(|()| call!(cuEventRecord(pinned.event, self.stream)));
        pinned.in_use = copied.is_ok();
        match copied {
            Ok(()) => Ok(UnderWay(pinned)),
            Err(why) => {
                lock(&self.landing).push(pinned);
                Err(why)
            }
        }
    }

    /// Waits for the `bytes` bytes of [`Cuda::read_later`].
    pub(super) fn arrived(&self, under_way: UnderWay, bytes: usize) -> Said<Vec<u8>> {
        let mut pinned = under_way.0;
        let waited = self.bind().and_then(|()| pinned.wait());
        // SAFETY: the copy wrote as many bytes (at most LATER_BYTES) and is done; after a failure nothing is read.
        let bytes = waited.map(|()| unsafe { std::slice::from_raw_parts(pinned.at, bytes) }.to_vec());
        lock(&self.landing).push(pinned);
        bytes
    }

    pub(super) fn fill(&self, addr: u64, byte: u8, bytes: usize) -> Said<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        call!(cuMemsetD8Async(addr, byte, bytes, self.stream))
    }

    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) -> Said<()> {
        if bytes == 0 {
            return Ok(());
        }
        self.bind()?;
        call!(cuMemcpyDtoDAsync_v2(to, from, bytes, self.stream))
    }

    pub(super) fn synchronize(&self) -> Said<()> {
        self.bind()?;
        call!(cuStreamSynchronize(self.stream))
    }

    /// Enqueues a launch; in debug builds waits for it, so that a fault is told with the kernel that made it.
    pub(super) fn launch(&self, work: &Work, recording: bool) -> Said<()> {
        self.bind()?;
        let function = self.function(work.name, work.file)?;
        if work.block > function.threads {
            return Err(format!("{} threads a block, this card can run it with {}", work.block, function.threads));
        }
        if work.shared > function.shared as usize {
            return Err(format!("{} bytes of shared memory a block, this card has {}", work.shared, function.shared));
        }
        let [x, y, z] = work.grid;
        let mut params = [work.params.cast_mut()];
        call!(cuLaunchKernel(
            function.handle,
            x,
            y,
            z,
            work.block,
            1,
            1,
            work.shared as u32,
            self.stream,
            params.as_mut_ptr(),
            ptr::null_mut(),
        ))?;
        if cfg!(debug_assertions) && !recording { self.synchronize() } else { Ok(()) }
    }

    fn function(&self, name: &'static str, file: &'static str) -> Said<Function> {
        let mut loaded = lock(&self.loaded);
        if let Some(function) = loaded.functions.get(name) {
            return Ok(*function);
        }
        let (major, minor) = self.card.capability;
        if file.ends_with(kernels::HOPPER_ONLY) && !self.is_hopper() {
            return Err(format!("needs compute capability 9.0; {} has {major}.{minor}", self.card.name));
        }
        let module = match loaded.modules.get(file) {
            Some(module) => *module,
            None => {
                let image = self.image(file)?;
                let mut module = ptr::null_mut();
                call!(cuModuleLoadData(&mut module, image.as_ptr().cast()))
                    .map_err(|why| format!("kernels/{file}.cu on {}: {why}", self.card.name))?;
                loaded.modules.insert(file, module);
                loaded.images.push(image);
                module
            }
        };
        let symbol = CString::new(name).map_err(|e| e.to_string())?;
        let mut handle = ptr::null_mut();
        call!(cuModuleGetFunction(&mut handle, module, symbol.as_ptr()))
            .map_err(|why| format!("{name} of kernels/{file}.cu: {why}"))?;
        let attribute = |which| {
            let mut value = 0;
            call!(cuFuncGetAttribute(&mut value, which, handle))?;
            Ok::<u32, String>(u32::try_from(value).unwrap_or(0))
        };
        // Asking also loads its code now: a graph cannot be recorded while code is loaded.
        let threads = attribute(FuncAttr::CU_FUNC_ATTRIBUTE_MAX_THREADS_PER_BLOCK)?;
        let fixed = attribute(FuncAttr::CU_FUNC_ATTRIBUTE_SHARED_SIZE_BYTES)?;
        let shared = self.card.shared.saturating_sub(fixed);
        if shared > SHARED_BY_DEFAULT {
            let most = FuncAttr::CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES;
            call!(cuFuncSetAttribute(handle, most, shared as c_int))?;
        }
        let function = Function { handle, threads, shared };
        loaded.functions.insert(name, function);
        Ok(function)
    }

    /// Whether it runs the kernels that are compiled for compute capability 9.0 alone.
    fn is_hopper(&self) -> bool {
        self.card.capability == HOPPER
    }

    /// The machine code of a file of kernels/, aligned as the driver's own loader has it.
    fn image(&self, file: &str) -> Said<Vec<u64>> {
        let from_folder = |folder: &Path| {
            let path = folder.join(file).with_extension("fatbin");
            std::fs::read(&path).map_err(|e| format!("{FOLDER}: {}: {e}", path.display()))
        };
        let bytes = match &self.folder {
            Some(folder) => from_folder(folder)?,
            None => {
                let found = kernels::FATBINS.iter().find(|(stem, _)| *stem == file);
                found.ok_or_else(|| format!("kernels/{file}.cu is not in this program"))?.1.to_vec()
            }
        };
        // A zero at the end, for files of text (PTX).
        let mut image = vec![0u64; bytes.len() / 8 + 1];
        // SAFETY: `image` has at least as many bytes, and the two do not overlap.
        unsafe { ptr::copy_nonoverlapping(bytes.as_ptr(), image.as_mut_ptr().cast::<u8>(), bytes.len()) };
        Ok(image)
    }

    /// Loads every kernel that this card can run.
    pub(super) fn load_all(&self) -> Said<()> {
        self.bind()?;
        let hopper = self.is_hopper();
        let mut mine = kernels::ALL.iter().filter(|(_, file)| hopper || !file.ends_with(kernels::HOPPER_ONLY));
        mine.try_for_each(|(name, file)| self.function(name, file).map(drop))
    }

    /// From here to [`Cuda::end`] work of this thread is recorded and does not run.
    pub(super) fn begin(&self) -> Said<()> {
        self.load_all()?;
        call!(cuStreamBeginCapture_v2(self.stream, sys::CUstreamCaptureMode::CU_STREAM_CAPTURE_MODE_THREAD_LOCAL))
    }

    pub(super) fn end(&self) -> Said<Exec> {
        self.bind()?;
        let mut graph = ptr::null_mut();
        call!(cuStreamEndCapture(self.stream, &mut graph))?;
        let mut exec = ptr::null_mut();
        let made = call!(cuGraphInstantiateWithFlags(&mut exec, graph, 0));
        let freed = call!(cuGraphDestroy(graph));
        made?;
        let exec = Exec(exec);
        match freed {
            Ok(()) => Ok(exec),
            Err(why) => self.destroy(&exec).and(Err(why)),
        }
    }

    pub(super) fn replay(&self, exec: &Exec) -> Said<()> {
        self.bind()?;
        call!(cuGraphLaunch(exec.0, self.stream))?;
        if cfg!(debug_assertions) { self.synchronize() } else { Ok(()) }
    }

    pub(super) fn destroy(&self, exec: &Exec) -> Said<()> {
        // It may still be running.
        self.synchronize()?;
        call!(cuGraphExecDestroy(exec.0))
    }
}

/// Two events with work between them.
pub(super) struct Timer([sys::CUevent; 2]);

impl Drop for Timer {
    fn drop(&mut self) {
        for event in self.0.iter().filter(|event| !event.is_null()) {
            let _ = call!(cuEventDestroy_v2(*event));
        }
    }
}

impl Cuda {
    pub(super) fn start_timer(&self) -> Said<Timer> {
        self.bind()?;
        let mut timer = Timer([ptr::null_mut(); 2]);
        for event in &mut timer.0 {
            call!(cuEventCreate(event, sys::CUevent_flags::CU_EVENT_DEFAULT as u32))?;
        }
        call!(cuEventRecord(timer.0[0], self.stream))?;
        Ok(timer)
    }

    /// Waits for all work so far; how long that since the start took.
    pub(super) fn read_timer(&self, timer: &Timer) -> Said<Duration> {
        self.bind()?;
        let [from, to] = timer.0;
        call!(cuEventRecord(to, self.stream))?;
        call!(cuEventSynchronize(to))?;
        let mut milliseconds = 0.0f32;
        call!(cuEventElapsedTime(&mut milliseconds, from, to))?;
        Ok(Duration::try_from_secs_f32(milliseconds / 1e3).unwrap_or_default())
    }
}

impl Staging {
    /// Goes on with the other block, once the copies from it are done.
    fn turn(&mut self, stream: sys::CUstream) -> Said<()> {
        let full = &mut self.blocks[self.current];
        call!(cuEventRecord(full.event, stream))?;
        full.in_use = true;
        self.current = 1 - self.current;
        self.used = 0;
        self.blocks[self.current].wait()
    }
}

impl Pinned {
    /// Waits until the GPU is done with it.
    fn wait(&mut self) -> Said<()> {
        if self.in_use {
            call!(cuEventSynchronize(self.event))?;
            self.in_use = false;
        }
        Ok(())
    }
}

impl Drop for Cuda {
    fn drop(&mut self) {
        if self.context.is_null() || self.bind().is_err() {
            return;
        }
        // Nothing can be told any more, and what fails here is gone with the process.
        let _ = call!(cuStreamSynchronize(self.stream));
        let blocks = std::mem::take(&mut lock(&self.staging).blocks);
        let (reading, landing) = (std::mem::take(&mut *lock(&self.reading)), std::mem::take(&mut *lock(&self.landing)));
        blocks.iter().chain(&reading).chain(&landing).for_each(|pinned| self.unpin(pinned));
        for module in std::mem::take(&mut lock(&self.loaded).modules).into_values() {
            let _ = call!(cuModuleUnload(module));
        }
        if !self.stream.is_null() {
            let _ = call!(cuStreamDestroy_v2(self.stream));
        }
        let _ = call!(cuDevicePrimaryCtxRelease_v2(self.device));
    }
}
