//! Unmounting from outside: for mounts whose daemon is dead or not asked.

use std::io;
use std::path::Path;
use std::process::{Command, Stdio};

use nix::mount::{MntFlags, umount2};

use super::holders;
use super::mounts::mounted_at;
use crate::control::{Failure, Kind};

/// Unmounts the outfs view at `at`, whoever serves it; refuses any other file system.
pub fn unmount(at: &Path, lazy: bool) -> Result<(), Failure> {
    match mounted_at(at) {
        Some(m) if m.is_outfs() => {}
        Some(m) => {
            return Err(Failure::failed(format!(
                "{} is a mount of {}, not of outfs",
                at.display(),
                m.fs_type
            )));
        }
        None => return Err(Failure::new(Kind::Failed, format!("nothing is mounted on {}", at.display()))),
    }
    detach(at, lazy).map_err(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => holders::busy(at),
        _ => Failure::failed(format!("cannot unmount {}: {e}", at.display())),
    })
}

/// By the system call where that is allowed, else with fusermount3.
pub(super) fn detach(at: &Path, lazy: bool) -> io::Result<()> {
    let flags = if lazy { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    match umount2(at, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(nix::errno::Errno::EPERM) => with_fusermount(at, lazy),
        Err(e) => Err(e.into()),
    }
}

fn with_fusermount(at: &Path, lazy: bool) -> io::Result<()> {
    let mut command = Command::new("fusermount3");
    command.arg("-u").args(lazy.then_some("-z")).arg("--").arg(at);
    let out = command.stdin(Stdio::null()).output().map_err(|e| match e.kind() {
        io::ErrorKind::NotFound => io::Error::other("fusermount3 is not installed (package fuse3)"),
        _ => e,
    })?;
    let said = String::from_utf8_lossy(&out.stderr);
    match out.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(io::Error::from_raw_os_error(libc::EBUSY)),
        false => Err(io::Error::other(said.trim().to_owned())),
    }
}
