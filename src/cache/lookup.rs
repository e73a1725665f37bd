//! Finding entries: by key, held by a lease; their manifests and locations in memory while they are used.
//!
//! Invariants: finding an entry reads no file, and where the index has its keys in memory no row, so that it costs the
//! same however many entries there are; the entry is leased from then on, and a leased entry's row (in the
//! index, or noted by who took it out) and manifest stay, so that they can be read whenever they are needed. Manifests in memory are bounded in bytes,
//! whoever holds entries; what was used since it was last looked at stays.
//! Must not know: what is asked for an entry's sake (a view, a restore, a client).

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, OnceLock, Weak};

use lru::LruCache;
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;

use super::{Cache, CacheError, Entry, HeldEntry, LeaseKind, Result};
use crate::index::{EntryRow, Glance};
use crate::model::{EntryKey, EventKind, Manifest, ManifestHash, Metadata};
use crate::store::{Location, StoreError, parts_of};

/// A manifest in memory, and where the blob of each of its records lies.
pub(super) struct Loaded {
    pub manifest: Arc<Manifest>,
    /// Replaced as a whole when blobs have moved.
    locations: RwLock<Arc<[Option<Location>]>>,
    /// Since it was last considered for leaving memory.
    used: AtomicBool,
}

impl Loaded {
    fn new(manifest: Arc<Manifest>, table: Vec<Option<Location>>) -> Arc<Loaded> {
        let locations = RwLock::new(table.into());
        Arc::new(Loaded { manifest, locations, used: AtomicBool::new(false) })
    }

    fn bytes(&self) -> usize {
        self.manifest.as_bytes().len() + self.manifest.records().len() * size_of::<Option<Location>>()
    }

    /// Where a record's blob lies, as far as this table knows.
    pub fn location(&self, record: u32) -> Option<Location> {
        self.locations.read().get(record as usize).copied().flatten()
    }

    /// From now on the blobs of these records lie there, for everybody who reads this entry.
    pub fn learn(&self, places: impl Iterator<Item = (usize, Option<Location>)>) {
        let mut locations = self.locations.write();
        let mut table: Vec<_> = locations.to_vec();
        places.for_each(|(record, at)| table[record] = at);
        *locations = table.into();
    }

    /// From now on blobs lie there, for everybody who reads this entry.
    pub fn relocate(&self, table: Vec<Option<Location>>) {
        *self.locations.write() = table.into();
    }
}

/// What an entry used last, as long as it is in memory: an entry in use asks no table that others use.
#[derive(Default)]
pub(super) struct LastLoaded(RwLock<Weak<Loaded>>);

impl LastLoaded {
    pub fn get(&self) -> Option<Arc<Loaded>> {
        let loaded = self.0.read().upgrade()?;
        if !loaded.used.load(Ordering::Relaxed) {
            loaded.used.store(true, Ordering::Relaxed);
        }
        Some(loaded)
    }

    fn set(&self, loaded: &Arc<Loaded>) {
        *self.0.write() = Arc::downgrade(loaded);
    }
}

/// The manifests in memory, in the order in which they are considered for leaving it.
pub(super) struct AllLoaded {
    state: Mutex<(LruCache<ManifestHash, Arc<Loaded>>, usize)>,
    limit: usize,
}

impl AllLoaded {
    /// Room for `limit` bytes; the newest one is kept whatever its size.
    pub fn new(limit: usize) -> AllLoaded {
        AllLoaded { state: Mutex::new((LruCache::unbounded(), 0)), limit }
    }

    pub fn get(&self, hash: &ManifestHash) -> Option<Arc<Loaded>> {
        self.state.lock().0.get(hash).cloned()
    }

    /// It is not there any more. (Who reads it keeps it.)
    pub fn forget(&self, hash: &ManifestHash) {
        let mut state = self.state.lock();
        let gone = state.0.pop(hash);
        state.1 -= gone.as_ref().map_or(0, |one| one.bytes());
        drop(state);
        drop(gone);
    }

    fn put(&self, one: Arc<Loaded>) -> Arc<Loaded> {
        let mut gone = Vec::new();
        let mut state = self.state.lock();
        let (cache, bytes) = &mut *state;
        let hash = one.manifest.hash();
        if let Some(there) = cache.get(&hash) {
            // Loaded by somebody else meanwhile: both use the same locations.
            return there.clone();
        }
        *bytes += one.bytes();
        cache.put(hash, one.clone());
        while *bytes > self.limit && cache.len() > 1 {
            let Some((old_hash, old)) = cache.pop_lru() else { break };
            if old_hash == hash || old.used.swap(false, Ordering::Relaxed) {
                cache.put(old_hash, old);
            } else {
                *bytes -= old.bytes();
                gone.push(old);
            }
        }
        // Large ones are given back outside the lock.
        drop(state);
        drop(gone);
        one
    }
}

impl Entry {
    pub(super) fn new(cache: Cache, key: EntryKey, seen: Glance, lease: super::Lease) -> Entry {
        let Glance { sealed_at_ns, top, row, .. } = seen;
        let row = row.map_or_else(OnceLock::new, OnceLock::from);
        Entry(Arc::new(HeldEntry {
            key,
            sealed_at_ns,
            top,
            row,
            loaded: LastLoaded::default(),
            lease,
            cache,
        }))
    }

    /// Its index row: read when it is asked for first.
    pub fn row(&self) -> Result<&EntryRow> {
        if let Some(row) = self.0.row.get() {
            return Ok(row);
        }
        let row = self.0.cache.row_of(self.id(), self.key())?;
        Ok(self.0.row.get_or_init(|| Box::new(row)))
    }

    /// Its manifest and the locations of its blobs: from memory, or read now. Damage becomes an event, and
    /// the manifest goes to quarantine.
    pub(super) fn loaded(&self) -> Result<Arc<Loaded>> {
        if let Some(loaded) = self.0.loaded.get() {
            return Ok(loaded);
        }
        let loaded = self.0.cache.load(self.row()?)?;
        self.0.loaded.set(&loaded);
        Ok(loaded)
    }
}

/// What a client learns about a key.
#[derive(Debug)]
pub enum Lookup<M = Metadata> {
    /// There is a result.
    Hit {
        /// The entry, held.
        entry: Entry,
        /// Its metadata.
        metadata: M,
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
        let mut seen = self.inner.index.glance(key)?;
        while let Some(now) = seen {
            let id = now.id;
            if let Some(entry) = self.hold(key.clone(), now, kind) {
                return Ok(Some(entry));
            }
            // It was replaced meanwhile, or is on its way out.
            seen = self.inner.index.glance(key)?.filter(|again| again.id != id);
        }
        Ok(None)
    }

    fn hold(&self, key: EntryKey, seen: Glance, kind: LeaseKind) -> Option<Entry> {
        let lease = self.take_lease(seen.id, kind)?;
        Some(Entry::new(self.clone(), key, seen, lease))
    }

    /// The row of an entry that is held: in the index, or noted before it left that. Looked for in the order in
    /// which it goes from one to the next.
    pub(super) fn row_of(&self, id: i64, key: &EntryKey) -> Result<EntryRow> {
        let upkeep = &self.inner.upkeep;
        let row = match self.inner.index.entry_by_id(id)? {
            Some(row) => Some(row),
            None => upkeep.leaving.find(id).or_else(|| Some(upkeep.condemned.lock().get(&id)?.row.clone())),
        };
        // Another key's, if their hashes agree in what is kept of them.
        row.filter(|row| row.key == *key).ok_or_else(|| CacheError::NoEntry { key: key.clone(), why: None })
    }

    /// Holds the entry of a row; `None` when it is being freed.
    pub(super) fn open_entry(&self, row: EntryRow, kind: LeaseKind) -> Result<Option<Entry>> {
        Ok(self.hold(row.key.clone(), row.into(), kind))
    }

    fn load(&self, row: &EntryRow) -> Result<Arc<Loaded>> {
        if let Some(one) = self.inner.loaded.get(&row.manifest) {
            return Ok(one);
        }
        let manifest = match self.inner.store.read_manifest(&row.manifest) {
            Ok(m) => m,
            Err(e @ (StoreError::Corrupt { .. } | StoreError::Missing { .. })) => {
                self.bad_manifest(row, &e)?;
                return Err(e.into());
            }
            Err(e) => return Err(e.into()),
        };
        let table = match self.inner.store.read_locations(&row.manifest)? {
            Some(table) if table.len() == manifest.records().len() => table,
            _ => self.find_locations(&manifest)?,
        };
        self.inner.peeks.forget(&row.manifest);
        Ok(self.inner.loaded.put(Loaded::new(manifest.into(), table)))
    }

    /// Keeps a manifest that was just written in memory, so that it need not be read.
    pub(super) fn keep_loaded(&self, manifest: Arc<Manifest>, table: Vec<Option<Location>>) -> ManifestHash {
        self.inner.loaded.put(Loaded::new(manifest, table)).manifest.hash()
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
        if let Err(e) = self.inner.store.write_locations(&manifest.hash(), &table, &parts_of(manifest)) {
            tracing::debug!("cannot write a location table: {e}");
        }
        Ok(table)
    }

    /// Notes that the entry was used now (batched; persisted in the background).
    pub fn touch(&self, entry: &Entry) {
        self.inner.upkeep.recent.note(entry.id());
    }

    /// What a client learns about `key`, here or in a tier: a hit needs a sealed entry that was not rejected and whose
    /// metadata can be read, whatever the exit code in it.
    pub fn lookup(&self, key: &EntryKey) -> Result<Lookup> {
        self.lookup_as(key)
    }

    /// The same, with the metadata in a form that passes over what is not asked for: a run's is long.
    pub fn lookup_as<M: DeserializeOwned>(&self, key: &EntryKey) -> Result<Lookup<M>> {
        let Some(entry) = self.find(key, LeaseKind::Hold)? else {
            let rejected = self.rejection(key, None).map(|r| Miss::Rejected(r.reason));
            return Ok(Lookup::Miss(rejected.unwrap_or(Miss::NoEntry)));
        };
        self.wait_shown(key);
        if let Some(rejection) = self.rejection(key, Some(&entry.manifest_hash()?)) {
            return Ok(Lookup::Miss(Miss::Rejected(rejection.reason)));
        }
        match entry.metadata_as()? {
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::manifest::{Attrs, Origin, Seal, TreeBuilder};

    fn loaded(n: u32, files: u32) -> Arc<Loaded> {
        let mut tree = TreeBuilder::new(Attrs::default());
        for file in 0..files {
            tree.dir(tree.top(), file.to_string().as_bytes(), Attrs::default()).unwrap();
        }
        let key = format!("key-{n}").parse().unwrap();
        let (replaces, origin) = (None, Origin::default());
        let bytes = tree.finish(&Seal { key, sealed_at_ns: 1, inferred: false, replaces, origin }).unwrap();
        Loaded::new(Manifest::parse(bytes).unwrap().into(), vec![None; files as usize + 1])
    }

    #[test]
    fn memory_is_bounded_and_what_is_used_stays() {
        let size = loaded(1, 100).bytes();
        let all = AllLoaded::new(4 * size + 100);
        let put = |n| {
            let held = LastLoaded::default();
            held.set(&all.put(loaded(n, 100)));
            held
        };
        let held: Vec<LastLoaded> = (0..50).map(put).collect();
        let there = |held: &[LastLoaded]| held.iter().filter(|h| h.0.read().upgrade().is_some()).count();
        assert_eq!(there(&held), 4, "holding an entry keeps nothing in memory");
        for n in 50..60 {
            assert!(held[49].get().is_some(), "used since the last round");
            all.put(loaded(n, 100));
        }
        assert_eq!(there(&held), 1);
    }

    #[test]
    fn the_newest_is_kept_whatever_its_size_and_loaded_once() {
        let all = AllLoaded::new(1);
        let large = all.put(loaded(1, 10_000));
        let table = vec![Some(Location::Loose); 10_001];
        all.put(loaded(1, 10_000)).relocate(table);
        assert_eq!(large.location(7), Some(Location::Loose), "all who read it see what was moved");
        assert!(Arc::ptr_eq(&all.get(&large.manifest.hash()).unwrap(), &large));
        all.put(loaded(2, 1));
        assert!(all.get(&large.manifest.hash()).is_none());
    }
}
