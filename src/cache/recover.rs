//! After a start: what a death may have left, found without reading a million names first.
//!
//! The index is trusted as it is: an entry is committed to it (durably) only after all its
//! bytes are durable, and removed from it before they go, so a death leaves things that the index
//! does not know, never the reverse. Such orphans cost space and nothing else, so they are swept in
//! the background, a few directories per tick (`docs/decisions/0030-recovery-trusts-the-index.md`). A draft that
//! was being sealed is still whole; the manifest it left is an orphan, too.
//!
//! Invariants: nothing that is being sealed is deleted: of packs only those that this process has not made, of
//! manifests those of which nobody reserves a blob, and that are older by the clock, of blobs what is claimed; a sweep
//! that was not finished goes on after the next start.

use std::sync::atomic::Ordering::Relaxed;
use std::time::{Duration, Instant};

use super::here::now_ns;
use super::{Cache, CacheError, Result};
use crate::model::{BlobHash, EventKind, ManifestHash};
use crate::store::{Location, shards};

/// Its presence says that a sweep is due or not finished.
const MARKER: &str = "index.sweep";
/// How long one tick sweeps.
const SLICE: Duration = Duration::from_millis(100);
/// File times are those of the last clock tick.
const CLOCK_TICK_NS: i64 = 20_000_000;
/// Unreferenced rows freed at a time.
const PAGE: usize = 1000;

/// Where the sweep is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Stage {
    /// Rows without references: of entries that were hidden but held when the process died.
    Rows,
    Manifests(u8),
    Blobs(u8),
    Packs,
    #[default]
    Done,
}

/// The sweep after an unclean stop.
#[derive(Debug, Default)]
pub(crate) struct Sweep {
    stage: Stage,
    /// Files older than this (nanoseconds since 1970) are not of this process.
    since_ns: i64,
    /// Something could not be deleted: the next start looks again.
    left: bool,
}

impl Sweep {
    /// Files older than this (nanoseconds since 1970) are not of this process.
    pub(super) fn since_ns(&self) -> i64 {
        self.since_ns
    }

    /// Something that is out of the index could not be deleted.
    pub(super) fn left_something(&mut self) {
        self.left = true;
    }

    /// As after a death, of which everything is older than this process.
    #[cfg(test)]
    pub(super) fn begin_again(&mut self) {
        (self.stage, self.since_ns) = (Stage::Rows, i64::MAX);
    }
}

impl Cache {
    /// Called by `open` before anything else uses the cache: loads pins and rejections,
    /// rebuilds the index when it is `fresh` and the store is not, plans a sweep after a death.
    pub(crate) fn recover(&self, fresh: bool) -> Result<()> {
        let store = &self.inner.store;
        for e in self.inner.upkeep.verdicts.load_or_set_aside(store)? {
            tracing::error!("a pin or rejection is damaged and was set aside: {e}");
            self.note(EventKind::Damaged { what: format!("set aside: {e}") }, None, true);
        }
        let rebuild = fresh && !(store.manifests_in(None)?.is_empty() && store.pack_ids()?.is_empty());
        if rebuild {
            let rebuilt = self.rebuild_index(&mut |_, _| {})?;
            for (key, _, missing) in rebuilt.incomplete {
                let what = format!("{missing} of its blobs are lost, noticed when the index was made anew");
                self.note(EventKind::Damaged { what }, Some(&key), true);
            }
            let manifests = rebuilt.unreadable.into_iter().map(|(_, e)| e);
            let blobs = rebuilt.unread_blobs.into_iter().map(|(_, _, e)| e);
            for e in manifests.chain(rebuilt.bad_packs).chain(blobs) {
                self.note(EventKind::Damaged { what: e.to_string() }, None, true);
            }
        } else if fresh {
            // One that was thought whole and is damaged.
            if self.inner.index.is_finished() {
                self.inner.index.reset()?;
            }
            self.inner.index.finish()?;
        }
        if store.owner_died() || rebuild {
            store.set_marker(MARKER, true)?;
        }
        let marked = store.has_marker(MARKER)?;
        let mut sweep = self.inner.upkeep.sweep.lock();
        sweep.since_ns = now_ns() - CLOCK_TICK_NS;
        // What an index that lacks something does not know may be an entry's.
        let due = marked && self.inner.index.is_finished();
        sweep.stage = if due { Stage::Rows } else { Stage::Done };
        Ok(())
    }

    /// Hands a result on. Where the disk failed, files may be left that no entry has: the next start looks for them. That the index is
    /// damaged is told once.
    pub(super) fn or_sweep<T>(&self, result: Result<T>) -> Result<T> {
        let disk = |e: &CacheError| {
            matches!(
                e,
                CacheError::Store(_)
                    | CacheError::Index(_)
                    | CacheError::NoSpace(_)
                    | CacheError::Unwritten { .. }
                    | CacheError::Io { .. }
            )
        };
        if result.as_ref().is_err_and(disk) {
            self.inner.upkeep.sweep.lock().left_something();
        }
        if let Err(CacheError::Index(e)) = &result
            && e.is_damage()
            && !self.inner.bad_index.swap(true, Relaxed)
        {
            self.note(EventKind::Damaged { what: e.to_string() }, None, true);
        }
        result
    }

    /// At an orderly close: what could not be deleted is looked for at the next start.
    pub(crate) fn remember_sweep(&self) {
        let held = !self.inner.upkeep.condemned.lock().is_empty();
        let left = self.inner.upkeep.sweep.lock().left;
        if (held || left)
            && let Err(e) = self.inner.store.set_marker(MARKER, true)
        {
            tracing::warn!(error = %e, "what is left will be looked for as after a death");
            self.inner.store.leave_in_disorder();
        }
    }

    /// A little of the sweep.
    pub(super) fn sweep_step(&self) -> Result<()> {
        let begun = Instant::now();
        while begun.elapsed() < SLICE
            && let Some(_all) = self.index_knows_all()
        {
            let (stage, since) = {
                let sweep = self.inner.upkeep.sweep.lock();
                (sweep.stage, sweep.since_ns)
            };
            let next_shard = |shard: u8| shard.checked_add(1).filter(|next| shards::all().contains(next));
            let next = match stage {
                Stage::Done => return Ok(()),
                Stage::Rows => {
                    let rows = self.inner.index.unreferenced(PAGE)?;
                    let freed = if rows.is_empty() { Default::default() } else { self.free_blobs(rows)? };
                    // What died in packs goes without a file.
                    if freed.freed + freed.dead > 0 { Stage::Rows } else { Stage::Manifests(0) }
                }
                Stage::Manifests(shard) => {
                    self.sweep_manifests(shard, since)?;
                    next_shard(shard).map_or(Stage::Blobs(0), Stage::Manifests)
                }
                Stage::Blobs(shard) => {
                    self.sweep_blobs(shard)?;
                    next_shard(shard).map_or(Stage::Packs, Stage::Blobs)
                }
                Stage::Packs => {
                    self.sweep_packs()?;
                    self.inner.store.set_marker(MARKER, false)?;
                    Stage::Done
                }
            };
            self.inner.upkeep.sweep.lock().stage = next;
        }
        Ok(())
    }

    /// The whole sweep, at once.
    pub fn finish_sweep(&self) -> Result<()> {
        while self.index_knows_all().is_some() && self.inner.upkeep.sweep.lock().stage != Stage::Done {
            self.sweep_step()?;
        }
        Ok(())
    }

    fn sweep_manifests(&self, shard: u8, since: i64) -> Result<()> {
        let store = &self.inner.store;
        let names = store.manifests_in(Some(shard))?;
        for name in self.inner.index.unknown_manifests(&names)? {
            if store.manifest_changed_at_ns(&name)?.is_some_and(|at| at < since) && !self.is_used(&name) {
                self.sweep_manifest(&name)?;
            }
        }
        Ok(())
    }

    /// Removes a manifest that the index does not know, and says whose it was: an index that lost its last commits, by rot or
    /// because the disk forgot them, leaves nothing else of an entry.
    pub(super) fn sweep_manifest(&self, name: &ManifestHash) -> Result<()> {
        let key = self.inner.store.read_manifest(name).ok().map(|m| m.seal().key.clone());
        tracing::info!(manifest = %name, key = key.as_ref().map(tracing::field::display), "a manifest that no entry has is removed");
        self.note(EventKind::Swept { manifest: *name }, key.as_ref(), true);
        self.remove_unknown_manifest(name)
    }

    /// A manifest out of the index is still used while its entry is held: its blobs are reserved.
    pub(super) fn is_used(&self, name: &ManifestHash) -> bool {
        if self.inner.upkeep.condemned.lock().values().any(|c| c.row.manifest == *name) {
            return true;
        }
        let blobs = self.inner.store.read_manifest(name).map(|m| m.blobs()).unwrap_or_default();
        blobs.iter().any(|(h, _, _)| self.inner.leases.is_reserved(h))
    }

    fn sweep_blobs(&self, shard: u8) -> Result<()> {
        let names: Vec<BlobHash> =
            self.inner.store.loose_blobs_in(Some(shard))?.into_iter().map(|blob| blob.hash).collect();
        let rows = self.inner.index.blobs(&names)?;
        let orphans =
            names.iter().zip(rows).filter(|(_, row)| row.is_none_or(|r| r.location != Location::Loose));
        let orphans: Vec<BlobHash> = orphans.map(|(h, _)| *h).collect();
        self.remove_orphan_blobs(&orphans).map(drop)
    }

    /// Deletes loose blobs that the index does not know as such, and nobody reserves. Returns those.
    pub(super) fn remove_orphan_blobs(&self, orphans: &[BlobHash]) -> Result<Vec<BlobHash>> {
        let claim = self.inner.leases.claim(orphans.iter().copied());
        let claimed: Vec<BlobHash> = claim.hashes().copied().collect();
        let mut removed = Vec::new();
        // Asked again under the claim: a seal may have committed one meanwhile.
        for (hash, row) in claimed.iter().zip(self.inner.index.blobs(&claimed)?) {
            if row.is_none_or(|r| r.location != Location::Loose) {
                tracing::info!(blob = %hash, "a blob that no entry has is removed");
                self.inner.store.remove_blob(hash)?;
                removed.push(*hash);
            }
        }
        Ok(removed)
    }

    fn sweep_packs(&self) -> Result<()> {
        for pack in self.inner.store.pack_ids()? {
            if !self.inner.store.is_own_pack(pack) && self.inner.index.pack(pack)?.is_none() {
                tracing::info!(pack = pack.0, "a pack that no entry has is removed");
                self.inner.store.remove_pack(pack)?;
            }
        }
        Ok(())
    }
}
