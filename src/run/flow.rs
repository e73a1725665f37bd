//! One run, from a task to its end: looked up, given back or executed, kept.
//!
//! Purpose: the order of things; `hit.rs` and `miss.rs` do them. Invariant: whatever the store does, the task
//! runs. Must not know: how anything is shown.

use std::path::Path;
use std::sync::Arc;
use std::time::Instant;

use super::clock::now;
use super::decide::{Decision, Earlier, Locked, Reason, Situation, decide, is_near};
use super::flight::{Flight, Other, Takeoff};
use super::hit::Given;
use super::ledger::{LastRun, Ledger};
use super::lock::{Block, Lock};
use super::miss::Writing;
use super::outputs::nodes;
use super::prepare::{Around, Prepared, prepare};
use super::report::{Report, Voice, Ways};
use super::sandbox::Rooms;
use super::shelf::{Found, Held, Nodes, Note, Shelf, Shelved, nodes_hash};
use super::spec::Task;
use super::turn::{Turn, WITHIN};
use super::upstream::{Declared, Made, Sought};
use super::{Parts, Result, RunError};
use crate::cache::CachePolicy;
use crate::model::EntryKey;

/// Runs a task.
pub fn run(task: &Task, ways: &Ways, shelf: &mut dyn Shelf, voice: &mut dyn Voice) -> Result<Report> {
    let report = Report::of(&task.id);
    Rooms::of(ways.memory.as_deref()).sweep();
    let ledger = Ledger::of(ways.memory.as_deref(), &task.place.root);
    let mut run = Run {
        task,
        ways,
        shelf: Some(shelf),
        voice,
        ledger,
        report,
        waited_for: None,
        turn: Turn::default(),
        began: now(),
        cannot_tell: false,
        copies: false,
        executed: false,
        spared: false,
    };
    if ways.policy == CachePolicy::Disabled && !ways.dry_run {
        run.uncached()?;
    } else {
        run.cached()?;
    }
    Ok(run.report)
}

/// A run on its way.
pub(super) struct Run<'a> {
    pub(super) task: &'a Task,
    pub(super) ways: &'a Ways,
    /// Until it has failed.
    pub(super) shelf: Option<&'a mut dyn Shelf>,
    pub(super) voice: &'a mut dyn Voice,
    pub(super) ledger: Ledger,
    pub(super) report: Report,
    /// The process whose run was waited for last, as far as it is known.
    waited_for: Option<Option<u32>>,
    /// While it writes to outputs.
    pub(super) turn: Turn,
    /// When it was asked for, nanoseconds since 1970.
    pub(super) began: i128,
    /// What came before it was asked of a store that fails.
    cannot_tell: bool,
    /// Whoever mounted what it was to read has died.
    pub(super) copies: bool,
    /// The command has been started, and has ended.
    pub(super) executed: bool,
    /// Somebody's work was found at the outputs when they were to be replaced.
    pub(super) spared: bool,
}

impl Run<'_> {
    pub(super) fn cwd(&self) -> &Path {
        &self.task.place.cwd
    }

    pub(super) fn warn(&mut self, what: String) {
        self.voice.warn(&what);
        self.report.warnings.push(what);
    }

    /// Asks the store, if it has not failed before.
    pub(super) fn ask<T>(&mut self, ask: impl FnOnce(&mut dyn Shelf) -> Shelved<T>) -> Option<T> {
        match ask(&mut **self.shelf.as_mut()?) {
            Ok(answer) => Some(answer),
            Err(e) => {
                self.shelf = None;
                let also = match self.ways.policy {
                    CachePolicy::Readonly => {
                        " (with --policy readonly, too, a store has to be this user's, and writable unless all of its file system is not)"
                    }
                    _ => "",
                };
                self.warn(format!("the cache fails, the task goes on without it: {e}{also}"));
                None
            }
        }
    }

    pub(super) fn note(&mut self, key: &EntryKey, note: Note) {
        let task = &self.task.id;
        if self.ways.policy.allows_write() {
            self.ask(|shelf| shelf.note(key, task, note));
        }
    }

    /// Past the cache: nothing is looked up or kept.
    fn uncached(&mut self) -> Result<()> {
        super::outputs::check_way(self.cwd(), &self.task.outputs)?;
        let session = self.ways.session.as_ref().filter(|_| self.ways.ephemeral);
        let mut prepared = match self.task.needs_preparing() || session.is_some() {
            true => match self.prepare_if_told()? {
                None => Some(self.prepare()?),
                prepared => prepared,
            },
            false => None,
        };
        self.report.key = None;
        self.turn = self.take_turn();
        let writing = prepared.as_ref().filter(|_| session.is_some()).map(Writing::begin);
        let performed = self.execute(prepared.as_ref(), None)?;
        let good = self.judge(&performed)?.is_none();
        let mut key = None;
        if let (true, Some(session), Some(prepared), Some(writing)) = (good, session, &mut prepared, writing)
        {
            prepared.key = session.key(&self.task.id);
            key = self.keep(prepared, &performed, writing).map(|_| prepared.key.clone());
            self.report.key = key.clone();
        }
        if key.is_none() {
            self.remember_left();
        }
        let outputs_hash = good.then(|| self.look_at_outputs()).flatten().map(|nodes| nodes_hash(&nodes));
        self.remember_last(key, outputs_hash);
        Ok(())
    }

    fn remember_last(&self, key: Option<EntryKey>, outputs_hash: Option<String>) {
        let task = self.task;
        self.ledger.set_last_run(&LastRun {
            task: task.id.clone(),
            key,
            outputs_hash,
            below: task.place.below().into(),
            outputs: task.outputs.iter().map(Into::into).collect(),
        });
    }

    /// What stands at the outputs; `None`, with a warning, when it cannot be read or is nothing that is ever kept.
    pub(super) fn look_at_outputs(&mut self) -> Option<Nodes> {
        let looked = nodes(self.cwd(), &self.task.outputs);
        looked
            .map_err(|e| self.warn(format!("tasks that come after this one know no result of it: {e}")))
            .ok()
    }

    /// A task that only comes after another runs without knowing what that made, and past the cache, if the store cannot tell.
    fn goes_on_without_what_came_before(&mut self, e: &RunError) -> bool {
        let goes_on = self.cannot_tell && self.shelf.is_none() && !self.ways.dry_run;
        if goes_on {
            self.warn(format!("{e}; the store cannot tell, so the task is run, and its result is not kept"));
        }
        goes_on
    }

    /// Prepares; `None` when the task is to run without that, past the cache.
    fn prepare_if_told(&mut self) -> Result<Option<Prepared>> {
        match self.prepare() {
            Err(e) if self.goes_on_without_what_came_before(&e) => Ok(None),
            prepared => prepared.map(Some),
        }
    }

    fn cached(&mut self) -> Result<()> {
        let Some(mut prepared) = self.prepare_if_told()? else { return self.uncached() };
        if self.ways.dry_run {
            self.plan(prepared);
            return Ok(());
        }
        let (mut flight, mut settled) = (None, false);
        loop {
            // Why is asked when it is settled that nobody else executes it.
            let (decision, found) = self.decide(&prepared, settled);
            let (reasons, mut broken) = match (decision, found) {
                (Decision::Hit, Found::Entry(held)) => match self.give_back(&prepared, &held)? {
                    Given::Back => {
                        self.tell_hit(&prepared.key, &held);
                        return Ok(());
                    }
                    Given::Not(reason) => (vec![reason], true),
                    Given::Again => match self.prepare_if_told()? {
                        Some(now) => {
                            (prepared, flight, settled) = (now, None, false);
                            continue;
                        }
                        None => {
                            self.turn = Turn::default();
                            return self.uncached();
                        }
                    },
                },
                (Decision::Miss(reasons), _) => (reasons, false),
                (Decision::Hit, _) => unreachable!("only an entry is a hit"),
            };
            // A flight comes before a turn.
            self.turn = Turn::default();
            if settled {
                broken = true;
            } else {
                match self.take_off(&prepared.key) {
                    Takeoff::Mine(taken) => flight = Some(taken),
                    Takeoff::Others(other) if self.waits() => {
                        self.wait_for(other)?;
                        let Some(now) = self.prepare_if_told()? else { return self.uncached() };
                        prepared = now;
                        continue;
                    }
                    Takeoff::Others(_) | Takeoff::Nowhere => {}
                }
            }
            // Who had it before may have landed since we looked.
            settled = true;
            if broken {
                match self.miss_in_turn(prepared, reasons, flight.take())? {
                    None => return Ok(()),
                    Some(other) => (prepared, settled) = (other, false),
                }
            }
        }
    }

    /// What there is to say of a hit once it is one.
    fn tell_hit(&mut self, key: &EntryKey, held: &Held) {
        self.report.made_at = Some(held.made_at);
        if self.ways.verify {
            // It ran again: nothing was spared.
            self.note(key, Note::Hit { saved_ms: 0 });
        }
    }

    /// Executes when nobody else writes to the outputs. If that took long enough for the key to become another, that is
    /// what is returned.
    fn miss_in_turn(
        &mut self,
        mut prepared: Prepared,
        reasons: Vec<Reason>,
        flight: Option<Flight>,
    ) -> Result<Option<Prepared>> {
        let turn = self.take_turn();
        if turn.waited {
            let Some(now) = self.prepare_if_told()? else {
                drop(turn);
                return self.uncached().map(|()| None);
            };
            if now.key != prepared.key {
                return Ok(Some(now));
            }
            prepared = now;
        }
        self.turn = turn;
        self.miss(&mut prepared, reasons, flight).map(|()| None)
    }

    /// Waits until nobody else writes to the outputs. Without a memory nobody can be met.
    pub(super) fn take_turn(&mut self) -> Turn {
        let Some(turns) = self.ledger.turns(&self.task.place, &self.task.outputs) else {
            return Turn::default();
        };
        let (began, within) = (Instant::now(), self.within());
        let mut wait = |pid| {
            // Whoever is waited for may need the store.
            if let Some(shelf) = self.shelf.as_mut() {
                shelf.rest();
            }
            self.voice.wait_turn(pid);
        };
        let wait: Option<&mut dyn FnMut(Option<u32>)> =
            if self.ways.no_wait { None } else { Some(&mut wait) };
        match turns.take(&within, wait) {
            Ok(turn) => {
                if turn.waited {
                    *self.report.waited_ms.get_or_insert(0) += began.elapsed().as_millis() as u64;
                }
                turn
            }
            Err(e) => {
                tracing::debug!("no turn can be taken: {e}");
                Turn::default()
            }
        }
    }

    /// The turns and the keys of the runs that this one is inside of, and its own.
    pub(super) fn within(&self) -> Vec<String> {
        let above = std::env::var(WITHIN).unwrap_or_default();
        let above = above.split(',').filter(|name| !name.is_empty()).map(str::to_owned);
        let key = self.report.key.iter().map(ToString::to_string);
        above.chain(self.turn.names().map(str::to_owned)).chain(key).collect()
    }

    fn made(&mut self, sought: Sought<'_>) -> Option<Made> {
        match sought {
            Sought::Task(name) => {
                let inside = self.ways.session.as_ref().map(|session| session.task(name));
                let inside = inside.and_then(|name| self.ask(|shelf| shelf.newest(&name)).flatten());
                inside.or_else(|| self.ask(|shelf| shelf.newest(name)).flatten())
            }
            Sought::Declared(name) => {
                let made = self.made(Sought::Task(name));
                self.cannot_tell |= made.is_none() && self.shelf.is_none();
                let made = made?;
                let newest = self.ask(|shelf| shelf.history(name, &|_| true)).unwrap_or_default();
                let declared = newest.first().and_then(|earlier| Declared::of(&earlier.parts));
                Some(Made { declared, ..made })
            }
            Sought::Key(key) => match self.ask(|shelf| shelf.find(key, &[], false))? {
                Found::Entry(held) => {
                    Some(Made { key: key.clone(), outputs_hash: held.outputs_hash, declared: None })
                }
                _ => None,
            },
        }
    }

    fn prepare(&mut self) -> Result<Prepared> {
        let ledger = self.ledger.clone();
        let ways = self.ways;
        let alone = self.cannot_tell.then(|| Task { after: Vec::new(), ..self.task.clone() });
        let prepared = prepare(
            alone.as_ref().unwrap_or(self.task),
            Around {
                ledger: &ledger,
                lock: ways.lock.as_deref(),
                team_key: ways.team_key.as_deref(),
                session: ways.session.as_ref(),
                views: &ways.hidden,
                own: ways.own().cloned().collect(),
                ask: &mut |sought| self.made(sought),
            },
        );
        let mut prepared = prepared?;
        if let Err(e) = prepared.remembered.save() {
            self.warn(format!("hashes of inputs cannot be remembered: {e}"));
        }
        self.report.key = Some(prepared.key.clone());
        self.report.inputs = prepared.parts.input_count;
        self.report.inputs_read += prepared.gathered.read;
        Ok(prepared)
    }

    /// What would happen.
    fn plan(&mut self, prepared: Prepared) {
        let (decision, found) = self.decide(&prepared, true);
        // A hit that stands there already replaces nothing.
        let stands = matches!((&decision, &found), (Decision::Hit, Found::Entry(held)) if self.stands(&prepared, held));
        if !stands {
            self.report.refused = self.lost_work(Some(&prepared.key));
        }
        match decision {
            Decision::Hit => self.report.result = "hit",
            Decision::Miss(reasons) => {
                self.report.result = "miss";
                self.report.reasons = reasons;
            }
        }
        self.report.parts = Some(Arc::unwrap_or_clone(prepared.parts));
    }

    /// Executing what will be kept is for one at a time.
    fn take_off(&mut self, key: &EntryKey) -> Takeoff {
        if self.ways.policy != CachePolicy::Normal {
            return Takeoff::Nowhere;
        }
        let within = std::env::var(WITHIN).unwrap_or_default();
        if within.split(',').any(|name| name == key.as_str()) {
            self.warn("this is inside of a run of the same, which is not waited for".into());
            return Takeoff::Nowhere;
        }
        let Some(dir) = self.ask(|shelf| shelf.flights()) else { return Takeoff::Nowhere };
        Flight::take(&dir, key).unwrap_or_else(|e| {
            self.warn(format!("other runs of the same cannot wait for this one: {e}"));
            Takeoff::Nowhere
        })
    }

    fn waits(&self) -> bool {
        !self.ways.no_wait && !self.ways.force
    }

    fn wait_for(&mut self, other: Other) -> Result<()> {
        let began = Instant::now();
        // Whoever is waited for may need the store.
        if let Some(shelf) = self.shelf.as_mut() {
            shelf.rest();
        }
        let pid = other.pid();
        // After a death those who waited for it meet for a moment.
        if self.waited_for != Some(pid) {
            self.voice.wait(pid);
        }
        self.waited_for = Some(pid);
        other.wait().map_err(|e| RunError::io("wait for another run in", Path::new("runs"), e))?;
        *self.report.waited_ms.get_or_insert(0) += began.elapsed().as_millis() as u64;
        Ok(())
    }

    /// What is to be done, and, if they are wanted, for which reasons.
    fn decide(&mut self, prepared: &Prepared, why: bool) -> (Decision, Found) {
        let (task, ways) = (self.task, self.ways);
        let reads = ways.policy.allows_read();
        let found = match reads {
            true => self.ask(|shelf| shelf.find(&prepared.key, &task.declared(), why)),
            false => None,
        };
        let found = found.unwrap_or(Found::UNKNOWN);
        let locked = match (&ways.lock, &prepared.lock) {
            (None, _) => Locked::NotAsked,
            (Some(_), None) => Locked::NoFile,
            (Some(_), Some(lock)) => match (lock.tasks.get(&task.id), lock.others.get(&task.id)) {
                (Some(block), _) => Locked::Has(block),
                (None, Some(other)) => Locked::OtherForm(other.form),
                (None, None) => Locked::NoTask,
            },
        };
        let force = ways.force || !reads;
        let wants_history = why && !force && locked == Locked::NotAsked && found == Found::UNKNOWN;
        let history = match wants_history {
            true => {
                let near = |earlier: &Earlier| is_near(earlier, &prepared.parts);
                self.ask(|shelf| shelf.history(&task.id, &near)).unwrap_or_default()
            }
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

    /// Remembers the run for tasks after it, and in the lock file.
    pub(super) fn remember_run(
        &mut self,
        prepared: &Prepared,
        outputs_hash: Option<String>,
        status: Option<String>,
    ) {
        let task = self.task.id.clone();
        self.remember_last(Some(prepared.key.clone()), outputs_hash.clone());
        let writes = self.ways.policy.allows_write();
        let Some(path) = self.ways.lock.as_ref().filter(|_| writes).map(|l| self.task.place.file(l)) else {
            return;
        };
        // Elsewhere nothing stands at the outputs of what was not kept.
        let outputs_hash = outputs_hash.filter(|_| status.is_none());
        let block =
            Block { key: prepared.key.clone(), outputs_hash, status, parts: Parts::clone(&prepared.parts) };
        if prepared.lock.as_ref().and_then(|l| l.tasks.get(&task)) == Some(&block) {
            return;
        }
        if let Err(e) = Lock::update(&path, task, block) {
            self.warn(format!("the lock file is as it was: {e}"));
        }
    }
}
