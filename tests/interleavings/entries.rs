//! Leases: readers, evictions, replacements and the reaper, on one key. Nothing is freed while somebody holds it, and
//! what left the index is freed once.

use std::collections::HashMap;
use std::sync::Arc;

use shuttle::thread::yield_now;

use crate::lease::{LeaseKind, LeaseTable};
use crate::sync::Mutex;
use crate::{explore, together_in};

/// A cache of one key.
#[derive(Default)]
struct World {
    leases: LeaseTable,
    /// The row that the index has.
    row: Mutex<Option<i64>>,
    /// Rows that were in it.
    left: Mutex<Vec<i64>>,
    /// Of each row: who reads it, and how often it was freed.
    rows: Mutex<HashMap<i64, (u32, u32)>>,
}

impl World {
    fn free(&self, row: i64) {
        let mut rows = self.rows.lock();
        let (readers, freed) = rows.entry(row).or_default();
        assert_eq!(*readers, 0, "freed while it is read");
        *freed += 1;
        assert_eq!(*freed, 1, "freed twice");
    }

    fn enter(&self, row: i64) {
        let mut rows = self.rows.lock();
        let (readers, freed) = rows.entry(row).or_default();
        assert_eq!(*freed, 0, "leased, and freed already");
        *readers += 1;
    }

    fn leave(&self, row: i64) {
        self.rows.lock().entry(row).or_default().0 -= 1;
    }

    /// As a look-up: the index first, then the lease; an operation may pass its lease on.
    fn read(&self) {
        let Some(row) = *self.row.lock() else { return };
        yield_now();
        let Some(lease) = self.leases.take(row, LeaseKind::View) else { return };
        self.enter(row);
        yield_now();
        let more = lease.another(LeaseKind::Hold);
        self.enter(row);
        self.leave(row);
        drop(lease);
        yield_now();
        self.leave(row);
        drop(more);
    }

    /// As `Cache::evict` (`leased`) and as making room: what nobody holds goes at once.
    fn evict(&self, leased: bool) {
        let Some(row) = *self.row.lock() else { return };
        let Some(choice) = self.leases.choose(row, leased) else { return };
        let counts = self.leases.counts(row);
        let held = counts.view + counts.hold > 0;
        assert!(leased || !held, "chosen to make room, and leased");
        yield_now();
        if self.row.lock().take_if(|there| *there == row).is_none() {
            // Somebody has replaced it: the choice is dropped.
            return;
        }
        self.left.lock().push(row);
        if choice.condemn() || !held {
            self.free(row);
        }
    }

    /// As a seal that replaces: one transaction, then the old row.
    fn replace(&self, new: i64) {
        let old = self.row.lock().replace(new);
        yield_now();
        let Some(old) = old else { return };
        self.left.lock().push(old);
        if self.leases.condemn(old) {
            self.free(old);
        }
    }

    fn reap(&self) {
        while let Some(row) = self.leases.next_condemned() {
            self.free(row);
        }
    }
}

fn check(threads: &'static [fn(&World)]) {
    explore(move || {
        let world = Arc::new(World::default());
        *world.row.lock() = Some(1);
        together_in(&world, threads);
        world.reap();
        assert!(world.leases.is_idle(), "somebody is still held");
        let there = *world.row.lock();
        let once = world.left.lock().iter().all(|row| world.rows.lock().get(row).is_some_and(|r| r.1 == 1));
        assert!(once, "what left the index was not freed");
        let kept = there.is_none_or(|row| world.rows.lock().get(&row).is_none_or(|r| r.1 == 0));
        assert!(kept, "what is in the index was freed");
    });
}

#[test]
fn an_entry_is_freed_once_and_by_nobody_who_races_a_reader() {
    check(&[World::read, World::read, |w| w.evict(true), |w| w.evict(false), World::reap]);
}

#[test]
fn an_entry_that_is_replaced_while_it_is_evicted_is_freed_once() {
    check(&[World::read, |w| w.evict(true), |w| w.replace(2), World::reap, |w| w.evict(false)]);
}

#[test]
fn replacements_one_after_another() {
    check(&[|w| w.replace(2), World::read, |w| w.replace(3), |w| w.evict(true), World::read]);
}

#[test]
fn a_reader_and_an_eviction() {
    check(&[World::read, |w| w.evict(true), World::reap]);
    check(&[World::read, |w| w.evict(false)]);
}
