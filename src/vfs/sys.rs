//! Calls of the file system below drafts: the views' door to it.
//!
//! It counts its calls at the store's port, so that tests can have them fail. Names are single components and symlinks are not
//! followed; what neither std nor nix offer by a descriptor goes through its name in /proc, so that it acts on exactly
//! one inode, whatever its names are. Must not know: views, nodes, what the files mean.

use std::ffi::{CString, OsStr};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use nix::dir::{Dir, Entry};
use nix::errno::Errno;
use nix::fcntl::{self, AT_FDCWD, AtFlags, FcntlArg};
pub use nix::fcntl::{FallocateFlags, OFlag, RenameFlags};
pub use nix::sys::stat::SFlag;
use nix::sys::stat::{self, FchmodatFlags, Mode};
use nix::unistd::{self, Gid, Uid, UnlinkatFlags, Whence};

use super::types::SetTime;
use crate::store::port;

type Result<T> = std::result::Result<T, Errno>;

/// The descriptor names something, and opens nothing.
const HANDLE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

fn errno(e: io::Error) -> Errno {
    e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)
}

/// A call is about to be made that can fail.
fn step() -> Result<()> {
    port::step().map_err(errno)
}

/// The same for one that signals can interrupt, and that is made again then.
fn uninterrupted<T>(mut call: impl FnMut() -> Result<T>) -> Result<T> {
    port::uninterrupted(|| Ok(call()?)).map_err(errno)
}

/// A descriptor's name in /proc: the way to use an O_PATH descriptor where a path is wanted.
fn proc_path(fd: impl AsFd) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd()))
}

fn mode_of(bits: u32) -> Mode {
    Mode::from_bits_truncate(bits & 0o7777)
}

/// Opens whatever `name` is as a mere handle.
pub fn open_handle(dir: impl AsFd, name: &OsStr) -> Result<OwnedFd> {
    step()?;
    fcntl::openat(dir, name, HANDLE, Mode::empty())
}

/// Opens what stands at a name, without following it or waiting for it.
pub fn open_at(dir: impl AsFd, name: &OsStr, flags: OFlag) -> Result<OwnedFd> {
    step()?;
    let flags = flags | OFlag::O_NOFOLLOW | OFlag::O_NONBLOCK | OFlag::O_CLOEXEC;
    fcntl::openat(dir, name, flags, Mode::empty())
}

/// Opens anew what a descriptor stands for.
pub fn reopen(fd: impl AsFd, flags: OFlag) -> Result<OwnedFd> {
    step()?;
    fcntl::open(&proc_path(fd), flags | OFlag::O_CLOEXEC, Mode::empty())
}

/// Makes a regular file where nothing stands.
pub fn create(dir: impl AsFd, name: &OsStr, flags: OFlag, mode: u32) -> Result<OwnedFd> {
    step()?;
    let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    fcntl::openat(dir, name, flags, mode_of(mode))
}

/// Makes a directory.
pub fn mkdir(dir: impl AsFd, name: &OsStr, mode: u32) -> Result<()> {
    step()?;
    stat::mkdirat(dir, name, mode_of(mode))
}

/// Makes a symlink.
pub fn symlink(target: &Path, dir: impl AsFd, name: &OsStr) -> Result<()> {
    step()?;
    unistd::symlinkat(target, dir, name)
}

/// Makes a file, fifo, socket or device.
pub fn mknod(dir: impl AsFd, name: &OsStr, kind: SFlag, mode: u32, rdev: u32) -> Result<()> {
    step()?;
    stat::mknodat(dir, name, kind, mode_of(mode), rdev.into())
}

/// Makes another name of what a descriptor stands for.
pub fn link(fd: impl AsFd, dir: impl AsFd, name: &OsStr) -> Result<()> {
    step()?;
    unistd::linkat(AT_FDCWD, &proc_path(fd), dir, name, AtFlags::AT_SYMLINK_FOLLOW)
}

/// Removes what is no directory.
pub fn unlink(dir: impl AsFd, name: &OsStr) -> Result<()> {
    step()?;
    unistd::unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)
}

/// Removes an empty directory.
pub fn rmdir(dir: impl AsFd, name: &OsStr) -> Result<()> {
    step()?;
    unistd::unlinkat(dir, name, UnlinkatFlags::RemoveDir)
}

/// Renames, as renameat2(2) does.
pub fn rename(from: impl AsFd, name: &OsStr, to: impl AsFd, new: &OsStr, flags: RenameFlags) -> Result<()> {
    step()?;
    fcntl::renameat2(from, name, to, new, flags)
}

/// Where a symlink leads.
pub fn read_link(fd: impl AsFd) -> Result<Vec<u8>> {
    step()?;
    Ok(fcntl::readlinkat(fd, "")?.as_bytes().to_vec())
}

/// Calls `each` with every name in a directory but `.` and `..`, until it says that this is enough.
pub fn list(dir: impl AsFd, each: &mut dyn FnMut(&Entry) -> bool) -> Result<()> {
    let own = open_at(dir, OsStr::new("."), OFlag::O_RDONLY | OFlag::O_DIRECTORY)?;
    step()?;
    for entry in Dir::from_fd(own)?.iter() {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") && !each(&entry) {
            break;
        }
    }
    Ok(())
}

/// What a descriptor stands for.
pub fn stat(fd: impl AsFd) -> Result<libc::stat> {
    step()?;
    stat::fstat(fd)
}

/// What stands at a name.
pub fn stat_at(dir: impl AsFd, name: &OsStr) -> Result<libc::stat> {
    step()?;
    stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)
}

/// Sets the mode of an open file, or of what a handle stands for (not of a symlink).
pub fn set_mode(fd: impl AsFd, mode: u32) -> Result<()> {
    step()?;
    match stat::fchmod(fd.as_fd(), mode_of(mode)) {
        Err(Errno::EBADF) => {
            stat::fchmodat(AT_FDCWD, &proc_path(fd), mode_of(mode), FchmodatFlags::FollowSymlink)
        }
        done => done,
    }
}

/// Sets the owners of what a descriptor stands for; `None` stays.
pub fn set_owner(fd: impl AsFd, uid: Option<u32>, gid: Option<u32>) -> Result<()> {
    step()?;
    let (uid, gid) = (uid.map(Uid::from_raw), gid.map(Gid::from_raw));
    unistd::fchownat(fd, "", uid, gid, AtFlags::AT_EMPTY_PATH)
}

/// Sets the length of the file that a handle stands for.
pub fn truncate(fd: impl AsFd, size: i64) -> Result<()> {
    uninterrupted(|| unistd::truncate(&proc_path(fd.as_fd()), size))
}

/// The same for one that is open for writing.
pub fn truncate_open(fd: impl AsFd, size: i64) -> Result<()> {
    uninterrupted(|| unistd::ftruncate(fd.as_fd(), size))
}

/// Reads all of `buf` from `offset` on, or up to the end.
pub fn read(fd: impl AsFd, offset: u64, buf: &mut [u8]) -> Result<usize> {
    port::read_at(fd, buf, offset).map_err(errno)
}

/// Writes as much as the file takes: all, or an error for what comes first.
pub fn write(fd: impl AsFd, offset: u64, data: &[u8]) -> Result<usize> {
    let mut done = 0;
    while done < data.len() {
        match port::write_once(fd.as_fd(), &data[done..], offset + done as u64) {
            Ok(n) => done += n,
            Err(e) if done == 0 => return Err(errno(e)),
            Err(_) => break,
        }
    }
    Ok(done)
}

/// Whether each write through this descriptor waits for the disk.
pub fn syncs_each_write(fd: impl AsFd) -> bool {
    fcntl::fcntl(fd, FcntlArg::F_GETFL)
        .is_ok_and(|flags| OFlag::from_bits_retain(flags).contains(OFlag::O_DSYNC))
}

/// Waits until what was made in a directory is on the disk.
pub fn sync_dir(dir: BorrowedFd<'_>) -> Result<()> {
    port::sync_dir(dir).map_err(errno)
}

/// fallocate(2).
pub fn allocate(fd: impl AsFd, mode: FallocateFlags, offset: u64, len: u64) -> Result<()> {
    uninterrupted(|| fcntl::fallocate(fd.as_fd(), mode, offset as i64, len as i64))
}

/// lseek(2), to data or to a hole.
pub fn seek(fd: impl AsFd, offset: i64, data: bool) -> Result<i64> {
    step()?;
    unistd::lseek64(fd, offset, if data { Whence::SeekData } else { Whence::SeekHole })
}

/// copy_file_range(2): as much as it does at once.
pub fn copy_range(from: impl AsFd, at: u64, to: impl AsFd, into: u64, len: usize) -> Result<usize> {
    uninterrupted(|| {
        let (mut at, mut into) = (at as i64, into as i64);
        fcntl::copy_file_range(from.as_fd(), Some(&mut at), to.as_fd(), Some(&mut into), len)
    })
}

fn c(bytes: &OsStr) -> Result<CString> {
    CString::new(bytes.as_bytes()).map_err(|_| Errno::EINVAL)
}

/// Calls `read` with a buffer that grows once, to the largest that Linux fills.
fn read_all(read: impl Fn(&mut [u8]) -> isize) -> Result<Vec<u8>> {
    let mut buf = vec![0u8; 1024];
    loop {
        match Errno::result(read(&mut buf)) {
            Ok(n) => {
                buf.truncate(n as usize);
                return Ok(buf);
            }
            Err(Errno::ERANGE) if buf.len() < 65536 => buf.resize(65536, 0),
            Err(e) => return Err(e),
        }
    }
}

/// The value of an extended attribute.
pub fn get_xattr(fd: impl AsFd, name: &OsStr) -> Result<Vec<u8>> {
    step()?;
    let (path, name) = (c(proc_path(fd).as_os_str())?, c(name)?);
    // SAFETY: both strings end in NUL and the buffer has the length given.
    read_all(|buf| unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    })
}

/// The names of all extended attributes, each followed by NUL.
pub fn list_xattr(fd: impl AsFd) -> Result<Vec<u8>> {
    step()?;
    let path = c(proc_path(fd).as_os_str())?;
    // SAFETY: the string ends in NUL and the buffer has the length given.
    read_all(|buf| unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })
}

/// Sets an extended attribute; `flags` as in setxattr(2).
pub fn set_xattr(fd: impl AsFd, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
    step()?;
    let (path, name) = (c(proc_path(fd).as_os_str())?, c(name)?);
    // SAFETY: both strings end in NUL and the value has the length given.
    let r =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(r).map(drop)
}

/// Removes an extended attribute.
pub fn remove_xattr(fd: impl AsFd, name: &OsStr) -> Result<()> {
    step()?;
    let (path, name) = (c(proc_path(fd).as_os_str())?, c(name)?);
    // SAFETY: both strings end in NUL.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// Sets access and modification time; `None` stays.
pub fn set_times(fd: impl AsFd, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    step()?;
    let spec = |t: Option<SetTime>| match t {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(SetTime::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(SetTime::At(t)) => libc::timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
    };
    let (path, times) = (c(proc_path(fd).as_os_str())?, [spec(atime), spec(mtime)]);
    // SAFETY: the string ends in NUL and there are two time specs.
    Errno::result(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }).map(drop)
}

/// Clears the set-id bits of an open regular file, as a write without privileges does.
pub fn drop_setid(fd: impl AsFd) -> Result<()> {
    let mode = stat(fd.as_fd())?.st_mode;
    let kept = match mode & 0o6010 {
        // Set-group-id without the execute bit is no set-id bit.
        bits if bits & 0o2010 == 0o2010 => mode & 0o1777,
        _ => mode & 0o3777,
    };
    if kept != mode & 0o7777 {
        step()?;
        stat::fchmod(fd, mode_of(kept))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let f = std::fs::File::create_new(dir.path().join("f")).unwrap();
        let name = OsStr::new("user.t");
        let long = vec![7u8; 3000];
        set_xattr(&f, name, &long, libc::XATTR_CREATE).unwrap();
        assert_eq!(set_xattr(&f, name, b"", libc::XATTR_CREATE), Err(Errno::EEXIST));
        assert_eq!(get_xattr(&f, name).unwrap(), long);
        assert_eq!(list_xattr(&f).unwrap(), b"user.t\0");
        remove_xattr(&f, name).unwrap();
        assert_eq!(get_xattr(&f, name), Err(Errno::ENODATA));
    }
}
