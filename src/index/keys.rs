//! Which keys there are, in memory: for each entry the short number of its key and its row id.
//!
//! Invariants: every committed row is in the table, from before its commit on, so that what is not there is absent;
//! a pair may stand for a row that is gone or was never committed, so that what is there must be looked at.
//! Until all rows that were there at the start are taken in, and from then on when they do not fit, the table
//! says nothing. Must not know: SQLite, what a row is.

use std::sync::atomic::{AtomicU8, AtomicUsize, Ordering};

use parking_lot::RwLock;

/// Parts of the table, by the first bits of the number: some hundred pairs each in a store of a million entries, so that
/// adding one moves few others, and no change stops all who ask.
const PARTS: usize = 1 << PART_BITS;
const PART_BITS: u32 = 12;
/// Bytes of one entry in the table, with the room that parts keep to grow.
pub(super) const PAIR_BYTES: usize = 18;

/// The number of a key and a row id; sorted.
type Pair = (u64, i64);

/// What the table says of a number.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// No entry has it.
    Absent,
    /// If any entry has it, then the one with this row id, unless that is gone.
    At(i64),
    /// Ask the index.
    Unclear,
}

/// Rows that were there at the start are still being taken in.
const LOADING: u8 = 0;
/// All rows are in it.
const COMPLETE: u8 = 1;
/// It has grown too large, for good.
const GIVEN_UP: u8 = 2;

/// The table.
pub(super) struct Keys {
    parts: Box<[RwLock<Vec<Pair>>]>,
    state: AtomicU8,
    pairs: AtomicUsize,
    most: usize,
}

impl Keys {
    /// An empty table that takes up at most `bytes`.
    pub fn new(bytes: usize) -> Keys {
        Keys {
            parts: (0..PARTS).map(|_| RwLock::default()).collect(),
            state: AtomicU8::new(LOADING),
            pairs: AtomicUsize::new(0),
            most: bytes / PAIR_BYTES,
        }
    }

    fn part(&self, number: u64) -> &RwLock<Vec<Pair>> {
        &self.parts[(number >> (u64::BITS - PART_BITS)) as usize]
    }

    /// What is known of entries whose keys have this number.
    pub fn find(&self, number: u64) -> Known {
        let part = self.part(number).read();
        // Asked for under the lock: whoever gives up says so before it empties a part.
        if !self.is_complete() {
            return Known::Unclear;
        }
        match part[position(&part, number)..] {
            [(first, _), (second, _), ..] if first == number && second == number => Known::Unclear,
            [(first, id), ..] if first == number => Known::At(id),
            _ => Known::Absent,
        }
    }

    /// A row with this number and id is there, or about to be.
    pub fn add(&self, number: u64, id: i64) {
        if self.has_given_up() {
            return;
        }
        let mut part = self.part(number).write();
        let Err(at) = part.binary_search(&(number, id)) else { return };
        if part.len() == part.capacity() {
            // Doubling, as vectors do, would cost half as much again.
            let more = part.len() / 8 + 1;
            part.reserve_exact(more);
        }
        part.insert(at, (number, id));
        // Under the lock: whoever takes the pair out again must not count that first, below zero.
        let full = self.pairs.fetch_add(1, Ordering::Relaxed) >= self.most;
        drop(part);
        if full {
            self.give_up();
        }
    }

    /// The row is gone for good: committed is that it went.
    pub fn remove(&self, number: u64, id: i64) {
        let mut part = self.part(number).write();
        if let Ok(at) = part.binary_search(&(number, id)) {
            part.remove(at);
            self.pairs.fetch_sub(1, Ordering::Relaxed);
        }
    }

    /// There are no rows any more. Nobody may be adding some.
    pub fn clear(&self) {
        for part in &self.parts {
            let gone = std::mem::take(&mut *part.write());
            self.pairs.fetch_sub(gone.len(), Ordering::Relaxed);
        }
    }

    fn give_up(&self) {
        self.state.store(GIVEN_UP, Ordering::Release);
        self.clear();
        tracing::info!(most = self.most, "there are more entries than keys may be kept in memory");
    }

    /// All rows that were there when it was made have been added.
    pub fn complete(&self) {
        // Unless it was given up: never from there.
        let _ = self.state.compare_exchange(LOADING, COMPLETE, Ordering::AcqRel, Ordering::Acquire);
    }

    /// Whether it answers.
    pub fn is_complete(&self) -> bool {
        self.state.load(Ordering::Acquire) == COMPLETE
    }

    /// Whether it never will.
    pub fn has_given_up(&self) -> bool {
        self.state.load(Ordering::Acquire) == GIVEN_UP
    }
}

/// Where the pairs of a number are, or would be. Numbers are hashes: that they are spread evenly says nearly where, and
/// looking there at once is looking at the fewest lines of memory.
fn position(part: &[Pair], number: u64) -> usize {
    let share = (u128::from(number << PART_BITS) * part.len() as u128) >> u64::BITS;
    let mut at = share as usize;
    while at > 0 && part[at - 1].0 >= number {
        at -= 1;
    }
    while at < part.len() && part[at].0 < number {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_there_is_absent_once_it_is_complete() {
        let keys = Keys::new(1 << 20);
        keys.add(7, 1);
        assert_eq!((keys.find(7), keys.find(8)), (Known::Unclear, Known::Unclear));
        keys.complete();
        assert_eq!((keys.find(7), keys.find(8)), (Known::At(1), Known::Absent));
        keys.add(7, 1);
        assert_eq!(keys.find(7), Known::At(1), "a row counts once");
        keys.add(7, 2);
        assert_eq!(keys.find(7), Known::Unclear, "two keys, or a row and the one that replaces it");
        keys.remove(7, 1);
        keys.remove(7, 3);
        assert_eq!((keys.find(7), keys.pairs.load(Ordering::Relaxed)), (Known::At(2), 1));
        keys.clear();
        assert_eq!(keys.find(7), Known::Absent);
    }

    #[test]
    fn numbers_of_all_sizes_are_found() {
        let keys = Keys::new(1 << 20);
        let number = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let edges = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 52) - 1, 1 << 52];
        let numbers: Vec<u64> = (1..20_000).map(number).chain(edges).collect();
        for (id, number) in (0..).zip(&numbers) {
            keys.add(*number, id);
        }
        keys.complete();
        for (id, number) in (0..).zip(&numbers) {
            assert_eq!(keys.find(*number), Known::At(id));
        }
        for part in &keys.parts {
            let part = part.read();
            let places = (0..part.len()).map(|n| position(&part, part[n].0));
            assert!(places.eq(0..part.len()));
        }
        assert!((20_001..40_000).all(|n| keys.find(number(n)) == Known::Absent));
        let room: usize = keys.parts.iter().map(|p| p.read().capacity()).sum();
        assert!(room < numbers.len() * 3 / 2, "room for {room}");
    }

    #[test]
    fn a_pair_that_goes_as_it_comes_is_not_counted_below_none() {
        let keys = Keys::new(1 << 20);
        keys.complete();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200_000).for_each(|_| keys.add(7, 1)));
            scope.spawn(|| (0..200_000).for_each(|_| keys.remove(7, 1)));
        });
        assert!(keys.is_complete());
        keys.remove(7, 1);
        assert_eq!(keys.pairs.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_does_not_fit_is_given_up_and_never_taken_for_absent() {
        let keys = Keys::new(100 * PAIR_BYTES);
        (0..99).for_each(|n| keys.add(n << 40, 1));
        keys.complete();
        assert!(keys.is_complete());
        (99..200).for_each(|n| keys.add(n << 40, 1));
        keys.complete();
        assert!(keys.has_given_up());
        assert!((0..300).all(|n| keys.find(n << 40) == Known::Unclear));
        assert!(keys.parts.iter().all(|p| p.read().capacity() == 0));
    }
}
