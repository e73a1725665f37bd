//! What runs need of a store, asked of its daemon or of the store itself.
//!
//! Invariant: a store is owned only while something is asked, so that a long task keeps nobody out.

use std::io::{self, Read, Write};
use std::path::{Path, PathBuf};

use super::session::{Session, is_store};
use super::{out, unexpected};
use crate::cache::{Process, RestoreAs, Restored, TaskFacts};
use crate::control::{
    Channel, Failure, Kind, LogStream, Progress, PutRequest, RawPath, Reply, Request, RunBase, RunPut, Wanted,
};
use crate::fuse::MountOptions;
use crate::model::EntryKey;
use crate::run::{
    Earlier, Found, Keep, Kept, Made, Nodes, Note, Placed, Rooms, Shelf, ShelfError, Shelved, Snapshots,
    Times, Way, parts_kept,
};
use crate::vfs::ViewOptions;

/// No more earlier results are compared than have so many inputs together.
const MOST_INPUTS: u64 = 200_000;

/// A store, as runs know it.
pub(super) struct StoreShelf {
    /// Where it is, or why there is none.
    store: Result<PathBuf, String>,
    session: Option<Session>,
    /// Nothing of it is to be changed; where there is room for what reading needs.
    reads: Option<Rooms>,
    /// What is not as it was asked for.
    warnings: Vec<String>,
}

/// Streams data to a writer and nothing else.
struct To<'a>(&'a mut dyn Write, io::Empty);

impl Channel for To<'_> {
    fn data(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.0.write_all(bytes)
    }
    fn input(&mut self) -> &mut dyn Read {
        &mut self.1
    }
    fn progress(&mut self, _: Progress) {}
}

fn raw(paths: &[PathBuf]) -> Vec<RawPath> {
    paths.iter().map(|p| RawPath(p.clone())).collect()
}

fn failed(failure: Failure) -> ShelfError {
    ShelfError(failure.message)
}

impl StoreShelf {
    /// Of the store at a path; of none, where this says why: then all fails.
    pub(super) fn new(store: Result<PathBuf, String>, reads: Option<Rooms>) -> StoreShelf {
        StoreShelf { store, session: None, reads, warnings: Vec::new() }
    }

    /// What was not done as it was asked for, once.
    pub(super) fn warnings(&mut self) -> Vec<String> {
        std::mem::take(&mut self.warnings)
    }

    fn store(&self) -> Shelved<&Path> {
        self.store.as_deref().map_err(|why| ShelfError(why.clone()))
    }

    fn open(&self) -> Shelved<Session> {
        let store = self.store()?;
        match &self.reads {
            Some(rooms) => Session::open_to_read(store, rooms),
            None => Session::open_or_create(store),
        }
        .map_err(failed)
    }

    fn call(&mut self, request: Request, to: &mut dyn Write) -> Shelved<Result<Reply, Failure>> {
        let mut session = match self.session.take() {
            Some(session) => session,
            None => self.open()?,
        };
        let answer = session.call_with(request, &mut To(to, io::empty()));
        self.session = Some(session);
        Ok(answer)
    }

    fn ask_with(&mut self, request: Request, to: &mut dyn Write) -> Shelved<Reply> {
        self.call(request, to)?.map_err(failed)
    }

    fn ask(&mut self, request: Request) -> Shelved<Reply> {
        match self.call(request.clone(), &mut io::sink())? {
            // While the command ran, maybe. All that runs ask may be done twice, so whoever has the store now is asked.
            Err(failure) if failure.kind == Kind::Lost => {
                self.session = None;
                self.ask_with(request, &mut io::sink())
            }
            answer => answer.map_err(failed),
        }
    }

    /// The same, for what is streamed.
    fn ask_for_bytes(&mut self, request: Request) -> Shelved<(Reply, Vec<u8>)> {
        let mut bytes = Vec::new();
        let answer = match self.call(request.clone(), &mut bytes)? {
            Err(failure) if failure.kind == Kind::Lost => {
                self.session = None;
                bytes.clear();
                self.call(request, &mut bytes)?
            }
            answer => answer,
        };
        Ok((answer.map_err(failed)?, bytes))
    }

    /// There is nothing to be read, and reading makes no store.
    fn is_empty(&self) -> bool {
        self.session.is_none() && self.store().is_ok_and(|store| matches!(is_store(store), Ok(false)))
    }

    fn files(
        &mut self,
        key: &EntryKey,
        cwd: &Path,
        outputs: &[PathBuf],
        (how, times): (RestoreAs, Times),
    ) -> Shelved<Placed> {
        let request = Request::Place { key: key.clone(), cwd: cwd.into(), outputs: raw(outputs), how, times };
        match self.ask(request)? {
            Reply::Placed(placed) => Ok(placed),
            other => Err(failed(unexpected(other))),
        }
    }

    fn links(&mut self, key: &EntryKey, cwd: &Path, outputs: &[PathBuf]) -> Shelved<Placed> {
        let manifest = |shelf: &mut StoreShelf| match shelf.find(key, &[], false)? {
            Found::Entry(held) => Ok(Some(held.manifest)),
            _ => Ok(None),
        };
        let before = manifest(self)?;
        for output in outputs {
            let dest = cwd.join(output);
            if let Some(parent) = dest.parent() {
                let made = std::fs::create_dir_all(parent);
                made.map_err(|e| ShelfError(format!("cannot create {}: {e}", parent.display())))?;
            }
            let path = output.clone().into();
            self.ask(Request::Link { key: key.clone(), dest: dest.into(), path, replace: true })?;
        }
        let manifest = manifest(self)?.filter(|now| Some(*now) == before);
        Ok(Placed::Done { manifest, restored: Restored::default() })
    }
}

impl Snapshots for StoreShelf {
    fn exists(&mut self, key: &EntryKey) -> Shelved<bool> {
        Ok(matches!(self.find(key, &[], false)?, Found::Entry(_)))
    }

    fn remove(&mut self, key: &EntryKey) -> Shelved<()> {
        match self.exists(key)? {
            true => self.ask(Request::Evict { key: key.clone() }).map(drop),
            false => Ok(()),
        }
    }
}

impl Shelf for StoreShelf {
    fn find(&mut self, key: &EntryKey, outputs: &[PathBuf], fate: bool) -> Shelved<Found> {
        if self.is_empty() {
            return Ok(Found::UNKNOWN);
        }
        match self.ask(Request::Find { key: key.clone(), outputs: raw(outputs), fate })? {
            Reply::Found(found) => Ok(found),
            other => Err(failed(unexpected(other))),
        }
    }

    fn history(&mut self, task: &str, enough: &dyn Fn(&Earlier) -> bool) -> Shelved<Vec<Earlier>> {
        let (mut history, mut inputs, mut from) = (Vec::new(), 0, 0);
        while inputs < MOST_INPUTS && !self.is_empty() {
            let (answer, metadata) = self.ask_for_bytes(Request::History { task: task.to_owned(), from })?;
            let (key, next) = match answer {
                Reply::History { key: Some(key), next } if next > from => (key, next),
                Reply::History { .. } => break,
                other => return Err(failed(unexpected(other))),
            };
            from = next;
            // Those that no run made are no history.
            let Some(parts) = parts_kept(&metadata) else { continue };
            inputs += parts.input_count;
            let earlier = Earlier { key, parts };
            let last = enough(&earlier);
            history.push(earlier);
            if last {
                break;
            }
        }
        Ok(history)
    }

    fn newest(&mut self, task: &str) -> Shelved<Option<Made>> {
        if self.is_empty() {
            return Ok(None);
        }
        match self.ask(Request::Newest { task: task.to_owned() })? {
            Reply::Newest { key: Some(key), outputs_hash: Some(outputs_hash) } => {
                Ok(Some(Made { key, outputs_hash, declared: None }))
            }
            Reply::Newest { .. } => Ok(None),
            other => Err(failed(unexpected(other))),
        }
    }

    fn restore(&mut self, key: &EntryKey, dest: &Path) -> Shelved<()> {
        let (key, dest) = (key.clone(), dest.into());
        self.ask(Request::Restore { key, dest, how: RestoreAs::Auto, force: false, dir_mode: 0o755 })
            .map(drop)
    }

    fn show(&mut self, keys: &[EntryKey], at: &Path) -> Shelved<bool> {
        // Only a daemon mounts, and only where somebody has mounted already is it known to work.
        if self.session.as_ref().is_some_and(Session::is_owner) {
            return Ok(false);
        }
        let served = matches!(self.ask(Request::Status), Ok(Reply::Daemon(facts)) if !facts.views.is_empty());
        if !served {
            return Ok(false);
        }
        let view = ViewOptions { read_only: true, scope: Some(keys.to_vec()), ..ViewOptions::default() };
        let (mount, wanted) = (MountOptions::default(), Wanted::default());
        self.ask(Request::Mount { at: at.into(), view, mount, wanted }).map(|_| true)
    }

    fn place(
        &mut self,
        key: &EntryKey,
        cwd: &Path,
        outputs: &[PathBuf],
        way: Way,
        times: Times,
    ) -> Shelved<Placed> {
        match way {
            Way::Files(how) => self.files(key, cwd, outputs, (how, times)),
            Way::Link => self.links(key, cwd, outputs).or_else(|e| {
                let warning = format!("the outputs are files, not links: {e}");
                out::note(&out::clean(&format!("warning: {warning}")));
                self.warnings.push(warning);
                self.files(key, cwd, outputs, (RestoreAs::Auto, times))
            }),
        }
    }

    fn log(&mut self, key: &EntryKey, stderr: bool, to: &mut dyn Write) -> Shelved<()> {
        let stream = if stderr { LogStream::Stderr } else { LogStream::Stdout };
        self.ask_with(Request::Log { key: key.clone(), stream }, to).map(drop)
    }

    fn nodes(&mut self, key: &EntryKey) -> Shelved<Nodes> {
        match self.ask(Request::Nodes { key: key.clone() })? {
            Reply::Nodes { nodes } => Ok(nodes),
            other => Err(failed(unexpected(other))),
        }
    }

    fn keep(&mut self, keep: Keep<'_>) -> Shelved<Kept> {
        let request = Request::Put(PutRequest {
            key: keep.key.clone(),
            dir: Some(keep.cwd.into()),
            facts: TaskFacts {
                task_id: keep.task_id.to_owned(),
                command: keep.command,
                exit_code: keep.exit_code,
                duration_ms: keep.duration_ms,
            },
            stdout: Some(keep.logs[0].into()),
            stderr: Some(keep.logs[1].into()),
            run: Some(RunPut {
                outputs: raw(keep.outputs),
                member: keep.member,
                replace: keep.replace,
                lost: keep.lost,
                session: keep.session.cloned(),
                base: keep.base.map(|of| RunBase {
                    key: of.key.clone(),
                    outputs_hash: Some(of.outputs_hash.to_owned()),
                    changed: raw(of.changed),
                }),
            }),
        });
        match self.ask(request)? {
            Reply::Kept(kept) => Ok(kept),
            other => Err(failed(unexpected(other))),
        }
    }

    fn draft(&mut self, task: &str) -> Shelved<(String, PathBuf)> {
        let process = Process::this().ok_or(ShelfError("there is no /proc".into()))?;
        match self.ask(Request::RunDraft { process, task: task.to_owned() })? {
            Reply::Draft(facts) => Ok((facts.id, facts.path.0)),
            other => Err(failed(unexpected(other))),
        }
    }

    fn drop_draft(&mut self, id: &str) -> Shelved<()> {
        self.ask(Request::DropDraft { id: id.to_owned() }).map(drop)
    }

    fn note(&mut self, key: &EntryKey, task: &str, note: Note) -> Shelved<()> {
        self.ask(Request::Note { key: key.clone(), task: task.to_owned(), note }).map(drop)
    }

    fn flights(&mut self) -> Shelved<PathBuf> {
        if self.is_empty() {
            self.session = Some(self.open()?);
        }
        Ok(self.store()?.join("runs"))
    }

    fn rest(&mut self) {
        if let Some(session) = self.session.take_if(|s| s.is_owner())
            && let Err(e) = session.close()
        {
            out::note(&out::clean(&e.message));
        }
    }
}
