//! The one place where errors become errnos.
//!
//! Exhaustive on purpose: a new error must choose. What the store or the index answer never
//! passes through as it is: lost or damaged content is EIO, and ENOENT means 'no such name'.

use std::time::{Duration, Instant};

use nix::errno::Errno;
use parking_lot::Mutex;

use crate::cache::CacheError;
use crate::model::manifest::TreeError;
use crate::store::StoreError;
use crate::vfs::VfsError;

/// The errno of a failed operation; what a user cannot see from it goes to the log.
pub fn errno(error: &VfsError) -> Errno {
    match error {
        VfsError::NotFound => Errno::ENOENT,
        VfsError::Exists => Errno::EEXIST,
        VfsError::NotDir => Errno::ENOTDIR,
        VfsError::IsDir => Errno::EISDIR,
        VfsError::NotEmpty => Errno::ENOTEMPTY,
        VfsError::ReadOnly => Errno::EROFS,
        VfsError::Invalid => Errno::EINVAL,
        VfsError::CrossDevice => Errno::EXDEV,
        VfsError::NotPermitted => Errno::EPERM,
        VfsError::NoAttribute => Errno::ENODATA,
        VfsError::Unsupported => Errno::EOPNOTSUPP,
        VfsError::Committing(_) | VfsError::Crowded => Errno::EAGAIN,
        VfsError::Scarce(_) => Errno::ENFILE,
        VfsError::Remote => Errno::EIO,
        VfsError::Stale => Errno::ESTALE,
        VfsError::BadHandle => Errno::EBADF,
        VfsError::Draft(e) => *e,
        VfsError::Cache(e) => cache_errno(e),
    }
}

fn cache_errno(error: &CacheError) -> Errno {
    let errno = match error {
        CacheError::NoEntry { .. } | CacheError::NoDraft(_) | CacheError::NoFile { .. } => Errno::ENOENT,
        CacheError::Exists { .. } | CacheError::DraftExists(_) | CacheError::InTheWay(_) => Errno::EEXIST,
        CacheError::Busy { .. } | CacheError::Pinned { .. } => Errno::EBUSY,
        CacheError::Gone(_) => Errno::ESTALE,
        // Not EINVAL, which mv takes for a directory that is moved into itself.
        CacheError::Tree(TreeError::TooDeep { .. }) => Errno::ENAMETOOLONG,
        CacheError::SpecialFile { .. } | CacheError::Tree(_) => Errno::EOPNOTSUPP,
        CacheError::BadInput { .. } => Errno::EINVAL,
        CacheError::NoSpace(_) => Errno::ENOSPC,
        // Not EAGAIN, which programs obey at once, for ever.
        CacheError::OverBudget { .. } => Errno::EDQUOT,
        CacheError::Store(e) => store_errno(e),
        CacheError::Tier(_) | CacheError::Unwritten { .. } => return store_failed(error),
        CacheError::Io { source, .. } if is_full(source) => Errno::ENOSPC,
        CacheError::Io { .. } | CacheError::Index(_) => return store_failed(error),
    };
    tracing::debug!(error = %error, "an operation failed");
    errno
}

fn store_errno(error: &StoreError) -> Errno {
    if error.is_no_space() {
        return Errno::ENOSPC;
    }
    match error {
        StoreError::Missing { .. }
        | StoreError::Elsewhere { .. }
        | StoreError::Io { .. }
        | StoreError::Unwritten { .. }
        | StoreError::Corrupt { .. }
        | StoreError::Locked { .. }
        | StoreError::TooNew { .. }
        | StoreError::Unsuitable { .. } => store_failed(error),
    }
}

/// Never without a word in the log; but a store that fails at each request fills no disk with that.
fn store_failed(error: &dyn std::error::Error) -> Errno {
    static TOLD: Mutex<Rate> = Mutex::new(Rate { since: None, told: 0, more: 0 });
    let now = Instant::now();
    match TOLD.lock().one(now) {
        Some(0) => tracing::warn!(error = %error, "the store failed"),
        Some(more) => tracing::warn!(error = %error, "the store failed ({more} times more before)"),
        None => tracing::debug!(error = %error, "the store failed"),
    }
    Errno::EIO
}

/// So many are told at once,
const AT_ONCE: u32 = 20;
/// and as many again after this time.
const AGAIN: Duration = Duration::from_secs(10);

/// How often something may be told.
struct Rate {
    since: Option<Instant>,
    told: u32,
    /// Not told since.
    more: u64,
}

impl Rate {
    /// It happens once more: `None` when it is not to be told, else how often it was not before.
    fn one(&mut self, now: Instant) -> Option<u64> {
        if self.since.is_none_or(|since| now.duration_since(since) >= AGAIN) {
            (self.since, self.told) = (Some(now), 0);
        }
        if self.told == AT_ONCE {
            self.more += 1;
            return None;
        }
        self.told += 1;
        Some(std::mem::take(&mut self.more))
    }
}

fn is_full(e: &std::io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lost_content_is_never_enoent() {
        let lost = StoreError::Missing { what: "blob".into(), path: "x".into() };
        assert_eq!(errno(&VfsError::from(lost)), Errno::EIO);
        let elsewhere = StoreError::Elsewhere { what: "blob".into() };
        assert_eq!(errno(&VfsError::from(elsewhere)), Errno::EIO);
        let enoent = StoreError::io("open", "x", std::io::Error::from_raw_os_error(libc::ENOENT));
        assert_eq!(errno(&VfsError::from(enoent)), Errno::EIO);
        let full = StoreError::io("write", "x", std::io::Error::from_raw_os_error(libc::ENOSPC));
        assert_eq!(errno(&VfsError::from(full)), Errno::ENOSPC);
    }

    #[test]
    fn a_store_that_fails_again_and_again_is_told_at_a_rate() {
        let mut rate = Rate { since: None, told: 0, more: 0 };
        let begin = Instant::now();
        let told = (0..1000).filter(|_| rate.one(begin) == Some(0)).count();
        assert_eq!(told, AT_ONCE as usize);
        assert_eq!(rate.one(begin + AGAIN), Some(1000 - u64::from(AT_ONCE)));
        assert_eq!(rate.one(begin + AGAIN), Some(0));
    }
}
