//! The index: which entries and blobs there are, in SQLite (the only room that knows rusqlite).
//!
//! Purpose: fast answers and exact reference counts. Everything here can be rebuilt from the
//! store, except the order of access. Invariants: one writer thread; a commit that returned
//! is on disk (WAL, synchronous=FULL); concurrent commits are grouped into one transaction.
//! Must not know: files of the store other than its own, leases, FUSE.

use std::path::Path;

use crate::model::{BlobHash, EntryKey, ManifestHash};
use crate::store::{Location, PackId};

type Result<T> = std::result::Result<T, IndexError>;

/// What went wrong in the index.
#[derive(Debug, thiserror::Error)]
pub enum IndexError {
    /// SQLite failed.
    #[error("the index cannot {op}: {source}; if it is damaged, 'outfs fsck --rebuild-index' makes it anew")]
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
    /// The writer thread is gone.
    #[error("the index was closed")]
    Closed,
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
    /// Sealed by quiet.
    pub inferred: bool,
    /// False: the metadata did not parse, so it is a miss.
    pub readable: bool,
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
    /// Must be the current manifest of the key: replaced in the same transaction
    /// (its references are dropped, as by `remove_entry`).
    pub replaces: Option<ManifestHash>,
}

/// How a commit ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Commit {
    /// The entry is in, with this row id; what a replaced one freed.
    Done(i64, Freed),
    /// The key is taken (by this row); nothing changed.
    Taken(Box<EntryRow>),
}

/// What a removal left without references; the caller deletes the files.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Freed {
    /// The removed entry's manifest.
    pub manifest: Option<ManifestHash>,
    /// Loose blobs with no reference left (rows are gone already), and sizes.
    pub loose: Vec<(BlobHash, u64)>,
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
    /// Bytes of the file.
    pub total: u64,
}

/// Totals, kept by triggers or counters: O(1).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Totals {
    /// Number of entries.
    pub entries: u64,
    /// Number of distinct blobs.
    pub blobs: u64,
    /// Bytes of loose blobs.
    pub loose_bytes: u64,
    /// Bytes of pack files.
    pub pack_bytes: u64,
    /// Bytes of pack files that nothing refers to.
    pub dead_bytes: u64,
    /// Sum of the entries' logical sizes.
    pub logical_bytes: u64,
}

/// The open index.
pub struct Index {
    _todo: (),
}

#[allow(unused_variables, clippy::todo)]
impl Index {
    /// Opens (or creates) the index in `file`; the flag says whether it was new (or unusable and
    /// set aside as `<file>.bad`), so that the caller rebuilds it.
    pub fn open(file: &Path) -> Result<(Index, bool)> {
        todo!()
    }
    /// Grows each time the index was created anew; part of event cursors.
    pub fn epoch(&self) -> u32 {
        todo!()
    }
    /// Sets the epoch (only at rebuilding).
    pub fn set_epoch(&self, epoch: u32) -> Result<()> {
        todo!()
    }
    /// The entry with this key.
    pub fn entry(&self, key: &EntryKey) -> Result<Option<EntryRow>> {
        todo!()
    }
    /// Up to `limit` entries with `id > after`, by id.
    pub fn entries_after(&self, after: i64, limit: usize) -> Result<Vec<EntryRow>> {
        todo!()
    }
    /// Up to `limit` (id, key) pairs with `id > after`, by id: for listing the root.
    pub fn keys_after(&self, after: i64, limit: usize) -> Result<Vec<(i64, EntryKey)>> {
        todo!()
    }
    /// Up to `limit` entries, least recently used first, with `(accessed_at, id)` after `after`.
    pub fn oldest(&self, after: Option<(i64, i64)>, limit: usize) -> Result<Vec<EntryRow>> {
        todo!()
    }
    /// A task's entries, newest first.
    pub fn by_task(&self, task_id: &str, limit: usize) -> Result<Vec<EntryRow>> {
        todo!()
    }
    /// Distinct task ids after `after`, in order.
    pub fn tasks_after(&self, after: &str, limit: usize) -> Result<Vec<String>> {
        todo!()
    }
    /// Adds an entry; durable when it returns. Counts a reference per distinct blob, adds new
    /// blobs and packs. `Taken` if the key exists and `replaces` is not its manifest.
    pub fn commit(&self, new: NewEntry) -> Result<Commit> {
        todo!()
    }
    /// Removes an entry whose distinct blobs are `blobs`, if `manifest` is still its manifest;
    /// blobs in `reserved` keep their rows with zero references. `None` when it was not there.
    pub fn remove_entry(
        &self,
        key: &EntryKey,
        manifest: &ManifestHash,
        blobs: &[BlobHash],
        reserved: &dyn Fn(&BlobHash) -> bool,
    ) -> Result<Option<Freed>> {
        todo!()
    }
    /// Drops blobs that have no references and are not reserved; what that frees.
    pub fn drop_unreferenced(&self, reserved: &dyn Fn(&BlobHash) -> bool) -> Result<Freed> {
        todo!()
    }
    /// A blob.
    pub fn blob(&self, hash: &BlobHash) -> Result<Option<BlobRow>> {
        todo!()
    }
    /// Those of `hashes` that are known, in the same order.
    pub fn blobs(&self, hashes: &[BlobHash]) -> Result<Vec<Option<BlobRow>>> {
        todo!()
    }
    /// Every blob row, in pages by hash: for fsck.
    pub fn blobs_after(&self, after: Option<&BlobHash>, limit: usize) -> Result<Vec<BlobRow>> {
        todo!()
    }
    /// The blobs of a pack.
    pub fn pack_blobs(&self, id: PackId) -> Result<Vec<BlobRow>> {
        todo!()
    }
    /// Every pack.
    pub fn packs(&self) -> Result<Vec<PackRow>> {
        todo!()
    }
    /// Compaction: moves blobs to their new places, adds the new pack, drops the old ones' rows;
    /// one transaction.
    pub fn relocate(
        &self,
        moved: &[(BlobHash, Location)],
        added: Option<(PackId, u64)>,
        dropped: &[PackId],
    ) -> Result<()> {
        todo!()
    }
    /// Records accesses (row id, nanoseconds since 1970); not synced, lost at worst.
    pub fn touch(&self, accessed: &[(i64, i64)]) -> Result<()> {
        todo!()
    }
    /// Totals.
    pub fn totals(&self) -> Result<Totals> {
        todo!()
    }
    /// SQLite's own integrity check plus reference counts against the given truth is done by
    /// fsck; this is SQLite's part: the list of complaints, empty when sound.
    pub fn integrity(&self) -> Result<Vec<String>> {
        todo!()
    }
    /// Finishes the writer thread and checkpoints.
    pub fn close(self) -> Result<()> {
        todo!()
    }
}
