//! Unmounting from outside: for mounts whose daemon is dead or not asked.

use std::path::Path;

use super::holders;
use super::mounts::mounted_at;
use crate::control::Failure;
use crate::fuse::{Identity, Whereabouts, detach};

/// Unmounts the outfs view at `at`, whoever serves it; refuses any other file system. `seen` is what was there when its daemon was
/// asked, if that can be told: what somebody has mounted since is left alone, for it may not be ready yet.
pub fn unmount(at: &Path, lazy: bool, seen: Option<&Identity>) -> Result<(), Failure> {
    let fail = |why: String| Err(Failure::failed(why));
    let stands = || seen.is_none_or(|seen| seen.whereabouts(at) == Whereabouts::Here);
    match mounted_at(at) {
        Some(m) if !m.is_outfs() => {
            return fail(format!("{} is a mount of {}, not of outfs", at.display(), m.fs_type));
        }
        Some(_) if stands() => {}
        Some(_) => {
            let at = at.display();
            return fail(format!(
                "nothing is mounted on {at} but what came since you asked; unmount again to end it"
            ));
        }
        None => return fail(format!("nothing is mounted on {}", at.display())),
    }
    if !lazy {
        holders::refuse(at)?;
    }
    let end = || if stands() { detach(at, lazy) } else { Ok(()) };
    holders::patiently(at, end).or_else(|e| match e.raw_os_error() {
        Some(libc::EBUSY) => Err(holders::busy(at)),
        // Its own daemon, ending, was faster.
        _ if !mounted_at(at).is_some_and(|m| m.is_outfs()) => Ok(()),
        _ => fail(format!("cannot unmount {}: {e}", at.display())),
    })
}
