//! [`Queue`]: what device memory and launches go through, in order: a GPU's stream, or the CPU in its place (host-run).
//! And [`Graph`]: work that was recorded once, to be enqueued again and again as one.
//!
//! Work is enqueued and runs later. A failure of what returns nothing (writing, filling, copying) is kept and comes back
//! from the next call that can report one: a launch, a replay, `synchronize`.

use std::ffi::c_void;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;
#[cfg(feature = "host-kernels")]
use std::time::Instant;

use super::cuda::{self, Cuda};
#[cfg(feature = "host-kernels")]
use super::host::{self, Host};
use super::lock;
use super::spare::Spare;
use crate::error::{Error, Result};

/// A result whose error is the text of what failed.
pub(super) type Said<T> = std::result::Result<T, String>;

/// Where the work is done.
pub(super) enum To {
    /// A GPU.
    Cuda(Box<Cuda>),
    /// The CPU, for tests.
    #[cfg(feature = "host-kernels")]
    Host(Host),
}

/// A launch: a kernel, its sizes, and its one parameter struct.
pub(super) struct Work {
    pub(super) name: &'static str,
    /// The file of kernels/ that holds it.
    pub(super) file: &'static str,
    /// In blocks.
    pub(super) grid: [u32; 3],
    /// In threads.
    pub(super) block: u32,
    /// Bytes of dynamic shared memory.
    pub(super) shared: usize,
    pub(super) params: *const c_void,
    /// Size of the struct; the driver knows it from the machine code.
    #[cfg(feature = "host-kernels")]
    pub(super) bytes: usize,
}

pub(super) struct Queue {
    pub(super) to: To,
    /// Between the beginning and the end of a recording.
    recording: AtomicBool,
    kept: Mutex<Kept>,
    /// Of a GPU's memory.
    spare: Mutex<Spare>,
    /// The first failure that nobody has been told of yet.
    fault: Mutex<Option<String>>,
}

/// Memory that was given back while a recorded graph may still use it.
#[derive(Default)]
struct Kept {
    /// Graphs that exist, one being recorded among them.
    graphs: usize,
    /// Counts beginnings and ends of recordings.
    time: u64,
    blocks: Vec<Memory>,
}

/// A piece of memory that a queue gave.
#[derive(Clone, Copy)]
struct Memory {
    addr: u64,
    bytes: usize,
    /// Of the CPU, page-locked; else the device's.
    pinned: bool,
}

impl Queue {
    pub(super) fn new(to: To) -> Arc<Self> {
        let (kept, spare, fault) = (Mutex::default(), Mutex::default(), Mutex::default());
        Arc::new(Queue { to, recording: AtomicBool::new(false), kept, spare, fault })
    }

    pub(super) fn recording(&self) -> bool {
        self.recording.load(Ordering::SeqCst)
    }

    /// Reserves memory, its contents unspecified.
    ///
    /// # Errors
    /// [`Error::Memory`] if there is not that much, and while a graph is recorded.
    pub(super) fn alloc(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        self.block(bytes, false)
    }

    /// As [`Queue::alloc`], of the CPU's memory, page-locked: kernels read it in place, and so may the CPU when no work is
    /// under way.
    ///
    /// # Errors
    /// As [`Queue::alloc`]; the system may allow less of it than there is memory.
    pub(super) fn alloc_pinned(self: &Arc<Self>, bytes: usize) -> Result<Block> {
        self.block(bytes, true)
    }

    fn block(self: &Arc<Self>, bytes: usize, pinned: bool) -> Result<Block> {
        if self.recording() {
            let why = format!("{bytes} bytes outside of the step's arena were asked for while a graph was recorded");
            return Err(Error::Memory(why));
        }
        let spare = if pinned { None } else { lock(&self.spare).take(bytes) };
        let addr = match &self.to {
            To::Cuda(cuda) if pinned => cuda.lock_pages(bytes),
            To::Cuda(cuda) => match spare {
                Some(addr) => Ok(addr),
                None => cuda.alloc(bytes).or_else(|_| {
                    self.free_spare();
                    cuda.alloc(bytes)
                }),
            },
            #[cfg(feature = "host-kernels")]
            To::Host(_) => host::alloc(bytes),
        };
        let born = lock(&self.kept).time;
        let memory = Memory { addr: addr.map_err(Error::Memory)?, bytes, pinned };
        Ok(Block { memory, queue: self.clone(), born })
    }

    fn release(&self, memory: Memory) {
        match &self.to {
            To::Cuda(cuda) if memory.pinned => self.keep_fault(cuda.unlock_pages(memory.addr)),
            To::Cuda(_) => {
                let gone = lock(&self.spare).give(memory.addr, memory.bytes);
                self.free(gone);
            }
            #[cfg(feature = "host-kernels")]
            To::Host(_) => host::free(memory.addr, memory.bytes),
        }
    }

    /// Gives memory back to the driver.
    fn free(&self, all: Vec<u64>) {
        match &self.to {
            To::Cuda(cuda) => all.into_iter().for_each(|addr| self.keep_fault(cuda.free(addr))),
            #[cfg(feature = "host-kernels")]
            To::Host(_) => {}
        }
    }

    /// Gives back what was kept for the next to ask for it.
    pub(super) fn free_spare(&self) {
        let all = lock(&self.spare).clear();
        self.free(all);
    }

    /// Waits until nothing that was enqueued uses pinned memory any more; whether the CPU may touch it now. If not, the next
    /// call that can report it says why.
    pub(super) fn settled(&self) -> bool {
        let done = match &self.to {
            _ if self.recording() => Err("the CPU touched pinned memory while a graph was recorded".into()),
            To::Cuda(cuda) => cuda.synchronize(),
            #[cfg(feature = "host-kernels")]
            To::Host(_) => Ok(()),
        };
        let settled = done.is_ok();
        self.keep_fault(done);
        settled
    }

    /// Copies `from` to `addr`. The caller owns that memory.
    pub(super) fn write(&self, addr: u64, from: &[u8]) {
        if self.recording() {
            return self.keep_fault(Err("the CPU wrote to device memory while a graph was recorded".into()));
        }
        match &self.to {
            To::Cuda(cuda) => self.keep_fault(cuda.write(addr, from)),
            #[cfg(feature = "host-kernels")]
            To::Host(_) => host::write(addr, from),
        }
    }

    /// Waits for all work so far, then copies what lies at `addr` into `to`. After a failure `to` is full of 0xFF, which is
    /// NaN.
    pub(super) fn read(&self, addr: u64, to: &mut [u8]) {
        let done = match &self.to {
            _ if self.recording() => Err("the CPU read device memory while a graph was recorded".into()),
            To::Cuda(cuda) => cuda.read(addr, to),
            #[cfg(feature = "host-kernels")]
            To::Host(_) => {
                host::read(addr, to);
                Ok(())
            }
        };
        if done.is_err() {
            to.fill(0xFF);
        }
        self.keep_fault(done);
    }

    /// As [`Queue::read`], but returns at once: the bytes are those of now, and are there when asked for.
    pub(super) fn read_later(self: &Arc<Self>, addr: u64, bytes: usize) -> Later {
        if let To::Cuda(cuda) = &self.to
            && !self.recording()
            && bytes <= cuda::LATER_BYTES
        {
            return Later(match cuda.read_later(addr, bytes) {
                Ok(under_way) => Waiting::Cuda { queue: self.clone(), under_way: Some(under_way), bytes },
                Err(why) => Waiting::Here(Err(why)),
            });
        }
        let mut now = vec![0; bytes];
        self.read(addr, &mut now);
        Later::now(now)
    }

    /// Sets `bytes` bytes at `addr`.
    pub(super) fn fill(&self, addr: u64, byte: u8, bytes: usize) {
        match &self.to {
            To::Cuda(cuda) => self.keep_fault(cuda.fill(addr, byte, bytes)),
            #[cfg(feature = "host-kernels")]
            To::Host(host) => host.fill(addr, byte, bytes),
        }
    }

    /// Copies `bytes` bytes from `from` to `to`, which do not overlap.
    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) {
        match &self.to {
            To::Cuda(cuda) => self.keep_fault(cuda.copy(to, from, bytes)),
            #[cfg(feature = "host-kernels")]
            To::Host(host) => host.copy(to, from, bytes),
        }
    }

    /// Enqueues a launch. Its parameters have been read when this returns.
    pub(super) fn launch(&self, work: &Work) -> Said<()> {
        self.take_fault()?;
        match &self.to {
            To::Cuda(cuda) => cuda.launch(work, self.recording()),
            #[cfg(feature = "host-kernels")]
            To::Host(host) => host.launch(work),
        }
    }

    /// Waits until everything enqueued has run.
    pub(super) fn synchronize(&self) -> Said<()> {
        self.take_fault()?;
        match &self.to {
            To::Cuda(cuda) => cuda.synchronize(),
            #[cfg(feature = "host-kernels")]
            To::Host(_) => Ok(()),
        }
    }

    fn keep_fault(&self, done: Said<()>) {
        if let Err(why) = done {
            lock(&self.fault).get_or_insert(why);
        }
    }

    fn take_fault(&self) -> Said<()> {
        lock(&self.fault).take().map_or(Ok(()), Err)
    }

    /// Records what `work` enqueues, without running it. None where nothing is recorded: `work` has then run.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the device refuses, or if `work` did what no graph can hold; and whatever `work` returns.
    pub(super) fn capture(self: &Arc<Self>, work: impl FnOnce() -> Result<()>) -> Result<Option<Graph>> {
        // There each buffer is an allocation of its own, gone after the step.
        if cfg!(feature = "host-asan") {
            return work().map(|()| None);
        }
        self.take_fault().map_err(Error::Gpu)?;
        if self.recording() {
            return Err(Error::Gpu("a graph is already being recorded on this device".into()));
        }
        match &self.to {
            To::Cuda(cuda) => cuda.begin(),
            #[cfg(feature = "host-kernels")]
            To::Host(host) => host.begin(),
        }
        .map_err(Error::Gpu)?;
        let recording = Recording::new(self);
        let done = work();
        let recorded = recording.end();
        // What `work` met first says more than what its end then gave.
        done?;
        self.take_fault().map_err(Error::Gpu)?;
        recorded.map(Some)
    }
}

impl Queue {
    /// How long what `work` enqueues takes.
    pub(super) fn timed(&self, work: impl FnOnce() -> Result<()>) -> Result<Duration> {
        match &self.to {
            To::Cuda(cuda) => {
                let events = cuda.start_timer().map_err(Error::Gpu)?;
                work()?;
                cuda.read_timer(&events).map_err(Error::Gpu)
            }
            #[cfg(feature = "host-kernels")]
            To::Host(_) => {
                let began = Instant::now();
                work()?;
                self.synchronize().map_err(Error::Gpu)?;
                Ok(began.elapsed())
            }
        }
    }
}

impl Drop for Queue {
    fn drop(&mut self) {
        self.free_spare();
    }
}

/// From the beginning of a recording to its end, also on the way out of a panic.
struct Recording<'a> {
    queue: &'a Arc<Queue>,
    live: Option<Live>,
}

impl<'a> Recording<'a> {
    fn new(queue: &'a Arc<Queue>) -> Self {
        queue.recording.store(true, Ordering::SeqCst);
        let mut kept = lock(&queue.kept);
        kept.graphs += 1;
        kept.time += 1;
        Recording { queue, live: Some(Live(queue.clone())) }
    }

    fn end(mut self) -> Result<Graph> {
        let recorded = self.stop().map_err(Error::Gpu)?;
        let live = self.live.take().ok_or_else(|| Error::Gpu("the recording has ended".into()))?;
        Ok(Graph { recorded, live })
    }

    fn stop(&mut self) -> Said<Recorded> {
        let recorded = match &self.queue.to {
            To::Cuda(cuda) => cuda.end().map(Recorded::Cuda),
            #[cfg(feature = "host-kernels")]
            To::Host(host) => Ok(Recorded::Host(host.end())),
        };
        lock(&self.queue.kept).time += 1;
        self.queue.recording.store(false, Ordering::SeqCst);
        recorded
    }
}

impl Drop for Recording<'_> {
    fn drop(&mut self) {
        if self.live.is_some()
            && self.queue.recording()
            && let Ok(recorded) = self.stop()
        {
            recorded.destroy(self.queue);
        }
    }
}

/// While it exists, memory that was there when it was made is not handed back.
struct Live(Arc<Queue>);

impl Drop for Live {
    fn drop(&mut self) {
        let blocks = {
            let mut kept = lock(&self.0.kept);
            kept.graphs -= 1;
            if kept.graphs > 0 { Vec::new() } else { std::mem::take(&mut kept.blocks) }
        };
        blocks.into_iter().for_each(|memory| self.0.release(memory));
    }
}

enum Recorded {
    Cuda(cuda::Exec),
    #[cfg(feature = "host-kernels")]
    Host(Vec<host::Record>),
}

impl Recorded {
    fn destroy(&self, queue: &Queue) {
        match (self, &queue.to) {
            (Recorded::Cuda(exec), To::Cuda(cuda)) => queue.keep_fault(cuda.destroy(exec)),
            #[cfg(feature = "host-kernels")]
            _ => {}
        }
    }
}

/// Launches, fills and copies on the device, recorded by [`super::Device::capture`], to be run again with the same
/// addresses and parameters. Memory that was there when it was recorded stays until the graph is dropped.
pub struct Graph {
    recorded: Recorded,
    live: Live,
}

impl Graph {
    /// Enqueues all of it. What changes between runs (the step's counts, the batch) is written before.
    ///
    /// # Errors
    /// [`Error::Gpu`] if the device refuses, or if earlier work failed; on the CPU also [`Error::Kernel`].
    pub fn launch(&self) -> Result<()> {
        let queue = &self.live.0;
        queue.take_fault().map_err(Error::Gpu)?;
        if queue.recording() {
            return Err(Error::Gpu("a graph cannot be launched while another is recorded".into()));
        }
        match (&self.recorded, &queue.to) {
            (Recorded::Cuda(exec), To::Cuda(cuda)) => cuda.replay(exec).map_err(Error::Gpu),
            #[cfg(feature = "host-kernels")]
            (Recorded::Host(records), To::Host(host)) => host.replay(records),
            #[cfg(feature = "host-kernels")]
            _ => Err(Error::Gpu("the graph is of another device".into())),
        }
    }

    /// The kernels that it launches, in their order; none where a GPU keeps it.
    #[cfg(feature = "host-kernels")]
    #[doc(hidden)]
    pub fn kernels(&self) -> Vec<&'static str> {
        let Recorded::Host(records) = &self.recorded else { return Vec::new() };
        let launch = |record: &host::Record| match record {
            host::Record::Launch { name, .. } => Some(*name),
            host::Record::Fill { .. } | host::Record::Copy { .. } => None,
        };
        records.iter().filter_map(launch).collect()
    }
}

impl Drop for Graph {
    fn drop(&mut self) {
        self.recorded.destroy(&self.live.0);
    }
}

/// Memory of the device, or pinned, given back when dropped.
pub(super) struct Block {
    memory: Memory,
    queue: Arc<Queue>,
    /// By [`Kept::time`].
    born: u64,
}

impl Block {
    pub(super) fn addr(&self) -> u64 {
        self.memory.addr
    }
}

impl Drop for Block {
    fn drop(&mut self) {
        let mut kept = lock(&self.queue.kept);
        if kept.graphs > 0 && self.born < kept.time {
            kept.blocks.push(self.memory);
        } else {
            drop(kept);
            self.queue.release(self.memory);
        }
    }
}

/// Bytes on their way from the device.
pub struct Later(Waiting);

enum Waiting {
    Here(Said<Vec<u8>>),
    Cuda { queue: Arc<Queue>, under_way: Option<cuda::UnderWay>, bytes: usize },
}

impl Later {
    pub(super) fn now(bytes: Vec<u8>) -> Self {
        Later(Waiting::Here(Ok(bytes)))
    }

    /// The bytes, once all work enqueued before the request has run.
    ///
    /// # Errors
    /// [`Error::Gpu`] if that work failed.
    pub fn wait(mut self) -> Result<Vec<u8>> {
        match &mut self.0 {
            Waiting::Here(now) => std::mem::replace(now, Ok(Vec::new())).map_err(Error::Gpu),
            Waiting::Cuda { queue, under_way, bytes } => match (&queue.to, under_way.take()) {
                (To::Cuda(cuda), Some(under_way)) => cuda.arrived(under_way, *bytes).map_err(Error::Gpu),
                _ => Err(Error::Gpu("nothing is under way".into())),
            },
        }
    }
}

impl Drop for Later {
    fn drop(&mut self) {
        // Its pinned memory must not be handed on while the copy is under way.
        if let Waiting::Cuda { queue, under_way, bytes } = &mut self.0
            && let (To::Cuda(cuda), Some(under_way)) = (&queue.to, under_way.take())
        {
            queue.keep_fault(cuda.arrived(under_way, *bytes).map(drop));
        }
    }
}
