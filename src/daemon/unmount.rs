//! Unmounting from outside: for mounts whose daemon is dead or not asked.

use std::path::Path;

use super::holders;
use super::mounts::mounted_at;
use crate::control::{Failure, Kind};
use crate::fuse::{Identity, Whereabouts, detach};

/// Unmounts the outfs view at `at`, whoever serves it; refuses any other file system. `seen` is what was there when its daemon was
/// asked: what somebody has mounted since is left alone, for it may not be ready yet.
pub fn unmount(at: &Path, lazy: bool, seen: &Identity) -> Result<(), Failure> {
    match mounted_at(at).filter(|_| seen.whereabouts(at) == Whereabouts::Here) {
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
    if !lazy {
        holders::refuse(at)?;
    }
    holders::patiently(at, || detach(at, lazy)).or_else(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => Err(holders::busy(at)),
        // Its own daemon, ending, was faster.
        _ if !mounted_at(at).is_some_and(|m| m.is_outfs()) => Ok(()),
        _ => Err(Failure::failed(format!("cannot unmount {}: {e}", at.display()))),
    })
}
