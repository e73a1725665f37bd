//! Names: what a name means in each kind of directory, and making and removing names.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::draft::{Make, draft_found};
use super::nodes::{DraftAt, Own};
use super::reach::identity;
use super::types::{Caller, FOREVER, Found, Ino, Kind, NAMES};
use super::{Overwrite, Result, Target, VfsError, View, ino, sys};
use crate::cache::{Draft, LeaseKind, Stage};
use crate::model::EntryKey;
use crate::store::DraftPlace;

/// The control directory's name in the top directory: found, not listed.
pub(super) const CONTROL_NAME: &str = ".outfs";

pub(super) fn shard_part(name: &OsStr, first: bool) -> Option<[u8; 2]> {
    let b: [u8; 2] = name.as_bytes().try_into().ok()?;
    let inner = |c: u8| c.is_ascii_alphanumeric() || matches!(c, b'.' | b'_' | b'+' | b'=' | b'-');
    (inner(b[1]) && (b[0].is_ascii_alphanumeric() || !first && inner(b[0]))).then_some(b)
}

pub(super) fn key_of_shard(shard: [u8; 4], name: &OsStr) -> Result<EntryKey> {
    let key = EntryKey::parse_os(name).map_err(|_| VfsError::NotFound)?;
    if key.as_str().as_bytes()[..4] == shard { Ok(key) } else { Err(VfsError::NotFound) }
}

impl View {
    /// Finds a name and counts a look-up of what it is.
    pub fn lookup(&self, caller: Caller, parent: Ino, name: &OsStr) -> Result<Found> {
        match self.target(parent)? {
            Target::Fixed(ino::ROOT) => self.lookup_root(name),
            Target::Fixed(dir) => self.lookup_control(caller, dir, name),
            Target::Shard([a, b, 0, 0]) => {
                let [c, d] = shard_part(name, false).ok_or(VfsError::NotFound)?;
                self.own_found(ino::shard([a, b, c, d]))
            }
            Target::Shard(shard) => self.lookup_alias(shard, name),
            Target::Task(task) => self.lookup_task_link(&task, name),
            Target::Sealed(r) => self.sealed_lookup(&r, name),
            Target::Draft(node) => self.draft_lookup(&node, name),
            Target::Made => Err(VfsError::Stale),
            Target::Snapshot(_) | Target::Link(_) | Target::Blob(_) => Err(VfsError::NotDir),
        }
    }

    /// How long the kernel may trust that a name does not exist here. A remembered absence keeps its
    /// directory in the kernel's cache, where no prune takes it away: so only a scoped view has any, whose
    /// entries stay for as long as it is mounted.
    pub fn absence_lasts(&self, parent: Ino) -> Duration {
        let sealed = matches!(ino::meaning(parent), ino::Meaning::Sealed { .. });
        if sealed && self.scope.is_some() { FOREVER } else { Duration::ZERO }
    }

    /// One of the tree's own directories: its name is as lasting as the mount.
    pub(super) fn own_found(&self, ino: Ino) -> Result<Found> {
        Ok(Found { name_ttl: FOREVER, ..self.getattr(ino)? })
    }

    fn lookup_root(&self, name: &OsStr) -> Result<Found> {
        if name == CONTROL_NAME {
            return self.own_found(ino::CONTROL);
        }
        if let Some([a, b]) = shard_part(name, true) {
            return self.own_found(ino::shard([a, b, 0, 0]));
        }
        // A name outside the grammar costs no I/O.
        let key = EntryKey::parse_os(name).map_err(|_| VfsError::NotFound)?;
        match self.lookup_key(&key, true) {
            Err(VfsError::NotFound) if self.has_tiers() && self.scope.is_none() => {
                let action = self.cache.alias(&key)?.ok_or(VfsError::NotFound)?;
                self.found_link(action.as_str())
            }
            found => found,
        }
    }

    /// The draft this view shows under a key, if it shows one rather than a sealed entry.
    pub(super) fn shown_draft(&self, key: &EntryKey) -> Option<Arc<Draft>> {
        if self.read_only() {
            return None;
        }
        let draft = self.cache.draft_for(key)?;
        let shown = match draft.place() {
            DraftPlace::Replace { .. } => self.options.overwrite == Overwrite::Replace,
            _ => true,
        };
        shown.then_some(draft)
    }

    /// `used`: somebody asked for it by its name; being listed is no use of an entry.
    pub(super) fn lookup_key(&self, key: &EntryKey, used: bool) -> Result<Found> {
        if let Some(scope) = &self.scope {
            let entry = scope.get(key).and_then(Option::as_ref).ok_or(VfsError::NotFound)?;
            return self.enter_entry(entry);
        }
        if let Some(draft) = self.shown_draft(key) {
            match self.enter_top(&draft) {
                Err(VfsError::NotFound) => {}
                found => return found,
            }
        }
        let entry = self.cache.entry(key, LeaseKind::View)?.ok_or(VfsError::NotFound)?;
        if self.publishing.hides(key)? {
            return Err(VfsError::NotFound);
        }
        let found = if used {
            self.cache.touch(&entry);
            self.enter_entry(&entry)?
        } else {
            self.list_entry(&entry)?
        };
        Ok(Found { name_ttl: NAMES, ..found })
    }

    /// The top directory of a draft.
    pub(super) fn enter_top(&self, draft: &Arc<Draft>) -> Result<Found> {
        let top = draft.tree();
        let st = sys::stat(&top)?;
        if Kind::of_mode(st.st_mode) != Kind::Dir {
            // Gone between.
            return Err(VfsError::NotFound);
        }
        let fd = self.nodes.draft(draft, identity(&st)).and_then(|n| n.descriptor()).unwrap_or(top);
        let node = self.nodes.look_up_draft(draft, identity(&st), Kind::Dir, DraftAt::Top(fd));
        // Found as a draft and sealed meanwhile: a node made after the others were turned into records
        // would show a tree that is being deleted.
        let ended = draft.has_ended();
        if ended == Some(false) || node.sealed().is_some() {
            return Ok(draft_found(&node, &st));
        }
        self.forget(node.ino, 1);
        Err(if ended.is_some() { VfsError::NotFound } else { VfsError::Committing(draft.clone()) })
    }

    /// An entry under cuenv's sharded path is a symlink to the real one, so that every file has
    /// one number and one place.
    fn lookup_alias(&self, shard: [u8; 4], name: &OsStr) -> Result<Found> {
        let key = key_of_shard(shard, name)?;
        let exists = match &self.scope {
            Some(scope) => scope.get(&key).is_some_and(Option::is_some),
            None => self.shown_draft(&key).is_some() || self.cache.index().entry(&key)?.is_some(),
        };
        if !exists {
            return Err(VfsError::NotFound);
        }
        let link = self.nodes.look_up_own(Own::Link(format!("../../{key}").into_bytes().into()));
        Ok(Found { name_ttl: Duration::ZERO, ..self.getattr(link)? })
    }

    fn start_draft(&self, caller: Caller, place: DraftPlace, mode: u32) -> Result<Found> {
        self.has_room()?;
        let draft = self.cache.create_draft(place)?;
        self.note_born(&draft);
        self.note_writer(caller, &draft);
        let top = draft.tree();
        if self.owner.0 == 0 && (caller.uid, caller.gid) != (0, 0) {
            sys::set_owner(&top, Some(caller.uid), Some(caller.gid))?;
        }
        sys::set_mode(&top, mode)?;
        self.enter_top(&draft)
    }

    fn start_entry(&self, caller: Caller, key: EntryKey, mode: u32) -> Result<Found> {
        if self.cache.draft_for(&key).is_some() || self.cache.index().entry(&key)?.is_some() {
            return Err(VfsError::Exists);
        }
        self.start_draft(caller, DraftPlace::InPlace { key }, mode)
    }

    /// Makes a directory: in the top directory and in `work` that starts a draft.
    pub fn mkdir(&self, caller: Caller, parent: Ino, name: &OsStr, mode: u32) -> Result<Found> {
        let target = self.target(parent)?;
        if self.read_only() {
            return Err(VfsError::ReadOnly);
        }
        match target {
            Target::Fixed(ino::ROOT) => {
                if name == CONTROL_NAME || shard_part(name, true).is_some() {
                    return Err(VfsError::Exists);
                }
                let key = EntryKey::parse_os(name).map_err(|_| VfsError::Invalid)?;
                self.start_entry(caller, key, mode)
            }
            Target::Shard([_, _, 0, 0]) if shard_part(name, false).is_some() => Err(VfsError::Exists),
            Target::Shard([_, _, 0, 0]) => Err(VfsError::Invalid),
            Target::Shard(shard) => {
                let key = key_of_shard(shard, name).map_err(|_| VfsError::Invalid)?;
                let found = self.start_entry(caller, key, mode)?;
                self.forget(found.attr.ino, 1);
                // Not the draft's own number: a kernel that knows the draft by its real place would have
                // to move it here, and says ESTALE when it cannot at the moment.
                let ino = self.nodes.look_up_own(Own::Made);
                Ok(Found { name_ttl: Duration::ZERO, ..self.getattr(ino)? })
            }
            Target::Fixed(ino::WORK) => {
                if name.len() > 255 {
                    return Err(nix::errno::Errno::ENAMETOOLONG.into());
                }
                let place = DraftPlace::Work { name: name.as_bytes().to_vec() };
                self.start_draft(caller, place, mode)
            }
            Target::Draft(dir) => self.draft_make(caller, &dir, name, Make::Dir { mode }),
            Target::Sealed(r) => Err(self.refuse_change(&r.entry)),
            _ => Err(VfsError::NotPermitted),
        }
    }

    /// Makes a symlink in a draft.
    pub fn symlink(&self, caller: Caller, parent: Ino, name: &OsStr, target: &Path) -> Result<Found> {
        self.make(caller, parent, name, Make::Symlink { target })
    }

    /// Makes a file, fifo, socket or device in a draft.
    pub fn mknod(&self, caller: Caller, parent: Ino, name: &OsStr, mode: u32, rdev: u32) -> Result<Found> {
        self.make(caller, parent, name, Make::Node { mode, rdev })
    }

    fn make(&self, caller: Caller, parent: Ino, name: &OsStr, what: Make) -> Result<Found> {
        match self.target(parent)? {
            _ if self.read_only() => Err(VfsError::ReadOnly),
            Target::Draft(dir) => self.draft_make(caller, &dir, name, what),
            Target::Sealed(r) => Err(self.refuse_change(&r.entry)),
            _ => Err(VfsError::NotPermitted),
        }
    }

    /// Makes a hard link within a draft.
    pub fn link(&self, ino: Ino, parent: Ino, name: &OsStr) -> Result<Found> {
        match (self.target(ino)?, self.target(parent)?) {
            _ if self.read_only() => Err(VfsError::ReadOnly),
            (Target::Draft(node), Target::Draft(dir)) => self.draft_link(&node, &dir, name),
            (_, Target::Sealed(r)) => Err(self.refuse_change(&r.entry)),
            (_, Target::Draft(_)) => Err(VfsError::CrossDevice),
            _ => Err(VfsError::NotPermitted),
        }
    }

    /// Removes a name that is no directory.
    pub fn unlink(&self, parent: Ino, name: &OsStr) -> Result<()> {
        match self.target(parent)? {
            _ if self.read_only() => Err(VfsError::ReadOnly),
            Target::Draft(dir) => self.draft_remove(&dir, name, false),
            Target::Sealed(r) => Err(self.refuse_change(&r.entry)),
            Target::Fixed(_) | Target::Shard(_) | Target::Task(_) => Err(VfsError::ReadOnly),
            _ => Err(VfsError::NotDir),
        }
    }

    /// Removes an empty directory; an empty draft goes with its top directory.
    pub fn rmdir(&self, parent: Ino, name: &OsStr) -> Result<()> {
        let target = self.target(parent)?;
        if self.read_only() {
            return Err(VfsError::ReadOnly);
        }
        match target {
            Target::Draft(dir) => self.draft_remove(&dir, name, true),
            Target::Sealed(r) => Err(self.refuse_change(&r.entry)),
            Target::Fixed(dir @ (ino::ROOT | ino::WORK)) => match self.top_level(dir, name)? {
                super::gestures::TopLevel::Draft(draft) => self.remove_empty_draft(&draft),
                super::gestures::TopLevel::Sealed(_) => Err(VfsError::ReadOnly),
            },
            Target::Fixed(_) | Target::Shard(_) | Target::Task(_) => Err(VfsError::ReadOnly),
            _ => Err(VfsError::NotDir),
        }
    }

    fn remove_empty_draft(&self, draft: &Arc<Draft>) -> Result<()> {
        let mut empty = true;
        let listed = sys::list(draft.tree(), &mut |_| {
            empty = false;
            false
        });
        // Its directory is not held any longer than it lasts.
        if draft.stage() == Some(Stage::Gone) {
            return Err(VfsError::NotFound);
        }
        listed?;
        if !empty {
            return Err(VfsError::NotEmpty);
        }
        self.cache.drop_draft(draft, "removed").map_err(super::gestures::no_longer_there)
    }

    /// A symlink node that is the same for the same target.
    pub(super) fn found_link(&self, target: &str) -> Result<Found> {
        let ino = self.nodes.look_up_own(Own::Link(target.as_bytes().into()));
        Ok(Found { name_ttl: NAMES, ..self.getattr(ino)? })
    }

    /// A control file with this content.
    pub(super) fn found_snapshot(&self, content: Vec<u8>) -> Result<Found> {
        let ino = self.nodes.look_up_own(Own::Snapshot(content.into()));
        Ok(Found { name_ttl: Duration::ZERO, ..self.getattr(ino)? })
    }
}
