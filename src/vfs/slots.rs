//! Slots: which sealed entries a kernel knows, and how often it looked them up.
//!
//! Invariants: a slot lives exactly as long as its look-up count is positive (or an operation
//! holds its `Arc`), and leases its entry meanwhile; number 0 is never used; a number is used
//! again only after its slot died, and with a new generation. An entry's number is its row id, so that it has the same one when
//! it is looked up again; one whose row id is too large gets what is free. Model-checked by `tests/interleavings`.

use std::collections::HashMap;
use std::sync::Arc;

use super::ino;
use crate::cache::Entry;
use crate::sync::{AtomicU64, Ordering, RwLock};

/// Slots that there is always room for.
const SMALL: usize = 1024;

/// An entry the kernel knows.
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// Distinguishes uses of the same number.
    pub generation: u64,
    /// The entry, leased.
    pub entry: Entry,
    lookups: AtomicU64,
    /// The highest record that was looked up, and when the last one was.
    seen: AtomicU64,
}

impl Slot {
    /// The kernel knows no record above this one.
    pub fn highest(&self) -> u32 {
        (self.seen.load(Ordering::Relaxed) >> 32) as u32
    }

    fn used(&self) -> u32 {
        self.seen.load(Ordering::Relaxed) as u32
    }

    /// Notes a look-up of a record. Two at once may lose the time of one, and no record.
    fn see(&self, record: u32, now: u32) {
        let seen = u64::from(self.highest().max(record)) << 32 | u64::from(now);
        if self.seen.load(Ordering::Relaxed) != seen {
            self.seen.fetch_max(seen, Ordering::Relaxed);
        }
    }
}

#[derive(Default)]
struct Table {
    slots: HashMap<u32, Arc<Slot>>,
    /// Of entries whose number is not their row id.
    others: HashMap<i64, u32>,
    /// The last number that one of these got.
    last: u32,
    generation: u64,
}

impl Table {
    fn of_entry(&self, id: i64) -> Option<&Arc<Slot>> {
        let its = |number: u32| self.slots.get(&number).filter(|slot| slot.entry.id() == id);
        own_number(id).and_then(its).or_else(|| its(*self.others.get(&id)?))
    }

    /// A number that nobody has, if it cannot be the entry's own.
    fn other_number(&mut self) -> Option<u32> {
        if self.slots.len() >= ino::MAX_SLOT as usize {
            return None;
        }
        loop {
            // From the top down: row ids begin at the bottom.
            self.last = self.last.checked_sub(1).filter(|n| *n > 0).unwrap_or(ino::MAX_SLOT);
            if !self.slots.contains_key(&self.last) {
                return Some(self.last);
            }
        }
    }
}

/// The number that an entry has, if no other one has it.
fn own_number(id: i64) -> Option<u32> {
    u32::try_from(id).ok().filter(|n| (1..=ino::MAX_SLOT).contains(n))
}

/// All slots of a view.
#[derive(Default)]
pub struct Slots(RwLock<Table>);

impl Slots {
    /// The slot with this number.
    pub fn get(&self, number: u32) -> Option<Arc<Slot>> {
        self.0.read().slots.get(&number).cloned()
    }

    /// The slot of an entry, if the kernel knows it.
    pub fn of_entry(&self, id: i64) -> Option<Arc<Slot>> {
        self.0.read().of_entry(id).cloned()
    }

    /// Finds or makes the slot of `entry` and counts one look-up of a record; `None` when all are taken.
    pub fn look_up(&self, entry: Entry, record: u32, now: u32) -> Option<Arc<Slot>> {
        let id = entry.id();
        let mut t = self.0.write();
        if let Some(slot) = t.of_entry(id) {
            slot.lookups.fetch_add(1, Ordering::Relaxed);
            slot.see(record, now);
            return Some(slot.clone());
        }
        let own = own_number(id).filter(|n| !t.slots.contains_key(n));
        let number = match own {
            Some(number) => number,
            None => t.other_number()?,
        };
        t.generation += 1;
        let seen = AtomicU64::new(u64::from(record) << 32 | u64::from(now));
        let (generation, lookups) = (t.generation, AtomicU64::new(1));
        let slot = Arc::new(Slot { number, generation, entry, lookups, seen });
        t.slots.insert(number, slot.clone());
        if own.is_none() {
            t.others.insert(id, number);
        }
        Some(slot)
    }

    /// Counts one more look-up of a record in a slot that was already looked up.
    pub fn add(&self, slot: &Slot, record: u32, now: u32) {
        slot.lookups.fetch_add(1, Ordering::Relaxed);
        slot.see(record, now);
    }

    /// Takes back `n` look-ups; the slot dies with the last.
    pub fn forget(&self, number: u32, n: u64) {
        let Some(slot) = self.get(number) else { return };
        if slot.lookups.fetch_sub(n, Ordering::AcqRel) > n {
            return;
        }
        let mut t = self.0.write();
        // A look-up may have come between: it counts under the write lock.
        let mine = t.slots.get(&number).is_some_and(|s| Arc::ptr_eq(s, &slot));
        if mine && slot.lookups.load(Ordering::Acquire) == 0 {
            t.slots.remove(&number);
            t.others.remove(&slot.entry.id());
            // A table that held very many gives their room back.
            let len = t.slots.len();
            if t.slots.capacity() > SMALL && len < t.slots.capacity() / 4 {
                t.slots.shrink_to(len * 2);
            }
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.0.read().slots.len()
    }

    /// When something of each was looked up last.
    pub fn used(&self, mut tell: impl FnMut(u32, &Arc<Slot>)) {
        self.0.read().slots.values().for_each(|slot| tell(slot.used(), slot));
    }

    /// Counts as used now what the kernel may be using: it was asked to forget it.
    pub fn asked(&self, slot: &Slot, now: u32) {
        slot.see(0, now);
    }
}
