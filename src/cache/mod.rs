//! Use cases: look up, ingest, seal, restore, evict, pin, recover, check.
//!
//! Purpose: the one implementation of everything outfs does with entries; the file system, the
//! control socket and the command line are thin layers over it. Invariants: an entry is committed
//! only after all its bytes are durable; nothing leased, pinned or reserved is freed; a
//! lookup that returned a [`Lease`] can read the entry until the lease is dropped.
//! Must not know: FUSE, inode numbers, sockets, terminals.
//!
//! Lock order: draft gate → lease table → reservations → manifest cache; none is held across
//! disk I/O except the draft gate, which exists to be held while one draft's tree changes.

mod draft;
mod error;
mod lease;

pub use draft::{Draft, Gate};
pub use error::CacheError;
pub use lease::{Holder, Lease, LeaseKind};

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::index::{EntryRow, Index};
use crate::model::manifest::Origin;
use crate::model::units::Size;
use crate::model::{EntryKey, Manifest, ManifestHash};
use crate::store::{DraftPlace, Location, Store};

/// What every use case returns.
pub type Result<T> = std::result::Result<T, CacheError>;

/// How much a store may hold and when things go; the defaults are the command line's.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(default, deny_unknown_fields)]
pub struct Limits {
    /// Bytes the store may use; default 10 % of the file system, at least 5 GiB.
    pub size: Option<Size>,
    /// Bytes of the file system to leave free; default 1 %.
    pub reserve: Option<Size>,
    /// Most entries; default unlimited.
    pub entries: Option<u64>,
    /// Eviction starts above this share of `size` (per cent) and stops at `low_water`.
    pub high_water: u8,
    /// See `high_water`.
    pub low_water: u8,
    /// Entries younger than this are never evicted to make room.
    #[serde(with = "crate::cache::seconds")]
    pub min_age: Duration,
    /// Drafts idle for longer are dropped.
    #[serde(with = "crate::cache::seconds")]
    pub draft_ttl: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Self {
            size: None,
            reserve: None,
            entries: None,
            high_water: 95,
            low_water: 85,
            min_age: Duration::from_secs(600),
            draft_ttl: Duration::from_secs(86400),
        }
    }
}

/// Durations in configuration and protocol: whole or fractional seconds, or `10m` as text.
pub(crate) mod seconds {
    use serde::{Deserialize, Deserializer, Serializer};
    use std::time::Duration;

    pub fn serialize<S: Serializer>(d: &Duration, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_f64(d.as_secs_f64())
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<Duration, D::Error> {
        #[derive(Deserialize)]
        #[serde(untagged)]
        enum Form {
            Number(f64),
            Text(String),
        }
        use serde::de::Error;
        match Form::deserialize(d)? {
            Form::Number(n) => Duration::try_from_secs_f64(n).map_err(D::Error::custom),
            Form::Text(t) => crate::model::units::parse_duration(&t).map_err(D::Error::custom),
        }
    }
}

/// By which gesture an entry is sealed, and who asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SealRequest {
    /// The key to seal under.
    pub key: EntryKey,
    /// Who, how and from where.
    pub origin: Origin,
    /// Sealed by quiet.
    pub inferred: bool,
    /// Replace an existing entry with different outputs (`--overwrite replace`); an inferred
    /// entry is always replaced by a later store.
    pub replace: bool,
}

/// How sealing ended.
#[derive(Debug)]
pub enum Sealed {
    /// A new entry.
    New(Entry),
    /// The key had the same outputs already; nothing changed.
    Same(Entry),
}

impl Sealed {
    /// The entry, new or old.
    pub fn into_entry(self) -> Entry {
        match self {
            Sealed::New(e) | Sealed::Same(e) => e,
        }
    }
}

/// A sealed entry that is held: its row, its manifest, where its blobs lie, and the lease that
/// keeps all of it from being freed. Cheap to clone.
#[derive(Clone)]
pub struct Entry {
    pub(crate) row: Arc<EntryRow>,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) locations: Arc<parking_lot::RwLock<Arc<[Option<Location>]>>>,
    pub(crate) lease: Arc<Lease>,
    pub(crate) cache: Cache,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("key", &self.row.key).field("manifest", &self.row.manifest).finish()
    }
}

impl Entry {
    /// Its index row.
    pub fn row(&self) -> &EntryRow {
        &self.row
    }

    /// Its key.
    pub fn key(&self) -> &EntryKey {
        &self.row.key
    }

    /// Its manifest.
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }
}

/// An owned, open cache; cheap to clone.
#[derive(Clone)]
pub struct Cache {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub(crate) store: Arc<Store>,
    pub(crate) index: Index,
    pub(crate) leases: lease::LeaseTable,
    pub(crate) limits: parking_lot::RwLock<Limits>,
}

/// What a metadata file is made of when a client does not write one itself.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct TaskFacts {
    /// The task's name.
    pub task_id: String,
    /// Its argument vector.
    pub command: Vec<String>,
    /// Its exit code.
    pub exit_code: i32,
    /// How long it ran.
    pub duration_ms: u64,
}

/// How outputs are given back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum RestoreAs {
    /// Reflink where the file system can, else copy.
    #[default]
    Auto,
    /// Reflink or fail.
    Reflink,
    /// Copy.
    Copy,
}

/// What a restore did.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Restored {
    /// Files written.
    pub files: u64,
    /// Their bytes.
    pub bytes: u64,
    /// How many of the files are reflinks.
    pub reflinked: u64,
    /// What stood there already, alike, and was left.
    pub kept: u64,
}

#[allow(unused_variables, clippy::todo)]
impl Cache {
    // ---- open.rs, recover.rs
    /// Opens the store at `root` as its owner, creates it if missing, recovers from any kind of death.
    pub fn open(root: &Path, limits: Limits) -> Result<Cache> {
        todo!()
    }
    /// The store.
    pub fn store(&self) -> &Arc<Store> {
        &self.inner.store
    }
    /// The index.
    pub fn index(&self) -> &Index {
        &self.inner.index
    }
    /// Flushes access times and closes the index.
    pub fn close(self) -> Result<()> {
        todo!()
    }

    // ---- lookup.rs
    /// The sealed entry of `key`, leased; `None` when there is none. Does not judge metadata or
    /// rejections: this is what a mount shows.
    pub fn entry(&self, key: &EntryKey, kind: LeaseKind) -> Result<Option<Entry>> {
        todo!()
    }
    /// Notes that the entry was used now (batched; persisted in the background).
    pub fn touch(&self, entry: &Entry) {
        todo!()
    }

    // ---- draft.rs
    /// Creates a draft. `EEXIST`-like when the key or the work name is taken by a draft.
    pub fn create_draft(&self, place: DraftPlace) -> Result<Arc<Draft>> {
        todo!()
    }
    /// Creates the draft that replaces a sealed entry; it begins as a copy (reflinks) of it.
    pub fn create_replacement(&self, entry: &Entry) -> Result<Arc<Draft>> {
        todo!()
    }
    /// The in-place (or replacing) draft for `key`.
    pub fn draft_for(&self, key: &EntryKey) -> Option<Arc<Draft>> {
        todo!()
    }
    /// The work draft called `name`.
    pub fn work_draft(&self, name: &[u8]) -> Option<Arc<Draft>> {
        todo!()
    }
    /// All drafts.
    pub fn drafts(&self) -> Vec<Arc<Draft>> {
        todo!()
    }
    /// Gives a draft another place (rename among drafts).
    pub fn move_draft(&self, draft: &Arc<Draft>, to: DraftPlace) -> Result<()> {
        todo!()
    }
    /// Drops a draft and deletes its tree in the background.
    pub fn drop_draft(&self, draft: &Arc<Draft>, why: &str) -> Result<()> {
        todo!()
    }

    // ---- ingest.rs
    /// Hashes one closed file of a draft under a read lease and remembers the hash by (inode,
    /// size, mtime, ctime). `Ok(false)` when a writer has it or the hash was cancelled.
    pub fn ingest(&self, draft: &Arc<Draft>, file: &std::fs::File) -> Result<bool> {
        todo!()
    }

    // ---- seal.rs
    /// Does all that can be done before sealing: hashes, packs and syncs what the draft holds.
    /// The result is kept in the draft and used by `seal` if nothing has changed since.
    pub fn prepare(&self, draft: &Arc<Draft>) -> Result<()> {
        todo!()
    }
    /// Seals a draft: durable when it returns. `Busy` with writers open, `Exists` when the key has
    /// other outputs, `SpecialFile` for what cannot be stored.
    pub fn seal(&self, draft: &Arc<Draft>, request: SealRequest) -> Result<Sealed> {
        todo!()
    }

    // ---- put.rs
    /// Stores a directory as `outputs/`, with metadata made of `facts` and the given logs.
    pub fn put_dir(
        &self,
        dir: &Path,
        facts: &TaskFacts,
        logs: [Option<&Path>; 2],
        request: SealRequest,
    ) -> Result<Sealed> {
        todo!()
    }
    /// Stores a tar stream as `outputs/`.
    pub fn put_tar(
        &self,
        tar: &mut dyn std::io::Read,
        facts: &TaskFacts,
        logs: [Option<&Path>; 2],
        request: SealRequest,
    ) -> Result<Sealed> {
        todo!()
    }

    // ---- evict.rs, compact.rs
    /// Hides an entry at once and frees it when the last holder lets go. `Pinned` while pinned.
    pub fn evict(&self, key: &EntryKey, why: &str) -> Result<bool> {
        todo!()
    }
    /// Makes room for `bytes` more under the limits, evicting least recently used entries;
    /// `NoSpace` when it cannot. Called before anything is created.
    pub fn make_room(&self, bytes: u64) -> Result<()> {
        todo!()
    }
    /// After a commit that replaced `old` (see [`crate::index::Commit::Done`]): frees it when its last
    /// lease goes (at once when there is none), and asks the holders to prune it.
    pub(crate) fn free_replaced(&self, old: &EntryRow) {
        todo!()
    }
    // ---- usage.rs
    /// What the store uses and may use; cheap (kept in memory, refreshed in the background).
    pub fn usage(&self) -> Result<Usage> {
        todo!()
    }
    /// All figures, for `stats`, `stats.json` and `metrics`.
    pub fn stats(&self) -> Result<Stats> {
        todo!()
    }
    // ---- recover.rs
    /// Called by `open` before anything else uses the cache: rebuilds the index when `fresh`,
    /// sweeps packs and blobs that nothing refers to, loads pins and rejections.
    pub(crate) fn recover(&self, fresh: bool) -> Result<()> {
        todo!()
    }
    // ---- pin.rs
    /// The rejection of `key` that stands against the entry with manifest `current` (from memory).
    pub(crate) fn rejection(
        &self,
        key: &EntryKey,
        current: Option<&ManifestHash>,
    ) -> Option<crate::store::Rejection> {
        todo!()
    }
    /// Forgets a rejection that a new entry has replaced.
    pub(crate) fn rejection_replaced(&self, key: &EntryKey) -> Result<()> {
        todo!()
    }
}

/// What the store uses of what it may.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Usage {
    /// The quota, in bytes.
    pub limit: u64,
    /// Bytes used: packs, blobs, manifests, drafts, and what was evicted but is still held.
    pub used: u64,
    /// Number of entries.
    pub entries: u64,
    /// Bytes of drafts, of `used`.
    pub drafts: u64,
    /// Bytes evicted but still held, of `used`.
    pub held: u64,
}

/// All figures of a cache.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Stats {
    /// The process that owns the store.
    pub pid: u32,
    /// The store's id.
    pub store_id: String,
    /// This program's version.
    pub version: String,
    /// What is used.
    pub usage: Usage,
    /// What the index holds.
    pub totals: crate::index::Totals,
    /// Bytes of outputs read from packs and blobs by this process.
    pub blob_bytes_read: u64,
    /// Entries evicted by this process.
    pub evicted: u64,
    /// Pins.
    pub pins: u64,
}

/// Reading what an entry holds.
#[allow(unused_variables, clippy::todo)]
impl Entry {
    /// Fills `buf` from `offset` of a file record, verified group by group; short only at the end.
    /// Survives compaction under its feet (asks the index again).
    pub fn read(&self, record: u32, offset: u64, buf: &mut [u8]) -> Result<usize> {
        todo!()
    }
    /// The loose file behind a large record, for passthrough and reflinks; `None` when packed.
    pub fn backing(&self, record: u32) -> Result<Option<std::fs::File>> {
        todo!()
    }
    /// A whole file record; refuses more than `limit` bytes.
    pub fn read_all(&self, record: u32, limit: u64) -> Result<Vec<u8>> {
        todo!()
    }
    /// The parsed `metadata.json`, or why it is none.
    pub fn metadata(&self) -> Result<std::result::Result<crate::model::Metadata, String>> {
        todo!()
    }
    /// Writes `outputs/` below `dest`: merges, replaces only with `force`, never leaves `dest`.
    pub fn restore(&self, dest: &Path, how: RestoreAs, force: bool) -> Result<Restored> {
        todo!()
    }
    /// Writes `outputs/` as a tar stream.
    pub fn write_tar(&self, out: &mut dyn std::io::Write) -> Result<()> {
        todo!()
    }
    /// The manifest it was opened with.
    pub fn manifest_hash(&self) -> ManifestHash {
        self.row.manifest
    }
}
