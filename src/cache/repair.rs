//! Repairing what a check found: set aside what is bad, drop what depends on it, save the rest.
//!
//! Invariants: nothing damaged is deleted, it goes to quarantine; an entry that is dropped is
//! listed and its manifest is quarantined, too; sound blobs of a damaged pack are moved out
//! of it first; orphans go last, so that they can still be of use to a rebuild.

use super::evict::Condemned;
use super::fsck::{Check, Damage, path_of};
use super::lease::Reservation;
use super::{Cache, Result};
use crate::index::{BlobRow, EntryRow};
use crate::model::units::counted;
use crate::model::{BlobHash, EntryKey, EventKind};
use crate::store::{Location, PackId, StoreError, shards, twice};

const DROPPED: &str = "set aside; the entries that need it were dropped";

/// What is gone already need not be set aside, and what the disk does not let go of must not keep the rest from being repaired.
fn set_aside(done: std::result::Result<(), StoreError>) -> Result<()> {
    match done {
        Err(e) if e.is_bad_spot() => {
            tracing::warn!("something damaged stays where it is: {e}");
            Ok(())
        }
        Err(StoreError::Missing { .. }) => Ok(()),
        other => Ok(other?),
    }
}

impl Check<'_> {
    /// Makes the index anew. Row ids change, so nobody may hold an entry meanwhile.
    pub(super) fn rebuild(&mut self) -> Result<()> {
        let progress = &mut *self.progress;
        let rebuilt = self.cache.rebuild_index(&mut |done, total| {
            progress(super::FsckProgress { stage: "rebuilding the index", done, total });
        })?;
        self.report.rebuilt = true;
        for (_, e) in rebuilt.unreadable {
            self.damage("manifest", path_of(&e), e.to_string(), Vec::new());
        }
        for e in rebuilt.bad_packs {
            self.damage("pack", path_of(&e), e.to_string(), Vec::new());
        }
        for (key, manifest, missing) in rebuilt.incomplete {
            let path = self.cache.inner.store.root().join("manifests").join(shards::of(manifest.as_bytes()));
            let what = format!("{} of the entry {key} lost", counted(missing as u64, "blob", "blobs"));
            self.damage("manifest", path.join(manifest.to_hex()), what, vec![key.clone()]);
            self.report.lost.push(key);
        }
        for (hash, at, e) in rebuilt.unread_blobs {
            self.bad_blobs.insert(hash, (path_of(&e), e.to_string()));
            if let Location::Pack { pack, .. } = at {
                self.bad_packs.insert(pack);
            }
        }
        Ok(())
    }

    /// Repairs all that was found.
    pub(super) fn repair(&mut self) -> Result<()> {
        if self.report.damage.is_empty() {
            return self.remove_orphans();
        }
        if self.bad_index && !self.report.rebuilt && (self.wrong_refs.is_empty() || self.doubts_index()?) {
            return self.repair_index();
        }
        // What is bad goes to quarantine, and nowhere else, before its row goes.
        let held = self.cache.inner.leases.reserve(self.bad_blobs.keys().copied());
        self.drop_bad_entries()?;
        if !self.wrong_refs.is_empty() || self.bad_index {
            self.recount()?;
        }
        self.drop_bad_blobs(held)?;
        self.set_notes_aside()?;
        self.mark("events", |cache| {
            let n = cache.inner.store.repair_events()?;
            Ok(format!("{} taken out of the log", counted(n, "damaged line", "damaged lines")))
        })?;
        self.quarantine_unreadable()?;
        self.mark_all();
        self.cache.forget_gone_damage()?;
        if self.report.rebuilt && !self.cache.inner.index.is_finished() {
            // What could not be read is set aside by now: the rest is all there is.
            self.cache.rebuild_index(&mut |_, _| {})?;
        }
        self.remove_orphans()
    }

    /// Something would be dropped because it is not where the index says, and the index has faults of its own:
    /// what it says may be wrong, and the content there.
    fn doubts_index(&self) -> Result<bool> {
        for row in &self.bad_entries {
            if self.cache.inner.store.manifest_changed_at_ns(&row.manifest)?.is_none() {
                return Ok(true);
            }
        }
        Ok(!self.bad_blobs.is_empty())
    }

    /// An index that is wrong in more than its counts is made anew, and everything checked again.
    fn repair_index(&mut self) -> Result<()> {
        if !self.cache.inner.leases.is_idle() {
            tracing::warn!("the index is damaged and in use: unmount all views and repair again");
            return Ok(());
        }
        let options = super::FsckOptions { rebuild_index: true, ..self.options };
        let mut first = std::mem::take(&mut self.report.damage);
        for damage in first.iter_mut().filter(|d| d.kind == "index") {
            damage.repaired = Some("the index was made anew from the store".into());
        }
        // An entry that does not come back is lost, and nobody else knows its key any more.
        let known = std::mem::take(&mut self.bad_entries);
        self.note_repair("the index was made anew from the store");
        let mut report = self.cache.fsck(options, self.progress)?;
        for row in known {
            if self.cache.inner.index.entry(&row.key)?.is_none() && !report.lost.contains(&row.key) {
                self.note_dropped(&row.key);
                report.lost.push(row.key);
            }
        }
        let lost = |d: &Damage| d.kind == "manifest" && d.entries.iter().any(|k| report.lost.contains(k));
        first.retain(|d| d.kind == "index" || lost(d));
        for damage in first.iter_mut().filter(|d| d.repaired.is_none()) {
            damage.repaired = Some(DROPPED.into());
        }
        first.retain(|d| d.kind == "index" || !report.damage.iter().any(|again| again.path == d.path));
        report.damage.splice(0..0, first);
        self.report = report;
        Ok(())
    }

    fn note_repair(&self, what: &str) {
        self.cache.note(EventKind::Repaired { what: what.to_owned() }, None, true);
    }

    fn note_dropped(&self, key: &EntryKey) {
        let what = "the entry was dropped: its manifest or content is damaged".to_owned();
        self.cache.note(EventKind::Repaired { what }, Some(key), true);
    }

    /// What was stored anew since it was found is bad no more, nor what needs it.
    fn forgive_stored_anew(&mut self) -> Result<()> {
        let mut good = Vec::new();
        for hash in self.bad_blobs.keys() {
            if !self.cache.is_still_bad(hash)? {
                good.push(*hash);
            }
        }
        for hash in good {
            let Some((path, _)) = self.bad_blobs.remove(&hash) else { continue };
            let of_it = |d: &&mut Damage| d.kind == "blob" && d.path == path;
            for damage in self.report.damage.iter_mut().filter(of_it) {
                damage.repaired = Some("its content was stored anew meanwhile".into());
            }
        }
        Ok(())
    }

    /// Entries without a manifest, and entries with bad blobs.
    fn drop_bad_entries(&mut self) -> Result<()> {
        self.forgive_stored_anew()?;
        let mut dropped = Vec::new();
        for row in std::mem::take(&mut self.bad_entries) {
            // What an unreadable manifest referred to is counted anew.
            let manifest = twice(|| self.cache.inner.store.read_manifest(&row.manifest));
            let blobs = manifest.map(|m| m.blobs().into_iter().map(|(h, _, _)| h).collect::<Vec<_>>());
            if self.drop_entry(&row, &blobs.unwrap_or_default())? {
                dropped.push(row.key);
            }
        }
        let suffering = if self.bad_blobs.is_empty() { Vec::new() } else { self.suffering()? };
        for (row, manifest) in suffering {
            let blobs: Vec<BlobHash> = manifest.blobs().into_iter().map(|(h, _, _)| h).collect();
            if self.drop_entry(&row, &blobs)? {
                dropped.push(row.key);
            }
        }
        for damage in &mut self.report.damage {
            if !damage.entries.is_empty() && damage.entries.iter().all(|k| dropped.contains(k)) {
                damage.repaired = Some(DROPPED.into());
            }
        }
        self.report.lost.extend(dropped);
        Ok(())
    }

    fn drop_entry(&self, row: &EntryRow, blobs: &[BlobHash]) -> Result<bool> {
        let _stands = self.cache.index_stands();
        let inner = &self.cache.inner;
        let Some(choice) = self.cache.choose(row, true) else { return Ok(false) };
        let held = inner.leases.reserve(blobs.iter().copied());
        let noted = inner.upkeep.leaving.note(row.clone());
        // Where it was replaced meanwhile, who did that keeps its blobs for those who read it.
        if inner.index.remove_entry(&row.key, &row.manifest, blobs, &|_| true)?.is_none() {
            return Ok(false);
        }
        inner.upkeep.condemned.lock().insert(row.id, Condemned { row: row.clone(), blobs: held });
        drop(noted);
        if choice.condemn() {
            // Not by the reaper: what is bad goes to quarantine before its row goes.
            inner.upkeep.condemned.lock().remove(&row.id);
        }
        self.note_dropped(&row.key);
        set_aside(inner.store.quarantine_manifest(&row.manifest))?;
        for holder in self.cache.holders() {
            holder.changed(&row.key);
        }
        Ok(true)
    }

    /// Counts all references again (the dropped entries' are gone) and corrects them.
    fn recount(&mut self) -> Result<()> {
        for _ in 0..3 {
            let Some(before) = self.cache.inner.index.changes_at_rest() else { continue };
            let wrong = {
                let mut again = Check::new(self.cache, Default::default(), self.progress);
                again.references()?
            };
            if self.cache.inner.index.set_references(wrong, before)? {
                for damage in self.report.damage.iter_mut().filter(|d| d.kind == "index") {
                    damage.repaired = Some("the references and sums were counted anew".into());
                }
                return Ok(());
            }
        }
        tracing::warn!("the references could not be corrected while entries come and go; repair again");
        Ok(())
    }

    /// Bad loose blobs go to quarantine, and packs after their sound blobs have moved out.
    fn drop_bad_blobs(&mut self, held: Reservation) -> Result<()> {
        let inner = &self.cache.inner;
        let bad: Vec<BlobHash> = self.bad_blobs.keys().copied().collect();
        for (hash, row) in bad.iter().zip(inner.index.blobs(&bad)?) {
            if row.is_some_and(|r| r.location == Location::Loose) {
                // Nobody can store it anew between the look and this.
                inner.claims.alone_with(hash, || match self.cache.is_still_bad(hash)? {
                    true => set_aside(inner.store.quarantine_blob(hash)),
                    false => Ok(()),
                })?;
            }
        }
        for pack in std::mem::take(&mut self.bad_packs) {
            self.cache.salvage_pack(pack)?;
            for damage in self.report.damage.iter_mut().filter(|d| d.kind == "pack") {
                damage.repaired = Some("set aside; its sound blobs were moved to a new pack".into());
            }
        }
        let unneeded = |d: &&mut Damage| d.kind == "blob" && d.entries.is_empty() && d.repaired.is_none();
        self.report.damage.iter_mut().filter(unneeded).for_each(|d| d.repaired = Some("set aside".into()));
        // The dropped entries' other blobs too, where nothing else refers to them.
        drop(held);
        let unreferenced = inner.index.unreferenced(usize::MAX >> 1)?;
        self.cache.free_blobs(unreferenced)?;
        Ok(())
    }

    /// Damaged pins and rejections go to quarantine, one by one.
    fn set_notes_aside(&mut self) -> Result<()> {
        self.mark("note", |cache| {
            cache.inner.upkeep.verdicts.load_or_set_aside(&cache.inner.store)?;
            Ok("set aside".into())
        })
    }

    /// Does `work` when there is damage of this kind, and notes what it did.
    fn mark(&mut self, kind: &str, work: impl FnOnce(&Cache) -> Result<String>) -> Result<()> {
        if self.report.damage.iter().any(|d| d.kind == kind) {
            let done = work(self.cache)?;
            for damage in self.report.damage.iter_mut().filter(|d| d.kind == kind) {
                damage.repaired = Some(done.clone());
            }
        }
        Ok(())
    }

    /// Manifests that no entry has and that cannot be read (found by a rebuild).
    fn quarantine_unreadable(&mut self) -> Result<()> {
        let store = &self.cache.inner.store;
        for damage in self.report.damage.iter_mut().filter(|d| d.kind == "manifest" && d.repaired.is_none()) {
            let name = damage.path.file_name().and_then(|n| n.to_str()?.parse().ok());
            let Some(name) = name else { continue };
            match store.quarantine_manifest(&name) {
                Ok(()) => damage.repaired = Some("set aside".into()),
                Err(e) if e.is_damage() => tracing::warn!("something damaged stays where it is: {e}"),
                Err(e) => return Err(e.into()),
            }
        }
        Ok(())
    }

    fn mark_all(&mut self) {
        let done = self.report.damage.iter().filter(|d| d.repaired.is_some()).count();
        self.note_repair(&format!(
            "{done} of {} repaired",
            counted(self.report.damage.len() as u64, "damage", "damages")
        ));
    }

    fn remove_orphans(&mut self) -> Result<()> {
        let Some(_all) = self.cache.index_knows_all() else { return Ok(()) };
        let orphans = self.orphans()?;
        let store = &self.cache.inner.store;
        for name in &orphans.manifests {
            self.cache.sweep_manifest(name)?;
        }
        self.cache.remove_orphan_blobs(&orphans.blobs)?;
        for pack in &orphans.packs {
            store.remove_pack(*pack)?;
        }
        Ok(())
    }
}

impl Cache {
    /// Reads all of a blob where the index says that it is; there is nothing to be read of one that is elsewhere.
    pub(super) fn verify_here(&self, row: &BlobRow) -> std::result::Result<(), StoreError> {
        match row.location {
            Location::Loose => {
                let store = &self.inner.store;
                twice(|| store.verify_blob(&row.hash, row.size, Some(&mut |_| true))).map(drop)
            }
            Location::Pack { .. } => self.verify_packed(row),
            Location::Elsewhere => Ok(()),
        }
    }

    /// A blob's content is not what it should be, where the index says that it is.
    fn is_still_bad(&self, hash: &BlobHash) -> Result<bool> {
        let Some(row) = self.inner.index.blobs(&[*hash])?.pop().flatten() else { return Ok(false) };
        match self.verify_here(&row) {
            Err(e) if e.is_damage() => Ok(true),
            other => Ok(other.map(|()| false)?),
        }
    }

    /// Moves the sound blobs of a damaged pack to a new one, and the pack to quarantine. Rows of
    /// its bad blobs stay until they are dropped.
    fn salvage_pack(&self, pack: PackId) -> Result<()> {
        let _stands = self.index_stands();
        let inner = &self.inner;
        let mut moved = Vec::new();
        let mut writer = inner.store.new_pack()?;
        for row in inner.index.pack_blobs(pack)? {
            let mut content = vec![0; row.size as usize];
            let read = || inner.store.read_verified(&row.hash, row.size, &[], row.location, 0, &mut content);
            if twice(read).is_ok() {
                moved.push((row.hash, writer.append(&row.hash, &content)?));
            }
        }
        let added = match moved.is_empty() {
            true => None,
            false => Some(writer.finish()?).map(|p| (p.id, p.bytes)),
        };
        inner.index.relocate(moved, added, vec![pack])?;
        set_aside(inner.store.quarantine_pack(pack))
    }
}
