//! The cache as build tools see it: check, store, restore, logs, each under a policy.
//!
//! The trait has the shape of cuenv's `CacheBackend` (synchronous here) and gives the same answers:
//! no hit without readable metadata, a hit whatever the exit code was; a policy that forbids
//! reading never hits, one that forbids writing never writes.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::here::host_name;
use super::put::{Log, made_attrs, metadata, plan_beside};
use super::stash::Stash;
use super::walk::{From, Plan};
use super::{Cache, CacheError, Entry, LeaseKind, Lookup, RestoreAs, Result, SealRequest, TaskFacts};
use crate::model::manifest::{NodeId, Origin};
use crate::model::{EntryKey, RecordKind};

/// Most bytes of a log that are handed out as text.
const MAX_LOG: u64 = 64 << 20;

/// What a call may do, per call.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum CachePolicy {
    /// Reads and writes.
    #[default]
    Normal,
    /// Reads only.
    Readonly,
    /// Writes only: a result is stored over an earlier one.
    Writeonly,
    /// Neither.
    Disabled,
}

impl CachePolicy {
    /// May the cache be read?
    pub fn allows_read(self) -> bool {
        matches!(self, CachePolicy::Normal | CachePolicy::Readonly)
    }

    /// May the cache be written?
    pub fn allows_write(self) -> bool {
        matches!(self, CachePolicy::Normal | CachePolicy::Writeonly)
    }
}

/// A task, as far as a cache wants to know it.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Task {
    /// Its name.
    pub id: String,
    /// Its argument vector.
    pub command: Vec<String>,
}

/// What a check found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheLookupResult {
    /// Is there a result?
    pub hit: bool,
    /// The digest that was asked for.
    pub key: String,
    /// How long the task ran, if there is.
    pub cached_duration_ms: Option<u64>,
    /// How it ended, if there is: any exit code can be a hit.
    pub cached_exit_code: Option<i32>,
}

/// One output file.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CacheOutput {
    /// Below the workspace.
    pub path: String,
    /// Its content.
    pub data: Vec<u8>,
    /// May it be executed?
    pub is_executable: bool,
}

/// A task's result.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CacheEntry {
    /// What it wrote to its standard output.
    pub stdout: Option<String>,
    /// What it wrote to its standard error.
    pub stderr: Option<String>,
    /// Its exit code.
    pub exit_code: i32,
    /// How long it ran.
    pub duration_ms: u64,
    /// What it made.
    pub outputs: Vec<CacheOutput>,
}

/// A cache of task results.
pub trait CacheBackend: Send + Sync {
    /// Is there a result for `digest`?
    fn check(&self, task: &Task, digest: &str, policy: CachePolicy) -> Result<CacheLookupResult>;

    /// Stores a result, unless the policy forbids it.
    fn store(&self, task: &Task, digest: &str, entry: &CacheEntry, policy: CachePolicy) -> Result<()>;

    /// Merges the outputs into `workspace`, replacing what differs; the files that were restored.
    fn restore_outputs(&self, task: &Task, digest: &str, workspace: &Path) -> Result<Vec<CacheOutput>>;

    /// Standard output and standard error, as far as there are.
    fn get_logs(&self, task: &Task, digest: &str) -> Result<(Option<String>, Option<String>)>;

    /// The backend's name, for logs.
    fn name(&self) -> &'static str;

    /// Can it be used?
    fn health_check(&self) -> Result<()>;
}

fn key(digest: &str) -> Result<EntryKey> {
    EntryKey::from_digest(digest)
        .map_err(|e| CacheError::BadInput { what: format!("the digest {digest:?}"), why: e.to_string() })
}

impl CacheBackend for Cache {
    fn check(&self, _task: &Task, digest: &str, policy: CachePolicy) -> Result<CacheLookupResult> {
        let found = if policy.allows_read() {
            match self.lookup(&key(digest)?) {
                Ok(Lookup::Hit { metadata, .. }) => Some(metadata),
                Ok(Lookup::Miss(_)) => None,
                // What cannot be read is no result; the task is run again.
                Err(e @ (CacheError::Store(_) | CacheError::Index(_))) => {
                    tracing::warn!(digest, "the entry counts as a miss: {e}");
                    None
                }
                Err(e) => return Err(e),
            }
        } else {
            None
        };
        Ok(CacheLookupResult {
            hit: found.is_some(),
            key: digest.to_owned(),
            cached_duration_ms: found.as_ref().map(|m| m.duration_ms),
            cached_exit_code: found.as_ref().map(|m| m.exit_code),
        })
    }

    fn store(&self, task: &Task, digest: &str, entry: &CacheEntry, policy: CachePolicy) -> Result<()> {
        if !policy.allows_write() {
            return Ok(());
        }
        let key = key(digest)?;
        let facts = TaskFacts {
            task_id: task.id.clone(),
            command: task.command.clone(),
            exit_code: entry.exit_code,
            duration_ms: entry.duration_ms,
        };
        let origin = Origin {
            how: "library".into(),
            uid: nix::unistd::getuid().as_raw(),
            host: host_name(),
            source: String::new(),
        };
        let mut metadata = metadata(&key, &facts);
        metadata.digest = digest.to_owned();
        let replace = policy == CachePolicy::Writeonly;
        let request = SealRequest { key, origin, inferred: false, replace };
        let log = |text: &'_ Option<String>| text.as_ref().map(|t| t.clone().into_bytes());
        let (stdout, stderr) = (log(&entry.stdout), log(&entry.stderr));
        let logs = [stdout.as_deref().map(Log::Text), stderr.as_deref().map(Log::Text)];
        let stash = Stash::new(self);
        self.seal_plan(&self.foreign(&stash), &request, || {
            let mut plan = plan_beside(metadata.to_bytes(), &logs)?;
            add_outputs(&mut plan, &entry.outputs)?;
            Ok(plan)
        })?;
        Ok(())
    }

    fn restore_outputs(&self, _task: &Task, digest: &str, workspace: &Path) -> Result<Vec<CacheOutput>> {
        let Some(entry) = self.entry(&key(digest)?, LeaseKind::Hold)? else { return Ok(Vec::new()) };
        entry.restore(workspace, RestoreAs::Auto, true)?;
        outputs(&entry)
    }

    fn get_logs(&self, _task: &Task, digest: &str) -> Result<(Option<String>, Option<String>)> {
        let Some(entry) = self.entry(&key(digest)?, LeaseKind::Hold)? else { return Ok((None, None)) };
        Ok((log(&entry, b"logs/stdout.log")?, log(&entry, b"logs/stderr.log")?))
    }

    fn name(&self) -> &'static str {
        "outfs"
    }

    fn health_check(&self) -> Result<()> {
        self.inner.store.file_system_space()?;
        self.inner.index.totals()?;
        Ok(())
    }
}

/// A log as text; none when there is none or it is not UTF-8, as for cuenv.
fn log(entry: &Entry, path: &[u8]) -> Result<Option<String>> {
    match entry.file(path) {
        Ok(record) => Ok(String::from_utf8(entry.read_all(record, MAX_LOG)?).ok()),
        Err(CacheError::NoFile { .. }) => Ok(None),
        Err(e) => Err(e),
    }
}

/// All files below `outputs/`.
fn outputs(entry: &Entry) -> Result<Vec<CacheOutput>> {
    let manifest = entry.manifest()?;
    let mut found = Vec::new();
    for (record, path) in (0u32..).zip(manifest.paths()) {
        let Some(path) = path.strip_prefix(b"outputs/") else { continue };
        let Some(r) = manifest.get(record).filter(|r| r.kind() == RecordKind::File) else { continue };
        found.push(CacheOutput {
            path: super::at::show(path),
            data: entry.read_all(record, u64::MAX)?,
            is_executable: r.perm() & 0o111 != 0,
        });
    }
    Ok(found)
}

/// Adds outputs given in memory, with the directories on their paths.
fn add_outputs(plan: &mut Plan, outputs: &[CacheOutput]) -> Result<()> {
    if outputs.is_empty() {
        return Ok(());
    }
    let top = plan.builder.dir(plan.builder.top(), b"outputs", made_attrs(0o755))?;
    let mut dirs: HashMap<&str, NodeId> = HashMap::from([("", top)]);
    for output in outputs {
        let refuse = |why: &str| {
            let what = format!("the output path {:?}", output.path);
            Err(CacheError::BadInput { what, why: why.into() })
        };
        if output.path.starts_with('/') {
            return refuse("it is absolute");
        }
        let (mut parent, mut rest) = (top, output.path.as_str());
        let mut seen = 0;
        while let Some((dir, tail)) = rest.split_once('/') {
            seen += dir.len();
            let path = &output.path[..seen];
            seen += 1;
            rest = tail;
            if dir == ".." {
                return refuse("it leads out of the workspace");
            }
            if dir.is_empty() || dir == "." {
                return refuse("it has empty components");
            }
            parent = match dirs.get(path) {
                Some(node) => *node,
                None => {
                    let node = plan.builder.dir(parent, dir.as_bytes(), made_attrs(0o755))?;
                    dirs.insert(path, node);
                    node
                }
            };
        }
        let mode = if output.is_executable { 0o755 } else { 0o644 };
        plan.add(parent, rest.as_bytes(), made_attrs(mode), From::Memory(output.data.clone()))?;
    }
    Ok(())
}
