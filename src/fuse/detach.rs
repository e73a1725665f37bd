//! Taking a mount away, by whoever may.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};

/// By the system call where that is allowed, else with fusermount3.
pub fn detach(at: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(at, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EPERM) => with_fusermount(at, lazy),
        Err(e) => Err(e.into()),
    }
}

/// Whether somebody uses the mount at `at`, without taking it away; `None` where that cannot be asked. It must have been
/// looked at just before: the question asked twice in a row is an order.
pub(super) fn in_use(at: &Path) -> Option<bool> {
    match umount2(at, MntFlags::MNT_EXPIRE | MntFlags::UMOUNT_NOFOLLOW) {
        Err(nix::errno::Errno::EAGAIN) => Some(false),
        Err(nix::errno::Errno::EBUSY) => Some(true),
        _ => None,
    }
}

fn with_fusermount(at: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(at);
    let out = command.stdin(Stdio::null()).output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => {
            io::Error::other("this needs root, or fusermount3 (package fuse3), which is not on the PATH")
        }
        _ => e,
    })?;
    let said = String::from_utf8_lossy(&out.stderr);
    match out.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        false => Err(io::Error::other(said.trim().to_owned())),
    }
}
