//! Contents that were found damaged, here and in the store's marks.
//!
//! Invariants: one that is known damaged is not taken for stored, so that it is stored anew when it comes again, and from the
//! transaction that commits that on the new place counts; it is known over restarts, until it is whole again or no entry has
//! it. Must not know: how damage is found, who is told.

use std::collections::HashSet;

use parking_lot::Mutex;

use super::stash::Stash;
use super::{Cache, Result};
use crate::index::BlobRow;
use crate::model::BlobHash;
use crate::store::Location;

/// What is known damaged.
#[derive(Default)]
pub(super) struct DamagedBlobs(Mutex<HashSet<BlobHash>>);

impl Cache {
    /// After a start: what was found damaged before.
    pub(super) fn load_damaged(&self) -> Result<()> {
        self.know_damaged()?;
        self.forget_gone_damage()
    }

    /// The same, in a store that is only read.
    pub(super) fn know_damaged(&self) -> Result<()> {
        let marked = self.inner.store.damaged()?;
        self.inner.damaged.0.lock().extend(marked);
        Ok(())
    }

    /// Was this blob found damaged, and not stored anew since?
    pub(super) fn is_damaged(&self, hash: &BlobHash) -> bool {
        self.inner.damaged.0.lock().contains(hash)
    }

    /// Is anything?
    pub(super) fn knows_damage(&self) -> bool {
        !self.inner.damaged.0.lock().is_empty()
    }

    /// Is one of them?
    pub(super) fn is_any_damaged<'h>(&self, mut hashes: impl Iterator<Item = &'h BlobHash>) -> bool {
        let damaged = self.inner.damaged.0.lock();
        !damaged.is_empty() && hashes.any(|hash| damaged.contains(hash))
    }

    /// All that are, as the index has them.
    pub(super) fn damaged_rows(&self) -> Result<Vec<(BlobHash, Option<BlobRow>)>> {
        let hashes: Vec<BlobHash> = self.inner.damaged.0.lock().iter().copied().collect();
        let rows = self.inner.index.blobs(&hashes)?;
        Ok(hashes.into_iter().zip(rows).collect())
    }

    pub(super) fn mark_damaged(&self, hash: &BlobHash) {
        self.inner.damaged.0.lock().insert(*hash);
        if let Err(e) = self.inner.store.mark_damaged(hash) {
            tracing::warn!("after the next start it is not known that {hash} is damaged: {e}");
        }
    }

    /// They are whole, or gone.
    pub(super) fn unmark_damaged<'h>(&self, hashes: impl IntoIterator<Item = &'h BlobHash>) {
        for hash in hashes {
            self.inner.damaged.0.lock().remove(hash);
            if let Err(e) = self.inner.store.unmark_damaged(hash) {
                tracing::warn!("after the next start {hash} counts as damaged, and is not: {e}");
            }
        }
    }

    /// Forgets those that no entry has any more, or that only tiers have.
    pub(super) fn forget_gone_damage(&self) -> Result<()> {
        let Some(_all) = self.index_knows_all() else { return Ok(()) };
        let rows = self.damaged_rows()?;
        let gone = |row: &Option<BlobRow>| row.is_none_or(|row| row.location == Location::Elsewhere);
        self.unmark_damaged(rows.iter().filter(|(_, row)| gone(row)).map(|(hash, _)| hash));
        Ok(())
    }

    /// Of the blobs of an entry that is about to be committed, those that were damaged and that `stash` has stored anew.
    pub(super) fn healed(&self, stash: &Stash, blobs: &[(BlobHash, u64, Location)]) -> Vec<BlobHash> {
        let damaged = self.inner.damaged.0.lock();
        if damaged.is_empty() {
            return Vec::new();
        }
        let anew =
            |(hash, _, at): &&(BlobHash, u64, Location)| damaged.contains(hash) && stash.is_own(hash, *at);
        blobs.iter().filter(anew).map(|(hash, _, _)| *hash).collect()
    }
}
