//! The gate of a draft: writers, a seal, a dropper and those who wait. What is sealed is all that was written and
//! nothing else, one of those who end a draft wins, and who is told to wait is called. The order of a seal is `sealing.rs` itself.

use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::Instant;

use shuttle::thread::yield_now;

use crate::gate::{Closed, Gates, Stage};
use crate::sealing::{self, Committed, Sealing};
use crate::sync::Mutex;
use crate::{explore, together_in};

#[derive(Default)]
struct World {
    gates: Gates,
    /// The draft's tree: how often it was written to.
    tree: Mutex<u32>,
    /// What the sealed entry has.
    sealed: Mutex<Option<u32>>,
    dropped: Mutex<bool>,
    told_to_wait: AtomicU32,
    called: Arc<AtomicU32>,
}

impl World {
    fn ended(&self) -> bool {
        self.sealed.lock().is_some() || *self.dropped.lock()
    }

    /// Opens a file, writes, closes.
    fn write(&self) {
        match self.gates.enter() {
            Ok(inside) => {
                self.gates.writer_opened();
                drop(inside);
            }
            Err(closed) => return self.refused(closed),
        }
        yield_now();
        assert!(self.sealed.lock().is_none(), "sealed while a file was open for writing");
        *self.tree.lock() += 1;
        yield_now();
        self.gates.writer_closed();
    }

    /// Changes a name.
    fn rename(&self) {
        match self.gates.enter() {
            Ok(_inside) => {
                assert!(!self.ended(), "changed after its end");
                yield_now();
                let again = self.gates.enter();
                assert!(again.is_ok(), "who is inside may enter again");
                *self.tree.lock() += 1;
            }
            Err(closed) => self.refused(closed),
        }
    }

    fn refused(&self, closed: Closed) {
        if closed == Closed::ForGood {
            assert!(self.ended(), "refused for good before its end");
            return;
        }
        self.told_to_wait.fetch_add(1, Ordering::SeqCst);
        let called = self.called.clone();
        self.gates.when_open(move || {
            called.fetch_add(1, Ordering::SeqCst);
        });
    }

    fn seal(&self) {
        let _ = sealing::seal(&self.gates, &mut Seal { world: self, tries: 4 });
    }

    fn throw_away(&self) {
        if let Ok(alone) = self.gates.alone(Instant::now()) {
            assert!(!self.ended(), "two ends");
            *self.dropped.lock() = true;
            alone.end();
        }
    }
}

/// What is sealed is a number here; the order is the real one.
struct Seal<'a> {
    world: &'a World,
    tries: u32,
}

impl Seal<'_> {
    fn again(&mut self) -> Result<(), Closed> {
        self.tries = self.tries.checked_sub(1).ok_or(Closed::Now)?;
        yield_now();
        Ok(())
    }
}

impl Sealing for Seal<'_> {
    type Prepared = u32;
    type Done = u32;
    type Error = Closed;

    fn written_to(&mut self) -> Result<(), Closed> {
        self.again()
    }

    fn prepare(&mut self) -> Result<Option<(u64, u32)>, Closed> {
        let read = |generation| {
            yield_now();
            (generation, *self.world.tree.lock())
        };
        match self.world.gates.as_of(Instant::now(), read) {
            Err(Closed::Now) => self.again().map(|()| None),
            read => read.map(Some),
        }
    }

    fn patience(&self) -> Instant {
        Instant::now()
    }

    fn closed(&self, why: Closed) -> Closed {
        why
    }

    fn changed(&mut self) -> Result<(), Closed> {
        self.again()
    }

    fn commit(&mut self, prepared: u32) -> Result<Committed<u32>, Closed> {
        assert_eq!(*self.world.tree.lock(), prepared, "a change was missed");
        assert!(!self.world.ended(), "two ends");
        yield_now();
        Ok(Committed::Ends(prepared))
    }

    fn tell(&mut self, sealed: &u32) {
        *self.world.sealed.lock() = Some(*sealed);
        assert_eq!(self.world.gates.has_ended(), None);
    }

    fn stale(&mut self) {}
}

fn check(threads: &'static [fn(&World)]) {
    explore(move || {
        let world = Arc::new(World::default());
        together_in(&world, threads);
        assert_eq!(world.gates.writers(), 0);
        let stage = if world.ended() { Stage::Gone } else { Stage::Open };
        assert_eq!((world.gates.stage(), world.gates.has_ended()), (Some(stage), Some(world.ended())));
        assert_eq!(world.called.load(Ordering::SeqCst), world.told_to_wait.load(Ordering::SeqCst));
        if let Some(sealed) = *world.sealed.lock() {
            assert!(*world.tree.lock() == sealed || *world.dropped.lock(), "written to after it was sealed");
        }
    });
}

#[test]
fn a_seal_waits_for_writers_and_misses_no_change() {
    check(&[World::write, World::rename, World::seal, World::write]);
}

#[test]
fn a_writer_and_a_seal() {
    check(&[World::write, World::seal]);
}

#[test]
fn one_of_those_who_end_a_draft_wins() {
    check(&[World::seal, World::throw_away, World::seal, World::rename]);
}

#[test]
fn who_is_told_to_wait_is_called() {
    check(&[World::rename, World::rename, World::seal, World::throw_away, World::rename]);
}
