//! Ownership: one process at a time owns a store.
//!
//! Purpose: an advisory lock (flock) on the file `lock`, which holds the owner's pid for other
//! people's error messages. Invariants: the lock goes with the process, however it dies; the
//! pid is taken out of the file only by an owner that ended in order, so that the next one
//! knows whether its predecessor did. It is written in place and blanked out in place, so that a full
//! disk does not stand in the way. The lock belongs to the open file description: a
//! process that forks into the background opens the store after the fork.
//! Must not know: anything else of the store.

use std::ffi::OsStr;
use std::fs::File;
use std::io;
use std::path::Path;
use std::time::Duration;

use super::dir::{Dir, read_whole};
use super::error::is_no_space;
use super::{Result, StoreError, port};

pub(super) const LOCK: &str = "lock";

/// A held lock.
pub(super) struct Lock {
    file: File,
    /// The owner before this one died without closing the store.
    pub after_death: bool,
}

impl Lock {
    /// Takes the lock of the store in `root`, or says who has it.
    pub fn take(root: &Dir) -> Result<Lock> {
        let name = OsStr::new(LOCK);
        let file = port::open_write(root.fd(), name).map_err(root.err("open", name))?;
        if !port::try_lock(&file, false).map_err(root.err("lock", name))? {
            return Err(StoreError::Locked { path: root.path().to_owned(), pid: owner(&file) });
        }
        let before = read_whole(&file).map_err(root.err("read", name))?;
        let lock = Lock { file, after_death: !before.trim_ascii().is_empty() };
        match lock.write(&std::process::id().to_string()) {
            // It is for messages; where a file system has no room even in place, they do without.
            Err(e) if is_no_space(&e) => {}
            other => other.map_err(root.err("write", name))?,
        }
        Ok(lock)
    }

    /// Says that the owner ended in order. The lock itself goes with the descriptor.
    pub fn closed_in_order(&self) {
        // Best effort: the next owner is merely more careful than it had to be.
        let _ = self.write("");
    }

    /// Always as many bytes as the largest pid needs.
    fn write(&self, pid: &str) -> io::Result<()> {
        port::write_at(&self.file, format!("{pid:<10}\n").as_bytes(), 0)
    }
}

/// A store that nobody owns, and nobody will as long as this lives; others may hold it so, too.
#[derive(Debug)]
pub struct Unowned {
    _lock: File,
}

impl Unowned {
    /// Of the store at `root`, which need not be writable, or says who owns it.
    pub fn hold(root: &Path) -> Result<Unowned> {
        let path = root.join(LOCK);
        let file = port::paths::open(&path).map_err(|e| StoreError::io("open", &path, e))?;
        if !port::try_lock(&file, true).map_err(|e| StoreError::io("lock", &path, e))? {
            return Err(StoreError::Locked { path: root.to_owned(), pid: owner(&file) });
        }
        Ok(Unowned { _lock: file })
    }
}

/// The process that owns the store at `root` now (0 when it has not said so), without opening the store.
pub fn owner_of(root: &Path) -> Option<u32> {
    let file = port::paths::open(&root.join(LOCK)).ok()?;
    // Taken for a moment only: who opens the store just then tries again.
    match port::try_lock(&file, true) {
        Ok(false) => Some(owner(&file)),
        _ => None,
    }
}

/// The pid in the lock file. An owner that has just taken the lock needs a moment to write it.
fn owner(file: &File) -> u32 {
    for _ in 0..20 {
        let text = read_whole(file).unwrap_or_default();
        if let Some(pid) = std::str::from_utf8(&text).ok().and_then(|t| t.trim().parse().ok()) {
            return pid;
        }
        std::thread::sleep(Duration::from_millis(5));
    }
    0
}
