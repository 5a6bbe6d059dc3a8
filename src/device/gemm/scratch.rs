//! Working memory of a thread, kept between calls.

use std::cell::Cell;

/// One cache line.
#[derive(Clone, Copy)]
#[repr(C, align(64))]
struct Line([u8; 64]);

/// A buffer on cache-line bounds that only grows. Always initialised (with zeros at first).
#[derive(Default)]
pub(super) struct Buffer(Vec<Line>);

impl Buffer {
    /// Room for `n` elements of T, a plain number type. The contents are whatever was there.
    pub(super) fn room<T: super::pack::Elem>(&mut self, n: usize) -> *mut T {
        let lines = (n * size_of::<T>()).div_ceil(64);
        if self.0.len() < lines {
            self.0.resize(lines, Line([0; 64]));
        }
        self.0.as_mut_ptr().cast()
    }
}

/// The buffers of one running product.
#[derive(Default)]
pub(super) struct Scratch {
    /// Packed columns of B.
    pub(super) b: Buffer,
    /// A micro-panel of A.
    pub(super) a: Buffer,
    /// Lines of an operand on their way into a packed form.
    pub(super) lines: Buffer,
    /// f32 sums of a bf16 result.
    pub(super) c: Buffer,
}

thread_local! {
    static MINE: Cell<Option<Box<Scratch>>> = const { Cell::new(None) };
    static SHARED: Cell<Option<Box<Buffer>>> = const { Cell::new(None) };
}

/// Calls `f` with a buffer of this thread's, which tasks that `f` hands out may read.
pub(super) fn with_shared<R>(f: impl FnOnce(&mut Buffer) -> R) -> R {
    let mut shared = SHARED.take().unwrap_or_default();
    let r = f(&mut shared);
    SHARED.set(Some(shared));
    r
}

/// Calls `f` with this thread's buffers. (A nested call, which does not happen, would get fresh ones.)
pub(super) fn with<R>(f: impl FnOnce(&mut Scratch) -> R) -> R {
    let mut mine = MINE.take().unwrap_or_default();
    let r = f(&mut mine);
    MINE.set(Some(mine));
    r
}
