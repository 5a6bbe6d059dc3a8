//! From a dry run to fixed offsets: [`Recorder`] writes down each allocation and its lifetime, [`Layout`] gives every
//! one an offset, [`Replay`] hands the offsets out again in the same order.
//!
//! A later step may be smaller in every dimension, so its k-th allocation fits the k-th slot; it is never larger,
//! because the dry run was made with the largest batch.

use std::sync::Arc;

use crate::error::{Error, Result};

/// Every buffer starts on a cache line, which is also the width of a vector register.
pub(super) const ALIGN: usize = 64;

#[derive(Debug, Clone, Copy)]
struct Lifetime {
    bytes: usize,
    born: usize,
    /// `usize::MAX` while it lives.
    died: usize,
}

/// Allocations in the order they were made, with the time each was made and freed.
#[derive(Debug, Clone, Default)]
pub struct Recorder {
    list: Vec<Lifetime>,
    clock: usize,
}

impl Recorder {
    pub(super) fn born(&mut self, bytes: usize) -> usize {
        self.clock += 1;
        self.list.push(Lifetime { bytes, born: self.clock, died: usize::MAX });
        self.list.len() - 1
    }

    pub(super) fn died(&mut self, slot: usize) {
        self.clock += 1;
        // A buffer of an earlier recording may outlive it; its slot then says nothing about this one.
        if let Some(l) = self.list.get_mut(slot).filter(|l| l.died == usize::MAX) {
            l.died = self.clock;
        }
    }

    /// Most bytes alive at once: no layout can be smaller.
    pub fn peak(&self) -> usize {
        let mut changes: Vec<(usize, bool, usize)> = Vec::new();
        for l in &self.list {
            changes.push((l.born, true, padded(l.bytes)));
            if l.died != usize::MAX {
                changes.push((l.died, false, padded(l.bytes)));
            }
        }
        changes.sort_unstable();
        let (mut now, mut peak) = (0usize, 0usize);
        for (_, up, bytes) in changes {
            if up {
                now += bytes;
                peak = peak.max(now);
            } else {
                now -= bytes;
            }
        }
        peak
    }

    /// Gives each allocation an offset: the largest first, each as low as it goes without touching one that is
    /// alive at the same time.
    pub fn layout(&self) -> Layout {
        let mut order: Vec<usize> = (0..self.list.len()).collect();
        order.sort_by_key(|&i| (std::cmp::Reverse(self.list[i].bytes), i));
        let mut offsets = vec![0usize; self.list.len()];
        let mut placed: Vec<usize> = Vec::with_capacity(order.len()); // by offset, ascending
        let mut total = 0;
        for i in order {
            let me = self.list[i];
            let size = padded(me.bytes);
            let mut at = 0;
            for &j in &placed {
                let other = self.list[j];
                if other.died < me.born || me.died < other.born {
                    continue;
                }
                if at + size <= offsets[j] {
                    break;
                }
                at = at.max(offsets[j] + padded(other.bytes));
            }
            offsets[i] = at;
            let pos = placed.partition_point(|&j| offsets[j] <= at);
            placed.insert(pos, i);
            total = total.max(at + size);
        }
        let slots = self.list.iter().zip(&offsets).map(|(l, &offset)| Slot { offset, bytes: l.bytes }).collect();
        Layout { slots, bytes: total }
    }
}

fn padded(bytes: usize) -> usize {
    bytes.div_ceil(ALIGN) * ALIGN
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Slot {
    offset: usize,
    bytes: usize,
}

/// An offset for every allocation of a step.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Layout {
    slots: Vec<Slot>,
    bytes: usize,
}

impl Layout {
    /// Bytes that a step of this layout needs.
    pub fn bytes(&self) -> usize {
        self.bytes
    }
}

/// One pass over a layout.
pub(super) struct Replay {
    layout: Arc<Layout>,
    next: usize,
    /// (slot, first byte, byte past the last) of what is alive.
    live: Vec<(usize, usize, usize)>,
}

impl Replay {
    pub(super) fn new(layout: Arc<Layout>) -> Self {
        Self { layout, next: 0, live: Vec::new() }
    }

    /// The next slot and its offset. That no live buffer overlaps it is checked, not assumed: the soundness of
    /// [`super::Buffer`] rests on it.
    pub(super) fn take(&mut self, bytes: usize) -> Result<(usize, usize)> {
        let k = self.next;
        let slot = *self.layout.slots.get(k).ok_or_else(|| {
            Error::Memory(format!("the step made allocation {k}, the plan ends before it (a bug: please report it)"))
        })?;
        let (from, to) = (slot.offset, slot.offset + padded(bytes));
        let why = if bytes > slot.bytes {
            format!("needs {bytes} bytes, planned were {}", slot.bytes)
        } else if self.live.iter().any(|&(_, a, b)| from < b && a < to) {
            "its place is still in use".to_string()
        } else {
            self.next += 1;
            self.live.push((k, from, to));
            return Ok((k, slot.offset));
        };
        Err(Error::Memory(format!("allocation {k} of the step: {why} (a bug: please report it)")))
    }

    pub(super) fn give_back(&mut self, slot: usize) {
        self.live.retain(|&(k, _, _)| k != slot);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn overlaps_in_time(a: Lifetime, b: Lifetime) -> bool {
        a.born < b.died && b.born < a.died
    }

    proptest! {
        /// Random allocations and frees: no two that live together share a byte, and the replay accepts the sequence.
        #[test]
        fn no_two_live_buffers_share_a_byte(ops in prop::collection::vec((0usize..5000, any::<bool>(), any::<prop::sample::Index>()), 1..60)) {
            let mut r = Recorder::default();
            let mut live: Vec<usize> = Vec::new();
            let mut script = Vec::new();
            for (bytes, alloc, which) in ops {
                if alloc || live.is_empty() {
                    live.push(r.born(bytes));
                    script.push((true, live[live.len() - 1], bytes));
                } else {
                    let slot = live.swap_remove(which.index(live.len()));
                    r.died(slot);
                    script.push((false, slot, 0));
                }
            }
            let layout = r.layout();
            prop_assert!(layout.bytes() >= r.peak());
            for i in 0..r.list.len() {
                prop_assert_eq!(layout.slots[i].offset % ALIGN, 0);
                prop_assert!(layout.slots[i].offset + r.list[i].bytes <= layout.bytes());
                for j in 0..i {
                    if overlaps_in_time(r.list[i], r.list[j]) {
                        let (a, b) = (layout.slots[i], layout.slots[j]);
                        prop_assert!(a.offset + padded(a.bytes) <= b.offset || b.offset + padded(b.bytes) <= a.offset);
                    }
                }
            }
            let mut replay = Replay::new(Arc::new(layout));
            for (alloc, slot, bytes) in script {
                if alloc {
                    prop_assert_eq!(replay.take(bytes).unwrap().0, slot);
                } else {
                    replay.give_back(slot);
                }
            }
        }
    }

    #[test]
    fn replay_refuses_what_was_not_planned() {
        let mut r = Recorder::default();
        let a = r.born(100);
        r.died(a);
        r.born(100);
        let layout = Arc::new(r.layout());
        assert_eq!(layout.bytes(), 128, "the second takes the place of the first");

        let mut larger = Replay::new(layout.clone());
        assert!(larger.take(101).is_err());
        let mut kept_longer = Replay::new(layout.clone());
        kept_longer.take(100).unwrap();
        assert!(kept_longer.take(100).is_err());
        let mut as_planned = Replay::new(layout);
        let (slot, _) = as_planned.take(64).unwrap();
        as_planned.give_back(slot);
        as_planned.take(100).unwrap();
        assert!(as_planned.take(1).is_err(), "more allocations than planned");
    }
}
