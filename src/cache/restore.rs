//! Giving outputs back: a tree below a directory of the user's.
//!
//! Invariants: nothing outside the destination is touched, whatever symlinks stand in it; nothing
//! that stands there is replaced without `force`; a file appears whole or not at all; no file is
//! ever a hard link into the store. All ways of restoring give the same tree: types, bytes, link
//! targets, hard links among the outputs, modes (but always owner-writable), times and user
//! attributes. A reflink shares the blob's content unread: it was verified at ingest, and is by
//! the scrub, as with passthrough.

use std::ffi::OsStr;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{OFlag, RenameFlags, renameat, renameat2};
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::only::Only;
use super::place::Shift;
use super::restore_files::{Batch, Batches};
use super::uproot::remove_tree;
use super::way::Way;
use super::{CacheError, Entry, RestoreAs, Restored, Result, Work, at};
use crate::model::manifest::Record;
use crate::model::{Manifest, RecordKind};

impl Entry {
    /// Writes `outputs/` below `dest`: merges, replaces only with `force`, never leaves `dest`.
    /// An entry without outputs gives nothing.
    pub fn restore(&self, dest: &Path, how: RestoreAs, force: bool) -> Result<Restored> {
        self.restore_watched(dest, how, force, &Work::default())
    }

    /// The same, saying in `work` how far it is.
    pub fn restore_watched(&self, dest: &Path, how: RestoreAs, force: bool, work: &Work) -> Result<Restored> {
        std::fs::create_dir_all(dest).map_err(|e| match std::fs::metadata(dest) {
            Ok(there) if !there.is_dir() => {
                CacheError::io("restore into", dest, io::ErrorKind::NotADirectory.into())
            }
            _ => CacheError::io("create", dest, e),
        })?;
        let top = open_top(dest)?;
        self.cache().touch(self);
        let manifest = self.manifest()?;
        match manifest.find(b"outputs") {
            Some(outputs) => {
                work.expect(manifest.files(), manifest.logical_bytes());
                let restorer = Restorer::new(self, &manifest, top, dest.to_owned(), how, force, work);
                restorer.run(outputs).map_err(|(e, _)| e)
            }
            None => Ok(Restored::default()),
        }
    }

    /// Writes what is below the directory `record` into an open directory that is ours.
    pub(super) fn restore_into(&self, top: BorrowedFd<'_>, record: u32, how: RestoreAs) -> Result<Restored> {
        let own = top.try_clone_to_owned().map_err(|e| CacheError::io("open", "the draft", e))?;
        let (manifest, work) = (self.manifest()?, Work::default());
        Restorer::new(self, &manifest, own, PathBuf::new(), how, true, &work).run(record).map_err(|(e, _)| e)
    }
}

/// Opens the directory that is restored into.
pub(super) fn open_top(dest: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    nix::fcntl::open(dest, flags, nix::sys::stat::Mode::empty())
        .map_err(|e| CacheError::io("open", dest, e.into()))
}

/// One restore: first the directories, one after the other, then files, in threads.
pub(super) struct Restorer<'a> {
    pub(super) entry: &'a Entry,
    pub(super) manifest: &'a Manifest,
    top: OwnedFd,
    /// What the top is called in messages.
    label: PathBuf,
    pub(super) how: RestoreAs,
    pub(super) force: bool,
    pub(super) work: &'a Work,
    /// What of the tree is wanted.
    pub(super) only: Only,
    /// What the entry does not have goes, and what is alike gets its mode and time.
    pub(super) exact: bool,
    /// Other modification times than the entry's.
    pub(super) shift: Option<Shift>,
    /// Directories in the order they were entered.
    pub(super) dirs: Vec<Dir>,
}

/// A directory that was entered.
pub(super) struct Dir {
    record: u32,
    /// Its parent's position; the top's is its own.
    parent: usize,
    /// It was made by us.
    pub(super) made: bool,
    /// What it is called until it is finished, if not by its name.
    aside: Option<Vec<u8>>,
    /// It or one above it is called otherwise, so nobody looks into it yet.
    pub(super) hidden: bool,
    only: Only,
}

/// A directory that is being filled.
pub(super) struct Place<'d> {
    pub(super) index: usize,
    pub(super) fd: BorrowedFd<'d>,
}

impl<'a> Restorer<'a> {
    pub(super) fn new(
        entry: &'a Entry,
        manifest: &'a Manifest,
        top: OwnedFd,
        label: PathBuf,
        how: RestoreAs,
        force: bool,
        work: &'a Work,
    ) -> Self {
        Restorer {
            entry,
            manifest,
            top,
            label,
            how,
            force,
            work,
            only: Only::All,
            exact: false,
            shift: None,
            dirs: Vec::new(),
        }
    }

    /// Restores what is below the directory `from`. With an error comes the file whose content was asked for last.
    pub(super) fn run(mut self, from: u32) -> std::result::Result<Restored, (CacheError, Option<PathBuf>)> {
        let only = self.only.clone();
        self.dirs.push(Dir { record: from, parent: 0, made: false, aside: None, hidden: false, only });
        let done = self.make_dirs().map_err(|e| (e, None)).and_then(|files| files.write(&self));
        let done = done.and_then(|done| self.finish_dirs().map(|()| done).map_err(|e| (e, None)));
        if done.is_err() {
            self.drop_asides();
        }
        done
    }

    /// Takes away directories that were not finished.
    fn drop_asides(&self) {
        let mut way = Way::default();
        for Dir { parent, aside, .. } in &self.dirs {
            if let (Some(aside), Ok(fd)) = (aside, self.open_dir(*parent, &mut way)) {
                let _ = remove_tree(&at::proc_path(fd.as_fd(), aside));
            }
        }
    }

    /// Makes the directories that are missing; what else is to be written into which.
    fn make_dirs(&mut self) -> Result<Batches> {
        let (mut files, mut way) = (Batches::default(), Way::default());
        // Depth first: the next one is near.
        let mut waiting = vec![0];
        while let Some(next) = waiting.pop() {
            let fd = self.open_dir(next, &mut way)?;
            let place = Place { index: next, fd: fd.as_fd() };
            let Dir { record, made, ref only, .. } = self.dirs[next];
            let only = only.clone();
            if self.exact && !made && !only.is_all() {
                sweep(place.fd);
            }
            if self.exact && !made && only.is_all() {
                self.prune(place.fd, record, &self.path(next, b""))?;
            }
            let mut batch = Batch::of(next);
            let first = self.dirs.len();
            for child in self.manifest.children(record) {
                match only.child(self.manifest.name(child)) {
                    Some(only) if self.record(child).kind() == RecordKind::Dir => {
                        self.dir(&place, child, only)?
                    }
                    Some(_) => files.add(&mut batch, child, self.record(child)),
                    None => {}
                }
            }
            files.end(batch);
            waiting.extend((first..self.dirs.len()).rev());
        }
        Ok(files)
    }

    fn names(&self, mut index: usize) -> Vec<&[u8]> {
        let mut names = Vec::new();
        while index != 0 {
            names.push(self.manifest.name(self.dirs[index].record));
            index = self.dirs[index].parent;
        }
        names.reverse();
        names
    }

    pub(super) fn path(&self, index: usize, name: &[u8]) -> PathBuf {
        let mut path = self.label.clone();
        path.extend(self.names(index).into_iter().map(OsStr::from_bytes));
        path.push(OsStr::from_bytes(name));
        path
    }

    pub(super) fn open_dir(&self, index: usize, way: &mut Way) -> Result<Rc<OwnedFd>> {
        let (mut names, mut at) = (self.names(index), index);
        for name in names.iter_mut().rev() {
            let dir = &self.dirs[at];
            *name = dir.aside.as_deref().unwrap_or(name);
            at = dir.parent;
        }
        way.open(self.top.as_fd(), &names).map_err(|e| CacheError::io("open", self.path(index, b""), e))
    }

    pub(super) fn record(&self, record: u32) -> &'a Record {
        self.manifest.get(record).expect("children are records")
    }

    /// The modification time that a record gets.
    pub(super) fn time(&self, record: u32) -> i64 {
        let own = self.record(record).mtime_ns();
        self.shift.as_ref().map_or(own, |shift| shift.time(own))
    }

    /// What stands there under a name. Into a directory that we made nobody else has put anything.
    pub(super) fn there(&self, place: &Place<'_>, name: &[u8]) -> Result<Option<libc::stat>> {
        match self.dirs[place.index].made {
            true => Ok(None),
            false => at::stat_if_any(place.fd, name)
                .map_err(|e| CacheError::io("look at", self.path(place.index, name), e)),
        }
    }

    pub(super) fn in_the_way(&self, place: &Place<'_>, name: &[u8]) -> Result<()> {
        if self.force { Ok(()) } else { Err(CacheError::InTheWay(self.path(place.index, name))) }
    }

    fn dir(&mut self, place: &Place<'_>, record: u32, only: Only) -> Result<()> {
        let name = self.manifest.name(record);
        let fail = |e| CacheError::io("create", self.path(place.index, name), e);
        let there = self.there(place, name)?;
        let is_dir = there.map(|s| at::kind(&s) == libc::S_IFDIR);
        if is_dir == Some(false) {
            // On the way to an output, and none itself.
            if self.exact && !only.is_all() {
                return Err(CacheError::InTheWay(self.path(place.index, name)));
            }
            self.in_the_way(place, name)?;
            unlinkat(place.fd, name, UnlinkatFlags::NoRemoveDir).map_err(|e| fail(e.into()))?;
        }
        let made = is_dir != Some(true);
        let locked = |s: &libc::stat| self.exact && !made && only.is_all() && s.st_mode & 0o700 != 0o700;
        if let Some(stat) = there.filter(locked) {
            // It gets the entry's mode in the end, and is written into until then.
            at::chmod(place.fd, name, stat.st_mode & 0o7777 | 0o700).map_err(fail)?;
        }
        let above = &self.dirs[place.index];
        // Not beside the outputs: what a death leaves has to be where the next run clears.
        let within = self.exact && place.index != 0 && above.only.is_all();
        let aside = (made && within && !above.hidden).then(temp_name);
        let hidden = above.hidden || aside.is_some();
        if made {
            at::mkdir(place.fd, aside.as_deref().unwrap_or(name), 0o700).map_err(fail)?;
        }
        self.dirs.push(Dir { record, parent: place.index, made, aside, hidden, only });
        Ok(())
    }

    /// Modes, attributes and times of the directories we made, innermost first: what is written
    /// into a directory changes its time, and a read-only one could not be written into.
    fn finish_dirs(&self) -> Result<()> {
        let (manifest, mut way) = (self.manifest, Way::default());
        for Dir { record, parent, made, aside, only, .. } in self.dirs.iter().skip(1).rev() {
            let ours = *made || self.exact && only.is_all();
            if !ours {
                continue;
            }
            let (name, wanted) = (manifest.name(*record), self.record(*record));
            let now = aside.as_deref().unwrap_or(name);
            let fd = self.open_dir(*parent, &mut way)?;
            at::set_xattrs(fd.as_fd(), now, manifest.xattrs(wanted))
                .and_then(|()| at::chmod(fd.as_fd(), now, wanted.perm() | 0o200))
                .and_then(|()| at::set_mtime(fd.as_fd(), now, self.time(*record)))
                .and_then(|()| aside.as_ref().map_or(Ok(()), |aside| show(fd.as_fd(), aside, name)))
                .map_err(|e| CacheError::io("finish", self.path(*parent, name), e))?;
        }
        Ok(())
    }
}

/// Has a directory that was made aside stand under its name. What somebody else has put there meanwhile goes.
fn show(dir: BorrowedFd<'_>, aside: &[u8], name: &[u8]) -> io::Result<()> {
    use nix::errno::Errno;
    match renameat(dir, aside, dir, name) {
        Err(Errno::ENOTEMPTY | Errno::EEXIST | Errno::ENOTDIR) => {
            renameat2(dir, aside, dir, name, RenameFlags::RENAME_EXCHANGE)?;
            match at::kind(&at::stat(dir, aside)?) {
                libc::S_IFDIR => remove_tree(&at::proc_path(dir, aside)),
                _ => Ok(unlinkat(dir, aside, UnlinkatFlags::NoRemoveDir)?),
            }
        }
        other => Ok(other?),
    }
}

/// A name that nothing in an output tree is likely to have; if it has, creating it fails.
pub(crate) fn temp_name() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(".outfs-{}-{n}.tmp", std::process::id()).into_bytes()
}

/// The process whose [`temp_name`] this is, if it is one.
pub(crate) fn temp_owner(name: &[u8]) -> Option<u32> {
    let middle = name.strip_prefix(b".outfs-")?.strip_suffix(b".tmp")?;
    let (pid, n) = std::str::from_utf8(middle).ok()?.split_once('-')?;
    n.parse::<u64>().ok()?;
    pid.parse().ok()
}

/// Takes away what processes that died left beside the outputs; what cannot be is left.
fn sweep(dir: BorrowedFd<'_>) {
    let lives = |pid: u32| Path::new(&format!("/proc/{pid}")).exists();
    for name in at::names(dir).unwrap_or_default() {
        if temp_owner(&name).is_some_and(|pid| !lives(pid)) {
            let _ = unlinkat(dir, &name[..], UnlinkatFlags::NoRemoveDir);
        }
    }
}
