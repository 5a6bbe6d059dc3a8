//! Buffers that were given up, for the next of their size: passes outside of an arena, as in generation, make the same
//! ones again and again, and zeroing fresh pages for them took a quarter of the time of a step (measured, tiny model, 64 rows).
//! Each thread has its own.

use std::cell::RefCell;
use std::collections::HashMap;
use std::ptr::NonNull;

use super::buffer::deallocate;

/// Bytes that a thread keeps at most; a larger buffer is not kept at all.
const MOST: usize = 64 << 20;

#[derive(Default)]
struct Given {
    by_size: HashMap<usize, Vec<NonNull<u8>>>,
    bytes: usize,
}

thread_local! { static GIVEN: RefCell<Given> = RefCell::default(); }

/// A buffer of exactly so many bytes, made by [`super::buffer::allocate`], with what it held last; None if there is none.
pub(super) fn take(bytes: usize) -> Option<NonNull<u8>> {
    let taken = GIVEN.try_with(|given| {
        let mut given = given.borrow_mut();
        let ptr = given.by_size.get_mut(&bytes).and_then(Vec::pop)?;
        given.bytes -= bytes;
        Some(ptr)
    });
    taken.ok().flatten()
}

/// Takes a buffer that [`super::buffer::allocate`] made for as many bytes.
pub(super) fn give(ptr: NonNull<u8>, bytes: usize) {
    // AddressSanitizer is to see who uses it after this.
    let keep = bytes <= MOST && !cfg!(feature = "host-asan");
    let kept = keep
        && GIVEN
            .try_with(|given| {
                let mut given = given.borrow_mut();
                if given.bytes + bytes > MOST {
                    given.clear();
                }
                given.by_size.entry(bytes).or_default().push(ptr);
                given.bytes += bytes;
            })
            .is_ok();
    if !kept {
        deallocate(ptr.as_ptr(), bytes);
    }
}

impl Given {
    fn clear(&mut self) {
        for (bytes, buffers) in self.by_size.drain() {
            buffers.into_iter().for_each(|ptr| deallocate(ptr.as_ptr(), bytes));
        }
        self.bytes = 0;
    }
}

impl Drop for Given {
    fn drop(&mut self) {
        self.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::super::buffer::allocate;
    use super::*;

    #[test]
    fn only_the_same_size_comes_back_and_no_more_is_kept_than_may() {
        let new = |bytes| allocate(bytes).unwrap();
        assert_eq!(take(100), None);
        let (a, b) = (new(100), new(100));
        give(a, 100);
        give(b, 100);
        assert_eq!(take(99), None);
        assert_eq!(take(100), Some(b));
        assert_eq!(take(100), Some(a));
        assert_eq!(take(100), None);
        give(a, 100);
        give(b, 100);
        give(new(MOST + 1), MOST + 1);
        let kept = || GIVEN.with(|g| g.borrow().bytes);
        assert_eq!(kept(), 200);
        give(new(MOST - 100), MOST - 100);
        assert_eq!(kept(), MOST - 100, "what was there before has made room");
    }
}
