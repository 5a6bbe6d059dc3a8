//! Names of requests, and seeds for those that bring none: nobody outside can foretell them.

use std::collections::hash_map::RandomState;
use std::hash::{BuildHasher, Hasher};
use std::sync::atomic::{AtomicU64, Ordering};

/// A source of numbers that do not repeat.
pub(super) struct Ids {
    key: [u8; 32],
    count: AtomicU64,
}

impl Ids {
    pub fn new() -> Ids {
        // The standard library keys its hash maps from the system's random numbers.
        let mut key = [0; 32];
        for part in key.chunks_exact_mut(8) {
            part.copy_from_slice(&RandomState::new().build_hasher().finish().to_le_bytes());
        }
        Ids { key, count: AtomicU64::new(0) }
    }

    fn next(&self) -> [u8; 32] {
        let count = self.count.fetch_add(1, Ordering::Relaxed);
        *blake3::keyed_hash(&self.key, &count.to_le_bytes()).as_bytes()
    }

    /// 24 hexadecimal digits.
    pub fn hex(&self) -> String {
        self.next().iter().take(12).map(|b| format!("{b:02x}")).collect()
    }

    pub fn seed(&self) -> u64 {
        let [a, b, c, d, e, f, g, h, ..] = self.next();
        u64::from_le_bytes([a, b, c, d, e, f, g, h])
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn none_comes_twice() {
        let (ids, other) = (Ids::new(), Ids::new());
        let mut all: Vec<String> = (0..1000).flat_map(|_| [ids.hex(), other.hex()]).collect();
        assert!(all.iter().all(|id| id.len() == 24));
        all.sort();
        all.dedup();
        assert_eq!(all.len(), 2000);
        assert_ne!(ids.seed(), ids.seed());
    }
}
