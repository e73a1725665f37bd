//! The view as a holder of entries: what the cache tells it, and what it tells the kernel.
//!
//! Nothing here waits but for [`When::Now`]: what concerns the kernel goes to [`Kernel`], which works in a thread of its own.

use std::sync::atomic::Ordering;
use std::time::Duration;

use super::draft_node::DraftNode;
use super::ino;
use super::reach::identity;
use super::settling::Settling;
use super::sys;
use super::types::{Found, Ino};
use super::{Result, VfsError, View};
use crate::cache::{Draft, Entry, Holder, Known, LeaseKind, now_ns};
use crate::model::EntryKey;

/// The kernel behind a view, as far as it can be told things. Must not block the caller, but for [`When::Now`].
pub trait Kernel: Send + Sync {
    /// Let go of these inodes, as far as they are unused; children come before parents. `top` is what all of them
    /// are below.
    fn prune(&self, top: Option<Top>, inos: Vec<Ino>);

    /// Ask again for the attributes of these inodes.
    fn attributes_changed(&self, inos: &[Ino]);

    /// Forget what names these directories were listed with, and ask again for their attributes.
    fn names_changed(&self, inos: Vec<Ino>, when: When);

    /// Soon forget what this file held.
    fn content_changed(&self, ino: Ino);

    /// Soon let go of inodes, as far as they are unused: `choose`, called then, says of which.
    fn forget(&self, choose: Box<dyn FnOnce() -> Vec<Ino> + Send>);
}

/// An entry's top directory, for kernels that let go only of what a name stands for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Top {
    /// The entry's row id.
    pub entry: i64,
    /// The kernel has moved it to the trash.
    pub thrown_away: bool,
}

/// When the kernel is told.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum When {
    /// Before this returns: whoever waits for the change must see it. This may wait for who is just copying these
    /// names, so it is not for threads that answer requests.
    Now,
    /// By another thread.
    Soon,
}

impl View {
    /// Connects the view to its kernel, once.
    pub fn attach(&self, kernel: Box<dyn Kernel>) {
        if self.kernel.set(kernel).is_err() {
            tracing::error!("a view was attached twice");
        }
    }
}

impl View {
    /// Remembers that the tree's own directories list other names now. Call it after the change: a listing that has the
    /// new time has the change, too.
    pub(super) fn note_root_change(&self) {
        let later = |last| Some(now_ns().max(last + 1));
        let _ = self.root_changed.fetch_update(Ordering::AcqRel, Ordering::Acquire, later);
        let listed = [ino::ROOT, ino::WORK, ino::BY_TASK];
        let listed = listed.into_iter().filter(|n| self.own_shown[*n as usize].changed());
        self.attributes_changed(&listed.collect::<Vec<_>>());
    }

    /// Tells the other views that names in a directory of a draft were changed here.
    pub(super) fn tell_others(&self, dir: &DraftNode) {
        let me: *const View = self;
        for other in self.cache.holders() {
            if !std::ptr::addr_eq(std::sync::Arc::as_ptr(&other), me) {
                dir.draft.note_other_views();
                other.names_changed(&dir.draft, dir.backing);
            }
        }
    }

    /// Tells the kernel of a change that it does not notice by itself.
    pub(super) fn attributes_changed(&self, inos: &[Ino]) {
        if let Some(kernel) = self.kernel.get() {
            kernel.attributes_changed(inos);
        }
    }

    /// The kernel is just moving an entry to the trash.
    pub(super) fn forget_thrown_away(&self, entry: i64) {
        if let Some(kernel) = self.kernel.get() {
            kernel.prune(Some(Top { entry, thrown_away: true }), Vec::new());
        }
    }

    /// The top directory of an entry that the kernel knows, evicted or not, for a name that is asked for only to have it let go of
    /// that: counts a look-up.
    pub fn top_again(&self, entry: i64) -> Result<Found> {
        let slot = self.slots.of_entry(entry).map(|slot| slot.entry.clone());
        let known = slot.or_else(|| self.nodes.converted_entry(entry));
        let found = self.list_entry(&known.ok_or(VfsError::NotFound)?)?;
        Ok(Found { name_ttl: Duration::ZERO, ..found })
    }
}

impl Holder for View {
    fn prune(&self, entry: i64) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut inos = self.nodes.converted_of(entry);
        if let Some(slot) = self.slots.of_entry(entry) {
            inos.extend(self.records_of(&slot));
        }
        if !inos.is_empty() {
            kernel.prune(Some(Top { entry, thrown_away: false }), inos);
        }
    }

    fn prune_blobs(&self) {
        let (Some(kernel), blobs) = (self.kernel.get(), self.nodes.blobs()) else { return };
        let hashes: Vec<_> = blobs.iter().map(|(_, hash)| *hash).collect();
        // What cannot be asked now is asked in the next round.
        let Ok(rows) = self.cache.index().blobs(&hashes) else { return };
        let unused = blobs.iter().zip(rows).filter(|(_, row)| row.as_ref().is_none_or(|r| r.refs == 0));
        let inos: Vec<_> = unused.map(|((ino, _), _)| *ino).collect();
        if !inos.is_empty() {
            kernel.prune(None, inos);
        }
    }

    fn changed(&self, _key: &EntryKey) {
        // The kernel asks for top-level names again after a second, and an entry that went is pruned.
        // Telling it more of names than what listings show would need its lock of the top directory (see
        // `fuse/notify.rs`).
        self.note_root_change();
    }

    fn sealed(&self, draft: &Draft, entry: &Entry) {
        // What the kernel knows must not hold the entry more than other look-ups do.
        let manifest = entry
            .manifest()
            .inspect_err(|e| tracing::error!(key = %entry.key(), "what is open of it stays a draft's: {e}"));
        let view = entry.held_as(LeaseKind::View);
        let manifest = manifest.ok();
        let settling = Settling::new(manifest.as_deref(), draft.is_in_several_views().then_some(&self.reach));
        let sealed = self.nodes.convert(draft, &view, settling);
        self.attributes_changed(&sealed);
        // Numbers are others now, of names that the kernel did not look up, and metadata may have been added.
        let listed = |ino: &Ino| self.nodes.draft_node(*ino).is_some_and(|node| node.shown.changed());
        let listed: Vec<_> = sealed.into_iter().filter(listed).collect();
        listed.iter().for_each(|ino| self.listings.forget(*ino));
        if let Some(kernel) = self.kernel.get() {
            kernel.names_changed(listed, When::Now);
        }
        self.reach.clear();
        self.note_root_change();
    }

    fn draft_changed(&self, draft: &Draft) {
        self.note_root_change();
        // One that is gone is to be asked for by its name again.
        let top = sys::stat(draft.tree()).ok().and_then(|st| self.nodes.draft(draft, identity(&st)));
        if let Some(top) = top {
            if draft.has_ended() == Some(true) {
                top.let_go();
                self.reach.clear();
            }
            self.attributes_changed(&[top.ino]);
        }
    }

    fn known(&self) -> Known {
        View::known(self)
    }

    fn bound_known(&self) {
        self.share_again();
        View::bound_known(self);
    }

    fn hides(&self, key: &EntryKey) -> bool {
        // While it is being committed that is not known yet.
        self.publishing.hides(key).unwrap_or(true)
    }

    fn names_changed(&self, draft: &Draft, dir: (u64, u64)) {
        if let (Some(node), Some(kernel)) = (self.nodes.draft(draft, dir), self.kernel.get())
            && node.shown.changed()
        {
            kernel.names_changed(vec![node.ino], When::Soon);
        }
    }
}
