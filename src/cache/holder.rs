//! Those who hold entries on behalf of a kernel, and what they are told.
//!
//! Must not know: what a view is.

use std::sync::{Arc, Weak};

use parking_lot::Mutex;
use serde::{Deserialize, Serialize};

use super::lease::{Lease, LeaseKind, Reservation};
use crate::model::BlobHash;

/// For how long a kernel may find an entry by name after it was hidden or replaced.
pub const NAMES_LAST: std::time::Duration = std::time::Duration::from_secs(1);

/// A rename that was sealed returns at once; nobody waits longer for one whose thread was stopped.
const RETURNS: std::time::Duration = std::time::Duration::from_secs(2);

/// Those who may hold entries on behalf of a kernel: views.
pub trait Holder: Send + Sync {
    /// Ask the kernel to forget the entry with this row id, as far as it is unused. Must not wait.
    fn prune(&self, entry: i64);
    /// Ask the kernel to forget blobs that no entry refers to, as far as they are unused. Must not wait.
    fn prune_blobs(&self);
    /// The entry (sealed or draft) of this key was hidden, replaced or newly sealed: within
    /// [`NAMES_LAST`] the name must mean that.
    fn changed(&self, key: &crate::model::EntryKey);
    /// A draft became a sealed entry: called with the draft's gate held, before its tree is deleted.
    fn sealed(&self, draft: &super::Draft, entry: &super::Entry);
    /// A draft was made, moved, or has gone: other drafts are listed now.
    fn draft_changed(&self, draft: &super::Draft);
    /// Does its view not show what this key has yet, because the rename that sealed it has not returned?
    fn hides(&self, key: &crate::model::EntryKey) -> bool;
    /// Another holder has changed names in the directory of this draft with this device and inode number.
    fn names_changed(&self, draft: &super::Draft, dir: (u64, u64));
    /// What its kernel knows.
    fn known(&self) -> Known {
        Known::default()
    }
    /// Called once in a while: what its kernel knows is to take no more memory than its share. Must not wait.
    fn bound_known(&self) {}
}

/// What a kernel knows, or several, that takes memory for as long as it does.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Known {
    /// Files, directories and others of drafts and of `.outfs`.
    pub inodes: u64,
    /// Sealed entries; their files take nothing.
    pub entries: u64,
}

/// All holders that live.
#[derive(Default)]
pub(crate) struct Holders(Mutex<Vec<Weak<dyn Holder>>>);

impl super::Cache {
    /// Registers a view; it is forgotten when its last strong reference goes.
    pub fn register_holder(&self, holder: Weak<dyn Holder>) {
        let mut holders = self.inner.holders.0.lock();
        holders.retain(|h| h.strong_count() > 0);
        holders.push(holder);
    }

    /// The registered views that still live. Call them without holding locks.
    pub(crate) fn holders(&self) -> Vec<Arc<dyn Holder>> {
        self.inner.holders.0.lock().iter().filter_map(Weak::upgrade).collect()
    }

    /// Bytes that what the kernels of all views know may take.
    pub(crate) fn share_of_kernels(&self) -> usize {
        self.inner.share_of_kernels
    }

    /// What all kernels know.
    pub(super) fn known(&self) -> Known {
        let all = self.holders().into_iter().map(|h| h.known());
        all.fold(Known::default(), |a, b| Known {
            inodes: a.inodes + b.inodes,
            entries: a.entries + b.entries,
        })
    }

    /// Waits until views show what this key has: whoever is told of an entry in another way (pinned, found, stored)
    /// finds it there. Not for threads that answer requests, which the rename may be waiting for.
    pub(crate) fn wait_shown(&self, key: &crate::model::EntryKey) {
        let end = std::time::Instant::now() + RETURNS;
        while self.holders().iter().any(|h| h.hides(key)) && std::time::Instant::now() < end {
            std::thread::sleep(std::time::Duration::from_millis(1));
        }
    }

    /// Takes a lease on the entry with this row id; `None` when it is hidden or being freed, and while the index is made anew.
    /// Whoever got one may read the entry until it is dropped.
    pub(crate) fn take_lease(&self, row: i64, kind: LeaseKind) -> Option<Lease> {
        let _stands = self.index_stands_now()?;
        self.inner.leases.take(row, kind)
    }

    /// Reserves blobs that an entry in preparation will refer to. Ask the index for them only
    /// after that: what it knows then keeps its row and its bytes while the reservation lives.
    /// Waits for blobs that are just being freed, and while the index is made anew.
    pub(crate) fn reserve(&self, hashes: &[BlobHash]) -> Reservation {
        let _stands = self.index_stands();
        self.inner.leases.reserve(hashes.iter().copied())
    }
}
