//! Deleting a tree of somebody's: any depth, any names, and modes that keep its owner out.
//!
//! Invariants: nothing recurses, and few directories are open at a time; symlinks are not followed. What is deleted
//! by somebody else meanwhile is fine. Must not know: what the tree was.

use std::fs::Permissions;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, openat, renameat};
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use super::at;
use super::restore::temp_name;

/// Directories that are open at a time; what is deeper is moved to the tree's top first.
const HELD: usize = 64;

/// A directory whose files are gone.
struct Level {
    fd: OwnedFd,
    /// Its name in the one above.
    name: Vec<u8>,
    /// The directories in it that are still there.
    dirs: Vec<Vec<u8>>,
}

/// Deletes the directory `top` with all it holds.
pub(crate) fn remove_tree(top: &Path) -> io::Result<()> {
    if top.symlink_metadata()?.permissions().mode() & 0o700 != 0o700 {
        // What is ours can be made ours to read; whether that was needed shows.
        let _ = std::fs::set_permissions(top, Permissions::from_mode(0o700));
    }
    let mut levels = vec![Level::enter(open(AT_FDCWD, top)?, Vec::new())?];
    while let Some(mut level) = levels.pop() {
        let Some(name) = level.dirs.pop() else {
            if let Some(above) = levels.last() {
                gone(unlinkat(&above.fd, &level.name[..], UnlinkatFlags::RemoveDir))?;
            }
            continue;
        };
        if levels.len() == HELD {
            lift(&level, &name, &mut levels[0])?;
            levels.push(level);
            continue;
        }
        unlock(level.fd.as_fd(), &name);
        let below = match open(level.fd.as_fd(), &name[..]) {
            Err(Errno::ENOENT) => None,
            other => Some(Level::enter(other?, name)?),
        };
        levels.push(level);
        levels.extend(below);
    }
    std::fs::remove_dir(top)
}

fn open(dir: BorrowedFd<'_>, name: &(impl nix::NixPath + ?Sized)) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    openat(dir, name, flags, Mode::empty())
}

/// What is gone already is as good.
fn gone(deleted: nix::Result<()>) -> io::Result<()> {
    match deleted {
        Err(Errno::ENOENT) => Ok(()),
        other => Ok(other?),
    }
}

/// A directory that is ours can be read and written from now on; another stays as it is.
fn unlock(dir: BorrowedFd<'_>, name: &[u8]) {
    if at::stat(dir, name).is_ok_and(|stat| stat.st_mode & 0o700 != 0o700) {
        let _ = at::chmod(dir, name, 0o700);
    }
}

/// Makes the directory `name` of a level one of the top's.
fn lift(from: &Level, name: &[u8], top: &mut Level) -> io::Result<()> {
    // It must be writable for that: its `..` changes.
    unlock(from.fd.as_fd(), name);
    let new = temp_name();
    gone(renameat(&from.fd, name, &top.fd, &new[..]))?;
    top.dirs.push(new);
    Ok(())
}

impl Level {
    /// Deletes the files of a directory.
    fn enter(fd: OwnedFd, name: Vec<u8>) -> io::Result<Level> {
        let mut dirs = Vec::new();
        for name in at::names(fd.as_fd())? {
            match unlinkat(&fd, &name[..], UnlinkatFlags::NoRemoveDir) {
                Err(Errno::EISDIR) => dirs.push(name),
                other => gone(other)?,
            }
        }
        Ok(Level { fd, name, dirs })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn any_depth_and_any_mode() {
        let dir = tempfile::tempdir().unwrap();
        let top = dir.path().join("top");
        std::fs::create_dir(&top).unwrap();
        let outside = dir.path().join("outside");
        std::fs::create_dir(&outside).unwrap();
        std::fs::write(outside.join("f"), "stays").unwrap();
        let mut fd: OwnedFd = std::fs::File::open(&top).unwrap().into();
        for _ in 0..2_000 {
            at::mkdir(fd.as_fd(), b"beside", 0o500).unwrap();
            at::mkdir(fd.as_fd(), b"d", 0o700).unwrap();
            at::create_new(fd.as_fd(), b"f", 0o400).unwrap();
            nix::unistd::symlinkat(&outside, &fd, "l").unwrap();
            let below = at::pass(fd.as_fd(), b"d").unwrap();
            at::chmod(std::mem::replace(&mut fd, below).as_fd(), b".", 0o100).unwrap();
        }
        drop(fd);
        remove_tree(&top).unwrap();
        assert!(!top.exists());
        assert_eq!(std::fs::read(outside.join("f")).unwrap(), b"stays");
        assert_eq!(remove_tree(&top).unwrap_err().kind(), io::ErrorKind::NotFound);
    }
}
