//! Executing a task's command in its sandbox, from making the place to leaving nothing of it.
//!
//! Invariant: however it ends, the sandbox is destroyed. Must not know: whether the result will be kept.

use std::path::{Path, PathBuf};

use super::capture::Sink;
use super::clock::{file_clock_after, now};
use super::decide::whole_second;
use super::exec::{End, Outcome, Plan};
use super::flight::Flight;
use super::flow::Run;
use super::live::Live;
use super::outputs::{Stamp, States, there};
use super::prepare::Prepared;
use super::report::Voice;
use super::sandbox::{Bwrap, Left, Plain, Room, Rooms, Sandbox, SandboxKind, Scene, Tree, VIEW, same_device};
use super::served::Served;
use super::shelf::{Found, Nodes, Placed, Shelf, ShelfError, Times, Way};
use super::turn::WITHIN;
use super::upstream::{After, Upstream};
use super::{Kind, Result, RunError, text};
use crate::cache::RestoreAs;
use crate::model::EntryKey;

/// A command that was executed.
pub(super) struct Performed {
    pub outcome: Outcome,
    /// When it was started, by the clock of files.
    pub began: i128,
    /// When it had ended and its outputs were where they belong, nanoseconds since 1970.
    pub ended: i128,
    pub left: Left,
    /// Files of the outputs that are not as the base has them; `None` without one.
    pub changed: Option<Vec<PathBuf>>,
    /// What it was given to read was not there to the end.
    pub lost: bool,
    /// An earlier result that may not be what the key says: somebody replaced it before it was given.
    pub replaced: Option<String>,
}

/// Earlier results, mounted for one run.
struct Shown {
    /// Let go of before it is unmounted.
    view: Served,
    _room: Room,
}

/// What a command is given beside its inputs.
#[derive(Default)]
struct Upstreams<'a> {
    base: Option<(&'a Upstream, Nodes, bool)>,
    from: &'a [(PathBuf, Upstream)],
    /// Where they are mounted, if they are.
    view: Option<PathBuf>,
}

/// What stands at the outputs before a command runs.
struct Stood<'a> {
    key: Option<&'a EntryKey>,
    mark: Option<String>,
}

impl Run<'_> {
    /// Executes, in a flight if there is one.
    pub(super) fn execute(
        &mut self,
        prepared: Option<&Prepared>,
        flight: Option<&Flight>,
    ) -> Result<Performed> {
        let task = self.task;
        let rooms = Rooms::of(self.ways.memory.as_deref());
        // Whose turn it is now may have been waited for by this run.
        rooms.sweep();
        // When it is tried again, what stands there was looked at.
        if !self.copies {
            self.spare_work(prepared.map(|p| &p.key))?;
            prepared.map_or(Ok(()), |p| self.look_for_upstreams(p))?;
        }
        let inputs: Vec<&Path> = prepared.iter().flat_map(|p| p.gathered.paths()).collect();
        let given: Vec<PathBuf> = task.from.iter().map(|(path, _)| path.clone()).collect();
        let variables = [&task.env[..], &task.secrets].concat();
        let programs = prepared.iter().flat_map(|p| &p.programs).filter(|program| !program.is_path());
        let programs: Vec<PathBuf> = programs.map(|program| program.path.clone()).collect();
        let scene = Scene {
            place: &task.place,
            outputs: &task.outputs,
            inputs: &inputs,
            given: &given,
            variables: &variables,
            net: task.net,
            hidden: &self.ways.hidden,
            programs: &programs,
        };
        let base = prepared.and_then(|p| p.base.as_ref());
        let base = base.map(|of| self.base(of)).transpose()?;
        // What stands there and is to be moved is moved to where a death is no loss.
        let takes = base.as_ref().is_some_and(|(_, _, stands)| *stands) && rooms.can_take(&task.place.cwd);
        let draft = if takes { None } else { self.draft() };
        let mut sandbox: Box<dyn Sandbox + '_> = match task.sandbox {
            SandboxKind::None => Box::new(Plain::new(scene, &rooms)),
            SandboxKind::Bwrap => {
                Box::new(Bwrap::new(scene, &rooms, draft.as_ref().map(|(_, dir)| dir.clone()))?)
            }
        };
        // Only now: a task that is refused does not run, for whatever reasons it would have.
        if self.report.result == "miss" && !self.copies {
            self.voice.miss(&self.report.reasons);
        }
        self.ledger.set_stand(self.cwd(), &task.outputs, None);
        let mut upstreams = Upstreams { base, from: prepared.map_or(&[][..], |p| &p.from), view: None };
        let shown = match task.sandbox {
            SandboxKind::Bwrap if !upstreams.from.is_empty() && !self.copies => {
                self.mount(&rooms, &mut upstreams)
            }
            _ => None,
        };
        // In a sandbox there is nothing behind them.
        let plain = prepared.filter(|_| task.sandbox == SandboxKind::None);
        let led_into = plain.map(|p| self.led_into(p)).unwrap_or_default();
        let at_work = self.ledger.turns(&task.place, &task.outputs).map(|turns| turns.at_work());
        let in_place = task.sandbox == SandboxKind::None;
        let stood = Stood { key: prepared.map(|p| &p.key), mark: if in_place { None } else { self.mark() } };
        let performed = self.perform(&mut *sandbox, &upstreams, flight, &stood);
        drop(at_work);
        // A command that had to be ended gives no result anyway, and may have waited for a daemon that answers nobody.
        let ended = performed.as_ref().is_ok_and(|p| !matches!(p.outcome.end, End::Exited(_)));
        let shown_lost = !ended && shown.as_ref().is_some_and(|shown| shown.view.is_lost());
        let lost = shown_lost || !ended && led_into.iter().any(Served::is_lost);
        let destroyed = sandbox.destroy();
        if let Some((id, _)) = draft {
            self.drop_draft(&id);
        }
        if shown_lost && performed.is_err() && !self.executed {
            // Whoever has the store now has them copied.
            self.copies = true;
            return self.execute(prepared, flight);
        }
        // Where somebody's work stands it is nothing that this run has left.
        let spared = std::mem::take(&mut self.spared);
        let performed = performed.inspect_err(|_| {
            if !spared {
                self.remember_left()
            }
        })?;
        let performed = Performed { lost, ..performed };
        if let Err(e) = destroyed {
            self.warn(format!("something of the run is left: {e}"));
        }
        self.report.duration_ms = Some(performed.outcome.duration.as_millis() as u64);
        self.report.exit_code = performed.outcome.end.code();
        self.tell_wanted(&performed.left);
        Ok(performed)
    }

    /// Refuses a run that needs an earlier result which the store does not have any more.
    fn look_for_upstreams(&mut self, prepared: &Prepared) -> Result<()> {
        for of in prepared.base.iter().chain(prepared.from.iter().map(|(_, of)| of)) {
            let found = self.ask(|shelf| shelf.find(&of.key, &[], true));
            if let Some(Found::Nothing { evicted, .. }) = found {
                let gone = evicted.map_or("is not in the store any more".into(), |when| {
                    format!("was evicted at {}", whole_second(when))
                });
                let name = &of.name;
                return Err(RunError::usage(format!(
                    "the result of {name}, which the task needs, {gone}: run what makes it again"
                )));
            }
        }
        Ok(())
    }

    /// A draft to be the project inside a sandbox, if the result is to be kept and what is made there can be moved out.
    fn draft(&mut self) -> Option<(String, PathBuf)> {
        if self.task.sandbox == SandboxKind::None || !self.ways.policy.allows_write() {
            return None;
        }
        let (id, dir) = self.shelf.as_mut()?.draft(&self.task.id).ok()?;
        if same_device(&dir, self.cwd()) {
            return Some((id, dir));
        }
        self.drop_draft(&id);
        None
    }

    /// One that cannot be dropped now goes with this process.
    fn drop_draft(&mut self, id: &str) {
        if let Some(shelf) = self.shelf.as_mut()
            && let Err(e) = shelf.drop_draft(id)
        {
            tracing::debug!("the draft {id} is left: {e}");
        }
    }

    /// What is known of a base: all its outputs, and whether they stand where they belong.
    fn base<'a>(&mut self, of: &'a Upstream) -> Result<(&'a Upstream, Nodes, bool)> {
        let nodes = lent(&mut self.shelf, of, |shelf| shelf.nodes(&of.key))?;
        let outputs = &self.task.outputs;
        let stand = self.ledger.stand(self.cwd(), outputs).filter(|s| s.own_times && !s.links);
        let mut stands = false;
        if let Some(stand) = stand {
            let names: Vec<String> = outputs.iter().map(text).collect();
            let covered = |path: &String| {
                let below =
                    |a: &str, b: &str| a.strip_prefix(b).is_some_and(|r| r.is_empty() || r.starts_with('/'));
                names.iter().any(|n| below(path, n) || below(n, path))
            };
            let found = lent(&mut self.shelf, of, |shelf| shelf.find(&of.key, &[], false))?;
            stands = matches!(&found, Found::Entry(held) if Some(held.manifest) == stand.manifest)
                && nodes.keys().all(covered)
                && Stamp::take(self.cwd(), outputs).is_ok_and(|stamp| stamp.mark == stand.mark);
        }
        Ok((of, nodes, stands))
    }

    /// Has the results that are to be read mounted, where there is a daemon for it; else they are copied.
    fn mount(&mut self, rooms: &Rooms, upstreams: &mut Upstreams<'_>) -> Option<Shown> {
        let keys: Vec<_> = upstreams.from.iter().map(|(_, of)| of.key.clone()).collect();
        let room = rooms.make().ok()?;
        let at = room.dir(VIEW).ok()?;
        match self.shelf.as_mut()?.show(&keys, &at) {
            Ok(true) => {
                let shown = Shown { view: Served::hold(&at)?, _room: room };
                upstreams.view = Some(at);
                Some(shown)
            }
            Ok(false) => None,
            Err(e) => {
                tracing::debug!("results are copied, not mounted: {e}");
                None
            }
        }
    }

    /// The views that links among the inputs, and at the outputs of what the task comes after, lead into.
    fn led_into(&self, prepared: &Prepared) -> Vec<Served> {
        let root = &self.task.place.root;
        let inputs = prepared.gathered.inputs.iter().filter(|input| input.kind == Kind::Link);
        let links =
            inputs.map(|input| root.join(&input.path)).chain(prepared.after.iter().flat_map(After::paths));
        let targets: Vec<PathBuf> = links.filter_map(|path| path.read_link().ok()).collect();
        let views = self.ways.hidden.iter().filter(|view| targets.iter().any(|t| t.starts_with(view)));
        views.filter_map(|view| Served::hold(view)).collect()
    }

    fn perform(
        &mut self,
        sandbox: &mut dyn Sandbox,
        upstreams: &Upstreams<'_>,
        flight: Option<&Flight>,
        stood: &Stood<'_>,
    ) -> Result<Performed> {
        let outputs = &self.task.outputs;
        let mut states = None;
        match &upstreams.base {
            Some((of, nodes, stands)) => {
                let view = None;
                let mut tree =
                    Earlier { shelf: &mut self.shelf, of, nodes: Some(nodes), stands: *stands, view };
                sandbox.restore(&mut tree)?;
                states = Some(States::take(&sandbox.work(), outputs)?);
            }
            None => sandbox.create()?,
        }
        for (at, of) in upstreams.from {
            let view = upstreams.view.as_ref().map(|v| v.join(of.key.as_str()).join("outputs"));
            let mut tree = Earlier { shelf: &mut self.shelf, of, nodes: None, stands: false, view };
            sandbox.inject(at, &mut tree)?;
        }
        let replaced = self.replaced(upstreams);
        if let Some(shelf) = self.shelf.as_mut() {
            shelf.rest();
        }
        let hold: Vec<_> = flight.iter().map(|f| f.fd()).chain(self.turn.fds()).collect();
        let plan = Plan {
            argv: &self.task.argv,
            cwd: &self.task.place.cwd,
            env: &[(WITHIN.into(), Some(self.within().join(",").into()))],
            bare: false,
            guard: &self.ways.guard,
            hold: &hold,
            inner: false,
            timeout: self.ways.timeout,
            grace: self.ways.grace,
        };
        // What was there before has an earlier time.
        let began = file_clock_after(self.began);
        let live = flight.map(|flight| Live::new(flight.fd()));
        let outcome = sandbox.exec(plan, &mut Through(self.voice, live))?;
        self.executed = true;
        let changed = states.map(|s| s.changed(&sandbox.work(), outputs)).transpose()?;
        self.spare_new_work(stood)?;
        let left = sandbox.snapshot()?;
        Ok(Performed { outcome, began, ended: now(), left, changed, lost: false, replaced })
    }

    /// A mark of what stands at the outputs.
    fn mark(&self) -> Option<String> {
        Stamp::take(self.cwd(), &there(self.cwd(), &self.task.outputs)).ok().map(|stamp| stamp.mark)
    }

    /// Refuses to have outputs of a sandbox replace what somebody has written at their places while it ran.
    fn spare_new_work(&mut self, stood: &Stood<'_>) -> Result<()> {
        if self.task.sandbox == SandboxKind::None || self.mark() == stood.mark {
            return Ok(());
        }
        self.spare_work(stood.key).inspect_err(|_| self.spared = true)
    }

    /// The name of one that hashes to something else than it did when the key was made.
    fn replaced(&mut self, upstreams: &Upstreams<'_>) -> Option<String> {
        let all = upstreams.base.iter().map(|(of, ..)| *of).chain(upstreams.from.iter().map(|(_, of)| of));
        for of in all.collect::<Vec<_>>() {
            if let Some(Found::Entry(held)) = self.ask(|shelf| shelf.find(&of.key, &[], false))
                && held.outputs_hash != of.outputs_hash
            {
                return Some(of.name.clone());
            }
        }
        None
    }

    /// A command that failed may have looked for what it was not given.
    fn tell_wanted(&mut self, left: &Left) {
        if !left.wanted.is_empty() {
            let names = left.wanted_names();
            self.warn(format!(
                "in the sandbox only declared inputs exist; the command names what is none: {names} (--input declares it)"
            ));
        }
        if !left.variables.is_empty() {
            let names = left.variables.join(", ");
            self.warn(format!(
                "in the sandbox only declared variables are set; the command names what is none: {names} (--env or --secret declares it)"
            ));
        }
    }
}

type Lent<'r, 's> = &'r mut Option<&'s mut dyn Shelf>;

/// Asks the store for what a run cannot do without.
fn lent<T>(
    shelf: Lent<'_, '_>,
    of: &Upstream,
    ask: impl FnOnce(&mut dyn Shelf) -> std::result::Result<T, ShelfError>,
) -> Result<T> {
    let fail = |why: &str| {
        RunError::usage(format!("the result of {} cannot be had, and the task needs it: {why}", of.name))
    };
    let shelf = shelf.as_mut().ok_or_else(|| fail("the cache fails"))?;
    ask(&mut **shelf).map_err(|e| fail(&e.0))
}

/// An earlier result in the store.
struct Earlier<'r, 's> {
    shelf: Lent<'r, 's>,
    of: &'r Upstream,
    nodes: Option<&'r Nodes>,
    stands: bool,
    view: Option<PathBuf>,
}

impl Tree for Earlier<'_, '_> {
    fn view(&mut self) -> Option<PathBuf> {
        self.view.clone()
    }

    fn lay(&mut self, dest: &Path, only: Option<&[PathBuf]>) -> Result<()> {
        let (key, files) = (&self.of.key, Way::Files(RestoreAs::Auto));
        lent(self.shelf, self.of, |shelf| match only {
            None => shelf.restore(key, dest),
            Some(outputs) => match shelf.place(key, dest, outputs, files, Times::Keep)? {
                Placed::Done { .. } => Ok(()),
                Placed::Lost { why, .. } | Placed::NoReflinks { why } => Err(ShelfError(why)),
                Placed::InTheWay { path } => Err(ShelfError(format!("{path} is in the way"))),
            },
        })
    }

    fn has(&self, path: &Path) -> bool {
        self.nodes.is_some_and(|nodes| nodes.contains_key(&text(path)))
    }

    fn stands(&self) -> bool {
        self.stands
    }
}

/// A voice as nothing but a sink, and whoever follows.
struct Through<'a>(&'a mut dyn Voice, Option<Live<'a>>);

impl Sink for Through<'_> {
    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        if let Some(live) = &self.1 {
            live.show(stderr, bytes);
        }
        self.0.wrote(stderr, bytes);
    }
}
