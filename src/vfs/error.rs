//! Why a file-system operation failed; `fuse/errno.rs` alone turns these into errnos.

use std::sync::Arc;

use nix::errno::Errno;

use super::counted::Scarce;
use crate::cache::{CacheError, Draft};
use crate::index::IndexError;
use crate::store::StoreError;

/// Why an operation failed.
#[derive(Debug, thiserror::Error)]
pub enum VfsError {
    /// No such name.
    #[error("no such file or directory")]
    NotFound,
    /// The name is taken.
    #[error("the name exists")]
    Exists,
    /// Not a directory.
    #[error("not a directory")]
    NotDir,
    /// A directory.
    #[error("a directory")]
    IsDir,
    /// A directory with something in it.
    #[error("the directory is not empty")]
    NotEmpty,
    /// Sealed, or a read-only view.
    #[error("read-only")]
    ReadOnly,
    /// Not a valid name or argument here.
    #[error("not valid here")]
    Invalid,
    /// Between two drafts, or a draft and something else.
    #[error("not within one draft")]
    CrossDevice,
    /// Not allowed here, whoever asks.
    #[error("not permitted")]
    NotPermitted,
    /// No such attribute.
    #[error("no such attribute")]
    NoAttribute,
    /// Not a thing this file system does.
    #[error("not supported")]
    Unsupported,
    /// The draft is being committed: nothing was done, and all can be tried again when it is
    /// [open](Draft::when_open). No kernel gets to see this.
    #[error("the draft is being committed")]
    Committing(Arc<Draft>),
    /// Room must be made first: nothing was done, and all can be tried again when [`View::make_room`](super::View::make_room)
    /// has made some. No kernel gets to see this.
    #[error("there is no room yet")]
    Crowded,
    /// No descriptor is to spare just now: nothing was done, and all can be tried again when one [is](Scarce::wait). No
    /// kernel gets to see this.
    #[error("no descriptor is to spare yet")]
    Scarce(Scarce),
    /// Only a tier has it: nothing was done, and [`View::read_from_tiers`](super::View::read_from_tiers) asks for it. No
    /// kernel gets to see this.
    #[error("only a tier has it")]
    Remote,
    /// The kernel must look the name up again.
    #[error("stale")]
    Stale,
    /// No such handle.
    #[error("no such handle")]
    BadHandle,
    /// What the file system below a draft answered to the same operation.
    #[error("{0}")]
    Draft(#[from] Errno),
    /// The use case failed.
    #[error(transparent)]
    Cache(#[from] CacheError),
}

impl From<StoreError> for VfsError {
    fn from(e: StoreError) -> Self {
        VfsError::Cache(e.into())
    }
}

impl From<IndexError> for VfsError {
    fn from(e: IndexError) -> Self {
        VfsError::Cache(e.into())
    }
}

/// What every operation returns.
pub type Result<T> = std::result::Result<T, VfsError>;
