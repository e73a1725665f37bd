//! Sealed entries: attributes, look-ups and reads straight from the manifest.
//!
//! An entry's top directory is answered from its row in the index: only what is below it needs the manifest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;
use std::time::Duration;

use super::known::now;
use super::slots::Slot;
use super::types::{Attr, FOREVER, Found, How, Ino, Kind, Opened, SetAttr, SetTime, Time};
use super::{Overwrite, Result, Target, VfsError, View, ino};
use crate::cache::{CacheError, Entry};
use crate::model::manifest::{Child, Looks, Top};
use crate::model::{Manifest, RecordKind};
use crate::store::PACK_LIMIT;

/// A record of a sealed entry, under the number the kernel knows it by.
pub(super) struct SealedRef {
    pub entry: Entry,
    pub record: u32,
    pub ino: Ino,
    /// The slot its number is from, if it is no former draft node's.
    pub slot: Option<Arc<Slot>>,
}

fn in_slot(slot: Arc<Slot>, record: u32) -> SealedRef {
    SealedRef { entry: slot.entry.clone(), record, ino: ino::sealed(slot.number, record), slot: Some(slot) }
}

impl SealedRef {
    /// The entry's manifest, which has this record: asked for once per operation.
    pub fn manifest(&self) -> Result<Arc<Manifest>> {
        let manifest = self.entry.manifest()?;
        if manifest.get(self.record).is_some() { Ok(manifest) } else { Err(VfsError::Stale) }
    }

    fn look(&self) -> Result<Looks> {
        match self.record {
            0 => Ok(looks_of(self.entry.top()?)),
            record => self.entry.looks(record)?.ok_or(VfsError::Stale),
        }
    }
}

fn looks_of(top: Top) -> Looks {
    Looks { kind: RecordKind::Dir, perm: top.perm, size: 0, nlink: top.nlink, mtime_ns: top.mtime_ns }
}

pub(super) fn kind_of(kind: RecordKind) -> Kind {
    match kind {
        RecordKind::Dir => Kind::Dir,
        RecordKind::File => Kind::File,
        RecordKind::Symlink => Kind::Symlink,
    }
}

/// Hard links share their first record's number.
fn canonical(m: &Manifest, record: u32) -> u32 {
    m.get(record).map_or(record, |r| r.canonical())
}

impl View {
    fn attr_of(&self, r: &SealedRef, look: &Looks) -> Attr {
        // A view that lets clients store over an entry must not have the kernel refuse the owner.
        let writable = self.options.overwrite == Overwrite::Replace && !self.options.read_only;
        let mask = if writable { 0o022 } else { 0o222 };
        // Whoever moves a directory to the trash must be allowed to write it: the kernel asks that first.
        let movable = if r.record == 0 && !self.options.read_only { 0o200 } else { 0 };
        let mtime = Time::from_ns(look.mtime_ns);
        let kind = kind_of(look.kind);
        Attr {
            ino: r.ino,
            kind,
            perm: if kind == Kind::Symlink { 0o777 } else { look.perm & !mask | movable },
            size: look.size,
            blocks: if kind == Kind::File { look.size.div_ceil(512) } else { 0 },
            nlink: look.nlink,
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            atime: mtime,
            mtime,
            ctime: Time::from_ns(r.entry.sealed_at_ns()),
        }
    }

    fn found_as(&self, r: &SealedRef, look: &Looks) -> Found {
        let generation = r.slot.as_ref().map_or(0, |s| s.generation);
        Found { attr: self.attr_of(r, look), name_ttl: FOREVER, attr_ttl: FOREVER, generation }
    }

    pub(super) fn sealed_found(&self, r: &SealedRef) -> Result<Found> {
        Ok(self.found_as(r, &r.look()?))
    }

    /// Counts a look-up of an entry's top directory.
    pub(super) fn enter_entry(&self, entry: &Entry) -> Result<Found> {
        // First what can fail: what was counted must be answered.
        let look = looks_of(entry.top()?);
        Ok(self.found_as(&self.enter(entry, 0)?, &look))
    }

    /// As `enter_entry`, for a listing: one that cannot be looked at is listed with its number all the same.
    pub(super) fn list_entry(&self, entry: &Entry) -> Result<Found> {
        if entry.top().is_ok() {
            return self.enter_entry(entry);
        }
        let unknown = Top { perm: 0o555, nlink: 2, mtime_ns: entry.sealed_at_ns() };
        let found = self.found_as(&self.enter(entry, 0)?, &looks_of(unknown));
        Ok(Found { attr_ttl: Duration::ZERO, ..found })
    }

    /// Counts a look-up of a (canonical) record of `entry` and gives it its number.
    fn enter(&self, entry: &Entry, record: u32) -> Result<SealedRef> {
        if let Some(node) = self.nodes.look_up_converted(entry.id(), record) {
            return Ok(SealedRef { entry: entry.clone(), record, ino: node.ino, slot: None });
        }
        let slot = self.slots.look_up(entry.clone(), record, now()).ok_or(VfsError::Stale)?;
        self.bound_known();
        Ok(in_slot(slot, record))
    }

    /// As `enter`, for a child of a directory the kernel holds: its slot is alive, so that counting
    /// takes no lock.
    fn enter_child(&self, dir: &SealedRef, record: u32) -> Result<SealedRef> {
        let Some(slot) = &dir.slot else { return self.enter(&dir.entry, record) };
        if let Some(node) = self.nodes.look_up_converted(dir.entry.id(), record) {
            return Ok(SealedRef { entry: dir.entry.clone(), record, ino: node.ino, slot: None });
        }
        self.slots.add(slot, record, now());
        Ok(in_slot(slot.clone(), record))
    }

    pub(super) fn sealed_lookup(&self, dir: &SealedRef, name: &OsStr) -> Result<Found> {
        match dir.entry.child(dir.record, name.as_bytes())?.ok_or(VfsError::Stale)? {
            Child::Is(record, looks) => Ok(self.found_as(&self.enter_child(dir, record)?, &looks)),
            Child::Absent => Err(VfsError::NotFound),
            Child::NotDir => Err(VfsError::NotDir),
        }
    }

    /// The number of a record for listing, without counting a look-up.
    pub(super) fn number_in(&self, slot: &Slot, m: &Manifest, record: u32) -> Ino {
        let record = canonical(m, record);
        let former = self.nodes.converted_number(slot.entry.id(), record);
        former.unwrap_or_else(|| ino::sealed(slot.number, record))
    }

    /// The slot of the entry that a former draft node is in, whose numbers its listing shows. The kernel
    /// remembers these for as long as it knows the node: so does the slot.
    pub(super) fn slot_of_former(&self, r: &SealedRef) -> Result<Arc<Slot>> {
        let node = self.nodes.draft_node(r.ino).ok_or(VfsError::Stale)?;
        let slot =
            node.listed_with(|| self.slots.look_up(r.entry.clone(), 0, now())).ok_or(VfsError::Stale)?;
        Ok(slot)
    }

    pub(super) fn sealed_open(&self, r: &SealedRef) -> Result<Opened> {
        let size = r.look()?.size;
        if size <= PACK_LIMIT {
            return Ok(Opened { fh: 0, how: How::Keep });
        }
        let file = r.entry.backing(r.record)?;
        if file.is_some() {
            r.entry.was_opened(r.record, size);
        }
        Ok(Opened { fh: 0, how: file.map_or(How::Elsewhere, |file| How::Blob(Arc::new(file.into()))) })
    }

    /// An attribute change of a sealed entry succeeds only if it changes nothing.
    pub(super) fn sealed_setattr(&self, r: &SealedRef, set: &SetAttr) -> Result<Found> {
        let look = r.look()?;
        let found = self.found_as(r, &look);
        let now = found.attr;
        let same_mode = |m: u32| [now.perm, now.perm & !0o222, look.perm].contains(&(m & 0o7777));
        let same_time = |t: SetTime| t == SetTime::At(now.mtime);
        let same = set.mode.is_none_or(same_mode)
            && set.uid.is_none_or(|u| u == now.uid)
            && set.gid.is_none_or(|g| g == now.gid)
            && set.size.is_none_or(|s| s == now.size)
            && set.atime.is_none_or(same_time)
            && set.mtime.is_none_or(same_time);
        if same { Ok(found) } else { Err(self.refuse_change(&r.entry)) }
    }

    /// Whether a change of `ino` would begin a replacement, which takes time.
    pub fn replaces(&self, ino: Ino) -> bool {
        let replacing = self.options.overwrite == Overwrite::Replace && !self.read_only();
        replacing && matches!(self.target(ino), Ok(Target::Sealed(_)))
    }

    /// Makes the draft that takes changes of the sealed entry of `ino`, if there is none yet.
    pub fn replace(&self, ino: Ino) -> Result<()> {
        match self.target(ino)? {
            Target::Sealed(r) => Err(self.refuse_change(&r.entry)),
            _ => Ok(()),
        }
    }

    /// Why a sealed entry cannot change: read-only, or (with `--overwrite replace`) stale, after
    /// the draft that takes the change has been made.
    pub(super) fn refuse_change(&self, entry: &Entry) -> VfsError {
        if self.read_only() || self.options.overwrite == Overwrite::Deny {
            return VfsError::ReadOnly;
        }
        let _one = self.replacing.lock();
        if self.cache.draft_for(entry.key()).is_none() {
            match self.cache.create_replacement(entry) {
                Ok(draft) => self.note_born(&draft),
                // Another view was faster: the change continues there.
                Err(CacheError::DraftExists(_)) => {}
                Err(e) => return e.into(),
            }
        }
        VfsError::Stale
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::{Cache, LeaseKind, Limits, SealRequest, TaskFacts};
    use crate::index::tests::run_sql;
    use crate::vfs::{Caller, ViewOptions};

    const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };

    /// A store with the entry `abcd`, and what its manifest is called below `store`.
    fn store(dir: &std::path::Path) -> (Cache, std::path::PathBuf) {
        let cache = Cache::open(&dir.join("store"), Limits::default()).unwrap();
        std::fs::create_dir(dir.join("tree")).unwrap();
        std::fs::write(dir.join("tree/f"), "content").unwrap();
        let key = "abcd".parse().unwrap();
        let request = SealRequest { key, origin: Default::default(), inferred: false, replace: false };
        let facts = TaskFacts::default();
        let entry = cache.put_dir(&dir.join("tree"), &facts, [None, None], request).unwrap().into_entry();
        let name = entry.manifest_hash().unwrap();
        (cache, dir.join(format!("store/manifests/{}/{name}", crate::store::shards::of(name.as_bytes()))))
    }

    fn reopen(cache: Cache, dir: &std::path::Path) -> (Cache, Arc<View>) {
        cache.close().unwrap();
        // A view that was dropped leaves its thread a moment to end.
        let end = std::time::Instant::now() + Duration::from_secs(10);
        let cache = loop {
            match Cache::open(&dir.join("store"), Limits::default()) {
                Ok(cache) => break cache,
                Err(e) if std::time::Instant::now() >= end => panic!("{e}"),
                Err(_) => std::thread::yield_now(),
            }
        };
        let view = View::new(cache.clone(), ViewOptions::default()).unwrap();
        (cache, view)
    }

    #[test]
    fn a_key_is_found_without_its_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, manifest) = store(dir.path());
        let entry = cache.entry(&"abcd".parse().unwrap(), LeaseKind::Hold).unwrap().unwrap();
        assert_eq!(entry.manifest().unwrap().top(), entry.top().unwrap());
        drop(entry);
        std::fs::rename(&manifest, dir.path().join("aside")).unwrap();
        let (_cache, view) = reopen(cache, dir.path());
        let top = view.lookup(CALLER, ino::ROOT, OsStr::new("abcd")).unwrap();
        assert_eq!(view.getattr(top.attr.ino).unwrap().attr, top.attr);
        let below = || view.lookup(CALLER, top.attr.ino, OsStr::new("outputs"));
        assert!(matches!(below(), Err(VfsError::Cache(_))), "lost, not absent");
        std::fs::rename(dir.path().join("aside"), &manifest).unwrap();
        assert!(below().is_ok(), "what was looked up before finds it again");
    }

    #[test]
    fn a_row_without_the_top_directory_reads_it_from_the_manifest() {
        let dir = tempfile::tempdir().unwrap();
        let (cache, manifest) = store(dir.path());
        let old_rows = "UPDATE entries SET top_perm = NULL, top_nlink = NULL, top_mtime = NULL";
        run_sql(&dir.path().join("store/index.sqlite"), old_rows);
        let (cache, view) = reopen(cache, dir.path());
        let found = view.lookup(CALLER, ino::ROOT, OsStr::new("abcd")).unwrap();
        assert_eq!((found.attr.kind, found.attr.nlink), (Kind::Dir, 4));
        drop(view);
        std::fs::remove_file(&manifest).unwrap();
        let (_cache, view) = reopen(cache, dir.path());
        assert!(matches!(view.lookup(CALLER, ino::ROOT, OsStr::new("abcd")), Err(VfsError::Cache(_))));
        let items = view.readdir(ino::ROOT, 0).unwrap();
        let listed = view.look_up_item(CALLER, ino::ROOT, &items[0]).unwrap();
        assert!(listed.attr.ino != 0 && listed.attr_ttl.is_zero(), "it has its number all the same");
        assert!(view.getattr(listed.attr.ino).is_err());
    }
}
