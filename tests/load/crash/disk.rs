//! A disk in memory: one file below a FUSE mount, for a loop device, that remembers what was done to it.
//!
//! Invariants: one thread serves it, so the order of the log is the order in which requests were answered; a mark
//! that is set after an answer stands behind it.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant, UNIX_EPOCH};

use fuser::{
    BackgroundSession, Config, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, LockOwner, MountOption, OpenFlags, ReplyAttr, ReplyData, ReplyEmpty, ReplyEntry, ReplyOpen,
    ReplyWrite, Request, SessionACL, WriteFlags,
};

use crate::image::{Image, PAGE, Record};

const DISK: INodeNo = INodeNo(2);
const FOREVER: Duration = Duration::from_secs(3600);

/// What is on the disk, and its log while one is kept.
struct Content {
    image: Image,
    log: Option<Vec<Record>>,
    refuses: Option<Refuses>,
    /// Writes that were refused.
    refused: u64,
}

/// Which writes are answered with EIO.
#[derive(Clone, Copy)]
pub enum Refuses {
    /// This one from now on, and no other.
    Nth(u64),
    /// Those of pages that begin like this.
    Pages(&'static [u8]),
    /// All.
    All,
}

impl Content {
    fn takes(&mut self, data: &[u8]) -> bool {
        let refused = match &mut self.refuses {
            None => false,
            Some(Refuses::All) => true,
            Some(Refuses::Pages(begin)) => data.chunks(PAGE).any(|page| page.starts_with(begin)),
            Some(Refuses::Nth(n)) => {
                *n = n.wrapping_sub(1);
                *n == u64::MAX
            }
        };
        self.refused += u64::from(refused);
        !refused
    }
}

/// Sets marks; for the threads of a workload.
#[derive(Clone)]
pub struct Marker(Arc<Mutex<Content>>);

impl Marker {
    fn content(&self) -> MutexGuard<'_, Content> {
        self.0.lock().expect("no holder panics")
    }

    /// Has the disk refuse some writes from now on.
    pub fn refuse(&self, refuses: Option<Refuses>) {
        self.content().refuses = refuses;
    }

    /// How many writes were refused so far.
    pub fn refused(&self) -> u64 {
        self.content().refused
    }

    /// Notes what somebody was told, after all that was done to the disk so far.
    pub fn mark(&self, text: String) {
        if let Some(log) = &mut self.content().log {
            log.push(Record::Mark(text));
        }
    }
}

/// The disk, attached; detached when dropped.
pub struct Disk {
    content: Marker,
    file: PathBuf,
    _session: BackgroundSession,
}

impl Disk {
    /// Serves a disk of `size` bytes with this content below the directory `at`.
    pub fn serve(at: &Path, image: Image, size: u64) -> Self {
        let content = Marker(Arc::new(Mutex::new(Content { image, log: None, refuses: None, refused: 0 })));
        let mut config = Config::default();
        config.mount_options = vec![MountOption::FSName("crash-disk".into())];
        config.acl = SessionACL::All;
        let session = fuser::spawn_mount(Server { content: content.clone(), size }, at, &config)
            .expect("the disk's own file system can be mounted");
        Self { content, file: at.join("disk"), _session: session }
    }

    /// For setting marks.
    pub fn marker(&self) -> Marker {
        self.content.clone()
    }

    /// Keeps a log from now on.
    pub fn record(&self) {
        self.content.content().log = Some(Vec::new());
    }

    /// Ends the log and gives it.
    pub fn recorded(&self) -> Vec<Record> {
        self.content.content().log.take().expect("a log was kept")
    }

    /// Puts other content on the disk; nobody may use it meanwhile.
    pub fn replace(&self, image: Image) {
        self.content.content().image = image;
    }

    /// Mounts the file system on it at `at`, through a loop device.
    pub fn mount(&self, kind: &str, at: &Path) -> Result<Attached, String> {
        let device =
            run(Command::new("losetup").args(["--direct-io=on", "--find", "--show"]).arg(&self.file))?;
        let device = device.trim();
        whole_requests(device)?;
        let options = if kind == "xfs" { "nouuid" } else { "rw" };
        let mounted = run(Command::new("mount").args(["-t", kind, "-o", options, device]).arg(at));
        // It goes with the mount, however that ends.
        run(Command::new("losetup").args(["--detach", device]))?;
        mounted.map(|_| Attached { at: at.to_owned() })
    }
}

/// Has each request to the device be one write of its file: of one that is done in part, because the disk refused the second of two
/// writes, loop devices say that it is done.
fn whole_requests(device: &str) -> Result<(), String> {
    let name = device.trim_start_matches("/dev/");
    let limit = format!("/sys/block/{name}/queue/max_sectors_kb");
    std::fs::write(&limit, "512").map_err(|e| format!("{limit}: {e}"))
}

/// A loop device with a mounted file system; both go when it is dropped, or all ends.
pub struct Attached {
    at: PathBuf,
}

impl Drop for Attached {
    fn drop(&mut self) {
        let Err(e) = unmount(&self.at) else { return };
        let _ = run(Command::new("umount").arg("--lazy").arg(&self.at));
        // Detached, it would still write to the disk, under whatever is mounted from it next.
        if !std::thread::panicking() {
            panic!("{e}: what is found from now on would mean nothing");
        }
    }
}

/// A daemon that has just let go of its store may take a moment to be gone.
fn unmount(at: &Path) -> Result<(), String> {
    let deadline = Instant::now() + Duration::from_secs(60);
    loop {
        match run(Command::new("umount").arg(at)) {
            Err(_) if Instant::now() < deadline => std::thread::sleep(Duration::from_millis(10)),
            result => return result.map(drop),
        }
    }
}

/// Runs a program to its end; its output, or what it complains about.
pub fn run(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|e| format!("{command:?}: {e}"))?;
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}", String::from_utf8_lossy(&output.stderr).trim())),
    }
}

struct Server {
    content: Marker,
    size: u64,
}

impl Server {
    fn attr(&self, ino: INodeNo) -> FileAttr {
        let disk = ino == DISK;
        FileAttr {
            ino,
            size: if disk { self.size } else { 0 },
            blocks: if disk { self.size / 512 } else { 0 },
            atime: UNIX_EPOCH,
            mtime: UNIX_EPOCH,
            ctime: UNIX_EPOCH,
            crtime: UNIX_EPOCH,
            kind: if disk { FileType::RegularFile } else { FileType::Directory },
            perm: if disk { 0o600 } else { 0o700 },
            nlink: 1,
            uid: 0,
            gid: 0,
            rdev: 0,
            flags: 0,
            blksize: 4096,
        }
    }

    /// Does it and writes it down.
    fn change(&self, record: Record) {
        let mut content = self.content.content();
        content.image.apply(&record);
        if let Some(log) = &mut content.log {
            log.push(record);
        }
    }
}

impl Filesystem for Server {
    fn lookup(&self, _req: &Request, _parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match name == "disk" {
            true => reply.entry(&FOREVER, &self.attr(DISK), Generation(0)),
            false => reply.error(Errno::ENOENT),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        reply.attr(&FOREVER, &self.attr(ino));
    }

    fn open(&self, _req: &Request, _ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply.opened(FileHandle(0), FopenFlags::FOPEN_DIRECT_IO);
    }

    fn read(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let mut data = vec![0; u64::from(size).min(self.size.saturating_sub(offset)) as usize];
        self.content.content().image.read(offset, &mut data);
        reply.data(&data);
    }

    fn write(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        _write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        if offset + data.len() as u64 > self.size {
            return reply.error(Errno::EFBIG);
        }
        if !self.content.content().takes(data) {
            return reply.error(Errno::EIO);
        }
        self.change(Record::Write { offset, data: data.to_vec() });
        reply.written(data.len() as u32);
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.change(Record::Flush);
        reply.ok();
    }

    fn fallocate(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        // A discard, or writing zeroes.
        let zeroes = mode & (libc::FALLOC_FL_PUNCH_HOLE | libc::FALLOC_FL_ZERO_RANGE) != 0;
        if !zeroes || offset + length > self.size {
            return reply.error(Errno::EOPNOTSUPP);
        }
        self.change(Record::Zero { offset, len: length });
        reply.ok();
    }
}
