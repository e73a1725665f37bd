//! Executing a task's command in its sandbox, from making the place to leaving nothing of it.
//!
//! Invariant: however it ends, the sandbox is destroyed. Must not know: whether the result will be kept.

use std::path::Path;

use super::Result;
use super::capture::Sink;
use super::exec::{Outcome, Plan};
use super::flight::Flight;
use super::flow::{Run, Voice};
use super::prepare::Prepared;
use super::sandbox::{Bwrap, Left, Plain, Rooms, Sandbox, SandboxKind, Scene};

/// A command that was executed.
pub(super) struct Performed {
    pub outcome: Outcome,
    pub left: Left,
}

impl Run<'_> {
    /// Executes, in a flight if there is one.
    pub(super) fn execute(
        &mut self,
        prepared: Option<&Prepared>,
        flight: Option<&Flight>,
    ) -> Result<Performed> {
        let task = self.task;
        let inputs: Vec<&Path> = prepared.iter().flat_map(|p| p.gathered.paths()).collect();
        let scene = Scene {
            place: &task.place,
            outputs: &task.outputs,
            inputs: &inputs,
            given: &[],
            net: task.net,
            hidden: &self.ways.hidden,
        };
        let rooms = Rooms::of(self.ways.memory.as_deref());
        let mut sandbox: Box<dyn Sandbox + '_> = match task.sandbox {
            SandboxKind::None => Box::new(Plain::new(scene, &rooms)),
            SandboxKind::Bwrap => Box::new(Bwrap::new(scene, &rooms, None)?),
        };
        let performed = self.perform(&mut *sandbox, flight);
        let destroyed = sandbox.destroy();
        let performed = performed?;
        destroyed?;
        self.report.duration_ms = Some(performed.outcome.duration.as_millis() as u64);
        self.report.exit_code = performed.outcome.end.code();
        self.tell_wanted(&performed.left);
        Ok(performed)
    }

    fn perform(&mut self, sandbox: &mut dyn Sandbox, flight: Option<&Flight>) -> Result<Performed> {
        sandbox.create()?;
        if let Some(shelf) = self.shelf.as_mut() {
            shelf.rest();
        }
        let plan = Plan {
            argv: &self.task.argv,
            cwd: &self.task.place.cwd,
            env: &[],
            guard: &self.ways.guard,
            hold: flight.map(Flight::fd),
            inner: false,
            timeout: self.ways.timeout,
            grace: self.ways.grace,
        };
        let outcome = sandbox.exec(plan, &mut Through(self.voice))?;
        let left = sandbox.snapshot()?;
        Ok(Performed { outcome, left })
    }

    /// A command that failed may have looked for what it was not given.
    fn tell_wanted(&mut self, left: &Left) {
        if !left.wanted.is_empty() {
            let names = left.wanted_names();
            self.warn(format!(
                "in the sandbox only declared inputs exist; the command names what is none: {names} (--input declares it)"
            ));
        }
    }
}

/// A voice as nothing but a sink.
struct Through<'a>(&'a mut dyn Voice);

impl Sink for Through<'_> {
    fn wrote(&mut self, stderr: bool, bytes: &[u8]) {
        self.0.wrote(stderr, bytes);
    }
}
