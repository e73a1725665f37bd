//! Giving outputs back: a tree below a directory of the user's.
//!
//! Invariants: nothing outside the destination is touched, whatever symlinks stand in it; nothing
//! that stands there is replaced without `force`; a file appears whole or not at all; no file is
//! ever a hard link into the store. All ways of restoring give the same tree: types, bytes, link
//! targets, hard links among the outputs, modes (but always owner-writable), times and user
//! attributes. A reflink shares the blob's content unread: it was verified at ingest, and is by
//! the scrub, as with passthrough.

use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

use nix::fcntl::{AtFlags, OFlag, RenameFlags, renameat, renameat2};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::only::Only;
use super::place::Shift;
use super::{CacheError, Entry, RestoreAs, Restored, Result, Work, at, ingest};
use crate::model::manifest::Record;
use crate::model::{Manifest, RecordKind};

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;

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

/// One restore.
pub(super) struct Restorer<'a> {
    entry: &'a Entry,
    pub(super) manifest: &'a Manifest,
    top: OwnedFd,
    /// What the top is called in messages.
    label: PathBuf,
    how: RestoreAs,
    force: bool,
    work: &'a Work,
    reflinks_work: bool,
    done: Restored,
    /// What of the tree is wanted.
    pub(super) only: Only,
    /// What the entry does not have goes, and what is alike gets its mode and time.
    pub(super) exact: bool,
    /// Other modification times than the entry's.
    pub(super) shift: Option<Shift>,
    /// The file whose content was asked for last.
    filling: Option<PathBuf>,
    /// Directories in the order they were entered.
    dirs: Vec<Dir>,
    /// Canonical record → where the first of its hard links was written.
    written: HashMap<u32, (usize, Vec<u8>)>,
}

/// A directory that was entered.
struct Dir {
    record: u32,
    /// Its parent's position; the top's is its own.
    parent: usize,
    /// It was made by us.
    made: bool,
    /// What it is called until it is finished, if not by its name.
    aside: Option<Vec<u8>>,
    /// It or one above it is called otherwise, so nobody looks into it yet.
    hidden: bool,
    only: Only,
}

/// A directory that is being filled.
struct Place<'d> {
    index: usize,
    fd: BorrowedFd<'d>,
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
            reflinks_work: true,
            done: Restored::default(),
            only: Only::All,
            exact: false,
            shift: None,
            filling: None,
            dirs: Vec::new(),
            written: HashMap::new(),
        }
    }

    /// Restores what is below the directory `from`. With an error comes the file whose content was asked for last.
    pub(super) fn run(mut self, from: u32) -> std::result::Result<Restored, (CacheError, Option<PathBuf>)> {
        let only = self.only.clone();
        self.dirs.push(Dir { record: from, parent: 0, made: false, aside: None, hidden: false, only });
        match self.fill_dirs().and_then(|()| self.finish_dirs()) {
            Ok(()) => Ok(self.done),
            Err(e) => {
                self.drop_asides();
                Err((e, self.filling))
            }
        }
    }

    /// Takes away directories that were not finished.
    fn drop_asides(&self) {
        for Dir { parent, aside, .. } in &self.dirs {
            if let (Some(aside), Ok(fd)) = (aside, self.open_dir(*parent)) {
                let _ = std::fs::remove_dir_all(at::proc_path(fd.as_fd(), aside));
            }
        }
    }

    fn fill_dirs(&mut self) -> Result<()> {
        let mut next = 0;
        while next < self.dirs.len() {
            let fd = self.open_dir(next)?;
            let place = Place { index: next, fd: fd.as_fd() };
            let Dir { record, made, ref only, .. } = self.dirs[next];
            let only = only.clone();
            if self.exact && !made && only.is_all() {
                self.prune(place.fd, record, &self.path(next, b""))?;
            }
            for child in self.manifest.children(record) {
                if let Some(only) = only.child(self.manifest.name(child)) {
                    self.child(&place, child, only)?;
                }
            }
            next += 1;
        }
        Ok(())
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

    fn path(&self, index: usize, name: &[u8]) -> PathBuf {
        let mut path = self.label.clone();
        path.extend(self.names(index).into_iter().map(OsStr::from_bytes));
        path.push(OsStr::from_bytes(name));
        path
    }

    fn open_dir(&self, index: usize) -> Result<OwnedFd> {
        let (mut names, mut at) = (self.names(index), index);
        for name in names.iter_mut().rev() {
            let dir = &self.dirs[at];
            *name = dir.aside.as_deref().unwrap_or(name);
            at = dir.parent;
        }
        at::descend(self.top.as_fd(), names).map_err(|e| CacheError::io("open", self.path(index, b""), e))
    }

    pub(super) fn record(&self, record: u32) -> &'a Record {
        self.manifest.get(record).expect("children are records")
    }

    /// The modification time that a record gets.
    pub(super) fn time(&self, record: u32) -> i64 {
        let own = self.record(record).mtime_ns();
        self.shift.as_ref().map_or(own, |shift| shift.time(own))
    }

    fn child(&mut self, place: &Place<'_>, record: u32, only: Only) -> Result<()> {
        let name = self.manifest.name(record);
        let there = match self.dirs[place.index].made {
            // Nobody else has put anything there.
            true => None,
            false => at::stat_if_any(place.fd, name)
                .map_err(|e| CacheError::io("look at", self.path(place.index, name), e))?,
        };
        match self.record(record).kind() {
            RecordKind::Dir => self.dir(place, record, there, only),
            _ => match there {
                Some(stat) if self.alike(place, record, &stat)? => {
                    if self.exact {
                        self.refresh(place.fd, record, &stat, &self.path(place.index, name))?;
                    }
                    self.done.kept += 1;
                    self.work.did(1, self.record(record).size());
                    Ok(())
                }
                there => self.write(place, record, there),
            },
        }
    }

    fn in_the_way(&self, place: &Place<'_>, name: &[u8]) -> Result<()> {
        if self.force { Ok(()) } else { Err(CacheError::InTheWay(self.path(place.index, name))) }
    }

    fn dir(&mut self, place: &Place<'_>, record: u32, there: Option<libc::stat>, only: Only) -> Result<()> {
        let name = self.manifest.name(record);
        let fail = |e| CacheError::io("create", self.path(place.index, name), e);
        let is_dir = there.map(|s| at::kind(&s) == libc::S_IFDIR);
        if is_dir == Some(false) {
            self.in_the_way(place, name)?;
            unlinkat(place.fd, name, UnlinkatFlags::NoRemoveDir).map_err(|e| fail(e.into()))?;
        }
        let made = is_dir != Some(true);
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

    /// Is what stands there what we would write?
    fn alike(&self, place: &Place<'_>, record: u32, stat: &libc::stat) -> Result<bool> {
        let (manifest, name) = (self.manifest, self.manifest.name(record));
        let wanted = self.record(record);
        let fail = |e| CacheError::io("read", self.path(place.index, name), e);
        match at::kind(stat) {
            libc::S_IFLNK if wanted.kind() == RecordKind::Symlink => {
                let target = nix::fcntl::readlinkat(place.fd, name).map_err(|e| fail(e.into()))?;
                Ok(target.as_bytes() == manifest.target(record))
            }
            libc::S_IFREG if wanted.kind() == RecordKind::File => {
                let executable = |mode: u32| mode & 0o111 != 0;
                if executable(stat.st_mode) != executable(wanted.perm())
                    || stat.st_size as u64 != wanted.size()
                {
                    return Ok(false);
                }
                let Ok(file) = at::open_read(place.fd, name) else { return Ok(false) };
                let found = ingest::hash_file(&file, &|| true).map_err(fail)?;
                Ok(found.map(|c| c.hash) == wanted.hash())
            }
            _ => Ok(false),
        }
    }

    /// Writes a file or symlink aside and renames it into place; in a directory that is aside itself it is there already.
    fn write(&mut self, place: &Place<'_>, record: u32, there: Option<libc::stat>) -> Result<()> {
        let name = self.manifest.name(record);
        if there.is_some() {
            self.in_the_way(place, name)?;
        }
        if self.dirs[place.index].hidden {
            return self.make(place, record, name);
        }
        let temp = temp_name();
        let made = self.make(place, record, &temp).and_then(|()| {
            if there.is_some_and(|s| at::kind(&s) == libc::S_IFDIR) {
                std::fs::remove_dir_all(at::proc_path(place.fd, name))
                    .map_err(|e| CacheError::io("replace", self.path(place.index, name), e))?;
            }
            self.publish(place, &temp, name)
        });
        if made.is_err() {
            let _ = unlinkat(place.fd, &temp[..], UnlinkatFlags::NoRemoveDir);
        }
        made
    }

    fn publish(&self, place: &Place<'_>, temp: &[u8], name: &[u8]) -> Result<()> {
        let renamed = if self.force {
            renameat(place.fd, temp, place.fd, name)
        } else {
            match renameat2(place.fd, temp, place.fd, name, RenameFlags::RENAME_NOREPLACE) {
                // Not on every file system: what was not there a moment ago is not replaced either.
                Err(nix::errno::Errno::EINVAL) => renameat(place.fd, temp, place.fd, name),
                other => other,
            }
        };
        renamed.map_err(|e| match e {
            nix::errno::Errno::EEXIST => CacheError::InTheWay(self.path(place.index, name)),
            e => CacheError::io("create", self.path(place.index, name), e.into()),
        })
    }

    fn make(&mut self, place: &Place<'_>, record: u32, temp: &[u8]) -> Result<()> {
        let (manifest, wanted) = (self.manifest, self.record(record));
        let name = manifest.name(record);
        if let Some((dir, first)) = self.written.get(&wanted.canonical()) {
            let from = self.open_dir(*dir)?;
            linkat(from.as_fd(), &first[..], place.fd, temp, AtFlags::empty())
                .map_err(|e| CacheError::io("link", self.path(place.index, name), e.into()))?;
            if wanted.kind() == RecordKind::File {
                self.done.files += 1;
                self.work.did(1, 0);
            }
            return Ok(());
        }
        if wanted.kind() == RecordKind::Symlink {
            let made = symlinkat(manifest.target(record), place.fd, temp).map_err(io::Error::from);
            let made = made.and_then(|()| at::set_mtime(place.fd, temp, self.time(record)));
            made.map_err(|e| CacheError::io("create", self.path(place.index, name), e))?;
            self.written.insert(wanted.canonical(), (place.index, name.to_vec()));
            return Ok(());
        }
        let path = self.path(place.index, name);
        self.filling = Some(path.clone());
        let fail = |e| CacheError::io("write", &path, e);
        let file = at::create_new(place.fd, temp, 0o600).map_err(fail)?;
        self.fill(&file, record, &path)?;
        at::set_xattrs(place.fd, temp, manifest.xattrs(wanted)).map_err(fail)?;
        // By the open file: 0o200 is part of the mode, so nothing later needs more rights.
        let mode = nix::sys::stat::Mode::from_bits_truncate(wanted.perm() | 0o200);
        nix::sys::stat::fchmod(&file, mode).map_err(|e| fail(e.into()))?;
        at::set_mtime(place.fd, temp, self.time(record)).map_err(fail)?;
        self.written.insert(wanted.canonical(), (place.index, name.to_vec()));
        self.done.files += 1;
        self.done.bytes += wanted.size();
        self.work.did(1, 0);
        Ok(())
    }

    /// Gives a new file its content.
    fn fill(&mut self, mut file: &File, record: u32, path: &Path) -> Result<()> {
        let fail = |e| CacheError::io("write", path, e);
        if self.how != RestoreAs::Copy
            && self.reflinks_work
            && let Some(blob) = self.entry.backing(record)?
        {
            match reflink_copy::reflink_file(&blob, file) {
                Ok(()) => {
                    self.done.reflinked += 1;
                    self.work.did(0, self.record(record).size());
                    return Ok(());
                }
                Err(e) if self.how == RestoreAs::Reflink => return Err(CacheError::io("reflink", path, e)),
                Err(_) => self.reflinks_work = false,
            }
        }
        let size = self.record(record).size();
        let mut buf = vec![0; PIECE.min(size as usize)];
        let mut offset = 0;
        while offset < size {
            let n = self.entry.read(record, offset, &mut buf)?;
            if n == 0 {
                return Err(fail(io::ErrorKind::UnexpectedEof.into()));
            }
            file.write_all(&buf[..n]).map_err(fail)?;
            offset += n as u64;
            self.work.did(0, n as u64);
        }
        Ok(())
    }

    /// Modes, attributes and times of the directories we made, innermost first: what is written
    /// into a directory changes its time, and a read-only one could not be written into.
    fn finish_dirs(&self) -> Result<()> {
        let manifest = self.manifest;
        for Dir { record, parent, made, aside, only, .. } in self.dirs.iter().skip(1).rev() {
            let ours = *made || self.exact && only.is_all();
            if !ours {
                continue;
            }
            let (name, wanted) = (manifest.name(*record), self.record(*record));
            let now = aside.as_deref().unwrap_or(name);
            let fd = self.open_dir(*parent)?;
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
                libc::S_IFDIR => std::fs::remove_dir_all(at::proc_path(dir, aside)),
                _ => Ok(unlinkat(dir, aside, UnlinkatFlags::NoRemoveDir)?),
            }
        }
        other => Ok(other?),
    }
}

/// A name that nothing in an output tree is likely to have; if it has, creating it fails.
fn temp_name() -> Vec<u8> {
    static NEXT: AtomicU64 = AtomicU64::new(0);
    let n = NEXT.fetch_add(1, Ordering::Relaxed);
    format!(".outfs-{}-{n}.tmp", std::process::id()).into_bytes()
}
