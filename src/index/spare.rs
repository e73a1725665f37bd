//! What lets the index write down on a full disk what frees space: blocks behind the end of its log, and a spare.
//!
//! Invariants: the log has blocks for a small removal as long as the disk had room when they were last looked at, and nobody
//! else can take them; the spare, a file of nothing, is given up when they do not suffice, only for changes that free
//! something, and its blocks go to who is first. Both are made only where there is room. Must not know: what SQLite writes.

use std::path::{Path, PathBuf};

use crate::store::port::paths;

/// Enough for the log of a removal, and for what a checkpoint adds to the index.
const SIZE: u64 = 1 << 20;
/// Both are made where so much is free.
const ROOM: u64 = 4 * SIZE;
/// Blocks behind the end of the log: enough for the removal of some entries of some hundred blobs each.
const TAIL: u64 = SIZE / 2;
/// They are made up again when fewer are left.
const SHORT: u64 = TAIL / 2;

/// The spare of one index.
pub(super) struct Spare {
    path: PathBuf,
    there: bool,
    /// SQLite's log. It is written over from its beginning time and again, and loses what is behind its end when it is cut.
    log: PathBuf,
    seen: Seen,
    /// Where the blocks end that were had for it.
    end: u64,
}

/// The log as it was last looked at.
#[derive(Clone, Copy, Default)]
struct Seen {
    inode: u64,
    size: u64,
}

impl Spare {
    /// The spare beside the index in `file`, made if it is missing and there is room.
    pub fn beside(file: &Path) -> Spare {
        let path = file.with_file_name("index.spare");
        let there = paths::stat(&path).is_ok_and(|s| s.is_some_and(|s| s.st_size as u64 == SIZE));
        let mut log = file.as_os_str().to_owned();
        log.push("-wal");
        let mut spare = Spare { there, path, log: log.into(), seen: Seen::default(), end: 0 };
        spare.keep();
        spare
    }

    /// After a commit: makes again what is missing of both, when there is room.
    pub fn keep_all(&mut self) {
        self.keep();
        let Ok(Some(stat)) = paths::stat(&self.log) else { return };
        let now = Seen { inode: stat.st_ino, size: stat.st_size as u64 };
        let before = std::mem::replace(&mut self.seen, now);
        if now.inode != before.inode || now.size < before.size {
            self.end = 0;
        }
        if self.end >= now.size + SHORT || !self.is_roomy() {
            return;
        }
        let made =
            paths::open_to_write(&self.log).and_then(|log| paths::reserve_behind(&log, now.size, TAIL));
        match made {
            Ok(()) => self.end = now.size + TAIL,
            Err(e) => {
                tracing::debug!(path = %self.log.display(), "no blocks could be kept for the log: {e}");
                if e.raw_os_error() == Some(libc::EOPNOTSUPP) {
                    self.end = u64::MAX;
                }
            }
        }
    }

    fn is_roomy(&self) -> bool {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        paths::available(dir).is_ok_and(|bytes| bytes >= ROOM)
    }

    /// Makes the spare again when it was given up and there is room.
    pub fn keep(&mut self) {
        if self.there || !self.is_roomy() {
            return;
        }
        let made = paths::create(&self.path).and_then(|file| paths::reserve(&file, SIZE));
        match made {
            Ok(()) => self.there = true,
            Err(e) => tracing::debug!(path = %self.path.display(), "no spare could be kept: {e}"),
        }
    }

    /// Gives it up; false when there is none (any more).
    pub fn give_up(&mut self) -> bool {
        if !std::mem::take(&mut self.there) {
            return false;
        }
        let gone = paths::remove_file(&self.path);
        tracing::warn!(path = %self.path.display(), "the disk is full: the spare is given up to free space");
        gone.is_ok()
    }
}
