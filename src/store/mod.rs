//! The store: blobs, packs, manifests, pins, rejections, events and drafts as files.
//!
//! Purpose: every byte that outlives the daemon, and the order in which it becomes durable.
//! Invariants: what has been renamed to its final name is complete and synced; a pack is never
//! appended to after `finish`; objects are named by their content and verified when read;
//! one process at a time owns a store (the lock), others may only read.
//! Must not know: the index, keys' meaning beyond a file name, leases, eviction policy, FUSE.
//!
//! Names below the store are followed descriptor-relative from its root and never through
//! symlinks.

mod error;

pub use error::StoreError;

use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::model::event::Event;
use crate::model::groups::GroupHash;
use crate::model::{BlobHash, EntryKey, Manifest, ManifestHash};

type Result<T> = std::result::Result<T, StoreError>;

/// Blobs of up to this many bytes go into packs; larger ones are files of their own.
pub const PACK_LIMIT: u64 = 256 * 1024;

/// Names a pack; grows, never used twice. 0 is no pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PackId(pub u64);

/// Where a blob's bytes lie.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Location {
    /// In a pack; `offset` is that of the content, after the blob's header.
    Pack {
        /// The pack.
        pack: PackId,
        /// Byte offset of the content in the pack file.
        offset: u64,
    },
    /// A file of its own in `blobs/`.
    Loose,
}

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As its owner: created when missing, locked; another owner is an error that has its pid.
    Own,
    /// For reading only, beside an owner or on a read-only file system; no lock.
    Read,
}

/// An open store.
pub struct Store {
    _todo: (),
}

/// What `PackWriter::finish` made.
#[derive(Debug, Clone)]
pub struct PackInfo {
    /// Its name.
    pub id: PackId,
    /// Bytes of the file.
    pub bytes: u64,
}

/// A pack being written aside; dropped unfinished, it leaves nothing behind.
pub struct PackWriter {
    _todo: (),
}

#[allow(unused_variables, clippy::todo)]
impl PackWriter {
    /// Appends one blob (at most [`PACK_LIMIT`] bytes) and says where it will lie.
    pub fn append(&mut self, hash: &BlobHash, content: &[u8]) -> Result<Location> {
        todo!()
    }
    /// Bytes so far.
    pub fn len(&self) -> u64 {
        todo!()
    }
    /// No blob was appended.
    pub fn is_empty(&self) -> bool {
        todo!()
    }
    /// Syncs, renames, syncs the directory: durable when it returns.
    pub fn finish(self) -> Result<PackInfo> {
        todo!()
    }
}

/// How a large file's content enters the store.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Adopt {
    /// Hard link of the file itself (the caller holds a read lease and owns the draft).
    Link,
    /// Reflink where possible, else copy: the file stays the caller's.
    Clone,
}

/// One bounded page of the event log.
#[derive(Debug, Clone, PartialEq)]
pub struct EventPage {
    /// Records with `seq > since`, oldest first.
    pub events: Vec<Event>,
    /// There are more after the last.
    pub more: bool,
    /// The oldest `seq` still kept (events before it were trimmed); 0 when the log is empty.
    pub oldest: u64,
    /// The newest `seq` written so far.
    pub newest: u64,
}

/// What a draft is for; kept in `drafts/<id>/draft.json` beside its `tree/`.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(tag = "place", rename_all = "snake_case")]
pub enum DraftPlace {
    /// `mkdir MNT/<key>`.
    InPlace {
        /// The key it is for.
        key: EntryKey,
    },
    /// `mkdir MNT/.outfs/work/<name>`.
    Work {
        /// Its name below `work`; UTF-8 or not, kept as bytes.
        name: Vec<u8>,
    },
    /// Replaces a sealed entry when sealed (`--overwrite replace`).
    Replace {
        /// The key it is for.
        key: EntryKey,
    },
    /// Written natively through its real path (put, tar, run).
    Native {
        /// A label for people.
        label: String,
    },
}

/// A pin's file content.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Pin {
    /// The pin's name; one name pins any number of keys.
    pub name: String,
    /// The pinned entry.
    pub key: EntryKey,
    /// Nanoseconds since 1970.
    pub at_ns: i64,
}

/// A tombstone: lookups of the key miss until it is replaced or the rejection lifted.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Rejection {
    /// The rejected key.
    pub key: EntryKey,
    /// Why, as given.
    pub reason: String,
    /// Nanoseconds since 1970.
    pub at_ns: i64,
    /// The manifest that was current when it was rejected: another manifest replaces the rejection.
    pub manifest: Option<ManifestHash>,
}

#[allow(unused_variables, clippy::todo)]
impl Store {
    // ---- the store as a whole (store/open.rs, store/lock.rs, store/format.rs)
    /// Opens the store at `root`, creating it (mode 0700) when missing and `access` is `Own`.
    /// Sweeps what a dead owner left unfinished (temporary files) when owned.
    pub fn open(root: &Path, access: Access) -> Result<Store> {
        todo!()
    }
    /// Deletes the store at `root` (only if it is one, and nobody owns it).
    pub fn destroy(root: &Path) -> Result<()> {
        todo!()
    }
    /// 16 hexadecimal digits, chosen when the store was created.
    pub fn id(&self) -> &str {
        todo!()
    }
    /// Where it lies.
    pub fn root(&self) -> &Path {
        todo!()
    }
    /// The path for a file of another room at the store's top: `index.sqlite`, `control.sock`.
    pub fn path(&self, name: &str) -> PathBuf {
        todo!()
    }
    /// (total, available to us) bytes of the file system that holds the store.
    pub fn file_system_bytes(&self) -> Result<(u64, u64)> {
        todo!()
    }

    // ---- manifests (store/manifests.rs)
    /// Writes a manifest durably (temp, fdatasync, rename, directory sync); idempotent.
    pub fn write_manifest(&self, bytes: &[u8]) -> Result<ManifestHash> {
        todo!()
    }
    /// Reads and verifies one.
    pub fn read_manifest(&self, hash: &ManifestHash) -> Result<Manifest> {
        todo!()
    }
    /// Unlinks a manifest and its location table, and syncs the directory; a missing one is fine.
    pub fn remove_manifest(&self, hash: &ManifestHash) -> Result<()> {
        todo!()
    }
    /// All manifest names, in no order.
    pub fn manifests(&self) -> Result<Vec<ManifestHash>> {
        todo!()
    }
    /// Writes the location table beside a manifest: one slot per record (`None` for what is no
    /// file). Not synced: it can be rebuilt.
    pub fn write_locations(&self, manifest: &ManifestHash, table: &[Option<Location>]) -> Result<()> {
        todo!()
    }
    /// Reads it; `None` when it is missing or damaged (it is a cache).
    pub fn read_locations(&self, manifest: &ManifestHash) -> Result<Option<Vec<Option<Location>>>> {
        todo!()
    }

    // ---- packs (store/packs.rs)
    /// Starts a pack.
    pub fn new_pack(&self) -> Result<PackWriter> {
        todo!()
    }
    /// The pack's file, open for reading (a bounded cache of descriptors).
    pub fn pack_file(&self, id: PackId) -> Result<Arc<File>> {
        todo!()
    }
    /// All packs with their file sizes.
    pub fn packs(&self) -> Result<Vec<PackInfo>> {
        todo!()
    }
    /// Calls `each(hash, content length, location)` for every blob header of a pack, in order;
    /// stops with `Corrupt` at the first damaged header. Does not read contents unless `verify`.
    pub fn scan_pack(
        &self,
        id: PackId,
        verify: bool,
        each: &mut dyn FnMut(BlobHash, u64, Location),
    ) -> Result<()> {
        todo!()
    }
    /// Unlinks a pack; readers that have it open go on.
    pub fn remove_pack(&self, id: PackId) -> Result<()> {
        todo!()
    }

    // ---- loose blobs (store/blobs.rs)
    /// Brings `file` (content already hashed as `hash`) into `blobs/` and makes it durable:
    /// link or clone, fdatasync, directory sync. Idempotent. The blob's mode becomes 0400 only for clones.
    pub fn adopt(&self, file: &File, hash: &BlobHash, how: Adopt) -> Result<()> {
        todo!()
    }
    /// A loose blob, open for reading (not cached).
    pub fn blob_file(&self, hash: &BlobHash) -> Result<File> {
        todo!()
    }
    /// All loose blobs with sizes.
    pub fn loose_blobs(&self) -> Result<Vec<(BlobHash, u64)>> {
        todo!()
    }
    /// Unlinks one; a missing one is fine.
    pub fn remove_blob(&self, hash: &BlobHash) -> Result<()> {
        todo!()
    }

    // ---- verified reading (store/read.rs)
    /// Fills `buf` from `offset` of a blob of `size` bytes at `at`, verifying every group it
    /// touches (`groups` is the blob's list, empty up to one group). Returns the bytes read,
    /// short only at the end. `Missing` when pack or blob is gone, `Corrupt` when it differs.
    pub fn read_verified(
        &self,
        hash: &BlobHash,
        size: u64,
        groups: &[GroupHash],
        at: Location,
        offset: u64,
        buf: &mut [u8],
    ) -> Result<usize> {
        todo!()
    }

    // ---- drafts (store/drafts.rs)
    /// Creates `drafts/<id>/{draft.json,tree/}` durably enough to survive a crash of the daemon;
    /// returns the id.
    pub fn create_draft(&self, place: &DraftPlace) -> Result<String> {
        todo!()
    }
    /// Replaces a draft's `draft.json` (rename of a work draft).
    pub fn set_draft_place(&self, id: &str, place: &DraftPlace) -> Result<()> {
        todo!()
    }
    /// All drafts: id, place, last modification of `draft.json` or the tree's top (ns since 1970).
    pub fn drafts(&self) -> Result<Vec<(String, DraftPlace, i64)>> {
        todo!()
    }
    /// The draft's `tree/`, opened O_PATH.
    pub fn draft_tree(&self, id: &str) -> Result<OwnedFd> {
        todo!()
    }
    /// The real path of the draft's `tree/`.
    pub fn draft_path(&self, id: &str) -> PathBuf {
        todo!()
    }
    /// Moves the draft out of sight at once and deletes it (any tree, any modes, any depth).
    pub fn remove_draft(&self, id: &str) -> Result<()> {
        todo!()
    }

    // ---- pins, rejections, quarantine (store/pins.rs, store/quarantine.rs)
    /// All pins.
    pub fn pins(&self) -> Result<Vec<Pin>> {
        todo!()
    }
    /// Writes a pin durably.
    pub fn write_pin(&self, pin: &Pin) -> Result<()> {
        todo!()
    }
    /// Removes a pin; false when there was none.
    pub fn remove_pin(&self, name: &str, key: &EntryKey) -> Result<bool> {
        todo!()
    }
    /// All rejections.
    pub fn rejections(&self) -> Result<Vec<Rejection>> {
        todo!()
    }
    /// Writes a rejection durably.
    pub fn write_rejection(&self, r: &Rejection) -> Result<()> {
        todo!()
    }
    /// Lifts a rejection; false when there was none.
    pub fn remove_rejection(&self, key: &EntryKey) -> Result<bool> {
        todo!()
    }
    /// Moves a damaged manifest, pack or blob file into `quarantine/`.
    pub fn quarantine_manifest(&self, hash: &ManifestHash) -> Result<()> {
        todo!()
    }
    /// See [`quarantine_manifest`](Self::quarantine_manifest).
    pub fn quarantine_blob(&self, hash: &BlobHash) -> Result<()> {
        todo!()
    }
    /// See [`quarantine_manifest`](Self::quarantine_manifest).
    pub fn quarantine_pack(&self, id: PackId) -> Result<()> {
        todo!()
    }

    // ---- events (store/events.rs)
    /// Appends a record and returns its `seq`; synced when `durable`.
    pub fn append_event(
        &self,
        event: crate::model::EventKind,
        key: Option<&EntryKey>,
        durable: bool,
    ) -> Result<Event> {
        todo!()
    }
    /// Up to `limit` records after `since`.
    pub fn read_events(&self, since: u64, limit: usize) -> Result<EventPage> {
        todo!()
    }
    /// Drops whole segments older than `keep_ns` or beyond `keep_count` records.
    pub fn trim_events(&self, older_than_ns: i64, keep_count: u64) -> Result<()> {
        todo!()
    }
}
