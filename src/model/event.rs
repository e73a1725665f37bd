//! Events: one record for everything that happened to an entry, with a cursor.
//!
//! A [`Cursor`] names a position in one store's log. Positions only grow and are never used
//! twice. The store id makes a cursor of another store an error instead of a wrong
//! answer; the epoch changes when an index was rebuilt, so that readers may notice.

use std::fmt;
use std::str::FromStr;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::key::EntryKey;

/// What happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub enum EventKind {
    /// An entry was sealed.
    Sealed {
        /// Its manifest.
        manifest: super::ManifestHash,
        /// By which gesture: `rename`, `seal`, `chmod`, `put`, `quiet`, `import`, `library`.
        how: String,
        /// Logical bytes of all files.
        bytes: u64,
        /// Number of files.
        files: u64,
    },
    /// An entry of a tier was looked up and is shown from now on; its contents come when they are read.
    Found {
        /// Its manifest.
        manifest: super::ManifestHash,
        /// The tier's name.
        tier: String,
        /// Logical bytes of all files.
        bytes: u64,
        /// Number of files.
        files: u64,
    },
    /// An entry was evicted.
    Evicted {
        /// `lru`, `request`, `trash`, `gc`, `replaced`.
        why: String,
        /// Bytes that were freed on disk.
        freed: u64,
    },
    /// An entry that a tier has gave up its bytes here: it stays visible, and they come back when it is read.
    LetGo {
        /// As of an eviction.
        why: String,
        /// The tier's name.
        tier: String,
        /// Bytes that were freed on disk.
        freed: u64,
    },
    /// A process had as much come from tiers by reading as one may: what it reads of entries that is not here is refused (EDQUOT) until some of its
    /// budget is back.
    OverBudget {
        /// Its number.
        pid: u32,
        /// What it is called.
        program: String,
        /// Entries of which something came.
        entries: u64,
        /// Bytes that came.
        bytes: u64,
        /// The budget, in bytes; each entry counts for some more.
        budget: u64,
        /// What to do.
        go_on: String,
    },
    /// The same key was sealed with different outputs.
    NotDeterministic {
        /// The first path that differs.
        path: String,
    },
    /// A named pin was set or lifted.
    Pinned {
        /// The pin's name.
        name: String,
        /// False when it was lifted.
        on: bool,
    },
    /// The key was rejected, or the rejection lifted.
    Rejected {
        /// Why, as given; absent when lifted.
        reason: Option<String>,
    },
    /// Content failed verification.
    Damaged {
        /// What was damaged, and how it was noticed.
        what: String,
    },
    /// After a death a manifest was found that the index has no entry of, and it was removed: of a seal or an eviction that
    /// was under way, or of an entry that a damaged index lost.
    Swept {
        /// The manifest.
        manifest: super::ManifestHash,
    },
    /// `fsck` repaired something.
    Repaired {
        /// What was done.
        what: String,
    },
    /// An entry was found without readable metadata.
    BadMetadata {
        /// Why it did not parse.
        why: String,
    },
    /// A run found its result.
    Hit {
        /// The task's name.
        task: String,
        /// The time that it spared, in milliseconds.
        saved_ms: u64,
    },
    /// A run found none, executed its command and had a result.
    Miss {
        /// The task's name.
        task: String,
        /// Why it was executed.
        reasons: Vec<String>,
    },
    /// A run gave no result.
    Failed {
        /// The task's name.
        task: String,
        /// How it ended.
        status: String,
    },
    /// A draft was dropped: abandoned, or removed by a user.
    DraftDropped {
        /// The draft's name.
        draft: String,
        /// Why.
        why: String,
    },
    /// The index was rebuilt from the store.
    IndexRebuilt {
        /// How many entries were found.
        entries: u64,
    },
}

/// One record of the event log; a line of `events.jsonl`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Event {
    /// The record's position; unique and growing within a store.
    pub seq: u64,
    /// When.
    pub at: Timestamp,
    /// The entry concerned, if one is.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub key: Option<EntryKey>,
    /// What happened.
    #[serde(flatten)]
    pub kind: EventKind,
}

/// A position in one store's event log, written `<store id>.<epoch>.<seq>`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Cursor {
    /// The store's id, 16 hexadecimal digits.
    pub store: String,
    /// The index's epoch when the cursor was handed out.
    pub epoch: u32,
    /// Events with a greater `seq` come next.
    pub seq: u64,
}

/// Why a cursor is no position in a log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum CursorError {
    /// It has another form.
    #[error("{0:?} is not a cursor; a cursor looks like 00c0ffee00c0ffee.1.42")]
    Malformed(String),
    /// Another store's log has it.
    #[error("the cursor {cursor} is of another store; this one's id is {store}")]
    OtherStore {
        /// The cursor.
        cursor: String,
        /// The id of the store that was asked.
        store: String,
    },
    /// The log has not come so far: an older copy of the store took its place.
    #[error("the cursor {cursor} is ahead of the log, which ends at {newest}; read it from the start")]
    Ahead {
        /// The cursor.
        cursor: String,
        /// The last record's position.
        newest: u64,
    },
}

impl fmt::Display for Cursor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}.{}", self.store, self.epoch, self.seq)
    }
}

impl FromStr for Cursor {
    type Err = CursorError;
    fn from_str(s: &str) -> Result<Self, CursorError> {
        let err = || CursorError::Malformed(s.chars().take(80).collect());
        let mut parts = s.split('.');
        let (Some(store), Some(epoch), Some(seq), None) =
            (parts.next(), parts.next(), parts.next(), parts.next())
        else {
            return Err(err());
        };
        if store.len() != 16 || !store.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(err());
        }
        Ok(Cursor {
            store: store.to_owned(),
            epoch: epoch.parse().map_err(|_| err())?,
            seq: seq.parse().map_err(|_| err())?,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cursor_text() {
        let c = Cursor { store: "00c0ffee00c0ffee".into(), epoch: 2, seq: 42 };
        assert_eq!(c.to_string().parse::<Cursor>().unwrap(), c);
        for bad in ["", "1.2.3", "00c0ffee00c0ffee.1", "00c0ffee00c0ffee.1.2.3", "zzc0ffee00c0ffee.1.2"] {
            assert!(bad.parse::<Cursor>().is_err(), "{bad}");
        }
    }

    #[test]
    fn json_line() {
        let e = Event {
            seq: 1,
            at: Timestamp::UNIX_EPOCH,
            key: Some(EntryKey::parse("abcd").unwrap()),
            kind: EventKind::Evicted { why: "lru".into(), freed: 9 },
        };
        let line = serde_json::to_string(&e).unwrap();
        assert!(line.contains(r#""event":"evicted""#), "{line}");
        assert_eq!(serde_json::from_str::<Event>(&line).unwrap(), e);
    }
}
