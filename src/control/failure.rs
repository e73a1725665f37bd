//! Failures as they travel: a kind that decides the exit code, and a message for people.

use serde::de::IntoDeserializer;
use serde::de::value::StringDeserializer;
use serde::{Deserialize, Deserializer, Serialize};

use crate::cache::{CacheError, EventsError};
use crate::index::IndexError;
use crate::store::StoreError;

/// What kind of failure it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    /// Something went wrong.
    Failed,
    /// The request itself makes no sense.
    Usage,
    /// The cursor is no position in this store's log.
    BadCursor,
    /// More was asked for than one answer holds.
    TooMany,
    /// No such entry, draft or file.
    NotFound,
    /// Stored bytes are not what they should be.
    Damaged,
    /// Something is in use.
    Busy,
    /// Something else stands there already.
    Exists,
    /// The asker may not.
    Denied,
    /// The daemon is about to end and did nothing: ask again, there will be none or a new one.
    Stopping,
    /// The daemon went away; it may have done what was asked, or not.
    Lost,
    /// The daemon was stopped by a signal, and may do what was asked when it goes on.
    Halted,
    /// Client and server do not understand each other.
    Protocol,
    /// The store is owned by another process.
    Locked,
    /// The daemon met a fault in itself.
    Fault,
    /// The reader of the output went away.
    Hangup,
}

/// Why a request failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, Serialize, Deserialize)]
#[error("{message}")]
pub struct Failure {
    /// Decides the exit code. One that another version has and this one does not know is `Failed`.
    #[serde(deserialize_with = "known")]
    pub kind: Kind,
    /// For people: what, why, what to do.
    pub message: String,
}

fn known<'de, D: Deserializer<'de>>(d: D) -> Result<Kind, D::Error> {
    let name: StringDeserializer<D::Error> = String::deserialize(d)?.into_deserializer();
    Ok(Kind::deserialize(name).unwrap_or(Kind::Failed))
}

impl Failure {
    /// A failure of `kind`.
    pub fn new(kind: Kind, message: impl Into<String>) -> Self {
        Self { kind, message: message.into() }
    }

    /// Something went wrong.
    pub fn failed(message: impl Into<String>) -> Self {
        Self::new(Kind::Failed, message)
    }

    /// The program's exit code for it.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            Kind::Usage | Kind::BadCursor | Kind::TooMany => 2,
            Kind::NotFound => 3,
            Kind::Damaged => 4,
            _ => 1,
        }
    }
}

impl From<CacheError> for Failure {
    fn from(e: CacheError) -> Self {
        let kind = match &e {
            CacheError::NoEntry { .. } | CacheError::NoDraft(_) | CacheError::NoFile { .. } => Kind::NotFound,
            CacheError::Exists { .. } | CacheError::DraftExists(_) | CacheError::InTheWay(_) => Kind::Exists,
            CacheError::Busy { .. } | CacheError::Pinned { .. } => Kind::Busy,
            CacheError::Store(s) => kind_of_store(s),
            CacheError::Index(i) => kind_of_index(i),
            CacheError::Io { source, .. } if source.kind() == std::io::ErrorKind::BrokenPipe => Kind::Hangup,
            _ => Kind::Failed,
        };
        Self::new(kind, e.to_string())
    }
}

impl From<EventsError> for Failure {
    fn from(e: EventsError) -> Self {
        let kind = match &e {
            EventsError::Cursor(_) => Kind::BadCursor,
            EventsError::Limit { .. } => Kind::TooMany,
            EventsError::Store(e) => kind_of_store(e),
        };
        Self::new(kind, e.to_string())
    }
}

impl From<StoreError> for Failure {
    fn from(e: StoreError) -> Self {
        Self::new(kind_of_store(&e), e.to_string())
    }
}

impl From<IndexError> for Failure {
    fn from(e: IndexError) -> Self {
        Self::new(kind_of_index(&e), e.to_string())
    }
}

fn kind_of_index(e: &IndexError) -> Kind {
    if e.is_damage() { Kind::Damaged } else { Kind::Failed }
}

fn kind_of_store(e: &StoreError) -> Kind {
    match e {
        StoreError::Corrupt { .. } | StoreError::Missing { .. } => Kind::Damaged,
        StoreError::Locked { .. } => Kind::Locked,
        _ => Kind::Failed,
    }
}
