//! Hashing a draft's files while nobody can write to them, and remembering the result.
//!
//! Invariants: a remembered hash was computed while a read lease on the file was held from
//! before the first byte was read until after the last, so no writer and no shared mapping
//! touched it; it counts only for the same inode, size, mtime and ctime, and is forgotten before
//! the file is opened for writing again. A lease is given up within one step of hashing when
//! somebody wants to write.
//! Must not know: packs, the index, keys.

use std::collections::HashMap;
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use parking_lot::Mutex;

use super::unwritten::Unwritten;
use super::{Cache, CacheError, Draft, Result, at};
use crate::model::groups::{GROUP, GroupHasher};
use crate::model::manifest::Content;
use crate::store::{Inode, PACK_LIMIT, port};

/// Bytes hashed between two looks at whether somebody wants to write.
pub(super) const STEP: usize = 4 * GROUP;

/// Which state of which file.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct FileId {
    pub dev: u64,
    pub ino: u64,
    pub size: u64,
    mtime: (i64, i64),
    ctime: (i64, i64),
}

impl FileId {
    /// When its content or attributes were last changed, nanoseconds since 1970.
    pub fn changed_ns(&self) -> i64 {
        self.ctime.0.saturating_mul(1_000_000_000).saturating_add(self.ctime.1)
    }

    pub fn of(stat: &libc::stat) -> FileId {
        FileId {
            dev: stat.st_dev,
            ino: stat.st_ino,
            size: stat.st_size.max(0) as u64,
            mtime: (stat.st_mtime, stat.st_mtime_nsec),
            ctime: (stat.st_ctime, stat.st_ctime_nsec),
        }
    }
}

/// A read lease on an open file (opened read-only); dropping it gives it back.
pub(super) struct ReadLease<'f>(&'f File);

/// How asking for a lease ended.
pub(super) enum Asked<'f> {
    /// Nobody can write to the file while this lives.
    Granted(ReadLease<'f>),
    /// Somebody has it open for writing, or mapped.
    Writer,
    /// There are no leases here, or not for us.
    Unsupported,
}

fn lease_call(file: &File, command: libc::c_int, argument: libc::c_int) -> io::Result<libc::c_int> {
    // SAFETY: these fcntl commands take an int and touch no memory of ours.
    let answer = unsafe { libc::fcntl(file.as_raw_fd(), command, argument) };
    if answer < 0 { Err(io::Error::last_os_error()) } else { Ok(answer) }
}

impl<'f> ReadLease<'f> {
    /// Asks for a lease.
    pub fn ask(file: &'f File) -> Asked<'f> {
        match lease_call(file, libc::F_SETLEASE, libc::F_RDLCK) {
            Ok(_) => Asked::Granted(ReadLease(file)),
            Err(e) if e.raw_os_error() == Some(libc::EAGAIN) => Asked::Writer,
            Err(_) => Asked::Unsupported,
        }
    }

    /// Asks again for some milliseconds while there is a writer: of a file that was passed through, the
    /// kernel tells that it was closed just before it has closed it.
    fn ask_after_close(file: &'f File) -> Asked<'f> {
        let mut pause = Duration::from_millis(1);
        loop {
            match Self::ask(file) {
                Asked::Writer if pause < Duration::from_millis(16) => std::thread::sleep(pause),
                asked => return asked,
            }
            pause *= 2;
        }
    }

    /// False as soon as somebody waits to write.
    pub fn stands(&self) -> bool {
        lease_call(self.0, libc::F_GETLEASE, 0).is_ok_and(|kind| kind == libc::F_RDLCK)
    }
}

impl Drop for ReadLease<'_> {
    fn drop(&mut self) {
        let _ = lease_call(self.0, libc::F_SETLEASE, libc::F_UNLCK);
    }
}

/// A broken lease is told by SIGIO, which would end the process; we look for ourselves instead.
pub(super) fn ignore_sigio() {
    use nix::sys::signal::{SigHandler, Signal, signal};
    // SAFETY: ignoring a signal installs no handler that could do harm.
    let _ = unsafe { signal(Signal::SIGIO, SigHandler::SigIgn) };
}

/// What a draft remembers of its files.
#[derive(Default)]
pub(super) struct Memory {
    state: Mutex<State>,
    /// What must not be sealed.
    pub unwritten: Unwritten,
}

#[derive(Default)]
struct State {
    known: HashMap<(u64, u64), (FileId, Content)>,
    running: Vec<((u64, u64), Arc<AtomicBool>)>,
}

/// A hash that is being computed; dropping it ends that.
pub(super) struct Running<'m> {
    memory: &'m Memory,
    cancelled: Arc<AtomicBool>,
}

impl Memory {
    /// One that knows of these files that they must not be sealed.
    pub fn of(unwritten: Vec<Inode>) -> Memory {
        Memory { state: Mutex::default(), unwritten: Unwritten::new(unwritten) }
    }

    /// Forgets the hash of a file.
    pub fn forget(&self, file: &Inode) {
        self.state.lock().known.retain(|(_, ino), _| *ino != file.number());
    }

    /// What is known about a file in exactly this state.
    pub fn get(&self, id: &FileId) -> Option<Content> {
        let state = self.state.lock();
        state.known.get(&(id.dev, id.ino)).filter(|(known, _)| known == id).map(|(_, c)| c.clone())
    }

    /// Announces that a file will be hashed, so that it can be cancelled.
    pub fn start(&self, dev: u64, ino: u64) -> Running<'_> {
        let cancelled = Arc::new(AtomicBool::new(false));
        self.state.lock().running.push(((dev, ino), cancelled.clone()));
        Running { memory: self, cancelled }
    }

    /// Forgets all: the draft is gone.
    pub fn clear(&self) {
        self.state.lock().known = HashMap::new();
    }

    /// Forgets a file and cancels what runs on it.
    pub fn cancel(&self, dev: u64, ino: u64) {
        let mut state = self.state.lock();
        state.known.remove(&(dev, ino));
        for (_, flag) in state.running.iter().filter(|(file, _)| *file == (dev, ino)) {
            flag.store(true, Ordering::Release);
        }
    }
}

impl Running<'_> {
    /// Hashes all of `file`; `None` when it was cancelled or the lease was broken.
    pub fn hash(&self, file: &File, lease: &ReadLease<'_>) -> io::Result<Option<Content>> {
        hash_file(file, &|| self.goes_on() && lease.stands())
    }

    /// Nobody has cancelled it.
    fn goes_on(&self) -> bool {
        !self.cancelled.load(Ordering::Acquire)
    }

    /// Remembers a result, unless it was cancelled. The lease must still be held.
    pub fn remember(&self, id: FileId, content: &Content) {
        let mut state = self.memory.state.lock();
        if self.goes_on() {
            state.known.insert((id.dev, id.ino), (id, content.clone()));
        }
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.memory.state.lock().running.retain(|(_, flag)| !Arc::ptr_eq(flag, &self.cancelled));
    }
}

/// Hashes a file from its start, as long as `go_on` says so.
pub(super) fn hash_file(file: &File, go_on: &dyn Fn() -> bool) -> io::Result<Option<Content>> {
    let mut hasher = GroupHasher::default();
    let mut buf = vec![0u8; STEP];
    let mut offset = 0u64;
    loop {
        if !go_on() {
            return Ok(None);
        }
        let n = port::read_once(file, &mut buf, offset)?;
        if n == 0 {
            break;
        }
        hasher.update(&buf[..n]);
        offset += n as u64;
    }
    let (hash, groups, size) = hasher.finish();
    Ok(Some(Content { hash, size, groups }))
}

/// The content of bytes in memory.
pub(super) fn hash_bytes(bytes: &[u8]) -> Content {
    let mut hasher = GroupHasher::default();
    hasher.update(bytes);
    let (hash, groups, size) = hasher.finish();
    Content { hash, size, groups }
}

/// Reads up to `limit` bytes and one more, to show that there are more, without moving the file's shared position.
/// `size` is how many are expected: if that is what there is, one call reads them.
pub(super) fn read_some(file: &File, limit: u64, size: u64) -> io::Result<Vec<u8>> {
    let most = limit as usize + 1;
    let expected = size.min(limit) as usize;
    let mut bytes = vec![0; expected + 1];
    let mut len = 0;
    loop {
        let n = port::read_once(file, &mut bytes[len..], len as u64)?;
        // What is as long as expected has ended there.
        if n == 0 || (len == 0 && n == expected) {
            bytes.truncate(len + n);
            return Ok(bytes);
        }
        len += n;
        if len == most {
            return Ok(bytes);
        }
        if len == bytes.len() {
            bytes.resize((len * 2).min(most), 0);
        }
    }
}

impl Cache {
    /// Whether the store's file system has leases. Where it has none, nothing but counting open files tells
    /// whether somebody writes.
    pub fn has_leases(&self) -> bool {
        let Ok(probe) = self.inner.store.scratch() else { return false };
        let file = port::paths::reopen(probe.file().as_fd());
        file.is_ok_and(|file| !matches!(ReadLease::ask(&file), Asked::Unsupported))
    }

    /// Hashes one closed file of a draft under a read lease and remembers the hash by (inode,
    /// size, mtime, ctime). `Ok(false)` when a writer has it, it has no name any more, or the hash was
    /// cancelled (also by closing the cache). A large one is made durable, through `closed` itself: what was opened before the last
    /// writer had closed it is told of all errors of writing. It must not be open for writing itself.
    pub fn ingest(&self, draft: &Arc<Draft>, closed: &File) -> Result<bool> {
        let fail = |e| CacheError::io("hash", format!("a file of the draft {}", draft.id()), e);
        let stat = at::stat_of(closed).map_err(fail)?;
        if at::kind(&stat) != libc::S_IFREG || stat.st_nlink == 0 {
            return Ok(false);
        }
        let running = draft.memory.start(stat.st_dev, stat.st_ino);
        // A description of its own: a lease belongs to one, and asks for a read-only one.
        let file = port::paths::reopen(closed.as_fd()).map_err(fail)?;
        let Asked::Granted(lease) = ReadLease::ask_after_close(&file) else { return Ok(false) };
        let id = FileId::of(&at::stat_of(&file).map_err(fail)?);
        // Where that cannot be asked, reading fails, too, and says so.
        let named = || at::stat_of(&file).map_or(true, |stat| stat.st_nlink > 0);
        let closing = || self.inner.closing.load(Ordering::Relaxed);
        let go_on = || running.goes_on() && lease.stands() && named() && !closing();
        let Some(content) = hash_file(&file, &go_on).map_err(fail)? else { return Ok(false) };
        running.remember(id, &content);
        drop(lease);
        drop(running);
        if content.size > PACK_LIMIT {
            // Small files are written again, into a pack; this one stays where it is.
            self.sync_file(draft, closed.as_fd(), true).map_err(fail)?;
        }
        Ok(true)
    }
}
