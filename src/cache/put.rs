//! Storing a directory or a tar stream as an entry's `outputs/`.
//!
//! Invariants: the source is only read, never changed or linked; metadata and logs are made
//! here, so that what was put looks like what a client wrote into a draft.

use std::fs::File;
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Instant;

use super::content::{PATIENCE, Storer};
use super::here::now_ns;
use super::ingest::Memory;
use super::known::Known;
use super::only::Only;
use super::process::Process;
use super::stash::Stash;
use super::walk::{From, Plan, Tree, top_attrs};
use super::{Cache, CacheError, Draft, Entry, Result, SealRequest, Sealed, TaskFacts, Work, untar};
use crate::model::{EntryKey, Metadata};
use crate::store::DraftPlace;

/// Starts the labels of drafts that hold what is being put.
pub(super) const LABEL: &str = "put ";
/// Starts the labels of drafts in which a run's command writes; the process that runs it follows.
const RUN_LABEL: &str = "run ";

/// Does the process live that a draft is for? `None` when it is for none.
pub(super) fn lives(place: &DraftPlace) -> Option<bool> {
    let DraftPlace::Native { label } = place else { return None };
    let process = label.strip_prefix(RUN_LABEL)?.split(' ').next()?.parse::<Process>();
    // One that cannot be seen may live.
    Some(process.ok().and_then(|p| p.lives()) != Some(false))
}

/// Metadata as a client would write it.
pub(super) fn metadata(key: &EntryKey, facts: &TaskFacts) -> Metadata {
    Metadata {
        task_id: facts.task_id.clone(),
        digest: key.to_string(),
        command: facts.command.clone(),
        created_at: jiff::Timestamp::now(),
        duration_ms: facts.duration_ms,
        exit_code: facts.exit_code,
        extra: Default::default(),
    }
}

/// A file that is written beside the outputs.
pub(super) enum Log<'a> {
    /// A file of the user's.
    File(&'a Path),
    /// Bytes.
    Text(&'a [u8]),
}

/// A plan with metadata and logs, as `outputs/` will stand beside them.
pub(super) fn plan_beside(metadata: Vec<u8>, logs: &[Option<Log<'_>>; 2]) -> Result<Plan> {
    let mut plan = Plan::new(made_attrs(0o755));
    let top = plan.builder.top();
    plan.add(top, b"metadata.json", made_attrs(0o644), From::Memory(metadata))?;
    let dir = plan.builder.dir(top, b"logs", made_attrs(0o755))?;
    for (name, log) in [&b"stdout.log"[..], b"stderr.log"].into_iter().zip(logs) {
        let from = match log {
            None => continue,
            Some(Log::Text(text)) => From::Memory(text.to_vec()),
            Some(Log::File(path)) => {
                let file = File::open(path).map_err(|e| CacheError::io("open", *path, e))?;
                From::Open(file, path.display().to_string())
            }
        };
        plan.add(dir, name, made_attrs(0o644), from)?;
    }
    Ok(plan)
}

impl Cache {
    /// Stores a directory as `outputs/`, with metadata made of `facts` and the given logs.
    pub fn put_dir(
        &self,
        dir: &Path,
        facts: &TaskFacts,
        logs: [Option<&Path>; 2],
        request: SealRequest,
    ) -> Result<Sealed> {
        self.put_dir_watched(dir, facts, logs, request, &Work::default())
    }

    /// The same, saying in `work` how far it is.
    pub fn put_dir_watched(
        &self,
        dir: &Path,
        facts: &TaskFacts,
        logs: [Option<&Path>; 2],
        request: SealRequest,
        work: &Work,
    ) -> Result<Sealed> {
        let metadata = metadata(&request.key, facts).to_bytes();
        self.put_part((dir, &Only::All, None), &metadata, logs, &request, work)
    }

    /// Stores some paths below a directory as `outputs/`, with one more member, JSON as text, in the metadata. Files that are
    /// as `base` has them, which is all but the named ones, are not read.
    pub fn put_outputs(
        &self,
        (dir, outputs): (&Path, &[PathBuf]),
        (facts, (name, json)): (&TaskFacts, (&str, &str)),
        logs: [Option<&Path>; 2],
        base: Option<(Entry, &[PathBuf])>,
        request: SealRequest,
        work: &Work,
    ) -> Result<Sealed> {
        let known = base.map(|(entry, changed)| Known::new(entry, changed)).transpose()?;
        let only = Only::Paths(outputs.iter().map(|o| o.as_os_str().as_bytes().to_vec()).collect());
        let metadata = metadata(&request.key, facts).to_bytes_with(name, json);
        let metadata = metadata.map_err(|e| CacheError::BadInput {
            what: format!("the metadata member {name}"),
            why: e.to_string(),
        })?;
        self.put_part((dir, &only, known.as_ref()), &metadata, logs, &request, work)
    }

    fn put_part(
        &self,
        (dir, only, known): (&Path, &Only, Option<&Known>),
        metadata: &[u8],
        logs: [Option<&Path>; 2],
        request: &SealRequest,
        work: &Work,
    ) -> Result<Sealed> {
        let top = open_dir(dir)?;
        let logs = logs.map(|l| l.map(Log::File));
        let stash = Stash::new(self);
        let storer = Storer { work: Some(work), known, ..self.foreign(&stash) };
        self.seal_plan(&storer, request, || {
            let mut plan = plan_beside(metadata.to_vec(), &logs)?;
            let attrs = top_attrs(top.as_fd()).map_err(|e| CacheError::io("read", dir, e))?;
            let outputs = plan.builder.dir(plan.builder.top(), b"outputs", attrs)?;
            let tree = Tree::new(top.as_fd(), &dir.display().to_string(), false)?;
            plan.add_part(outputs, tree, only.clone())?;
            Ok(plan)
        })
    }

    /// Stores a whole entry as it stands in `dir`: metadata, logs, outputs and all else.
    pub(super) fn put_entry(&self, dir: &Path, request: &SealRequest) -> Result<Sealed> {
        let top = open_dir(dir)?;
        let stash = Stash::new(self);
        self.seal_plan(&self.foreign(&stash), request, || {
            let mut plan = Plan::new(top_attrs(top.as_fd()).map_err(|e| CacheError::io("read", dir, e))?);
            let root = plan.builder.top();
            plan.add_tree(root, Tree::new(top.as_fd(), &dir.display().to_string(), false)?)?;
            Ok(plan)
        })
    }

    /// A draft for a run's command to write in, which lasts no longer than `process`.
    pub fn create_run_draft(&self, process: &Process, task: &str) -> Result<Arc<Draft>> {
        self.create_draft(DraftPlace::Native { label: format!("{RUN_LABEL}{process} {task}") })
    }

    /// Stores a tar stream as `outputs/`.
    pub fn put_tar(
        &self,
        tar: &mut dyn Read,
        facts: &TaskFacts,
        logs: [Option<&Path>; 2],
        request: SealRequest,
    ) -> Result<Sealed> {
        let label = format!("{LABEL}{}", request.key);
        let draft = self.create_draft(DraftPlace::Native { label })?;
        let sealed = self.seal_unpacked(&draft, tar, facts, logs, &request);
        let dropped = self.drop_draft(&draft, "its tree is stored");
        let sealed = sealed?;
        dropped?;
        Ok(sealed)
    }

    fn seal_unpacked(
        &self,
        draft: &Draft,
        tar: &mut dyn Read,
        facts: &TaskFacts,
        logs: [Option<&Path>; 2],
        request: &SealRequest,
    ) -> Result<Sealed> {
        // Some of it may be counted as the draft's already.
        let room = |bytes: u64| {
            self.make_room(bytes.saturating_sub(self.inner.upkeep.accounts.of_draft(draft.id())))
        };
        untar::unpack(tar, draft.tree().as_fd(), &room)?;
        let metadata = metadata(&request.key, facts);
        let logs = logs.map(|l| l.map(Log::File));
        let memory = Memory::default();
        let deadline = Instant::now() + PATIENCE;
        let storer = Storer {
            cache: self,
            stash: &draft.stash,
            memory: Some(&memory),
            deadline,
            work: None,
            known: None,
        };
        self.seal_plan(&storer, request, || {
            let mut plan = plan_beside(metadata.to_bytes(), &logs)?;
            let attrs =
                top_attrs(draft.tree().as_fd()).map_err(|e| CacheError::io("read", draft.name(), e))?;
            let outputs = plan.builder.dir(plan.builder.top(), b"outputs", attrs)?;
            plan.add_tree(outputs, Tree::new(draft.tree().as_fd(), "", true)?)?;
            Ok(plan)
        })
    }

    /// Storing what is not ours.
    pub(super) fn foreign<'a>(&'a self, stash: &'a Stash) -> Storer<'a> {
        Storer { cache: self, stash, memory: None, deadline: Instant::now(), work: None, known: None }
    }
}

fn open_dir(dir: &Path) -> Result<std::os::fd::OwnedFd> {
    use nix::fcntl::{OFlag, open};
    let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
    open(dir, flags, nix::sys::stat::Mode::empty()).map_err(|e| CacheError::io("open", dir, e.into()))
}

/// Attributes of what is made here and not found on disk.
pub(super) fn made_attrs(mode: u32) -> crate::model::manifest::Attrs {
    crate::model::manifest::Attrs {
        mode,
        mtime_ns: now_ns(),
        uid: nix::unistd::geteuid().as_raw(),
        gid: nix::unistd::getegid().as_raw(),
        xattrs: Vec::new(),
    }
}
