//! The port by path: for the index's files, which SQLite knows by path, for what is above a store, and for what is only counted.
//!
//! Invariants: as in the port itself. Must not know: what the files mean.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};

use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode};

use super::{read_at, stat_at, step, uninterrupted};

/// Opens a file for reading.
pub(crate) fn open(path: &Path) -> io::Result<File> {
    step()?;
    File::open(path)
}

/// Opens an open file (or what an O_PATH descriptor names) anew for reading: a description of its own.
pub(crate) fn reopen(file: BorrowedFd<'_>) -> io::Result<File> {
    open(Path::new(&format!("/proc/self/fd/{}", file.as_raw_fd())))
}

/// Opens a directory.
pub(crate) fn open_dir(path: &Path) -> io::Result<OwnedFd> {
    step()?;
    Ok(nix::fcntl::open(path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())?)
}

/// Opens a file that is there for writing.
pub(crate) fn open_to_write(path: &Path) -> io::Result<File> {
    step()?;
    fs::OpenOptions::new().write(true).open(path)
}

/// Makes a file, or empties the one that is there; mode 0600.
pub(crate) fn create(path: &Path) -> io::Result<File> {
    step()?;
    fs::OpenOptions::new().write(true).create(true).truncate(true).mode(0o600).open(path)
}

/// Makes a directory with this mode.
pub(crate) fn make_dir(path: &Path, mode: u32) -> io::Result<()> {
    step()?;
    fs::DirBuilder::new().mode(mode).create(path)
}

/// Makes a directory and those above it.
pub(crate) fn make_dirs(path: &Path) -> io::Result<()> {
    step()?;
    fs::create_dir_all(path)
}

/// Sets a file's mode, by its path: whoever opens and closes one of SQLite's files lets go of SQLite's locks.
pub(crate) fn chmod(path: &Path, mode: u32) -> io::Result<()> {
    step()?;
    fs::set_permissions(path, fs::Permissions::from_mode(mode))
}

/// Removes a file.
pub(crate) fn remove_file(path: &Path) -> io::Result<()> {
    step()?;
    fs::remove_file(path)
}

/// Removes an empty directory.
pub(crate) fn remove_dir(path: &Path) -> io::Result<()> {
    step()?;
    fs::remove_dir(path)
}

/// Removes a directory with all that is in it.
pub(crate) fn remove_tree(path: &Path) -> io::Result<()> {
    step()?;
    fs::remove_dir_all(path)
}

/// Renames, replacing what is there.
pub(crate) fn rename(from: &Path, to: &Path) -> io::Result<()> {
    step()?;
    fs::rename(from, to)
}

/// The path without symlinks.
pub(crate) fn real(path: &Path) -> io::Result<PathBuf> {
    step()?;
    path.canonicalize()
}

/// Attributes of a name; `None` when there is none.
pub(crate) fn stat(path: &Path) -> io::Result<Option<FileStat>> {
    step()?;
    match nix::sys::stat::lstat(path) {
        Ok(stat) => Ok(Some(stat)),
        Err(nix::errno::Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Device and number of what a path leads to; `None` when there is nothing.
pub(crate) fn which(path: &Path) -> io::Result<Option<(u64, u64)>> {
    step()?;
    match nix::sys::stat::stat(path) {
        Ok(stat) => Ok(Some((stat.st_dev, stat.st_ino))),
        Err(nix::errno::Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Calls `each` with every name in a directory and its attributes.
pub(crate) fn each_stat(path: &Path, each: &mut dyn FnMut(&OsStr, &FileStat)) -> io::Result<()> {
    let dir = open_dir(path)?;
    for entry in nix::dir::Dir::from_fd(dir.try_clone()?)?.iter() {
        step()?;
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "."
            && name != ".."
            && let Some(stat) = stat_at(dir.as_fd(), name)?
        {
            each(name, &stat);
        }
    }
    Ok(())
}

/// Bytes available on the file system of a directory.
pub(crate) fn available(path: &Path) -> io::Result<u64> {
    step()?;
    let space = nix::sys::statvfs::statvfs(path)?;
    Ok(space.blocks_available() * space.fragment_size())
}

/// Has blocks for `len` bytes given to a file.
pub(crate) fn reserve(file: &File, len: u64) -> io::Result<()> {
    uninterrupted(|| Ok(nix::fcntl::posix_fallocate(file, 0, len as i64)?))
}

/// Has `len` bytes' blocks given to a file from `at` on, which stays as long as it is: who extends it later finds them.
pub(crate) fn reserve_behind(file: &File, at: u64, len: u64) -> io::Result<()> {
    step()?;
    let keep = nix::fcntl::FallocateFlags::FALLOC_FL_KEEP_SIZE;
    uninterrupted(|| Ok(nix::fcntl::fallocate(file, keep, at as i64, len as i64)?))
}

/// All of a file's content; `None` when there is none.
pub(crate) fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let file = match open(path) {
        Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
        file => file?,
    };
    let (mut bytes, mut len) = (vec![0; 4096], 0);
    loop {
        len += read_at(&file, &mut bytes[len..], len as u64)?;
        if len < bytes.len() {
            bytes.truncate(len);
            return Ok(Some(bytes));
        }
        bytes.resize(len * 2, 0);
    }
}
