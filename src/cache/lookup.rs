//! Finding entries: by key, held by a lease, with manifest and locations in memory.
//!
//! Invariants: opening an entry reads its manifest and location table and no content; an
//! [`Entry`] is leased from before its manifest is read. Loaded manifests are kept in
//! memory, least recently used first out, within a number of bytes.
//! Must not know: what is asked for an entry's sake (a view, a restore, a client).

use std::sync::Arc;

use lru::LruCache;
use parking_lot::{Mutex, RwLock};

use super::{Cache, Entry, LeaseKind, Result};
use crate::index::EntryRow;
use crate::model::{EntryKey, EventKind, Manifest, ManifestHash, Metadata};
use crate::store::{Location, StoreError};

/// Bytes of manifests and location tables kept in memory.
pub(super) const LOADED_BYTES: usize = 32 << 20;

/// Where the blob of each record lies; replaced as a whole when blobs have moved.
pub(super) type Locations = Arc<RwLock<Arc<[Option<Location>]>>>;

/// Manifests in memory.
pub(super) struct Loaded {
    state: Mutex<(LruCache<ManifestHash, One>, usize)>,
    limit: usize,
}

#[derive(Clone)]
struct One {
    manifest: Arc<Manifest>,
    locations: Locations,
}

impl One {
    fn bytes(&self) -> usize {
        self.manifest.as_bytes().len() + self.manifest.records().len() * size_of::<Option<Location>>()
    }
}

impl Loaded {
    /// Room for `limit` bytes; the newest one is kept whatever its size.
    pub fn new(limit: usize) -> Loaded {
        Loaded { state: Mutex::new((LruCache::unbounded(), 0)), limit }
    }

    fn get(&self, hash: &ManifestHash) -> Option<One> {
        self.state.lock().0.get(hash).cloned()
    }

    fn put(&self, one: One) -> One {
        let mut state = self.state.lock();
        let (cache, bytes) = &mut *state;
        if let Some(there) = cache.get(&one.manifest.hash()) {
            // Loaded by somebody else meanwhile: both use the same locations.
            return there.clone();
        }
        *bytes += one.bytes();
        cache.put(one.manifest.hash(), one.clone());
        while *bytes > self.limit && cache.len() > 1 {
            if let Some((_, old)) = cache.pop_lru() {
                *bytes -= old.bytes();
            }
        }
        one
    }
}

/// What a client learns about a key.
#[derive(Debug)]
pub enum Lookup {
    /// There is a result.
    Hit {
        /// The entry, held.
        entry: Entry,
        /// Its metadata.
        metadata: Metadata,
    },
    /// There is none that counts.
    Miss(Miss),
}

/// Why a key is a miss.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Miss {
    /// There is no such entry.
    NoEntry,
    /// There is one, but its metadata is not readable: why.
    BadMetadata(String),
    /// It was rejected: why.
    Rejected(String),
}

impl std::fmt::Display for Miss {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Miss::NoEntry => write!(f, "there is no entry"),
            Miss::BadMetadata(why) => write!(f, "its metadata cannot be read: {why}"),
            Miss::Rejected(reason) => write!(f, "it was rejected: {reason}"),
        }
    }
}

impl Cache {
    /// The sealed entry of `key`, leased; `None` when there is none. Does not judge metadata or
    /// rejections: this is what a mount shows.
    pub fn entry(&self, key: &EntryKey, kind: LeaseKind) -> Result<Option<Entry>> {
        let Some(row) = self.inner.index.entry(key)? else { return Ok(None) };
        self.open_entry(row, kind)
    }

    /// Opens the entry of a row; `None` when it is being freed.
    pub(super) fn open_entry(&self, row: EntryRow, kind: LeaseKind) -> Result<Option<Entry>> {
        let Some(lease) = self.take_lease(row.id, kind) else { return Ok(None) };
        let one = match self.load(&row) {
            Ok(one) => one,
            // Freed between the look into the index and the lease.
            Err(_) if self.inner.index.entry(&row.key)?.is_none_or(|now| now.id != row.id) => {
                return Ok(None);
            }
            Err(e) => return Err(e),
        };
        let (manifest, locations) = (one.manifest, one.locations);
        Ok(Some(Entry {
            row: Arc::new(row),
            manifest,
            locations,
            lease: Arc::new(lease),
            cache: self.clone(),
        }))
    }

    fn load(&self, row: &EntryRow) -> Result<One> {
        if let Some(one) = self.inner.loaded.get(&row.manifest) {
            return Ok(one);
        }
        let manifest = match self.inner.store.read_manifest(&row.manifest) {
            Ok(m) => Arc::new(m),
            Err(e @ StoreError::Corrupt { .. }) => {
                self.report_damage(Some(&row.key), &format!("the manifest: {e}"));
                self.inner.store.quarantine_manifest(&row.manifest)?;
                return Err(e.into());
            }
            Err(e) => return Err(e.into()),
        };
        let table = match self.inner.store.read_locations(&row.manifest)? {
            Some(table) if table.len() == manifest.records().len() => table,
            _ => self.find_locations(&manifest)?,
        };
        let locations = Arc::new(RwLock::new(table.into()));
        Ok(self.inner.loaded.put(One { manifest, locations }))
    }

    /// Keeps a manifest that was just written in memory, so that it need not be read.
    pub(super) fn keep_loaded(&self, manifest: Manifest, table: Vec<Option<Location>>) -> ManifestHash {
        let name = manifest.hash();
        let locations = Arc::new(RwLock::new(table.into()));
        self.inner.loaded.put(One { manifest: Arc::new(manifest), locations });
        name
    }

    /// Asks the index where all blobs of a manifest lie, and writes the location table anew.
    pub(super) fn find_locations(&self, manifest: &Manifest) -> Result<Vec<Option<Location>>> {
        let blobs = manifest.blobs();
        let hashes: Vec<_> = blobs.iter().map(|(hash, _, _)| *hash).collect();
        let found = self.inner.index.blobs(&hashes)?;
        let by_hash: std::collections::HashMap<_, _> =
            hashes.into_iter().zip(found.into_iter().map(|row| row.map(|r| r.location))).collect();
        let table: Vec<_> =
            manifest.records().iter().map(|r| by_hash.get(&r.hash()?).copied().flatten()).collect();
        // A cache of what the index knows: worth having, not worth failing for.
        if let Err(e) = self.inner.store.write_locations(&manifest.hash(), &table) {
            tracing::debug!("cannot write a location table: {e}");
        }
        Ok(table)
    }

    /// Notes that the entry was used now (batched; persisted in the background).
    pub fn touch(&self, entry: &Entry) {
        self.inner.upkeep.recent.note(entry.row.id);
    }

    /// What a client learns about `key`: a hit needs a sealed entry that was not rejected and whose
    /// metadata can be read, whatever the exit code in it.
    pub fn lookup(&self, key: &EntryKey) -> Result<Lookup> {
        let Some(entry) = self.entry(key, LeaseKind::Hold)? else {
            let rejected = self.rejection(key, None).map(|r| Miss::Rejected(r.reason));
            return Ok(Lookup::Miss(rejected.unwrap_or(Miss::NoEntry)));
        };
        if let Some(rejection) = self.rejection(key, Some(&entry.row.manifest)) {
            return Ok(Lookup::Miss(Miss::Rejected(rejection.reason)));
        }
        match entry.metadata()? {
            Ok(metadata) => {
                self.touch(&entry);
                Ok(Lookup::Hit { entry, metadata })
            }
            Err(why) => {
                tracing::warn!("the entry {key} counts as a miss: {why}");
                Ok(Lookup::Miss(Miss::BadMetadata(why)))
            }
        }
    }

    /// Writes an event about damaged content; an event that cannot be written is only logged.
    pub(super) fn report_damage(&self, key: Option<&EntryKey>, what: &str) {
        tracing::error!(key = key.map(EntryKey::as_str), "damaged: {what}");
        let event = EventKind::Damaged { what: what.to_owned() };
        if let Err(e) = self.inner.store.append_event(event, key, true) {
            tracing::error!("the event about it cannot be written: {e}");
        }
    }
}
