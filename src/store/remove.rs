//! Deleting trees: any depth, any names, any modes.
//!
//! Purpose: get rid of drafts, whatever their users made of them. Invariants: nothing recurses
//! and at most two directories are open at a time, because each subdirectory is first moved to the
//! tree's top; nothing outside the tree is touched: symlinks are not followed, and what
//! is mounted inside cannot be moved (EBUSY) and so is never entered.

use std::ffi::{OsStr, OsString};
use std::io;
use std::os::fd::AsFd;

use nix::dir::Type;

use super::dir::{Dir, temp_name};
use super::{Result, port};

/// Deletes the directory `name` of `parent` with all it holds; a missing one is fine. `each` hears of every file.
pub(super) fn tree(parent: &Dir, name: &OsStr, each: &mut dyn FnMut()) -> Result<()> {
    if port::stat_at(parent.fd(), name).map_err(parent.err("stat", name))?.is_none() {
        return Ok(());
    }
    let top = open_writable(parent, name)?;
    contents(&top, each)?;
    port::rmdir(parent.fd(), name).map_err(parent.err("delete", name))
}

/// Deletes all that a directory holds; `each` hears of every file.
pub(super) fn contents(top: &Dir, each: &mut dyn FnMut()) -> Result<()> {
    // Directories that are children of `top`, under the names they have now.
    let mut waiting = empty(top, top, each)?;
    while let Some(name) = waiting.pop() {
        let dir = open_writable(top, &name)?;
        waiting.append(&mut empty(&dir, top, each)?);
        drop(dir);
        port::rmdir(top.fd(), &name).map_err(top.err("delete", &name))?;
    }
    Ok(())
}

/// Unlinks the files of `dir` and moves its directories to `top`; their names there.
fn empty(dir: &Dir, top: &Dir, each: &mut dyn FnMut()) -> Result<Vec<OsString>> {
    let (mut dirs, mut moved) = (Vec::new(), Vec::new());
    // Deleting while listing may skip names on some file systems: until nothing is left.
    loop {
        let mut deleted = 0;
        let mut failed = None;
        port::list(dir.fd(), &mut |name, kind| {
            let result = match kind {
                Some(Type::Directory) => Err(io::Error::from_raw_os_error(libc::EISDIR)),
                _ => port::unlink(dir.fd(), name),
            };
            match result {
                Ok(()) => {
                    deleted += 1;
                    each();
                }
                Err(e) if e.raw_os_error() == Some(libc::EISDIR) => dirs.push(name.to_owned()),
                Err(e) => {
                    failed.get_or_insert(dir.err("delete", name)(e));
                }
            }
            Ok(())
        })
        .map_err(dir.err("list", OsStr::new("")))?;
        if let Some(e) = failed {
            return Err(e);
        }
        if std::ptr::eq(dir, top) {
            dirs.sort_unstable();
            dirs.dedup();
            if deleted == 0 {
                return dirs.iter().map(|name| lift(top, name, top)).collect();
            }
            continue;
        }
        if deleted == 0 && dirs.is_empty() {
            return Ok(moved);
        }
        for name in dirs.drain(..) {
            moved.push(lift(dir, &name, top)?);
        }
    }
}

/// Moves a directory to `top` under a new name. It must be writable for that: its `..` changes.
fn lift(dir: &Dir, name: &OsStr, top: &Dir) -> Result<OsString> {
    let mut tried = false;
    loop {
        let mut new = OsString::from(".d-");
        new.push(temp_name());
        match port::rename_new(dir.fd(), name, top.fd(), &new) {
            Ok(()) => return Ok(new),
            // Left by a deletion that was interrupted.
            Err(e) if e.kind() == io::ErrorKind::AlreadyExists => {}
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied && !tried => {
                tried = true;
                make_writable(dir, name)?;
            }
            Err(e) => return Err(dir.err("move", name)(e)),
        }
    }
}

fn open_writable(parent: &Dir, name: &OsStr) -> Result<Dir> {
    let stat = port::stat_at(parent.fd(), name).map_err(parent.err("stat", name))?;
    if stat.is_some_and(|s| s.st_mode & 0o700 != 0o700) {
        make_writable(parent, name)?;
    }
    parent.sub(name)
}

fn make_writable(parent: &Dir, name: &OsStr) -> Result<()> {
    let handle = port::open_path(parent.fd(), name).map_err(parent.err("open", name))?;
    let device = |fd| port::stat(fd).map(|s| s.st_dev).map_err(parent.err("stat", name));
    if device(handle.as_fd())? != device(parent.fd())? {
        return Err(parent.err("delete", name)(io::Error::from_raw_os_error(libc::EBUSY)));
    }
    port::chmod_path(handle.as_fd(), 0o700).map_err(parent.err("chmod", name))
}
