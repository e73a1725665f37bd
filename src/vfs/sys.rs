//! The few system calls that neither std nor nix offer in the form drafts need.
//!
//! All take a descriptor's name in /proc (see `reach::proc_path`), so that they act on exactly
//! one inode, whatever its names are.

use std::ffi::{CString, OsStr};
use std::os::fd::OwnedFd;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sys::stat::{Mode, fchmod, fstat};

use super::types::SetTime;

type Result<T> = std::result::Result<T, Errno>;

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
pub fn get_xattr(path: &Path, name: &OsStr) -> Result<Vec<u8>> {
    let (path, name) = (c(path.as_os_str())?, c(name)?);
    // SAFETY: both strings end in NUL and the buffer has the length given.
    read_all(|buf| unsafe {
        libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len())
    })
}

/// The names of all extended attributes, each followed by NUL.
pub fn list_xattr(path: &Path) -> Result<Vec<u8>> {
    let path = c(path.as_os_str())?;
    // SAFETY: the string ends in NUL and the buffer has the length given.
    read_all(|buf| unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) })
}

/// Sets an extended attribute; `flags` as in setxattr(2).
pub fn set_xattr(path: &Path, name: &OsStr, value: &[u8], flags: i32) -> Result<()> {
    let (path, name) = (c(path.as_os_str())?, c(name)?);
    // SAFETY: both strings end in NUL and the value has the length given.
    let r =
        unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(r).map(drop)
}

/// Removes an extended attribute.
pub fn remove_xattr(path: &Path, name: &OsStr) -> Result<()> {
    let (path, name) = (c(path.as_os_str())?, c(name)?);
    // SAFETY: both strings end in NUL.
    Errno::result(unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) }).map(drop)
}

/// Sets access and modification time; `None` stays.
pub fn set_times(path: &Path, atime: Option<SetTime>, mtime: Option<SetTime>) -> Result<()> {
    let spec = |t: Option<SetTime>| match t {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(SetTime::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(SetTime::At(t)) => libc::timespec { tv_sec: t.sec, tv_nsec: t.nsec.into() },
    };
    let (path, times) = (c(path.as_os_str())?, [spec(atime), spec(mtime)]);
    // SAFETY: the string ends in NUL and there are two time specs.
    Errno::result(unsafe { libc::utimensat(libc::AT_FDCWD, path.as_ptr(), times.as_ptr(), 0) }).map(drop)
}

/// Clears the set-id bits of an open regular file, as a write without privileges does.
pub fn drop_setid(fd: &OwnedFd) -> Result<()> {
    let mode = fstat(fd)?.st_mode;
    let kept = match mode & 0o6010 {
        // Set-group-id without the execute bit is no set-id bit.
        bits if bits & 0o2010 == 0o2010 => mode & 0o1777,
        _ => mode & 0o3777,
    };
    if kept != mode & 0o7777 {
        fchmod(fd, Mode::from_bits_truncate(kept))?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_round_trip() {
        let dir = tempfile::tempdir_in(".").unwrap();
        let f = dir.path().join("f");
        std::fs::write(&f, "x").unwrap();
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
