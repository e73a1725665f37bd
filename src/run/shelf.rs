//! What a run needs of a store, and nothing else.
//!
//! Purpose: one seam between running tasks and keeping results, so that a daemon, a store of one's own
//! and a store that fails look the same from here. Invariant: a failure is a value with a message; it
//! never ends a run. Must not know: sockets, sessions.

use std::collections::BTreeMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::decide::Earlier;
use super::key::Parts;
use super::pieces::Pieces;
use super::upstream::Made;
use crate::cache::{RestoreAs, Restored};
use crate::model::session::SessionId;
use crate::model::{EntryKey, ManifestHash};

/// The member of an entry's metadata that has what a run knows.
pub const MEMBER: &str = "outfs";

/// What an entry was made of, as its metadata says; `None` when no run made it.
pub fn parts_kept(metadata: &[u8]) -> Option<Parts> {
    #[derive(Deserialize)]
    struct Kept {
        outfs: Option<Member>,
    }
    #[derive(Deserialize)]
    struct Member {
        parts: Parts,
    }
    Some(serde_json::from_slice::<Kept>(metadata).ok()?.outfs?.parts)
}

/// Why a store could not do it, for people.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ShelfError(pub String);

/// What a store answers.
pub type Shelved<T> = std::result::Result<T, ShelfError>;

/// An entry that has the key, as far as a run wants to know.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Held {
    /// Its manifest: the same manifest, the same outputs.
    pub manifest: ManifestHash,
    /// What its outputs hash to: path, type, executable bit, content and link target of each.
    pub outputs_hash: String,
    /// The task's name when it was made.
    pub task_id: String,
    /// When it was made.
    pub made_at: Timestamp,
    /// How long that took, in milliseconds.
    pub duration_ms: u64,
    /// How it ended.
    pub exit_code: i32,
    /// Sealed by quiet: not known to be whole.
    pub inferred: bool,
    /// The first declared output that it does not have.
    pub missing: Option<String>,
    /// In which order its two logs were written.
    #[serde(default)]
    pub order: String,
}

/// What a store has under a key.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "found", rename_all = "snake_case")]
pub enum Found {
    /// An entry.
    Entry(Box<Held>),
    /// Nothing, and what became of what was there or was tried.
    Nothing {
        /// When it was evicted.
        evicted: Option<Timestamp>,
        /// How the last run ended that gave no result.
        failed: Option<String>,
    },
    /// One that must not be used.
    Rejected {
        /// Why.
        reason: String,
    },
    /// One whose metadata or manifest cannot be read, or that was dropped for such damage.
    Unreadable {
        /// Why.
        why: String,
    },
}

impl Found {
    /// Nothing is known of the key.
    pub const UNKNOWN: Found = Found::Nothing { evicted: None, failed: None };
}

/// Which modification times restored outputs get.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Times {
    /// Now, in the order they had, so that make finds them newer than what they are made of.
    #[default]
    Now,
    /// Those that they had.
    Keep,
}

/// How outputs come back.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Way {
    /// As files.
    Files(RestoreAs),
    /// As symlinks into a mount, for whoever only reads.
    Link,
}

/// How placing ended.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "placed", rename_all = "snake_case")]
pub enum Placed {
    /// All outputs stand there.
    Done {
        /// Which entry's: another one may have taken its key meanwhile.
        manifest: Option<ManifestHash>,
        /// What was done.
        restored: Restored,
    },
    /// The entry has lost content: what stands there now is no result.
    Lost {
        /// The output.
        path: String,
        /// What is wrong.
        why: String,
    },
    /// Only reflinks were wanted, and there can be none here.
    NoReflinks {
        /// What the system says.
        why: String,
    },
    /// What is no output stands where a directory of one belongs.
    InTheWay {
        /// What.
        path: String,
    },
}

/// A result to be kept.
#[derive(Debug, Clone)]
pub struct Keep<'a> {
    /// Its key.
    pub key: &'a EntryKey,
    /// The task's name.
    pub task_id: &'a str,
    /// The command as text.
    pub command: Vec<String>,
    /// How it ended.
    pub exit_code: i32,
    /// How long it took, in milliseconds.
    pub duration_ms: u64,
    /// The working directory.
    pub cwd: &'a Path,
    /// The outputs, relative to it.
    pub outputs: &'a [PathBuf],
    /// A file with its standard output and one with its standard error.
    pub logs: [&'a Path; 2],
    /// What the run knows, as the [`MEMBER`] of the metadata, JSON as text.
    pub member: String,
    /// Replace an entry with other outputs.
    pub replace: bool,
    /// The entry with the key has lost content.
    pub lost: bool,
    /// It lasts no longer than this.
    pub session: Option<&'a SessionId>,
    /// The entry that it was made from.
    pub base: Option<StartedFrom<'a>>,
}

/// An entry that a result was made from.
#[derive(Debug, Clone, Copy)]
pub struct StartedFrom<'a> {
    /// Its key.
    pub key: &'a EntryKey,
    /// What its outputs hashed to.
    pub outputs_hash: &'a str,
    /// The files that are not as it has them: the others need not be read.
    pub changed: &'a [PathBuf],
}

/// A result that was kept.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Kept {
    /// False when the same was there already.
    pub new: bool,
    /// Its manifest.
    pub manifest: ManifestHash,
    /// What its outputs hash to.
    pub outputs_hash: String,
}

/// Something that happened in a run, for the event log.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "note", rename_all = "snake_case")]
pub enum Note {
    /// A result was given back.
    Hit {
        /// The time that it spared, in milliseconds.
        saved_ms: u64,
    },
    /// The task was run.
    Miss {
        /// Why.
        reasons: Vec<String>,
    },
    /// The run gave no result.
    Failed {
        /// How it ended.
        status: String,
    },
}

/// A file, directory or symlink of a result.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Node {
    /// `file`, `program`, `dir` or `symlink`.
    pub kind: String,
    /// Content hash, or a symlink's target as [text](super::text()).
    pub content: String,
}

/// Paths below `outputs/` as [text](super::text()), and what they are.
pub type Nodes = BTreeMap<String, Node>;

/// What outputs hash to: the same for the same paths, types, executable bits, contents and link targets.
pub fn nodes_hash(nodes: &Nodes) -> String {
    sorted_nodes_hash(nodes.iter().map(|(path, node)| [&path[..], &node.kind, &node.content]))
}

/// The same of paths in order, each with its node's kind and content.
pub fn sorted_nodes_hash<'a>(nodes: impl Iterator<Item = [&'a str; 3]>) -> String {
    let mut pieces = Pieces::of(blake3::Hasher::new_derive_key("outfs run outputs 1"));
    for part in nodes.flatten() {
        pieces.add_with_length(part.as_bytes());
    }
    pieces.end().to_hex().to_string()
}

/// Results that are kept, as snapshots of what a place for a command looked like.
pub trait Snapshots {
    /// Is there one under the key?
    fn exists(&mut self, key: &EntryKey) -> Shelved<bool>;
    /// Takes it away; a missing one is fine.
    fn remove(&mut self, key: &EntryKey) -> Shelved<()>;
}

/// What a run needs of a store.
pub trait Shelf: Snapshots {
    /// What is there under `key`, which should have these outputs; if nothing is, also what became of it, if that is to be
    /// looked for: it takes time.
    fn find(&mut self, key: &EntryKey, outputs: &[PathBuf], fate: bool) -> Shelved<Found>;
    /// Earlier results of a task, the newest first, until one is `enough`: each takes time.
    fn history(&mut self, task: &str, enough: &dyn Fn(&Earlier) -> bool) -> Shelved<Vec<Earlier>>;
    /// A task's newest result.
    fn newest(&mut self, task: &str) -> Shelved<Option<Made>>;
    /// Writes all outputs of an entry below a directory of ours, as they were.
    fn restore(&mut self, key: &EntryKey, dest: &Path) -> Shelved<()>;
    /// Shows entries, and nothing else, read-only on an empty directory until that is unmounted: they stay as long. False
    /// where nothing is mounted.
    fn show(&mut self, keys: &[EntryKey], at: &Path) -> Shelved<bool>;
    /// Has exactly the entry's outputs stand at these paths below `cwd`.
    fn place(
        &mut self,
        key: &EntryKey,
        cwd: &Path,
        outputs: &[PathBuf],
        way: Way,
        times: Times,
    ) -> Shelved<Placed>;
    /// Writes an entry's standard output (false) or standard error (true).
    fn log(&mut self, key: &EntryKey, stderr: bool, to: &mut dyn Write) -> Shelved<()>;
    /// All that an entry's outputs are.
    fn nodes(&mut self, key: &EntryKey) -> Shelved<Nodes>;
    /// Keeps a result durably.
    fn keep(&mut self, keep: Keep<'_>) -> Shelved<Kept>;
    /// A draft for a command to write in: what it is called, and its real directory. It lasts no longer than this process.
    fn draft(&mut self, task: &str) -> Shelved<(String, PathBuf)>;
    /// Drops such a draft.
    fn drop_draft(&mut self, id: &str) -> Shelved<()>;
    /// Writes to the event log.
    fn note(&mut self, key: &EntryKey, task: &str, note: Note) -> Shelved<()>;
    /// A directory where all runs that use this store meet; see [`Flight`](super::flight::Flight).
    fn flights(&mut self) -> Shelved<PathBuf>;
    /// Lets others use the store until something is asked again.
    fn rest(&mut self);
}
