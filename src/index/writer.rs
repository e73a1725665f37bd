//! The one thread that writes, and how jobs reach it.
//!
//! Invariants: jobs that wait together run in one transaction, each in a savepoint of its own,
//! so that one that fails takes nothing back from the others; a caller gets its answer only
//! after the transaction is on disk, and every caller gets one. On a full disk a job that frees something is
//! tried again at the cost of the spare. Nothing is committed to files that have lost their names: what was deleted or replaced
//! below us is written anew first.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;

use crossbeam_channel::{Receiver, Sender, bounded, unbounded};
use parking_lot::Mutex;
use rusqlite::{Connection, ErrorCode, ffi};

use super::keys::Keys;
use super::read::Readers;
use super::schema::Files;
use super::spare::Spare;
use super::{IndexError, Result, schema, sqlite};
use crate::store::port::{self, paths};

/// The most jobs of one transaction: bounds how long the first of them waits.
const GROUP: usize = 512;

/// Tells a caller how its job ended, given what became of the transaction.
type Finish = Box<dyn FnOnce(Option<IndexError>) + Send>;
/// Without a connection (the transaction is lost already) it only prepares its answer. With the answer comes what
/// SQLite said if it failed the job.
type Run = Box<dyn FnMut(Option<&Connection>) -> (Finish, Option<Failed>) + Send>;

/// A job; it may run twice, the second time after the first transaction failed.
struct Job {
    run: Run,
    /// It lets something be deleted: worth the spare.
    frees: bool,
}

enum Message {
    Job(Job),
    /// Throw the file away and begin anew.
    Reset(Sender<Result<()>>),
    /// See to it that the files that are open have their names.
    PutBack(Sender<Result<()>>),
    Stop(Sender<Result<()>>),
}

/// Which files the writer has open, and how to have it see that they have lost their names.
#[derive(Clone)]
pub(super) struct Recall {
    /// `None` when it has none.
    files: Arc<Mutex<Option<Files>>>,
    writer: Sender<Message>,
}

impl Recall {
    /// Which they are now.
    pub(super) fn files(&self) -> Option<Files> {
        *self.files.lock()
    }

    /// What cannot be looked at counts as being there.
    pub(super) fn is_in_place(&self, file: &Path) -> bool {
        let Some(files) = self.files() else { return true };
        Files::at(file).map_or(true, |there| there == files)
    }

    /// Has the writer put the files back; when this returns, they are there.
    pub(super) fn put_back(&self) -> Result<()> {
        let (answer, wait) = bounded(1);
        self.writer.send(Message::PutBack(answer)).map_err(|_| IndexError::Closed)?;
        wait.recv().unwrap_or(Err(IndexError::Closed))
    }
}

/// The callers' end.
pub(super) struct Writer {
    /// `None` once closed.
    jobs: Mutex<Option<Sender<Message>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
    recall: Recall,
    in_doubt: Arc<AtomicBool>,
}

impl Writer {
    /// The writer, and readers of the same files.
    pub(super) fn start(db: Connection, file: &Path, keys: Arc<Keys>) -> Result<(Writer, Arc<Readers>)> {
        let (jobs, inbox) = unbounded();
        let recall = Recall { files: Arc::default(), writer: jobs.clone() };
        let readers = Arc::new(Readers::new(file, recall.clone()));
        let in_doubt = Arc::new(AtomicBool::new(false));
        let parent = file.parent().unwrap_or(Path::new("."));
        let dir = paths::open_dir(parent).map_err(|source| IndexError::Io {
            op: "open",
            path: parent.to_owned(),
            source,
        })?;
        let state = Thread {
            db,
            file: file.to_owned(),
            dir,
            recall: recall.clone(),
            readers: readers.clone(),
            keys,
            spare: Spare::beside(file),
            in_doubt: in_doubt.clone(),
        };
        state.note_files();
        let thread = std::thread::Builder::new()
            .name("outfs-index".into())
            .spawn(move || state.run(&inbox))
            .map_err(|source| IndexError::Io { op: "start a writer for", path: file.to_owned(), source })?;
        let (jobs, thread) = (Mutex::new(Some(jobs)), Mutex::new(Some(thread)));
        Ok((Writer { jobs, thread, recall, in_doubt }, readers))
    }

    /// Sees to it that the files that are open have their names.
    pub(super) fn put_back(&self) -> Result<()> {
        self.recall.put_back()
    }

    /// A commit failed that may count after a death, and nothing could be written in its place.
    pub(super) fn is_in_doubt(&self) -> bool {
        self.in_doubt.load(Ordering::Acquire)
    }

    fn send(&self, message: Message) -> Result<()> {
        let sender = self.jobs.lock().clone().ok_or(IndexError::Closed)?;
        sender.send(message).map_err(|_| IndexError::Closed)
    }

    /// Runs `job` on the writer thread and waits until it is on disk.
    pub(super) fn run<T: Send + 'static>(
        &self,
        job: impl FnMut(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(false, job)
    }

    /// The same for what lets something be deleted: it gets through on a full disk, too.
    pub(super) fn run_freeing<T: Send + 'static>(
        &self,
        job: impl FnMut(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        self.submit(true, job)
    }

    fn submit<T: Send + 'static>(
        &self,
        frees: bool,
        mut job: impl FnMut(&Connection) -> Result<T> + Send + 'static,
    ) -> Result<T> {
        let (answer, wait) = bounded(1);
        let run = Box::new(move |db: Option<&Connection>| -> (Finish, Option<Failed>) {
            let result = db.map_or(Err(IndexError::Closed), |db| in_savepoint(db, &mut job));
            let failed = result.as_ref().err().and_then(reason);
            let answer = answer.clone();
            let finish = Box::new(move |failed: Option<IndexError>| {
                // A caller that no longer waits needs no answer.
                let _ = answer.send(failed.map_or(result, Err));
            });
            (finish, failed)
        });
        self.send(Message::Job(Job { run, frees }))?;
        wait.recv().unwrap_or(Err(IndexError::Closed))
    }

    pub(super) fn reset(&self) -> Result<()> {
        let (answer, wait) = bounded(1);
        self.send(Message::Reset(answer))?;
        wait.recv().unwrap_or(Err(IndexError::Closed))
    }

    /// Ends the thread after what is queued; once closed, nothing.
    pub(super) fn close(&self) -> Result<()> {
        let (answer, wait) = bounded(1);
        let Some(sender) = self.jobs.lock().take() else { return Ok(()) };
        let result = match sender.send(Message::Stop(answer)) {
            Ok(()) => wait.recv().unwrap_or(Err(IndexError::Closed)),
            Err(_) => Err(IndexError::Closed),
        };
        if let Some(thread) = self.thread.lock().take()
            && thread.join().is_err()
        {
            return Err(IndexError::Closed);
        }
        result
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        if let Err(e) = self.close() {
            tracing::warn!(error = %e, "the index did not close well");
        }
    }
}

fn in_savepoint<T>(db: &Connection, job: &mut impl FnMut(&Connection) -> Result<T>) -> Result<T> {
    db.execute_batch("SAVEPOINT job").map_err(sqlite("begin a change"))?;
    let result = job(db);
    // After some errors SQLite has taken back the whole transaction, savepoints and all.
    if !db.is_autocommit() {
        let end = if result.is_ok() { "RELEASE job" } else { "ROLLBACK TO job; RELEASE job" };
        db.execute_batch(end).map_err(sqlite("end a change"))?;
    }
    result
}

/// The same for a failure of any kind.
fn same(e: &IndexError) -> IndexError {
    match e {
        IndexError::Sqlite { op, source } => again(op, source),
        IndexError::Io { op, path, source } => {
            let source = source.raw_os_error().map_or(source.kind().into(), io::Error::from_raw_os_error);
            IndexError::Io { op, path: path.clone(), source }
        }
        _ => IndexError::Closed,
    }
}

/// The same failure for each caller of a group (SQLite's error cannot be cloned).
fn again(op: &'static str, e: &rusqlite::Error) -> IndexError {
    let code = match e {
        rusqlite::Error::SqliteFailure(code, _) => *code,
        _ => ffi::Error::new(ffi::SQLITE_ABORT),
    };
    IndexError::Sqlite { op, source: rusqlite::Error::SqliteFailure(code, Some(e.to_string())) }
}

struct Thread {
    db: Connection,
    file: PathBuf,
    /// Where it lies.
    dir: OwnedFd,
    recall: Recall,
    readers: Arc<Readers>,
    keys: Arc<Keys>,
    spare: Spare,
    in_doubt: Arc<AtomicBool>,
}

impl Thread {
    fn run(mut self, inbox: &Receiver<Message>) {
        while let Ok(first) = inbox.recv() {
            let mut group = Vec::new();
            let mut next = Some(first);
            let mut other = None;
            while let Some(message) = next.take() {
                match message {
                    Message::Job(job) => group.push(job),
                    message => {
                        other = Some(message);
                        break;
                    }
                }
                if group.len() < GROUP {
                    next = inbox.try_recv().ok();
                }
            }
            if !group.is_empty() {
                match self.put_back() {
                    Ok(()) => commit((&self.db, self.dir.as_fd()), group, &mut self.spare, &self.in_doubt),
                    Err(e) => refuse(group, &e),
                }
            }
            match other {
                Some(Message::Reset(answer)) => {
                    let _ = answer.send(self.reset());
                }
                Some(Message::PutBack(answer)) => {
                    let _ = answer.send(self.put_back());
                }
                Some(Message::Stop(answer)) => {
                    let _ = answer.send(self.stop());
                    return;
                }
                _ => {}
            }
        }
    }

    fn reset(&mut self) -> Result<()> {
        let memory = Connection::open_in_memory().map_err(sqlite("begin anew"))?;
        *self.recall.files.lock() = None;
        drop(std::mem::replace(&mut self.db, memory));
        self.readers.forget();
        schema::set_aside(&self.file)?;
        self.db = schema::open_writer(&self.file)?.0;
        self.note_files();
        self.readers.forget();
        // Here, where nothing is being committed.
        self.keys.clear();
        Ok(())
    }

    /// Remembers which files are open.
    fn note_files(&self) {
        *self.recall.files.lock() = Files::at(&self.file).ok();
    }

    /// What somebody deleted or replaced is gone with the last of us who has it open: it is written anew, in the place of
    /// what may be there now.
    fn put_back(&mut self) -> Result<()> {
        if self.recall.is_in_place(&self.file) {
            return Ok(());
        }
        let file = self.file.display();
        let ours = self.recall.files().map(|files| files.store);
        if Files::at(&self.file).ok().map(|there| there.store) != ours {
            // The store is being deleted, or what is there now is another owner's.
            let source = io::Error::from_raw_os_error(libc::ESTALE);
            return Err(IndexError::Io {
                op: "write to a store that is gone,",
                path: self.file.clone(),
                source,
            });
        }
        tracing::warn!(%file, "the index was deleted or replaced while it is in use: it is written anew");
        self.db = schema::write_anew(&self.db, &self.file)?;
        self.note_files();
        self.readers.forget();
        Ok(())
    }

    fn stop(mut self) -> Result<()> {
        self.put_back()?;
        // Whoever still reads has none of the writer's files to look for.
        *self.recall.files.lock() = None;
        self.readers.forget();
        let emptied = self.db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()));
        match emptied.map_err(sqlite("checkpoint")) {
            // The log stays, and with it what it says.
            Err(e) if e.is_no_space() => tracing::debug!("the index keeps its log: {e}"),
            other => other?,
        }
        let closed = self.db.close().map_err(|(_, e)| sqlite("close its file")(e));
        self.spare.keep();
        closed
    }
}

/// Answers all with a failure.
fn refuse(group: Vec<Job>, why: &IndexError) {
    group.into_iter().for_each(|mut job| (job.run)(None).0(Some(same(why))));
}

fn commit(to: (&Connection, BorrowedFd<'_>), mut group: Vec<Job>, spare: &mut Spare, in_doubt: &AtomicBool) {
    let (failed, finish) = attempt(to, &mut group, in_doubt);
    let answer = |failed: Option<Failed>, finish: Vec<Finish>| {
        finish.into_iter().for_each(|f| f(failed.as_ref().map(|(op, e)| again(op, e))));
    };
    let full = failed.as_ref().is_some_and(|(_, e)| is_for_want_of_space(e));
    if !full {
        spare.keep_all();
        return answer(failed, finish);
    }
    if !(group.iter().any(|j| j.frees) && spare.give_up()) {
        return answer(failed, finish);
    }
    let (retry, lost): (Vec<_>, Vec<_>) = group.into_iter().zip(finish).partition(|(job, _)| job.frees);
    answer(failed, lost.into_iter().map(|(_, f)| f).collect());
    let mut retry: Vec<Job> = retry.into_iter().map(|(job, _)| job).collect();
    let (failed, finish) = attempt(to, &mut retry, in_doubt);
    answer(failed, finish);
}

/// Why a transaction failed, and at what.
type Failed = (&'static str, rusqlite::Error);

/// Runs a group in one transaction.
fn attempt(
    (db, dir): (&Connection, BorrowedFd<'_>),
    group: &mut [Job],
    in_doubt: &AtomicBool,
) -> (Option<Failed>, Vec<Finish>) {
    let mut failed = db.execute_batch("BEGIN IMMEDIATE").err().map(|e| ("begin a transaction", e));
    let mut finish = Vec::with_capacity(group.len());
    for job in group {
        let (end, why) = (job.run)(failed.is_none().then_some(db));
        finish.push(end);
        if failed.is_none() && db.is_autocommit() {
            // SQLite took back everything, for what failed this job: that is what all of them hear.
            let unknown = || {
                let code = ffi::Error::new(ffi::SQLITE_ABORT);
                ("keep its transaction", rusqlite::Error::SqliteFailure(code, None))
            };
            failed = Some(why.unwrap_or_else(unknown));
        }
    }
    let commits = failed.is_none();
    if commits {
        failed = db.execute_batch("COMMIT").err().map(|e| ("commit", e));
    }
    let lost = if commits && failed.is_none() { port::confirm(dir).err() } else { None };
    let is_lost = lost.is_some();
    failed = failed.or(lost.map(|e| ("commit", unsynced(e))));
    if failed.is_some() && !db.is_autocommit() {
        let _ = db.execute_batch("ROLLBACK");
    }
    match &failed {
        // It may have written nothing.
        None if in_doubt.load(Ordering::Acquire) => in_doubt.store(!overwrite(db), Ordering::Release),
        None => {}
        // It cannot be written over: nothing can be written.
        Some(_) if is_lost => in_doubt.store(true, Ordering::Release),
        Some((_, e)) if commits && is_for_want_of_sync(e) => {
            in_doubt.store(!overwrite(db), Ordering::Release)
        }
        Some(_) => {}
    }
    (failed, finish)
}

/// A commit that failed may stand in the log with all but its sync, and whoever opens that after a death would take it for one
/// that succeeded. What is committed next is written over it: something that changes nothing.
fn overwrite(db: &Connection) -> bool {
    let written = db.execute_batch(
        "BEGIN IMMEDIATE;
         UPDATE totals SET entries = entries + 1;
         UPDATE totals SET entries = entries - 1;
         COMMIT",
    );
    if written.is_err() && !db.is_autocommit() {
        let _ = db.execute_batch("ROLLBACK");
    }
    written.is_ok()
}

/// As SQLite would say it.
fn unsynced(e: io::Error) -> rusqlite::Error {
    rusqlite::Error::SqliteFailure(ffi::Error::new(ffi::SQLITE_IOERR_FSYNC), Some(e.to_string()))
}

/// All was written, and the disk did not take it.
fn is_for_want_of_sync(e: &rusqlite::Error) -> bool {
    matches!(e, rusqlite::Error::SqliteFailure(e, _)
        if matches!(e.extended_code, ffi::SQLITE_IOERR_FSYNC | ffi::SQLITE_IOERR_DIR_FSYNC))
}

/// What SQLite said, where it was SQLite.
fn reason(e: &IndexError) -> Option<Failed> {
    match e {
        IndexError::Sqlite { op, source: source @ rusqlite::Error::SqliteFailure(code, _) } => {
            Some((op, rusqlite::Error::SqliteFailure(*code, Some(source.to_string()))))
        }
        _ => None,
    }
}

/// The disk is full, or SQLite cannot write for a reason that it has no name for (a quota).
fn is_for_want_of_space(e: &rusqlite::Error) -> bool {
    matches!(e, rusqlite::Error::SqliteFailure(e, _)
        if e.code == ErrorCode::DiskFull || e.extended_code == ffi::SQLITE_IOERR_WRITE)
}
