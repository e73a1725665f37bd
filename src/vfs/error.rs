//! Why a file-system operation failed; `fuse/errno.rs` alone turns these into errnos.

use crate::cache::CacheError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The use case failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}
