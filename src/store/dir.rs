//! Directories of the store by descriptor, and files written aside.
//!
//! Purpose: the calls of `port` with the context an error needs. Invariants: a [`Temp`] gets its
//! final name only complete and synced; dropped before that, it leaves nothing.
//! Must not know: what the files mean.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::{Result, StoreError, port};

/// An open directory and its path (for messages).
pub(super) struct Dir {
    fd: OwnedFd,
    path: PathBuf,
}

impl Dir {
    /// Opens the directory at `path` (the store's root: symlinks on the way are the user's affair).
    pub fn open_root(path: &Path) -> Result<Dir> {
        let fd = port::paths::open_dir(path).map_err(|e| StoreError::io("open", path, e))?;
        Ok(Dir { fd, path: path.to_owned() })
    }

    /// A directory that is open already.
    pub fn new(fd: OwnedFd, path: PathBuf) -> Dir {
        Dir { fd, path }
    }

    /// A directory below this one.
    pub fn sub(&self, name: impl AsRef<OsStr>) -> Result<Dir> {
        let name = name.as_ref();
        let fd = port::open_dir(self.fd(), name).map_err(self.err("open", name))?;
        Ok(Dir { fd, path: self.path.join(name) })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.fd.as_fd()
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Makes an error of this directory's `name` with its context.
    pub fn err<'a>(&'a self, op: &'static str, name: &'a OsStr) -> impl FnOnce(io::Error) -> StoreError + 'a {
        move |e| StoreError::io(op, self.path.join(name), e)
    }

    /// Opens a file for reading; `None` when there is none.
    pub fn read(&self, name: impl AsRef<OsStr>) -> Result<Option<File>> {
        let name = name.as_ref();
        match port::open_read(self.fd(), name) {
            Ok(f) => Ok(Some(f)),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(self.err("open", name)(e)),
        }
    }

    /// A whole small file; `None` when there is none.
    pub fn read_all(&self, name: impl AsRef<OsStr>) -> Result<Option<Vec<u8>>> {
        let name = name.as_ref();
        let Some(file) = self.read(name)? else { return Ok(None) };
        read_whole(&file).map(Some).map_err(self.err("read", name))
    }

    /// Makes a directory; false when it is there already.
    pub fn mkdir(&self, name: impl AsRef<OsStr>, mode: u32) -> Result<bool> {
        let name = name.as_ref();
        match port::mkdir(self.fd(), name, mode) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => Ok(false),
            Err(e) => Err(self.err("create", name)(e)),
        }
    }

    /// Unlinks a file; false when there is none.
    pub fn unlink(&self, name: impl AsRef<OsStr>) -> Result<bool> {
        let name = name.as_ref();
        match port::unlink(self.fd(), name) {
            Ok(()) => Ok(true),
            Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(false),
            Err(e) => Err(self.err("delete", name)(e)),
        }
    }

    /// Waits until the directory's names are on the disk.
    pub fn sync(&self) -> Result<()> {
        port::sync_dir(self.fd()).map_err(|e| StoreError::io("sync", &self.path, e))
    }

    /// All names.
    pub fn names(&self) -> Result<Vec<OsString>> {
        let mut names = Vec::new();
        self.each_name(&mut |name| names.push(name.to_owned()))?;
        Ok(names)
    }

    /// Calls `each` for every name.
    pub fn each_name(&self, each: &mut dyn FnMut(&OsStr)) -> Result<()> {
        port::list(self.fd(), &mut |name, _| {
            each(name);
            Ok(())
        })
        .map_err(|e| StoreError::io("list", &self.path, e))
    }

    /// A file's size; `None` when there is none.
    pub fn size_of(&self, name: impl AsRef<OsStr>) -> Result<Option<u64>> {
        let name = name.as_ref();
        let stat = port::stat_at(self.fd(), name).map_err(self.err("stat", name))?;
        Ok(stat.map(|s| s.st_size as u64))
    }

    /// When a file last changed or got its name (ctime), nanoseconds since 1970; `None` when there is none.
    pub fn changed_at_ns(&self, name: impl AsRef<OsStr>) -> Result<Option<i64>> {
        let name = name.as_ref();
        let stat = port::stat_at(self.fd(), name).map_err(self.err("stat", name))?;
        Ok(stat.map(|s| s.st_ctime * 1_000_000_000 + s.st_ctime_nsec))
    }

    /// Writes a small file durably under `name`, replacing what is there.
    pub fn write_durably(&self, tmp: &Arc<Dir>, name: impl AsRef<OsStr>, bytes: &[u8]) -> Result<()> {
        let mut temp = Temp::create(tmp)?;
        temp.write(bytes)?;
        temp.publish(self, name.as_ref(), true)?;
        self.confirm()
    }

    /// What was synced until now is on the disk, or this says why not.
    pub fn confirm(&self) -> Result<()> {
        port::confirm(self.fd()).map_err(|e| StoreError::io("sync", &self.path, e))
    }
}

/// Reads a file from its start to its end.
pub(super) fn read_whole(file: &File) -> io::Result<Vec<u8>> {
    let size = port::stat(file.as_fd())?.st_size as usize;
    let mut bytes = vec![0; size + 1];
    let mut len = 0;
    loop {
        len += port::read_at(file, &mut bytes[len..], len as u64)?;
        if len < bytes.len() {
            bytes.truncate(len);
            return Ok(bytes);
        }
        bytes.resize(len * 2, 0);
    }
}

static TEMP_NAMES: AtomicU64 = AtomicU64::new(0);

/// A name for something temporary in `tmp/`; leftovers are swept before the first is used.
pub(super) fn temp_name() -> OsString {
    format!("{:x}-{:x}", std::process::id(), TEMP_NAMES.fetch_add(1, Ordering::Relaxed)).into()
}

/// A file being written aside in `tmp/`.
pub(super) struct Temp {
    dir: Arc<Dir>,
    name: OsString,
    file: File,
    placed: bool,
    /// Bytes written since the disk was last told to begin.
    unsent: u64,
}

impl Temp {
    pub fn create(dir: &Arc<Dir>) -> Result<Temp> {
        let name = temp_name();
        let file = port::create(dir.fd(), &name).map_err(dir.err("create", &name))?;
        Ok(Temp { dir: dir.clone(), name, file, placed: false, unsent: 0 })
    }

    pub fn file(&self) -> &File {
        &self.file
    }

    pub fn path(&self) -> PathBuf {
        self.dir.path.join(&self.name)
    }

    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.unsent += bytes.len() as u64;
        port::write_all(&self.file, bytes).map_err(self.dir.err("write", &self.name))
    }

    /// Has the disk begin with what was written, once that is `enough` bytes: there is less to wait for at the end.
    pub fn write_back(&mut self, enough: u64) {
        if self.unsent >= enough {
            self.unsent = 0;
            port::start_writing(&self.file);
        }
    }

    /// Makes it read-only, syncs it, renames it to `name` in `to`, and syncs that directory; a
    /// file that need not be durable is only renamed.
    pub fn publish(self, to: &Dir, name: &OsStr, durable: bool) -> Result<()> {
        port::chmod(self.file.as_fd(), 0o400).map_err(self.dir.err("chmod", &self.name))?;
        self.place(to, name, durable)
    }

    /// The same of a file that will be written to.
    pub fn place(mut self, to: &Dir, name: &OsStr, durable: bool) -> Result<()> {
        if durable {
            port::sync_data(&self.file).map_err(self.dir.err("sync", &self.name))?;
        }
        port::rename(self.dir.fd(), &self.name, to.fd(), name).map_err(to.err("rename to", name))?;
        self.placed = true;
        if durable { to.sync() } else { Ok(()) }
    }
}

/// A file for what is to be stored, without a name that lasts.
pub struct Scratch(Temp);

impl Scratch {
    /// Appends.
    pub fn write(&mut self, bytes: &[u8]) -> Result<()> {
        self.0.write(bytes)
    }

    /// It, open for reading and writing.
    pub fn file(&self) -> &File {
        self.0.file()
    }
}

impl super::Store {
    /// Makes one; it goes when it is dropped.
    pub fn scratch(&self) -> Result<Scratch> {
        self.writable()?;
        Temp::create(&self.tmp).map(Scratch)
    }
}

impl Drop for Temp {
    fn drop(&mut self) {
        if !self.placed {
            // Best effort: what stays is swept when the store is opened next.
            let _ = port::unlink(self.dir.fd(), &self.name);
        }
    }
}
