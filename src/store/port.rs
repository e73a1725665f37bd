//! The door to the file system: one small function per call.
//!
//! Purpose: every call of the store, of the index beside SQLite's own, and of the cache, of views and of the daemon's records where
//! they look at the store or at drafts, that can fail on a disk passes here (`tests/doors.rs` reads the source), so that tests can make
//! the Nth one fail or do less than it is asked for ([`Fault`]), can make a
//! part of a file unreadable ([`BadSpot`]) and can leave out the waiting for the disk ([`skip_syncs`]). All are compiled in
//! always and cost one relaxed load while unused. Invariants: names are single components relative to a directory's
//! descriptor and symlinks are never followed; `paths.rs` has what is known by its path. Must not know: what the files mean.

mod fault;
pub(crate) mod paths;

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering::Relaxed;

use nix::dir::Type;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, PosixFadviseAdvice, RenameFlags, posix_fadvise};
use nix::sys::stat::{FileStat, Mode, futimens};
use nix::sys::time::TimeSpec;
use nix::sys::uio::{pread, pwrite};
use nix::unistd::{UnlinkatFlags, Whence, lseek64};
use xattr::FileExt as _;

use super::Space;
pub use fault::{BadSpot, Fault, skip_syncs};
use fault::{NO_SYNC, look_for_spots, step_of_sync, step_of_transfer};
pub(crate) use fault::{step, uninterrupted};

const SAFE: OFlag = OFlag::O_CLOEXEC.union(OFlag::O_NOFOLLOW).union(OFlag::O_NOCTTY);

/// Opens a directory below `dir`.
pub(crate) fn open_dir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    step()?;
    Ok(nix::fcntl::openat(dir, name, OFlag::O_RDONLY | OFlag::O_DIRECTORY | SAFE, Mode::empty())?)
}

/// Opens whatever `name` is as a mere handle (O_PATH).
pub(crate) fn open_path(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<OwnedFd> {
    step()?;
    Ok(nix::fcntl::openat(dir, name, OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_NOFOLLOW, Mode::empty())?)
}

/// Opens a file for reading.
pub(crate) fn open_read(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    step()?;
    // O_NONBLOCK: a fifo that somebody put there must not make the open wait.
    let flags = OFlag::O_RDONLY | OFlag::O_NONBLOCK | SAFE;
    Ok(nix::fcntl::openat(dir, name, flags, Mode::empty())?.into())
}

/// Opens a file for reading and appending, creating it (mode 0600) when missing.
pub(crate) fn open_append(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    step()?;
    let flags = OFlag::O_RDWR | OFlag::O_APPEND | OFlag::O_CREAT | SAFE;
    Ok(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?.into())
}

/// Opens a file for reading and writing in place, creating it (mode 0600) when missing.
pub(crate) fn open_write(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    step()?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | SAFE;
    Ok(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?.into())
}

/// Opens a file that must exist for reading and writing in place.
pub(crate) fn open_update(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    step()?;
    Ok(nix::fcntl::openat(dir, name, OFlag::O_RDWR | OFlag::O_NONBLOCK | SAFE, Mode::empty())?.into())
}

/// Creates a file that must not exist, mode 0600, for reading and writing.
pub(crate) fn create(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<File> {
    step()?;
    let flags = OFlag::O_RDWR | OFlag::O_CREAT | OFlag::O_EXCL | SAFE;
    Ok(nix::fcntl::openat(dir, name, flags, Mode::from_bits_truncate(0o600))?.into())
}

/// Makes a directory.
pub(crate) fn mkdir(dir: BorrowedFd<'_>, name: &OsStr, mode: u32) -> io::Result<()> {
    step()?;
    Ok(nix::sys::stat::mkdirat(dir, name, Mode::from_bits_truncate(mode))?)
}

/// Renames, replacing what is there.
pub(crate) fn rename(from: BorrowedFd<'_>, old: &OsStr, to: BorrowedFd<'_>, new: &OsStr) -> io::Result<()> {
    step()?;
    Ok(nix::fcntl::renameat(from, old, to, new)?)
}

/// Renames onto a free name.
pub(crate) fn rename_new(
    from: BorrowedFd<'_>,
    old: &OsStr,
    to: BorrowedFd<'_>,
    new: &OsStr,
) -> io::Result<()> {
    step()?;
    match nix::fcntl::renameat2(from, old, to, new, RenameFlags::RENAME_NOREPLACE) {
        // Not every file system knows the flag. Nobody but us makes names in a store.
        Err(nix::errno::Errno::EINVAL | nix::errno::Errno::ENOSYS) => {}
        other => return Ok(other?),
    }
    if stat_at(to, new)?.is_some() {
        return Err(io::Error::from_raw_os_error(libc::EEXIST));
    }
    rename(from, old, to, new)
}

/// Makes a hard link of an open file. Through /proc, because the direct way needs a capability;
/// that way is tried where there is no /proc.
pub(crate) fn link_file(file: BorrowedFd<'_>, dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    step()?;
    let follow = AtFlags::AT_SYMLINK_FOLLOW;
    match nix::unistd::linkat(nix::fcntl::AT_FDCWD, proc_path(file).as_os_str(), dir, name, follow) {
        Err(nix::errno::Errno::ENOENT) => {}
        other => return Ok(other?),
    }
    Ok(nix::unistd::linkat(file, OsStr::new(""), dir, name, AtFlags::AT_EMPTY_PATH)?)
}

fn proc_path(fd: BorrowedFd<'_>) -> OsString {
    format!("/proc/self/fd/{}", fd.as_raw_fd()).into()
}

/// Unlinks a file.
pub(crate) fn unlink(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    step()?;
    Ok(nix::unistd::unlinkat(dir, name, UnlinkatFlags::NoRemoveDir)?)
}

/// Removes an empty directory.
pub(crate) fn rmdir(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<()> {
    step()?;
    Ok(nix::unistd::unlinkat(dir, name, UnlinkatFlags::RemoveDir)?)
}

/// Appends all of `bytes` at the file's position. An injected fault lets the first half through,
/// as a full disk does.
pub(crate) fn write_all(file: &File, bytes: &[u8]) -> io::Result<()> {
    write_pieces(bytes, |piece, _| nix::unistd::write(file, piece))
}

/// Writes all of `bytes` at `offset`; an injected fault is as in [`write_all`].
pub(crate) fn write_at(file: &File, bytes: &[u8], offset: u64) -> io::Result<()> {
    write_pieces(bytes, |piece, done| pwrite(file, piece, (offset + done as u64) as i64))
}

/// Writes all, in as many pieces as it takes; `write` is told what comes before its piece.
fn write_pieces(bytes: &[u8], write: impl Fn(&[u8], usize) -> nix::Result<usize>) -> io::Result<()> {
    let mut done = 0;
    while done < bytes.len() {
        let rest = &bytes[done..];
        let written = match step_of_transfer(rest.len()) {
            Ok(len) => write(&rest[..len], done).map_err(io::Error::from),
            Err(e) if e.kind() != io::ErrorKind::Interrupted => {
                write(&rest[..rest.len() / 2], done)?;
                return Err(e);
            }
            interrupted => interrupted,
        };
        match written {
            Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
            Ok(n) => done += n,
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            Err(e) => return Err(e),
        }
    }
    Ok(())
}

/// Writes once, all of `bytes` at `offset` or less.
pub(crate) fn write_once(file: impl AsFd, bytes: &[u8], offset: u64) -> io::Result<usize> {
    loop {
        let written = step_of_transfer(bytes.len())
            .and_then(|len| Ok(pwrite(file.as_fd(), &bytes[..len], offset as i64)?));
        match written {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            written => return written,
        }
    }
}

/// Reads once, as much as there is at `offset` or less.
pub(crate) fn read_once(file: impl AsFd, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    look_for_spots(file.as_fd(), offset, buf.len() as u64)?;
    loop {
        let read = step_of_transfer(buf.len())
            .and_then(|len| Ok(pread(file.as_fd(), &mut buf[..len], offset as i64)?));
        match read {
            Err(e) if e.kind() == io::ErrorKind::Interrupted => {}
            read => return read,
        }
    }
}

/// Fills `buf` from `offset`, short only at the end of the file.
pub(crate) fn read_at(file: impl AsFd, buf: &mut [u8], offset: u64) -> io::Result<usize> {
    let mut done = 0;
    while done < buf.len() {
        match read_once(file.as_fd(), &mut buf[done..], offset + done as u64)? {
            0 => break,
            n => done += n,
        }
    }
    Ok(done)
}

/// From where to where a file has data, at `offset` or after it; `None` when there is none. Where a file system has no
/// holes, all of a file is data.
pub(crate) fn next_data(file: &File, offset: u64) -> io::Result<Option<(u64, u64)>> {
    step()?;
    let start = match lseek64(file, offset as i64, Whence::SeekData) {
        Ok(at) => at,
        Err(nix::errno::Errno::ENXIO) => return Ok(None),
        Err(e) => return Err(e.into()),
    };
    let end = lseek64(file, start, Whence::SeekHole)?;
    Ok(Some((start as u64, end as u64)))
}

/// Advice: these bytes will be read soon. No fault is put in, for nothing follows from one.
pub(crate) fn will_read(file: &File, offset: u64, len: u64) {
    let advice = PosixFadviseAdvice::POSIX_FADV_WILLNEED;
    let _ = posix_fadvise(file, offset as i64, len as i64, advice);
}

/// Cuts a file to `len` bytes.
pub(crate) fn truncate(file: &File, len: u64) -> io::Result<()> {
    uninterrupted(|| file.set_len(len))
}

/// Has the disk begin to write what was written to a file; nothing is promised by it.
pub(crate) fn start_writing(file: &File) {
    // SAFETY: the call takes numbers only.
    unsafe { libc::sync_file_range(file.as_raw_fd(), 0, 0, libc::SYNC_FILE_RANGE_WRITE) };
}

/// Waits until a file's content is on the disk. Whatever the error, it is told once: asking again, most of all through a
/// descriptor that was opened since, proves nothing, and nothing that this file holds may be believed.
pub(crate) fn sync_data(file: impl AsFd) -> io::Result<()> {
    step_of_sync(file.as_fd())?;
    if NO_SYNC.load(Relaxed) { Ok(()) } else { Ok(nix::unistd::fdatasync(file)?) }
}

/// Waits until a file's content and all its attributes are on the disk.
pub(crate) fn sync_all(file: BorrowedFd<'_>) -> io::Result<()> {
    step_of_sync(file)?;
    if NO_SYNC.load(Relaxed) { Ok(()) } else { Ok(nix::unistd::fsync(file)?) }
}

/// Waits until a directory's names are on the disk.
pub(crate) fn sync_dir(dir: BorrowedFd<'_>) -> io::Result<()> {
    step_of_sync(dir)?;
    if NO_SYNC.load(Relaxed) { Ok(()) } else { Ok(nix::unistd::fsync(dir)?) }
}

/// Says so if what was synced may be lost. ext4 that could not write its journal notices when something changes next: until then
/// a sync of what was in that part of the journal finds nothing that it could wait for, and says that all is well. So something is
/// changed, the times of a directory: the first time has it noticed, the second time it is told. No other trouble counts, and tests
/// make none: after such an error every change fails.
pub(crate) fn confirm(dir: BorrowedFd<'_>) -> io::Result<()> {
    let lost = |e: &Errno| matches!(e, Errno::EROFS | Errno::EIO | Errno::ESHUTDOWN);
    for _ in 0..2 {
        if let Err(e) = futimens(dir, &TimeSpec::UTIME_NOW, &TimeSpec::UTIME_NOW)
            && lost(&e)
        {
            return Err(e.into());
        }
    }
    Ok(())
}

/// The error of an earlier write-back of the file that this descriptor has not been told of. Waits for nothing: nothing lies
/// behind the end of every file, and for the rest it is not asked.
pub(crate) fn written_so_far(file: BorrowedFd<'_>) -> io::Result<()> {
    step()?;
    let behind = i64::MAX - 4096;
    // SAFETY: the call takes numbers only.
    match unsafe { libc::sync_file_range(file.as_raw_fd(), behind, 1, libc::SYNC_FILE_RANGE_WAIT_BEFORE) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Which file an open one is: its number and when it was made (nanoseconds since 1970; 0 where that is not known).
pub(crate) fn inode(file: BorrowedFd<'_>) -> io::Result<(u64, u64)> {
    step()?;
    // SAFETY: all zeroes is a valid value of this plain structure.
    let mut stat: libc::statx = unsafe { std::mem::zeroed() };
    let wanted = libc::STATX_INO | libc::STATX_BTIME;
    // SAFETY: the path is a literal and the structure lives through the call.
    let done = unsafe { libc::statx(file.as_raw_fd(), c"".as_ptr(), libc::AT_EMPTY_PATH, wanted, &mut stat) };
    if done != 0 {
        return Err(io::Error::last_os_error());
    }
    let born = (stat.stx_btime.tv_sec as u64).wrapping_mul(1_000_000_000) + u64::from(stat.stx_btime.tv_nsec);
    Ok((stat.stx_ino, if stat.stx_mask & libc::STATX_BTIME == 0 { 0 } else { born }))
}

/// Attributes of an open file.
pub(crate) fn stat(file: BorrowedFd<'_>) -> io::Result<FileStat> {
    step()?;
    Ok(nix::sys::stat::fstat(file)?)
}

/// Attributes of a name; `None` when there is none.
pub(crate) fn stat_at(dir: BorrowedFd<'_>, name: &OsStr) -> io::Result<Option<FileStat>> {
    step()?;
    match nix::sys::stat::fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW) {
        Ok(s) => Ok(Some(s)),
        Err(nix::errno::Errno::ENOENT) => Ok(None),
        Err(e) => Err(e.into()),
    }
}

/// Changes the permission bits of an open file.
pub(crate) fn chmod(file: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    step()?;
    Ok(nix::sys::stat::fchmod(file, Mode::from_bits_truncate(mode))?)
}

/// Changes the permission bits behind a mere handle (O_PATH).
pub(crate) fn chmod_path(handle: BorrowedFd<'_>, mode: u32) -> io::Result<()> {
    step()?;
    let path = proc_path(handle);
    let flags = nix::sys::stat::FchmodatFlags::FollowSymlink;
    Ok(nix::sys::stat::fchmodat(
        nix::fcntl::AT_FDCWD,
        path.as_os_str(),
        Mode::from_bits_truncate(mode),
        flags,
    )?)
}

/// Takes all extended attributes of a file away that can be taken away.
pub(crate) fn drop_xattrs(file: &File) -> io::Result<()> {
    step()?;
    for attribute in file.list_xattr()? {
        let _ = file.remove_xattr(attribute);
    }
    Ok(())
}

/// Takes the lock of a file (flock) for as long as it is open: alone or with others. False when somebody else has it.
pub(crate) fn try_lock(file: &File, shared: bool) -> io::Result<bool> {
    step()?;
    match if shared { file.try_lock_shared() } else { file.try_lock() } {
        Ok(()) => Ok(true),
        Err(std::fs::TryLockError::WouldBlock) => Ok(false),
        Err(std::fs::TryLockError::Error(e)) => Err(e),
    }
}

/// Gives a file to this process's user.
pub(crate) fn chown_to_us(file: &File) -> io::Result<()> {
    step()?;
    Ok(nix::unistd::fchown(file, Some(nix::unistd::geteuid()), Some(nix::unistd::getegid()))?)
}

mod ficlone {
    nix::ioctl_write_int!(clone_whole, 0x94, 9);
}

/// Makes `to` share all of `from`'s blocks (FICLONE).
pub(crate) fn reflink(from: &File, to: &File) -> io::Result<()> {
    step()?;
    let from = from.as_raw_fd() as nix::sys::ioctl::ioctl_param_type;
    // SAFETY: FICLONE takes two descriptors as integers, both open for the call, and no pointer.
    unsafe { ficlone::clone_whole(to.as_raw_fd(), from) }?;
    Ok(())
}

/// Calls `each` for every name in a directory but `.` and `..`; stops at its first error.
pub(crate) fn list(
    dir: BorrowedFd<'_>,
    each: &mut dyn FnMut(&OsStr, Option<Type>) -> io::Result<()>,
) -> io::Result<()> {
    // A description of its own: the position in a directory belongs to the open description.
    let own = open_dir(dir, OsStr::new("."))?;
    let mut names = nix::dir::Dir::from_fd(own)?;
    for entry in names.iter() {
        let entry = entry?;
        let name = OsStr::from_bytes(entry.file_name().to_bytes());
        if name != "." && name != ".." {
            each(name, entry.file_type())?;
        }
    }
    Ok(())
}

/// The file system's room, and whether it is mounted read-only.
pub(crate) fn space(dir: BorrowedFd<'_>) -> io::Result<(Space, bool)> {
    step()?;
    let s = nix::sys::statvfs::fstatvfs(dir.as_fd())?;
    let unit = s.fragment_size();
    let read_only = s.flags().contains(nix::sys::statvfs::FsFlags::ST_RDONLY);
    // Where inodes are made as they are needed, there are said to be none at all.
    let files = s.files();
    let files_available = if files == 0 { u64::MAX } else { s.files_available() };
    let (bytes, available) = (s.blocks() * unit, s.blocks_available() * unit);
    let inode = inode_bytes(nix::sys::statfs::fstatfs(dir)?.filesystem_type().0 as u32);
    Ok((Space { bytes, available, files, files_available, inode }, read_only))
}

/// What an inode takes of the blocks of a file system with this magic number.
fn inode_bytes(magic: u32) -> u64 {
    match magic {
        // ext4 has a table of them from the start, tmpfs has them in the kernel's memory.
        0xef53 | 0x0102_1994 => 0,
        // F2FS: a block.
        0xf2f5_2010 => 4096,
        // XFS makes them in the midst of the data, 64 of 512 bytes at once, of which half were in use in busy stores; Btrfs and
        // others have something like it.
        _ => 1024,
    }
}

/// The name of a network file system on which locks and leases cannot be relied on.
pub(crate) fn network_file_system(dir: BorrowedFd<'_>) -> io::Result<Option<&'static str>> {
    step()?;
    let kind = nix::sys::statfs::fstatfs(dir)?.filesystem_type().0;
    Ok(network_name(kind as u32))
}

fn network_name(magic: u32) -> Option<&'static str> {
    match magic {
        0x6969 => Some("NFS"),
        0x517b | 0xff53_4d42 | 0xfe53_4d42 => Some("SMB"),
        0x5346_414f | 0x6b41_4653 => Some("AFS"),
        0x00c3_6400 => Some("Ceph"),
        0x0bd0_0bd0 => Some("Lustre"),
        0x4750_4653 => Some("GPFS"),
        0x7375_7245 => Some("Coda"),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn network_file_systems_are_known_and_local_ones_are_not() {
        assert_eq!(network_name(0x6969), Some("NFS"));
        assert_eq!(network_name(0xff53_4d42), Some("SMB"));
        for local in [0xef53, 0x0102_1994, 0x9123_683e, 0x5846_5342, 0x794c_7630] {
            assert_eq!(network_name(local), None);
        }
    }
}
