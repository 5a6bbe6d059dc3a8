//! Where tensors live and ops run: [`Device`], its memory ([`Buffer`], [`Layout`]) and its threads.
//!
//! There is no backend trait. An op asks [`Device::exec`] and matches on the answer.

pub mod abi;
mod buffer;
mod card;
mod cuda;
mod driver;
pub mod gemm;
#[cfg(feature = "host-kernels")]
pub(crate) mod host;
mod kernel;
mod layout;
pub mod par;
pub mod pool;
mod queue;
mod recycle;
pub mod simd;
mod spare;
mod tuning;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

pub use buffer::{Buffer, Pod, bytes_of, bytes_of_mut};
pub use card::Card;
pub use cuda::{Gpu, built_without_kernels, cards, driver_version, needed_driver};
#[cfg(feature = "host-kernels")]
#[doc(hidden)]
pub use host::Probing;
pub use kernel::{Kernel, Launcher, Params, kernels};
pub use layout::{Layout, Recorder};
pub use queue::{Graph, Later};
pub use tuning::{Chip, HOPPER, Nf4Path, Tile, Tuning, Wish};

use crate::error::{Error, Result};
use buffer::{Arena, Side};
use layout::Replay;
use pool::Pool;
use queue::{Queue, To};

/// A place to compute. Cheap to clone; clones are the same device.
#[derive(Clone)]
pub struct Device(Arc<Inner>);

struct Inner {
    kind: Kind,
    memory: Mutex<Memory>,
}

enum Kind {
    Cpu(Pool),
    Kernels(Launcher),
    /// For kernels, if there is something to tune.
    Plan {
        counter: Counter,
        kernels: Option<Tuning>,
    },
}

/// How a new [`Buffer`] gets its memory.
enum Memory {
    /// Each buffer by itself: weights, optimizer state, everything outside a step.
    Heap,
    /// The k-th buffer at the k-th offset of a layout, in memory reserved before the first step.
    Arena { arena: Arc<Arena>, replay: Replay },
    /// No memory: sizes and lifetimes are written down.
    Record(Recorder),
}

/// What an op does on a device.
pub enum Exec<'a> {
    /// Plain Rust on these threads.
    Cpu(&'a Pool),
    /// CUDA kernels, on a GPU or on the CPU (host-run).
    Kernels(&'a Launcher),
    /// No computation: the op reports its work, and allocations are written down.
    Plan(&'a Counter),
}

/// The work of a planned step.
#[derive(Default)]
pub struct Counter(Mutex<f64>);

impl Counter {
    /// Adds floating-point operations (a multiply-add counts as two).
    pub fn flops(&self, n: f64) {
        *lock(&self.0) += n;
    }
}

/// Ignores poisoning: every critical section here leaves the value whole.
fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Device {
    /// The CPU with this many threads. The bits of every result are the same whatever the number.
    pub fn cpu(threads: usize) -> Self {
        Self::new(Kind::Cpu(Pool::new(threads)), Memory::Heap)
    }

    /// A device that computes nothing and holds nothing, for planning a run on the CPU.
    pub fn plan() -> Self {
        Self::new(Kind::Plan { counter: Counter::default(), kernels: None }, Memory::Record(Recorder::default()))
    }

    /// As [`Device::plan`], for a run on kernels, which need other scratch.
    pub fn plan_kernels() -> Self {
        Self::plan_on(Chip::STAND_IN)
    }

    /// As [`Device::plan_kernels`], for this chip.
    pub fn plan_on(chip: Chip) -> Self {
        let kind = Kind::Plan { counter: Counter::default(), kernels: Some(Tuning::new(chip)) };
        Self::new(kind, Memory::Record(Recorder::default()))
    }

    /// The `ordinal`-th GPU of those that the driver shows.
    ///
    /// # Errors
    /// [`Error::Gpu`] if there is no driver, no such GPU, no kernel for it in this program, or if driver or GPU are too old;
    /// [`Error::Memory`] if the GPU has none left.
    pub fn cuda(ordinal: usize) -> Result<Self> {
        Self::on(To::Cuda(Box::new(cuda::Cuda::open(ordinal)?)))
    }

    /// The kernels on the CPU with this many threads, for tests; `reversed` runs blocks, warps and lanes from the last to
    /// the first, which must not change a bit.
    ///
    /// # Errors
    /// [`Error::Memory`].
    #[cfg(feature = "host-kernels")]
    pub fn host_kernels(threads: usize, reversed: bool) -> Result<Self> {
        Self::on(To::Host(host::Host::new(threads, reversed)))
    }

    fn on(to: To) -> Result<Self> {
        Ok(Self::new(Kind::Kernels(Launcher::new(Queue::new(to))?), Memory::Heap))
    }

    fn new(kind: Kind, memory: Memory) -> Self {
        Self(Arc::new(Inner { kind, memory: Mutex::new(memory) }))
    }

    /// What an op is to do here.
    pub fn exec(&self) -> Exec<'_> {
        match &self.0.kind {
            Kind::Cpu(pool) => Exec::Cpu(pool),
            Kind::Kernels(launcher) => Exec::Kernels(launcher),
            Kind::Plan { counter, .. } => Exec::Plan(counter),
        }
    }

    /// Whether this device only plans.
    pub fn is_plan(&self) -> bool {
        matches!(self.0.kind, Kind::Plan { .. })
    }

    /// Whether ops run as kernels here, or in what this device plans: their scratch differs from the CPU's.
    pub fn runs_kernels(&self) -> bool {
        self.tuning().is_some()
    }

    /// What chooses among kernels here, or in what this device plans; None on the CPU.
    pub fn tuning(&self) -> Option<&Tuning> {
        match &self.0.kind {
            Kind::Kernels(launcher) => Some(launcher.tuning()),
            Kind::Plan { kernels, .. } => kernels.as_ref(),
            Kind::Cpu(_) => None,
        }
    }

    /// Whether two handles are the same device.
    pub fn same(&self, other: &Device) -> bool {
        Arc::ptr_eq(&self.0, &other.0)
    }

    /// Memory for `bytes` bytes, its contents unspecified (but initialised).
    ///
    /// # Errors
    /// [`Error::Memory`] if the system has none left, or if an allocation during a replay is not the planned one.
    pub fn alloc(&self, bytes: usize) -> Result<Buffer> {
        match &mut *lock(&self.0.memory) {
            Memory::Heap => match self.side() {
                Side::Host => Buffer::heap(bytes),
                Side::Device(queue) => Buffer::on(&queue, bytes),
            },
            Memory::Arena { arena, replay } => {
                let (slot, offset) = replay.take(bytes)?;
                if cfg!(feature = "host-asan") {
                    return Buffer::alone(self.clone(), slot, bytes);
                }
                Ok(Buffer::in_arena(self.clone(), arena.clone(), slot, offset, bytes))
            }
            Memory::Record(recorder) => Ok(Buffer::planned(self.clone(), recorder.born(bytes), bytes)),
        }
    }

    /// As [`Device::alloc`], outside of any step; where kernels run, in page-locked memory of the CPU, which they read in place
    /// over the bus: for large tables of which a step reads few rows.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system has none left, or does not allow as much of it to be locked.
    pub fn alloc_pinned(&self, bytes: usize) -> Result<Buffer> {
        match &self.0.kind {
            Kind::Kernels(launcher) => Buffer::pinned(launcher.queue(), bytes),
            Kind::Cpu(_) | Kind::Plan { .. } => self.alloc(bytes),
        }
    }

    /// The GPU behind this device, if there is one.
    pub fn gpu(&self) -> Option<&Gpu> {
        match self.queue()?.to {
            To::Cuda(ref cuda) => Some(cuda.gpu()),
            #[cfg(feature = "host-kernels")]
            To::Host(_) => None,
        }
    }

    /// (free, all) bytes of the GPU's memory; None without a GPU.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the driver does not tell.
    pub fn gpu_memory(&self) -> Result<Option<(usize, usize)>> {
        let Some(queue) = self.queue() else { return Ok(None) };
        match &queue.to {
            To::Cuda(cuda) => {
                queue.free_spare();
                cuda.memory().map(Some).map_err(Error::Gpu)
            }
            #[cfg(feature = "host-kernels")]
            To::Host(_) => Ok(None),
        }
    }

    /// Waits until everything enqueued has run.
    ///
    /// # Errors
    /// [`Error::Gpu`] if any of it failed, reading and writing of tensors among it.
    pub fn synchronize(&self) -> Result<()> {
        self.queue().map_or(Ok(()), |queue| queue.synchronize().map_err(Error::Gpu))
    }

    /// How long the work that `work` enqueues takes: between two events of a GPU, and by the clock elsewhere.
    ///
    /// # Errors
    /// [`Error::Gpu`] if any of it failed, and whatever `work` returns.
    pub fn timed(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        if let Some(queue) = self.queue() {
            return queue.timed(work);
        }
        let began = Instant::now();
        work().map(|()| began.elapsed())
    }

    /// Records the launches, fills and copies of `work` without running them; [`Graph::launch`] runs them, as often as one
    /// likes. None on a device that records nothing (the CPU, a plan, under AddressSanitizer): `work` has then run.
    ///
    /// What comes from the CPU or goes to it (the step's counts, the batch, the loss) has no place in a graph: it is written
    /// before and read after each launch, from and to the same addresses, so tensors made by `work` come from an arena.
    ///
    /// # Errors
    /// [`Error::Gpu`] if `work` read or wrote device memory by the CPU, or if the driver refuses; [`Error::Memory`] if it
    /// allocated outside of an arena; and whatever `work` returns.
    pub fn capture(&self, work: impl FnOnce() -> Result<()>) -> Result<Option<Graph>> {
        match self.queue() {
            Some(queue) => queue.capture(work),
            None => work().map(|()| None),
        }
    }

    fn queue(&self) -> Option<&Arc<Queue>> {
        match &self.0.kind {
            Kind::Kernels(launcher) => Some(launcher.queue()),
            Kind::Cpu(_) | Kind::Plan { .. } => None,
        }
    }

    /// Tells kernels the counts and the random seed of the step that follows. Nothing else reads them.
    pub fn set_step(&self, step: abi::Step) {
        if let Kind::Kernels(launcher) = &self.0.kind {
            launcher.set_step(step);
        }
    }

    /// Where kernels read the step.
    pub(crate) fn step_addr(&self) -> Option<u64> {
        match &self.0.kind {
            Kind::Kernels(launcher) => Some(launcher.step() as u64),
            Kind::Cpu(_) | Kind::Plan { .. } => None,
        }
    }

    /// Who may read the memory of this device.
    fn side(&self) -> Side {
        match &self.0.kind {
            Kind::Kernels(launcher) => Side::Device(launcher.queue().clone()),
            Kind::Cpu(_) | Kind::Plan { .. } => Side::Host,
        }
    }

    /// Called by a buffer that goes.
    fn freed(&self, slot: usize) {
        match &mut *lock(&self.0.memory) {
            Memory::Heap => {}
            Memory::Arena { replay, .. } => replay.give_back(slot),
            Memory::Record(recorder) => recorder.died(slot),
        }
    }

    /// Reserves the memory for steps of at most this layout.
    ///
    /// # Errors
    /// [`Error::Memory`] if the system has not that much.
    pub fn reserve(&self, bytes: usize) -> Result<Reserved> {
        Ok(Reserved { device: self.clone(), arena: Arc::new(Arena::new(bytes, &self.side())?) })
    }

    /// On a planning device: what was recorded since the last call, and the work counted, both reset.
    pub fn take_plan(&self) -> Option<(Recorder, f64)> {
        let Kind::Plan { counter, .. } = &self.0.kind else { return None };
        let Memory::Record(recorder) = &mut *lock(&self.0.memory) else { return None };
        Some((std::mem::take(recorder), std::mem::take(&mut *lock(&counter.0))))
    }
}

/// Memory reserved for steps, before the first of them.
pub struct Reserved {
    device: Device,
    arena: Arc<Arena>,
}

impl Reserved {
    /// Bytes reserved.
    pub fn bytes(&self) -> usize {
        self.arena.bytes()
    }

    /// Runs `step` with every allocation at the place that `layout` gave it.
    ///
    /// # Errors
    /// [`Error::Memory`] if the layout is larger than what is reserved, or if a step is already running; and whatever
    /// `step` returns.
    pub fn run<R>(&self, layout: &Arc<Layout>, step: impl FnOnce() -> Result<R>) -> Result<R> {
        if layout.bytes() > self.arena.bytes() {
            let (want, have) = (layout.bytes(), self.arena.bytes());
            return Err(Error::Memory(format!("a step needs {want} bytes, but {have} were reserved")));
        }
        let mut memory = lock(&self.device.0.memory);
        if !matches!(*memory, Memory::Heap) {
            return Err(Error::Memory("a step is already running on this device".into()));
        }
        *memory = Memory::Arena { arena: self.arena.clone(), replay: Replay::new(layout.clone()) };
        drop(memory);
        // Also on the way out of a panic: the next step must find the device as it was.
        struct Restore<'a>(&'a Device);
        impl Drop for Restore<'_> {
            fn drop(&mut self) {
                *lock(&self.0.0.memory) = Memory::Heap;
            }
        }
        let _restore = Restore(&self.device);
        step()
    }
}
