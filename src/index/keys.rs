//! Which keys there are, in memory: for each entry the number of its key, its row id, and what its top directory looks like.
//!
//! Invariants: every committed row is in the table, from before its commit on, so that what is not there is absent;
//! what is there and not *coming* was committed, and stays until its removal has been, so that a look-up needs no row.
//! (Whoever removes an entry sees to it that nobody leases it any more before its pair goes.)
//! Until all rows that were there at the start are taken in, and from then on when they do not fit, the table
//! says nothing. Must not know: SQLite, what else a row has.

use std::sync::atomic::{AtomicU8, AtomicU32, AtomicUsize, Ordering};

use parking_lot::RwLock;

use crate::model::manifest::Top;

/// Parts of the table, by the first bits of the number: some hundred entries each in a store of a million, so that
/// adding one moves few others, and no change stops all who ask.
const PARTS: usize = 1 << PART_BITS;
const PART_BITS: u32 = 12;
/// Parts grow by this share of themselves: doubling, as vectors do, would cost half as much again.
const GROWTH: usize = 16;
/// Bytes of one entry in the table, with the room that parts keep to grow.
pub(super) const ENTRY_BYTES: usize = (8 + size_of::<Facts>()) * (GROWTH + 1) / GROWTH + 1;

/// What a key is found by: bits of its hash. Two keys may share them; whoever reads the entry's row sees that.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Name {
    /// As the index has it.
    pub number: u64,
    /// More bits, which make it good enough to say that the key is there.
    pub check: u16,
}

/// What is kept of a row.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Kept {
    /// Row id.
    pub id: i64,
    /// Nanoseconds since 1970.
    pub sealed_at_ns: i64,
    /// `None` where the row does not say, or what does not fit.
    pub top: Option<Top>,
}

/// What the table says of a key.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Known {
    /// No entry has it.
    Absent,
    /// This one has it.
    There(Kept),
    /// Ask the index.
    Unclear,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum State {
    /// Committed.
    There = 0,
    /// About to be committed, just committed, or never to be.
    Coming = 1,
    /// Removed while rows are still being taken in: whoever read its row before must not add it.
    Gone = 2,
}

/// The bits of a mode that are kept; the others are the state.
const PERM: u16 = 0o7777;
/// In the place of the number of links: the top directory is not known.
const NO_TOP: u16 = u16::MAX;

/// A row, packed. Ids are 48 bits: that lasts.
#[derive(Debug, Clone, Copy)]
#[repr(C, packed(2))]
struct Facts {
    sealed_at_ns: i64,
    mtime_ns: i64,
    id_low: u32,
    id_high: u16,
    perm_and_state: u16,
    nlink: u16,
    check: u16,
}

impl Facts {
    fn new(check: u16, kept: &Kept, state: State) -> Facts {
        let fits = |top: &Top| top.perm <= u32::from(PERM) && top.nlink < u32::from(NO_TOP);
        let top = kept.top.filter(fits);
        Facts {
            sealed_at_ns: kept.sealed_at_ns,
            mtime_ns: top.map_or(0, |t| t.mtime_ns),
            id_low: kept.id as u32,
            id_high: (kept.id >> 32) as u16,
            perm_and_state: top.map_or(0, |t| t.perm as u16) | (state as u16) << 12,
            nlink: top.map_or(NO_TOP, |t| t.nlink as u16),
            check,
        }
    }

    fn id(&self) -> i64 {
        i64::from(self.id_high) << 32 | i64::from(self.id_low)
    }

    fn state(&self) -> State {
        match self.perm_and_state >> 12 {
            0 => State::There,
            1 => State::Coming,
            _ => State::Gone,
        }
    }

    fn set(&mut self, state: State) {
        self.perm_and_state = self.perm_and_state & PERM | (state as u16) << 12;
    }

    fn kept(&self) -> Kept {
        let top = Top {
            perm: u32::from(self.perm_and_state & PERM),
            nlink: u32::from(self.nlink),
            mtime_ns: self.mtime_ns,
        };
        let known = self.nlink != NO_TOP;
        Kept { id: self.id(), sealed_at_ns: self.sealed_at_ns, top: known.then_some(top) }
    }
}

/// Rows that were there at the start are still being taken in.
const LOADING: u8 = 0;
/// All rows are in it.
const COMPLETE: u8 = 1;
/// It has grown too large, for good.
const GIVEN_UP: u8 = 2;

/// Sorted by number. Two vectors: who looks for a number looks at numbers only.
#[derive(Default)]
struct Part {
    numbers: Vec<u64>,
    facts: Vec<Facts>,
}

impl Part {
    /// Where a row is, or would be.
    fn find(&self, number: u64, id: i64) -> Result<usize, usize> {
        let mut at = position(&self.numbers, number);
        while self.numbers.get(at) == Some(&number) {
            if self.facts[at].id() == id {
                return Ok(at);
            }
            at += 1;
        }
        Err(at)
    }

    fn insert(&mut self, at: usize, number: u64, facts: Facts) {
        if self.numbers.len() == self.numbers.capacity() {
            self.reserve(self.numbers.len() / GROWTH + 1);
        }
        self.numbers.insert(at, number);
        self.facts.insert(at, facts);
    }

    fn reserve(&mut self, more: usize) {
        self.numbers.reserve_exact(more);
        self.facts.reserve_exact(more);
    }

    fn remove(&mut self, at: usize) {
        self.numbers.remove(at);
        self.facts.remove(at);
    }
}

/// The table.
pub(super) struct Keys {
    parts: Box<[RwLock<Part>]>,
    state: AtomicU8,
    /// Grows when the table is emptied: rows that were read before are of an index that is no more.
    age: AtomicU32,
    entries: AtomicUsize,
    most: usize,
}

impl Keys {
    /// An empty table that takes up at most `bytes`.
    pub fn new(bytes: usize) -> Keys {
        Keys {
            parts: (0..PARTS).map(|_| RwLock::default()).collect(),
            state: AtomicU8::new(LOADING),
            age: AtomicU32::new(0),
            entries: AtomicUsize::new(0),
            most: bytes / ENTRY_BYTES,
        }
    }

    fn part(&self, number: u64) -> &RwLock<Part> {
        &self.parts[(number >> (u64::BITS - PART_BITS)) as usize]
    }

    /// What is known of the entry with this key.
    pub fn find(&self, name: Name) -> Known {
        let part = self.part(name.number).read();
        // Asked for under the lock: whoever gives up says so before it empties a part.
        if !self.is_complete() {
            return Known::Unclear;
        }
        let mut known = Known::Absent;
        for at in position(&part.numbers, name.number)..part.numbers.len() {
            if part.numbers[at] != name.number {
                break;
            }
            let facts = part.facts[at];
            known = match facts.state() {
                State::Gone => continue,
                _ if facts.check != name.check => continue,
                State::There if known == Known::Absent => Known::There(facts.kept()),
                // One that comes, or an entry and the one that replaces it.
                _ => return Known::Unclear,
            };
        }
        known
    }

    /// A row is about to be committed; [`confirm`](Self::confirm) says that it was.
    pub fn announce(&self, name: Name, kept: &Kept) {
        let mut part = self.part(name.number).write();
        let facts = Facts::new(name.check, kept, State::Coming);
        match part.find(name.number, kept.id) {
            // Its id was given back by a transaction that failed.
            Ok(at) => part.facts[at] = facts,
            Err(at) => {
                self.insert(part, at, name.number, facts);
            }
        }
    }

    /// The row that was announced is there.
    pub fn confirm(&self, name: Name, id: i64) {
        let mut part = self.part(name.number).write();
        if let Ok(at) = part.find(name.number, id)
            && part.facts[at].state() == State::Coming
        {
            part.facts[at].set(State::There);
        }
    }

    /// What `load` must be told, from before the row was read.
    pub fn age(&self) -> u32 {
        self.age.load(Ordering::Acquire)
    }

    /// This row was there when it was read.
    pub fn load(&self, age: u32, name: Name, kept: &Kept) {
        let part = self.part(name.number).write();
        // Under the lock: whoever empties the table changes that first.
        if self.age() != age {
            return;
        }
        if let Err(at) = part.find(name.number, kept.id) {
            self.insert(part, at, name.number, Facts::new(name.check, kept, State::There));
        }
    }

    /// The row is gone for good: committed is that it went.
    pub fn remove(&self, name: Name, id: i64) {
        let mut part = self.part(name.number).write();
        let loading = self.state.load(Ordering::Acquire) == LOADING;
        match part.find(name.number, id) {
            Ok(at) if loading => part.facts[at].set(State::Gone),
            Ok(at) => {
                part.remove(at);
                self.entries.fetch_sub(1, Ordering::Relaxed);
            }
            Err(at) if loading => {
                let kept = Kept { id, sealed_at_ns: 0, top: None };
                self.insert(part, at, name.number, Facts::new(name.check, &kept, State::Gone));
            }
            Err(_) => {}
        }
    }

    fn insert(
        &self,
        mut part: parking_lot::RwLockWriteGuard<'_, Part>,
        at: usize,
        number: u64,
        facts: Facts,
    ) {
        if self.has_given_up() {
            return;
        }
        part.insert(at, number, facts);
        // Under the lock: whoever takes it out again must not count that first, below zero.
        let full = self.entries.fetch_add(1, Ordering::Relaxed) >= self.most;
        drop(part);
        if full {
            self.give_up();
        }
    }

    /// So many rows are going to be taken in: makes room at once, where growing would leave holes.
    pub fn expect(&self, rows: usize) {
        let each = rows.min(self.most) / PARTS;
        self.parts.iter().for_each(|part| part.write().reserve(each + each / GROWTH));
    }

    /// There are no rows any more. Nobody may be announcing some.
    pub fn clear(&self) {
        self.age.fetch_add(1, Ordering::AcqRel);
        for part in &self.parts {
            let mut part = part.write();
            let gone = std::mem::take(&mut *part);
            self.entries.fetch_sub(gone.numbers.len(), Ordering::Relaxed);
        }
    }

    fn give_up(&self) {
        self.state.store(GIVEN_UP, Ordering::Release);
        self.clear();
        tracing::info!(most = self.most, "there are more entries than keys may be kept in memory");
    }

    /// All rows that were there when it was made have been taken in.
    pub fn complete(&self) {
        // Unless it was given up: never from there.
        let _ = self.state.compare_exchange(LOADING, COMPLETE, Ordering::AcqRel, Ordering::Acquire);
        for part in &self.parts {
            let mut part = part.write();
            for at in (0..part.facts.len()).rev() {
                if part.facts[at].state() == State::Gone {
                    part.remove(at);
                    self.entries.fetch_sub(1, Ordering::Relaxed);
                }
            }
        }
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

/// Where a number is first, or would be. Numbers are hashes: that they are spread evenly says nearly where, and
/// looking there at once is looking at the fewest lines of memory.
fn position(numbers: &[u64], number: u64) -> usize {
    let share = (u128::from(number << PART_BITS) * numbers.len() as u128) >> u64::BITS;
    let mut at = share as usize;
    while at > 0 && numbers[at - 1] >= number {
        at -= 1;
    }
    while at < numbers.len() && numbers[at] < number {
        at += 1;
    }
    at
}

#[cfg(test)]
mod tests {
    use super::*;

    const TOP: Top = Top { perm: 0o755, nlink: 3, mtime_ns: -5 };

    fn name(number: u64) -> Name {
        Name { number, check: 9 }
    }

    fn kept(id: i64) -> Kept {
        Kept { id, sealed_at_ns: id * 1_000_000_007, top: Some(TOP) }
    }

    fn add(keys: &Keys, number: u64, id: i64) {
        keys.announce(name(number), &kept(id));
        keys.confirm(name(number), id);
    }

    fn there(id: i64) -> Known {
        Known::There(kept(id))
    }

    #[test]
    fn what_is_not_there_is_absent_once_it_is_complete() {
        let keys = Keys::new(1 << 20);
        add(&keys, 7, 1);
        assert_eq!((keys.find(name(7)), keys.find(name(8))), (Known::Unclear, Known::Unclear));
        keys.complete();
        assert_eq!((keys.find(name(7)), keys.find(name(8))), (there(1), Known::Absent));
        add(&keys, 7, 1);
        assert_eq!(keys.find(name(7)), there(1), "a row counts once");
        add(&keys, 7, 2);
        assert_eq!(keys.find(name(7)), Known::Unclear, "a row and the one that replaces it");
        assert_eq!(keys.find(Name { number: 7, check: 8 }), Known::Absent, "another key");
        keys.remove(name(7), 1);
        keys.remove(name(7), 3);
        assert_eq!((keys.find(name(7)), keys.entries.load(Ordering::Relaxed)), (there(2), 1));
        keys.clear();
        assert_eq!(keys.find(name(7)), Known::Absent);
    }

    #[test]
    fn what_was_not_committed_is_left_to_the_index() {
        let keys = Keys::new(1 << 20);
        keys.complete();
        keys.announce(name(7), &kept(1));
        assert_eq!(keys.find(name(7)), Known::Unclear);
        // The transaction failed: its id is used again, by the same key or by another.
        keys.announce(name(8), &kept(1));
        keys.confirm(name(8), 1);
        assert_eq!((keys.find(name(7)), keys.find(name(8))), (Known::Unclear, there(1)));
        let later = Kept { top: None, ..kept(1) };
        keys.announce(name(7), &later);
        keys.confirm(name(7), 1);
        assert_eq!(keys.find(name(7)), Known::There(later));
        keys.remove(name(7), 1);
        keys.confirm(name(7), 1);
        assert_eq!(keys.find(name(7)), Known::Absent, "removed before it was confirmed");
    }

    #[test]
    fn a_row_that_was_read_before_it_went_does_not_come_back() {
        let keys = Keys::new(1 << 20);
        let age = keys.age();
        keys.remove(name(7), 1);
        keys.load(age, name(7), &kept(1));
        keys.load(age, name(8), &kept(2));
        keys.remove(name(8), 2);
        keys.load(age, name(8), &kept(2));
        keys.announce(name(9), &kept(3));
        keys.load(age, name(9), &kept(3));
        keys.load(age, name(10), &kept(4));
        keys.complete();
        let found = [7, 8, 9, 10].map(|n| keys.find(name(n)));
        assert_eq!(found, [Known::Absent, Known::Absent, Known::Unclear, there(4)]);
        assert_eq!(keys.entries.load(Ordering::Relaxed), 2);
        keys.clear();
        keys.load(age, name(7), &kept(1));
        assert_eq!(keys.find(name(7)), Known::Absent, "it was of the index before");
    }

    #[test]
    fn a_row_is_kept_as_it_was_or_said_to_be_unknown() {
        let keys = Keys::new(1 << 20);
        keys.complete();
        let large = Kept {
            id: (1 << 48) - 1,
            sealed_at_ns: i64::MIN,
            top: Some(Top { perm: 0o7777, nlink: 0xfffe, mtime_ns: i64::MAX }),
        };
        let links = Kept { top: Some(Top { nlink: 0xffff, ..TOP }), ..kept(5) };
        for (n, k) in [(1, large), (2, links), (3, Kept { top: None, ..kept(6) })] {
            keys.announce(name(n), &k);
            keys.confirm(name(n), k.id);
        }
        assert_eq!(keys.find(name(1)), Known::There(large));
        assert_eq!(keys.find(name(2)), Known::There(Kept { top: None, ..links }));
        assert_eq!(keys.find(name(3)), Known::There(Kept { top: None, ..kept(6) }));
    }

    #[test]
    fn numbers_of_all_sizes_are_found() {
        let keys = Keys::new(1 << 20);
        let number = |n: u64| n.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let edges = [0, 1, u64::MAX, u64::MAX - 1, 1 << 63, (1 << 52) - 1, 1 << 52];
        let numbers: Vec<u64> = (1..20_000).map(number).chain(edges).collect();
        keys.expect(numbers.len());
        for (id, number) in (0..).zip(&numbers) {
            add(&keys, *number, id);
        }
        keys.complete();
        for (id, number) in (0..).zip(&numbers) {
            assert_eq!(keys.find(name(*number)), there(id));
        }
        for part in &keys.parts {
            let part = part.read();
            let places = (0..part.numbers.len()).map(|n| position(&part.numbers, part.numbers[n]));
            assert!(places.eq(0..part.numbers.len()));
        }
        assert!((20_001..40_000).all(|n| keys.find(name(number(n))) == Known::Absent));
        let room: usize = keys.parts.iter().map(|p| p.read().facts.capacity()).sum();
        assert!(room < numbers.len() * 3 / 2, "room for {room}");
    }

    #[test]
    fn a_row_that_goes_as_it_comes_is_not_counted_below_none() {
        let keys = Keys::new(1 << 20);
        keys.complete();
        std::thread::scope(|scope| {
            scope.spawn(|| (0..200_000).for_each(|_| add(&keys, 7, 1)));
            scope.spawn(|| (0..200_000).for_each(|_| keys.remove(name(7), 1)));
        });
        assert!(keys.is_complete());
        keys.remove(name(7), 1);
        assert_eq!(keys.entries.load(Ordering::Relaxed), 0);
    }

    #[test]
    fn what_does_not_fit_is_given_up_and_never_taken_for_absent() {
        let keys = Keys::new(100 * ENTRY_BYTES);
        (0..99).for_each(|n| add(&keys, n << 40, 1));
        keys.complete();
        assert!(keys.is_complete());
        (99..200).for_each(|n| add(&keys, n << 40, 1));
        keys.complete();
        assert!(keys.has_given_up());
        assert!((0..300).all(|n| keys.find(name(n << 40)) == Known::Unclear));
        assert!(keys.parts.iter().all(|p| p.read().facts.capacity() == 0));
    }
}
