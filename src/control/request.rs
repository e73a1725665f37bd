//! Everything a client may ask. Paths are absolute: the daemon has another working directory.

use std::time::Duration;

use serde::{Deserialize, Serialize};

use super::{LimitFlags, RawPath};
use crate::cache::{FsckOptions, Prefetch, Process, RestoreAs, TaskFacts};
use crate::fuse::MountOptions;
use crate::model::EntryKey;
use crate::model::session::SessionId;
use crate::model::units::Bytes;
use crate::run::{Note, Times};
use crate::tier::Address;
use crate::vfs::ViewOptions;

/// What to store, beside the outputs themselves.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PutRequest {
    /// The key.
    pub key: EntryKey,
    /// The directory that becomes `outputs/`; absent: a tar stream follows.
    pub dir: Option<RawPath>,
    /// For `metadata.json`.
    pub facts: TaskFacts,
    /// A file with the task's standard output.
    pub stdout: Option<RawPath>,
    /// A file with the task's standard error.
    pub stderr: Option<RawPath>,
    /// It is a run's result.
    #[serde(default)]
    pub run: Option<RunPut>,
}

/// What a run's result has that others have not.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunPut {
    /// Which paths of the directory are outputs.
    pub outputs: Vec<RawPath>,
    /// What the run knows, JSON as text: a member of the metadata.
    pub member: String,
    /// Replace an entry with other outputs.
    pub replace: bool,
    /// The entry with the key was found to have lost content: what it has is not taken for stored without being read.
    #[serde(default)]
    pub lost: bool,
    /// It lasts no longer than this.
    #[serde(default)]
    pub session: Option<SessionId>,
    /// What it was made from.
    #[serde(default)]
    pub base: Option<RunBase>,
}

/// An entry that a run's result was made from.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RunBase {
    /// Its key.
    pub key: EntryKey,
    /// What its outputs hashed to; another entry may have its key now.
    #[serde(default)]
    pub outputs_hash: Option<String>,
    /// Files of the outputs that are not as it has them: the others need not be read.
    pub changed: Vec<RawPath>,
}

/// Which log.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum LogStream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

impl LogStream {
    /// Its path below the entry.
    pub fn path(self) -> &'static str {
        match self {
            LogStream::Stdout => "logs/stdout.log",
            LogStream::Stderr => "logs/stderr.log",
        }
    }
}

/// What kind of directory is imported.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum ImportKind {
    /// A cuenv cache directory, sharded.
    Cuenv,
    /// A directory of entries, one directory per key.
    Dir,
}

/// What a client that asks for a view has said about the daemon: what is given must not conflict with what it runs with.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Wanted {
    /// Limits.
    pub limits: LimitFlags,
    /// Tiers.
    #[serde(default)]
    pub tiers: Vec<Address>,
    /// Entries go to them.
    #[serde(default)]
    pub push: bool,
    /// What comes of an entry when it is looked up.
    #[serde(default)]
    pub prefetch: Option<Prefetch>,
    /// Bytes a second that go to each tier, at most; 0 is no limit.
    #[serde(default)]
    pub push_limit: Option<Bytes>,
    /// What a process may have come from them by reading; 0 is no limit.
    #[serde(default)]
    pub scan_budget: Option<Bytes>,
    /// Where it logs, as its `log` says it.
    #[serde(default)]
    pub log: Option<String>,
}

/// A question or an order.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
pub enum Request {
    // ---- only a daemon answers these
    /// Who owns the store, and what is mounted.
    Status,
    /// Adds a view.
    Mount {
        /// The mount point.
        at: RawPath,
        /// What it shows.
        view: ViewOptions,
        /// How it is mounted.
        mount: MountOptions,
        /// What the daemon should be like.
        #[serde(flatten)]
        wanted: Wanted,
    },
    /// Takes a view away.
    Unmount {
        /// The mount point.
        at: RawPath,
        /// Detach even when busy.
        lazy: bool,
    },
    /// Unmounts everything and ends.
    Stop {
        /// Detach even when busy.
        lazy: bool,
    },

    // ---- entries in and out
    /// Stores a directory, or the tar stream that follows.
    Put(PutRequest),
    /// Writes `outputs/` below a directory.
    Restore {
        /// The entry.
        key: EntryKey,
        /// The directory.
        dest: RawPath,
        /// How.
        how: RestoreAs,
        /// Replace what differs.
        force: bool,
        /// The mode of directories that are made for it: the asker's umask decides, not the daemon's.
        dir_mode: u32,
    },
    /// Makes `dest` a symlink into a mount and holds the entry while the symlink stands.
    Link {
        /// The entry.
        key: EntryKey,
        /// The symlink to make.
        dest: RawPath,
        /// What of the outputs it leads to; empty for all.
        #[serde(default)]
        path: RawPath,
        /// Replace what stands there.
        #[serde(default)]
        replace: bool,
    },
    /// Has what only a tier has of an entry come here.
    Prefetch {
        /// The entry.
        key: EntryKey,
        /// Below it; all of it when there are none.
        paths: Vec<RawPath>,
    },
    /// Streams `outputs/` as tar.
    RestoreTar {
        /// The entry.
        key: EntryKey,
    },
    /// Streams a file.
    Cat {
        /// The entry.
        key: EntryKey,
        /// Below the entry.
        path: RawPath,
    },
    /// Streams a log; nothing when the entry has none.
    Log {
        /// The entry.
        key: EntryKey,
        /// Which.
        stream: LogStream,
    },
    /// A page of logs' lines.
    LogLines {
        /// The entry.
        key: EntryKey,
        /// Which; both when absent, standard output first.
        stream: Option<LogStream>,
        /// The number of the first line, counted from 0.
        start: u64,
        /// At most so many.
        limit: usize,
    },
    /// Stores every entry of another cache's directory that is not here yet.
    Import {
        /// Its form.
        kind: ImportKind,
        /// The directory.
        source: RawPath,
    },

    // ---- for runs
    /// Is there a result?
    Find {
        /// Its key.
        key: EntryKey,
        /// Outputs that it should have.
        outputs: Vec<RawPath>,
        /// If there is none, also what became of it: the event log is searched.
        #[serde(default)]
        fate: bool,
    },
    /// Streams the metadata of one of a task's results, the newest first.
    History {
        /// The task's name.
        task: String,
        /// So many newer ones were asked for before: 0, or what the answer before said.
        #[serde(default)]
        from: usize,
    },
    /// A task's newest result.
    Newest {
        /// The task's name.
        task: String,
    },
    /// Has exactly an entry's outputs stand at some paths.
    Place {
        /// The entry.
        key: EntryKey,
        /// The directory that the paths are relative to.
        cwd: RawPath,
        /// The paths.
        outputs: Vec<RawPath>,
        /// How.
        how: RestoreAs,
        /// With which modification times.
        times: Times,
    },
    /// All that an entry's outputs are.
    Nodes {
        /// The entry.
        key: EntryKey,
    },
    /// Makes a draft for a run's command to write in.
    RunDraft {
        /// The process that runs it: the draft lasts no longer.
        process: Process,
        /// The task's name.
        task: String,
    },
    /// Drops such a draft.
    DropDraft {
        /// Its id.
        id: String,
    },
    /// Begins a session.
    BeginSession {
        /// It lasts as long as this.
        process: Process,
    },
    /// Ends a session: its results go.
    EndSession {
        /// Which.
        id: SessionId,
    },
    /// Writes to the event log.
    Note {
        /// The key concerned.
        key: EntryKey,
        /// The task's name.
        task: String,
        /// What happened.
        note: Note,
    },

    // ---- what there is
    /// A page of entries.
    Entries {
        /// After this cookie; 0 from the start.
        after: i64,
        /// At most so many.
        limit: usize,
    },
    /// A directory of an entry.
    Tree {
        /// The entry.
        key: EntryKey,
        /// Below the entry; empty for its top.
        path: RawPath,
    },
    /// All about an entry.
    Show {
        /// The entry.
        key: EntryKey,
    },
    /// What entries take: these, or all.
    Du {
        /// Which; empty for all.
        keys: Vec<EntryKey>,
        /// A page of all, after this cookie (0 from the start); absent for all at once.
        #[serde(default)]
        after: Option<i64>,
    },
    /// All drafts.
    Drafts,
    /// All pins.
    Pins,
    /// Totals, limits, views.
    Stats,
    /// A page of events.
    Events {
        /// After this cursor; absent from the oldest kept.
        since: Option<String>,
        /// At most so many.
        limit: usize,
    },

    // ---- what becomes of them
    /// Seals a draft.
    Seal {
        /// A work draft's name, an in-place draft's key or a draft's id.
        name: RawPath,
        /// The key; may be absent when the draft has one.
        key: Option<EntryKey>,
    },
    /// Makes a key miss, or lifts that.
    Reject {
        /// The key.
        key: EntryKey,
        /// Why; absent lifts the rejection.
        reason: Option<String>,
    },
    /// Hides an entry now and frees it when nobody holds it.
    Evict {
        /// The entry.
        key: EntryKey,
    },
    /// Sets a named pin.
    Pin {
        /// The pin's name.
        name: String,
        /// The entry.
        key: EntryKey,
    },
    /// Lifts pins.
    Unpin {
        /// Only pins of this name.
        name: Option<String>,
        /// Only pins of this entry.
        key: Option<EntryKey>,
    },
    /// Evicts what the limits ask for, drops abandoned drafts, compacts packs.
    Gc {
        /// Only say what would go.
        dry_run: bool,
        /// Also evict what was not used for so long.
        older_than: Option<Duration>,
    },
    /// Checks everything against everything.
    Fsck(FsckOptions),
}

impl Request {
    /// The client streams bytes after this request.
    pub fn wants_input(&self) -> bool {
        matches!(self, Request::Put(put) if put.dir.is_none())
    }

    /// It changes nothing and streams nothing: it may be asked twice.
    pub fn is_question(&self) -> bool {
        matches!(
            self,
            Request::Status
                | Request::Entries { .. }
                | Request::Tree { .. }
                | Request::Show { .. }
                | Request::Du { .. }
                | Request::Drafts
                | Request::Pins
                | Request::Stats
                | Request::Events { .. }
                | Request::LogLines { .. }
                | Request::Find { .. }
                | Request::Newest { .. }
                | Request::Nodes { .. }
        )
    }

    /// It names paths outside the store, which must mean the same for client and server.
    pub fn names_paths(&self) -> bool {
        match self {
            Request::Put(put) => put.dir.is_some() || put.stdout.is_some() || put.stderr.is_some(),
            Request::Mount { .. }
            | Request::Unmount { .. }
            | Request::Restore { .. }
            | Request::Link { .. }
            | Request::Place { .. }
            | Request::Import { .. } => true,
            _ => false,
        }
    }
}
