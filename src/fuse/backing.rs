//! Passthrough: which inodes the kernel reads and writes by itself.
//!
//! Invariants: all opens of an inode share one backing id until the last release; passthrough and
//! cached opens never mix on one inode (the kernel answers EIO to that).

use std::collections::HashMap;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use fuser::BackingId;
use parking_lot::Mutex;

struct Open {
    id: Option<Arc<BackingId>>,
    count: u64,
}

/// The open inodes of a session that could be passed through.
pub struct Backings {
    enabled: bool,
    open: Mutex<HashMap<u64, Open>>,
}

impl Backings {
    /// `enabled`: kernel and privileges allow passthrough, and the user wants it.
    pub fn new(enabled: bool) -> Self {
        Self { enabled, open: Mutex::default() }
    }

    /// Counts an open of `ino`. The id to answer with, or `None` for a cached open. `register`
    /// makes an id of the file below.
    pub fn open(
        &self,
        ino: u64,
        file: &OwnedFd,
        register: impl FnOnce(&OwnedFd) -> std::io::Result<BackingId>,
    ) -> Option<Arc<BackingId>> {
        if !self.enabled {
            return None;
        }
        let mut open = self.open.lock();
        let entry = open.entry(ino).or_insert_with(|| {
            // The kernel keeps the registered descriptor until the last release. It must not be one
            // for writing, or the file would seem to have a writer for as long as it has a reader.
            let id = read_only(file).and_then(|f| register(&f));
            if let Err(e) = &id {
                tracing::debug!(error = %e, "this file cannot be passed through");
            }
            Open { id: id.ok().map(Arc::new), count: 0 }
        });
        entry.count += 1;
        entry.id.clone()
    }

    /// Counts a further open of an inode that is passed through already.
    pub fn join(&self, ino: u64) -> Option<Arc<BackingId>> {
        if !self.enabled {
            return None;
        }
        let mut open = self.open.lock();
        let entry = open.get_mut(&ino)?;
        entry.count += 1;
        entry.id.clone()
    }

    /// An open that was counted was released.
    pub fn release(&self, ino: u64) {
        if !self.enabled {
            return;
        }
        let mut open = self.open.lock();
        let Some(entry) = open.get_mut(&ino) else { return };
        entry.count -= 1;
        if entry.count == 0 {
            let last = open.remove(&ino);
            drop(open);
            drop(last);
        }
    }
}

/// A read-only descriptor of the same file.
fn read_only(file: &OwnedFd) -> std::io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}
