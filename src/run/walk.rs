//! Everything below some directories, looked at in threads.
//!
//! Invariants: symlinks are looked at and not followed; what vanishes while it is looked at is an error that names it, unless it was
//! outfs's own and unfinished.
//! Must not know: what it is looked at for.

use std::ffi::{OsStr, OsString};
use std::fs::Metadata;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use nix::dir::Dir;
use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstatat};

use super::inputs::is_unfinished;
use super::remembered::State;
use super::{Result, RunError};
use crate::cache::workers;

/// What is at a path, as far as anybody asks here.
#[derive(Debug, Clone, Copy)]
pub(super) struct Seen {
    pub state: State,
    pub mode: u32,
}

impl Seen {
    pub fn of(meta: &Metadata) -> Seen {
        Seen { state: State::of(meta), mode: meta.mode() }
    }

    /// A name in an open directory, without following a link.
    fn of_name(dir: impl AsFd, name: &[u8]) -> io::Result<Seen> {
        let stat = fstatat(dir, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
        Ok(Seen { state: State::of_stat(&stat), mode: stat.st_mode })
    }

    /// Without following a link.
    pub fn at(path: &Path) -> io::Result<Seen> {
        path.symlink_metadata().map(|meta| Seen::of(&meta))
    }

    fn is(&self, kind: u32) -> bool {
        self.mode & libc::S_IFMT == kind
    }

    pub fn is_dir(&self) -> bool {
        self.is(libc::S_IFDIR)
    }

    pub fn is_file(&self) -> bool {
        self.is(libc::S_IFREG)
    }

    pub fn is_symlink(&self) -> bool {
        self.is(libc::S_IFLNK)
    }

    /// Somebody may execute it.
    pub fn is_program(&self) -> bool {
        self.mode & 0o111 != 0
    }
}

/// Paths and what is there.
pub(super) type Found = Vec<(PathBuf, Seen)>;

/// Looks at files one after the other; those in one directory are found by that, which takes half the time.
#[derive(Default)]
pub(super) struct Looker<'p> {
    above: &'p [u8],
    dir: Option<OwnedFd>,
}

impl<'p> Looker<'p> {
    pub fn look(&mut self, path: &'p Path) -> io::Result<Seen> {
        let bytes = path.as_os_str().as_bytes();
        let at = bytes.iter().rposition(|b| *b == b'/').unwrap_or(0);
        let (above, name) = (&bytes[..at], &bytes[at..]);
        if above != self.above {
            let flags = OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
            (self.above, self.dir) = (above, open(OsStr::from_bytes(above), flags, Mode::empty()).ok());
        }
        match (&self.dir, name.strip_prefix(b"/")) {
            (Some(dir), Some(name)) if !name.is_empty() => Seen::of_name(dir, name),
            _ => Seen::at(path),
        }
    }
}

/// Fewer directories are not worth a thread.
const DIRECTORIES: usize = 4;
/// Nor are fewer files.
pub(super) const FILES: usize = 64;

/// All that is in these directories and below, the directories among it; `enter` is told a directory's path
/// and how many levels deep it lies, the first being 1. It is mostly in order, so that bringing it in order takes little.
pub(super) fn walk(tops: Vec<PathBuf>, enter: &dyn Fn(&Path, usize) -> bool) -> Result<Found> {
    let (mut all, mut dirs, mut depth) = (Found::new(), tops, 0);
    while !dirs.is_empty() {
        depth += 1;
        let level = in_threads(&dirs, DIRECTORIES, |dirs| {
            let mut found = Found::new();
            dirs.iter().try_for_each(|dir| read(dir, &mut found)).map(|()| found)
        })?;
        let below = level.iter().filter(|(path, seen)| seen.is_dir() && enter(path, depth));
        dirs = below.map(|(path, _)| path.clone()).collect();
        all.extend(level);
    }
    Ok(all)
}

fn read(dir: &Path, found: &mut Found) -> Result<()> {
    let fail = |e: Errno| RunError::io("read", dir, e.into());
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    let mut listing = Dir::open(dir, flags, Mode::empty()).map_err(fail)?;
    let mut names = Vec::new();
    for entry in listing.iter() {
        let entry = entry.map_err(fail)?;
        let name = entry.file_name().to_bytes();
        if name != b"." && name != b".." {
            names.push(path_in(dir, name));
        }
    }
    names.sort_unstable_by(|a, b| a.as_os_str().cmp(b.as_os_str()));
    let start = path_in(dir, b"").as_os_str().len();
    found.reserve(names.len());
    for path in names {
        match Seen::of_name(&listing, &path.as_os_str().as_bytes()[start..]) {
            Ok(seen) => found.push((path, seen)),
            // It has got its name.
            Err(e) if e.kind() == io::ErrorKind::NotFound && is_unfinished(&path) => {}
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                return Err(RunError::Unstable { path, what: "vanished" });
            }
            Err(e) => return Err(RunError::io("look at", path, e)),
        }
    }
    Ok(())
}

/// The path of a name in a directory, in as much memory as it takes.
fn path_in(dir: &Path, name: &[u8]) -> PathBuf {
    let dir = dir.as_os_str().as_bytes();
    let mut path = Vec::with_capacity(dir.len() + 1 + name.len());
    path.extend_from_slice(dir);
    if !dir.ends_with(b"/") {
        path.push(b'/');
    }
    path.extend_from_slice(name);
    OsString::from_vec(path).into()
}

/// What of a path lies below another one. By bytes where that tells: both are clean, and comparing components takes longer than all
/// else.
pub(super) fn below<'p>(path: &'p Path, top: &Path) -> Option<&'p Path> {
    let rest = path.as_os_str().as_bytes().strip_prefix(top.as_os_str().as_bytes());
    match rest.and_then(|rest| rest.strip_prefix(b"/")) {
        Some(below) => Some(Path::new(OsStr::from_bytes(below))),
        None => path.strip_prefix(top).ok(),
    }
}

/// Does `work` on parts of a list, of so many at least, in some threads; the results in order.
pub(super) fn in_threads<T: Sync, U: Send>(
    list: &[T],
    least: usize,
    work: impl Fn(&[T]) -> Result<Vec<U>> + Sync,
) -> Result<Vec<U>> {
    let each = list.len().div_ceil(workers()).max(least);
    if list.len() <= each {
        return work(list);
    }
    let work = &work;
    std::thread::scope(|scope| {
        let begin = |part| (part, std::thread::Builder::new().spawn_scoped(scope, move || work(part)));
        let parts: Vec<_> = list.chunks(each).map(begin).collect();
        let mut all = Vec::with_capacity(list.len());
        for (part, thread) in parts {
            all.extend(match thread {
                Ok(thread) => thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))?,
                // No more threads are to be had.
                Err(_) => work(part)?,
            });
        }
        Ok(all)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_looker_sees_what_everybody_sees() {
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        std::fs::create_dir(path("sub")).unwrap();
        ["a", "b", "sub/a"].iter().for_each(|name| std::fs::write(path(name), name).unwrap());
        std::os::unix::fs::symlink("a", path("l")).unwrap();
        let paths: Vec<PathBuf> = ["a", "b", "l", "none", "sub", "sub/a", "no/a", "a/b"].map(path).into();
        let mut looker = Looker::default();
        for path in paths.iter().map(PathBuf::as_path).chain([Path::new("/"), Path::new("/tmp")]) {
            let (seen, wanted) = (looker.look(path), Seen::at(path));
            let same = match (&seen, &wanted) {
                (Ok(a), Ok(b)) => (a.state, a.mode) == (b.state, b.mode),
                (Err(a), Err(b)) => a.kind() == b.kind(),
                _ => false,
            };
            assert!(same, "{}: {seen:?}, {wanted:?}", path.display());
        }
    }

    #[test]
    fn all_of_it_and_no_deeper_than_asked() {
        let dir = tempfile::tempdir().unwrap();
        for n in 0..30 {
            let sub = dir.path().join(format!("{n}/deep"));
            std::fs::create_dir_all(&sub).unwrap();
            std::fs::write(sub.join("f"), "").unwrap();
            std::os::unix::fs::symlink("deep", dir.path().join(format!("{n}/l"))).unwrap();
        }
        for top in [dir.path().to_owned(), dir.path().join("")] {
            for (path, seen) in walk(vec![top], &|_, _| true).unwrap() {
                let wanted = Seen::at(&path).unwrap();
                assert_eq!((seen.state, seen.mode), (wanted.state, wanted.mode), "{}", path.display());
                assert!(
                    !path.as_os_str().as_bytes().windows(2).any(|two| two == b"//"),
                    "{}",
                    path.display()
                );
            }
        }
        let count =
            |enter: &dyn Fn(&Path, usize) -> bool| walk(vec![dir.path().to_owned()], enter).unwrap().len();
        assert_eq!(count(&|_, _| true), 30 * 4);
        assert_eq!(count(&|_, level| level < 2), 30 * 3);
        assert_eq!(count(&|path, _| !path.ends_with("3")), 30 * 4 - 3);
        assert!(walk(vec![dir.path().join("none")], &|_, _| true).is_err());
    }
}
