//! A miss: the command is executed, and what it made is kept.
//!
//! Invariants: a result is kept only if the command succeeded (or failures are wanted), all declared outputs are
//! there, and no input changed meanwhile. Must not know: how it was decided.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread::{JoinHandle, ScopedJoinHandle};

use super::capture::Order;
use super::clock::file_clock_after;
use super::decide::{Reason, exit_code};
use super::exec::{End, Outcome};
use super::flight::Flight;
use super::flow::Run;
use super::ledger::Stand;
use super::outputs::{Stamp, missing};
use super::prepare::Prepared;
use super::sandbox::{Room, Rooms};
use super::shelf::{Keep, Kept, Note, StartedFrom, nodes_hash};
use super::stage::Performed;
use super::{Parts, Result, RunError, SandboxKind, VERSION};
use crate::model::EntryKey;

/// So many are in a record of the event log.
const MOST_REASONS: usize = 20;

impl Run<'_> {
    /// Executes, in a flight if there is one: it lasts until the result is kept.
    pub(super) fn miss(
        &mut self,
        prepared: &mut Prepared,
        reasons: Vec<Reason>,
        flight: Option<Flight>,
    ) -> Result<()> {
        let key = prepared.key.clone();
        self.report.result = "miss";
        self.report.reasons = reasons;
        let writing = self.ways.policy.allows_write().then(|| Writing::begin(prepared));
        let performed = self.execute(Some(prepared), flight.as_ref())?;
        let left = &performed.left;
        let (mut new, mut made) = (Vec::new(), false);
        let status = match self.judge(&performed)? {
            Some(status) => Some(match left.lacked() {
                Some(lacked) => format!("{status}; it lacked {lacked}"),
                None => status,
            }),
            None => self.change_meanwhile(prepared).map(|change| {
                let status = change.text(&self.task.place);
                self.warn(format!("{status}; nothing is kept{}", change.help()));
                (new, made) = (change.into_new(), true);
                status
            }),
        };
        // They were looked for again, and nothing else was found first.
        let listed = status.is_none() || !new.is_empty();
        // While the result is kept.
        let (began, gathered) = (performed.began, Arc::clone(&prepared.gathered));
        let looking = self.look_for_undeclared(began, gathered, (new.clone(), listed));
        let whole = self.found_what_came_before(prepared);
        let kept = match writing.filter(|_| status.is_none() && whole) {
            Some(writing) if self.is_own(false) => self.keep(prepared, &performed, writing),
            _ => None,
        };
        let kept = kept.filter(|_| self.is_own(true) || self.take_back(&key));
        self.tell_undeclared(looking, left.beside.as_deref(), &new);
        if kept.is_none() {
            self.remember_left();
        }
        if let Some(status) = status {
            self.note(&key, Note::Failed { status: status.clone() });
            // What stands there is what tasks after this one find, though it is nobody's result.
            let stands = made.then(|| self.outputs_hash()).flatten();
            self.remember_run(prepared, stands, Some(status));
            return Ok(());
        }
        self.note(&key, Note::Miss { reasons: self.reasons() });
        let outputs_hash = match &kept {
            Some(kept) => Some(kept.outputs_hash.clone()),
            None => self.outputs_hash(),
        };
        self.remember_run(prepared, outputs_hash, None);
        Ok(())
    }

    fn outputs_hash(&mut self) -> Option<String> {
        self.look_at_outputs().map(|nodes| nodes_hash(&nodes))
    }

    /// Nobody else has written to the outputs meanwhile.
    fn is_own(&mut self, kept: bool) -> bool {
        let alone = self.turn.was_alone();
        if !alone {
            let what = if kept { "the result is taken back" } else { "the result is not kept" };
            self.warn(format!("{what}: another run wrote to the same outputs at the same time"));
        }
        alone
    }

    /// What was kept is not this run's own result.
    fn take_back(&mut self, key: &EntryKey) -> bool {
        self.ask(|shelf| shelf.remove(key));
        self.ledger.set_stand(self.cwd(), &self.task.outputs, None);
        self.report.kept = false;
        false
    }

    /// What this task comes after was where the command could look for it; what it made without is nobody's result.
    fn found_what_came_before(&mut self, prepared: &Prepared) -> bool {
        // In a sandbox inputs are all that there is.
        let missing = match self.task.sandbox {
            SandboxKind::None => prepared.after.iter().find(|of| of.is_missing()),
            SandboxKind::Bwrap => None,
        };
        if let Some(of) = missing {
            let what =
                format!("the outputs of the task {}, which this one comes after, are not there", of.name);
            self.warn(format!("{what}; the result is not kept: run that first"));
        }
        missing.is_none()
    }

    /// Why it was executed, for the event log: not each of thousands of inputs.
    fn reasons(&self) -> Vec<String> {
        let all = &self.report.reasons;
        let more = all.len().saturating_sub(MOST_REASONS);
        let told = all.iter().take(MOST_REASONS).map(ToString::to_string);
        told.chain((more > 0).then(|| format!("and {more} more reasons"))).collect()
    }

    /// Keeps a result.
    pub(super) fn keep(
        &mut self,
        prepared: &Prepared,
        performed: &Performed,
        writing: Writing,
    ) -> Option<Kept> {
        let (cwd, outputs, key) = (self.cwd().to_owned(), &self.task.outputs, &prepared.key);
        let outcome = &performed.outcome;
        let logs = match Logs::write(&Rooms::of(self.ways.memory.as_deref()), outcome) {
            Ok(logs) => logs,
            Err(e) => {
                self.warn(format!("the result is not kept: its logs cannot be written: {e}"));
                return None;
            }
        };
        let session = self.ways.session.as_ref().filter(|_| self.ways.ephemeral);
        let keep =
            Keep {
                key,
                task_id: &session.map_or_else(|| self.task.id.clone(), |session| session.task(&self.task.id)),
                command: self.task.argv.iter().map(|a| a.to_string_lossy().into_owned()).collect(),
                exit_code: i32::from(outcome.end.code()),
                duration_ms: outcome.duration.as_millis() as u64,
                cwd: &cwd,
                outputs,
                logs: [&logs.stdout, &logs.stderr],
                member: writing.end(&self.report.reasons, &outcome.order),
                replace: session.is_some() || self.report.reasons.iter().any(Reason::is_about_the_entry),
                lost: self.report.reasons.iter().any(|r| matches!(r, Reason::OutputMissing { .. })),
                session,
                base: prepared.base.as_ref().zip(performed.changed.as_deref()).map(|(of, changed)| {
                    StartedFrom { key: &of.key, outputs_hash: &of.outputs_hash, changed }
                }),
            };
        // What is read from now on, and has not changed since, is what the stamp is of.
        let moment = file_clock_after(performed.ended);
        let shelf = self.shelf.as_mut()?;
        let (kept, stamp) = std::thread::scope(|scope| {
            let look = || Stamp::take(&cwd, outputs);
            let stamp = std::thread::Builder::new().spawn_scoped(scope, look).ok();
            let join = |s: ScopedJoinHandle<'_, _>| s.join().unwrap_or_else(|p| std::panic::resume_unwind(p));
            (shelf.keep(keep), stamp.map(join))
        });
        let kept = match kept {
            Ok(kept) => kept,
            // A result that cannot be kept says nothing about the store: another one may have been first.
            Err(e) => {
                self.warn(format!("the result is not kept: {e}"));
                return None;
            }
        };
        self.report.kept = true;
        if let Some(stamp) = stamp.and_then(Result::ok).filter(|stamp| stamp.is_of(moment)) {
            let (manifest, outputs_hash) = (Some(kept.manifest), Some(kept.outputs_hash.clone()));
            let mark = stamp.mark;
            let stand = Stand { manifest, outputs_hash, links: false, mark, own_times: true, made: true };
            self.ledger.set_stand(&cwd, outputs, Some(&stand));
        }
        Some(kept)
    }

    /// Why an execution gave no result, if so.
    pub(super) fn judge(&mut self, performed: &Performed) -> Result<Option<String>> {
        let outcome = &performed.outcome;
        let status = match outcome.end {
            // It may not mind that it could not read something; others would take its result for the right one.
            End::Exited(_) if performed.lost => {
                Some("the daemon that showed it what other tasks made has died".to_owned())
            }
            End::Exited(_) if performed.replaced.is_some() => performed
                .replaced
                .as_ref()
                .map(|name| format!("the result of {name} was replaced just when it was to be given to it")),
            End::Exited(0) => None,
            End::Exited(_) if self.ways.cache_failures => None,
            End::Exited(code) => Some(exit_code(code.into())),
            End::TimedOut => Some(format!("timed out after {:?}", self.ways.timeout.unwrap_or_default())),
            End::Interrupted(signal) => Some(format!("interrupted by signal {signal}")),
        };
        if let Some(status) = status {
            let nothing = if self.report.result == "miss" { "; nothing is kept" } else { "" };
            self.warn(format!("the command has no result: {status}{nothing}"));
            return Ok(Some(status));
        }
        let declared = self.task.declared();
        let Some(output) = missing(self.cwd(), &declared) else { return Ok(None) };
        let status = format!("the declared output {} is missing", output.display());
        let told = format!("{status}; nothing is kept");
        if outcome.end == End::Exited(0) {
            self.report.exit_code = 125;
            self.voice.fail(&told);
            self.report.error = Some(told);
        } else {
            self.warn(told);
        }
        Ok(Some(status))
    }
}

/// The parts of a key on their way to the metadata of a result: they are long, and the command has the time for it.
pub(super) struct Writing(std::result::Result<JoinHandle<serde_json::Result<String>>, Arc<Parts>>);

impl Writing {
    pub(super) fn begin(prepared: &Prepared) -> Writing {
        let parts = Arc::clone(&prepared.parts);
        let write = move || serde_json::to_string_pretty(&parts.to_keep());
        // Where there can be no thread it is done in the end.
        let writing = std::thread::Builder::new().spawn(write);
        Writing(writing.map_err(|_| Arc::clone(&prepared.parts)))
    }

    /// What a run knows of its result.
    fn end(self, reasons: &[Reason], order: &Order) -> String {
        let text = "parts and reasons are JSON";
        let parts = match self.0 {
            Ok(thread) => thread.join().unwrap_or_else(|p| std::panic::resume_unwind(p)),
            Err(parts) => serde_json::to_string_pretty(&parts.to_keep()),
        };
        let parts = parts.expect(text);
        let reasons = serde_json::to_string_pretty(reasons).expect(text);
        // An order has digits and letters only.
        format!(
            "{{\n\"version\": {VERSION},\n\"reasons\": {reasons},\n\"order\": \"{order}\",\n\"parts\": {parts}\n}}"
        )
    }
}

/// What a command printed, in files that go when they are kept, or when this process has died.
struct Logs {
    stdout: PathBuf,
    stderr: PathBuf,
    _room: Room,
}

impl Logs {
    fn write(rooms: &Rooms, outcome: &Outcome) -> Result<Logs> {
        let room = rooms.make()?;
        let file = |name: &str, bytes: &[u8]| {
            let path = room.path(name);
            std::fs::write(&path, bytes).map_err(|e| RunError::io("write", &path, e))?;
            Ok::<_, RunError>(path)
        };
        let (stdout, stderr) = (file("stdout", &outcome.stdout)?, file("stderr", &outcome.stderr)?);
        Ok(Logs { stdout, stderr, _room: room })
    }
}
