//! Kernels on the CPU: blocks on all threads of a pool, each block's CUDA threads as fibers (kernels/host/).

use std::ffi::{CStr, c_char, c_int, c_void};
use std::sync::{Mutex, PoisonError};

use super::kernel::{Params, kernels};
use super::pool::Pool;

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
}

/// Parameters on their way to other threads.
struct Shared<T>(*const T);
// SAFETY: the struct is only read; what its pointers lead to is divided among blocks by the kernel itself, as on a GPU.
unsafe impl<T> Sync for Shared<T> {}

impl Host {
    pub(super) fn new(threads: usize, reversed: bool) -> Self {
        Host { pool: Pool::new(threads), reversed }
    }

    /// Runs every block; returns when all have run.
    pub(super) fn run<P: Params>(
        &self,
        name: &str,
        grid: [u32; 3],
        threads: u32,
        shared: usize,
        p: &P,
    ) -> Result<(), String> {
        let entry = kernels::HOST.iter().find(|e| e.name == name);
        let entry = entry.ok_or("it is not among the host-run kernels")?;
        // SAFETY: a constant of the linked library.
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
            // SAFETY: the kernel was compiled from the same header as `P` (the table pairs them); the ops have checked that
            // the tensors behind its pointers are as large as the header says; `why` is large enough for its size.
            let failed = unsafe {
                qe_host_run(
                    entry.run,
                    params.0.cast(),
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
