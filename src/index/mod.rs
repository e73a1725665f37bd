//! The index: which entries and blobs there are, in SQLite (the only room that knows rusqlite).
//!
//! Purpose: fast answers and exact reference counts. Everything here can be rebuilt from the
//! store, except the order of access. Invariants: one writer thread; a commit that returned
//! is on disk (WAL, synchronous=FULL); concurrent commits are grouped into one transaction.
//! Must not know: files of the store other than its own, leases, FUSE.

mod backed;
mod digests;
mod keys;
#[cfg(test)]
mod keys_tests;
mod learned;
mod log;
mod read;
mod schema;
mod spare;
mod sums;
#[cfg(test)]
pub(crate) mod tests;
mod write;
mod writer;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64};

use crate::model::manifest::Top;
use crate::model::{BlobHash, EntryKey, ManifestHash};
use crate::store::{Location, PackId};

type Result<T> = std::result::Result<T, IndexError>;

/// What went wrong in the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite failed.
    #[error("the index cannot {op}: {source}; {advice}", advice = advice(source))]
    Sqlite {
        /// What was being done.
        op: &'static str,
        /// SQLite's answer.
        source: rusqlite::Error,
    },
    /// Written by a newer program.
    #[error("the index has version {found}, this program knows up to {known}; use a newer outfs")]
    TooNew {
        /// Its `user_version`.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// A commit that refers to something the index does not know.
    #[error("the index does not know {0}; nothing was changed")]
    Unknown(String),
    /// The system refused something around the index's file.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb.
        op: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: std::io::Error,
    },
    /// The writer thread is gone.
    #[error("the index was closed")]
    Closed,
}

/// What to do about an error of SQLite.
fn advice(e: &rusqlite::Error) -> &'static str {
    use rusqlite::ErrorCode;
    match e.sqlite_error_code() {
        Some(ErrorCode::DatabaseBusy | ErrorCode::DatabaseLocked) => {
            "another program has its file open: end that and try again"
        }
        Some(ErrorCode::DiskFull) => "free some space on its disk",
        Some(ErrorCode::SystemIoFailure | ErrorCode::CannotOpen) => {
            "the disk or the system refuses: once that is over it works again, and nothing stored is lost"
        }
        _ => "if it is damaged, 'outfs fsck --rebuild-index' makes it anew",
    }
}

impl IndexError {
    /// The disk is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, IndexError::Sqlite { source: rusqlite::Error::SqliteFailure(e, _), .. }
            if e.code == rusqlite::ErrorCode::DiskFull)
    }
}

/// An entry as the index knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EntryRow {
    /// Row id: grows, never reused while the index lives; the cookie for listing.
    pub id: i64,
    /// The key.
    pub key: EntryKey,
    /// The entry's manifest.
    pub manifest: ManifestHash,
    /// From the metadata; empty when unknown.
    pub task_id: String,
    /// Nanoseconds since 1970.
    pub sealed_at_ns: i64,
    /// Nanoseconds since 1970.
    pub accessed_at_ns: i64,
    /// Sum of all file sizes.
    pub logical_bytes: u64,
    /// Number of file names.
    pub files: u64,
    /// Bytes that its manifest and location table occupy on the disk.
    pub metadata_bytes: u64,
    /// Sealed by quiet.
    pub inferred: bool,
    /// False: the metadata did not parse, so it is a miss.
    pub readable: bool,
    /// What its top directory looks like, so that finding an entry reads no manifest; `None` in rows
    /// that an older program wrote.
    pub top: Option<Top>,
    /// What is known of it in tiers.
    pub in_tier: InTier,
}

/// Whether a tier has an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Backed {
    /// That is not known.
    #[default]
    No = 0,
    /// It came from there.
    Came = 1,
    /// It was brought there.
    Brought = 2,
}

impl Backed {
    fn of(column: i64) -> Backed {
        match column {
            0 => Backed::No,
            2 => Backed::Brought,
            _ => Backed::Came,
        }
    }
}

/// What is known of an entry in tiers.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct InTier {
    /// Whether one has it: then there are places for its contents.
    pub backed: Backed,
    /// Which one; empty where that is forgotten.
    pub tier: String,
    /// When it last gave up its bytes, nanoseconds since 1970: unless it was used since, none are here.
    pub dropped_at_ns: i64,
}

impl InTier {
    /// One has it.
    pub fn is_backed(&self) -> bool {
        self.backed != Backed::No
    }
}

/// An entry as a look-up finds it: enough to show that it is there.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Glance {
    /// Row id.
    pub id: i64,
    /// Nanoseconds since 1970.
    pub sealed_at_ns: i64,
    /// As in the row.
    pub top: Option<Top>,
    /// The row, if it was read.
    pub row: Option<Box<EntryRow>>,
}

impl From<EntryRow> for Glance {
    fn from(row: EntryRow) -> Glance {
        Glance { id: row.id, sealed_at_ns: row.sealed_at_ns, top: row.top, row: Some(Box::new(row)) }
    }
}

/// A blob as the index knows it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BlobRow {
    /// Its name.
    pub hash: BlobHash,
    /// Bytes.
    pub size: u64,
    /// How many entries refer to it (an entry counts once).
    pub refs: u64,
    /// Where it lies.
    pub location: Location,
    /// How many of these entries a tier has.
    pub backed: u64,
}

/// In a row without a pack: only a tier has the blob.
const ELSEWHERE: i64 = 2;

/// What file systems give files: a file occupies a whole number of these.
const BLOCK: u64 = 4096;

/// The bytes that a file of this length occupies on the disk.
pub fn occupied(len: u64) -> u64 {
    len.div_ceil(BLOCK) * BLOCK
}

/// Everything one sealed entry adds; committed in one transaction.
#[derive(Debug, Clone)]
pub struct NewEntry {
    /// The row, `id` ignored.
    pub row: EntryRow,
    /// Each distinct blob of the entry, with where it lies now (known or new).
    pub blobs: Vec<(BlobHash, u64, Location)>,
    /// Packs that came with it: id and file size.
    pub packs: Vec<(PackId, u64)>,
    /// Must be the current entry of the key: replaced in the same transaction.
    pub replaces: Option<Replaced>,
    /// Those of its blobs that are known and whose place from now on is the one given here: they were damaged.
    pub healed: Vec<BlobHash>,
}

/// The entry that a commit replaces. Its references are dropped; blobs that nothing refers to
/// then keep their rows (the replaced entry may still be read), until
/// [`Index::drop_unreferenced`] is told their names.
#[derive(Debug, Clone)]
pub struct Replaced {
    /// Its manifest.
    pub manifest: ManifestHash,
    /// Its distinct blobs.
    pub blobs: Vec<BlobHash>,
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// The entry is in, with this row id; the row that it replaced.
    Done(i64, Option<Box<EntryRow>>),
    /// The key is taken (by this row); nothing changed.
    Taken(Box<EntryRow>),
}

/// What a removal left without references; the caller deletes the files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Freed {
    /// The removed entry's manifest.
    pub manifest: Option<ManifestHash>,
    /// Bytes that the removed entry's manifest and location table occupied.
    pub metadata: u64,
    /// Loose blobs with no reference left (rows are gone already), and sizes.
    pub loose: Vec<(BlobHash, u64)>,
    /// Blobs elsewhere with no reference left (rows are gone already).
    pub elsewhere: Vec<BlobHash>,
    /// Packs with no live blob left (rows are gone already), and file sizes.
    pub packs: Vec<(PackId, u64)>,
    /// Bytes of packed blobs that died inside packs which stay.
    pub dead_in_packs: u64,
}

/// A pack's occupancy.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackRow {
    /// The pack.
    pub id: PackId,
    /// Content bytes of blobs that are referred to.
    pub live: u64,
    /// Blobs whose place it is, referred to or not.
    pub blobs: u64,
    /// Bytes of the file.
    pub total: u64,
}

/// Totals, kept in the same transactions: O(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Totals {
    /// Number of entries.
    pub entries: u64,
    /// Number of distinct blobs.
    pub blobs: u64,
    /// Bytes of loose blobs.
    pub loose_bytes: u64,
    /// Bytes of blobs, loose or packed, that no entry refers to while their rows are kept.
    pub unreferenced_bytes: u64,
    /// Bytes of pack files.
    pub pack_bytes: u64,
    /// Bytes of pack files that nothing refers to.
    pub dead_bytes: u64,
    /// Bytes that pack files and loose blobs occupy on the disk, in whole blocks.
    pub occupied_bytes: u64,
    /// Bytes that manifests and location tables occupy.
    pub metadata_bytes: u64,
    /// Sum of the entries' logical sizes.
    pub logical_bytes: u64,
    /// Bytes of blobs that only a tier has: they occupy nothing here.
    #[serde(default)]
    pub elsewhere_bytes: u64,
}

/// Changes of entries, counted by who asks for them: before he does, and when he has the answer.
#[derive(Default)]
struct Changes {
    begun: AtomicU64,
    ended: AtomicU64,
}

/// The open index.
pub struct Index {
    file: PathBuf,
    finished: AtomicBool,
    epoch: AtomicU32,
    writer: writer::Writer,
    readers: Arc<read::Readers>,
    keys: Arc<keys::Keys>,
    /// The highest row id handed out, so that ids go on growing when the index is made anew.
    last_id: Arc<AtomicI64>,
    /// Changes of entries since it was opened.
    changes: Arc<Changes>,
}

impl std::fmt::Debug for Index {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Index").field("file", &self.file).finish()
    }
}

/// Makes an SQLite error one of ours.
fn sqlite(op: &'static str) -> impl Fn(rusqlite::Error) -> IndexError {
    move |source| IndexError::Sqlite { op, source }
}

/// Where rows keep their place: pack 0 is a file of its own, or with [`ELSEWHERE`] none.
fn to_columns(at: Location) -> (i64, i64) {
    match at {
        Location::Loose => (0, 0),
        Location::Elsewhere => (0, ELSEWHERE),
        Location::Pack { pack, offset } => (pack.0 as i64, offset as i64),
    }
}

/// The reverse of [`to_columns`].
fn from_columns(pack: i64, offset: i64) -> Location {
    match (pack, offset) {
        (0, ELSEWHERE) => Location::Elsewhere,
        (0, _) => Location::Loose,
        _ => Location::Pack { pack: PackId(pack as u64), offset: offset as u64 },
    }
}
