//! The adapter: the kernel's operations to calls of the view, its results to replies.
//!
//! Nothing is decided here but which thread works. It is the same for all transports. A panic below answers EIO
//! and leaves the mount standing.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::time::Duration;

use nix::errno::Errno;

use super::backing::{Backings, for_writing};
use super::errno::errno;
use super::far::Far;
use super::looker::Who;
use super::reply::Reply;
use super::request::{Args, Op, parse};
use super::serve::Pools;
use super::wire::{InHeader, StatfsOut};
use crate::vfs::{Caller, Found, How, Opened, Result, SetAttr, VfsError, View, ino};

type Answer<T> = std::result::Result<T, Errno>;

/// Writes go straight to us, and the kernel keeps no pages of them.
const FOPEN_DIRECT_IO: u32 = 1;
/// The kernel may keep the pages it has of the file.
const FOPEN_KEEP_CACHE: u32 = 1 << 1;
/// FLUSH would say nothing: writes are passed on as they come.
const FOPEN_NOFLUSH: u32 = 1 << 5;
const FOPEN_PASSTHROUGH: u32 = 1 << 7;

/// Bytes that are copied from file to file by the thread that is asked for it.
const COPIED_AT_ONCE: usize = 4 << 20;

/// One session's file system.
pub(super) struct Adapter {
    pub view: Arc<View>,
    pub backings: Arc<Backings>,
    /// For what does not answer at once.
    pub pools: Arc<Pools>,
    /// For what waits for a tier.
    pub far: Far,
    /// Reads need no open: said at the first one.
    pub no_open: bool,
    /// Who is told that no entry is there.
    pub looker: Who,
    /// Whose requests are served, if not everybody's.
    pub only: Option<u32>,
}

/// Runs an operation; a panic becomes an I/O error.
pub(super) fn run<T>(op: impl FnOnce() -> Result<T>) -> Answer<T> {
    match catch_unwind(AssertUnwindSafe(op)) {
        Ok(Ok(v)) => Ok(v),
        Ok(Err(e)) => Err(errno(&e)),
        Err(_) => {
            tracing::error!("an operation panicked; it is answered with EIO");
            Err(Errno::EIO)
        }
    }
}

/// Flags of an open that is not passed through.
fn open_flags(opened: &Opened) -> u32 {
    match opened {
        Opened { how: How::Direct, .. } => FOPEN_NOFLUSH | FOPEN_DIRECT_IO,
        Opened { how: How::Keep, .. } | Opened { fh: 0, .. } => FOPEN_KEEP_CACHE | FOPEN_NOFLUSH,
        _ => FOPEN_NOFLUSH,
    }
}

fn answer_open(backings: &Backings, ino: u64, reply: Reply, opened: Answer<Opened>) {
    let opened = match opened {
        Ok(o) => o,
        Err(e) => return reply.error(e),
    };
    let id = match &opened.how {
        How::Backing(file) => backings.open(ino, |device| for_writing(file, |f| device.register(f))),
        How::Blob(file) => backings.open(ino, |device| device.register(file)),
        How::Elsewhere => backings.open(ino, |_| Err(std::io::ErrorKind::NotFound.into())),
        How::Keep => backings.join(ino),
        How::Direct => None,
    };
    match id {
        Some(id) => reply.opened(opened.fh, FOPEN_NOFLUSH | FOPEN_PASSTHROUGH, Some(id.number())),
        None => reply.opened(opened.fh, open_flags(&opened), None),
    }
}

fn answer_create(backings: &Backings, reply: Reply, made: Answer<(Found, Opened)>) {
    let (found, opened) = match made {
        Ok(made) => made,
        Err(e) => return reply.error(e),
    };
    let id = match &opened.how {
        How::Backing(file) => {
            backings.open(found.attr.ino, |device| for_writing(file, |f| device.register(f)))
        }
        _ => None,
    };
    match id {
        Some(id) => {
            reply.created(&found, opened.fh, FOPEN_NOFLUSH | FOPEN_PASSTHROUGH, Some(id.number()));
        }
        None => reply.created(&found, opened.fh, open_flags(&opened), None),
    }
}

/// What becomes of a request.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Taken {
    /// It is or will be answered.
    Answered,
    /// It was the last one.
    Last,
}

impl Adapter {
    /// Takes a request. `reply` is made when nothing of `args` is needed any more, and never for what has no reply.
    pub(super) fn take(&self, head: &InHeader, args: Args<'_>, reply: impl FnOnce() -> Reply) -> Taken {
        // What an unwinding drops is answered by that.
        let taken = catch_unwind(AssertUnwindSafe(|| self.sort(head, args, reply)));
        taken.unwrap_or_else(|_| {
            tracing::error!("a request panicked; it is answered with EIO");
            Taken::Answered
        })
    }

    fn sort(&self, head: &InHeader, args: Args<'_>, reply: impl FnOnce() -> Reply) -> Taken {
        let caller = Caller { uid: head.uid, gid: head.gid, pid: head.pid };
        match parse(head.opcode, args) {
            Err(e) => reply().error(e),
            Ok(Op::Forget { n }) => self.forget(head.nodeid, n),
            Ok(Op::BatchForget { items }) => items.iter().for_each(|(ino, n)| self.forget(*ino, *n)),
            Ok(Op::Destroy) => {
                reply().done();
                return Taken::Last;
            }
            Ok(op) if !op.is_the_kernels() && self.only.is_some_and(|u| u != caller.uid) => {
                reply().error(Errno::EACCES);
            }
            Ok(Op::Write { fh, offset, data, drop_setid }) => {
                let written = run(|| self.view.write(fh, offset, data, drop_setid));
                reply().written(written);
            }
            Ok(op) => self.answer(caller, head.nodeid, op, reply()),
        }
        Taken::Answered
    }

    fn forget(&self, ino: u64, n: u64) {
        let _ = run(|| {
            self.view.forget(ino, n);
            Ok(())
        });
    }

    fn answer(&self, who: Caller, ino: u64, op: Op<'_>, reply: Reply) {
        match op {
            Op::Lookup { .. } | Op::Getattr | Op::Readlink | Op::Statfs => self.look(who, ino, op, reply),
            Op::Read { fh, offset, size } => {
                self.read(who, (ino, fh), offset, size as usize, reply);
            }
            Op::Readdir { offset, size } => reply.listing(run(|| self.list(ino, offset, size as usize))),
            Op::Readdirplus { offset, size } => {
                reply.listing(run(|| self.list_with_attributes(who, ino, offset, size as usize)));
            }
            Op::Open { flags } => self.open(who, ino, flags, reply),
            Op::Release { fh } => self.release(ino, fh, reply),
            Op::Releasedir => reply.done(),
            Op::Setattr(set) => self.setattr(who, ino, set, reply),
            Op::Setxattr { .. } | Op::Getxattr { .. } | Op::Listxattr { .. } | Op::Removexattr { .. } => {
                self.attribute(who, ino, op, reply);
            }
            Op::Fsync { fh, datasync } => {
                self.serve_by_disk(reply, move |view| view.fsync(ino, fh, datasync), Reply::empty);
            }
            Op::Fallocate { fh, offset, length, mode } => {
                let own = who.uid != 0;
                self.serve(reply, move |view| view.fallocate(fh, mode, offset, length, own), Reply::empty);
            }
            Op::Lseek { fh, offset, whence } => {
                reply.position(run(|| self.view.seek(ino, fh, offset, whence)));
            }
            Op::CopyFileRange { from, to, len } => {
                // One answer holds 32 bits.
                let len = len.min(1 << 30) as usize;
                let op = move |view: &View| view.copy_range(from, to, len, who.uid != 0);
                match len > COPIED_AT_ONCE {
                    true => self.serve_by_disk(reply, op, Reply::written),
                    false => reply.written(run(|| op(&self.view))),
                }
            }
            // `sort` has answered these.
            Op::Forget { .. } | Op::BatchForget { .. } | Op::Destroy | Op::Write { .. } => {
                reply.error(Errno::EIO);
            }
            _ => self.name(who, ino, op, reply),
        }
    }

    fn look(&self, who: Caller, ino: u64, op: Op<'_>, reply: Reply) {
        match op {
            Op::Lookup { name } => {
                if let Some(top) = self.looker.asks_for(who.pid, ino, &name) {
                    return reply.entry(run(|| match self.looker.take(top) {
                        true => self.view.top_again(top.entry),
                        false => Err(VfsError::NotFound),
                    }));
                }
                if self.view.look_up_asks_tiers(ino, &name) {
                    return self.look_up_far(who, ino, name, reply);
                }
                let waits = self.view.look_up_waits(who, ino, &name);
                let op = move |view: &View| view.lookup(who, ino, &name);
                if waits {
                    return self.serve_long(reply, op, Reply::entry);
                }
                let absence = self.view.absence_lasts(ino);
                self.serve(reply, op, move |reply, found| answer_look_up(reply, found, absence));
            }
            Op::Getattr => reply.attr(run(|| self.view.getattr(ino))),
            Op::Readlink => match run(|| self.view.readlink(ino)) {
                Ok(target) => reply.bytes(&target),
                Err(e) => reply.error(e),
            },
            _ => match run(|| self.view.statfs()) {
                Ok(space) => reply.space(&statfs(&space)),
                Err(e) => reply.error(e),
            },
        }
    }

    fn open(&self, who: Caller, ino: u64, flags: i32, reply: Reply) {
        let reads = flags & libc::O_ACCMODE == libc::O_RDONLY;
        if reads && self.no_open {
            // Said once, it is true for the whole connection: reads need no open and no release.
            return reply.error(Errno::ENOSYS);
        }
        let backings = self.backings.clone();
        let op = move |view: &View| view.open(who, ino, flags);
        let answer = move |reply, opened| answer_open(&backings, ino, reply, opened);
        if reads {
            return self.serve(reply, op, answer);
        }
        self.change(&[ino], reply, op, answer);
    }

    fn release(&self, ino: u64, fh: u64, reply: Reply) {
        // The kernel's own descriptor first: a hash needs all writers gone.
        if !self.view.is_past_pages(fh) {
            self.backings.release(ino);
        }
        reply.empty(run(|| {
            self.view.release(fh);
            Ok(())
        }));
    }

    fn setattr(&self, who: Caller, ino: u64, set: SetAttr, reply: Reply) {
        let set = SetAttr { drop_setid: set.size.is_some() && who.uid != 0, ..set };
        self.view.note_changer(who, ino);
        let op = move |view: &View| view.setattr(ino, &set);
        // What changes nothing of a sealed entry replaces nothing.
        if self.view.replaces(ino) || self.view.seals_by_chmod(ino, &set) {
            return self.serve_long(reply, op, Reply::attr);
        }
        self.serve(reply, op, Reply::attr);
    }

    fn attribute(&self, who: Caller, ino: u64, op: Op<'_>, reply: Reply) {
        match op {
            Op::Setxattr { name, value, flags } => {
                self.view.note_changer(who, ino);
                let op = move |view: &View| view.set_xattr(ino, &name, &value, flags);
                self.change(&[ino], reply, op, Reply::empty);
            }
            Op::Getxattr { name, size } => {
                let long = self.view.hashes(ino, &name);
                let op = move |view: &View| view.get_xattr(ino, &name);
                let answer = move |reply: Reply, value| reply.xattr(size, value);
                if long { self.serve_long(reply, op, answer) } else { self.serve(reply, op, answer) }
            }
            Op::Listxattr { size } => reply.xattr(size, run(|| self.view.list_xattr(ino))),
            Op::Removexattr { name } => {
                self.view.note_changer(who, ino);
                self.change(&[ino], reply, move |view| view.remove_xattr(ino, &name), Reply::empty);
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }

    /// What makes, moves or takes away a name; `dir` is where.
    fn name(&self, who: Caller, dir: u64, op: Op<'_>, reply: Reply) {
        self.view.note_changer(who, dir);
        match op {
            Op::Mknod { name, mode, rdev } => {
                let op = move |view: &View| view.mknod(who, dir, &name, mode, rdev);
                self.change(&[dir], reply, op, Reply::entry);
            }
            Op::Mkdir { name, mode } => {
                let op = move |view: &View| view.mkdir(who, dir, &name, mode);
                self.change(&[dir], reply, op, Reply::entry);
            }
            Op::Symlink { name, target } => {
                let op = move |view: &View| view.symlink(who, dir, &name, target.as_ref());
                self.change(&[dir], reply, op, Reply::entry);
            }
            Op::Link { ino, name } => {
                self.change(&[dir], reply, move |view| view.link(ino, dir, &name), Reply::entry);
            }
            Op::Create { name, mode, flags } => {
                let backings = self.backings.clone();
                let passes = backings.may_pass();
                let op = move |view: &View| view.create(who, dir, &name, mode, flags, passes);
                let answer = move |reply, made| answer_create(&backings, reply, made);
                self.change(&[dir], reply, op, answer);
            }
            Op::Unlink { name } => {
                self.change(&[dir], reply, move |view| view.unlink(dir, &name), Reply::empty);
            }
            Op::Rmdir { name } => {
                let op = move |view: &View| view.rmdir(dir, &name);
                match is_top_level(dir) {
                    true => self.serve_name(reply, op, Reply::empty),
                    false => self.change(&[dir], reply, op, Reply::empty),
                }
            }
            Op::Rename { name, newdir, newname, flags } => {
                let op = move |view: &View| view.rename(who, dir, &name, newdir, &newname, flags);
                match is_top_level(dir) && is_top_level(newdir) {
                    true => self.serve_name(reply, op, Reply::empty),
                    false => self.change(&[dir, newdir], reply, op, Reply::empty),
                }
            }
            _ => reply.error(Errno::ENOSYS),
        }
    }
}

fn is_top_level(dir: u64) -> bool {
    dir <= ino::TRASH
}

fn answer_look_up(reply: Reply, found: Answer<Found>, absence: Duration) {
    match found {
        Err(Errno::ENOENT) if !absence.is_zero() => reply.absent(absence),
        found => reply.entry(found),
    }
}

fn statfs(space: &crate::vfs::Space) -> StatfsOut {
    const BLOCK: u64 = 4096;
    let free = space.free_bytes / BLOCK;
    StatfsOut {
        blocks: space.total_bytes / BLOCK,
        bfree: free,
        bavail: free,
        files: space.files,
        ffree: u64::from(u32::MAX),
        bsize: BLOCK as u32,
        namelen: 255,
        frsize: BLOCK as u32,
        padding: 0,
        spare: [0; 6],
    }
}
