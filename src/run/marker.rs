//! What flights ask of the kernel: a file that marks a key as taken while it is locked (flock).
//!
//! Invariants: nothing is decided here; a lock ends with the last descriptor of it, whichever process has it.
//! `tests/interleavings` has a kernel of its own in place of this file. Must not know: when who may execute what.

use std::fs::{File, OpenOptions, TryLockError};
use std::io::{self, Write};
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::fs::{DirBuilderExt, FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::Duration;

/// How long nobody has written to what is old.
const OLD: Duration = Duration::from_secs(60);

/// An open marker; what was locked through it is unlocked when it is dropped here and wherever it was inherited.
#[derive(Debug)]
pub struct Marker(File);

impl Marker {
    /// Opens the one at `path`, in `dir`, or makes it; one that another user left can only be read, which is enough for a
    /// lock.
    pub fn open_or_make(dir: &Path, path: &Path) -> io::Result<Marker> {
        let with = |write: bool| {
            let mut options = OpenOptions::new();
            options
                .read(true)
                .write(write)
                .create(write)
                .mode(0o644)
                .custom_flags(libc::O_NOFOLLOW)
                .open(path)
        };
        let opened = match with(true) {
            Err(e) if e.kind() == io::ErrorKind::PermissionDenied => with(false),
            Err(e) if e.kind() == io::ErrorKind::NotFound => {
                // A store that an earlier version made.
                std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir)?;
                with(true)
            }
            other => other,
        };
        opened.map(Marker)
    }

    /// Opens the one at `path` to look at it.
    pub fn open(path: &Path) -> io::Result<Marker> {
        OpenOptions::new().read(true).custom_flags(libc::O_NOFOLLOW).open(path).map(Marker)
    }

    /// Locks it for its holder alone; `false` when somebody else has locked it.
    pub fn try_lock(&self) -> io::Result<bool> {
        match self.0.try_lock() {
            Ok(()) => Ok(true),
            Err(TryLockError::WouldBlock) => Ok(false),
            Err(TryLockError::Error(e)) => Err(e),
        }
    }

    /// Waits until nobody has it locked for himself alone.
    pub fn wait(&self) -> io::Result<()> {
        // Shared, so that all who wait go on at once.
        self.0.lock_shared()
    }

    /// Whether it is what stands at `path` now.
    pub fn stands_at(&self, path: &Path) -> io::Result<bool> {
        let ours = self.0.metadata()?;
        let there = path.symlink_metadata();
        Ok(there.is_ok_and(|m| (m.dev(), m.ino()) == (ours.dev(), ours.ino())))
    }

    /// Whether nobody has signed it.
    pub fn is_empty(&self) -> io::Result<bool> {
        Ok(self.0.metadata()?.len() == 0)
    }

    /// Whether it was last written to (or made) long ago.
    pub fn is_old(&self) -> bool {
        let written = self.0.metadata().and_then(|m| m.modified());
        written.is_ok_and(|at| at.elapsed().is_ok_and(|age| age > OLD))
    }

    /// Writes this process's number into an empty one.
    pub fn sign(&self) -> io::Result<()> {
        (&self.0).write_all(format!("{}\n", std::process::id()).as_bytes())
    }

    /// The number of the process that signed it.
    pub fn signed(&self) -> Option<u32> {
        let mut text = [0; 16];
        let n = self.0.read_at(&mut text, 0).unwrap_or(0);
        // What the command prints follows.
        let end = text[..n].iter().position(|b| *b == b'\n')?;
        std::str::from_utf8(&text[..end]).ok()?.parse().ok()
    }

    /// Its descriptor, to be inherited.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// All markers of a directory that can be listed.
pub fn all(dir: &Path) -> impl Iterator<Item = PathBuf> {
    std::fs::read_dir(dir).into_iter().flatten().flatten().map(|entry| entry.path())
}

/// Takes a marker's name away.
pub fn remove(path: &Path) -> io::Result<()> {
    std::fs::remove_file(path)
}

/// Gives others the time to sign.
pub fn moment() {
    std::thread::sleep(Duration::from_millis(5));
}
