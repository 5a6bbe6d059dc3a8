//! Kernels on the CPU: blocks on all threads of a pool, each block's CUDA threads as fibers (kernels/host/). Its device
//! memory is the heap, a block for each buffer; what it enqueues has run when the call returns.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use super::kernel::{Kernel, kernels};
use super::pool::Pool;
use super::queue::{Said, Work};
use super::{Device, Exec, abi, buffer, bytes_of, bytes_of_mut, lock};
use crate::error::{Error, Result};

/// One kernel that was compiled for the CPU.
pub(crate) struct Entry {
    pub(crate) name: &'static str,
    pub(crate) run: unsafe extern "C" fn(*const c_void),
    pub(crate) threads: *const u32,
}

// SAFETY: `threads` points to a constant of the linked library.
unsafe impl Sync for Entry {}

unsafe extern "C" {
    fn qe_host_run(
        kernel: unsafe extern "C" fn(*const c_void),
        params: *const c_void,
        grid: *const u32,
        threads: u32,
        shared_bytes: usize,
        first: u64,
        last: u64,
        reversed: c_int,
        why: *mut c_char,
        why_size: usize,
    ) -> c_int;
}

/// A launcher on the CPU.
pub struct Host {
    pool: Pool,
    /// Lanes, warps and blocks run from the last to the first: the bits must be the same.
    reversed: bool,
    /// What is being recorded, if something is.
    records: Mutex<Option<Vec<Record>>>,
}

/// Recorded work.
pub(super) enum Record {
    Launch { name: &'static str, grid: [u32; 3], block: u32, shared: usize, params: Vec<u64> },
    Fill { addr: u64, byte: u8, bytes: usize },
    Copy { to: u64, from: u64, bytes: usize },
}

pub(super) fn alloc(bytes: usize) -> Said<u64> {
    buffer::allocate(bytes).map(|ptr| ptr.as_ptr() as u64).map_err(|e| e.to_string())
}

pub(super) fn free(addr: u64, bytes: usize) {
    buffer::deallocate(addr as *mut u8, bytes);
}

pub(super) fn write(addr: u64, from: &[u8]) {
    // SAFETY: the caller owns as many bytes at `addr` of this process; `from` is elsewhere.
    unsafe { std::ptr::copy_nonoverlapping(from.as_ptr(), addr as *mut u8, from.len()) }
}

pub(super) fn read(addr: u64, to: &mut [u8]) {
    // SAFETY: as in `write`.
    unsafe { std::ptr::copy_nonoverlapping(addr as *const u8, to.as_mut_ptr(), to.len()) }
}

fn fill(addr: u64, byte: u8, bytes: usize) {
    // SAFETY: as in `write`.
    unsafe { std::ptr::write_bytes(addr as *mut u8, byte, bytes) }
}

fn copy(to: u64, from: u64, bytes: usize) {
    // SAFETY: as in `write`; two buffers do not share a byte.
    unsafe { std::ptr::copy_nonoverlapping(from as *const u8, to as *mut u8, bytes) }
}

/// Parameters on their way to other threads.
struct Shared(*const c_void);
// SAFETY: the struct is only read; what its pointers lead to is divided among blocks by the kernel itself, as on a GPU.
unsafe impl Sync for Shared {}

impl Host {
    pub(super) fn new(threads: usize, reversed: bool) -> Self {
        Host { pool: Pool::new(threads), reversed, records: Mutex::default() }
    }

    pub(super) fn begin(&self) -> Said<()> {
        *lock(&self.records) = Some(Vec::new());
        Ok(())
    }

    pub(super) fn end(&self) -> Vec<Record> {
        lock(&self.records).take().unwrap_or_default()
    }

    /// Writes the work down if something is being recorded; otherwise says that it is to be done now.
    fn recorded(&self, record: impl FnOnce() -> Record) -> bool {
        lock(&self.records).as_mut().map(|records| records.push(record())).is_some()
    }

    pub(super) fn fill(&self, addr: u64, byte: u8, bytes: usize) {
        if !self.recorded(|| Record::Fill { addr, byte, bytes }) {
            fill(addr, byte, bytes);
        }
    }

    pub(super) fn copy(&self, to: u64, from: u64, bytes: usize) {
        if !self.recorded(|| Record::Copy { to, from, bytes }) {
            copy(to, from, bytes);
        }
    }

    pub(super) fn launch(&self, w: &Work) -> Said<()> {
        let record = || {
            let mut params = vec![0u64; w.bytes.div_ceil(8)];
            // SAFETY: `params` of a launch leads to a struct of `bytes` bytes.
            unsafe { std::ptr::copy_nonoverlapping(w.params.cast::<u8>(), params.as_mut_ptr().cast(), w.bytes) };
            Record::Launch { name: w.name, grid: w.grid, block: w.block, shared: w.shared, params }
        };
        if self.recorded(record) { Ok(()) } else { self.run(w.name, w.grid, w.block, w.shared, w.params) }
    }

    /// Does what was recorded.
    pub(super) fn replay(&self, records: &[Record]) -> Result<()> {
        for record in records {
            match record {
                Record::Fill { addr, byte, bytes } => fill(*addr, *byte, *bytes),
                Record::Copy { to, from, bytes } => copy(*to, *from, *bytes),
                Record::Launch { name, grid, block, shared, params } => {
                    let done = self.run(name, *grid, *block, *shared, params.as_ptr().cast());
                    done.map_err(|why| Error::Kernel { name, grid: *grid, block: [*block, 1, 1], why })?;
                }
            }
        }
        Ok(())
    }

    /// Runs every block; returns when all have run.
    fn run(&self, name: &str, grid: [u32; 3], threads: u32, shared: usize, p: *const c_void) -> Said<()> {
        let entry = kernels::HOST.iter().find(|e| e.name == name);
        let entry = entry.ok_or("it is not among the host-run kernels")?;
        // SAFETY: it leads to a constant of the linked library.
        let most = unsafe { *entry.threads };
        if threads > most {
            return Err(format!("{threads} threads a block, it was declared with at most {most}"));
        }
        let blocks: u64 = grid.iter().map(|&n| u64::from(n)).product();
        let tasks = (self.pool.threads() as u64 * 4).min(blocks);
        let failure = Mutex::new(None);
        let params = Shared(p);
        let task = |i: usize| {
            let params = &params;
            let mut why = [0u8; 300];
            let (first, last) = (blocks * i as u64 / tasks, blocks * (i as u64 + 1) / tasks);
            // SAFETY: the kernel was compiled from the same header as its parameters (`Params`); the ops have checked that
            // the tensors behind its pointers are as large as the header says; `why` is large enough for its size.
            let failed = unsafe {
                qe_host_run(
                    entry.run,
                    params.0,
                    grid.as_ptr(),
                    threads,
                    shared,
                    first,
                    last,
                    c_int::from(self.reversed),
                    why.as_mut_ptr().cast(),
                    why.len(),
                )
            };
            if failed != 0 {
                let text = CStr::from_bytes_until_nul(&why).map_or("failed".into(), |s| s.to_string_lossy());
                let mut failure = failure.lock().unwrap_or_else(PoisonError::into_inner);
                // The first in the order of blocks, whatever the order in which they ran.
                if failure.as_ref().is_none_or(|(at, _)| i < *at) {
                    *failure = Some((i, text.into_owned()));
                }
            }
        };
        self.pool.run(tasks as usize, &task);
        match failure.into_inner().unwrap_or_else(PoisonError::into_inner) {
            Some((_, why)) => Err(why),
            None => Ok(()),
        }
    }
}

/// How a kernel of kernels/host/probes.cu is to be launched.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Probing {
    /// 0: the right way.
    pub which: i32,
    pub grid: [usize; 3],
    pub block: u32,
    pub shared: usize,
    /// Floats that it writes.
    pub outputs: usize,
}

impl Device {
    /// Launches a kernel that is wrong on purpose, to see that this is noticed. Returns what it wrote, NaN elsewhere.
    ///
    /// # Errors
    /// What the launch gives, and [`Error::Gpu`] if a device without kernels was asked.
    #[doc(hidden)]
    pub fn probe(&self, kernel: Kernel<abi::Probe>, p: Probing, input: &[f32]) -> Result<Vec<f32>> {
        let Exec::Kernels(launcher) = self.exec() else { return Err(Error::Gpu("it runs no kernels".into())) };
        let (mut from, mut to) = (self.alloc(size_of_val(input))?, self.alloc(p.outputs * 4)?);
        from.write(0, bytes_of(input));
        to.fill(0xFF);
        let params = abi::Probe {
            out: to.addr() as *mut f32,
            in_: from.addr() as *const f32,
            n: input.len() as i64,
            which: p.which,
        };
        let [x, y, z] = p.grid;
        launcher.kernel(kernel).grid3(x, y, z).block(p.block).shared(p.shared).launch(&params)?;
        let mut out = vec![0.0f32; p.outputs];
        to.read(0, bytes_of_mut(&mut out));
        self.synchronize()?;
        Ok(out)
    }
}
