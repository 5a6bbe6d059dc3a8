//! Beginnings of sequences that are kept: a page of keys and values is known by its tokens and by the page before it, so that
//! a sequence that begins alike shares it. (Kwon et al. 2023, arXiv:2309.06180, section 4.4.)
//!
//! Pages are compared by their tokens, not by a hash of them. A page that no sequence has is given up when room is needed, the
//! one first that has not been used for the longest time.

use std::collections::{BTreeMap, HashMap};

use super::cache::PAGE;

/// A kept page, by a number that is never used again.
pub(super) type Node = u64;

#[derive(Debug, PartialEq, Eq, Hash, Clone)]
struct Key {
    /// What was read with different adapters is different.
    of: u64,
    /// The page before it; None at the beginning.
    before: Option<Node>,
    ids: Box<[u32]>,
}

struct Kept {
    page: u32,
    key: Key,
    /// Sequences that have it.
    users: usize,
    /// When it was let go last, as a key of `unused`.
    since: u64,
}

#[derive(Default)]
pub(super) struct Prefixes {
    nodes: HashMap<Node, Kept>,
    known: HashMap<Key, Node>,
    /// Nodes without users, by the time since when.
    unused: BTreeMap<u64, Node>,
    next: Node,
    clock: u64,
}

impl Prefixes {
    /// The longest chain of whole pages that `ids` begins with; each has one user more.
    pub fn find(&mut self, of: u64, ids: &[u32]) -> Vec<Node> {
        let mut chain: Vec<Node> = Vec::new();
        for ids in ids.chunks_exact(PAGE) {
            let key = Key { of, before: chain.last().copied(), ids: ids.into() };
            let Some(&node) = self.known.get(&key) else { break };
            self.hold(node);
            chain.push(node);
        }
        chain
    }

    /// The pages of `chain`, in order.
    pub fn pages<'a>(&'a self, chain: &'a [Node]) -> impl Iterator<Item = u32> + 'a {
        chain.iter().filter_map(|node| self.nodes.get(node)).map(|kept| kept.page)
    }

    /// Keeps `page`, which holds `ids`, for its owner; or finds one that holds the same. The node, which has one user more, and its
    /// page. None if the page before it is not kept.
    pub fn add(&mut self, of: u64, before: Option<&Node>, ids: &[u32], page: u32) -> Option<(Node, u32)> {
        if before.is_some_and(|node| !self.nodes.contains_key(node)) {
            return None;
        }
        let key = Key { of, before: before.copied(), ids: ids.into() };
        if let Some(&node) = self.known.get(&key) {
            self.hold(node);
            return self.nodes.get(&node).map(|kept| (node, kept.page));
        }
        let node = self.next;
        self.next += 1;
        self.known.insert(key.clone(), node);
        self.nodes.insert(node, Kept { page, key, users: 1, since: 0 });
        Some((node, page))
    }

    fn hold(&mut self, node: Node) {
        if let Some(kept) = self.nodes.get_mut(&node) {
            if kept.users == 0 {
                self.unused.remove(&kept.since);
            }
            kept.users += 1;
        }
    }

    /// One user less of each page of `chain`. Of those that then have none the last is the first to be given up.
    pub fn let_go(&mut self, chain: &[Node]) {
        for node in chain.iter().rev() {
            let Some(kept) = self.nodes.get_mut(node) else { continue };
            kept.users -= 1;
            if kept.users == 0 {
                kept.since = self.clock;
                self.unused.insert(self.clock, *node);
                self.clock += 1;
            }
        }
    }

    /// Gives up the page that has been unused for the longest time; None if every one is in use.
    pub fn give_up(&mut self) -> Option<u32> {
        let (_, node) = self.unused.pop_first()?;
        let kept = self.nodes.remove(&node)?;
        self.known.remove(&kept.key);
        Some(kept.page)
    }

    /// Pages without users.
    pub fn unused(&self) -> usize {
        self.unused.len()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ids(pages: usize, seed: u32) -> Vec<u32> {
        (0..pages * PAGE).map(|i| i as u32 * 3 + if i >= PAGE { seed } else { 0 }).collect()
    }

    /// Adds the pages of `ids` one after the other.
    fn add(p: &mut Prefixes, of: u64, ids: &[u32], pages: &[u32]) -> Vec<Node> {
        let mut chain: Vec<Node> = Vec::new();
        for (ids, &page) in ids.chunks_exact(PAGE).zip(pages) {
            chain.push(p.add(of, chain.last(), ids, page).unwrap().0);
        }
        chain
    }

    #[test]
    fn the_longest_common_beginning_is_found() {
        let mut p = Prefixes::default();
        let (a, b) = (ids(3, 1), ids(3, 2));
        let first = add(&mut p, 0, &a, &[10, 11, 12]);
        let found = p.find(0, &b);
        assert_eq!(found, first[..1], "the first page is the same, the second is not");
        assert_eq!(p.pages(&found).collect::<Vec<_>>(), [10]);
        assert!(p.find(7, &a).is_empty(), "another adapter");
        assert!(p.find(0, &a[..PAGE - 1]).is_empty(), "no whole page");
        assert_eq!(p.find(0, &a[..2 * PAGE + 1]), first[..2]);
        // The same content again: the page that is there already is used.
        let again = p.add(0, None, &a[..PAGE], 99).unwrap();
        assert_eq!(again, (first[0], 10));
    }

    #[test]
    fn unused_pages_are_given_up_oldest_and_deepest_first() {
        let mut p = Prefixes::default();
        let a = add(&mut p, 0, &ids(2, 1), &[1, 2]);
        let b = add(&mut p, 0, &ids(2, 2), &[3, 4]);
        assert_eq!(p.give_up(), None, "all are in use");
        assert_eq!(b[0], a[0]);
        p.let_go(&a);
        assert_eq!(p.unused(), 1, "the common page is in use still");
        p.let_go(&b);
        assert_eq!(p.unused(), 3);
        let found = p.find(0, &ids(2, 1));
        assert_eq!((found.len(), p.unused()), (2, 1));
        assert_eq!(p.give_up(), Some(4));
        assert_eq!(p.give_up(), None);
        p.let_go(&found);
        assert_eq!((p.give_up(), p.give_up(), p.give_up()), (Some(2), Some(1), None));
        assert!(p.find(0, &ids(2, 1)).is_empty());
        assert_eq!(p.known.len() + p.nodes.len(), 0);
    }

    /// A page whose beginning was given up is never found, even if the same beginning comes back.
    #[test]
    fn a_chain_does_not_outlive_its_beginning() {
        let mut p = Prefixes::default();
        let tokens = ids(2, 1);
        let chain = add(&mut p, 0, &tokens, &[1, 2]);
        p.let_go(&chain[..1]);
        assert_eq!(p.give_up(), Some(1));
        let again = add(&mut p, 0, &tokens[..PAGE], &[5]);
        assert_eq!(p.find(0, &tokens), again);
        assert_eq!(p.add(0, Some(&chain[0]), &tokens[PAGE..], 6), None);
    }
}
