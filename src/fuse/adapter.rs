//! The adapter: fuser's requests to calls of the view, its results to replies.
//!
//! Nothing is decided here but which thread works and how a reply is written. A panic below
//! answers EIO and leaves the mount standing.

use std::ffi::OsStr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use fuser::{
    AccessFlags, CopyFileRangeFlags, Errno, FileHandle, FopenFlags, Generation, INodeNo, InitFlags,
    KernelConfig, LockOwner, OpenFlags, RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyLseek, ReplyOpen, ReplyStatfs, ReplyWrite, ReplyXattr,
    Request, TimeOrNow, WriteFlags,
};

use super::Passthrough;
use super::backing::{Backings, for_writing};
use super::convert::{file_attr, time_of};
use super::errno::errno;
use super::jobs::Jobs;
use crate::vfs::{Attr, Caller, Found, How, Opened, Result, SetAttr, SetTime, View, ino};

/// What the handshake found out, for whoever mounts.
#[derive(Default)]
pub(super) struct Handshake {
    pub passthrough: std::sync::atomic::AtomicBool,
}

/// One session's file system.
pub(super) struct Adapter {
    pub view: Arc<View>,
    pub backings: Arc<Backings>,
    /// For what takes long.
    pub jobs: Jobs,
    /// For what could not be done at once and does not take long.
    pub again: Jobs,
    pub wanted: Passthrough,
    pub handshake: Arc<Handshake>,
}

/// Runs an operation; a panic becomes an I/O error.
pub(super) fn run<T>(op: impl FnOnce() -> Result<T>) -> std::result::Result<T, Errno> {
    match std::panic::catch_unwind(std::panic::AssertUnwindSafe(op)) {
        Ok(Ok(v)) => Ok(v),
        Ok(Err(e)) => Err(errno(&e)),
        Err(_) => {
            tracing::error!("an operation panicked; it is answered with EIO");
            Err(Errno::EIO)
        }
    }
}

fn caller(req: &Request) -> Caller {
    Caller { uid: req.uid(), gid: req.gid(), pid: req.pid() }
}

fn reply_entry(reply: ReplyEntry, found: std::result::Result<Found, Errno>) {
    match found {
        Ok(f) => {
            reply.entry_with_ttls(&f.attr_ttl, &f.name_ttl, &file_attr(&f.attr), Generation(f.generation))
        }
        Err(e) => reply.error(e),
    }
}

/// A name that does not exist, for the kernel to remember.
fn reply_absent(reply: ReplyEntry, lasts: &Duration) {
    // Number 0 says it; the attributes mean nothing.
    reply.entry_with_ttls(lasts, lasts, &file_attr(&Attr::NONE), Generation(0));
}

fn reply_attr(reply: ReplyAttr, found: std::result::Result<Found, Errno>) {
    match found {
        Ok(f) => reply.attr(&f.attr_ttl, &file_attr(&f.attr)),
        Err(e) => reply.error(e),
    }
}

fn reply_empty(reply: ReplyEmpty, done: std::result::Result<(), Errno>) {
    match done {
        Ok(()) => reply.ok(),
        Err(e) => reply.error(e),
    }
}

fn reply_xattr(reply: ReplyXattr, size: u32, value: std::result::Result<Vec<u8>, Errno>) {
    match value {
        Ok(v) if size == 0 => reply.size(v.len() as u32),
        Ok(v) if v.len() > size as usize => reply.error(Errno::ERANGE),
        Ok(v) => reply.data(&v),
        Err(e) => reply.error(e),
    }
}

/// Flags of an open that is not passed through.
fn open_flags(opened: &Opened) -> FopenFlags {
    // FLUSH would say nothing: writes are passed on as they come.
    match opened {
        Opened { how: How::Keep, .. } | Opened { fh: 0, .. } => {
            FopenFlags::FOPEN_KEEP_CACHE | FopenFlags::FOPEN_NOFLUSH
        }
        _ => FopenFlags::FOPEN_NOFLUSH,
    }
}

fn reply_open(backings: &Backings, ino: u64, reply: ReplyOpen, opened: std::result::Result<Opened, Errno>) {
    let opened = match opened {
        Ok(o) => o,
        Err(e) => return reply.error(e),
    };
    let id = match &opened.how {
        How::Backing(file) => backings.open(ino, || for_writing(file, |f| reply.open_backing(f))),
        How::Blob(file) => backings.open(ino, || reply.open_backing(&**file)),
        How::Keep => backings.join(ino),
    };
    match id {
        Some(id) => reply.opened_passthrough(FileHandle(opened.fh), FopenFlags::FOPEN_NOFLUSH, &id),
        None => reply.opened(FileHandle(opened.fh), open_flags(&opened)),
    }
}

fn reply_create(backings: &Backings, reply: ReplyCreate, made: std::result::Result<(Found, Opened), Errno>) {
    let (found, opened) = match made {
        Ok(made) => made,
        Err(e) => return reply.error(e),
    };
    let (attr, fh, generation) =
        (file_attr(&found.attr), FileHandle(opened.fh), Generation(found.generation));
    let id = match &opened.how {
        How::Backing(file) => backings.open(found.attr.ino, || for_writing(file, |f| reply.open_backing(f))),
        How::Blob(_) | How::Keep => None,
    };
    match id {
        // The kernel takes one time to live for both; the attributes' is the shorter.
        Some(id) => {
            let flags = FopenFlags::FOPEN_NOFLUSH;
            reply.created_passthrough(&found.attr_ttl, &attr, generation, fh, flags, &id);
        }
        None => reply.created(&found.attr_ttl, &attr, generation, fh, open_flags(&opened)),
    }
}

impl Adapter {
    fn is_top_level(a: INodeNo, b: INodeNo) -> bool {
        a.0 <= ino::TRASH && b.0 <= ino::TRASH
    }
}

impl fuser::Filesystem for Adapter {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        let useful = InitFlags::FUSE_DO_READDIRPLUS
            | InitFlags::FUSE_READDIRPLUS_AUTO
            | InitFlags::FUSE_PARALLEL_DIROPS
            | InitFlags::FUSE_CACHE_SYMLINKS
            | InitFlags::FUSE_AUTO_INVAL_DATA
            | InitFlags::FUSE_ASYNC_DIO
            | InitFlags::FUSE_HANDLE_KILLPRIV_V2
            // There are no ACLs; with this the kernel remembers that of each file, and `ls -l` need not ask.
            | InitFlags::FUSE_POSIX_ACL;
        let _ = config.add_capabilities(useful & config.capabilities());
        let _ = config.set_max_write(1 << 20);
        let _ = config.set_max_background(64);
        let mut passthrough = false;
        if self.wanted != Passthrough::Off && self.view.may_pass_through() {
            passthrough = nix::unistd::geteuid().is_root()
                && config.add_capabilities(InitFlags::FUSE_PASSTHROUGH).is_ok()
                && config.set_max_stack_depth(1).is_ok();
        }
        self.backings = Arc::new(Backings::new(passthrough));
        self.handshake.passthrough.store(passthrough, std::sync::atomic::Ordering::Relaxed);
        Ok(())
    }

    fn lookup(&self, req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        let caller = caller(req);
        let waits = self.view.look_up_waits(caller, parent.0, name);
        let name = name.to_owned();
        let op = move |view: &View| view.lookup(caller, parent.0, &name);
        if waits {
            return self.serve_long(reply, op, reply_entry);
        }
        let absence = self.view.absence_lasts(parent.0);
        self.serve(reply, op, move |reply, found| match found {
            Err(e) if e.code() == libc::ENOENT && !absence.is_zero() => reply_absent(reply, &absence),
            found => reply_entry(reply, found),
        });
    }

    fn forget(&self, _req: &Request, ino: INodeNo, n: u64) {
        let _ = run(|| {
            self.view.forget(ino.0, n);
            Ok(())
        });
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply_attr(reply, run(|| self.view.getattr(ino.0)));
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<SystemTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<SystemTime>,
        _chgtime: Option<SystemTime>,
        _bkuptime: Option<SystemTime>,
        _flags: Option<fuser::BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let time = |t: TimeOrNow| match t {
            TimeOrNow::Now => SetTime::Now,
            TimeOrNow::SpecificTime(t) => SetTime::At(time_of(t)),
        };
        let drop_setid = size.is_some() && req.uid() != 0;
        let set =
            SetAttr { mode, uid, gid, size, atime: atime.map(time), mtime: mtime.map(time), drop_setid };
        let op = move |view: &View| view.setattr(ino.0, &set);
        // What changes nothing of a sealed entry replaces nothing.
        if self.view.replaces(ino.0) || self.view.seals_by_chmod(ino.0, &set) {
            return self.serve_long(reply, op, reply_attr);
        }
        self.serve(reply, op, reply_attr);
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match run(|| self.view.readlink(ino.0)) {
            Ok(target) => reply.data(&target),
            Err(e) => reply.error(e),
        }
    }

    fn mknod(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        rdev: u32,
        reply: ReplyEntry,
    ) {
        let (who, name) = (caller(req), name.to_owned());
        let op = move |view: &View| view.mknod(who, parent.0, &name, mode, rdev);
        self.change(&[parent], reply, op, reply_entry);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, _umask: u32, reply: ReplyEntry) {
        let (who, name) = (caller(req), name.to_owned());
        let op = move |view: &View| view.mkdir(who, parent.0, &name, mode);
        self.change(&[parent], reply, op, reply_entry);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.change(&[parent], reply, move |view| view.unlink(parent.0, &name), reply_empty);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        let op = move |view: &View| view.rmdir(parent.0, &name);
        if Self::is_top_level(parent, parent) {
            return self.serve_long(reply, op, reply_empty);
        }
        self.change(&[parent], reply, op, reply_empty);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, name: &OsStr, target: &Path, reply: ReplyEntry) {
        let (who, name, target) = (caller(req), name.to_owned(), target.to_owned());
        let op = move |view: &View| view.symlink(who, parent.0, &name, &target);
        self.change(&[parent], reply, op, reply_entry);
    }

    fn rename(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let (who, flags, name, newname) = (caller(req), flags.bits(), name.to_owned(), newname.to_owned());
        let op = move |view: &View| view.rename(who, parent.0, &name, newparent.0, &newname, flags);
        if Self::is_top_level(parent, newparent) {
            return self.serve_long(reply, op, reply_empty);
        }
        self.change(&[parent, newparent], reply, op, reply_empty);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        let newname = newname.to_owned();
        self.change(&[newparent], reply, move |view| view.link(ino.0, newparent.0, &newname), reply_entry);
    }

    fn open(&self, req: &Request, ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        if self.view.read_only() && flags.0 & libc::O_ACCMODE == libc::O_RDONLY {
            // Said once, it is true for the whole connection: reads need no open and no release.
            reply.error(Errno::ENOSYS);
            return;
        }
        let (who, backings) = (caller(req), self.backings.clone());
        let op = move |view: &View| view.open(who, ino.0, flags.0);
        let answer = move |reply, opened| reply_open(&backings, ino.0, reply, opened);
        if flags.0 & libc::O_ACCMODE == libc::O_RDONLY {
            return self.serve(reply, op, answer);
        }
        self.change(&[ino], reply, op, answer);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        _umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let (who, name, backings) = (caller(req), name.to_owned(), self.backings.clone());
        let op = move |view: &View| view.create(who, parent.0, &name, mode, flags);
        self.change(&[parent], reply, op, move |reply, made| reply_create(&backings, reply, made));
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut buf = vec![0; size as usize];
        match run(|| self.view.read(ino.0, fh.0, offset, &mut buf)) {
            Ok(n) => reply.data(&buf[..n]),
            Err(e) => reply.error(e),
        }
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        data: &[u8],
        flags: WriteFlags,
        _open: OpenFlags,
        _owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let drop_setid = flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        match run(|| self.view.write(fh.0, offset, data, drop_setid)) {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(e),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _owner: LockOwner, reply: ReplyEmpty) {
        reply.error(Errno::ENOSYS);
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        _flags: OpenFlags,
        _owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        // The kernel's own descriptor first: a hash needs all writers gone.
        self.backings.release(ino.0);
        let done = run(|| {
            self.view.release(fh.0);
            Ok(())
        });
        reply_empty(reply, done);
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.serve_long(reply, move |view| view.fsync(ino.0, fh.0, datasync), reply_empty);
    }

    fn fsyncdir(&self, req: &Request, ino: INodeNo, _fh: FileHandle, datasync: bool, reply: ReplyEmpty) {
        self.fsync(req, ino, FileHandle(0), datasync, reply);
    }

    fn opendir(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        // Said once, it is true for the whole connection: listings need no handle, and the kernel remembers them.
        reply.error(Errno::ENOSYS);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let filled = run(|| self.list(ino, offset, &mut reply));
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn readdirplus(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        mut reply: ReplyDirectoryPlus,
    ) {
        let who = caller(req);
        let filled = run(|| self.list_with_attributes(who, ino, offset, &mut reply));
        match filled {
            Ok(()) => reply.ok(),
            Err(e) => reply.error(e),
        }
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        const BLOCK: u64 = 4096;
        match run(|| self.view.statfs()) {
            Ok(s) => {
                let (total, free) = (s.total_bytes / BLOCK, s.free_bytes / BLOCK);
                reply.statfs(
                    total,
                    free,
                    free,
                    s.files,
                    u64::from(u32::MAX),
                    BLOCK as u32,
                    255,
                    BLOCK as u32,
                );
            }
            Err(e) => reply.error(e),
        }
    }

    fn setxattr(
        &self,
        _req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        let (name, value) = (name.to_owned(), value.to_owned());
        let op = move |view: &View| view.set_xattr(ino.0, &name, &value, flags);
        self.change(&[ino], reply, op, reply_empty);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        let long = self.view.hashes(ino.0, name);
        let name = name.to_owned();
        let op = move |view: &View| view.get_xattr(ino.0, &name);
        let answer = move |reply, value| reply_xattr(reply, size, value);
        if long { self.serve_long(reply, op, answer) } else { self.serve(reply, op, answer) }
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(reply, size, run(|| self.view.list_xattr(ino.0)));
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        let name = name.to_owned();
        self.change(&[ino], reply, move |view| view.remove_xattr(ino.0, &name), reply_empty);
    }

    fn access(&self, _req: &Request, _ino: INodeNo, _mask: AccessFlags, reply: ReplyEmpty) {
        // The kernel checks permissions (default_permissions).
        reply.error(Errno::ENOSYS);
    }

    fn fallocate(
        &self,
        req: &Request,
        _ino: INodeNo,
        fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        reply_empty(reply, run(|| self.view.fallocate(fh.0, mode, offset, length, req.uid() != 0)));
    }

    fn lseek(
        &self,
        _req: &Request,
        ino: INodeNo,
        fh: FileHandle,
        offset: i64,
        whence: i32,
        reply: ReplyLseek,
    ) {
        match run(|| self.view.seek(ino.0, fh.0, offset, whence)) {
            Ok(at) => reply.offset(at),
            Err(e) => reply.error(e),
        }
    }

    fn copy_file_range(
        &self,
        req: &Request,
        _ino_in: INodeNo,
        fh_in: FileHandle,
        offset_in: u64,
        _ino_out: INodeNo,
        fh_out: FileHandle,
        offset_out: u64,
        len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        // One answer holds 32 bits.
        let len = len.min(1 << 30) as usize;
        let (from, to, drop_setid) = ((fh_in.0, offset_in), (fh_out.0, offset_out), req.uid() != 0);
        match run(|| self.view.copy_range(from, to, len, drop_setid)) {
            Ok(n) => reply.written(n as u32),
            Err(e) => reply.error(e),
        }
    }
}
