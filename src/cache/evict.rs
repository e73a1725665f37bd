//! Taking entries out: hide at once, free when the last holder lets go.
//!
//! Invariants: an entry is out of the index before its manifest is unlinked, and its manifest
//! (with the directory synced) before its data; blobs of an entry that somebody still reads
//! stay reserved, and its row is noted before it leaves the index; only claimed blobs are deleted, so a seal never relies on one that goes.
//! An eviction that is cut short leaves only what the sweep after the next start removes.

use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use parking_lot::Mutex;

use super::lease::{Choice, Reservation};
use super::{Cache, CacheError, Result};
use crate::index::{EntryRow, Freed, occupied};
use crate::model::{BlobHash, EntryKey, EventKind, ManifestHash};
use crate::store::StoreError;

/// A hidden entry that somebody still holds.
pub(crate) struct Condemned {
    /// For those who have not read it yet.
    pub(super) row: EntryRow,
    /// Keeps its blobs for those who read it.
    pub(super) blobs: Reservation,
}

/// Rows of entries that are about to leave the index, because they are replaced or evicted while somebody holds them.
#[derive(Default)]
pub(super) struct Leaving(Mutex<Vec<EntryRow>>);

impl Leaving {
    /// The row with this id.
    pub fn find(&self, id: i64) -> Option<EntryRow> {
        self.0.lock().iter().find(|row| row.id == id).cloned()
    }

    /// Notes a row until what it returns is dropped.
    pub fn note(&self, row: EntryRow) -> Noted<'_> {
        let id = row.id;
        self.0.lock().push(row);
        Noted { all: self, id }
    }
}

/// A row that is noted.
pub(super) struct Noted<'a> {
    all: &'a Leaving,
    id: i64,
}

impl Drop for Noted<'_> {
    fn drop(&mut self) {
        let mut rows = self.all.0.lock();
        // One: somebody else may have noted it, too.
        if let Some(at) = rows.iter().position(|row| row.id == self.id) {
            rows.swap_remove(at);
        }
    }
}

/// What one eviction did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Outcome {
    /// Bytes of files that are gone.
    pub freed: u64,
    /// Bytes that died inside packs: compaction gives them back.
    pub dead: u64,
}

impl Cache {
    /// Hides an entry at once and frees it when the last holder lets go. `Pinned` while pinned;
    /// false when there is no such entry.
    pub fn evict(&self, key: &EntryKey, why: &str) -> Result<bool> {
        let _stands = self.index_stands();
        let Some(row) = self.inner.index.entry(key)? else { return Ok(false) };
        let Some(choice) = self.choose(&row, true) else { return Ok(false) };
        // After the choice: a pin set before it is seen here, one set later sees the choice.
        if let Some(pin) = self.inner.upkeep.verdicts.pinned_by(key) {
            return Err(CacheError::Pinned { key: key.clone(), pin });
        }
        Ok(self.remove_chosen(&row, choice, why)?.is_some())
    }

    /// Chooses an entry to go, if nobody else does; whoever has just made it has it open first.
    pub(super) fn choose(&self, row: &EntryRow, held_too: bool) -> Option<Choice> {
        drop(self.inner.births.enter(&row.key));
        self.inner.leases.choose(row.id, held_too)
    }

    /// Removes an entry that was chosen; `None` when it was not there any more.
    pub(super) fn remove_chosen(&self, row: &EntryRow, choice: Choice, why: &str) -> Result<Option<Outcome>> {
        let counts = self.inner.leases.counts(row.id);
        let blobs = self.blobs_of(row)?;
        let outcome = if counts.view + counts.hold == 0 {
            self.remove_free(row, choice, &blobs)
        } else {
            self.remove_held(row, choice, &blobs)
        };
        let Some(outcome) = self.or_sweep(outcome)? else { return Ok(None) };
        self.inner.upkeep.suspects.lock().remove(&row.id);
        self.inner.upkeep.evicted.fetch_add(1, Ordering::Relaxed);
        self.note(EventKind::Evicted { why: why.into(), freed: outcome.freed }, Some(&row.key), false);
        for holder in self.holders() {
            holder.changed(&row.key);
            if counts.view > 0 {
                holder.prune(row.id);
            }
        }
        Ok(Some(outcome))
    }

    /// Nobody holds it: all goes at once.
    fn remove_free(&self, row: &EntryRow, choice: Choice, blobs: &[BlobHash]) -> Result<Option<Outcome>> {
        let claim = self.inner.leases.claim(blobs.iter().copied());
        let all = self.index_knows_all();
        let keep = |h: &BlobHash| all.is_none() || !claim.has(h);
        let Some(freed) = self.inner.index.remove_entry(&row.key, &row.manifest, blobs, &keep)? else {
            return Ok(None);
        };
        choice.condemn();
        self.inner.peeks.forget(&row.manifest);
        self.inner.loaded.forget(&row.manifest);
        self.remove_unknown_manifest(&row.manifest)?;
        let outcome = self.delete_freed(&freed);
        Ok(Some(Outcome { freed: outcome.freed + freed.metadata, ..outcome }))
    }

    /// Somebody holds it: it goes when they let go.
    fn remove_held(&self, row: &EntryRow, choice: Choice, blobs: &[BlobHash]) -> Result<Option<Outcome>> {
        let blobs_held = self.inner.leases.reserve(blobs.iter().copied());
        let noted = self.inner.upkeep.leaving.note(row.clone());
        // Where it was replaced meanwhile, who did that keeps its blobs for those who read it.
        if self.inner.index.remove_entry(&row.key, &row.manifest, blobs, &|_| true)?.is_none() {
            return Ok(None);
        }
        let condemned = Condemned { row: row.clone(), blobs: blobs_held };
        self.inner.upkeep.condemned.lock().insert(row.id, condemned);
        drop(noted);
        if choice.condemn() { self.free_condemned(row.id).map(Some) } else { Ok(Some(Outcome::default())) }
    }

    /// After a commit that replaced `old` (see [`crate::index::Commit::Done`]): frees it when its
    /// last lease goes (at once when there is none), and asks the holders to prune it. `since_before` has its
    /// blobs since before the commit.
    pub(super) fn free_replaced(&self, old: &EntryRow, since_before: Reservation) {
        // Rows without references that are not named here are the sweep's.
        let blobs = self.or_sweep(self.blobs_of(old)).unwrap_or_default();
        let held = self.inner.leases.reserve(blobs);
        // What is reserved by anybody is not freed.
        drop(since_before);
        let condemned = Condemned { row: old.clone(), blobs: held };
        self.inner.upkeep.condemned.lock().insert(old.id, condemned);
        let viewed = self.inner.leases.counts(old.id).view > 0;
        self.note(EventKind::Evicted { why: "replaced".into(), freed: 0 }, Some(&old.key), false);
        if self.inner.leases.condemn(old.id) {
            if let Err(e) = self.or_sweep(self.free_condemned(old.id)) {
                tracing::warn!(key = %old.key, error = %e, "a replaced entry could not be freed");
            }
        } else if viewed {
            self.holders().iter().for_each(|h| h.prune(old.id));
        }
    }

    /// The distinct blobs of an entry. Where its manifest is damaged or lost they are unknown: the
    /// references stay counted until fsck repairs that. One that cannot be read this time is an error.
    pub(super) fn blobs_of(&self, row: &EntryRow) -> Result<Vec<BlobHash>> {
        match self.inner.store.read_manifest(&row.manifest) {
            Ok(m) => Ok(m.blobs().into_iter().map(|(h, _, _)| h).collect()),
            Err(e @ (StoreError::Corrupt { .. } | StoreError::Missing { .. })) => {
                let what = format!("its manifest, noticed when its entry was to go: {e}");
                self.note(EventKind::Damaged { what }, Some(&row.key), false);
                Ok(Vec::new())
            }
            Err(e) => Err(e.into()),
        }
    }

    /// Frees hidden entries whose last lease is gone.
    pub(super) fn reap(&self) -> Result<()> {
        while let Some(_stands) = self.index_stands_now()
            && let Some(id) = self.inner.leases.next_condemned()
        {
            self.or_sweep(self.free_condemned(id))?;
        }
        Ok(())
    }

    /// Waits until no kernel finds a hidden entry by its name any more: a moment, or
    /// [`NAMES_LAST`](super::NAMES_LAST) for one that is in use. Not for threads that kernels wait for.
    pub fn wait_until_hidden(&self) {
        let deadline = Instant::now() + super::NAMES_LAST;
        let seen = || {
            let hidden: Vec<i64> = self.inner.upkeep.condemned.lock().keys().copied().collect();
            hidden.iter().any(|id| self.inner.leases.counts(*id).view > 0)
        };
        while Instant::now() < deadline && seen() {
            std::thread::sleep(Duration::from_millis(2));
        }
    }

    /// Asks kernels for hidden entries, and blobs, that they still know: what was in use when it was hidden may
    /// not be any more.
    pub(super) fn ask_for_hidden(&self) {
        let mut hidden: Vec<i64> = self.inner.upkeep.condemned.lock().keys().copied().collect();
        hidden.retain(|id| self.inner.leases.counts(*id).view > 0);
        for holder in self.holders() {
            hidden.iter().for_each(|id| holder.prune(*id));
            if self.inner.upkeep.held_blobs.load(Ordering::Relaxed) > 0 {
                holder.prune_blobs();
            }
        }
    }

    fn free_condemned(&self, id: i64) -> Result<Outcome> {
        let Some(Condemned { row, blobs }) = self.inner.upkeep.condemned.lock().remove(&id) else {
            return Ok(Outcome::default());
        };
        let manifest = row.manifest;
        self.inner.peeks.forget(&manifest);
        self.inner.loaded.forget(&manifest);
        self.remove_unknown_manifest(&manifest)?;
        let hashes = blobs.hashes().to_vec();
        drop(blobs);
        self.free_blobs(hashes)
    }

    /// Unlinks a manifest that no entry has any more. One that a tier has may have come back meanwhile, with the
    /// same manifest: who brings it, and who unlinks it, does so in turn.
    pub(super) fn remove_unknown_manifest(&self, name: &ManifestHash) -> Result<()> {
        let _turn = self.inner.manifests.enter(name);
        if self.inner.index.unknown_manifests(&[*name])?.is_empty() {
            return Ok(());
        }
        Ok(self.inner.store.remove_manifest(name)?)
    }

    /// Deletes blobs that no entry refers to. They are left where somebody else wanted them just when their last entry went, and
    /// then did not take them.
    pub(super) fn free_unreferenced(&self) -> Result<()> {
        let unreferenced = self.inner.index.unreferenced(1_000_000)?;
        if !unreferenced.is_empty() {
            self.free_blobs(unreferenced)?;
        }
        Ok(())
    }

    /// Deletes those of `hashes` that no entry refers to and nobody reserves.
    pub(super) fn free_blobs(&self, hashes: Vec<BlobHash>) -> Result<Outcome> {
        let Some(_all) = self.index_knows_all() else { return Ok(Outcome::default()) };
        let claim = self.inner.leases.claim(hashes);
        let freed = self.inner.index.drop_unreferenced(claim.hashes().copied().collect())?;
        Ok(self.delete_freed(&freed))
    }

    /// Deletes the files of what the index has dropped (under the claim on it). What cannot be deleted
    /// is left to the sweep.
    pub(super) fn delete_freed(&self, freed: &Freed) -> Outcome {
        let mut outcome = Outcome { freed: 0, dead: freed.dead_in_packs };
        let store = &self.inner.store;
        let loose = freed.loose.iter().map(|(h, size)| (store.remove_blob(h), *size));
        let packs = freed.packs.iter().map(|(id, size)| (store.remove_pack(*id), *size));
        for (result, size) in loose.chain(packs) {
            match result {
                Ok(()) => outcome.freed += occupied(size),
                Err(e) => {
                    tracing::warn!(error = %e, "something evicted could not be deleted yet");
                    self.inner.upkeep.sweep.lock().left_something();
                }
            }
        }
        match self.drop_partials(&freed.elsewhere) {
            Ok(bytes) => outcome.freed += bytes,
            // The next round of upkeep finds it.
            Err(e) => {
                tracing::warn!(error = %e, "what is here of an evicted content could not be deleted yet")
            }
        }
        outcome
    }
}
