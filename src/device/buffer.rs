//! [`Buffer`]: owned bytes on the heap, in the device's memory, in the arena of a step, in pinned memory of the CPU that
//! kernels read, or nowhere (when planning).

use std::alloc::{self, Layout as HeapLayout};
use std::ptr::NonNull;
use std::sync::Arc;

use super::Device;
use super::layout::ALIGN;
use super::queue::{Block, Later, Queue};
use super::recycle;
use crate::error::{Error, Result};

/// Bytes that one tensor owns. Never shared: `&mut Buffer` is exclusive access to them.
pub struct Buffer {
    /// An address of the CPU's or of the device's memory; `side` says which.
    ptr: NonNull<u8>,
    bytes: usize,
    place: Place,
    side: Side,
}

/// Who reads and writes a buffer's bytes.
#[derive(Clone)]
pub(super) enum Side {
    /// The CPU, in place.
    Host,
    /// Kernels; the CPU copies in and out. (So it is with host-run kernels too, though their memory is the CPU's.)
    Device(Arc<Queue>),
}

enum Place {
    Heap,
    Own {
        _block: Block,
    },
    /// Page-locked memory of the CPU. Kernels read it in place; the CPU touches it while nothing enqueued does.
    Pinned {
        _block: Block,
    },
    Arena {
        device: Device,
        slot: usize,
        _arena: Arc<Arena>,
    },
    Planned {
        device: Device,
        slot: usize,
    },
}

// SAFETY: a buffer owns its bytes exclusively, whichever place they are in: a heap block is its own, and the arena's
// replay hands out no byte twice at the same time. So it may move between threads, and `&Buffer` only reads.
unsafe impl Send for Buffer {}
// SAFETY: as above.
unsafe impl Sync for Buffer {}

fn heap_layout(bytes: usize) -> Result<HeapLayout> {
    HeapLayout::from_size_align(bytes.max(1), ALIGN)
        .map_err(|_| Error::Memory(format!("{bytes} bytes are more than an address can name")))
}

pub(super) fn allocate(bytes: usize) -> Result<NonNull<u8>> {
    let layout = heap_layout(bytes)?;
    // SAFETY: the layout has a size above zero.
    let ptr = unsafe { alloc::alloc_zeroed(layout) };
    NonNull::new(ptr).ok_or_else(|| Error::Memory(format!("the system has no {bytes} bytes left")))
}

/// Frees what [`allocate`] returned for as many bytes.
pub(super) fn deallocate(ptr: *mut u8, bytes: usize) {
    if let Ok(layout) = heap_layout(bytes) {
        // SAFETY: `allocate` made this pointer with this very layout.
        unsafe { alloc::dealloc(ptr, layout) }
    }
}

/// An address of a device; it is never followed here.
fn device_ptr(addr: u64) -> Result<NonNull<u8>> {
    NonNull::new(addr as *mut u8).ok_or_else(|| Error::Memory("the device gave memory at address 0".into()))
}

impl Buffer {
    /// In the CPU's own memory, its contents unspecified.
    pub(super) fn heap(bytes: usize) -> Result<Self> {
        let ptr = recycle::take(bytes).map_or_else(|| allocate(bytes), Ok)?;
        Ok(Self { ptr, bytes, place: Place::Heap, side: Side::Host })
    }

    /// In the memory of the device behind `queue`, an allocation of its own.
    pub(super) fn on(queue: &Arc<Queue>, bytes: usize) -> Result<Self> {
        let block = queue.alloc(bytes)?;
        let (ptr, side) = (device_ptr(block.addr())?, Side::Device(queue.clone()));
        Ok(Self { ptr, bytes, place: Place::Own { _block: block }, side })
    }

    /// In pinned memory that the kernels behind `queue` read in place.
    pub(super) fn pinned(queue: &Arc<Queue>, bytes: usize) -> Result<Self> {
        let block = queue.alloc_pinned(bytes)?;
        let (ptr, side) = (device_ptr(block.addr())?, Side::Device(queue.clone()));
        Ok(Self { ptr, bytes, place: Place::Pinned { _block: block }, side })
    }

    /// As planned, but in an allocation of its own, so that AddressSanitizer sees where it ends.
    pub(super) fn alone(device: Device, slot: usize, bytes: usize) -> Result<Self> {
        let side = device.side();
        let arena = Arc::new(Arena::new(bytes, &side)?);
        Ok(Self { ptr: arena.ptr, bytes, place: Place::Arena { device, slot, _arena: arena }, side })
    }

    pub(super) fn in_arena(device: Device, arena: Arc<Arena>, slot: usize, offset: usize, bytes: usize) -> Self {
        assert!(offset + bytes <= arena.bytes, "a slot lies inside the arena");
        // SAFETY: the offset lies inside the arena's one allocation, which `_arena` keeps alive; an address of another
        // device's memory is a number to this process.
        let ptr = unsafe { arena.ptr.add(offset) };
        let side = device.side();
        Self { ptr, bytes, place: Place::Arena { device, slot, _arena: arena }, side }
    }

    pub(super) fn planned(device: Device, slot: usize, bytes: usize) -> Self {
        Self { ptr: NonNull::dangling(), bytes, place: Place::Planned { device, slot }, side: Side::Host }
    }

    /// Size in bytes.
    pub fn len(&self) -> usize {
        self.bytes
    }

    /// Whether it holds no byte.
    pub fn is_empty(&self) -> bool {
        self.bytes == 0
    }

    /// The bytes. Panics for a planned buffer, which has none.
    pub fn bytes(&self) -> &[u8] {
        self.assert_real();
        // SAFETY: `ptr` points to `bytes` bytes, initialised (zeroed when they came from the system), owned by this buffer.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    /// The bytes, to be written. Panics for a planned buffer.
    pub fn bytes_mut(&mut self) -> &mut [u8] {
        self.assert_real();
        // SAFETY: as in `bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }

    /// The bytes as numbers. Panics for a planned buffer.
    pub fn as_slice<T: Pod>(&self) -> &[T] {
        self.assert_real();
        // SAFETY: `Pod` types take any bit pattern; `ptr` is aligned to 64 bytes, above any `Pod`'s alignment; the
        // length is rounded down to whole elements.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr().cast(), self.bytes / size_of::<T>()) }
    }

    /// The bytes as numbers, to be written. Panics for a planned buffer.
    pub fn as_mut_slice<T: Pod>(&mut self) -> &mut [T] {
        self.assert_real();
        // SAFETY: as in `as_slice`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr().cast(), self.bytes / size_of::<T>()) }
    }

    /// Where kernels find it; 0 when planned.
    pub(crate) fn addr(&self) -> u64 {
        match self.place {
            Place::Planned { .. } => 0,
            _ => self.ptr.as_ptr() as u64,
        }
    }

    /// Copies `from` into the bytes from `at` on; on a device the copy is enqueued. Does nothing when planned.
    pub(crate) fn write(&mut self, at: usize, from: &[u8]) {
        assert!(at <= self.bytes && from.len() <= self.bytes - at, "what is written lies inside the buffer");
        match (&self.place, &self.side) {
            (Place::Planned { .. }, _) => {}
            (Place::Pinned { .. }, Side::Device(queue)) => {
                if queue.settled() {
                    self.pinned_bytes_mut()[at..at + from.len()].copy_from_slice(from);
                }
            }
            (_, Side::Device(queue)) => queue.write(self.addr() + at as u64, from),
            (_, Side::Host) => self.bytes_mut()[at..at + from.len()].copy_from_slice(from),
        }
    }

    /// Copies the bytes from `at` on into `to`, after all that was enqueued. Panics when planned: there are none.
    pub(crate) fn read(&self, at: usize, to: &mut [u8]) {
        assert!(
            !matches!(self.place, Place::Planned { .. }),
            "a planned buffer has no bytes: an op computed in a plan"
        );
        assert!(at <= self.bytes && to.len() <= self.bytes - at, "what is read lies inside the buffer");
        match &self.side {
            Side::Device(queue) if self.is_pinned() => match queue.settled() {
                true => to.copy_from_slice(&self.pinned_bytes()[at..at + to.len()]),
                false => to.fill(0xFF),
            },
            Side::Device(queue) => queue.read(self.addr() + at as u64, to),
            Side::Host => to.copy_from_slice(&self.bytes()[at..at + to.len()]),
        }
    }

    /// Asks for the `bytes` bytes from `at` on, as they are after all that was enqueued, without waiting for that. Panics
    /// as [`Buffer::read`] does.
    pub(crate) fn read_later(&self, at: usize, bytes: usize) -> Later {
        assert!(at <= self.bytes && bytes <= self.bytes - at, "what is read lies inside the buffer");
        match &self.side {
            Side::Device(_) if self.is_pinned() => {
                let mut now = vec![0; bytes];
                self.read(at, &mut now);
                Later::now(now)
            }
            Side::Device(queue) => queue.read_later(self.addr() + at as u64, bytes),
            Side::Host => Later::now(self.bytes()[at..at + bytes].to_vec()),
        }
    }

    /// Sets every byte. Does nothing when planned.
    pub(crate) fn fill(&mut self, byte: u8) {
        match (&self.place, &self.side) {
            (Place::Planned { .. }, _) => {}
            (Place::Pinned { .. }, Side::Device(queue)) => {
                if queue.settled() {
                    self.pinned_bytes_mut().fill(byte);
                }
            }
            (_, Side::Device(queue)) => queue.fill(self.addr(), byte, self.bytes),
            (_, Side::Host) => self.bytes_mut().fill(byte),
        }
    }

    /// Copies all of `from`, which is on the same device and as long. Does nothing when planned.
    pub(crate) fn copy_from(&mut self, from: &Buffer) {
        assert_eq!(self.bytes, from.bytes, "buffers of one size are copied");
        match (&self.place, &self.side, &from.side) {
            (Place::Planned { .. }, ..) => {}
            _ if self.is_pinned() || from.is_pinned() => {
                let mut bytes = vec![0; self.bytes];
                from.read(0, &mut bytes);
                self.write(0, &bytes);
            }
            (_, Side::Device(queue), Side::Device(other)) => {
                assert!(Arc::ptr_eq(queue, other), "buffers of one device are copied");
                queue.copy(self.addr(), from.addr(), self.bytes);
            }
            _ => self.bytes_mut().copy_from_slice(from.bytes()),
        }
    }

    /// Whether it is memory of the CPU that kernels read in place.
    pub(crate) fn is_pinned(&self) -> bool {
        matches!(self.place, Place::Pinned { .. })
    }

    /// Nothing enqueued may use them: [`Queue::settled`].
    fn pinned_bytes(&self) -> &[u8] {
        assert!(self.is_pinned(), "only pinned memory of a device is the CPU's too");
        // SAFETY: the block is `bytes` bytes of this process's memory, initialised (its pages come zeroed from the system),
        // and owned by this buffer.
        unsafe { std::slice::from_raw_parts(self.ptr.as_ptr(), self.bytes) }
    }

    /// As [`Buffer::pinned_bytes`], to be written.
    fn pinned_bytes_mut(&mut self) -> &mut [u8] {
        assert!(self.is_pinned(), "only pinned memory of a device is the CPU's too");
        // SAFETY: as in `pinned_bytes`, and `&mut self` makes the access exclusive.
        unsafe { std::slice::from_raw_parts_mut(self.ptr.as_ptr(), self.bytes) }
    }

    fn assert_real(&self) {
        assert!(
            !matches!(self.place, Place::Planned { .. }),
            "a planned buffer has no bytes: an op computed in a plan"
        );
        assert!(
            matches!(self.side, Side::Host),
            "the CPU read device memory in place: an op has no launch for kernels"
        );
    }
}

impl Drop for Buffer {
    fn drop(&mut self) {
        match &self.place {
            Place::Heap => recycle::give(self.ptr, self.bytes),
            Place::Own { .. } | Place::Pinned { .. } => {}
            Place::Arena { device, slot, .. } | Place::Planned { device, slot } => device.freed(*slot),
        }
    }
}

/// Numbers for which every bit pattern is a value.
///
/// # Safety
/// The type has no padding, no invalid bit pattern, and an alignment of at most 64.
pub unsafe trait Pod: Copy + Send + Sync + 'static {}
// SAFETY: plain numbers; `bf16` and `f16` are transparent u16.
unsafe impl Pod for u8 {}
// SAFETY: as above.
unsafe impl Pod for u32 {}
// SAFETY: as above.
unsafe impl Pod for f32 {}
// SAFETY: as above.
unsafe impl Pod for f64 {}
// SAFETY: as above.
unsafe impl Pod for half::bf16 {}
// SAFETY: as above.
unsafe impl Pod for half::f16 {}
// SAFETY: as above.
unsafe impl Pod for u64 {}
// SAFETY: one number of 8 bytes, then eight of 4: no padding (checked below).
unsafe impl Pod for super::abi::AdamWStep {}
const _: () = assert!(size_of::<super::abi::AdamWStep>() == 8 + 8 * 4);
// SAFETY: numbers of 4 bytes, then one of 8 at a multiple of 8, then two of 4: no padding (checked below).
unsafe impl Pod for super::abi::Step {}
const _: () = assert!(size_of::<super::abi::Step>() == 4 * 4 + 8 + 2 * 4);
// SAFETY: five numbers of 8 bytes, then two of 4: no padding (checked below).
unsafe impl Pod for super::abi::SampleRow {}
const _: () = assert!(size_of::<super::abi::SampleRow>() == 5 * 8 + 2 * 4);
// SAFETY: two numbers of 4 bytes: no padding (checked below).
unsafe impl Pod for super::abi::SampleMark {}
const _: () = assert!(size_of::<super::abi::SampleMark>() == 2 * 4);
// SAFETY: four numbers of 4 bytes: no padding (checked below).
unsafe impl Pod for super::abi::SampleHead {}
const _: () = assert!(size_of::<super::abi::SampleHead>() == 4 * 4);

/// The bytes of numbers.
pub fn bytes_of<T: Pod>(data: &[T]) -> &[u8] {
    // SAFETY: `Pod` types have no padding, so every byte is initialised; u8 has no alignment.
    unsafe { std::slice::from_raw_parts(data.as_ptr().cast(), size_of_val(data)) }
}

/// The bytes of numbers, to be written.
pub fn bytes_of_mut<T: Pod>(data: &mut [T]) -> &mut [u8] {
    // SAFETY: as in `bytes_of`; and any bytes are a `Pod`.
    unsafe { std::slice::from_raw_parts_mut(data.as_mut_ptr().cast(), size_of_val(data)) }
}

/// The one allocation in which a step's tensors live.
pub(super) struct Arena {
    ptr: NonNull<u8>,
    bytes: usize,
    /// Where it is the device's memory.
    block: Option<Block>,
}

// SAFETY: the arena itself is only a range of addresses; who may touch which bytes is decided by the replay.
unsafe impl Send for Arena {}
// SAFETY: as above.
unsafe impl Sync for Arena {}

impl Arena {
    /// Reserves the bytes; those of the CPU are written to page by page, so that a system without that much says so now and
    /// not at step 900.
    pub(super) fn new(bytes: usize, side: &Side) -> Result<Self> {
        if let Side::Device(queue) = side {
            let block = queue.alloc(bytes)?;
            return Ok(Self { ptr: device_ptr(block.addr())?, bytes, block: Some(block) });
        }
        let ptr = allocate(bytes)?;
        // SAFETY: all of it was just allocated and nobody else knows of it.
        let all = unsafe { std::slice::from_raw_parts_mut(ptr.as_ptr(), bytes) };
        for page in all.chunks_mut(4096) {
            // A volatile write is not dropped as a repetition of the zeroes that the allocation promises.
            // SAFETY: a chunk is never empty.
            unsafe { std::ptr::write_volatile(page.as_mut_ptr(), 0) };
        }
        Ok(Self { ptr, bytes, block: None })
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }
}

impl Drop for Arena {
    fn drop(&mut self) {
        if self.block.is_none() {
            deallocate(self.ptr.as_ptr(), self.bytes);
        }
    }
}
