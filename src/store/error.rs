//! Errors of the store: missing, I/O, corrupt, and the few that opening one can have.

use std::io;
use std::path::PathBuf;

/// What went wrong in the store, doing what, where.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// Something the caller named is not there.
    #[error("{what} is missing from the store ({path})", path = path.display())]
    Missing {
        /// What kind of object, with its name.
        what: String,
        /// Where it should be.
        path: PathBuf,
    },
    /// A content that an entry has and that only a tier has the bytes of.
    #[error("{what} is not in the store: it is in a tier, and none that has it is attached")]
    Elsewhere {
        /// The content, with its name.
        what: String,
    },
    /// The operating system refused.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb.
        op: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// The disk has not taken what was written to a file. Syncing the same file again proves nothing: it must be written anew.
    #[error("the disk did not take what was written to {path}: {source}", path = path.display())]
    Unwritten {
        /// The file, or the blob that it was to become.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// Bytes that are not what their name or checksum says.
    #[error("{path} is damaged{at}: {why}; 'outfs fsck --repair' sets it aside", path = path.display(), at = line.map(|l| format!(", line {l}")).unwrap_or_default())]
    Corrupt {
        /// The damaged file.
        path: PathBuf,
        /// For text files, the line.
        line: Option<u64>,
        /// What is wrong.
        why: String,
    },
    /// Another process owns it.
    #[error("the store {path} is in use by process {pid}; ask it (outfs does so by itself while its daemon answers) or stop it with 'outfs stop'", path = path.display())]
    Locked {
        /// The store.
        path: PathBuf,
        /// The owner, 0 when unknown.
        pid: u32,
    },
    /// Written by a newer program.
    #[error("the store {path} has format {found}, this program knows up to {known}; use a newer outfs", path = path.display())]
    TooNew {
        /// The store.
        path: PathBuf,
        /// Its format.
        found: u32,
        /// The newest known.
        known: u32,
    },
    /// The directory is missing, is something else, or cannot hold a store.
    #[error("{path} cannot be used as a store: {why}", path = path.display())]
    Unsuitable {
        /// The directory.
        path: PathBuf,
        /// Why, and what to do.
        why: String,
    },
}

impl StoreError {
    /// An [`Io`](Self::Io) error with its context.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        StoreError::Io { op, path: path.into(), source }
    }

    /// The disk cannot give what is there, at least not this time.
    pub fn is_bad_spot(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if source.raw_os_error() == Some(libc::EIO))
    }

    /// This one thing is lost, is not what it should be, or is on a bad spot of the disk; others need not suffer from it.
    pub fn is_damage(&self) -> bool {
        matches!(self, StoreError::Missing { .. } | StoreError::Corrupt { .. }) || self.is_bad_spot()
    }

    /// The disk or its quota is full.
    pub fn is_no_space(&self) -> bool {
        matches!(self, StoreError::Io { source, .. } if is_no_space(source))
    }
}

/// The disk or its quota is full.
pub(super) fn is_no_space(e: &io::Error) -> bool {
    matches!(e.raw_os_error(), Some(libc::ENOSPC | libc::EDQUOT))
}

/// Reads something, and once more where the disk failed.
pub(crate) fn twice<T>(mut read: impl FnMut() -> Result<T, StoreError>) -> Result<T, StoreError> {
    read().or_else(|e| if e.is_bad_spot() { read() } else { Err(e) })
}
