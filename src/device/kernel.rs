//! Kernels by name and the one way to launch them, on the GPU or on the CPU (host-run).

use std::marker::PhantomData;
use std::sync::{Arc, Mutex};

use super::queue::{Queue, To, Work};
use super::{Buffer, Tuning, abi, bytes_of, lock};
use crate::error::{Error, Result};

/// The one struct that a kernel takes, by value.
///
/// # Safety
/// The kernels that take it (by `QE_KERNEL`) declare the very same struct.
pub unsafe trait Params: Copy {}

/// A kernel that takes `P`.
pub struct Kernel<P> {
    pub(super) name: &'static str,
    /// The file of kernels/ that holds it.
    pub(super) file: &'static str,
    params: PhantomData<fn(P)>,
}

impl<P> Clone for Kernel<P> {
    fn clone(&self) -> Self {
        *self
    }
}

impl<P> Copy for Kernel<P> {}

impl<P> Kernel<P> {
    const fn new(name: &'static str, file: &'static str) -> Self {
        Self { name, file, params: PhantomData }
    }
}

/// What the compiler made of a kernel on one architecture.
#[derive(Debug, Clone, Copy)]
pub struct Usage {
    pub kernel: &'static str,
    /// The file of kernels/ that holds it.
    pub file: &'static str,
    /// As nvcc names it: `sm_86`.
    pub arch: &'static str,
    /// Registers a thread.
    pub registers: u32,
    /// Bytes of local memory a thread.
    pub stack: u32,
    /// Bytes of it that hold spilled registers, written and read.
    pub spilled: u32,
}

/// Every kernel, typed by its parameters; and the machine code, where there was a compiler. Written by build.rs.
pub mod kernels {
    use super::{Kernel, Params, Usage, abi};
    include!(concat!(env!("OUT_DIR"), "/kernels.rs"));
}

/// Where kernels run.
pub struct Launcher {
    queue: Arc<Queue>,
    /// The [`abi::Step`] that kernels read.
    step: Mutex<Buffer>,
    /// Its address.
    step_at: u64,
    tuning: Tuning,
}

impl Launcher {
    pub(super) fn new(queue: Arc<Queue>) -> Result<Self> {
        let step = Buffer::on(&queue, size_of::<abi::Step>())?;
        let chip = match &queue.to {
            To::Cuda(cuda) => cuda.gpu().chip(),
            #[cfg(feature = "host-kernels")]
            To::Host(_) => super::Chip::STAND_IN,
        };
        Ok(Launcher { queue, step_at: step.addr(), step: Mutex::new(step), tuning: Tuning::new(chip) })
    }

    pub(super) fn queue(&self) -> &Arc<Queue> {
        &self.queue
    }

    pub(crate) fn tuning(&self) -> &Tuning {
        &self.tuning
    }

    /// The counts and the random seed of the step, for a kernel's parameters.
    pub(crate) fn step(&self) -> *const abi::Step {
        self.step_at as *const abi::Step
    }

    /// Enqueues the change, so that kernels enqueued before still see the old values. Belongs outside of a recorded graph.
    pub(super) fn set_step(&self, step: abi::Step) {
        lock(&self.step).write(0, bytes_of(&[step]));
    }

    /// Starts to describe a launch of `kernel`: one block of one warp, no shared memory.
    pub(crate) fn kernel<P: Params>(&self, kernel: Kernel<P>) -> Launch<'_, P> {
        Launch { launcher: self, kernel, grid: [1; 3], block: WARP, shared: 0 }
    }
}

const WARP: u32 = abi::QE_WARP;
/// What every card allows, by CUDA's programming guide (technical specifications by compute capability).
const MAX_THREADS: u32 = 1024;
const MAX_GRID: [u64; 3] = [(1 << 31) - 1, 65_535, 65_535];

/// A launch that is being described.
#[must_use = "nothing runs before `launch`"]
pub(crate) struct Launch<'a, P> {
    launcher: &'a Launcher,
    kernel: Kernel<P>,
    /// In blocks.
    grid: [u64; 3],
    /// In threads, along x.
    block: u32,
    /// Bytes of dynamic shared memory.
    shared: usize,
}

impl<P: Params> Launch<'_, P> {
    /// Blocks along x.
    pub(crate) fn grid(self, x: usize) -> Self {
        self.grid3(x, 1, 1)
    }

    /// Blocks along x, y, z.
    pub(crate) fn grid3(mut self, x: usize, y: usize, z: usize) -> Self {
        self.grid = [x as u64, y as u64, z as u64];
        self
    }

    /// Threads a block: whole warps.
    pub(crate) fn block(mut self, threads: u32) -> Self {
        self.block = threads;
        self
    }

    /// Dynamic shared memory a block.
    pub(crate) fn shared(mut self, bytes: usize) -> Self {
        self.shared = bytes;
        self
    }

    /// Enqueues it; returns before it has run (on the CPU: after). An empty grid does nothing.
    ///
    /// The pointers in `p` must be those of tensors that live until the kernel has run, with as many elements as the
    /// kernel's header says: the ops check shapes before they come here, and the arena outlives the step.
    ///
    /// # Errors
    /// [`Error::Kernel`] for sizes that a card would refuse, and if the device refuses the launch.
    pub(crate) fn launch(self, p: &P) -> Result<()> {
        if self.grid.contains(&0) {
            return Ok(());
        }
        let grid = self.grid.map(|n| u32::try_from(n).unwrap_or(u32::MAX));
        let work = Work {
            name: self.kernel.name,
            file: self.kernel.file,
            grid,
            block: self.block,
            shared: self.shared,
            params: (&raw const *p).cast(),
            #[cfg(feature = "host-kernels")]
            bytes: size_of::<P>(),
        };
        let done = self.check().and_then(|()| self.launcher.queue.launch(&work));
        done.map_err(|why| Error::Kernel { name: work.name, grid, block: [work.block, 1, 1], why })
    }

    fn check(&self) -> std::result::Result<(), String> {
        if let Some(axis) = (0..3).find(|&i| self.grid[i] > MAX_GRID[i]) {
            return Err(format!("{} blocks along axis {axis}, the limit is {}", self.grid[axis], MAX_GRID[axis]));
        }
        if self.block == 0 || self.block > MAX_THREADS || !self.block.is_multiple_of(WARP) {
            return Err(format!("{} threads a block; whole warps up to {MAX_THREADS} are possible", self.block));
        }
        let hopper = self.kernel.file.ends_with(kernels::HOPPER_ONLY);
        let most = if hopper { abi::QE_MAX_SHARED_BYTES_SM90 } else { abi::QE_MAX_SHARED_BYTES } as usize;
        if self.shared > most {
            return Err(format!("{} bytes of shared memory a block, the limit is {most}", self.shared));
        }
        const { assert!(size_of::<P>() <= abi::QE_MAX_PARAM_BYTES as usize) };
        Ok(())
    }
}
