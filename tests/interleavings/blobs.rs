//! Reservations and claims: seals that use a blob which evictions free (decision 0031). Whatever the order, what is
//! committed has its file.

use std::sync::Arc;

use outfs::model::BlobHash;
use shuttle::thread::yield_now;

use crate::lease::LeaseTable;
use crate::sync::Mutex;
use crate::{explore, together_in};

/// What the index has of one blob.
#[derive(Default)]
struct Row {
    /// There is a row.
    there: bool,
    references: u32,
}

/// A store of one blob.
#[derive(Default)]
struct World {
    leases: LeaseTable,
    row: Mutex<Row>,
    /// The file is there.
    file: Mutex<bool>,
}

fn blob() -> BlobHash {
    BlobHash::of(b"content")
}

impl World {
    /// Reserves first, then asks; stores what is not there; commits.
    fn seal(&self) {
        let reserved = self.leases.reserve([blob()]);
        let known = self.row.lock().there;
        yield_now();
        if known {
            assert!(*self.file.lock(), "the index knows a reserved blob that has no file");
        } else {
            *self.file.lock() = true;
        }
        yield_now();
        let mut row = self.row.lock();
        row.there = true;
        row.references += 1;
        drop(row);
        assert!(*self.file.lock(), "committed without its file");
        drop(reserved);
    }

    /// An entry that has the blob is evicted: claim, one transaction, then the file.
    fn evict(&self) {
        let claim = self.leases.claim([blob()]);
        let mut row = self.row.lock();
        if row.references > 0 {
            row.references -= 1;
        }
        let freed = row.there && row.references == 0 && claim.has(&blob());
        if freed {
            row.there = false;
        }
        drop(row);
        yield_now();
        if freed {
            assert!(std::mem::take(&mut *self.file.lock()), "freed twice");
        }
    }
}

fn check(begin: u32, threads: &'static [fn(&World)]) {
    explore(move || {
        let world = Arc::new(World::default());
        if begin > 0 {
            *world.row.lock() = Row { there: true, references: begin };
            *world.file.lock() = true;
        }
        together_in(&world, threads);
        let row = world.row.lock();
        assert!(!row.there || *world.file.lock(), "the index knows a blob that has no file");
        assert!(row.there || row.references == 0, "an entry has lost its blob");
        assert!(world.leases.is_idle() && !world.leases.is_claimed(&blob()));
    });
}

#[test]
fn a_seal_never_relies_on_a_blob_that_is_being_freed() {
    check(1, &[World::seal, World::evict, World::seal]);
}

#[test]
fn evictions_do_not_free_twice_what_seals_bring_back() {
    check(2, &[World::evict, World::seal, World::evict, World::seal, World::evict]);
}
