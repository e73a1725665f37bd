//! Directories of runs that are under way, and what dead runs have left.
//!
//! Invariants: a room is locked for as long as its run lives, so what is not locked is nobody's; it is swept
//! when a run starts, with the paths outside that it says are its own; what is mounted in it is unmounted without being asked
//! anything; what was taken into it stands again where it was before
//! anything of it is deleted; only what this user wrote, where nobody else can write, is believed. Must not know: what is in a room.

use std::ffi::{OsStr, OsString};
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, UNIX_EPOCH};

use tempfile::TempDir;

use super::{move_tree, same_device};
use crate::cache::remove_tree;
use crate::run::outputs::check_way;
use crate::run::own;
use crate::run::{Result, RunError};

/// Locked while the run lives.
const LOCK: &str = "lock";
/// Directories outside the room that go with it, each with how, which one it is, and ended by a zero byte.
const OWNS: &str = "owns";
/// What was taken into the room: which directory it was taken from, that, where it is, and the paths below; each ended by a
/// zero byte.
const TAKEN: &str = "taken";
/// So long what was taken is kept for a directory that is not there.
const KEPT: Duration = Duration::from_secs(30 * 86_400);

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
    lock: File,
    /// Goes with it.
    _top: Option<TempDir>,
}

impl Rooms {
    /// Below the memory of projects, or, where none can be made there, where temporary files are.
    pub fn of(memory: Option<&Path>) -> Rooms {
        let name = format!("outfs-rooms-{}", nix::unistd::geteuid());
        Rooms { remembered: memory.map(|m| m.join("rooms")), temporary: std::env::temp_dir().join(name) }
    }

    /// Takes away what dead runs have left.
    pub fn sweep(&self) {
        for dir in self.remembered.iter().chain([&self.temporary]) {
            if own::open(dir).is_ok_and(|meta| meta.mode() & 0o077 == 0) {
                sweep(dir);
            }
        }
    }

    /// Can what stands at a path be taken into a room?
    pub fn can_take(&self, path: &Path) -> bool {
        let mut dirs = self.remembered.iter().chain([&self.temporary]);
        which(path).is_some()
            && dirs.find(|dir| own::make_private(dir).is_ok()).is_some_and(|dir| same_device(dir, path))
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
            Ok((true, lock)) => return Ok(Room { dir, owns: Vec::new(), lock, _top: None }),
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
            // Not locked yet, or all but gone; whoever makes it makes another one then.
            Err(_) if std::fs::remove_dir(&dir).is_ok() => continue,
            Err(_) => is_old(&dir),
        };
        if !dead {
            continue;
        }
        if let Err(e) = leave(&dir) {
            tracing::debug!("{} is left, with what is mounted there: {e}", dir.display());
        } else if let Err(e) = put_back(&dir) {
            tracing::debug!("{} is left, with what was taken: {e}", dir.display());
        } else {
            let owns = own::read(&dir.join(OWNS)).unwrap_or_default();
            // What was made later may be inside of what was made before.
            owns.split(|b| *b == 0).rev().for_each(remove_owned);
            if let Err(e) = remove_room(&dir) {
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

/// Has what was taken into a room stand again where it was, unless something else does by now.
fn put_back(dir: &Path) -> Result<()> {
    let Ok(taken) = own::read(&dir.join(TAKEN)) else { return Ok(()) };
    let mut names = taken.strip_suffix(b"\0").unwrap_or(&taken).split(|b| *b == 0);
    let mut path = || names.next().map(|name| PathBuf::from(OsStr::from_bytes(name)));
    let (Some(from), Some(top), Some(work)) = (path(), path(), path()) else { return Ok(()) };
    if which(&top).is_none_or(|which| OsStr::new(&which) != from) {
        let age = dir.join(TAKEN).metadata().and_then(|meta| meta.modified()).map(|time| time.elapsed());
        // Of another checkout, in a container for example; or of one that is gone.
        return match age {
            Ok(Ok(age)) if age > KEPT => Ok(()),
            _ => Err(RunError::io("look at", top, io::ErrorKind::NotFound.into())),
        };
    }
    while let Some(output) = path() {
        let (from, to) = (work.join(&output), top.join(&output));
        // What lies behind a symlink that the command made is not the project's.
        let from_room = work.strip_prefix(dir).map(|below| below.join(&output));
        let ours = from_room.is_ok_and(|below| check_way(dir, &[below]).is_ok())
            && check_way(&top, std::slice::from_ref(&output)).is_ok();
        if ours && from.symlink_metadata().is_ok() && to.symlink_metadata().is_err() {
            move_tree(&from, &to)?;
        }
    }
    Ok(())
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

/// Deletes a room. Its lock goes last: what a death leaves of it is then swept at once, as any other.
fn remove_room(dir: &Path) -> io::Result<()> {
    for entry in std::fs::read_dir(dir)?.flatten().filter(|entry| entry.file_name() != LOCK) {
        match entry.file_type()?.is_dir() {
            true => remove_all(&entry.path())?,
            false => std::fs::remove_file(entry.path())?,
        }
    }
    remove_all(dir)
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

    /// Notes that paths below `top` are moved to `work`, in this room, from now on; false, and nothing is noted, where they could
    /// not be moved back in one step.
    pub(super) fn takes(&self, work: &Path, top: &Path, paths: &[PathBuf]) -> Result<bool> {
        let Some(which) = which(top).filter(|_| same_device(&self.dir, top)) else { return Ok(false) };
        let names = [OsStr::new(&which), top.as_os_str(), work.as_os_str()];
        let names = names.into_iter().chain(paths.iter().map(|path| path.as_os_str()));
        let taken: Vec<u8> = names.flat_map(|name| [name.as_bytes(), b"\0"].concat()).collect();
        let file = self.dir.join(TAKEN);
        let mut options = OpenOptions::new();
        let open = options.write(true).create_new(true).mode(0o600).open(&file);
        // Not only a death: a power cut may keep what is moved and lose who moved it.
        let written =
            open.and_then(|mut to| io::Write::write_all(&mut to, &taken).and_then(|()| to.sync_all()));
        written.map_err(|e| RunError::io("write", file, e)).map(|()| true)
    }

    /// Has what was taken, and is still here, stand again where it was.
    pub(super) fn put_back(&self) -> Result<()> {
        put_back(&self.dir)
    }

    /// Whoever has it open keeps the room from being swept.
    pub(super) fn fd(&self) -> BorrowedFd<'_> {
        self.lock.as_fd()
    }
}

/// Unmounts what is mounted in a room. Nothing is asked of it: its daemon may be dead, or answer nobody. The kernel says of a directory
/// that it would delete whether anything is mounted there.
fn leave(dir: &Path) -> io::Result<()> {
    let view = dir.join(VIEW);
    loop {
        match std::fs::remove_dir(&view) {
            Err(e) if e.raw_os_error() == Some(libc::EBUSY) => crate::fuse::detach(&view, true)?,
            Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(e),
            _ => return Ok(()),
        }
    }
}

impl Drop for Room {
    fn drop(&mut self) {
        // With its lock, so that it is swept once that can be done.
        if let Err(e) = leave(&self.dir) {
            tracing::debug!("{} is left, with what is mounted there: {e}", self.dir.display());
            self._top.take().map(TempDir::keep);
            return;
        }
        if let Err(e) = self.put_back() {
            tracing::debug!("{} is left, with what was taken: {e}", self.dir.display());
            return;
        }
        // Locked until it is gone.
        if let Err(e) = remove_room(&self.dir) {
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
        let Room { dir: left, lock, .. } = &dead;
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

    /// However far its removal came when this process died, no room waits for anything to be swept.
    #[test]
    fn a_room_is_locked_until_it_is_gone() {
        let top = tempfile::tempdir().unwrap();
        let rooms = Rooms::of(Some(top.path()));
        for dead in [true, false] {
            let room = rooms.make().unwrap();
            let (lock, tree) = (room.path(LOCK), room.dir("tree/sub").unwrap());
            (0..3000).for_each(|n| drop(File::create(tree.join(n.to_string())).unwrap()));
            let look = std::thread::spawn(move || {
                // In this order: what is seen in between is there, and the lock was not.
                while tree.exists() {
                    assert!(lock.exists() || !tree.exists(), "it is not locked, and more is left");
                }
            });
            if dead {
                // As by a death: the lock goes, the rest stays.
                room.lock.unlock().unwrap();
                rooms.sweep();
            }
            drop(room);
            look.join().unwrap();
        }
        let all = rooms.remembered.as_ref().unwrap();
        // Neither locked yet nor anything else.
        let _ = private("run-").tempdir_in(all).unwrap().keep();
        rooms.sweep();
        assert_eq!(std::fs::read_dir(all).unwrap().count(), 0);
    }

    /// What was taken into a room is nobody's to delete.
    #[test]
    fn what_was_taken_stands_again_where_it_was() {
        let top = tempfile::tempdir().unwrap();
        let rooms = Rooms::of(Some(top.path()));
        let project = top.path().join("project");
        let write = |path: PathBuf, text: &str| {
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, text).unwrap();
        };
        let outputs = ["a", "b/c", "d", "e"].map(PathBuf::from);
        let take = || {
            outputs.iter().for_each(|output| write(project.join(output), "old"));
            let room = rooms.make().unwrap();
            let work = room.dir("project").unwrap();
            assert!(rooms.can_take(&project) && room.takes(&work, &project, &outputs).unwrap());
            outputs.iter().for_each(|o| move_tree(&project.join(o), &work.join(o)).unwrap());
            room
        };
        let death = |room: Room| {
            room.lock.unlock().unwrap();
            let dir = room.dir.clone();
            std::mem::forget(room);
            dir
        };
        let read = |name: &str| std::fs::read_to_string(project.join(name)).ok();
        let old = Some("old".to_owned());
        // The user has made one of them anew; another one lies behind a link that the command made.
        let dead = death(take());
        write(project.join("a"), "new");
        std::fs::rename(dead.join("project/b"), dead.join("elsewhere")).unwrap();
        std::os::unix::fs::symlink("../elsewhere", dead.join("project/b")).unwrap();
        rooms.sweep();
        assert_eq!([read("a"), read("b/c"), read("d")], [Some("new".into()), None, old.clone()]);
        assert!(!dead.exists());
        drop(take());
        assert_eq!([read("a"), read("b/c")], [old.clone(), old.clone()]);
        // Another checkout stands there for a while.
        let dead = death(take());
        let aside = top.path().join("aside");
        std::fs::rename(&project, &aside).unwrap();
        std::fs::create_dir(&project).unwrap();
        rooms.sweep();
        assert!(dead.exists() && read("a").is_none());
        std::fs::remove_dir(&project).unwrap();
        rooms.sweep();
        std::fs::rename(&aside, &project).unwrap();
        rooms.sweep();
        assert_eq!((read("a"), dead.exists()), (old, false));
        let dead = death(take());
        std::fs::remove_dir_all(&project).unwrap();
        let long_ago = std::time::SystemTime::now() - KEPT - Duration::from_secs(60);
        File::open(dead.join(TAKEN)).unwrap().set_modified(long_ago).unwrap();
        rooms.sweep();
        assert!(!dead.exists());
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
            dead.lock.unlock().unwrap();
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
