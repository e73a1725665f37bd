//! What a daemon leaves beside its store: which views it has mounted, so that the next one can
//! clear away what a killed one left, and its limits, so that commands without a daemon keep them.
//!
//! Both files are conveniences: a missing or damaged one is as good as none.

use std::path::{Path, PathBuf};

use super::mountpoint;
use crate::control::{Failure, LimitFlags, RawPath};
use crate::store::port::{self, paths};

const VIEWS: &str = "views.json";
const LIMITS: &str = "limits.json";

pub(super) fn read<T: serde::de::DeserializeOwned>(store: &Path, name: &str) -> Option<T> {
    let path = store.join(name);
    let read = paths::read(&path).transpose()?;
    read.and_then(|bytes| Ok(serde_json::from_slice(&bytes)?))
        .inspect_err(|e| tracing::warn!("{} is ignored: {e}", path.display()))
        .ok()
}

pub(super) fn write(store: &Path, name: &str, what: &impl serde::Serialize) {
    let path = store.join(name);
    let written = serde_json::to_vec(what).map_err(std::io::Error::other).and_then(|bytes| {
        let aside = store.join(format!("{name}.new"));
        port::write_all(&paths::create(&aside)?, &bytes)?;
        paths::rename(&aside, &path)
    });
    if let Err(e) = written {
        tracing::warn!("cannot write {}: {e}", path.display());
    }
}

/// Detaches what a killed daemon of this store left mounted.
pub(super) fn take_over(store: &Path) {
    for at in read::<Vec<RawPath>>(store, VIEWS).unwrap_or_default() {
        if let Err(e) = mountpoint::take_over_ours(&at.0, store) {
            tracing::warn!("{e}");
        }
    }
}

pub(super) fn remember_views(store: &Path, at: &[PathBuf]) {
    let at: Vec<RawPath> = at.iter().cloned().map(RawPath).collect();
    write(store, VIEWS, &at);
}

pub(super) fn remember_limits(store: &Path, limits: &LimitFlags) {
    write(store, LIMITS, limits);
}

/// An error when root is about to write into another user's store: what root makes there, the
/// user could not read any more.
pub fn owned_by_us(store: &Path) -> Result<(), Failure> {
    let us = nix::unistd::geteuid();
    match paths::real(store).and_then(|store| paths::stat(&store)) {
        Ok(Some(stat)) if us.is_root() && stat.st_uid != 0 => Err(Failure::failed(format!(
            "the store {} belongs to user {1}; run this as that user (sudo -u '#{1}' outfs …)",
            store.display(),
            stat.st_uid
        ))),
        _ => Ok(()),
    }
}

/// The limits the store's last daemon ran with.
pub fn stored_limits(store: &Path) -> LimitFlags {
    read(store, LIMITS).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::MetadataExt;

    use super::*;
    use crate::store::Fault;

    #[test]
    fn limits_are_remembered_and_damage_is_ignored() {
        let dir = tempfile::tempdir().unwrap();
        assert_eq!(stored_limits(dir.path()), LimitFlags::default());
        let limits = LimitFlags { entries: Some(3), ..LimitFlags::of(&crate::cache::Limits::default()) };
        remember_limits(dir.path(), &limits);
        assert_eq!(std::fs::metadata(dir.path().join(LIMITS)).unwrap().mode() & 0o077, 0);
        assert_eq!(stored_limits(dir.path()), limits);
        std::fs::write(dir.path().join(LIMITS), "{").unwrap();
        assert_eq!(stored_limits(dir.path()), LimitFlags::default());
        remember_views(dir.path(), &["/nowhere".into()]);
        take_over(dir.path());
    }

    #[test]
    fn a_record_that_cannot_be_read_or_written_is_the_old_one_the_new_one_or_none() {
        let dir = tempfile::tempdir().unwrap();
        let limits = |entries| LimitFlags { entries: Some(entries), ..LimitFlags::default() };
        remember_limits(dir.path(), &limits(1));
        for n in 0.. {
            for errno in [libc::EIO, libc::ENOSPC, libc::EMFILE] {
                let fault = Fault::after(n, errno, true);
                remember_limits(dir.path(), &limits(2));
                let read: Option<LimitFlags> = read(dir.path(), LIMITS);
                let fired = fault.fired();
                drop(fault);
                assert!(read.is_none() || read.is_some_and(|r| r == limits(1) || r == limits(2)));
                assert!([limits(1), limits(2)].contains(&stored_limits(dir.path())));
                remember_limits(dir.path(), &limits(1));
                assert_eq!(stored_limits(dir.path()), limits(1));
                if !fired {
                    assert!(n > 4, "only {n} calls were seen");
                    return;
                }
            }
        }
    }
}
