//! The files of a tree that is given back: batches of them, written by some threads at the same time.
//!
//! Invariants: a file appears whole or not at all; hard links come after what they link to; the first error ends
//! all threads. Must not know: how directories are made or finished.

use std::collections::HashMap;
use std::fs::File;
use std::io::{self, Write};
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use nix::fcntl::{AtFlags, RenameFlags, renameat, renameat2};
use nix::unistd::{UnlinkatFlags, linkat, symlinkat, unlinkat};

use super::here::workers;
use super::restore::{Place, Restorer, temp_name};
use super::uproot::remove_tree;
use super::way::Way;
use super::{CacheError, RestoreAs, Restored, Result, at, ingest};
use crate::model::RecordKind;
use crate::model::manifest::Record;

/// Bytes copied at a time.
const PIECE: usize = 1 << 20;
/// Files of a directory that one thread takes at a time.
const BATCH: usize = 64;

/// What cannot be done, and the file whose content was asked for last.
type Failed = (CacheError, Option<PathBuf>);
/// Canonical record → where the first of its hard links was written: the directory's position and the name.
type Written = HashMap<u32, (usize, Vec<u8>)>;

/// Files and symlinks of one directory.
pub(super) struct Batch {
    dir: usize,
    records: Vec<u32>,
}

impl Batch {
    pub fn of(dir: usize) -> Batch {
        Batch { dir, records: Vec::new() }
    }
}

/// All files and symlinks that are to be written.
#[derive(Default)]
pub(super) struct Batches {
    list: Vec<Batch>,
    /// Further hard links, with their directories.
    links: Vec<(usize, u32)>,
}

impl Batches {
    /// One more of the directory whose batch it is.
    pub fn add(&mut self, batch: &mut Batch, index: u32, record: &Record) {
        if record.canonical() != index {
            self.links.push((batch.dir, index));
            return;
        }
        batch.records.push(index);
        if batch.records.len() == BATCH {
            self.end(std::mem::replace(batch, Batch::of(batch.dir)));
        }
    }

    /// There are no more of it.
    pub fn end(&mut self, batch: Batch) {
        if !batch.records.is_empty() {
            self.list.push(batch);
        }
    }

    /// Writes them all.
    pub fn write(&self, tree: &Restorer<'_>) -> std::result::Result<Restored, Failed> {
        let mut shared = Shared {
            next: AtomicUsize::new(0),
            failed: AtomicBool::new(false),
            no_reflinks: AtomicBool::new(false),
            linked: HashMap::new(),
        };
        for (_, index) in &self.links {
            *shared.linked.entry(tree.record(*index).canonical()).or_insert(1) += 1;
        }
        let mut writer = Writer::new(tree, &shared);
        std::thread::scope(|scope| {
            let work = || {
                let mut writer = Writer::new(tree, &shared);
                writer.batches(&self.list).map(|()| (writer.done, writer.written))
            };
            // This thread is one of them, and does all of it where no other can be had.
            let begin = |_| std::thread::Builder::new().spawn_scoped(scope, work).ok();
            let others: Vec<_> = (1..workers().min(self.list.len())).filter_map(begin).collect();
            let own = writer.batches(&self.list);
            let ends = others.into_iter().map(|t| t.join().unwrap_or_else(|p| std::panic::resume_unwind(p)));
            let ends: Vec<_> = ends.collect();
            own?;
            ends.into_iter().try_for_each(|end| {
                let (done, written) = end?;
                writer.done += done;
                writer.written.extend(written);
                Ok(())
            })
        })?;
        for (dir, record) in &self.links {
            writer.batch(*dir, &[*record]).map_err(|e| (e, writer.filling.take()))?;
        }
        Ok(writer.done)
    }
}

/// What threads have in common.
struct Shared {
    /// The batch that is next.
    next: AtomicUsize,
    failed: AtomicBool,
    no_reflinks: AtomicBool,
    /// What hard links will want to know the place of, and how many names it has.
    linked: HashMap<u32, u64>,
}

/// One thread.
struct Writer<'r, 'a> {
    tree: &'r Restorer<'a>,
    shared: &'r Shared,
    done: Restored,
    written: Written,
    /// The file whose content was asked for last.
    filling: Option<PathBuf>,
    buffer: Vec<u8>,
    way: Way,
    /// To what hard links are made of.
    way_back: Way,
}

impl<'r, 'a> Writer<'r, 'a> {
    fn new(tree: &'r Restorer<'a>, shared: &'r Shared) -> Self {
        Writer {
            tree,
            shared,
            done: Restored::default(),
            written: Written::new(),
            filling: None,
            buffer: Vec::new(),
            way: Way::default(),
            way_back: Way::default(),
        }
    }

    /// Takes batches until there are none, or somebody failed.
    fn batches(&mut self, list: &[Batch]) -> std::result::Result<(), Failed> {
        while !self.shared.failed.load(Ordering::Relaxed)
            && let Some(batch) = list.get(self.shared.next.fetch_add(1, Ordering::Relaxed))
        {
            self.batch(batch.dir, &batch.records).map_err(|e| {
                self.shared.failed.store(true, Ordering::Relaxed);
                (e, self.filling.take())
            })?;
        }
        Ok(())
    }

    fn batch(&mut self, dir: usize, records: &[u32]) -> Result<()> {
        let fd = self.tree.open_dir(dir, &mut self.way)?;
        let place = Place { index: dir, fd: fd.as_fd() };
        records.iter().try_for_each(|record| self.file(&place, *record))
    }

    fn file(&mut self, place: &Place<'_>, record: u32) -> Result<()> {
        let tree = self.tree;
        let name = tree.manifest.name(record);
        match tree.there(place, name)? {
            Some(stat) if !self.is_elsewhere(record, &stat) && self.alike(place, record, &stat)? => {
                if tree.exact {
                    tree.refresh(place.fd, record, &stat, &tree.path(place.index, name))?;
                }
                self.done.kept += 1;
                tree.work.did(1, tree.record(record).size());
                Ok(())
            }
            there => self.write(place, record, there),
        }
    }

    /// Would a change of what stands there be seen under a name that is none of ours? Then it is written anew, as are those
    /// that are linked to what was.
    fn is_elsewhere(&self, record: u32, stat: &libc::stat) -> bool {
        let (tree, wanted) = (self.tree, self.tree.record(record));
        if !tree.exact || at::kind(stat) != libc::S_IFREG {
            return false;
        }
        let ours = self.shared.linked.get(&wanted.canonical()).copied().unwrap_or(1);
        let changes =
            at::mtime_ns(stat) != tree.time(record) || stat.st_mode & 0o7777 != wanted.perm() | 0o200;
        self.written.contains_key(&wanted.canonical()) || stat.st_nlink > ours && changes
    }

    /// Is what stands there what we would write?
    fn alike(&self, place: &Place<'_>, record: u32, stat: &libc::stat) -> Result<bool> {
        let (manifest, name) = (self.tree.manifest, self.tree.manifest.name(record));
        let wanted = self.tree.record(record);
        let fail = |e| CacheError::io("read", self.tree.path(place.index, name), e);
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
        let tree = self.tree;
        let name = tree.manifest.name(record);
        if there.is_some() {
            tree.in_the_way(place, name)?;
        }
        if tree.dirs[place.index].hidden {
            return self.make(place, record, name);
        }
        let temp = temp_name();
        let made = self.make(place, record, &temp).and_then(|()| {
            if there.is_some_and(|s| at::kind(&s) == libc::S_IFDIR) {
                remove_tree(&at::proc_path(place.fd, name))
                    .map_err(|e| CacheError::io("replace", tree.path(place.index, name), e))?;
            }
            self.publish(place, &temp, name)
        });
        if made.is_err() {
            let _ = unlinkat(place.fd, &temp[..], UnlinkatFlags::NoRemoveDir);
        }
        made
    }

    fn publish(&self, place: &Place<'_>, temp: &[u8], name: &[u8]) -> Result<()> {
        let renamed = if self.tree.force {
            renameat(place.fd, temp, place.fd, name)
        } else {
            match renameat2(place.fd, temp, place.fd, name, RenameFlags::RENAME_NOREPLACE) {
                // Not on every file system: what was not there a moment ago is not replaced either.
                Err(nix::errno::Errno::EINVAL) => renameat(place.fd, temp, place.fd, name),
                other => other,
            }
        };
        renamed.map_err(|e| match e {
            nix::errno::Errno::EEXIST => CacheError::InTheWay(self.tree.path(place.index, name)),
            e => CacheError::io("create", self.tree.path(place.index, name), e.into()),
        })
    }

    fn make(&mut self, place: &Place<'_>, record: u32, temp: &[u8]) -> Result<()> {
        let tree = self.tree;
        let wanted = tree.record(record);
        let path = tree.path(place.index, tree.manifest.name(record));
        if let Some((dir, first)) = self.written.get(&wanted.canonical()) {
            let from = tree.open_dir(*dir, &mut self.way_back)?;
            linkat(from.as_fd(), &first[..], place.fd, temp, AtFlags::empty())
                .map_err(|e| CacheError::io("link", path, e.into()))?;
            if wanted.kind() == RecordKind::File {
                self.done.files += 1;
                tree.work.did(1, 0);
            }
            return Ok(());
        }
        match wanted.kind() {
            RecordKind::Symlink => {
                let made = symlinkat(tree.manifest.target(record), place.fd, temp).map_err(io::Error::from);
                let made = made.and_then(|()| at::set_mtime(place.fd, temp, tree.time(record)));
                made.map_err(|e| CacheError::io("create", path, e))?;
            }
            _ => self.make_file(place, record, temp, &path)?,
        }
        if self.shared.linked.contains_key(&wanted.canonical()) {
            let name = tree.manifest.name(record).to_vec();
            self.written.insert(wanted.canonical(), (place.index, name));
        }
        Ok(())
    }

    fn make_file(&mut self, place: &Place<'_>, record: u32, temp: &[u8], path: &Path) -> Result<()> {
        let tree = self.tree;
        let wanted = tree.record(record);
        self.filling = Some(path.to_owned());
        let fail = |e| CacheError::io("write", path, e);
        let file = at::create_new(place.fd, temp, 0o600).map_err(fail)?;
        self.fill(&file, record, path)?;
        at::set_xattrs(place.fd, temp, tree.manifest.xattrs(wanted)).map_err(fail)?;
        // By the open file: 0o200 is part of the mode, so nothing later needs more rights.
        let mode = nix::sys::stat::Mode::from_bits_truncate(wanted.perm() | 0o200);
        nix::sys::stat::fchmod(&file, mode).map_err(|e| fail(e.into()))?;
        at::set_mtime_of(&file, tree.time(record)).map_err(fail)?;
        self.done.files += 1;
        self.done.bytes += wanted.size();
        tree.work.did(1, 0);
        Ok(())
    }

    /// Gives a new file its content.
    fn fill(&mut self, mut file: &File, record: u32, path: &Path) -> Result<()> {
        let (tree, entry) = (self.tree, self.tree.entry);
        let fail = |e| CacheError::io("write", path, e);
        let size = tree.record(record).size();
        if tree.how != RestoreAs::Copy
            && !self.shared.no_reflinks.load(Ordering::Relaxed)
            && let Some(blob) = entry.backing(record)?
        {
            match reflink_copy::reflink_file(&blob, file) {
                Ok(()) => {
                    self.done.reflinked += 1;
                    tree.work.did(0, size);
                    return Ok(());
                }
                Err(e) if tree.how == RestoreAs::Reflink => return Err(CacheError::io("reflink", path, e)),
                Err(_) => self.shared.no_reflinks.store(true, Ordering::Relaxed),
            }
        }
        let piece = PIECE.min(size as usize);
        if self.buffer.len() < piece {
            self.buffer.resize(piece, 0);
        }
        let mut offset = 0;
        while offset < size {
            let n = entry.read(record, offset, &mut self.buffer[..piece])?;
            if n == 0 {
                return Err(fail(io::ErrorKind::UnexpectedEof.into()));
            }
            file.write_all(&self.buffer[..n]).map_err(fail)?;
            offset += n as u64;
            tree.work.did(0, n as u64);
        }
        Ok(())
    }
}
