//! What a run is told, and what it tells: how it is to be done, what happens meanwhile, what came of it.
//!
//! Must not know: what any of it leads to.

use std::path::PathBuf;
use std::time::Duration;

use serde::Serialize;

use super::Parts;
use super::capture::Sink;
use super::decide::Reason;
use super::shelf::{Held, Times, Way};
use crate::cache::CachePolicy;
use crate::model::EntryKey;
use crate::model::session::SessionId;

/// How a task is to be run.
#[derive(Debug, Clone)]
pub struct Ways {
    /// What the cache may be used for.
    pub policy: CachePolicy,
    /// Run whatever is there, and replace it.
    pub force: bool,
    /// Run a hit again and compare.
    pub verify: bool,
    /// Only say what would happen.
    pub dry_run: bool,
    /// Run even while another process runs the same.
    pub no_wait: bool,
    /// The session that it belongs to.
    pub session: Option<SessionId>,
    /// An uncached run's result is kept as long as the session lasts.
    pub ephemeral: bool,
    /// Failed runs are results, too.
    pub cache_failures: bool,
    /// How outputs come back.
    pub way: Way,
    /// With which times.
    pub times: Times,
    /// Until the command is ended.
    pub timeout: Option<Duration>,
    /// Between being asked to end and being killed.
    pub grace: Duration,
    /// The lock file.
    pub lock: Option<PathBuf>,
    /// What secrets are hashed with.
    pub team_key: Option<Vec<u8>>,
    /// See [`Plan::guard`](super::Plan::guard).
    pub guard: Vec<std::ffi::OsString>,
    /// Where projects are remembered.
    pub memory: Option<PathBuf>,
    /// Directories that no sandbox shows.
    pub hidden: Vec<PathBuf>,
}

impl Ways {
    /// Directories that are outfs's own, whatever project they lie in.
    pub(super) fn own(&self) -> impl Iterator<Item = &PathBuf> {
        self.hidden.iter().chain(&self.memory)
    }
}

/// Whoever tells people; gets the command's output, too.
pub trait Voice: Sink {
    /// The task will be executed, because of this.
    fn miss(&mut self, reasons: &[Reason]);
    /// It was given back.
    fn hit(&mut self, held: &Held);
    /// Another process executes it, and is waited for; which one, if it said so.
    fn wait(&mut self, pid: Option<u32>);
    /// Another process writes the same outputs, and is waited for.
    fn wait_turn(&mut self, pid: Option<u32>);
    /// Something is not as it should be, and the run goes on.
    fn warn(&mut self, what: &str);
    /// The task has failed, though its command has not.
    fn fail(&mut self, what: &str);
}

/// What came of it.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Report {
    /// The task.
    pub task: String,
    /// Its key; absent when the cache was not to be used.
    pub key: Option<EntryKey>,
    /// `hit`, `miss` or `uncached`.
    pub result: &'static str,
    /// Why it was executed, or would be.
    pub reasons: Vec<Reason>,
    /// What to exit with.
    pub exit_code: u8,
    /// How long the command ran, in milliseconds; absent when it did not.
    pub duration_ms: Option<u64>,
    /// The time that a hit spared, in milliseconds.
    pub saved_ms: Option<u64>,
    /// When the entry of a hit was made.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub made_at: Option<jiff::Timestamp>,
    /// How long another run of the same was waited for, in milliseconds; absent when none was.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub waited_ms: Option<u64>,
    /// Its result is in the cache.
    pub kept: bool,
    /// How many inputs there are.
    pub inputs: u64,
    /// How many of them had to be read.
    pub inputs_read: u64,
    /// Paths that differ from the entry, with `--verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<Vec<String>>,
    /// Files that changed while the command ran and are no declared output, of this run or another one.
    pub undeclared: Vec<String>,
    /// What was not as it should be.
    pub warnings: Vec<String>,
    /// All parts of the key, with `--dry-run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
    /// Why a run would be refused, with `--dry-run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub refused: Option<String>,
    /// Why the task was not run, or not to its end, or has failed though its command has not.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Report {
    /// Of a task of which nothing is known yet.
    pub fn of(task: &str) -> Report {
        Report {
            task: task.to_owned(),
            key: None,
            result: "uncached",
            reasons: Vec::new(),
            exit_code: 0,
            duration_ms: None,
            saved_ms: None,
            made_at: None,
            waited_ms: None,
            kept: false,
            inputs: 0,
            inputs_read: 0,
            differs: None,
            undeclared: Vec::new(),
            warnings: Vec::new(),
            parts: None,
            refused: None,
            error: None,
        }
    }
}
