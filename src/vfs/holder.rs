//! The view as a holder of entries: what the cache tells it, and what it tells the kernel.
//!
//! Nothing here waits: what concerns the kernel goes to [`Kernel`], which works in a thread of its own.

use std::ffi::OsStr;

use super::View;
use super::ino;
use super::types::Ino;
use crate::cache::{Draft, Entry, Holder, LeaseKind};
use crate::model::EntryKey;

/// The kernel behind a view, as far as it can be told things. Must not block the caller.
pub trait Kernel: Send + Sync {
    /// Let go of these inodes of an entry, as far as they are unused; children come before parents.
    /// `name` is the entry's, unless it was hidden: something else may stand there now.
    fn prune(&self, name: Option<&OsStr>, inos: Vec<Ino>);

    /// Ask again for the attributes of these inodes.
    fn attributes_changed(&self, inos: &[Ino]);
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
    /// Tells the kernel of a change that it does not notice by itself.
    pub(super) fn attributes_changed(&self, inos: &[Ino]) {
        if let Some(kernel) = self.kernel.get() {
            kernel.attributes_changed(inos);
        }
    }

    /// The name of the entry with this row id, if it is still this entry's.
    fn shown_as<'a>(&self, entry: i64, key: &'a EntryKey) -> Option<&'a OsStr> {
        let row = self.cache.index().entry(key).ok().flatten();
        row.is_some_and(|r| r.id == entry).then_some(key.as_ref())
    }
}

impl Holder for View {
    fn prune(&self, entry: i64) {
        let Some(kernel) = self.kernel.get() else { return };
        let mut inos = self.nodes.converted_of(entry);
        if let Some(slot) = self.slots.of_entry(entry) {
            // Breadth-first order backwards: children before parents.
            let records = slot.entry.manifest().map_or(1, |m| m.records().len() as u32);
            inos.extend((0..records).rev().map(|r| ino::sealed(slot.number, r)));
            kernel.prune(self.shown_as(entry, slot.entry.key()), inos);
        } else if let Some(key) = self.nodes.converted_key(entry) {
            kernel.prune(self.shown_as(entry, &key), inos);
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
        // Telling it more would need its lock of the top directory (see `fuse/notify.rs`).
        self.note_root_change();
    }

    fn sealed(&self, draft: &Draft, entry: &Entry) {
        // What the kernel knows must not hold the entry more than other look-ups do.
        let alone = self.cache.holders().len() < 2;
        let stands = |node: &_| alone || self.reach.stands(node);
        let manifest = entry
            .manifest()
            .inspect_err(|e| tracing::error!(key = %entry.key(), "what is open of it stays a draft's: {e}"));
        let view = entry.held_as(LeaseKind::View);
        let sealed = self.nodes.convert(draft, &view, manifest.ok().as_deref(), &stands);
        self.attributes_changed(&sealed);
        self.reach.clear();
        self.note_root_change();
    }
}
