//! Listing directories: in pages, each item saying where to go on.
//!
//! There are no handles: everything is listed from a position alone, which stays the same while other names come
//! and go. Directories of drafts go by their names (`names`), sealed ones by record. The top directory lists
//! drafts first and then entries by row id, in pages from the index: a draft that is sealed meanwhile
//! appears again rather than not at all.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::draft_node::DraftNode;
use super::holder::When;
use super::names::{PAGE, Shown, in_order, page_after};
use super::reach::identity;
use super::sealed::{SealedRef, kind_of};
use super::slots::Slot;
use super::types::{DirItem, Found, Ino, Kind};
use super::{Overwrite, Result, Target, VfsError, View, ino, sys};
use crate::cache::Draft;
use crate::model::EntryKey;
use crate::store::DraftPlace;

/// Positions of the top directory's entries start here: row id + this.
const ENTRIES: u64 = 1 << 61;

/// A draft's place in a listing: stays the same while others come and go.
fn draft_position(draft: &Draft) -> u64 {
    let hash = blake3::hash(draft.id().as_bytes());
    let first: [u8; 8] = hash.as_bytes()[..8].try_into().expect("a hash has 32 bytes");
    (u64::from_le_bytes(first) >> 4) + 1
}

fn item(name: &[u8], kind: Kind, ino: Ino, next: u64) -> DirItem {
    DirItem { name: name.to_vec(), kind, ino, next }
}

impl View {
    /// The next items after `offset` (0 starts; `.` and `..` are the adapter's). Empty at the end.
    pub fn readdir(&self, ino: Ino, offset: u64) -> Result<Vec<DirItem>> {
        // First: if it is sealed meanwhile, either that is told or the names are those of the entry.
        self.with_shown(ino, Shown::showing);
        match self.target(ino)? {
            Target::Sealed(r) => match &r.slot {
                Some(slot) => self.list_sealed(&r, slot, offset),
                None => self.list_by_name(ino, offset, || self.former_names(&r)),
            },
            Target::Draft(node) => self.list_by_name(ino, offset, || self.read_names(&node)),
            Target::Fixed(ino::ROOT) => self.list_root(offset),
            Target::Fixed(ino::CONTROL) => Ok(self.list_control(offset)),
            Target::Fixed(ino::WORK) => Ok(self.list_work(offset)),
            Target::Fixed(ino::BY_TASK) => self.list_tasks(offset),
            Target::Task(task) => self.list_task(&task, offset),
            Target::Fixed(_) | Target::Shard(_) | Target::Made => Ok(Vec::new()),
            _ => Err(VfsError::NotDir),
        }
    }

    fn with_shown<T>(&self, dir: Ino, work: impl FnOnce(&Shown) -> T) -> Option<T> {
        match self.own_shown.get(usize::try_from(dir).ok()?) {
            Some(shown) => Some(work(shown)),
            None => self.nodes.draft_node(dir).map(|node| work(&node.shown)),
        }
    }

    /// A listing is at its end, and the kernel about to remember it.
    pub fn end_of_listing(&self, ino: Ino) {
        self.listings.forget(ino);
        let stale = self.with_shown(ino, Shown::at_end).unwrap_or(false);
        // What a rename hides until it returns is not told when it never does.
        let hiding = ino == ino::ROOT && !self.publishing.none();
        if (stale || hiding)
            && let Some(kernel) = self.kernel.get()
        {
            kernel.names_changed(vec![ino], When::Soon);
        }
    }

    /// Looks an item up that a listing gave, for listings with attributes.
    pub fn look_up_item(&self, caller: super::Caller, dir: Ino, found: &DirItem) -> Result<Found> {
        let name = OsStr::from_bytes(&found.name);
        match EntryKey::parse_os(name) {
            Ok(key) if dir == ino::ROOT => self.lookup_key(&key, false),
            _ => self.lookup(caller, dir, name),
        }
    }

    fn list_sealed(&self, r: &SealedRef, slot: &Slot, offset: u64) -> Result<Vec<DirItem>> {
        let m = r.manifest()?;
        let range = m.children(r.record);
        let from = range.start.saturating_add(u32::try_from(offset).unwrap_or(u32::MAX)).min(range.end);
        let shown = (from..range.end).take(PAGE);
        Ok(shown
            .map(|c| {
                let kind = kind_of(m.records()[c as usize].kind());
                item(m.name(c), kind, self.number_in(slot, &m, c), u64::from(c - range.start) + 1)
            })
            .collect())
    }

    /// What comes after `offset` in a directory that is, or was, in a draft. `read` gives its names.
    fn list_by_name(
        &self,
        ino: Ino,
        offset: u64,
        read: impl FnOnce() -> Result<Vec<DirItem>>,
    ) -> Result<Vec<DirItem>> {
        let begun = if offset == 0 { None } else { self.listings.get(ino) };
        let names = match begun {
            Some(names) => names,
            None => {
                let names = in_order(read()?);
                self.listings.keep(ino, names.clone());
                names
            }
        };
        Ok(page_after(&names, offset))
    }

    /// The names of a sealed directory that the kernel knows from the draft.
    fn former_names(&self, r: &SealedRef) -> Result<Vec<DirItem>> {
        let m = r.manifest()?;
        let slot = self.slot_of_former(r)?;
        let children = m.children(r.record);
        let listed = |c| {
            let kind = kind_of(m.records()[c as usize].kind());
            item(m.name(c), kind, self.number_in(&slot, &m, c), 0)
        };
        Ok(children.map(listed).collect())
    }

    fn read_names(&self, node: &Arc<DraftNode>) -> Result<Vec<DirItem>> {
        let dir = self.reach.dir(node)?;
        let dev = identity(&sys::stat(&*dir)?).0;
        let mut names = Vec::new();
        sys::list(&*dir, &mut |entry| {
            let kind = entry.file_type().map_or(Kind::File, Kind::of_dirent);
            let number = self.nodes.number_of(&node.draft, (dev, entry.ino())).unwrap_or(entry.ino());
            names.push(item(entry.file_name().to_bytes(), kind, number, 0));
            true
        })?;
        Ok(names)
    }

    /// The drafts that have a name and come after `offset`, in order.
    fn list_drafts(&self, offset: u64, name: impl Fn(&DraftPlace) -> Option<Vec<u8>>) -> Vec<DirItem> {
        let drafts = self.cache.drafts();
        let after = drafts.iter().map(|d| (draft_position(d), d)).filter(|(at, _)| *at > offset);
        let number = |d: &Draft| {
            let st = sys::stat(d.tree()).ok()?;
            self.nodes.number_of(d, identity(&st))
        };
        let listed = |at, d: &Draft| Some(item(&name(&d.place())?, Kind::Dir, number(d).unwrap_or(0), at));
        let mut items: Vec<_> = after.filter_map(|(at, d)| listed(at, d)).collect();
        items.sort_unstable_by_key(|i| i.next);
        items
    }

    fn list_root(&self, offset: u64) -> Result<Vec<DirItem>> {
        if let Some(scope) = &self.scope {
            let mut keys: Vec<_> =
                scope.iter().filter(|(_, e)| e.is_some()).map(|(k, _)| k.as_str()).collect();
            keys.sort_unstable();
            let items = (1u64..).zip(keys).skip(offset as usize);
            return Ok(items.map(|(n, k)| item(k.as_bytes(), Kind::Dir, 0, n)).collect());
        }
        let mut out = Vec::new();
        if offset < ENTRIES && !self.read_only() {
            out = self.list_drafts(offset, |place| self.shown_key(place));
        }
        if out.is_empty() {
            let after = offset.saturating_sub(ENTRIES) as i64;
            for (id, key) in self.cache.index().keys_after(after, PAGE)? {
                out.push(item(key.as_str().as_bytes(), Kind::Dir, 0, ENTRIES + id as u64));
            }
        }
        Ok(out)
    }

    /// The name under which the top directory lists a draft.
    fn shown_key(&self, place: &DraftPlace) -> Option<Vec<u8>> {
        match place {
            DraftPlace::InPlace { key } => Some(key.as_str().into()),
            // Listed as the entry it will replace, unless that was evicted meanwhile.
            DraftPlace::Replace { key } if self.options.overwrite == Overwrite::Replace => {
                let sealed = self.cache.index().entry(key).ok().flatten();
                sealed.is_none().then(|| key.as_str().into())
            }
            _ => None,
        }
    }

    fn list_work(&self, offset: u64) -> Vec<DirItem> {
        if self.read_only() {
            return Vec::new();
        }
        self.list_drafts(offset, |place| match place {
            DraftPlace::Work { name } => Some(name.clone()),
            _ => None,
        })
    }
}
