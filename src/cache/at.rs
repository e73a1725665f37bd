//! Descriptor-relative file access: how this room touches trees that others made.
//!
//! Purpose: every name below a tree's top is followed one component at a time, relative to an open
//! directory and never through a symlink, so that no tree can lead out of itself.
//! It is a door as the store's port is, and counts its calls there, so that tests can have them fail.
//! Must not know: entries, blobs, what the files mean.

use std::ffi::{CString, OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use nix::fcntl::{AtFlags, OFlag, openat, readlinkat};
use nix::sys::stat::{
    FchmodatFlags, Mode, UtimensatFlags, fchmodat, fstat, fstatat, futimens, mkdirat, utimensat,
};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, UnlinkatFlags, fchownat, linkat, symlinkat, unlinkat};

use crate::store::port::step;

/// Opens a directory that can only be passed through, not listed.
const PASS: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

/// Opens the directory `name` of `dir` to pass through it.
pub(super) fn pass(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<OwnedFd> {
    step()?;
    Ok(openat(dir, name, PASS, Mode::empty())?)
}

/// Opens a file for reading. Never waits for a writer of a fifo, never follows a symlink.
pub(super) fn open_read(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<File> {
    step()?;
    let flags = OFlag::O_RDONLY | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC | OFlag::O_NOCTTY;
    Ok(File::from(openat(dir, name, flags, Mode::empty())?))
}

/// Creates a new file for writing and reading; an existing name is an error.
pub(super) fn create_new(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<File> {
    step()?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    Ok(File::from(openat(dir, name, flags, Mode::from_bits_truncate(mode))?))
}

/// Creates a directory.
pub(super) fn mkdir(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    step()?;
    Ok(mkdirat(dir, name, Mode::from_bits_truncate(mode))?)
}

/// The names in a directory, without `.` and `..`, in no order.
pub(super) fn names(dir: BorrowedFd<'_>) -> io::Result<Vec<Vec<u8>>> {
    step()?;
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut open = nix::dir::Dir::from_fd(openat(dir, ".", flags, Mode::empty())?)?;
    let mut names = Vec::new();
    for entry in open.iter() {
        let entry = entry?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(name.to_vec());
        }
    }
    Ok(names)
}

/// What `name` itself is (a symlink is not followed).
pub(super) fn stat(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<libc::stat> {
    step()?;
    Ok(fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// Like [`stat`], `None` when there is no such name.
pub(super) fn stat_if_any(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Option<libc::stat>> {
    match stat(dir, name) {
        Ok(s) => Ok(Some(s)),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(e) => Err(e),
    }
}

/// What an open file is.
pub(super) fn stat_of(file: impl AsFd) -> io::Result<libc::stat> {
    step()?;
    Ok(fstat(file)?)
}

/// Sets permission bits of a name that is no symlink.
pub(super) fn chmod(dir: BorrowedFd<'_>, name: &[u8], mode: u32) -> io::Result<()> {
    step()?;
    Ok(fchmodat(dir, name, Mode::from_bits_truncate(mode), FchmodatFlags::NoFollowSymlink).or_else(|e| {
        match e {
            // The C library without fchmodat2 refuses the flag; what stands here was made by us.
            nix::errno::Errno::EOPNOTSUPP => {
                fchmodat(dir, name, Mode::from_bits_truncate(mode), FchmodatFlags::FollowSymlink)
            }
            e => Err(e),
        }
    })?)
}

/// Sets access and modification time of the name itself.
pub(super) fn set_mtime(dir: BorrowedFd<'_>, name: &[u8], mtime_ns: i64) -> io::Result<()> {
    step()?;
    let t = time_spec(mtime_ns);
    Ok(utimensat(dir, name, &t, &t, UtimensatFlags::NoFollowSymlink)?)
}

/// The same, of an open file.
pub(super) fn set_mtime_of(file: &File, mtime_ns: i64) -> io::Result<()> {
    step()?;
    let t = time_spec(mtime_ns);
    Ok(futimens(file, &t, &t)?)
}

fn time_spec(ns: i64) -> TimeSpec {
    TimeSpec::new(ns.div_euclid(1_000_000_000), ns.rem_euclid(1_000_000_000))
}

/// Modification time, nanoseconds since 1970.
pub(super) fn mtime_ns(stat: &libc::stat) -> i64 {
    stat.st_mtime.saturating_mul(1_000_000_000).saturating_add(stat.st_mtime_nsec)
}

/// The type bits.
pub(super) fn kind(stat: &libc::stat) -> libc::mode_t {
    stat.st_mode & libc::S_IFMT
}

/// Where a symlink leads.
pub(super) fn read_link(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<u8>> {
    step()?;
    Ok(readlinkat(dir, name)?.into_vec())
}

/// Makes a symlink.
pub(super) fn symlink(target: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    step()?;
    Ok(symlinkat(OsStr::from_bytes(target), dir, name)?)
}

/// Makes a hard link of a name; a symlink is not followed.
pub(super) fn link(from: BorrowedFd<'_>, old: &[u8], dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    step()?;
    Ok(linkat(from, old, dir, name, AtFlags::empty())?)
}

/// Unlinks what is no directory.
pub(super) fn unlink(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<()> {
    step()?;
    Ok(unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?)
}

/// Sets the owners of a name itself.
pub(super) fn chown(dir: BorrowedFd<'_>, name: &[u8], uid: Option<Uid>, gid: Option<Gid>) -> io::Result<()> {
    step()?;
    Ok(fchownat(dir, name, uid, gid, AtFlags::AT_SYMLINK_NOFOLLOW)?)
}

/// A path for calls that know no descriptors: `name` in the open directory `dir`.
pub(super) fn proc_path(dir: BorrowedFd<'_>, name: &[u8]) -> PathBuf {
    let mut path = format!("/proc/self/fd/{}/", dir.as_raw_fd()).into_bytes();
    path.extend_from_slice(name);
    PathBuf::from(OsString::from_vec(path))
}

/// Whether a name has no attributes at all, where one call tells (Linux 6.13).
fn has_no_xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> bool {
    /// The same number on all processors; the libc crate does not have it everywhere.
    const LISTXATTRAT: libc::c_long = 465;
    let Ok(name) = CString::new(name) else { return false };
    let (dir, flags, nothing) = (dir.as_raw_fd(), libc::AT_SYMLINK_NOFOLLOW, std::ptr::null_mut::<u8>());
    // SAFETY: the name lives through the call, which with no room writes nothing.
    unsafe { libc::syscall(LISTXATTRAT, dir, name.as_ptr(), flags, nothing, 0usize) == 0 }
}

/// The `user.*` attributes that are not outfs's own, sorted by name.
pub(super) fn user_xattrs(dir: BorrowedFd<'_>, name: &[u8]) -> io::Result<Vec<(Vec<u8>, Vec<u8>)>> {
    step()?;
    if has_no_xattrs(dir, name) {
        return Ok(Vec::new());
    }
    let path = proc_path(dir, name);
    let listed = match xattr::list(&path) {
        Ok(l) => l,
        Err(e) if unsupported(&e) => return Ok(Vec::new()),
        Err(e) => return Err(e),
    };
    let mut found = Vec::new();
    for attr in listed.filter(|n| is_kept(n)) {
        // Gone meanwhile, or not readable by us: there is nothing to keep.
        match xattr::get(&path, &attr) {
            Ok(Some(value)) => found.push((attr.into_vec(), value)),
            Ok(None) => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => {}
            Err(e) => return Err(e),
        }
    }
    found.sort();
    Ok(found)
}

fn is_kept(name: &OsStr) -> bool {
    name.as_bytes().starts_with(b"user.") && !name.as_bytes().starts_with(b"user.outfs.")
}

fn unsupported(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOTSUP | libc::ENOSYS))
}

/// Sets `user.*` attributes where the file system has them.
pub(super) fn set_xattrs<'a>(
    dir: BorrowedFd<'_>,
    name: &[u8],
    attrs: impl Iterator<Item = (&'a [u8], &'a [u8])>,
) -> io::Result<()> {
    step()?;
    for (attr, value) in attrs.filter(|(n, _)| is_kept(OsStr::from_bytes(n))) {
        match xattr::set(proc_path(dir, name), OsStr::from_bytes(attr), value) {
            Err(e) if !unsupported(&e) => return Err(e),
            _ => {}
        }
    }
    Ok(())
}

/// Bytes of a path as people read them.
pub(super) fn show(path: &[u8]) -> String {
    String::from_utf8_lossy(path).into_owned()
}

/// Joins two parts of a `/`-separated path, either of which may be empty.
pub(super) fn join(parent: &[u8], name: &[u8]) -> Vec<u8> {
    let mut path = parent.to_vec();
    if !path.is_empty() && !name.is_empty() {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    path
}
