//! Drafts: operations on a real tree below, by descriptors, one component at a time.
//!
//! Invariants: nothing is followed that a client planted (symlinks, `..`); every change happens
//! inside the draft's gate; names and numbers in the node table follow each rename and unlink.

use std::ffi::OsStr;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::draft_node::{DraftNode, Open};
use super::nodes::DraftAt;
use super::reach::identity;
use super::sys::{OFlag, RenameFlags, SFlag};
use super::types::{Attr, Caller, Found, Ino, Kind, NAMES, SetAttr, Time};
use super::{Result, VfsError, View, sys};
use crate::cache::{Closed, Gate};
use crate::model::manifest::{MAX_DIR_PATH, path_len};

/// Attributes as the file system below has them.
pub(super) fn draft_attr(ino: Ino, st: &libc::stat) -> Attr {
    Attr {
        ino,
        kind: Kind::of_mode(st.st_mode),
        perm: st.st_mode & 0o7777,
        size: st.st_size as u64,
        blocks: st.st_blocks as u64,
        nlink: st.st_nlink as u32,
        uid: st.st_uid,
        gid: st.st_gid,
        rdev: st.st_rdev as u32,
        atime: Time { sec: st.st_atime, nsec: st.st_atime_nsec as u32 },
        mtime: Time { sec: st.st_mtime, nsec: st.st_mtime_nsec as u32 },
        ctime: Time { sec: st.st_ctime, nsec: st.st_ctime_nsec as u32 },
    }
}

/// What the kernel may keep of a draft's inode: changes that go through it, or that it is told of, it
/// knows; not what a mapping of a file writes, which reaches the file below by itself.
pub(super) fn draft_found(node: &DraftNode, st: &libc::stat) -> Found {
    let attr_ttl = if node.has_writer() { Duration::ZERO } else { NAMES };
    Found { attr: draft_attr(node.ino, st), name_ttl: NAMES, attr_ttl, generation: 0 }
}

/// A directory that no entry can have is not begun. What is below one that is moved is not looked through: sealing does
/// that.
fn not_too_deep(parent: &DraftNode, name: &OsStr) -> Result<()> {
    match path_len(parent.path_len(), name.as_bytes()) > MAX_DIR_PATH {
        true => Err(Errno::ENAMETOOLONG.into()),
        false => Ok(()),
    }
}

/// What a new inode is.
pub(super) enum Make<'a> {
    Dir { mode: u32 },
    Symlink { target: &'a Path },
    Node { mode: u32, rdev: u32 },
}

/// A node whose name is about to go, and what reaches it then.
type Kept = (Arc<DraftNode>, Option<Arc<Open>>);

impl View {
    /// Enters a node's draft to change it: the first thing that every change does, so that it can be
    /// tried again as a whole.
    pub(super) fn gate<'a>(&self, node: &'a DraftNode) -> Result<Gate<'a>> {
        node.draft.change().map_err(|closed| match closed {
            Closed::Now => VfsError::Committing(node.draft.clone()),
            Closed::ForGood => VfsError::Stale,
        })
    }

    /// Makes room, evicting what it may. It can take a while, in which kernels must be answered that let go of entries.
    pub fn make_room(&self) -> Result<()> {
        Ok(self.cache.make_room(0)?)
    }

    /// Before anything is created: whether there is room, or some must be made first.
    pub(super) fn has_room(&self) -> Result<()> {
        if self.cache.has_room()? { Ok(()) } else { Err(VfsError::Crowded) }
    }

    pub(super) fn draft_lookup(&self, dir: &Arc<DraftNode>, name: &OsStr) -> Result<Found> {
        if dir.kind != Kind::Dir {
            return Err(VfsError::NotDir);
        }
        let st = sys::stat_at(&*self.reach.dir(dir)?, name)?;
        Ok(self.draft_enter(dir, name, &st))
    }

    fn draft_enter(&self, dir: &Arc<DraftNode>, name: &OsStr, st: &libc::stat) -> Found {
        let kind = Kind::of_mode(st.st_mode);
        let at = DraftAt::Child(dir, name);
        let node = self.nodes.look_up_draft(&dir.draft, identity(st), kind, at);
        self.bound_known();
        draft_found(&node, st)
    }

    /// Gives a new inode the caller's identity and exactly the mode asked for. By its descriptor: another may have its
    /// name by now.
    fn adopt_new(
        &self,
        dir: &OwnedFd,
        new: &OwnedFd,
        caller: Caller,
        mode: Option<u32>,
    ) -> Result<libc::stat> {
        let st = sys::stat(new)?;
        let mut changed = false;
        if self.owner.0 == 0 && (caller.uid, caller.gid) != (st.st_uid, st.st_gid) {
            // In a set-group-id directory the group is the directory's, as on any file system.
            let inherits = sys::stat(dir)?.st_mode & libc::S_ISGID != 0;
            sys::set_owner(new, Some(caller.uid), (!inherits).then_some(caller.gid))?;
            changed = true;
        }
        if let Some(mode) = mode {
            let inherited =
                st.st_mode & libc::S_ISGID & if st.st_mode & libc::S_IFMT == libc::S_IFDIR { !0 } else { 0 };
            let want = mode & 0o7777 | inherited;
            if changed || st.st_mode & 0o7777 != want {
                sys::set_mode(new, want)?;
                changed = true;
            }
        }
        if changed { Ok(sys::stat(new)?) } else { Ok(st) }
    }

    /// Opens what was just made at `name`, to name it from then on.
    fn just_made(&self, dir: &OwnedFd, name: &OsStr, kind: Kind) -> Result<OwnedFd> {
        let fd = sys::open_handle(dir, name)?;
        let st = sys::stat(&fd)?;
        // Through another view somebody may have put something else there.
        match Kind::of_mode(st.st_mode) == kind && st.st_uid == self.owner.0 {
            true => Ok(fd),
            false => Err(VfsError::Stale),
        }
    }

    pub(super) fn draft_make(
        &self,
        caller: Caller,
        parent: &Arc<DraftNode>,
        name: &OsStr,
        what: Make,
    ) -> Result<Found> {
        if let Make::Dir { .. } = what {
            not_too_deep(parent, name)?;
        }
        let _gate = self.gate(parent)?;
        self.note_writer(caller, &parent.draft);
        self.has_room()?;
        let dir = self.reach.dir(parent)?;
        let (kind, mode) = match what {
            Make::Dir { mode } => {
                sys::mkdir(&*dir, name, mode)?;
                (Kind::Dir, Some(mode))
            }
            Make::Symlink { target } => {
                sys::symlink(target, &*dir, name)?;
                (Kind::Symlink, None)
            }
            Make::Node { mode, rdev } => {
                let kind = SFlag::from_bits_truncate(mode & libc::S_IFMT);
                sys::mknod(&*dir, name, kind, mode, rdev)?;
                (Kind::of_mode(mode), Some(mode))
            }
        };
        self.tell_others(parent);
        let new = self.just_made(&dir, name, kind)?;
        let st = self.adopt_new(&dir, &new, caller, mode)?;
        Ok(self.draft_enter(parent, name, &st))
    }

    /// Makes a regular file that did not exist and opens it.
    pub(super) fn draft_create(
        &self,
        caller: Caller,
        parent: &Arc<DraftNode>,
        name: &OsStr,
        mode: u32,
        flags: OFlag,
    ) -> Result<(Found, OwnedFd)> {
        let dir = self.reach.dir(parent)?;
        let fd = sys::create(&*dir, name, flags, mode)?;
        self.tell_others(parent);
        let st = self.adopt_new(&dir, &fd, caller, Some(mode))?;
        Ok((self.draft_enter(parent, name, &st), fd))
    }

    pub(super) fn draft_link(
        &self,
        node: &Arc<DraftNode>,
        parent: &Arc<DraftNode>,
        name: &OsStr,
    ) -> Result<Found> {
        if !Arc::ptr_eq(&node.draft, &parent.draft) {
            return Err(VfsError::CrossDevice);
        }
        let _gate = self.gate(parent)?;
        let dir = self.reach.dir(parent)?;
        let (fd, _) = self.reach.pin(node)?;
        sys::link(&fd, &*dir, name)?;
        self.tell_others(parent);
        let st = sys::stat_at(&*dir, name)?;
        Ok(self.draft_enter(parent, name, &st))
    }

    /// The known node at a name.
    fn known_at(&self, parent: &DraftNode, dir: &OwnedFd, name: &OsStr) -> Result<Option<Arc<DraftNode>>> {
        match sys::stat_at(dir, name) {
            Ok(st) => Ok(self.nodes.draft(&parent.draft, identity(&st))),
            Err(Errno::ENOENT) => Ok(None),
            // Not looked at, it would keep a name that it has not any more.
            Err(e) => Err(e.into()),
        }
    }

    /// The known node at a name, reachable even after the name is gone.
    fn kept_at(&self, parent: &DraftNode, dir: &OwnedFd, name: &OsStr) -> Result<Option<Kept>> {
        let Some(node) = self.known_at(parent, dir, name)? else { return Ok(None) };
        match self.reach.keep(&node) {
            Ok(open) => Ok(Some((node, Some(open)))),
            Err(VfsError::Stale | VfsError::Draft(Errno::ENOENT | Errno::ENOTDIR)) => Ok(Some((node, None))),
            // Without a name it could not be told from who gets its number next.
            Err(e) => Err(e),
        }
    }

    pub(super) fn draft_remove(&self, parent: &Arc<DraftNode>, name: &OsStr, dir_wanted: bool) -> Result<()> {
        let _gate = self.gate(parent)?;
        let dir = self.reach.dir(parent)?;
        let known = self.kept_at(parent, &dir, name)?;
        let remove = if dir_wanted { sys::rmdir } else { sys::unlink };
        remove(&dir, name)?;
        self.tell_others(parent);
        if let Some((node, open)) = known {
            node.drop_name(parent.ino, name, open);
            self.reach.drop_dir(node.ino);
            // The kernel counts links by itself, but leaves the time of the change alone.
            self.attributes_changed(&[node.ino]);
        }
        Ok(())
    }

    pub(super) fn draft_rename(
        &self,
        from: &Arc<DraftNode>,
        name: &OsStr,
        to: &Arc<DraftNode>,
        new: &OsStr,
        flags: u32,
    ) -> Result<()> {
        if !Arc::ptr_eq(&from.draft, &to.draft) {
            return Err(VfsError::CrossDevice);
        }
        let flags = RenameFlags::from_bits(flags).ok_or(VfsError::Invalid)?;
        let _gate = self.gate(from)?;
        let (from_dir, to_dir) = (self.reach.dir(from)?, self.reach.dir(to)?);
        let moved = self.known_at(from, &from_dir, name)?;
        if moved.as_ref().is_some_and(|node| node.kind == Kind::Dir) {
            not_too_deep(to, new)?;
        }
        let target = self.kept_at(to, &to_dir, new)?;
        sys::rename(&*from_dir, name, &*to_dir, new, flags)?;
        self.tell_others(from);
        self.tell_others(to);
        // Renaming one hard link over another of the same file changes nothing.
        if let (Some(a), Some((b, _))) = (&moved, &target)
            && a.ino == b.ino
        {
            return Ok(());
        }
        if let Some((node, open)) = target {
            if flags.contains(RenameFlags::RENAME_EXCHANGE) {
                node.add_name(from, name);
                node.drop_name(to.ino, new, None);
            } else {
                node.drop_name(to.ino, new, open);
                self.reach.drop_dir(node.ino);
                self.attributes_changed(&[node.ino]);
            }
        }
        if let Some(node) = moved {
            node.add_name(to, new);
            node.drop_name(from.ino, name, None);
        }
        Ok(())
    }

    pub(super) fn draft_setattr(&self, node: &Arc<DraftNode>, set: &SetAttr) -> Result<Found> {
        let _gate = self.gate(node)?;
        if set.size.is_some() {
            node.draft.cancel_ingest(node.backing.0, node.backing.1);
        }
        let (fd, st) = self.reach.pin(node)?;
        if let Some(size) = set.size {
            if size > st.st_size as u64 {
                self.has_room()?;
            }
            let size = i64::try_from(size).map_err(|_| Errno::EFBIG)?;
            match sys::truncate(&fd, size) {
                // Its mode keeps us from opening it, but not whoever has it open for writing.
                Err(Errno::EACCES) => node
                    .handles()
                    .iter()
                    .find_map(|fd| sys::truncate_open(fd, size).ok())
                    .ok_or(Errno::EACCES)?,
                done => done?,
            }
            if size == 0 {
                self.cache.emptied(&node.draft, fd.as_fd());
            }
            if set.drop_setid && st.st_mode & 0o6000 != 0 {
                sys::drop_setid(sys::reopen(&fd, OFlag::O_RDONLY)?)?;
            }
        }
        if set.uid.is_some() || set.gid.is_some() {
            sys::set_owner(&fd, set.uid, set.gid)?;
        }
        if let Some(mode) = set.mode {
            sys::set_mode(&fd, mode)?;
        }
        if set.atime.is_some() || set.mtime.is_some() {
            sys::set_times(&fd, set.atime, set.mtime)?;
        }
        Ok(draft_found(node, &sys::stat(&fd)?))
    }

    pub(super) fn draft_readlink(&self, node: &Arc<DraftNode>) -> Result<Vec<u8>> {
        let (fd, _) = self.reach.pin(node)?;
        Ok(sys::read_link(&fd)?)
    }
}
