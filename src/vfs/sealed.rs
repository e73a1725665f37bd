//! Sealed entries: attributes, look-ups and reads straight from the manifest.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

use super::slots::Slot;
use super::types::{Attr, FOREVER, Found, How, Ino, Kind, Opened, SetAttr, SetTime, Time};
use super::writers::Writers;
use super::{Overwrite, Result, Target, VfsError, View, ino};
use crate::cache::{CacheError, Entry};
use crate::model::RecordKind;
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

impl View {
    pub(super) fn sealed_attr(&self, r: &SealedRef) -> Attr {
        let m = r.entry.manifest();
        let rec = &m.records()[r.record as usize];
        let kind = match rec.kind() {
            RecordKind::Dir => Kind::Dir,
            RecordKind::File => Kind::File,
            RecordKind::Symlink => Kind::Symlink,
        };
        // A view that lets clients store over an entry must not have the kernel refuse the owner.
        let writable = self.options.overwrite == Overwrite::Replace && !self.options.read_only;
        let mask = if writable { 0o022 } else { 0o222 };
        // Whoever moves a directory to the trash must be allowed to write it: the kernel asks that first.
        let movable = if r.record == 0 && !self.options.read_only { 0o200 } else { 0 };
        let mtime = Time::from_ns(rec.mtime_ns());
        Attr {
            ino: r.ino,
            kind,
            perm: if kind == Kind::Symlink { 0o777 } else { rec.perm() & !mask | movable },
            size: if kind == Kind::Dir { 0 } else { rec.size() },
            blocks: if kind == Kind::File { rec.size().div_ceil(512) } else { 0 },
            nlink: m.nlink(rec),
            uid: self.owner.0,
            gid: self.owner.1,
            rdev: 0,
            atime: mtime,
            mtime,
            ctime: Time::from_ns(m.seal().sealed_at_ns),
        }
    }

    pub(super) fn sealed_found(&self, r: &SealedRef) -> Found {
        let generation = r.slot.as_ref().map_or(0, |s| s.generation);
        Found { attr: self.sealed_attr(r), name_ttl: FOREVER, attr_ttl: FOREVER, generation }
    }

    /// Counts a look-up of a record of `entry` and gives it its number.
    pub(super) fn sealed_enter(&self, entry: &Entry, record: u32) -> Result<SealedRef> {
        // Hard links share their first record's number.
        let record = entry.manifest().get(record).map_or(record, |r| r.canonical());
        let id = entry.row().id;
        if let Some(node) = self.nodes.look_up_converted(id, record) {
            return Ok(SealedRef { entry: entry.clone(), record, ino: node.ino, slot: None });
        }
        let slot = self.slots.look_up(entry.clone()).ok_or(VfsError::Stale)?;
        Ok(in_slot(slot, record))
    }

    /// As `sealed_enter`, for a child of a directory the kernel holds: its slot is alive, so that
    /// counting takes no lock.
    fn sealed_enter_child(&self, dir: &SealedRef, child: u32) -> Result<SealedRef> {
        let Some(slot) = &dir.slot else { return self.sealed_enter(&dir.entry, child) };
        let record = dir.entry.manifest().get(child).map_or(child, |r| r.canonical());
        if let Some(node) = self.nodes.look_up_converted(dir.entry.row().id, record) {
            return Ok(SealedRef { entry: dir.entry.clone(), record, ino: node.ino, slot: None });
        }
        self.slots.add(slot);
        Ok(in_slot(slot.clone(), record))
    }

    pub(super) fn sealed_lookup(&self, dir: &SealedRef, name: &OsStr) -> Result<Found> {
        let m = dir.entry.manifest();
        if m.records()[dir.record as usize].kind() != RecordKind::Dir {
            return Err(VfsError::NotDir);
        }
        let child = m.lookup(dir.record, name.as_bytes()).ok_or(VfsError::NotFound)?;
        let found = self.sealed_enter_child(dir, child)?;
        Ok(self.sealed_found(&found))
    }

    /// The number of a record for listing, without counting a look-up.
    pub(super) fn sealed_number(&self, entry: &Entry, record: u32) -> Ino {
        let record = entry.manifest().get(record).map_or(record, |r| r.canonical());
        self.slots.of_entry(entry.row().id).map_or(0, |s| ino::sealed(s.number, record))
    }

    pub(super) fn sealed_open(&self, r: &SealedRef) -> Result<Opened> {
        let rec = &r.entry.manifest().records()[r.record as usize];
        if !self.read_only()
            && rec.size() > PACK_LIMIT
            && let Some(file) = r.entry.backing(r.record)?
        {
            return Ok(Opened { fh: 0, how: How::Backing(Arc::new(file.into())) });
        }
        Ok(Opened { fh: 0, how: How::Keep })
    }

    /// An attribute change of a sealed entry succeeds only if it changes nothing.
    pub(super) fn sealed_setattr(&self, r: &SealedRef, set: &SetAttr) -> Result<Found> {
        let found = self.sealed_found(r);
        let rec = &r.entry.manifest().records()[r.record as usize];
        let now = found.attr;
        let same_mode = |m: u32| [now.perm, now.perm & !0o222, rec.perm()].contains(&(m & 0o7777));
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
                Ok(draft) => drop(self.born_here.lock().insert(draft.id().to_owned(), Writers::default())),
                // Another view was faster: the change continues there.
                Err(CacheError::DraftExists(_)) => {}
                Err(e) => return e.into(),
            }
        }
        VfsError::Stale
    }
}
