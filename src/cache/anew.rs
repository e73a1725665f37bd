//! The one gate between making the index anew and everybody who relies on it.
//!
//! Invariants: whoever makes the index anew is alone: nobody holds or reserves anything, and until it is done nobody gets a
//! lease, stores, evicts, sweeps or compacts; nothing is freed by what an index says that lacks something.
//! Who is past the gate may pass it again. Must not know: what is done behind it.

use std::time::Duration;

use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};

use super::{Cache, CacheError, Result};

/// How long those who rely on the index are waited for.
const PATIENCE: Duration = Duration::from_secs(10);

/// The gate.
#[derive(Default)]
pub(super) struct Anew(RwLock<()>);

/// The index stays the one it is until this is dropped.
pub(super) type Stands<'a> = RwLockReadGuard<'a, ()>;

impl Cache {
    /// Keeps the index from being made anew; waits while it is.
    pub(super) fn index_stands(&self) -> Stands<'_> {
        self.inner.anew.0.read_recursive()
    }

    /// The same without waiting; `None` while it is made anew.
    pub(super) fn index_stands_now(&self) -> Option<Stands<'_>> {
        self.inner.anew.0.try_read_recursive()
    }

    /// The same for whoever frees what the index does not know, or knows no entry of: `None` also when it lacks something
    /// that could not be read when it was made.
    pub(super) fn index_knows_all(&self) -> Option<Stands<'_>> {
        self.index_stands_now().filter(|_| self.inner.index.is_finished())
    }

    /// For whoever makes it anew: alone until what this returns is dropped.
    pub(super) fn alone_with_index(&self) -> Result<RwLockWriteGuard<'_, ()>> {
        let alone = self.inner.anew.0.try_write_for(PATIENCE);
        alone.filter(|_| self.inner.leases.is_idle()).ok_or_else(|| CacheError::BadInput {
            what: "the index".into(),
            why: "it cannot be made anew while entries are in use: unmount all views first".into(),
        })
    }
}
