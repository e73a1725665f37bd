//! Answers: facts, ready to be printed as JSON or as a table.

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{LimitFlags, LogStream, RawPath};
use crate::cache::{
    Du, FsckReport, GcReport, ImportReport, Known, Prefetched, Residency, Restored, ScanFacts, ScrubFacts,
    TierFacts, Usage,
};
use crate::fuse::{MountOptions, Transport};
use crate::index::Totals;
use crate::model::manifest::Origin;
use crate::model::session::SessionId;
use crate::model::{EntryKey, Event, ManifestHash, Metadata};
use crate::run::{Found, Kept, Nodes, Placed};
use crate::tier::Address;
use crate::vfs::ViewOptions;

/// An entry in a listing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EntryFacts {
    /// The key.
    pub key: EntryKey,
    /// Its manifest.
    pub manifest: ManifestHash,
    /// The task's name; empty when unknown.
    pub task_id: String,
    /// When it was sealed.
    pub sealed_at: Timestamp,
    /// When it was last used.
    pub accessed_at: Timestamp,
    /// Bytes of all files.
    pub bytes: u64,
    /// Number of files.
    pub files: u64,
    /// Sealed by quiet.
    pub inferred: bool,
    /// Its metadata parses.
    pub readable: bool,
    /// How much of it is on this disk; absent where that was not asked for, or cannot be told.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub residency: Option<Residency>,
}

/// A file, directory or symlink of an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct NodeFacts {
    /// Its path below the entry.
    pub path: RawPath,
    /// `file`, `dir` or `symlink`.
    pub kind: String,
    /// Original permission bits, octal.
    pub mode: String,
    /// Original owner.
    pub uid: u32,
    /// Original group.
    pub gid: u32,
    /// Bytes.
    pub size: u64,
    /// Last modification.
    pub mtime: Timestamp,
    /// A file's BLAKE3.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub blake3: Option<String>,
    /// A symlink's target.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub target: Option<RawPath>,
}

/// All about an entry.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ShowFacts {
    /// As in a listing.
    #[serde(flatten)]
    pub entry: EntryFacts,
    /// How, by whom and from where it was sealed.
    pub origin: Origin,
    /// The manifest it replaced.
    pub replaces: Option<ManifestHash>,
    /// Names of the pins that hold it.
    pub pins: Vec<String>,
    /// Why it was rejected, if it was.
    pub rejected: Option<String>,
    /// Its metadata, if it parses.
    pub metadata: Option<Metadata>,
    /// Why it does not parse.
    pub metadata_error: Option<String>,
}

/// A draft.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DraftFacts {
    /// Its directory below the store's `drafts/`.
    pub id: String,
    /// `in-place`, `work`, `replace` or `native`.
    pub kind: String,
    /// Its key or name.
    pub name: RawPath,
    /// Its real directory.
    pub path: RawPath,
    /// Open handles for writing.
    pub writers: u64,
    /// When something last changed in it.
    pub changed_at: Timestamp,
}

/// A pin.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PinFacts {
    /// Its name.
    pub name: String,
    /// The pinned entry.
    pub key: EntryKey,
    /// Since when.
    pub since: Timestamp,
}

/// A mounted view.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ViewFacts {
    /// The mount point.
    pub at: RawPath,
    /// Large and draft files bypass the daemon.
    pub passthrough: bool,
    /// How requests reach the daemon: `dev` or `uring`.
    pub transport: Transport,
    /// Listings come with attributes.
    #[serde(default)]
    pub readdirplus: bool,
    /// Nobody is told of files that are opened.
    #[serde(default)]
    pub no_open: bool,
    /// The kernel is asked to let go of all that is unused below a directory; older ones refuse.
    #[serde(default)]
    pub prune: bool,
    /// What it shows.
    pub view: ViewOptions,
    /// How it is mounted.
    pub mount: MountOptions,
}

/// The daemon.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct DaemonFacts {
    /// Its process.
    pub pid: u32,
    /// The program's version.
    pub version: String,
    /// Since when it runs.
    pub started_at: Timestamp,
    /// Where it logs.
    pub log: String,
    /// Its tiers, in the order in which they are asked.
    #[serde(default)]
    pub tiers: Vec<Address>,
    /// Panics in it since then: faults of outfs, which it has survived and logged.
    #[serde(default)]
    pub faults: u64,
    /// Its views.
    pub views: Vec<ViewFacts>,
}

/// The store's numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StatsFacts {
    /// Where the store lies.
    pub store: RawPath,
    /// Its id.
    pub id: String,
    /// The daemon's process; absent when there is none.
    pub pid: Option<u32>,
    /// The daemon.
    pub daemon: Option<DaemonFacts>,
    /// The program's version.
    pub version: String,
    /// What is used of what may be.
    pub usage: Usage,
    /// What the index holds.
    pub totals: Totals,
    /// Number of drafts.
    pub drafts: u64,
    /// Number of pins.
    pub pins: u64,
    /// Entries the daemon has evicted since it started.
    pub evicted: u64,
    /// Packs it has compacted since then.
    #[serde(default)]
    pub compacted: u64,
    /// Its rounds of upkeep since then: when several have changed nothing, upkeep is at rest.
    #[serde(default)]
    pub rounds: u64,
    /// It has the keys of all entries in memory: a look-up is at its fastest.
    #[serde(default)]
    pub keys_in_memory: bool,
    /// Bytes of outputs it has read since then.
    pub blob_bytes_read: u64,
    /// What the kernel knows of its views.
    #[serde(default)]
    pub known: Known,
    /// How far the scrub is.
    #[serde(default)]
    pub scrub: ScrubFacts,
    /// The tiers, in the order in which they are asked.
    #[serde(default)]
    pub tiers: Vec<TierFacts>,
    /// What budgets kept from coming from them.
    #[serde(default)]
    pub scans: ScanFacts,
    /// What limits hold.
    pub limits: LimitFlags,
}

/// A page of events.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct EventsFacts {
    /// Oldest first.
    pub events: Vec<Event>,
    /// Ask again with this.
    pub cursor: String,
    /// There are more.
    pub more: bool,
    /// Events after the given cursor were trimmed before they were asked for.
    pub gap: bool,
}

/// A line of a log.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// Its number.
    pub line: u64,
    /// Which log it is of.
    pub stream: LogStream,
    /// With its newline, if it has one; what is no UTF-8 is replaced.
    pub text: String,
}

/// What was collected, or would be.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct GcFacts {
    /// Entries, drafts and bytes.
    #[serde(flatten)]
    pub report: GcReport,
    /// Only asked.
    pub dry_run: bool,
}

/// The answer to a request.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(tag = "reply", content = "facts", rename_all = "snake_case")]
pub enum Reply {
    /// It was done, or its data was streamed.
    Done,
    /// To `Status`.
    Daemon(DaemonFacts),
    /// To `Mount`.
    Mounted(ViewFacts),
    /// To `Unmount`: the daemon ends, because it was the last view.
    Unmounted {
        /// It ends.
        ends: bool,
    },
    /// To `Put` and `Seal`.
    Stored {
        /// The entry.
        entry: EntryFacts,
        /// False: it had the same outputs already.
        new: bool,
    },
    /// To `Put` of a run's result.
    Kept(Kept),
    /// To `Restore`.
    Restored(Restored),
    /// To `Prefetch`.
    Prefetched(Prefetched),
    /// To `Link`: where the symlink points.
    Linked {
        /// Its target.
        target: RawPath,
    },
    /// To `Import`.
    Imported(ImportReport),
    /// To `BeginSession`.
    Session {
        /// Its name.
        id: SessionId,
    },
    /// To `Find`.
    Found(Found),
    /// To `History`.
    History {
        /// Whose metadata was streamed; absent when there is none any more.
        key: Option<EntryKey>,
        /// Where to go on.
        next: usize,
    },
    /// To `Newest`.
    Newest {
        /// The entry, if there is one.
        key: Option<EntryKey>,
        /// What its outputs hash to.
        outputs_hash: Option<String>,
    },
    /// To `Place`.
    Placed(Placed),
    /// To `RunDraft`.
    Draft(DraftFacts),
    /// To `Nodes`.
    Nodes {
        /// By path.
        nodes: Nodes,
    },
    /// To `Entries`.
    Entries {
        /// The page.
        entries: Vec<EntryFacts>,
        /// The cookie for the next page; absent at the end.
        next: Option<i64>,
    },
    /// To `Tree`.
    Tree {
        /// The directory's children, or the one file that was named.
        nodes: Vec<NodeFacts>,
    },
    /// To `Show`.
    Show(Box<ShowFacts>),
    /// To `Du`.
    Du {
        /// Per entry.
        entries: Vec<Du>,
        /// The cookie for the next page; absent at the end.
        #[serde(skip_serializing_if = "Option::is_none", default)]
        next: Option<i64>,
    },
    /// To `Drafts`.
    Drafts {
        /// All of them.
        drafts: Vec<DraftFacts>,
    },
    /// To `Pins`, `Pin` and `Unpin`: those that are, were set or were lifted.
    Pins {
        /// The pins.
        pins: Vec<PinFacts>,
    },
    /// To `Stats`.
    Stats(Box<StatsFacts>),
    /// To `Events`.
    Events(EventsFacts),
    /// To `LogLines`.
    LogLines {
        /// In order.
        lines: Vec<LogLine>,
        /// The number of the line that comes next.
        next: u64,
        /// There is one.
        more: bool,
    },
    /// To `Gc`.
    Gc(GcFacts),
    /// To `Fsck`.
    Fsck(FsckReport),
}
