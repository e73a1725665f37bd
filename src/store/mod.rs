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

mod ahead;
mod aside;
mod blobs;
mod damaged;
mod dir;
mod drafts;
mod error;
mod events;
mod format;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod kept;
mod lock;
mod manifests;
mod open;
mod packs;
mod partial;
mod peek;
mod pins;
pub(crate) mod port;
mod quarantine;
mod read;
mod remove;
mod sessions;
pub(crate) mod shards;
#[cfg(test)]
pub(crate) mod tests;

pub use blobs::LooseBlob;
pub use dir::Scratch;
pub use drafts::Inode;
pub use error::StoreError;
pub(crate) use error::twice;
pub use lock::{Unowned, owner_of};
pub(crate) use manifests::table_bytes;
pub use packs::{Hashed, PackWriter};
pub(crate) use peek::{Parts, parts_of};
pub use port::{BadSpot, Fault, skip_syncs};
pub use shards::four_shards;

use std::fs::File;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use lru::LruCache;
use parking_lot::Mutex;

use crate::model::event::Event;
use crate::model::{EntryKey, ManifestHash};
use dir::Dir;

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
    /// In no file of the store: a tier has it.
    Elsewhere,
}

/// The room of a file system.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Space {
    /// All its bytes.
    pub bytes: u64,
    /// Those available to us.
    pub available: u64,
    /// All its inodes; 0 where they are made as they are needed.
    pub files: u64,
    /// Those available to us; `u64::MAX` where they are made as they are needed.
    pub files_available: u64,
    /// Bytes of `bytes` that each inode takes; 0 where inodes have a place of their own.
    pub inode: u64,
}

/// How a store is opened.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Access {
    /// As its owner: created when missing, locked; another owner is an error that has its pid.
    Own,
    /// For reading only, beside an owner or on a read-only file system; no lock.
    Read,
}

/// An open store. Its methods stand in the files of this room, one per meaning.
///
/// Lock order: none of the locks below is held while another is taken; `log` is held
/// across the append of one event, `pack_ids` across the reservation of a block.
pub struct Store {
    root: Dir,
    id: String,
    /// Held while this process owns the store; absent when it only reads.
    lock: Option<lock::Lock>,
    manifests: Arc<Dir>,
    blobs: Arc<Dir>,
    packs: Arc<Dir>,
    drafts: Arc<Dir>,
    events: Arc<Dir>,
    pins: Arc<Dir>,
    rejections: Arc<Dir>,
    quarantined: Arc<Dir>,
    tmp: Arc<Dir>,
    /// Open packs and loose blobs.
    files: Mutex<LruCache<read::FileKey, Arc<File>>>,
    ahead: ahead::Ahead,
    kept: kept::Kept,
    pack_ids: Mutex<packs::PackIds>,
    log: Mutex<events::EventLog>,
    /// The next owner must not believe that this one ended in order.
    disorder: AtomicBool,
}

/// What `PackWriter::finish` made.
#[derive(Debug, Clone)]
pub struct PackInfo {
    /// Its name.
    pub id: PackId,
    /// Bytes of the file.
    pub bytes: u64,
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

impl DraftPlace {
    /// The key it is for, where one is known before it is sealed.
    pub fn key(&self) -> Option<&EntryKey> {
        match self {
            DraftPlace::InPlace { key } | DraftPlace::Replace { key } => Some(key),
            DraftPlace::Work { .. } | DraftPlace::Native { .. } => None,
        }
    }
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
