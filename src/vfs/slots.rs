//! Slots: which sealed entries a kernel knows, and how often it looked them up.
//!
//! Invariants: a slot lives exactly as long as its look-up count is positive (or an operation
//! holds its `Arc`), and leases its entry meanwhile; number 0 is never used; a number is used
//! again only after its slot died, and with a new generation. Model-checked by `tests/interleavings`.

use std::collections::HashMap;
use std::sync::Arc;

use super::ino;
use crate::cache::Entry;
use crate::sync::{AtomicU64, Ordering, RwLock};

/// An entry the kernel knows.
pub struct Slot {
    /// Its number.
    pub number: u32,
    /// Distinguishes uses of the same number.
    pub generation: u64,
    /// The entry, leased.
    pub entry: Entry,
    lookups: AtomicU64,
}

#[derive(Default)]
struct Table {
    slots: Vec<Option<Arc<Slot>>>,
    by_entry: HashMap<i64, u32>,
    free: Vec<u32>,
    generation: u64,
}

/// All slots of a view.
#[derive(Default)]
pub struct Slots(RwLock<Table>);

impl Slots {
    /// The slot with this number.
    pub fn get(&self, number: u32) -> Option<Arc<Slot>> {
        self.0.read().slots.get(number as usize)?.clone()
    }

    /// The slot of an entry, if the kernel knows it.
    pub fn of_entry(&self, id: i64) -> Option<Arc<Slot>> {
        let t = self.0.read();
        t.slots[*t.by_entry.get(&id)? as usize].clone()
    }

    /// Finds or makes the slot of `entry` and counts one look-up; `None` when all are taken.
    pub fn look_up(&self, entry: Entry) -> Option<Arc<Slot>> {
        let id = entry.id();
        let mut t = self.0.write();
        if let Some(&n) = t.by_entry.get(&id) {
            let slot = t.slots[n as usize].clone().expect("by_entry names live slots only");
            slot.lookups.fetch_add(1, Ordering::Relaxed);
            return Some(slot);
        }
        if t.slots.is_empty() {
            t.slots.push(None);
        }
        let number = match t.free.pop() {
            Some(n) => n,
            None if t.slots.len() <= ino::MAX_SLOT as usize => {
                t.slots.push(None);
                (t.slots.len() - 1) as u32
            }
            None => return None,
        };
        t.generation += 1;
        let slot = Arc::new(Slot { number, generation: t.generation, entry, lookups: AtomicU64::new(1) });
        t.slots[number as usize] = Some(slot.clone());
        t.by_entry.insert(id, number);
        Some(slot)
    }

    /// Counts one more look-up of a record in a slot that was already looked up.
    pub fn add(&self, slot: &Slot) {
        slot.lookups.fetch_add(1, Ordering::Relaxed);
    }

    /// Takes back `n` look-ups; the slot dies with the last.
    pub fn forget(&self, number: u32, n: u64) {
        let Some(slot) = self.get(number) else { return };
        if slot.lookups.fetch_sub(n, Ordering::AcqRel) > n {
            return;
        }
        let mut t = self.0.write();
        // A look-up may have come between: it counts under the write lock.
        let mine = t.slots[number as usize].as_ref().is_some_and(|s| Arc::ptr_eq(s, &slot));
        if mine && slot.lookups.load(Ordering::Acquire) == 0 {
            t.slots[number as usize] = None;
            t.by_entry.remove(&slot.entry.id());
            t.free.push(number);
        }
    }
}
