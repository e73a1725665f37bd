//! Making the index anew from the store alone.
//!
//! Invariants: an entry comes back only when its manifest verifies and the store has all its
//! blobs; of several manifests of one key the newest stands (the others were replaced, or
//! evicted before). Pins, rejections and events are the store's own and are not touched. The index counts as
//! whole only after the last of it is written and only if everything could be read: a rebuild that was
//! cut short, or that the disk kept from reading something, is done again when the cache is opened next.
//! What is lost: the order of access.

use std::sync::atomic::Ordering::Relaxed;

use super::{Cache, CacheError, Result};
use crate::index::{Backed, Commit, EntryRow, InTier, NewEntry, Replaced};
use crate::model::{BlobHash, EntryKey, EventKind, Manifest, ManifestHash, Metadata};
use crate::store::{Location, StoreError, shards, twice};

/// Rows written at a time.
const BATCH: usize = 2000;

/// What a rebuild found.
#[derive(Debug, Default)]
pub(super) struct Rebuilt {
    pub entries: u64,
    /// Manifests that cannot be read, and why.
    pub unreadable: Vec<(ManifestHash, StoreError)>,
    /// Packs that cannot be read to their end, and why.
    pub bad_packs: Vec<StoreError>,
    /// Entries of which blobs are missing: key, manifest, how many.
    pub incomplete: Vec<(EntryKey, ManifestHash, usize)>,
    /// Manifests that another one of the same key outlives.
    pub outlived: Vec<ManifestHash>,
    /// Something is there that the disk did not let us read.
    pub unread: bool,
    /// Contents among that, which entries have all the same.
    pub unread_blobs: Vec<(BlobHash, Location, StoreError)>,
}

/// Reads something, and once more where the disk failed. What is damaged, missing or on a bad spot of the disk costs
/// itself (the inner error); another failure, such as too many open files, says nothing about what is
/// there, and ends the rebuild.
fn read_twice<T>(
    unread: &mut bool,
    read: impl FnMut() -> std::result::Result<T, StoreError>,
) -> Result<std::result::Result<T, StoreError>> {
    match twice(read) {
        Err(e) if e.is_bad_spot() => {
            *unread = true;
            Ok(Err(e))
        }
        Err(e @ StoreError::Io { .. }) => Err(e.into()),
        other => Ok(other),
    }
}

impl Cache {
    /// Throws the index away and makes it anew from the store; an error when somebody holds entries.
    pub(super) fn rebuild_index(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<Rebuilt> {
        let _alone = self.alone_with_index()?;
        let mut rebuilt = Rebuilt::default();
        self.inner.index.reset()?;
        let shared = self.adopt_content(&mut rebuilt)?;
        let names = self.inner.store.manifests()?;
        let mut batch = Vec::new();
        for (done, name) in (0..).zip(&names) {
            progress(done, names.len() as u64);
            match read_twice(&mut rebuilt.unread, || self.inner.store.read_manifest(name))? {
                Ok(manifest) => batch.extend(self.entry_of(manifest, &mut rebuilt)?),
                Err(e) => rebuilt.unreadable.push((*name, e)),
            }
            if batch.len() >= BATCH {
                self.commit_batch(std::mem::take(&mut batch), &mut rebuilt)?;
            }
        }
        self.commit_batch(batch, &mut rebuilt)?;
        shared.iter().try_for_each(|hash| self.part(hash))?;
        if !rebuilt.unread {
            self.inner.index.finish()?;
        }
        self.inner.bad_index.store(false, Relaxed);
        rebuilt.entries = self.inner.index.totals()?.entries;
        self.note(EventKind::IndexRebuilt { entries: rebuilt.entries }, None, true);
        tracing::info!(entries = rebuilt.entries, "the index was made anew from the store");
        Ok(rebuilt)
    }

    /// Takes up all packs and loose blobs, without references. Returns the blobs that are files of drafts, too.
    fn adopt_content(&self, rebuilt: &mut Rebuilt) -> Result<Vec<BlobHash>> {
        let (store, index) = (&self.inner.store, &self.inner.index);
        let mut packs = Vec::new();
        let mut blobs = Vec::new();
        for pack in store.packs()? {
            let before = blobs.len();
            let scan = read_twice(&mut rebuilt.unread, || {
                blobs.truncate(before);
                store.scan_pack(pack.id, false, &mut |hash, size, at| {
                    blobs.push((hash, size, at));
                    true
                })
            })?;
            // What stands before the damage is as good as ever.
            rebuilt.bad_packs.extend(scan.err());
            packs.push((pack.id, pack.bytes));
            if blobs.len() >= BATCH {
                index.adopt(std::mem::take(&mut packs), std::mem::take(&mut blobs))?;
            }
        }
        let mut shared = Vec::new();
        for shard in shards::all() {
            let found = store.loose_blobs_in(Some(shard))?;
            shared.extend(found.iter().filter(|blob| blob.shared).map(|blob| blob.hash));
            blobs.extend(found.into_iter().map(|blob| (blob.hash, blob.size, Location::Loose)));
            if blobs.len() >= BATCH {
                index.adopt(std::mem::take(&mut packs), std::mem::take(&mut blobs))?;
            }
        }
        index.adopt(packs, blobs)?;
        Ok(shared)
    }

    /// A loose blob that is a file of a draft as well, which may be written to, is for nobody to rely on. One that an entry has
    /// becomes a file of its own, others go.
    fn part(&self, hash: &BlobHash) -> Result<()> {
        let (store, index) = (&self.inner.store, &self.inner.index);
        if index.blob(hash)?.is_none_or(|row| row.refs == 0) {
            index.drop_unreferenced(vec![*hash])?;
            return Ok(store.remove_blob(hash)?);
        }
        match store.part_blob(hash) {
            // It was written to, or rots: whoever reads it is told.
            Err(e) if e.is_damage() => {
                tracing::warn!("a blob that shares its file with a draft is damaged: {e}");
                self.mark_damaged(hash);
            }
            // To be without the store would be worse.
            Err(e) if e.is_no_space() => {
                tracing::warn!("a blob shares its file with a draft, and there is no room for a copy: {e}");
            }
            other => other?,
        }
        Ok(())
    }

    fn entry_of(&self, manifest: Manifest, rebuilt: &mut Rebuilt) -> Result<Option<NewEntry>> {
        let blobs = manifest.blobs();
        let hashes: Vec<BlobHash> = blobs.iter().map(|(h, _, _)| *h).collect();
        let rows = self.inner.index.blobs(&hashes)?;
        let places = match read_twice(&mut rebuilt.unread, || self.places_and_how(&manifest))? {
            Ok(places) => places,
            Err(e) => {
                tracing::warn!("where contents of {} are is lost: {e}", manifest.seal().key);
                None
            }
        };
        let elsewhere = |hash| places.as_ref()?.0.get(hash).map(|_| Location::Elsewhere);
        let known: Vec<_> = blobs
            .iter()
            .zip(rows)
            .filter_map(|((hash, size, _), row)| {
                let here = row.filter(|r| r.size == *size).map(|r| r.location);
                Some((*hash, *size, here.or_else(|| elsewhere(hash))?))
            })
            .collect();
        if known.len() < blobs.len() {
            let missing = blobs.len() - known.len();
            rebuilt.incomplete.push((manifest.seal().key.clone(), manifest.hash(), missing));
            return Ok(None);
        }
        let before = rebuilt.unread_blobs.len();
        let metadata = self.metadata_of(&manifest, &known, &mut rebuilt.unread_blobs)?;
        rebuilt.unread |= rebuilt.unread_blobs.len() > before;
        // By which tier is forgotten.
        let backed = places.as_ref().map_or(Backed::No, |(_, how)| *how);
        Ok(Some(NewEntry {
            row: EntryRow {
                id: 0,
                key: manifest.seal().key.clone(),
                manifest: manifest.hash(),
                task_id: metadata.as_ref().map(|m| m.task_id.clone()).unwrap_or_default(),
                sealed_at_ns: manifest.seal().sealed_at_ns,
                accessed_at_ns: manifest.seal().sealed_at_ns,
                logical_bytes: manifest.logical_bytes(),
                files: manifest.files(),
                inferred: manifest.seal().inferred,
                readable: metadata.is_some(),
                metadata_bytes: super::usage::metadata_bytes(
                    &manifest,
                    places.map_or(0, |(places, _)| places.encoded_len()),
                ),
                top: Some(manifest.top()),
                in_tier: InTier { backed, ..InTier::default() },
            },
            blobs: known,
            packs: Vec::new(),
            replaces: None,
            healed: Vec::new(),
        }))
    }

    /// The entry's metadata, if it is here and parses. `unread` is told when it is on a bad spot of the disk.
    pub(super) fn metadata_of(
        &self,
        manifest: &Manifest,
        known: &[(BlobHash, u64, Location)],
        unread: &mut Vec<(BlobHash, Location, StoreError)>,
    ) -> Result<Option<Metadata>> {
        let file = || {
            let record = manifest.find(b"metadata.json")?;
            let hash = manifest.get(record)?.hash()?;
            let (_, size, at) = known.iter().find(|(h, _, _)| *h == hash)?;
            (*size <= Metadata::MAX_BYTES).then_some((record, hash, *size, *at))
        };
        let Some((record, hash, size, at)) = file() else { return Ok(None) };
        let mut bytes = vec![0; size as usize];
        let groups = manifest.groups(record);
        match twice(|| self.inner.store.read_verified(&hash, size, groups, at, 0, &mut bytes)) {
            Ok(_) => Ok(Metadata::parse(&bytes).ok()),
            Err(e) if e.is_bad_spot() => {
                unread.push((hash, at, e));
                Ok(None)
            }
            Err(e @ StoreError::Io { .. }) => Err(e.into()),
            Err(_) => Ok(None),
        }
    }

    fn commit_batch(&self, batch: Vec<NewEntry>, rebuilt: &mut Rebuilt) -> Result<()> {
        for (new, done) in batch.clone().into_iter().zip(self.inner.index.commit_all(batch)?) {
            let Commit::Taken(other) = done else { continue };
            if (other.sealed_at_ns, other.manifest) > (new.row.sealed_at_ns, new.row.manifest) {
                rebuilt.outlived.push(new.row.manifest);
                continue;
            }
            rebuilt.outlived.push(other.manifest);
            let blobs = self.inner.store.read_manifest(&other.manifest)?.blobs();
            let blobs = blobs.into_iter().map(|(h, _, _)| h).collect();
            let replaces = Some(Replaced { manifest: other.manifest, blobs });
            if let Commit::Taken(row) = self.inner.index.commit(NewEntry { replaces, ..new })? {
                let what = format!("the key {}", row.key);
                return Err(CacheError::BadInput { what, why: "it changed while the index was made".into() });
            }
        }
        Ok(())
    }
}
