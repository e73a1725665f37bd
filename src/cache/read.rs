//! Reading what an entry holds, verified.
//!
//! Invariants: no byte is returned that was not checked against the manifest; a blob that has moved
//! is asked for once in the index; damage becomes an event and goes to quarantine, and what only a tier has is none.
//! What a caller reads through [`Entry::backing`] is verified at ingest and by the scrub only.

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Instant;

use serde::de::DeserializeOwned;

use super::lookup::Loaded;
use super::partial::Large;
use super::{Cache, CacheError, Entry, HeldEntry, LeaseKind, Payer, Result, TierOptions, at};
use crate::index::{BlobRow, Glance};
use crate::model::groups::{GROUP, group_count};
use crate::model::manifest::Top;
use crate::model::{BlobHash, EntryKey, Manifest, ManifestHash, Metadata, RecordKind};
use crate::store::{Location, StoreError};

/// A blob that moves more often while it is read is lost rather than moving.
const MOVES: u32 = 8;
/// Records whose blobs are looked for together, where one was found to have come from a tier.
const NEAR: usize = 256;

/// Who reads what only a tier has.
pub struct Reader<'a> {
    /// Until when it waits; called when tiers are asked.
    pub by: &'a dyn Fn(&TierOptions) -> Instant,
    /// Whose budget what comes is taken from.
    pub payer: Option<Payer>,
    /// It knows what will be read: of a large content no more groups come than it asks for.
    pub exact: bool,
    /// A content that comes as a whole is waited for as long as it goes on coming.
    pub patient: bool,
}

impl Reader<'_> {
    /// Who waits as long as a read may, and has no budget.
    pub(super) const ANY: Reader<'static> = Reader::of(None);
    /// The same, who knows what will be read.
    pub(super) const EXACT: Reader<'static> = Reader::new(None, true, false);

    /// Who has things come before they are read.
    pub(super) const PATIENT: Reader<'static> = Reader::new(None, false, true);

    /// Who waits as long as a read may.
    pub(super) const fn of(payer: Option<Payer>) -> Reader<'static> {
        Reader::new(payer, false, false)
    }

    const fn new(payer: Option<Payer>, exact: bool, patient: bool) -> Reader<'static> {
        Reader { by: &|options| Instant::now() + options.read, payer, exact, patient }
    }
}

impl Entry {
    /// The same entry, held by another lease of this kind.
    pub fn held_as(&self, kind: LeaseKind) -> Entry {
        let HeldEntry { key, sealed_at_ns, top, row, lease, cache, .. } = &*self.0;
        let row = row.get().cloned();
        let seen = Glance { id: self.id(), sealed_at_ns: *sealed_at_ns, top: *top, row };
        Entry::new(cache.clone(), key.clone(), seen, lease.another(kind))
    }

    /// The id of its index row.
    pub fn id(&self) -> i64 {
        self.0.lease.entry
    }

    /// Its key.
    pub fn key(&self) -> &EntryKey {
        &self.0.key
    }

    /// When it was sealed, nanoseconds since 1970.
    pub fn sealed_at_ns(&self) -> i64 {
        self.0.sealed_at_ns
    }

    /// Its manifest: from memory where it is in use, else read and verified. What cannot be read is
    /// reported; the entry itself stays.
    pub fn manifest(&self) -> Result<Arc<Manifest>> {
        Ok(self.loaded()?.manifest.clone())
    }

    /// What its top directory looks like.
    pub fn top(&self) -> Result<Top> {
        match self.0.top {
            Some(top) => Ok(top),
            None => Ok(self.loaded()?.manifest.top()),
        }
    }

    /// The name of the manifest it was opened with.
    pub fn manifest_hash(&self) -> Result<ManifestHash> {
        Ok(self.row()?.manifest)
    }

    pub(super) fn cache(&self) -> &Cache {
        &self.0.cache
    }

    /// Asks the index where the blobs lie now.
    fn relocate(&self, loaded: &Loaded) -> Result<()> {
        loaded.relocate(self.cache().find_locations(&loaded.manifest)?);
        Ok(())
    }

    /// Asks the index where the blobs of this record and of some around it lie now.
    fn relocate_near(&self, loaded: &Loaded, record: u32) -> Result<()> {
        let records = loaded.manifest.records();
        let from = (record as usize).saturating_sub(NEAR / 4);
        let near = (from..records.len()).take(NEAR).filter_map(|n| Some((n, records[n].hash()?)));
        let (numbers, hashes): (Vec<usize>, Vec<BlobHash>) = near.unzip();
        let rows = self.cache().inner.index.blobs(&hashes)?;
        loaded.learn(numbers.into_iter().zip(rows.iter().map(|row| row.map(|row| row.location))));
        Ok(())
    }

    /// Hash and size of a file record.
    pub(super) fn blob(&self, manifest: &Manifest, record: u32) -> Result<(BlobHash, u64)> {
        let found = manifest.get(record).and_then(|r| Some((r.hash()?, r.size())));
        found.ok_or_else(|| CacheError::NoFile { key: self.key().clone(), path: format!("record {record}") })
    }

    /// Does `work` where the blob lies, again after asking the index if it has moved.
    fn at_location<T>(
        &self,
        loaded: &Loaded,
        record: u32,
        hash: &BlobHash,
        mut work: impl FnMut(Location) -> std::result::Result<T, StoreError>,
    ) -> Result<T> {
        let (mut asked, mut moves) = (false, 0);
        loop {
            // Others who read this entry correct its table, too: what counts is whether we have tried there.
            let tried = loaded.location(record);
            let error = match tried.map(&mut work) {
                Some(Ok(done)) => return Ok(done),
                // That is no damage; but it may have come meanwhile.
                Some(Err(e @ StoreError::Elsewhere { .. }))
                    if moves > MOVES || self.cache().is_elsewhere(hash)? =>
                {
                    return Err(e.into());
                }
                Some(Err(StoreError::Elsewhere { .. })) => {
                    // Its neighbours have come with it.
                    self.relocate_near(loaded, record)?;
                    moves += 1;
                    continue;
                }
                Some(Err(e)) if e.is_damage() => e,
                Some(Err(e)) => return Err(e.into()),
                None => StoreError::Missing {
                    what: format!("blob {hash}"),
                    path: self.cache().inner.store.root().to_owned(),
                },
            };
            self.relocate(loaded)?;
            moves += 1;
            // Compaction may have moved it, and again meanwhile; a damaged one may have been stored anew elsewhere.
            let sure = asked || !matches!(error, StoreError::Missing { .. });
            if loaded.location(record) == tried && sure || moves > MOVES {
                let still = || tried.is_none_or(|at| work(at).is_err());
                self.damaged(loaded, record, hash, &error, (tried, still))?;
                if moves <= MOVES && self.cache().is_elsewhere(hash)? {
                    self.relocate_near(loaded, record)?;
                    continue;
                }
                return Err(error.into());
            }
            asked = true;
        }
    }

    /// Reports a damaged or missing blob once (see [`Cache::bad_blob`]).
    fn damaged(
        &self,
        loaded: &Loaded,
        record: u32,
        hash: &BlobHash,
        error: &StoreError,
        (tried, still): (Option<Location>, impl FnOnce() -> bool),
    ) -> Result<()> {
        let size = loaded.manifest.get(record).map_or(0, |r| r.size());
        let path = || at::show(&loaded.manifest.path(record));
        // What is stored may be sound: an entry of a tier, whose content came otherwise, was told a wrong size of it.
        if self.cache().inner.index.blob(hash)?.is_some_and(|row| row.size != size) {
            if self.row().is_ok_and(|row| self.cache().inner.bad_manifests.lock().insert(row.manifest)) {
                let why = format!("{}: the content {hash} has another size than the entry says", path());
                self.cache().report_damage(Some(self.key()), &why);
            }
            return Ok(());
        }
        // A blob that the index does not know is missing, wherever it should be.
        let location = tried.unwrap_or(Location::Loose);
        let row = BlobRow { hash: *hash, size, refs: 0, location, backed: 0 };
        if self.cache().bad_blob(&row, error, still)? {
            self.cache().report_damage(Some(self.key()), &format!("{}: {error}", path()));
        }
        Ok(())
    }

    /// Fills `buf` from `offset` of a file record, verified group by group; short only at the end.
    /// Survives compaction under its feet (asks the index again). What only a tier has is fetched, and waited for as long
    /// as a read may wait.
    pub fn read(&self, record: u32, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.read_on(record, offset, buf, &Reader::ANY)
    }

    /// As `read`, for who reads in a view: of what tiers are asked for on behalf of `who`.
    pub fn read_by(&self, record: u32, offset: u64, buf: &mut [u8], who: &Reader<'_>) -> Result<usize> {
        let n = self.read_on(record, offset, buf, who)?;
        self.was_read(record, offset, n as u64);
        Ok(n)
    }

    fn read_on(&self, record: u32, offset: u64, buf: &mut [u8], who: &Reader<'_>) -> Result<usize> {
        self.read_ahead(record, offset, buf.len(), Some(who));
        let n = self.read_anywhere(record, offset, buf, who)?;
        self.count(n);
        Ok(n)
    }

    /// Has what `len` bytes of a record touch come; nobody reads it.
    pub(super) fn bring(&self, record: u32, offset: u64, len: u64, who: &Reader<'_>) -> Result<()> {
        let manifest = self.manifest()?;
        let (hash, size) = self.blob(&manifest, record)?;
        let of = Large { hash, size, values: manifest.groups(record) };
        let end = size.min(offset.saturating_add(len));
        for group in offset / GROUP as u64..end.div_ceil(GROUP as u64) {
            // A byte brings all of it.
            if of.values.is_empty() || !self.cache().has_groups(of, group..group + 1) {
                self.read_anywhere(record, group * GROUP as u64, &mut [0], who)?;
            }
        }
        Ok(())
    }

    fn read_anywhere(&self, record: u32, offset: u64, buf: &mut [u8], who: &Reader<'_>) -> Result<usize> {
        let mut tries = 0;
        loop {
            match self.read_local(record, offset, buf) {
                Err(CacheError::Store(StoreError::Elsewhere { .. }))
                    if self.cache().has_tiers() && tries < MOVES =>
                {
                    tries += 1;
                    // None: it has come meanwhile.
                    if let Some(n) = self.read_elsewhere(record, offset, buf, who)? {
                        return Ok(n);
                    }
                }
                here => return here,
            }
        }
    }

    /// As `read`, for who reads in a view, without asking a tier: what only one has is [`StoreError::Elsewhere`].
    pub fn read_here(&self, record: u32, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let n = self.read_local(record, offset, buf)?;
        self.read_ahead(record, offset, n, None);
        self.count(n);
        self.was_read(record, offset, n as u64);
        Ok(n)
    }

    fn read_local(&self, record: u32, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let loaded = match self.0.loaded.get() {
            Some(loaded) => loaded,
            None => match self.read_peeking(record, offset, buf) {
                Some(n) => return Ok(n),
                None => self.loaded()?,
            },
        };
        let (hash, size) = self.blob(&loaded.manifest, record)?;
        let groups = loaded.manifest.groups(record);
        let store = &self.cache().inner.store;
        let by_whole = groups.is_empty() && group_count(size) > 0;
        let read = |at| match by_whole {
            true => {
                let values = self.cache().values_of(&hash, at)?;
                store.read_verified(&hash, size, &values, at, offset, &mut *buf)
            }
            false => store.read_verified(&hash, size, groups, at, offset, &mut *buf),
        };
        match self.at_location(&loaded, record, &hash, read) {
            Err(e @ CacheError::Store(StoreError::Elsewhere { .. })) => {
                let of = Large { hash, size, values: groups };
                let part = if groups.is_empty() { None } else { self.cache().read_partial(of, offset, buf) };
                part.ok_or(e)
            }
            other => other,
        }
    }

    /// Content bytes were read.
    fn count(&self, n: usize) {
        self.cache().inner.blob_bytes_read.fetch_add(n as u64, Ordering::Relaxed);
    }

    /// As `read`, of a content that only a tier had a moment ago; `None` when it is here now.
    fn read_elsewhere(
        &self,
        record: u32,
        offset: u64,
        buf: &mut [u8],
        who: &Reader<'_>,
    ) -> Result<Option<usize>> {
        let loaded = self.loaded()?;
        let content = self.blob(&loaded.manifest, record)?;
        // From now on some of it is here.
        self.cache().touch(self);
        self.cache().fetch(&loaded, record, content, offset, buf, who)
    }

    /// Whether a file record's content is in a tier only.
    pub fn is_remote(&self, record: u32) -> Result<bool> {
        let (hash, _) = self.blob(&*self.manifest()?, record)?;
        self.cache().is_elsewhere(&hash)
    }

    /// The loose file behind a large record, for passthrough and reflinks; `None` when packed or elsewhere.
    pub fn backing(&self, record: u32) -> Result<Option<File>> {
        let loaded = match self.0.loaded.get() {
            Some(loaded) => loaded,
            None => match self.backing_peeking(record) {
                Some(file) => return Ok(Some(file)),
                None => self.loaded()?,
            },
        };
        let (hash, _) = self.blob(&loaded.manifest, record)?;
        let store = &self.cache().inner.store;
        let file = self.at_location(&loaded, record, &hash, |at| match at {
            Location::Pack { .. } => Ok(None),
            Location::Loose => store.blob_file(&hash).map(Some),
            // It may be here by now.
            Location::Elsewhere => Err(StoreError::Elsewhere { what: format!("blob {hash}") }),
        });
        match file {
            Err(CacheError::Store(StoreError::Elsewhere { .. })) => Ok(None),
            other => other,
        }
    }

    /// A whole file record; refuses more than `limit` bytes.
    pub fn read_all(&self, record: u32, limit: u64) -> Result<Vec<u8>> {
        let manifest = self.manifest()?;
        let (_, size) = self.blob(&manifest, record)?;
        if size > limit {
            let why = format!("it has {size} bytes, at most {limit} are read at once");
            let what = at::show(&manifest.path(record));
            return Err(CacheError::BadInput { what, why });
        }
        let mut bytes = vec![0; size as usize];
        let n = self.read(record, 0, &mut bytes)?;
        bytes.truncate(n);
        Ok(bytes)
    }

    /// Reads everything once, so that what is damaged of it is known from now on, and is stored anew when it comes again.
    pub fn read_through(&self) {
        let Ok(manifest) = self.manifest() else { return };
        let mut piece = vec![0; 1 << 20];
        let files = manifest.records().iter().enumerate().filter(|(_, r)| r.kind() == RecordKind::File);
        for (record, size) in files.map(|(n, r)| (n as u32, r.size())) {
            let mut at = 0;
            while at < size {
                match self.read(record, at, &mut piece) {
                    Ok(n) if n > 0 => at += n as u64,
                    // It was reported.
                    _ => break,
                }
            }
        }
    }

    /// The record of a file below the entry, by its path.
    pub fn file(&self, path: &[u8]) -> Result<u32> {
        let no_file = || CacheError::NoFile { key: self.key().clone(), path: at::show(path) };
        file_in(&*self.manifest()?, path).ok_or_else(no_file)
    }

    /// The parsed `metadata.json`, or why it is none.
    pub fn metadata(&self) -> Result<std::result::Result<Metadata, String>> {
        self.metadata_as()
    }

    /// The same, in another form.
    pub(super) fn metadata_as<M: DeserializeOwned>(&self) -> Result<std::result::Result<M, String>> {
        let parse = |bytes: Vec<u8>| {
            // As a whole: of what is passed over no text is looked at.
            let text = std::str::from_utf8(&bytes).map_err(|e| format!("metadata.json: {e}"))?;
            serde_json::from_str(text).map_err(|e| format!("metadata.json: {e}"))
        };
        Ok(self.metadata_bytes()?.and_then(parse))
    }

    /// The same as it is written.
    pub fn metadata_bytes(&self) -> Result<std::result::Result<Vec<u8>, String>> {
        let manifest = self.manifest()?;
        let Some(record) = file_in(&manifest, b"metadata.json") else {
            return Ok(Err("there is no file metadata.json".into()));
        };
        let (_, size) = self.blob(&manifest, record)?;
        if size > Metadata::MAX_BYTES {
            return Ok(Err(format!("metadata.json has {size} bytes")));
        }
        self.read_all(record, Metadata::MAX_BYTES).map(Ok)
    }
}

fn file_in(manifest: &Manifest, path: &[u8]) -> Option<u32> {
    manifest.find(path).filter(|&r| manifest.get(r).is_some_and(|r| r.kind() == RecordKind::File))
}

#[cfg(test)]
mod tests {
    use super::super::tests::{Fixture, events};
    use super::*;
    use crate::model::EventKind;

    #[test]
    fn what_another_reader_has_found_anew_is_not_damaged() {
        let f = Fixture::new();
        let entry = f.put("abcd", &f.odd_tree("tree")).unwrap().into_entry();
        let record = entry.file(b"outputs/zz").unwrap();
        let loaded = entry.loaded().unwrap();
        let (hash, _) = entry.blob(&loaded.manifest, record).unwrap();
        loaded.relocate(vec![Some(Location::Loose); loaded.manifest.records().len()]);
        let found = entry.at_location(&loaded, record, &hash, |at| match at {
            Location::Loose => {
                // Somebody else finds where it lies now, before we ask.
                entry.relocate(&loaded).unwrap();
                Err(StoreError::Corrupt { path: "old".into(), line: None, why: "rotten".into() })
            }
            new => Ok(new),
        });
        assert_eq!(found.unwrap(), loaded.location(record).unwrap());
        assert!(!events(&f.cache).iter().any(|e| matches!(e, EventKind::Damaged { .. })));
    }
}
