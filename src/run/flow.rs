//! One run, from a task to its end: looked up, given back or executed, kept.
//!
//! Invariants: whatever the store does, the task runs; a result is kept only if the command succeeded (or
//! failures are wanted), all declared outputs are there, and no input changed meanwhile; what cannot be
//! given back whole is run instead. Must not know: how anything is shown.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde::Serialize;

use super::capture::{Order, Sink};
use super::decide::{Decision, Locked, Reason, Situation, decide};
use super::exec::{End, Outcome, Plan, execute};
use super::inputs::changed_since;
use super::ledger::{LastRun, Ledger, Stand};
use super::lock::{Block, Lock};
use super::outputs::{Stamp, clear, missing, nodes, untracked};
use super::prepare::{Around, Prepared, prepare};
use super::shelf::{Found, Held, Keep, Note, Placed, Shelf, Shelved, Times, Way, nodes_hash};
use super::spec::{Inputs, Task};
use super::{Parts, Result, RunError, VERSION, text};
use crate::cache::CachePolicy;
use crate::model::EntryKey;

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
    /// See [`Plan::guard`].
    pub guard: Vec<std::ffi::OsString>,
    /// Where projects are remembered.
    pub memory: Option<PathBuf>,
}

/// Whoever tells people; gets the command's output, too.
pub trait Voice: Sink {
    /// The task will be executed, because of this.
    fn miss(&mut self, reasons: &[Reason]);
    /// It was given back.
    fn hit(&mut self, held: &Held);
    /// Something is not as it should be, and the run goes on.
    fn warn(&mut self, what: &str);
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
    /// Its result is in the cache.
    pub kept: bool,
    /// How many inputs there are.
    pub inputs: u64,
    /// How many of them had to be read.
    pub inputs_read: u64,
    /// Paths that differ from the entry, with `--verify`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub differs: Option<Vec<String>>,
    /// New files that are no declared output.
    pub undeclared: Vec<String>,
    /// What was not as it should be.
    pub warnings: Vec<String>,
    /// All parts of the key, with `--dry-run`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub parts: Option<Parts>,
}

/// Runs a task.
pub fn run(task: &Task, ways: &Ways, shelf: &mut dyn Shelf, voice: &mut dyn Voice) -> Result<Report> {
    let report = Report {
        task: task.id.clone(),
        key: None,
        result: "uncached",
        reasons: Vec::new(),
        exit_code: 0,
        duration_ms: None,
        saved_ms: None,
        kept: false,
        inputs: 0,
        inputs_read: 0,
        differs: None,
        undeclared: Vec::new(),
        warnings: Vec::new(),
        parts: None,
    };
    let ledger = Ledger::of(ways.memory.as_deref(), &task.place.root);
    let mut run = Run { task, ways, shelf: Some(shelf), voice, ledger, report };
    if ways.policy == CachePolicy::Disabled && !ways.dry_run {
        run.uncached()?;
    } else {
        run.cached()?;
    }
    Ok(run.report)
}

struct Run<'a> {
    task: &'a Task,
    ways: &'a Ways,
    /// Until it has failed.
    shelf: Option<&'a mut dyn Shelf>,
    voice: &'a mut dyn Voice,
    ledger: Ledger,
    report: Report,
}

impl Run<'_> {
    fn cwd(&self) -> &Path {
        &self.task.place.cwd
    }

    fn warn(&mut self, what: String) {
        self.voice.warn(&what);
        self.report.warnings.push(what);
    }

    /// Asks the store, if it has not failed before.
    fn ask<T>(&mut self, ask: impl FnOnce(&mut dyn Shelf) -> Shelved<T>) -> Option<T> {
        match ask(&mut **self.shelf.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(e) => {
                self.shelf = None;
                self.warn(format!("the cache fails, the task goes on without it: {e}"));
                None
            }
        }
    }

    fn note(&mut self, key: &EntryKey, note: Note) {
        let task = &self.task.id;
        if self.ways.policy.allows_write() {
            self.ask(|shelf| shelf.note(key, task, note));
        }
    }

    /// Past the cache: nothing is looked up or kept.
    fn uncached(&mut self) -> Result<()> {
        super::outputs::check_way(self.cwd(), &self.task.outputs)?;
        let outcome = self.execute()?;
        let good = self.judge(&outcome)?.is_none();
        let outputs_hash = if good { Some(self.hash_outputs()?) } else { None };
        self.ledger.set_last_run(&LastRun { task: self.task.id.clone(), key: None, outputs_hash });
        Ok(())
    }

    fn hash_outputs(&self) -> Result<String> {
        Ok(nodes_hash(&nodes(self.cwd(), &self.task.outputs)?))
    }

    fn cached(&mut self) -> Result<()> {
        let ledger = self.ledger.clone();
        let (task, ways) = (self.task, self.ways);
        let prepared = prepare(
            task,
            Around {
                ledger: &ledger,
                lock: ways.lock.as_deref(),
                team_key: ways.team_key.as_deref(),
                newest_outputs: &mut |name| self.ask(|shelf| shelf.newest_outputs(name)).flatten(),
            },
        );
        let mut prepared = prepared?;
        if let Err(e) = prepared.remembered.save() {
            self.warn(format!("hashes of inputs cannot be remembered: {e}"));
        }
        self.report.key = Some(prepared.key.clone());
        self.report.inputs = prepared.parts.input_count;
        self.report.inputs_read = prepared.gathered.read;
        let (decision, found) = self.decide(&prepared);
        if ways.dry_run {
            self.report.parts = Some(prepared.parts);
            match decision {
                Decision::Hit => self.report.result = "hit",
                Decision::Miss(reasons) => {
                    self.report.result = "miss";
                    self.report.reasons = reasons;
                }
            }
            return Ok(());
        }
        let reasons = match (decision, found) {
            (Decision::Hit, Found::Entry(held)) => match self.give_back(&prepared, &held)? {
                None => return Ok(()),
                Some(reason) => vec![reason],
            },
            (Decision::Miss(reasons), _) => reasons,
            (Decision::Hit, _) => unreachable!("only an entry is a hit"),
        };
        self.miss(&mut prepared, reasons)
    }

    fn decide(&mut self, prepared: &Prepared) -> (Decision, Found) {
        let (task, ways) = (self.task, self.ways);
        let reads = ways.policy.allows_read();
        let found = match reads {
            true => self.ask(|shelf| shelf.find(&prepared.key, &task.outputs)),
            false => None,
        };
        let found = found.unwrap_or(Found::UNKNOWN);
        let locked = match (&ways.lock, &prepared.lock) {
            (None, _) => Locked::NotAsked,
            (Some(_), None) => Locked::NoFile,
            (Some(_), Some(lock)) => lock.tasks.get(&task.id).map_or(Locked::NoTask, Locked::Has),
        };
        let force = ways.force || !reads;
        let wants_history = !force && locked == Locked::NotAsked && found == Found::UNKNOWN;
        let history = match wants_history {
            true => self.ask(|shelf| shelf.history(&task.id)).unwrap_or_default(),
            false => Vec::new(),
        };
        let decision = decide(&Situation {
            key: &prepared.key,
            parts: &prepared.parts,
            force,
            cache_failures: ways.cache_failures,
            found: &found,
            locked,
            history: &history,
        });
        (decision, found)
    }

    /// Has an entry's outputs stand where they belong; a reason if that cannot be.
    fn give_back(&mut self, prepared: &Prepared, held: &Held) -> Result<Option<Reason>> {
        if self.ways.verify {
            return self.verify(prepared, held).map(|()| None);
        }
        let key = &prepared.key;
        let mut logs = [Vec::new(), Vec::new()];
        for (stderr, log) in [false, true].into_iter().zip(&mut logs) {
            if self.ask(|shelf| shelf.log(key, stderr, log)).is_none() {
                let path = if stderr { "logs/stderr.log" } else { "logs/stdout.log" };
                return Ok(Some(Reason::OutputMissing { path: path.into() }));
            }
        }
        if !self.stands(prepared, held) {
            let (cwd, outputs, way) = (self.cwd().to_owned(), &self.task.outputs, self.ways.way);
            let times = self.ways.times;
            let placed = self.ask(|shelf| shelf.place(key, &cwd, outputs, way, times));
            match placed {
                Some(Placed::Done(_)) => self.remember_stand(held),
                Some(Placed::Lost { path, why }) => {
                    self.warn(format!("the entry {key} has lost content: {why}"));
                    return Ok(Some(Reason::OutputMissing { path }));
                }
                None => {
                    let status = "its outputs cannot be given back".into();
                    return Ok(Some(Reason::PreviousRunIncomplete { status }));
                }
            }
        }
        let order: Order = held.order.parse().unwrap_or_default();
        order.replay([&logs[0], &logs[1]], &mut |stderr, bytes| self.voice.wrote(stderr, bytes));
        self.voice.hit(held);
        self.report.result = "hit";
        self.report.kept = true;
        self.report.saved_ms = Some(held.duration_ms);
        self.report.exit_code = held.exit_code as u8;
        self.note(key, Note::Hit { saved_ms: held.duration_ms });
        self.remember_run(prepared, Some(held.outputs_hash.clone()), None);
        Ok(None)
    }

    /// Do the entry's outputs stand there already, as they were seen last?
    fn stands(&self, prepared: &Prepared, held: &Held) -> bool {
        let links = self.ways.way == Way::Link;
        let outputs = &self.task.outputs;
        let seen = self.ledger.stand(self.cwd(), outputs);
        let Some(seen) = seen.filter(|s| s.manifest == held.manifest && s.links == links) else {
            return false;
        };
        let Ok(stamp) = Stamp::take(self.cwd(), outputs) else { return false };
        // Older than an input, make would have them made again: they are placed anew, with new times.
        let fresh = self.ways.times == Times::Keep || links || stamp.oldest_ns >= prepared.gathered.newest_ns;
        let there = !links || outputs.iter().all(|o| self.cwd().join(o).exists());
        stamp.mark == seen.mark && fresh && there
    }

    /// Remembers that the entry's outputs stand there from now on.
    fn remember_stand(&self, held: &Held) {
        let (cwd, outputs) = (self.cwd(), &self.task.outputs);
        let Ok(stamp) = Stamp::take(cwd, outputs) else { return };
        stamp.settle();
        // What changed while the clock stood still has changed it now, or never will unseen.
        let same = Stamp::take(cwd, outputs).is_ok_and(|again| again == stamp);
        let links = self.ways.way == Way::Link;
        let stand = Stand { manifest: held.manifest, links, mark: stamp.mark };
        self.ledger.set_stand(cwd, outputs, same.then_some(&stand));
    }

    /// Remembers the run for tasks after it, and in the lock file.
    fn remember_run(&mut self, prepared: &Prepared, outputs_hash: Option<String>, status: Option<String>) {
        let task = self.task.id.clone();
        let key = Some(prepared.key.clone());
        self.ledger.set_last_run(&LastRun { task: task.clone(), key, outputs_hash: outputs_hash.clone() });
        let Some(path) = self.ways.lock.as_ref().map(|l| self.cwd().join(l)) else { return };
        let block = Block { key: prepared.key.clone(), outputs_hash, status, parts: prepared.parts.clone() };
        if prepared.lock.as_ref().and_then(|l| l.tasks.get(&task)) == Some(&block) {
            return;
        }
        if let Err(e) = Lock::update(&path, task, block) {
            self.warn(format!("the lock file is as it was: {e}"));
        }
    }

    fn execute(&mut self) -> Result<Outcome> {
        let task = self.task;
        clear(self.cwd(), &task.outputs)?;
        if let Some(shelf) = self.shelf.as_mut() {
            shelf.rest();
        }
        let plan = Plan {
            argv: &task.argv,
            cwd: &task.place.cwd,
            env: &[],
            guard: &self.ways.guard,
            timeout: self.ways.timeout,
            grace: self.ways.grace,
        };
        let outcome = execute(&plan, &mut Through(self.voice))
            .map_err(|e| RunError::io("run", Path::new(&task.argv[0]), e))?;
        self.report.duration_ms = Some(outcome.duration.as_millis() as u64);
        self.report.exit_code = outcome.end.code();
        Ok(outcome)
    }

    /// Why an execution gave no result, if so.
    fn judge(&mut self, outcome: &Outcome) -> Result<Option<String>> {
        let status = match outcome.end {
            End::Exited(0) => None,
            End::Exited(_) if self.ways.cache_failures => None,
            End::Exited(code) => Some(format!("exit code {code}")),
            End::TimedOut => Some(format!("timed out after {:?}", self.ways.timeout.unwrap_or_default())),
            End::Interrupted(signal) => Some(format!("interrupted by signal {signal}")),
        };
        if status.is_some() {
            return Ok(status);
        }
        let Some(output) = missing(self.cwd(), &self.task.outputs) else { return Ok(None) };
        let status = format!("the declared output {} is missing", output.display());
        self.warn(format!("{status}; nothing is kept"));
        if outcome.end == End::Exited(0) {
            self.report.exit_code = 125;
        }
        Ok(Some(status))
    }

    fn miss(&mut self, prepared: &mut Prepared, reasons: Vec<Reason>) -> Result<()> {
        let key = prepared.key.clone();
        self.report.result = "miss";
        self.report.reasons = reasons;
        self.voice.miss(&self.report.reasons);
        let before = untracked(self.cwd());
        self.ledger.set_stand(self.cwd(), &self.task.outputs, None);
        let outcome = self.execute()?;
        self.find_undeclared(before);
        let status = match self.judge(&outcome)? {
            Some(status) => Some(status),
            None => changed_since(&prepared.gathered, &mut prepared.remembered).map(|name| {
                let what = format!("the input {name} changed while the command ran");
                self.warn(format!("{what}; nothing is kept"));
                what
            }),
        };
        if let Some(status) = status {
            self.note(&key, Note::Failed { status: status.clone() });
            self.remember_run(prepared, None, Some(status));
            return Ok(());
        }
        let held = if self.ways.policy.allows_write() { self.keep(prepared, &outcome) } else { None };
        self.note(
            &key,
            Note::Miss { reasons: self.report.reasons.iter().map(ToString::to_string).collect() },
        );
        let outputs_hash = match &held {
            Some(held) => held.outputs_hash.clone(),
            None => self.hash_outputs()?,
        };
        self.remember_run(prepared, Some(outputs_hash), None);
        Ok(())
    }

    /// Keeps a result; what the store says of it then.
    fn keep(&mut self, prepared: &Prepared, outcome: &Outcome) -> Option<Held> {
        let (cwd, outputs, key) = (self.cwd().to_owned(), &self.task.outputs, &prepared.key);
        let stamp = Stamp::take(&cwd, outputs).ok()?;
        stamp.settle();
        let logs = match Logs::write(outcome) {
            Ok(logs) => logs,
            Err(e) => {
                self.warn(format!("the result is not kept: its logs cannot be written: {e}"));
                return None;
            }
        };
        let keep = Keep {
            key,
            task_id: &self.task.id,
            command: self.task.argv.iter().map(|a| a.to_string_lossy().into_owned()).collect(),
            exit_code: i32::from(outcome.end.code()),
            duration_ms: outcome.duration.as_millis() as u64,
            cwd: &cwd,
            outputs,
            logs: [logs.0.path(), logs.1.path()],
            extra: self.extra(prepared, &outcome.order),
            replace: self.report.reasons.iter().any(Reason::is_about_the_entry),
        };
        // A result that cannot be kept says nothing about the store: another one may have been first.
        if let Err(e) = self.shelf.as_mut()?.keep(&keep) {
            self.warn(format!("the result is not kept: {e}"));
            return None;
        }
        self.report.kept = true;
        let Some(Found::Entry(held)) = self.ask(|shelf| shelf.find(key, outputs)) else { return None };
        // Unchanged since before it was read: what stands there is what was kept.
        if Stamp::take(&cwd, outputs).is_ok_and(|again| again == stamp) {
            let stand = Stand { manifest: held.manifest, links: false, mark: stamp.mark };
            self.ledger.set_stand(&cwd, outputs, Some(&stand));
        }
        Some(*held)
    }

    fn extra(
        &self,
        prepared: &Prepared,
        order: &Order,
    ) -> std::collections::BTreeMap<String, serde_json::Value> {
        let kept = serde_json::json!({
            "version": VERSION,
            "reasons": self.report.reasons,
            "order": order.to_string(),
            "parts": prepared.parts.to_keep(),
        });
        [(super::shelf::MEMBER.to_owned(), kept)].into()
    }

    fn find_undeclared(&mut self, before: Option<std::collections::BTreeSet<PathBuf>>) {
        let (Some(before), Some(after)) = (before, untracked(self.cwd())) else { return };
        let outputs = &self.task.outputs;
        let lock = self.ways.lock.as_deref();
        let new: Vec<String> = after
            .difference(&before)
            .filter(|path| !outputs.iter().any(|o| path.starts_with(o)) && Some(path.as_path()) != lock)
            .map(text)
            .collect();
        if !new.is_empty() {
            let some = new.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = new.len().checked_sub(6).map(|n| format!(" and {} more", n + 1)).unwrap_or_default();
            let how =
                if self.task.inputs == Inputs::Git { "; the next run takes them for inputs" } else { "" };
            self.warn(format!("not declared as outputs, and so not kept: {some}{more}{how}"));
        }
        self.report.undeclared = new;
    }

    /// Runs a hit again and says what is different.
    fn verify(&mut self, prepared: &Prepared, held: &Held) -> Result<()> {
        let key = &prepared.key;
        let outputs = &self.task.outputs;
        let Some(kept) = self.ask(|shelf| shelf.nodes(key)) else { return Ok(()) };
        self.ledger.set_stand(self.cwd(), outputs, None);
        let outcome = self.execute()?;
        self.report.result = "hit";
        self.report.kept = true;
        if self.judge(&outcome)?.is_some() {
            return Ok(());
        }
        let now = nodes(self.cwd(), outputs)?;
        let mut differs: Vec<String> =
            kept.keys().chain(now.keys()).filter(|p| kept.get(*p) != now.get(*p)).cloned().collect();
        differs.sort();
        differs.dedup();
        if i32::from(outcome.end.code()) != held.exit_code {
            differs.insert(0, format!("exit code {}, not {}", outcome.end.code(), held.exit_code));
        }
        if !differs.is_empty() && self.report.exit_code == 0 {
            self.report.exit_code = 1;
        }
        self.remember_run(prepared, Some(nodes_hash(&now)), None);
        self.report.differs = Some(differs);
        Ok(())
    }
}

/// A voice as nothing but a sink.
struct Through<'a>(&'a mut dyn Voice);

impl Sink for Through<'_> {
    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        self.0.wrote(stderr, bytes);
    }
}

/// What a command printed, in files that go when they are kept.
struct Logs(tempfile::NamedTempFile, tempfile::NamedTempFile);

impl Logs {
    fn write(outcome: &Outcome) -> std::io::Result<Logs> {
        let file = |bytes: &[u8]| {
            let mut file = tempfile::Builder::new().prefix("outfs-log-").tempfile()?;
            file.write_all(bytes)?;
            Ok::<_, std::io::Error>(file)
        };
        Ok(Logs(file(&outcome.stdout)?, file(&outcome.stderr)?))
    }
}
