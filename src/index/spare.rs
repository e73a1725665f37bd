//! The spare: a file of nothing that is given up when the disk is full, so that what frees space can
//! be written down even then.
//!
//! Invariants: nothing is ever kept in it; it is made only where there is room for it, and given up only for
//! changes that free something. Must not know: SQLite.

use std::fs::{self, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};

use nix::sys::statvfs::statvfs;

/// Enough for the log of a removal, and for what a checkpoint adds to the index.
const SIZE: u64 = 1 << 20;
/// It is made where so much is free.
const ROOM: u64 = 4 * SIZE;

/// The spare of one index.
pub(super) struct Spare {
    path: PathBuf,
    there: bool,
}

impl Spare {
    /// The spare beside the index in `file`, made if it is missing and there is room.
    pub fn beside(file: &Path) -> Spare {
        let path = file.with_file_name("index.spare");
        let mut spare = Spare { there: fs::metadata(&path).is_ok_and(|m| m.len() == SIZE), path };
        spare.keep();
        spare
    }

    /// Makes it again when it was given up and there is room.
    pub fn keep(&mut self) {
        let room = |v: nix::sys::statvfs::Statvfs| v.blocks_available() * v.fragment_size() >= ROOM;
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if self.there || !statvfs(dir).is_ok_and(room) {
            return;
        }
        let made = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&self.path)
            .and_then(|file| Ok(nix::fcntl::posix_fallocate(&file, 0, SIZE as i64)?));
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
        let gone = fs::remove_file(&self.path);
        tracing::warn!(path = %self.path.display(), "the disk is full: the spare is given up to free space");
        gone.is_ok()
    }
}
