//! Use cases: look up, ingest, seal, restore, evict, pin, recover, check.
//!
//! Purpose: the one implementation of everything outfs does with entries; the file system, the
//! control socket and the command line are thin layers over it. Invariants: an entry is committed
//! only after all its bytes are durable; nothing leased, pinned or reserved is freed; a
//! lookup that returned a [`Lease`] can read the entry until the lease is dropped.
//! Must not know: FUSE, inode numbers, sockets, terminals.
//!
//! Lock order: draft gate → the index's gate (`anew`) → lease table → reservations → manifest cache; none is held across
//! disk I/O except the gates: a draft's is held while its tree changes, the index's while somebody relies on it,
//! and the lock of pins and rejections (`pin`), which is taken before all but a draft's and the index's gate.

mod adopt;
mod ahead;
mod alias;
mod anew;
mod at;
mod backend;
mod background;
#[cfg(test)]
mod batch_tests;
mod breaker;
mod budget;
mod commit;
mod compact;
mod compare;
mod content;
mod damaged;
mod digests;
mod draft;
mod error;
mod events;
mod evict;
mod fetch;
#[cfg(test)]
mod fixture_tests;
mod flights;
#[cfg(test)]
mod flights_tests;
mod fsck;
#[cfg(test)]
mod fsck_tests;
mod gate;
#[cfg(test)]
mod going_tests;
mod held;
mod here;
mod holder;
mod import;
mod ingest;
mod known;
mod larges;
mod learned;
mod lease;
#[cfg(test)]
mod lease_tests;
mod lookup;
#[cfg(test)]
mod lookup_tests;
mod memory;
mod only;
mod open;
mod partial;
mod patience;
mod peek;
mod pin;
mod place;
mod prefetch;
mod pressure;
mod process;
mod push;
mod put;
mod queue;
mod read;
mod rebuild;
#[cfg(test)]
mod rebuild_tests;
mod recent;
mod recover;
mod repair;
mod residency;
#[cfg(test)]
mod residency_tests;
mod restore;
mod restore_files;
mod scrub;
#[cfg(test)]
mod scrub_tests;
mod seal;
mod sealing;
mod sessions;
mod stash;
mod tar;
#[cfg(test)]
mod tests;
#[cfg(test)]
mod tier_tests;
mod tiers;
mod turns;
mod untar;
mod unwritten;
mod upkeep;
#[cfg(test)]
mod upkeep_tests;
mod uproot;
mod usage;
mod verify;
mod walk;
mod way;
mod whole;
mod work;

pub use backend::{CacheBackend, CacheEntry, CacheLookupResult, CacheOutput, CachePolicy, Task};
pub use breaker::TierFacts;
pub use budget::{Payer, ScanFacts};
pub use draft::Draft;
pub use error::CacheError;
pub use events::{Events, EventsError, MOST_EVENTS};
pub use fsck::{Damage, FsckOptions, FsckProgress, FsckReport};
pub use gate::{Closed, Gate, Stage};
pub use held::HeldBlob;
pub(crate) use here::{host_name, now_ns, pidfd_open, pidfd_signal, workers};
pub use holder::{Holder, Known, NAMES_LAST};
pub use import::{ImportReport, Skipped};
pub use lease::{Lease, LeaseKind};
pub use lookup::{Lookup, Miss};
pub use place::Placement;
pub use prefetch::{Prefetch, Prefetched};
pub use pressure::{GcOptions, GcReport};
pub use process::Process;
pub(crate) use process::{Stat, process_of};
pub use push::PushFacts;
pub use read::Reader;
pub use residency::Residency;
pub(crate) use restore::{temp_name, temp_owner};
pub use scrub::ScrubFacts;
pub use tiers::TierOptions;
pub(crate) use uproot::remove_tree;
pub use usage::{Du, Stats, Usage};
pub use work::Work;

use std::sync::{Arc, OnceLock};
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::index::{EntryRow, Index};
use crate::model::EntryKey;
use crate::model::manifest::{Origin, Top};
use crate::model::units::{Bytes, Size};
use crate::store::Store;

/// What every use case returns.
pub type Result<T> = std::result::Result<T, CacheError>;

/// How much a store may hold, when things go, and how much memory that takes; the defaults are the command line's.
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
    /// A daemon verifies all content once in so long; 0 is never.
    #[serde(with = "crate::cache::seconds")]
    pub scrub: Duration,
    /// Memory that the process that owns the store may take; it counts when the store is opened.
    pub memory: Bytes,
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
            scrub: Duration::from_secs(7 * 86400),
            memory: Bytes(128 << 20),
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

/// A sealed entry that is held: what it looks like and the lease that keeps it from being freed. Its manifest
/// and where its blobs lie are in memory only while they are in use. Cheap to clone.
#[derive(Clone)]
pub struct Entry(Arc<HeldEntry>);

struct HeldEntry {
    key: EntryKey,
    sealed_at_ns: i64,
    top: Option<Top>,
    /// Read when it is asked for.
    row: OnceLock<Box<EntryRow>>,
    loaded: lookup::LastLoaded,
    lease: Lease,
    cache: Cache,
}

impl std::fmt::Debug for Entry {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entry").field("key", self.key()).field("row", &self.id()).finish()
    }
}

/// An owned, open cache; cheap to clone.
#[derive(Clone)]
pub struct Cache {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    // Closed before the store's lock is let go.
    pub(crate) index: Index,
    pub(crate) store: Arc<Store>,
    anew: anew::Anew,
    pub(crate) leases: lease::LeaseTable,
    holders: holder::Holders,
    pub(crate) limits: parking_lot::RwLock<Limits>,
    upkeep: upkeep::Upkeep,
    drafts: draft::DraftTable,
    /// One sealer for each key.
    sealing: turns::Turns<EntryKey>,
    /// Who evicts an entry waits for who is just making it.
    births: turns::Turns<EntryKey>,
    /// One at a time brings a manifest that may have been there before, or unlinks it.
    manifests: turns::Turns<crate::model::ManifestHash>,
    claims: stash::Claims,
    tiers: tiers::Tiers,
    aliases: alias::Aliases,
    partials: partial::Partials,
    push: push::Push,
    loaded: lookup::AllLoaded,
    peeks: peek::Peeks,
    /// Bytes that what the kernels of all views know may take.
    share_of_kernels: usize,
    let_go: memory::LetGo,
    damaged: damaged::DamagedBlobs,
    /// The index was found damaged since it was made: an event told of it.
    bad_index: std::sync::atomic::AtomicBool,
    /// Manifests of entries found damaged or lost since the start: an event told of each.
    bad_manifests: parking_lot::Mutex<std::collections::HashSet<crate::model::ManifestHash>>,
    /// Content bytes that entries were read for.
    pub(crate) blob_bytes_read: std::sync::atomic::AtomicU64,
    scrub: scrub::Scrub,
    background: background::Background,
    /// What may be left to the next start is left to it.
    closing: std::sync::atomic::AtomicBool,
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

impl std::ops::AddAssign for Restored {
    fn add_assign(&mut self, more: Restored) {
        self.files += more.files;
        self.bytes += more.bytes;
        self.reflinked += more.reflinked;
        self.kept += more.kept;
    }
}
