//! One run of a key at a time on a machine: who is first executes, the others wait for it and look again.
//!
//! Invariants: a flight is a lock (flock) on a file named by the key, so it ends with its holders, however they
//! die; while a guard holds it too, it ends when nothing of the command is left. Only who holds the lock
//! of the file that stands there removes it; what a death left is removed by the next run of any key. Must
//! not know: what a run does, or what the store has.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use crate::model::EntryKey;

/// The right to execute a key's run; dropping it ends it.
#[derive(Debug)]
pub struct Flight {
    file: File,
    path: PathBuf,
}

/// What came of asking for a flight.
#[derive(Debug)]
pub enum Takeoff {
    /// It is ours.
    Mine(Flight),
    /// Somebody else's.
    Others(Other),
    /// There is no place to meet, or no need to.
    Nowhere,
}

/// Somebody else's flight.
#[derive(Debug)]
pub struct Other {
    file: File,
}

impl Flight {
    /// Takes off, if nobody else is in the air with `key`. `dir` is the same for all who are to meet.
    pub fn take(dir: &Path, key: &EntryKey) -> io::Result<Takeoff> {
        let path = dir.join(key.as_str());
        loop {
            let file = open(dir, &path)?;
            match file.try_lock() {
                Err(TryLockError::WouldBlock) => return Ok(Takeoff::Others(Other { file })),
                Err(TryLockError::Error(e)) => return Err(e),
                Ok(()) => {}
            }
            let flight = match Flight::standing(file, path.clone())? {
                Some(flight) => flight,
                None => continue,
            };
            if flight.file.metadata()?.len() > 0 {
                // Left by a death, maybe of another user: dropped, so that a new file is ours to write.
                continue;
            }
            (&flight.file).write_all(format!("{}\n", std::process::id()).as_bytes())?;
            Flight::sweep(dir);
            return Ok(Takeoff::Mine(flight));
        }
    }

    /// A locked file as a flight, if it is still the one that stands there.
    fn standing(file: File, path: PathBuf) -> io::Result<Option<Flight>> {
        let ours = file.metadata()?;
        let there = path.symlink_metadata();
        let same = there.is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino()));
        // Made only if it is: one that is dropped removes what stands there.
        Ok(if same { Some(Flight { file, path }) } else { None })
    }

    /// Removes what deaths have left; what is in the air is locked.
    pub fn sweep(dir: &Path) {
        let Ok(names) = std::fs::read_dir(dir) else { return };
        for path in names.flatten().map(|e| e.path()) {
            let file = OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(&path);
            let Ok(file) = file else { continue };
            // An empty one may be about to be locked by who has just made it.
            let done = file.metadata().is_ok_and(|m| m.len() > 0 || m.modified().is_ok_and(is_old));
            if done && file.try_lock().is_ok() {
                drop(Flight::standing(file, path));
            }
        }
    }

    /// What has to be open for as long as the flight is to last.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.file.as_fd()
    }
}

impl Drop for Flight {
    fn drop(&mut self) {
        // Before the lock goes with the descriptor. What cannot be removed now is swept another time.
        let _ = std::fs::remove_file(&self.path);
    }
}

impl Other {
    /// The process that has it; `None` when it did not say so.
    pub fn pid(&self) -> Option<u32> {
        for _ in 0..20 {
            let mut text = [0; 16];
            let n = self.file.read_at(&mut text, 0).unwrap_or(0);
            if let Some((pid, _)) = std::str::from_utf8(&text[..n]).ok().and_then(|t| t.split_once('\n')) {
                return pid.parse().ok();
            }
            // It has just taken off.
            std::thread::sleep(Duration::from_millis(5));
        }
        None
    }

    /// Waits until it is over; a signal ends the waiting as it ends any process that does not catch it.
    pub fn wait(self) -> io::Result<()> {
        // Shared, so that all who wait go on at once.
        self.file.lock_shared()
    }
}

/// Opens the file of a key, or makes it; one that another user left can only be read, which is enough for a lock.
fn open(dir: &Path, path: &Path) -> io::Result<File> {
    let with = |write: bool| {
        let mut options = OpenOptions::new();
        options.read(true).write(write).create(write).mode(0o644).custom_flags(libc::O_NOFOLLOW).open(path)
    };
    match with(true) {
        Err(e) if e.kind() == io::ErrorKind::PermissionDenied => with(false),
        Err(e) if e.kind() == io::ErrorKind::NotFound => {
            // A store that an earlier version made.
            std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
            with(true)
        }
        other => other,
    }
}

fn is_old(time: SystemTime) -> bool {
    time.elapsed().is_ok_and(|age| age > Duration::from_secs(60))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn key(text: &str) -> EntryKey {
        EntryKey::parse(text).unwrap()
    }

    fn mine(dir: &Path, name: &str) -> Flight {
        match Flight::take(dir, &key(name)).unwrap() {
            Takeoff::Mine(flight) => flight,
            other => panic!("{other:?}"),
        }
    }

    fn others(dir: &Path, name: &str) -> Other {
        match Flight::take(dir, &key(name)).unwrap() {
            Takeoff::Others(other) => other,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn one_at_a_time_and_nothing_is_left() {
        let top = tempfile::tempdir().unwrap();
        let dir = &top.path().join("runs");
        let first = mine(dir, "aaaa");
        let other = mine(dir, "bbbb");
        let second = others(dir, "aaaa");
        assert_eq!(second.pid(), Some(std::process::id()));
        let waits = std::thread::spawn(move || second.wait());
        drop((first, other));
        waits.join().unwrap().unwrap();
        drop(mine(dir, "aaaa"));
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 0);
    }

    #[test]
    fn what_a_death_left_is_taken_over_or_swept() {
        let top = tempfile::tempdir().unwrap();
        let dir = top.path();
        std::fs::write(dir.join("aaaa"), "1\n").unwrap();
        std::fs::write(dir.join("bbbb"), "1\n").unwrap();
        let long_ago = SystemTime::now() - Duration::from_secs(100);
        File::create(dir.join("cccc")).unwrap().set_modified(long_ago).unwrap();
        let flying = mine(dir, "aaaa");
        assert_eq!(others(dir, "aaaa").pid(), Some(std::process::id()));
        assert_eq!(std::fs::read_dir(dir).unwrap().count(), 1);
        drop(mine(dir, "bbbb"));
        assert_eq!(others(dir, "aaaa").pid(), Some(std::process::id()), "what is in the air is not swept");
        drop(flying);
    }

    #[test]
    fn of_many_at_once_one_flies_at_any_time() {
        use std::sync::atomic::{AtomicU32, Ordering};
        let top = tempfile::tempdir().unwrap();
        let dir = top.path();
        let (flying, flights) = (AtomicU32::new(0), AtomicU32::new(0));
        std::thread::scope(|scope| {
            for _ in 0..8 {
                scope.spawn(|| {
                    for _ in 0..50 {
                        let flight = loop {
                            match Flight::take(dir, &key("aaaa")).unwrap() {
                                Takeoff::Mine(flight) => break flight,
                                Takeoff::Others(other) => other.wait().unwrap(),
                                Takeoff::Nowhere => unreachable!(),
                            }
                        };
                        assert_eq!(flying.fetch_add(1, Ordering::SeqCst), 0);
                        flights.fetch_add(1, Ordering::SeqCst);
                        flying.fetch_sub(1, Ordering::SeqCst);
                        drop(flight);
                    }
                });
            }
        });
        assert_eq!(flights.into_inner(), 400);
    }
}
