//! Slots of entries that a kernel looks up and forgets while they are evicted: a slot that is known keeps its entry, and
//! when all is forgotten, nothing is held.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use shuttle::thread::yield_now;

use crate::cache::Entry;
use crate::lease::{LeaseKind, LeaseTable};
use crate::vfs::slots::Slots;
use crate::{explore, together_in};

#[derive(Default)]
struct World {
    leases: LeaseTable,
    slots: Slots,
    /// Of the two entries.
    freed: [AtomicBool; 2],
}

impl World {
    fn free(&self, row: i64) {
        assert!(!self.freed[row as usize].swap(true, Ordering::SeqCst), "freed twice");
    }

    /// The kernel looks an entry up, uses what it was told, and forgets it.
    fn use_it(&self, row: i64) {
        let Some(lease) = self.leases.take(row, LeaseKind::View) else { return };
        let slot = self.slots.look_up(Entry(Arc::new(lease)), 0, 0).expect("there are enough");
        let (number, generation) = (slot.number, slot.generation);
        drop(slot);
        for looked_up in [false, true] {
            yield_now();
            let slot = self.slots.get(number).expect("a slot with look-ups");
            assert!(slot.entry.id() == row && slot.generation == generation, "another use of the number");
            assert!(!self.freed[row as usize].load(Ordering::SeqCst), "freed with look-ups");
            if looked_up {
                self.slots.add(&slot, 1, 0);
            }
        }
        self.slots.forget(number, 1);
        yield_now();
        self.slots.forget(number, 1);
    }

    fn evict(&self, row: i64) {
        if let Some(choice) = self.leases.choose(row, true)
            && choice.condemn()
        {
            self.free(row);
        }
        self.reap();
    }

    fn reap(&self) {
        while let Some(row) = self.leases.next_condemned() {
            self.free(row);
        }
    }
}

fn check(threads: &'static [fn(&World)], evicted: bool) {
    explore(move || {
        let world = Arc::new(World::default());
        together_in(&world, threads);
        world.reap();
        assert!(world.leases.is_idle(), "a lease is left");
        let freed = |row: usize| world.freed[row].load(Ordering::SeqCst);
        assert_eq!((freed(0), freed(1)), (evicted, false));
        assert!(world.slots.of_entry(0).is_none() && world.slots.of_entry(1).is_none(), "a slot is left");
    });
}

#[test]
fn what_a_kernel_knows_is_not_freed_and_what_it_forgot_is() {
    check(&[|w| w.use_it(0), |w| w.use_it(0), |w| w.use_it(1), |w| w.evict(0)], true);
}

#[test]
fn a_slot_that_is_looked_up_while_it_is_forgotten_stays() {
    check(&[|w| w.use_it(0), |w| w.use_it(0)], false);
    check(&[|w| w.use_it(0), |w| w.use_it(0), |w| w.use_it(0), |w| w.use_it(1)], false);
}
