//! Passthrough: which inodes the kernel reads and writes by itself.
//!
//! Invariants: all opens of an inode share one backing id until the last release; passthrough and
//! cached opens never mix on one inode (the kernel answers EIO to that).

use std::collections::HashMap;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::sync::Arc;

use parking_lot::Mutex;

/// `struct fuse_backing_map`.
#[repr(C)]
pub struct BackingMap {
    fd: i32,
    flags: u32,
    padding: u64,
}

nix::ioctl_write_ptr!(backing_open, 229, 1, BackingMap);
nix::ioctl_write_ptr!(backing_close, 229, 2, u32);

/// A session's descriptor, with which files are registered.
#[derive(Clone)]
pub struct Device(Arc<OwnedFd>);

impl Device {
    /// Has the kernel keep `file`, to read and write it by itself.
    pub fn register(&self, file: &impl AsFd) -> std::io::Result<Backing> {
        let map = BackingMap { fd: file.as_fd().as_raw_fd(), flags: 0, padding: 0 };
        // SAFETY: the call reads one `fuse_backing_map`; both descriptors live through it.
        let number = unsafe { backing_open(self.0.as_raw_fd(), &map) }?;
        Ok(Backing { device: self.clone(), number: number as u32 })
    }
}

/// A registered file, until it is dropped.
pub struct Backing {
    device: Device,
    number: u32,
}

impl Backing {
    /// The kernel's number of it.
    pub fn number(&self) -> u32 {
        self.number
    }
}

impl Drop for Backing {
    fn drop(&mut self) {
        // SAFETY: the call reads one number; the descriptor lives through it.
        if let Err(e) = unsafe { backing_close(self.device.0.as_raw_fd(), &self.number) } {
            tracing::debug!(error = %e, "the kernel did not let go of a registered file");
        }
    }
}

struct Open {
    id: Option<Arc<Backing>>,
    count: u64,
}

/// The open inodes of a session that could be passed through.
pub struct Backings {
    device: Option<Device>,
    open: Mutex<HashMap<u64, Open>>,
}

impl Backings {
    /// `device`: if kernel and privileges allow passthrough, and the user wants it.
    pub fn new(device: Option<Arc<OwnedFd>>) -> Self {
        Self { device: device.map(Device), open: Mutex::default() }
    }

    /// Could anything be passed through?
    pub fn may_pass(&self) -> bool {
        self.device.is_some()
    }

    /// Counts an open of `ino`. What to answer with, or `None` for a cached open. `register` registers the file
    /// below.
    pub fn open(
        &self,
        ino: u64,
        register: impl FnOnce(&Device) -> std::io::Result<Backing>,
    ) -> Option<Arc<Backing>> {
        let device = self.device.as_ref()?;
        let mut open = self.open.lock();
        let entry = open.entry(ino).or_insert_with(|| {
            let id = register(device);
            if let Err(e) = &id {
                tracing::debug!(error = %e, "this file cannot be passed through");
            }
            Open { id: id.ok().map(Arc::new), count: 0 }
        });
        entry.count += 1;
        entry.id.clone()
    }

    /// Counts a further open of an inode that is passed through already.
    pub fn join(&self, ino: u64) -> Option<Arc<Backing>> {
        self.device.as_ref()?;
        let mut open = self.open.lock();
        let entry = open.get_mut(&ino)?;
        entry.count += 1;
        entry.id.clone()
    }

    /// An open that was counted was released.
    pub fn release(&self, ino: u64) {
        if self.device.is_none() {
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

/// Registers a file that may come to be written to; one that nobody writes to is registered as it is.
pub fn for_writing(
    file: &OwnedFd,
    register: impl FnOnce(&OwnedFd) -> std::io::Result<Backing>,
) -> std::io::Result<Backing> {
    // The kernel keeps the registered descriptor until the last release. It must not be one
    // for writing, or the file would seem to have a writer for as long as it has a reader.
    read_only(file).and_then(|f| without_fsetid(|| register(&f))?)
}

/// The words of capset(2), version 3.
const VERSION_3: u32 = 0x2008_0522;
const CAP_FSETID: u32 = 4;

#[repr(C)]
struct CapHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapWords {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

/// Does `work` without this thread's right to keep set-id bits. The kernel writes to a registered file with the
/// rights of the thread that registered it; without that one, a write takes the bits, as it does for users.
fn without_fsetid<T>(work: impl FnOnce() -> T) -> std::io::Result<T> {
    let header = CapHeader { version: VERSION_3, pid: 0 };
    let mut had = [CapWords::default(); 2];
    // SAFETY: version 3 fills two structs of three words; both live through the call.
    let got = unsafe { libc::syscall(libc::SYS_capget, &header, had.as_mut_ptr()) };
    if got != 0 {
        return Err(std::io::Error::last_os_error());
    }
    let mut fewer = had;
    fewer[0].effective &= !(1 << CAP_FSETID);
    set_caps(&header, &fewer)?;
    let done = work();
    set_caps(&header, &had)?;
    Ok(done)
}

fn set_caps(header: &CapHeader, words: &[CapWords; 2]) -> std::io::Result<()> {
    // SAFETY: version 3 reads two structs of three words; both live through the call.
    match unsafe { libc::syscall(libc::SYS_capset, header, words.as_ptr()) } {
        0 => Ok(()),
        _ => Err(std::io::Error::last_os_error()),
    }
}

/// A read-only descriptor of the same file.
fn read_only(file: &OwnedFd) -> std::io::Result<OwnedFd> {
    Ok(std::fs::File::open(format!("/proc/self/fd/{}", file.as_raw_fd()))?.into())
}
