//! Leases: who holds which entry, and what happens when the last one lets go.
//!
//! Invariants: an entry with a lease is never freed; an entry that was hidden while leased is
//! freed by the reaper after its last lease was dropped; taking a lease and choosing an entry
//! for eviction exclude each other.

/// Who holds an entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LeaseKind {
    /// A view's kernel look-ups: given back when the kernel is asked to forget.
    View,
    /// An operation, a scoped view, a link, a client: given back when it ends.
    Hold,
}

/// Those who may hold entries on behalf of a kernel: views.
pub trait Holder: Send + Sync {
    /// Ask the kernel to forget the entry with this row id, as far as it is unused. Must not wait.
    fn prune(&self, entry: i64);
    /// The entry (sealed or draft) of this key was hidden, replaced or newly sealed: the name
    /// must be looked up again.
    fn changed(&self, key: &crate::model::EntryKey);
    /// A draft became a sealed entry: called with the draft's gate held, before its tree is deleted.
    fn sealed(&self, draft: &super::Draft, entry: &super::Entry);
}

/// Keeps an entry from being freed; dropping gives it back.
pub struct Lease {
    /// Row id of the entry.
    pub entry: i64,
    /// Who holds it.
    pub kind: LeaseKind,
}

/// All leases of a cache.
#[derive(Default)]
pub(crate) struct LeaseTable {}

/// Keeps blobs from being freed while an entry that refers to them is prepared; dropping it
/// gives them back.
pub(crate) struct Reservation {}
