//! Drafts: entries that are still being written, as real directory trees.
//!
//! A draft's tree is changed only under a shared [`Gate`]; sealing takes it exclusively for the
//! commit. `generation` counts changes, so that what was prepared is used only if nothing
//! changed since; opening a file for writing counts as a change.

use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicI64, AtomicU64};

use crate::store::DraftPlace;

/// An entry that is still being written.
pub struct Draft {
    pub(crate) id: String,
    pub(crate) tree: std::os::fd::OwnedFd,
    pub(crate) place: parking_lot::Mutex<DraftPlace>,
    pub(crate) gate: parking_lot::RwLock<Stage>,
    pub(crate) generation: AtomicU64,
    pub(crate) writers: AtomicU64,
    pub(crate) changed_at_ns: AtomicI64,
}

/// How far a draft is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stage {
    /// Being written.
    Open,
    /// Sealed or dropped: changes nothing any more.
    Gone,
}

/// Held by whoever changes a draft's tree.
pub struct Gate<'a> {
    _shared: parking_lot::RwLockReadGuard<'a, Stage>,
}

#[allow(unused_variables, clippy::todo)]
impl Draft {
    /// Its id: the directory below `drafts/`.
    pub fn id(&self) -> &str {
        &self.id
    }
    /// What it is for.
    pub fn place(&self) -> DraftPlace {
        self.place.lock().clone()
    }
    /// Its tree's top directory (O_PATH).
    pub fn tree(&self) -> BorrowedFd<'_> {
        self.tree.as_fd()
    }
    /// Enters the draft to change something (counts as a change); `None` when it is gone.
    pub fn change(&self) -> Option<Gate<'_>> {
        todo!()
    }
    /// A handle for writing was opened (call inside `change`).
    pub fn writer_opened(&self) {
        todo!()
    }
    /// A handle for writing was closed; the file may be ingested.
    pub fn writer_closed(&self) {
        todo!()
    }
    /// Open handles for writing.
    pub fn writers(&self) -> u64 {
        todo!()
    }
    /// When something last changed, nanoseconds since 1970.
    pub fn changed_at_ns(&self) -> i64 {
        todo!()
    }
    /// Before a file is opened for writing: cancels a running hash of that inode and drops its
    /// lease, so that the open does not wait for it.
    pub fn cancel_ingest(&self, dev: u64, ino: u64) {
        todo!()
    }
    /// The remembered hash of a file with these stat values.
    pub fn known_hash(&self, stat: &libc::stat) -> Option<crate::model::BlobHash> {
        todo!()
    }
}
