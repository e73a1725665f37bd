//! Open files: opening, reading, writing, and ingesting after the last writer.
//!
//! Invariants: only draft files have handles (sealed files are read by number alone); a handle for
//! writing is counted in its draft from before the file is opened until after it was released, so that
//! sealing knows its writers; handles never take the last of the process's descriptors.

use std::fs::File;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::Ordering;

use crossbeam_channel::{Sender, bounded};
use nix::errno::Errno;

use super::counted::Counted;
use super::draft_node::{DraftNode, Open};
use super::nodes::BlobNode;
use super::sys::{FallocateFlags, OFlag};
use super::types::{Caller, Found, How, Ino, Kind, Opened};
use super::{Result, Target, VfsError, View, sys};
use crate::cache::{Cache, CacheError, Draft};
use crate::model::groups::group_count;
use crate::store::{Location, PACK_LIMIT, StoreError};

/// What a handle number stands for: an open file of a draft.
pub(super) struct Handle {
    open: Arc<Open>,
    pub(super) node: Arc<DraftNode>,
    pub(super) writer: bool,
    /// It is not mapped, and writes do not go through the kernel's pages of the file.
    direct: bool,
    /// Who made it, and open for writing alone.
    maker: Option<u32>,
}

/// Flags of open(2) that mean something for the file below; the kernel does the rest.
const PASSED: OFlag = OFlag::O_ACCMODE.union(OFlag::O_SYNC).union(OFlag::O_DSYNC);

fn writes(flags: i32) -> bool {
    flags & libc::O_ACCMODE != libc::O_RDONLY
}

/// Whether a file that is made with these flags may be written past the kernel's pages: nobody maps or reads what is open for
/// writing alone. (Of a megabyte that does not begin at a page the kernel sends the end by itself, which some file systems
/// take badly.)
fn is_written_only(flags: i32) -> bool {
    flags & libc::O_ACCMODE == libc::O_WRONLY && flags & libc::O_EXCL != 0
}

impl View {
    fn add_handle(&self, handle: Handle) -> u64 {
        let fh = self.next_handle.fetch_add(1, Ordering::Relaxed);
        self.handles.write().insert(fh, Arc::new(handle));
        fh
    }

    fn handle(&self, fh: u64) -> Result<Arc<Handle>> {
        self.handles.read().get(&fh).cloned().ok_or(VfsError::BadHandle)
    }

    /// Whether this handle writes past the kernel's pages, and so was never offered to be passed through.
    pub fn is_past_pages(&self, fh: u64) -> bool {
        fh != 0 && self.handles.read().get(&fh).is_some_and(|handle| handle.direct)
    }

    fn file(&self, fh: u64) -> Result<Arc<OwnedFd>> {
        Ok(self.handle(fh)?.open.fd.clone())
    }

    /// Opens a file.
    pub fn open(&self, caller: Caller, ino: Ino, flags: i32) -> Result<Opened> {
        match self.target(ino)? {
            Target::Sealed(r) if writes(flags) => Err(self.refuse_change(&r.entry)),
            Target::Sealed(r) => self.sealed_open(&r),
            Target::Draft(_) if writes(flags) && self.read_only() => Err(VfsError::ReadOnly),
            Target::Draft(node) => self.open_draft(caller, &node, flags),
            _ if writes(flags) => Err(VfsError::ReadOnly),
            Target::Snapshot(_) | Target::Blob(_) => Ok(Opened { fh: 0, how: How::Keep }),
            _ => Err(VfsError::IsDir),
        }
    }

    fn open_draft(&self, caller: Caller, node: &Arc<DraftNode>, flags: i32) -> Result<Opened> {
        if node.kind != Kind::File {
            return Err(VfsError::Invalid);
        }
        let flags = OFlag::from_bits_retain(flags);
        let counted = Counted::handle()?;
        if !writes(flags.bits()) {
            let (pinned, _) = self.reach.pin(node)?;
            let fd = sys::reopen(&pinned, flags & PASSED)?;
            return Ok(self.opened(node, (fd, counted), flags.bits(), None, false));
        }
        let _gate = self.gate(node)?;
        self.note_writer(caller, &node.draft);
        // Counted first: sealing must not overlook it; the hash's lease must be gone, or the open waits.
        node.draft.writer_opened();
        node.draft.cancel_ingest(node.backing.0, node.backing.1);
        let opened = self.reach.pin(node).and_then(|(pinned, _)| Ok(sys::reopen(&pinned, flags & PASSED)?));
        match opened {
            Ok(fd) => Ok(self.opened(node, (fd, counted), flags.bits(), None, false)),
            Err(e) => {
                node.draft.writer_closed();
                Err(e)
            }
        }
    }

    /// `maker` is who has made it for writing alone; `direct` as in [`Handle`].
    fn opened(
        &self,
        node: &Arc<DraftNode>,
        (fd, counted): (OwnedFd, Counted),
        flags: i32,
        maker: Option<u32>,
        direct: bool,
    ) -> Opened {
        let (open, writer) = (Open::new(fd, counted), writes(flags));
        node.add_handle(&open, writer);
        let (fd, node) = (open.fd.clone(), node.clone());
        let fh = self.add_handle(Handle { open, node, writer, direct, maker });
        Opened { fh, how: if direct { How::Direct } else { How::Backing(fd) } }
    }

    /// Makes a regular file and opens it. One that stands there is `EEXIST` with `O_EXCL`, and `Stale` without. `passes`: the
    /// kernel may be had to write to it by itself.
    pub fn create(
        &self,
        caller: Caller,
        parent: Ino,
        name: &std::ffi::OsStr,
        mode: u32,
        flags: i32,
        passes: bool,
    ) -> Result<(Found, Opened)> {
        let dir = match self.target(parent)? {
            Target::Draft(d) if !self.read_only() => d,
            Target::Sealed(r) => return Err(self.refuse_change(&r.entry)),
            _ if self.read_only() => return Err(VfsError::ReadOnly),
            _ => return Err(VfsError::NotPermitted),
        };
        let gate = self.gate(&dir)?;
        self.note_writer(caller, &dir.draft);
        self.has_room()?;
        let counted = Counted::handle()?;
        dir.draft.writer_opened();
        let made = self.draft_create(caller, &dir, name, mode, OFlag::from_bits_retain(flags) & PASSED);
        match made {
            Ok((found, fd)) => {
                let node = self.target(found.attr.ino);
                if !writes(flags) || !matches!(node, Ok(Target::Draft(_))) {
                    dir.draft.writer_closed();
                }
                let Target::Draft(node) = node? else { return Err(VfsError::Stale) };
                let maker = is_written_only(flags).then_some(caller.pid);
                let direct = maker.is_some_and(|maker| !passes || self.makers.makes_small(maker));
                let opened = self.opened(&node, (fd, counted), flags, maker, direct);
                Ok((found, opened))
            }
            Err(e) => {
                dir.draft.writer_closed();
                drop((gate, counted));
                match e {
                    // Somebody else made it after the kernel had looked. It looks again then, and opens what it finds
                    // as any file: whether the caller may, and what it is cut to, is not asked of a file that is new.
                    VfsError::Draft(Errno::EEXIST) if flags & libc::O_EXCL == 0 => Err(VfsError::Stale),
                    e => Err(e),
                }
            }
        }
    }

    /// Reads from an open file (or, for sealed files and control files, by number). Never waits for a tier.
    pub fn read(&self, ino: Ino, fh: u64, offset: u64, buf: &mut [u8]) -> Result<usize> {
        if fh != 0 {
            return Ok(sys::read(&*self.file(fh)?, offset, buf)?);
        }
        match self.target(ino)? {
            Target::Sealed(r) => self.read_sealed(&r.entry, r.record, offset, buf),
            Target::Snapshot(content) => {
                let from = usize::try_from(offset).unwrap_or(usize::MAX).min(content.len());
                let n = buf.len().min(content.len() - from);
                buf[..n].copy_from_slice(&content[from..from + n]);
                Ok(n)
            }
            Target::Blob(b) => self.read_blob(&b, offset, buf),
            Target::Draft(node) => {
                let (pinned, _) = self.reach.pin(&node)?;
                let fd = sys::reopen(&pinned, OFlag::O_RDONLY)?;
                Ok(sys::read(&fd, offset, buf)?)
            }
            _ => Err(VfsError::IsDir),
        }
    }

    fn read_blob(&self, b: &BlobNode, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let mut missed = None;
        loop {
            let at = self.cache.index().blob(&b.hash)?.ok_or(VfsError::Stale)?.location;
            match self.read_blob_at(b, at, offset, buf) {
                // Compaction may have moved it since the index was asked.
                Err(VfsError::Cache(CacheError::Store(StoreError::Missing { .. }))) if missed != Some(at) => {
                    missed = Some(at);
                }
                read => return read,
            }
        }
    }

    fn read_blob_at(&self, b: &BlobNode, at: Location, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let store = self.cache.store();
        if group_count(b.held.size) > 0 && b.groups.get().is_none() && at == Location::Loose {
            // A blob without its entry has no group list at hand: the first read makes one.
            let _ = b.groups.set(store.blob_groups(&b.hash)?);
        }
        let groups = b.groups.get().map_or(&[][..], |g| g);
        Ok(store.read_verified(&b.hash, b.held.size, groups, at, offset, buf)?)
    }

    /// Writes to an open file; `drop_setid` clears set-id bits first, as a local file system does.
    pub fn write(&self, fh: u64, offset: u64, data: &[u8], drop_setid: bool) -> Result<usize> {
        let handle = self.handle(fh)?;
        if drop_setid {
            sys::drop_setid(&handle.open.fd)?;
        }
        let done =
            sys::write(&*handle.open.fd, offset, data).inspect_err(|e| self.write_failed(&handle, *e))?;
        // The kernel has taken its pages away before this; who maps the file may have asked for one meanwhile.
        if handle.direct
            && handle.node.is_shared()
            && let Some(kernel) = self.kernel.get()
        {
            kernel.content_changed(handle.node.ino);
        }
        Ok(done)
    }

    /// A write through a descriptor that syncs each of them may have been refused by the disk, and only its writer was told.
    fn write_failed(&self, handle: &Handle, e: Errno) {
        // Where there is no room a later write may be taken.
        if e == Errno::EIO && sys::syncs_each_write(&*handle.open.fd) {
            self.cache.written_through(&handle.node.draft, handle.open.fd.as_fd(), Some(&e.into()));
        }
    }

    /// The last reference to a handle is gone.
    pub fn release(&self, fh: u64) {
        let Some(handle) = self.handles.write().remove(&fh) else { return };
        let Handle { open: file, node, writer, direct, maker } = &*handle;
        if !writer {
            return node.drop_handle(file, false);
        }
        let fd = &file.fd;
        // Small files are hashed when they are packed or asked for.
        let size = sys::stat(&**fd).map_or(0, |st| st.st_size as u64);
        if let Some(maker) = maker {
            self.makers.made(*maker, size);
        }
        let large = size > PACK_LIMIT;
        if large {
            // Whoever opens it later is not told of what others were told already; and who seals waits for its writers.
            self.cache.written_through(&node.draft, fd.as_fd(), None);
        }
        node.draft.writer_closed();
        node.drop_handle(file, true);
        // What a mapping wrote in the first second of a new file. Other writes the kernel has seen.
        if !direct {
            self.attributes_changed(&[node.ino]);
        }
        let reopened = large.then(|| sys::reopen(&**fd, OFlag::O_RDONLY));
        let draft = node.draft.clone();
        // The lease that hashing needs is not given while the writer's own descriptor is open.
        drop(handle);
        if let Some(Ok(file)) = reopened {
            self.ingest.push(draft, file.into());
        }
    }

    /// Makes an open file durable.
    pub fn fsync(&self, ino: Ino, fh: u64, data_only: bool) -> Result<()> {
        if fh != 0 {
            let handle = self.handle(fh)?;
            return self.sync_draft_file(&handle.node, handle.open.fd.as_fd(), data_only);
        }
        match self.target(ino)? {
            Target::Draft(node) => {
                let (pinned, _) = self.reach.pin(&node)?;
                let fd = sys::reopen(&pinned, OFlag::O_RDONLY)?;
                match node.kind {
                    Kind::File => self.sync_draft_file(&node, fd.as_fd(), data_only),
                    _ => Ok(sys::sync_dir(fd.as_fd())?),
                }
            }
            _ => Ok(()),
        }
    }

    fn sync_draft_file(&self, node: &DraftNode, file: BorrowedFd<'_>, data_only: bool) -> Result<()> {
        let synced = self.cache.sync_file(&node.draft, file, data_only);
        synced.map_err(|e| VfsError::Draft(e.raw_os_error().map_or(Errno::EIO, Errno::from_raw)))
    }

    /// fallocate(2) on an open file; `drop_setid` as in [`write`](View::write).
    pub fn fallocate(&self, fh: u64, mode: i32, offset: u64, len: u64, drop_setid: bool) -> Result<()> {
        self.has_room()?;
        let fd = self.file(fh)?;
        if drop_setid {
            sys::drop_setid(&fd)?;
        }
        let mode = FallocateFlags::from_bits(mode).ok_or(VfsError::Unsupported)?;
        Ok(sys::allocate(&*fd, mode, offset, len)?)
    }

    /// `SEEK_DATA` and `SEEK_HOLE`.
    pub fn seek(&self, ino: Ino, fh: u64, offset: i64, whence: i32) -> Result<i64> {
        if fh != 0 {
            let fd = self.file(fh)?;
            return match whence {
                libc::SEEK_DATA | libc::SEEK_HOLE => Ok(sys::seek(&*fd, offset, whence == libc::SEEK_DATA)?),
                _ => Err(VfsError::Invalid),
            };
        }
        // Without a handle there are no holes: all is data up to the end.
        let size = self.getattr(ino)?.attr.size as i64;
        match whence {
            _ if offset >= size || offset < 0 => Err(VfsError::Draft(Errno::ENXIO)),
            libc::SEEK_DATA => Ok(offset),
            libc::SEEK_HOLE => Ok(size),
            _ => Err(VfsError::Invalid),
        }
    }

    /// copy_file_range(2) between two open files of drafts; `drop_setid` as in [`write`](View::write).
    pub fn copy_range(
        &self,
        from: (u64, u64),
        to: (u64, u64),
        len: usize,
        drop_setid: bool,
    ) -> Result<usize> {
        if from.0 == 0 || to.0 == 0 {
            return Err(VfsError::CrossDevice);
        }
        let (src, dst) = (self.file(from.0)?, self.file(to.0)?);
        if drop_setid {
            sys::drop_setid(&dst)?;
        }
        Ok(sys::copy_range(&*src, from.1, &*dst, to.1, len)?)
    }
}

/// Files whose last writer may have gone, hashed one after another in the background.
pub(super) struct IngestQueue(Sender<(Arc<Draft>, File)>);

impl IngestQueue {
    /// More than this many waiting files are left to sealing.
    const WAITING: usize = 256;

    pub fn start(cache: Cache) -> Self {
        let (tx, rx) = bounded::<(Arc<Draft>, File)>(Self::WAITING);
        let work = move || {
            for (draft, file) in rx {
                if let Err(e) = cache.ingest(&draft, &file) {
                    tracing::debug!(draft = draft.id(), error = %e, "a closed file was not hashed or synced; sealing says what is wrong, if it still is");
                }
            }
        };
        // Without the thread files are hashed when they are sealed.
        if let Err(e) = std::thread::Builder::new().name("ingest".into()).spawn(work) {
            tracing::warn!(error = %e, "cannot start the ingest thread");
        }
        Self(tx)
    }

    /// `file` is open for reading only.
    fn push(&self, draft: Arc<Draft>, file: File) {
        let _ = self.0.try_send((draft, file));
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cache::Limits;
    use crate::vfs::{Attr, ViewOptions, ino};

    /// A view, and the top directory of a work draft that this caller has made.
    fn with_draft() -> (tempfile::TempDir, Arc<View>, Caller, Ino) {
        let dir = tempfile::tempdir().unwrap();
        let cache = Cache::open(&dir.path().join("store"), Limits::default()).unwrap();
        let view = View::new(cache, ViewOptions::default()).unwrap();
        let caller =
            Caller { uid: nix::unistd::geteuid().as_raw(), gid: nix::unistd::getegid().as_raw(), pid: 1 };
        let Attr { ino: work, .. } = view.mkdir(caller, ino::WORK, "w".as_ref(), 0o755).unwrap().attr;
        (dir, view, caller, work)
    }

    /// What is made between the kernel's LOOKUP and its CREATE must not pass for new: neither its mode nor O_TRUNC would be
    /// asked of it, and a fifo would be waited for.
    #[test]
    fn what_stands_there_is_not_new() {
        let (_dir, view, caller, work) = with_draft();
        view.mknod(caller, work, "fifo".as_ref(), libc::S_IFIFO | 0o666, 0).unwrap();
        for flags in [libc::O_RDWR, libc::O_WRONLY | libc::O_TRUNC] {
            for name in ["file", "fifo"] {
                let create = |more| {
                    view.create(caller, work, name.as_ref(), libc::S_IFREG | 0o644, flags | more, true)
                };
                if let Ok((_, opened)) = create(libc::O_EXCL) {
                    view.release(opened.fh);
                }
                assert!(matches!(create(0), Err(VfsError::Stale)), "{name}");
                assert!(matches!(create(libc::O_EXCL), Err(VfsError::Draft(Errno::EEXIST))), "{name}");
            }
        }
        let Attr { ino: fifo, .. } = view.lookup(caller, work, "fifo".as_ref()).unwrap().attr;
        assert!(matches!(view.open(caller, fifo, libc::O_WRONLY), Err(VfsError::Invalid)));
        assert!(view.handles.read().is_empty(), "nothing is left open");
    }

    /// The first file of a thread is passed through, and what comes after a small one is not.
    #[test]
    fn who_makes_small_files_writes_them_by_us() {
        let (_dir, view, caller, work) = with_draft();
        let is_direct = |name: &str, flags: i32, size: u64, passes: bool| {
            let made = view.create(caller, work, name.as_ref(), libc::S_IFREG | 0o644, flags, passes);
            let opened = made.unwrap().1;
            view.write(opened.fh, size - 1, b"x", false).unwrap();
            let past = view.is_past_pages(opened.fh);
            assert_eq!(past, matches!(opened.how, How::Direct));
            view.release(opened.fh);
            past
        };
        let copied = libc::O_WRONLY | libc::O_EXCL;
        assert!(!is_direct("first", copied, 10, true));
        assert!(is_direct("second", copied, 8 << 20, true));
        assert!(!is_direct("after a large one", copied, 10, true));
        assert!(!is_direct("for both", libc::O_RDWR | libc::O_EXCL, 10, true));
        assert!(!is_direct("as compilers do", libc::O_WRONLY | libc::O_TRUNC, 10, true));
        assert!(is_direct("fourth", copied, 8 << 20, true), "others say nothing");
        assert!(is_direct("nothing is passed through", copied, 10, false));
    }
}
