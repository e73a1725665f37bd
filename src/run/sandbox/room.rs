//! Directories of runs that are under way, and what dead runs have left.
//!
//! Invariants: a room is locked for as long as its run lives, so what is not locked is nobody's; it is swept
//! before the next room is made, with the paths outside that it says are its own; only what this user wrote, where nobody else can
//! write, is believed. Must not know: what is in a room.

use std::ffi::OsString;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::UNIX_EPOCH;

use tempfile::TempDir;

use crate::cache::remove_tree;
use crate::run::own;
use crate::run::{Result, RunError};

/// Locked while the run lives.
const LOCK: &str = "lock";
/// Directories outside the room that go with it, each with how, which one it is, and ended by a zero byte.
const OWNS: &str = "owns";

/// How a directory goes with a room.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owned {
    /// With all that is in it.
    Whole,
    /// If nothing is in it.
    IfEmpty,
}

/// Where earlier results are mounted.
pub(in crate::run) const VIEW: &str = "view";

/// Where rooms are.
#[derive(Debug, Clone)]
pub struct Rooms {
    /// Below the memory of projects.
    remembered: Option<PathBuf>,
    /// Where temporary files are.
    temporary: PathBuf,
}

/// A directory of one run.
#[derive(Debug)]
pub struct Room {
    dir: PathBuf,
    owns: Vec<u8>,
    _lock: File,
    /// Goes with it.
    _top: Option<TempDir>,
}

impl Rooms {
    /// Below the memory of projects, or, where none can be made there, where temporary files are.
    pub fn of(memory: Option<&Path>) -> Rooms {
        let name = format!("outfs-rooms-{}", nix::unistd::geteuid());
        Rooms { remembered: memory.map(|m| m.join("rooms")), temporary: std::env::temp_dir().join(name) }
    }

    /// Makes a room, after dead ones are swept.
    pub fn make(&self) -> Result<Room> {
        for dir in self.remembered.iter().chain([&self.temporary]) {
            match own::make_private(dir).and_then(|()| make_in(dir)) {
                Ok(room) => return Ok(room),
                Err(e) => tracing::debug!("no room is made in {}: {e}", dir.display()),
            }
        }
        // Somebody has taken the name: a directory that nobody can foretell, for this room alone.
        let fail = |e| RunError::io("make a place for the run in", std::env::temp_dir(), e);
        let top = private("outfs-rooms-").tempdir().map_err(fail)?;
        let mut room = make_in(top.path()).map_err(fail)?;
        room._top = Some(top);
        Ok(room)
    }
}

fn private(prefix: &str) -> tempfile::Builder<'_, '_> {
    let mut builder = tempfile::Builder::new();
    builder.prefix(prefix).permissions(std::fs::Permissions::from_mode(0o700));
    builder
}

/// A room in a directory of ours.
fn make_in(rooms: &Path) -> io::Result<Room> {
    sweep(rooms);
    loop {
        let dir = private("run-").tempdir_in(rooms)?.keep();
        let lock = File::create(dir.join(LOCK)).map(|file| (file.try_lock().is_ok(), file));
        match lock {
            Ok((true, lock)) => return Ok(Room { dir, owns: Vec::new(), _lock: lock, _top: None }),
            // Swept in the moment before it was locked.
            Ok((false, _)) => continue,
            Err(e) if e.kind() == io::ErrorKind::NotFound => continue,
            Err(e) => return Err(e),
        }
    }
}

/// Takes away what dead runs have left; what cannot be taken away is left for another time.
fn sweep(rooms: &Path) {
    let Ok(names) = std::fs::read_dir(rooms) else { return };
    for dir in names.flatten().map(|e| e.path()) {
        if let Err(e) = own::open(&dir) {
            tracing::debug!("{} is no room: {e}", dir.display());
            continue;
        }
        let lock = OpenOptions::new().write(true).custom_flags(libc::O_NOFOLLOW).open(dir.join(LOCK));
        let dead = match &lock {
            Ok(lock) => lock.try_lock().is_ok(),
            // Not locked yet, or half swept.
            Err(_) => is_old(&dir),
        };
        if dead {
            let owns = own::read(&dir.join(OWNS)).unwrap_or_default();
            // What was made later may be inside of what was made before.
            owns.split(|b| *b == 0).rev().for_each(remove_owned);
            leave(&dir);
            if let Err(e) = remove_all(&dir) {
                tracing::debug!("{} is left: {e}", dir.display());
            }
        }
    }
}

/// Which directory stands there: its number may be another's later, but not with the time it was made.
fn which(dir: &Path) -> Option<String> {
    let meta = dir.symlink_metadata().ok()?;
    let made = meta.created().ok()?.duration_since(UNIX_EPOCH).ok()?;
    Some(format!("{}.{}.{}", meta.dev(), meta.ino(), made.as_nanos()))
}

fn remove_owned(owned: &[u8]) {
    let Some((how, rest)) = owned.split_first() else { return };
    let Some(at) = rest.iter().position(|b| *b == b' ') else { return };
    let path = PathBuf::from(OsString::from_vec(rest[at + 1..].to_vec()));
    if which(&path).is_some_and(|which| which.as_bytes() == &rest[..at]) {
        let _ = match how {
            b'w' => remove_tree(&path),
            _ => std::fs::remove_dir(path),
        };
    }
}

fn is_old(dir: &Path) -> bool {
    let age = dir.symlink_metadata().and_then(|m| m.modified()).ok().and_then(|t| t.elapsed().ok());
    age.is_some_and(|age| age.as_secs() > 60)
}

/// Deletes a tree of ours; one that is gone already is fine.
pub(super) fn remove_all(dir: &Path) -> std::io::Result<()> {
    match remove_tree(dir) {
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

impl Room {
    /// A path in it.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }

    /// A directory in it, which is made.
    pub fn dir(&self, name: &str) -> Result<PathBuf> {
        let dir = self.dir.join(name);
        std::fs::create_dir_all(&dir).map_err(|e| RunError::io("create", &dir, e))?;
        Ok(dir)
    }

    /// Says that a directory elsewhere is to go, should this process die.
    pub(super) fn owns(&mut self, path: &Path, how: Owned) -> Result<()> {
        let Some(which) = which(path) else { return Ok(()) };
        let how: &[u8] = if how == Owned::Whole { b"w" } else { b"e" };
        self.owns.extend([how, which.as_bytes(), b" ", path.as_os_str().as_bytes(), b"\0"].concat());
        let file = self.dir.join(OWNS);
        let mut options = OpenOptions::new();
        let open = options.write(true).create(true).truncate(true).mode(0o600).open(&file);
        let written = open.and_then(|mut to| io::Write::write_all(&mut to, &self.owns));
        written.map_err(|e| RunError::io("write", file, e))
    }
}

/// Unmounts what is mounted in a room.
fn leave(dir: &Path) {
    let view = dir.join(VIEW);
    if view.symlink_metadata().is_err() {
        return;
    }
    if let Err(e) = crate::fuse::detach(&view, true) {
        tracing::debug!("{} is not unmounted: {e}", view.display());
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        leave(&self.dir);
        // Locked until it is gone.
        if let Err(e) = remove_all(&self.dir) {
            tracing::debug!("{} is left: {e}", self.dir.display());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_dead_run_left_is_swept() {
        let top = tempfile::tempdir().unwrap();
        let rooms = Rooms::of(Some(top.path()));
        let elsewhere = top.path().join("laid");
        let mut dead = rooms.make().unwrap();
        std::fs::create_dir_all(elsewhere.join("sub")).unwrap();
        dead.owns(&elsewhere, Owned::Whole).unwrap();
        let (emptied, filled) = (top.path().join("emptied"), top.path().join("filled"));
        for dir in [&emptied, &filled] {
            std::fs::create_dir(dir).unwrap();
            dead.owns(dir, Owned::IfEmpty).unwrap();
            std::fs::create_dir(dir.join("gone")).unwrap();
            dead.owns(&dir.join("gone"), Owned::Whole).unwrap();
        }
        std::fs::write(filled.join("users"), "").unwrap();
        let users = top.path().join("users");
        std::fs::create_dir(&users).unwrap();
        dead.owns(&users, Owned::Whole).unwrap();
        std::fs::remove_dir(&users).unwrap();
        std::fs::create_dir(&users).unwrap();
        let dir = dead.dir("tree/sub").unwrap();
        let alive = rooms.make().unwrap();
        assert!(dir.exists(), "it lives");
        // As by a death: the lock goes, the rest stays.
        let Room { dir: left, _lock: lock, .. } = &dead;
        lock.unlock().unwrap();
        let left = left.clone();
        let third = rooms.make().unwrap();
        assert!(!left.exists() && !elsewhere.exists());
        assert!(users.exists(), "that is another one");
        assert!(!emptied.exists() && filled.join("users").exists() && !filled.join("gone").exists());
        assert!(alive.dir.exists());
        drop((alive, third, dead));
        assert_eq!(std::fs::read_dir(rooms.remembered.unwrap()).unwrap().count(), 0);
    }

    /// As a dead run would have left it, but written by somebody else: nothing that it names goes.
    #[test]
    fn what_others_can_write_is_not_believed() {
        let top = tempfile::tempdir().unwrap();
        let memory = top.path().join("memory");
        std::fs::create_dir(&memory).unwrap();
        let rooms = Rooms { temporary: top.path().join("tmp"), ..Rooms::of(Some(&memory)) };
        let mode =
            |path: &Path, mode| std::fs::set_permissions(path, PermissionsExt::from_mode(mode)).unwrap();
        let precious = top.path().join("precious");
        std::fs::create_dir(&precious).unwrap();
        let left = || {
            let mut dead = rooms.make().unwrap();
            dead.owns(&precious, Owned::Whole).unwrap();
            dead._lock.unlock().unwrap();
            let dir = dead.dir.clone();
            std::mem::forget(dead);
            dir
        };
        mode(&left().join(OWNS), 0o666);
        drop(rooms.make().unwrap());
        assert!(precious.exists(), "the file could be anybody's");
        let dir = left();
        mode(&dir, 0o777);
        drop(rooms.make().unwrap());
        assert!(precious.exists() && dir.exists(), "the room could be anybody's");
        mode(&dir, 0o700);
        // All rooms: another place is taken, and at last one of its own.
        let in_place = |room: &Room| room.dir.parent().unwrap().to_owned();
        let kept = rooms.remembered.clone().unwrap();
        mode(&kept, 0o777);
        assert_eq!(in_place(&rooms.make().unwrap()), rooms.temporary);
        std::fs::remove_dir(&rooms.temporary).unwrap();
        std::os::unix::fs::symlink(&kept, &rooms.temporary).unwrap();
        let own = rooms.make().unwrap();
        let place = in_place(&own);
        assert!(place != kept && place != rooms.temporary && precious.exists());
        assert_eq!(place.metadata().unwrap().mode() & 0o777, 0o700);
        drop(own);
        assert!(!place.exists() && precious.exists());
        mode(&kept, 0o700);
        drop(rooms.make().unwrap());
        assert!(!precious.exists(), "it is believed again");
    }
}
