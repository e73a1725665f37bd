//! The one place where errors become errnos.
//!
//! Exhaustive on purpose: a new error must choose. What the store or the index answer never
//! passes through as it is: lost or damaged content is EIO, and ENOENT means 'no such name'.

use nix::errno::Errno;

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
        VfsError::Committing(_) => Errno::EAGAIN,
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
        CacheError::Store(e) => store_errno(e),
        CacheError::Tier(_) => return store_failed(error),
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
        | StoreError::Corrupt { .. }
        | StoreError::Locked { .. }
        | StoreError::TooNew { .. }
        | StoreError::Unsuitable { .. } => store_failed(error),
    }
}

/// Never without a word in the log.
fn store_failed(error: &dyn std::error::Error) -> Errno {
    tracing::warn!(error = %error, "the store failed");
    Errno::EIO
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
}
