//! What a daemon leaves beside its store: which views it has mounted, so that the next one can
//! clear away what a killed one left, and its limits, so that commands without a daemon keep them.
//!
//! Both files are conveniences: a missing or damaged one is as good as none.

use std::io::Write;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use super::mountpoint;
use crate::control::{Failure, LimitFlags, RawPath};

const VIEWS: &str = "views.json";
const LIMITS: &str = "limits.json";

pub(super) fn read<T: serde::de::DeserializeOwned>(store: &Path, name: &str) -> Option<T> {
    let bytes = std::fs::read(store.join(name)).ok()?;
    serde_json::from_slice(&bytes)
        .inspect_err(|e| tracing::warn!("{} is ignored: {e}", store.join(name).display()))
        .ok()
}

pub(super) fn write(store: &Path, name: &str, what: &impl serde::Serialize) {
    let path = store.join(name);
    let written = serde_json::to_vec(what).map_err(std::io::Error::other).and_then(|bytes| {
        let aside = store.join(format!("{name}.new"));
        // The daemon's umask is 0.
        let mut options = std::fs::OpenOptions::new();
        let mut file = options.write(true).create(true).truncate(true).mode(0o600).open(&aside)?;
        file.write_all(&bytes)?;
        std::fs::rename(&aside, &path)
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
    match std::fs::metadata(store) {
        Ok(m) if us.is_root() && m.uid() != 0 => Err(Failure::failed(format!(
            "the store {} belongs to user {1}; run this as that user (sudo -u '#{1}' outfs …)",
            store.display(),
            m.uid()
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
    use super::*;

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
}
