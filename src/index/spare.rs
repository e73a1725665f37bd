//! The spare: a file of nothing that is given up when the disk is full, so that what frees space can
//! be written down even then.
//!
//! Invariants: nothing is ever kept in it; it is made only where there is room for it, and given up only for
//! changes that free something. Must not know: SQLite.

use std::path::{Path, PathBuf};

use crate::store::port::paths;

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
        let there = paths::stat(&path).is_ok_and(|s| s.is_some_and(|s| s.st_size as u64 == SIZE));
        let mut spare = Spare { there, path };
        spare.keep();
        spare
    }

    /// Makes it again when it was given up and there is room.
    pub fn keep(&mut self) {
        let dir = self.path.parent().unwrap_or(Path::new("."));
        if self.there || !paths::available(dir).is_ok_and(|bytes| bytes >= ROOM) {
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
