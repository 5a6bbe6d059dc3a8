//! A fork-join pool for loops whose iterations are independent.
//!
//! [`Pool::run`] hands out task indices from one counter, so which thread runs a task is chance; a task must therefore
//! compute the same bits whoever runs it, and all of ours do. The calling thread works too. Idle workers spin for some
//! tens of microseconds, so that the next product of a layer finds them awake, and then sleep.
//!
//! One word, `gate`, holds the state of the current job: `open` (workers may still join), how many workers are inside,
//! and the job's number. A worker touches the job only between a successful join and its leave; the caller closes the
//! gate and returns only when nobody is inside. A worker that wakes too late finds the gate closed and nobody waits
//! for it, which matters on a busy machine.

use std::any::Any;
use std::cell::{Cell, UnsafeCell};
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::*};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};
use std::thread::JoinHandle;

/// `gate` = number of the job << 16 | OPEN | workers inside.
const OPEN: u64 = 1 << 15;
const INSIDE: u64 = OPEN - 1;
const NUMBER: u64 = 1 << 16;

/// Spins before sleeping. A `pause` takes 20 to 70 ns on current cores: about 20 to 70 microseconds.
const SPINS: usize = 1000;

thread_local! {
    /// Set while this thread runs tasks of some pool: a nested `run` is then done by this thread alone.
    static IN_TASK: Cell<bool> = const { Cell::new(false) };
}

type Task<'a> = &'a (dyn Fn(usize) + Sync + 'a);

#[derive(Clone, Copy)]
struct Job {
    /// The caller's closure. The lifetime is erased; the caller outlives every use (see `Shared::job`).
    f: Task<'static>,
    tasks: usize,
}

struct Shared {
    gate: AtomicU64,
    /// Written by the caller while the gate is closed with nobody inside; read by workers inside.
    job: UnsafeCell<Option<Job>>,
    /// Next task index to hand out.
    next: AtomicUsize,
    /// First panic of the current job.
    panic: Mutex<Option<Box<dyn Any + Send>>>,
    /// Guards both condition variables.
    lock: Mutex<()>,
    wake: Condvar,
    done: Condvar,
    sleepers: AtomicUsize,
    caller_waits: AtomicBool,
    stop: AtomicBool,
}

// SAFETY: every field is Sync by itself except `job`. It is written only by the thread that holds `Pool::callers`, while
// the gate is closed and the count inside is zero; it is read only by workers counted inside. The gate's atomics order both.
unsafe impl Sync for Shared {}
// SAFETY: the job's closure is `Sync`, so its reference may move between threads.
unsafe impl Send for Shared {}

/// Threads that run the iterations of a loop. Dropping it joins them.
pub struct Pool {
    shared: Arc<Shared>,
    workers: Vec<JoinHandle<()>>,
    /// Held during a job: a second caller does its work alone.
    callers: Mutex<()>,
}

fn lock<T>(m: &Mutex<T>) -> MutexGuard<'_, T> {
    m.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Pool {
    /// A pool that works with `threads` threads, the caller's included; 0 counts as 1. If the system refuses to start
    /// some, the pool works with those it got.
    pub fn new(threads: usize) -> Pool {
        let shared = Arc::new(Shared {
            gate: AtomicU64::new(0),
            job: UnsafeCell::new(None),
            next: AtomicUsize::new(0),
            panic: Mutex::new(None),
            lock: Mutex::new(()),
            wake: Condvar::new(),
            done: Condvar::new(),
            sleepers: AtomicUsize::new(0),
            caller_waits: AtomicBool::new(false),
            stop: AtomicBool::new(false),
        });
        let mut workers = Vec::new();
        // The count inside has 15 bits.
        for i in 1..threads.min(INSIDE as usize) {
            let shared = Arc::clone(&shared);
            let start = move || shared.work();
            match std::thread::Builder::new().name(format!("worker-{i}")).spawn(start) {
                Ok(w) => workers.push(w),
                Err(e) => {
                    log::warn!("could not start thread {i} of {threads}: {e}; going on with fewer");
                    break;
                }
            }
        }
        Pool { shared, workers, callers: Mutex::new(()) }
    }

    /// How many threads work on a job, the caller's included.
    pub fn threads(&self) -> usize {
        self.workers.len() + 1
    }

    /// Runs `f(0)`, ..., `f(tasks - 1)`, each once, in any order and on any thread, and returns when all are done.
    /// From inside a task, or while another thread uses the pool, the calling thread does all of it alone.
    ///
    /// # Panics
    /// If a task panics: with that panic, after every running task has ended; tasks not yet started are skipped.
    pub fn run(&self, tasks: usize, f: &(dyn Fn(usize) + Sync)) {
        if tasks <= 1 || self.workers.is_empty() || IN_TASK.get() {
            return (0..tasks).for_each(f);
        }
        let Ok(_only) = self.callers.try_lock() else { return (0..tasks).for_each(f) };
        let s = &*self.shared;
        // SAFETY: only the lifetime changes. The reference is used by threads inside the gate, and this function does
        // not return (nor unwind: tasks run under catch_unwind) before it has closed the gate and all have left.
        let f: Task<'static> = unsafe { std::mem::transmute::<Task<'_>, Task<'static>>(f) };
        let job = Job { f, tasks };
        // SAFETY: we hold `callers`, and the last job ended with a closed gate and nobody inside.
        unsafe { *s.job.get() = Some(job) };
        s.next.store(0, Relaxed);
        let number = s.gate.load(Relaxed) & !(OPEN | INSIDE);
        s.gate.store(number.wrapping_add(NUMBER) | OPEN, SeqCst);
        if s.sleepers.load(SeqCst) > 0 {
            let _g = lock(&s.lock);
            s.wake.notify_all();
        }
        s.tasks(job);
        s.gate.fetch_and(!OPEN, SeqCst);
        s.wait_until_empty();
        if let Some(p) = lock(&s.panic).take() {
            drop(_only);
            resume_unwind(p);
        }
    }
}

impl Drop for Pool {
    fn drop(&mut self) {
        self.shared.stop.store(true, SeqCst);
        {
            let _g = lock(&self.shared.lock);
            self.shared.wake.notify_all();
        }
        for w in self.workers.drain(..) {
            // A worker cannot panic: tasks run under catch_unwind.
            let _ = w.join();
        }
    }
}

impl Shared {
    /// Takes task indices until none is left.
    fn tasks(&self, job: Job) {
        let outer = IN_TASK.replace(true);
        let result = catch_unwind(AssertUnwindSafe(|| {
            loop {
                let i = self.next.fetch_add(1, Relaxed);
                if i >= job.tasks {
                    break;
                }
                (job.f)(i);
            }
        }));
        IN_TASK.set(outer);
        if let Err(p) = result {
            self.next.store(job.tasks, Relaxed);
            lock(&self.panic).get_or_insert(p);
        }
    }

    fn wait_until_empty(&self) {
        for _ in 0..SPINS {
            if self.gate.load(SeqCst) & INSIDE == 0 {
                return;
            }
            std::hint::spin_loop();
        }
        let mut g = lock(&self.lock);
        self.caller_waits.store(true, SeqCst);
        while self.gate.load(SeqCst) & INSIDE != 0 {
            g = self.done.wait(g).unwrap_or_else(PoisonError::into_inner);
        }
        self.caller_waits.store(false, SeqCst);
    }

    /// A worker's life.
    fn work(&self) {
        let mut seen = 0; // number of the last job looked at
        while let Some(gate) = self.wait_for_job(seen) {
            seen = gate / NUMBER;
            if !self.join(seen) {
                continue;
            }
            // SAFETY: we are counted inside: the caller neither writes the job nor returns before we leave.
            if let Some(job) = unsafe { *self.job.get() } {
                self.tasks(job);
            }
            let left = self.gate.fetch_sub(1, SeqCst) - 1;
            if left & (OPEN | INSIDE) == 0 && self.caller_waits.load(SeqCst) {
                let _g = lock(&self.lock);
                self.done.notify_all();
            }
        }
    }

    /// Counts this worker inside job `number`, unless it has been closed.
    fn join(&self, number: u64) -> bool {
        let enter = |g: u64| (g & OPEN != 0 && g / NUMBER == number).then_some(g + 1);
        self.gate.fetch_update(SeqCst, SeqCst, enter).is_ok()
    }

    /// Spins, then sleeps, until the gate shows an open job other than `seen`; `None` when the pool is dropped.
    fn wait_for_job(&self, seen: u64) -> Option<u64> {
        let new = || {
            let g = self.gate.load(SeqCst);
            (g & OPEN != 0 && g / NUMBER != seen).then_some(g)
        };
        for _ in 0..SPINS {
            if let Some(g) = new() {
                return Some(g);
            }
            std::hint::spin_loop();
        }
        let mut guard = lock(&self.lock);
        self.sleepers.fetch_add(1, SeqCst);
        let found = loop {
            if self.stop.load(SeqCst) {
                break None;
            }
            if let Some(g) = new() {
                break Some(g);
            }
            guard = self.wake.wait(guard).unwrap_or_else(PoisonError::into_inner);
        };
        self.sleepers.fetch_sub(1, SeqCst);
        found
    }
}

fn global_cell() -> &'static RwLock<Arc<Pool>> {
    static GLOBAL: OnceLock<RwLock<Arc<Pool>>> = OnceLock::new();
    GLOBAL.get_or_init(|| {
        let threads = std::thread::available_parallelism().map_or(1, |n| n.get());
        RwLock::new(Arc::new(Pool::new(threads)))
    })
}

/// The program's pool: as many threads as the process may use, or what [`set_global`] set.
pub fn global() -> Arc<Pool> {
    Arc::clone(&global_cell().read().unwrap_or_else(PoisonError::into_inner))
}

/// Replaces the program's pool. Holders of the old one keep it until they let go.
pub fn set_global(pool: Pool) {
    let old = {
        let mut g = global_cell().write().unwrap_or_else(PoisonError::into_inner);
        std::mem::replace(&mut *g, Arc::new(pool))
    };
    drop(old); // joins its threads outside the lock
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_task_runs_exactly_once() {
        for threads in [1, 2, 3, 5] {
            let pool = Pool::new(threads);
            assert_eq!(pool.threads(), threads);
            for tasks in [0, 1, 2, 7, 100] {
                let hits: Vec<AtomicUsize> = (0..tasks).map(|_| AtomicUsize::new(0)).collect();
                pool.run(tasks, &|i| {
                    hits[i].fetch_add(1, Relaxed);
                });
                assert!(hits.iter().all(|h| h.load(Relaxed) == 1), "{threads} threads, {tasks} tasks");
            }
        }
    }

    /// Many short jobs in a row: a late worker must not run a task of a job that has ended, nor be lost.
    #[test]
    fn short_jobs_in_a_row() {
        let pool = Pool::new(3);
        let sum = AtomicUsize::new(0);
        for round in 0..3000 {
            if round % 1000 == 999 {
                std::thread::sleep(std::time::Duration::from_millis(5)); // let the workers fall asleep
            }
            pool.run(4, &|i| {
                sum.fetch_add(i + 1, Relaxed);
            });
            assert_eq!(sum.load(Relaxed), 10 * (round + 1));
        }
    }

    #[test]
    fn a_nested_run_is_done_by_its_own_thread() {
        let pool = Pool::new(3);
        let count = AtomicUsize::new(0);
        pool.run(6, &|_| {
            let me = std::thread::current().id();
            pool.run(5, &|_| {
                assert_eq!(std::thread::current().id(), me);
                count.fetch_add(1, Relaxed);
            });
        });
        assert_eq!(count.load(Relaxed), 30);
    }

    #[test]
    fn a_panic_reaches_the_caller_and_the_pool_lives_on() {
        let pool = Pool::new(3);
        for bad in [0, 3, 9] {
            let f = |i: usize| assert!(i != bad, "task {i} failed");
            let e = catch_unwind(AssertUnwindSafe(|| pool.run(10, &f))).expect_err("must panic");
            let text = e.downcast_ref::<String>().cloned().unwrap_or_default();
            assert_eq!(text, format!("task {bad} failed"));
            let n = AtomicUsize::new(0);
            pool.run(10, &|_| {
                n.fetch_add(1, Relaxed);
            });
            assert_eq!(n.load(Relaxed), 10);
        }
    }

    #[test]
    fn two_callers_at_once() {
        let pool = Pool::new(2);
        let n = AtomicUsize::new(0);
        std::thread::scope(|s| {
            for _ in 0..4 {
                s.spawn(|| {
                    for _ in 0..200 {
                        pool.run(3, &|_| {
                            n.fetch_add(1, Relaxed);
                        });
                    }
                });
            }
        });
        assert_eq!(n.load(Relaxed), 4 * 200 * 3);
    }

    #[test]
    fn the_global_pool_can_be_replaced() {
        let before = global();
        set_global(Pool::new(2));
        assert_eq!(global().threads(), 2);
        assert!(!Arc::ptr_eq(&before, &global()));
    }
}
