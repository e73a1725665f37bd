//! Errors of the use cases: what was asked for, why it failed, what to do.

use std::io;
use std::path::PathBuf;

use crate::index::IndexError;
use crate::model::EntryKey;
use crate::store::StoreError;
use crate::tier::TierError;

/// What went wrong in a use case.
#[derive(Debug, thiserror::Error)]
pub enum CacheError {
    /// No such entry.
    #[error("there is no entry {key}{hint}", hint = why.as_ref().map(|w| format!(": {w}")).unwrap_or_default())]
    NoEntry {
        /// The key.
        key: EntryKey,
        /// What is known about why: evicted when, rejected why.
        why: Option<String>,
    },
    /// No such draft.
    #[error("there is no draft called {0}; 'outfs drafts' lists them")]
    NoDraft(String),
    /// No such file in an entry.
    #[error("the entry {key} has no file {path}")]
    NoFile {
        /// The entry.
        key: EntryKey,
        /// The path as given.
        path: String,
    },
    /// The key is taken by an entry with other outputs.
    #[error(
        "the entry {key} exists with different outputs (first difference: {differs}); the first sealed result wins: evict it first to replace it"
    )]
    Exists {
        /// The key.
        key: EntryKey,
        /// The first path that differs.
        differs: String,
    },
    /// The key or work name has a draft already.
    #[error("there is a draft for {0} already; 'outfs drafts' shows it")]
    DraftExists(String),
    /// Somebody still writes.
    #[error("{path} is still open for writing; close it and seal again")]
    Busy {
        /// A file with a writer.
        path: String,
    },
    /// The disk has not taken what was written to a file of a draft.
    #[error("the disk did not take what was written to {path}; write it anew (not over it) and seal again")]
    Unwritten {
        /// Below the draft's top.
        path: String,
    },
    /// The draft was sealed or dropped meanwhile.
    #[error("the draft {0} is gone: it was sealed or dropped meanwhile")]
    Gone(String),
    /// A pin holds the entry.
    #[error("the entry {key} is pinned by {pin}; 'outfs unpin' lifts it")]
    Pinned {
        /// The entry.
        key: EntryKey,
        /// One pin's name.
        pin: String,
    },
    /// Something in a draft cannot be stored.
    #[error("{path} is a {what}; an entry holds only files, directories and symlinks")]
    SpecialFile {
        /// Below the draft's top.
        path: String,
        /// `device`, `fifo`, `socket`.
        what: &'static str,
    },
    /// A tree that no manifest can describe.
    #[error("this tree cannot be sealed: {0}")]
    Tree(#[from] crate::model::manifest::TreeError),
    /// The quota is reached and nothing can be evicted, or the disk is full.
    #[error("the store has no room: {0}")]
    NoSpace(String),
    /// Something stands where a restore wants to write.
    #[error("{path} exists and differs; use --force to replace it", path = .0.display())]
    InTheWay(PathBuf),
    /// A stream or document that is not what it should be.
    #[error("{what} cannot be used: {why}")]
    BadInput {
        /// What was given.
        what: String,
        /// What is wrong with it.
        why: String,
    },
    /// A file of the user's (not the store's) could not be used.
    #[error("cannot {op} {path}: {source}", path = path.display())]
    Io {
        /// What was being done, as a verb.
        op: &'static str,
        /// To which file.
        path: PathBuf,
        /// The system's answer.
        source: io::Error,
    },
    /// A process has had as much come from tiers by reading as one may.
    #[error(
        "process {pid} ({program:?}) has had as much come from tiers by reading as one process may ({budget}); 'outfs prefetch' brings an \
         entry, whoever reads it then", budget = crate::model::units::human_bytes(*budget)
    )]
    OverBudget {
        /// Its number.
        pid: u32,
        /// What it is called.
        program: String,
        /// Bytes.
        budget: u64,
    },
    /// A tier failed.
    #[error(transparent)]
    Tier(Box<TierError>),
    /// The store failed.
    #[error(transparent)]
    Store(StoreError),
    /// The index failed.
    #[error(transparent)]
    Index(IndexError),
}

impl From<StoreError> for CacheError {
    fn from(e: StoreError) -> Self {
        if e.is_no_space() { CacheError::NoSpace(e.to_string()) } else { CacheError::Store(e) }
    }
}

impl From<TierError> for CacheError {
    fn from(e: TierError) -> Self {
        CacheError::Tier(e.into())
    }
}

impl From<IndexError> for CacheError {
    fn from(e: IndexError) -> Self {
        if e.is_no_space() {
            CacheError::NoSpace(
                "the disk is full; free some space, or evict entries ('outfs evict', 'outfs gc')".into(),
            )
        } else {
            CacheError::Index(e)
        }
    }
}

impl CacheError {
    /// An [`Io`](Self::Io) error with its context.
    pub fn io(op: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Self {
        CacheError::Io { op, path: path.into(), source }
    }
}
