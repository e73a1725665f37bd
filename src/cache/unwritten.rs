//! Files of a draft of which the disk did not take what was written.
//!
//! Linux tells an error of writing back once, marks what it could not write as written, and answers the next sync of that
//! file with success, most of all through a descriptor that was opened since. So whoever is told has it remembered here, and
//! what such a file holds is not sealed any more: what is in memory of it may be what was written, or what the disk had before.
//! It counts again when it was emptied; a file that takes its place is another.
//! Invariants: a sync is announced before it begins, so that who relies on a sync of the same file waits for what the
//! other was told; what is remembered outlives the process, as the kernel's memory of the file does.
//! Must not know: what is in the files, how they are stored.

use std::collections::HashSet;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::{Condvar, Mutex};

use super::{Cache, Draft};
use crate::store::{Inode, port};

/// What a draft remembers of that.
#[derive(Default)]
pub(super) struct Unwritten {
    /// There may be such a file: spares the lock and asking which file one is.
    any: AtomicBool,
    state: Mutex<State>,
    over: Condvar,
}

#[derive(Default)]
struct State {
    files: HashSet<Inode>,
    syncing: Vec<Inode>,
}

/// A file is being synced; until it is dropped.
struct Syncing<'u> {
    of: &'u Unwritten,
    file: Inode,
}

impl Unwritten {
    /// With what an earlier process has noted.
    pub fn new(files: Vec<Inode>) -> Unwritten {
        let any = AtomicBool::new(!files.is_empty());
        let state = State { files: files.into_iter().collect(), syncing: Vec::new() };
        Unwritten { any, state: Mutex::new(state), over: Condvar::new() }
    }

    fn begin(&self, file: Inode) -> Syncing<'_> {
        self.state.lock().syncing.push(file);
        Syncing { of: self, file }
    }

    /// The disk has refused this file.
    pub fn add(&self, file: Inode) {
        self.state.lock().files.insert(file);
        self.any.store(true, Ordering::Release);
    }

    /// Whether an open file is known to be one.
    pub fn has(&self, file: impl AsFd) -> io::Result<bool> {
        if !self.any.load(Ordering::Acquire) {
            return Ok(false);
        }
        Ok(self.state.lock().files.contains(&Inode::of(file)?))
    }

    /// The same after a sync that succeeded: others who were at it may have been told of an error instead.
    pub fn has_after_sync(&self, file: &Inode) -> bool {
        let mut state = self.state.lock();
        while state.syncing.contains(file) {
            self.over.wait(&mut state);
        }
        state.files.contains(file)
    }

    /// All of them.
    pub fn files(&self) -> Vec<Inode> {
        self.state.lock().files.iter().copied().collect()
    }

    fn remove(&self, file: &Inode) -> bool {
        self.state.lock().files.remove(file)
    }
}

impl Drop for Syncing<'_> {
    fn drop(&mut self) {
        let mut state = self.of.state.lock();
        if let Some(at) = state.syncing.iter().position(|f| *f == self.file) {
            state.syncing.swap_remove(at);
        }
        drop(state);
        self.of.over.notify_all();
    }
}

impl Cache {
    /// Waits until an open file of a draft is on the disk, all of it or only what is needed to read its content.
    pub fn sync_file(&self, draft: &Draft, file: BorrowedFd<'_>, data_only: bool) -> io::Result<()> {
        let inode = Inode::of(file)?;
        let syncing = draft.memory.unwritten.begin(inode);
        let synced = if data_only { port::sync_data(file) } else { port::sync_all(file) };
        if let Err(e) = &synced {
            self.disk_refused(draft, inode, e);
        }
        drop(syncing);
        synced
    }

    /// A file of a draft was written through this descriptor, which is about to be closed: has an error that it was not told of, or
    /// that a writing sync through it was told of, remembered. Waits for nothing.
    pub fn written_through(&self, draft: &Draft, file: BorrowedFd<'_>, failed: Option<&io::Error>) {
        let Ok(inode) = Inode::of(file) else { return };
        let untold = port::written_so_far(file);
        // Others are not the disk's: there are sandboxes without the call.
        let of_the_disk =
            |e: &&io::Error| matches!(e.raw_os_error(), Some(libc::EIO | libc::ENOSPC | libc::EDQUOT));
        if let Some(e) = failed.or(untold.as_ref().err().filter(of_the_disk)) {
            self.disk_refused(draft, inode, e);
        }
    }

    /// An open file of a draft was cut to nothing: what is written to it from now on is new.
    pub fn emptied(&self, draft: &Draft, file: BorrowedFd<'_>) {
        if let Ok(true) = draft.memory.unwritten.has(file)
            && let Ok(inode) = Inode::of(file)
            && draft.memory.unwritten.remove(&inode)
            && let Err(e) = self.inner.store.forget_unwritten(draft.id(), &inode)
        {
            tracing::warn!("a file of the draft {} will not be sealed after a restart: {e}", draft.name());
        }
    }

    fn disk_refused(&self, draft: &Draft, file: Inode, e: &io::Error) {
        tracing::warn!("the disk did not take what was written to a file of the draft {}: {e}", draft.name());
        draft.memory.unwritten.add(file);
        draft.memory.forget(&file);
        // What was prepared may rely on it.
        drop(draft.change());
        self.note_one_unwritten(draft, &file);
    }

    /// Has the next owner of the store know, too.
    pub(super) fn note_unwritten(&self, draft: &Draft) {
        for file in draft.memory.unwritten.files() {
            self.note_one_unwritten(draft, &file);
        }
    }

    fn note_one_unwritten(&self, draft: &Draft, file: &Inode) {
        if let Err(e) = self.inner.store.note_unwritten(draft.id(), file) {
            tracing::warn!("it cannot be noted that a file must not be sealed: {e}");
        }
    }
}
