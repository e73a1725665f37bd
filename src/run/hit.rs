//! A hit: an entry's outputs and logs are given back, or the command runs again to be compared with it.
//!
//! Invariant: what cannot be given back whole is a reason to run. Must not know: how it was decided.

use super::Result;
use super::capture::Order;
use super::decide::Reason;
use super::exec::Outcome;
use super::flight::Flight;
use super::flow::Run;
use super::ledger::Stand;
use super::outputs::Stamp;
use super::prepare::Prepared;
use super::shelf::{Held, Note, Placed, Times, Way, nodes_hash};
use super::turn::Turn;
use crate::cache::{CachePolicy, RestoreAs};
use crate::model::EntryKey;

/// What became of a hit.
pub(super) enum Given {
    /// It is one.
    Back,
    /// It is none, for this reason.
    Not(Reason),
    /// Others wrote to the same outputs, or replaced the entry, since it was found: it has to be found out again what there is.
    Again,
}

impl Run<'_> {
    /// Has an entry's outputs stand where they belong.
    pub(super) fn give_back(&mut self, prepared: &Prepared, held: &Held) -> Result<Given> {
        if self.ways.verify {
            return match self.had_to_wait() {
                true => Ok(Given::Again),
                false => self.verify(prepared, held),
            };
        }
        let key = &prepared.key;
        let mut logs = [Vec::new(), Vec::new()];
        for (stderr, log) in [false, true].into_iter().zip(&mut logs) {
            let path = if stderr { "logs/stderr.log" } else { "logs/stdout.log" };
            match self.shelf.as_mut().map(|shelf| shelf.log(key, stderr, log)) {
                Some(Ok(())) => continue,
                // A damaged log is no failure of the store, which may keep the next one.
                Some(Err(e)) => self.warn(format!("the entry {key} has lost content: {e}")),
                None => {}
            }
            return Ok(Given::Not(Reason::OutputMissing { path: path.into() }));
        }
        if !self.stands(prepared, held) {
            if self.had_to_wait() {
                return Ok(Given::Again);
            }
            self.spare_work(Some(key))?;
            let (cwd, outputs, way) = (self.cwd().to_owned(), &self.task.outputs, self.ways.way);
            let times = self.ways.times;
            let mut placed = self.ask(|shelf| shelf.place(key, &cwd, outputs, way, times));
            if let Some(Placed::NoReflinks { why }) = &placed {
                self.warn(format!(
                    "the outputs are copied: {why} (--as reflink is for a store on the same file system, one that has reflinks)"
                ));
                let copies = Way::Files(RestoreAs::Copy);
                placed = self.ask(|shelf| shelf.place(key, &cwd, outputs, copies, times));
            }
            match placed {
                Some(Placed::Done { manifest, .. }) if manifest == Some(held.manifest) => {
                    self.remember_stand(held)
                }
                // Somebody has replaced it since it was found.
                Some(Placed::Done { .. }) => return Ok(Given::Again),
                Some(Placed::Lost { path, why }) => {
                    self.warn(format!("the entry {key} has lost content: {why}"));
                    return Ok(Given::Not(Reason::OutputMissing { path }));
                }
                Some(Placed::InTheWay { path }) => {
                    return Ok(Given::Not(Reason::InTheWay { path }));
                }
                Some(Placed::NoReflinks { .. }) | None => {
                    // What stands there by now is half an entry's, and nobody's work.
                    self.remember_left();
                    return Ok(Given::Not(Reason::Unusable {
                        detail: "its outputs cannot be given back".into(),
                    }));
                }
            }
        }
        self.turn = Turn::default();
        let order: Order = held.order.parse().unwrap_or_default();
        order.replay([&logs[0], &logs[1]], &mut |stderr, bytes| self.voice.wrote(stderr, bytes));
        self.voice.hit(held);
        self.report.result = "hit";
        self.report.kept = true;
        self.report.saved_ms = Some(held.duration_ms);
        self.report.exit_code = held.exit_code as u8;
        if self.ways.policy == CachePolicy::Normal
            && let Some(dir) = self.ask(|shelf| shelf.flights())
        {
            Flight::sweep(&dir);
        }
        self.note(key, Note::Hit { saved_ms: held.duration_ms });
        self.remember_run(prepared, Some(held.outputs_hash.clone()), None);
        Ok(Given::Back)
    }

    /// Takes this run's turn at the outputs if it has not got it, and says whether others had to be waited for: what was found
    /// before may not be so any more.
    fn had_to_wait(&mut self) -> bool {
        if !self.turn.is_held() {
            self.turn = self.take_turn();
            return self.turn.waited;
        }
        false
    }

    /// Do the entry's outputs stand there already, as they were seen last?
    pub(super) fn stands(&self, prepared: &Prepared, held: &Held) -> bool {
        let links = self.ways.way == Way::Link;
        let outputs = &self.task.outputs;
        let seen = self.ledger.stand(self.cwd(), outputs);
        let Some(seen) = seen.filter(|s| s.manifest == Some(held.manifest) && s.links == links) else {
            return false;
        };
        let Ok(stamp) = Stamp::take(self.cwd(), outputs) else { return false };
        // Older than an input, make would have them made again: they are placed anew, with new times.
        let fresh = match self.ways.times {
            _ if links => true,
            Times::Keep => seen.own_times,
            Times::Now => stamp.oldest_ns >= prepared.gathered.newest_ns,
        };
        let there = !links || outputs.iter().all(|o| self.cwd().join(o).exists());
        stamp.mark == seen.mark && fresh && there
    }

    /// Remembers that the entry's outputs stand there from now on.
    fn remember_stand(&self, held: &Held) {
        let (cwd, outputs) = (self.cwd(), &self.task.outputs);
        let Ok(stamp) = Stamp::take(cwd, outputs) else { return };
        // What changed while the clock stood still has changed it now, or never will unseen.
        let same = stamp.settle() && Stamp::take(cwd, outputs).is_ok_and(|again| again == stamp);
        let links = self.ways.way == Way::Link;
        let own_times = self.ways.times == Times::Keep;
        let (manifest, outputs_hash) = (Some(held.manifest), Some(held.outputs_hash.clone()));
        let stand = Stand { manifest, outputs_hash, links, mark: stamp.mark, own_times, made: true };
        self.ledger.set_stand(cwd, outputs, same.then_some(&stand));
    }

    /// Runs a hit again and says what is different.
    fn verify(&mut self, prepared: &Prepared, held: &Held) -> Result<Given> {
        let key = &prepared.key;
        let Some(kept) = self.ask(|shelf| shelf.nodes(key)) else {
            return Ok(Given::Not(Reason::Unusable { detail: "its outputs cannot be looked at".into() }));
        };
        let performed = self.execute(Some(prepared), None)?;
        self.remember_left();
        self.report.result = "hit";
        self.report.kept = true;
        if let Some(status) = self.judge(&performed)? {
            self.is_not_verified(&status);
            self.report.differs = Some(vec![format!("no result: {status}")]);
            return Ok(Given::Back);
        }
        self.compare_logs(key, &performed.outcome);
        let Some(now) = self.look_at_outputs() else {
            self.is_not_verified("what the command made cannot be looked at");
            return Ok(Given::Back);
        };
        let mut differs: Vec<String> =
            kept.keys().chain(now.keys()).filter(|p| kept.get(*p) != now.get(*p)).cloned().collect();
        differs.sort();
        differs.dedup();
        if i32::from(performed.outcome.end.code()) != held.exit_code {
            differs.insert(0, format!("exit code {}, not {}", performed.outcome.end.code(), held.exit_code));
        }
        if !differs.is_empty() && self.report.exit_code == 0 {
            self.report.exit_code = 1;
        }
        self.remember_run(prepared, Some(nodes_hash(&now)), None);
        self.report.differs = Some(differs);
        Ok(Given::Back)
    }

    /// A command that has succeeded says nothing of that.
    fn is_not_verified(&mut self, why: &str) {
        if self.report.exit_code == 0 {
            let told = format!("nothing is verified: {why}");
            self.report.exit_code = 125;
            self.voice.fail(&told);
            self.report.error = Some(told);
        }
    }

    /// Times and numbers of processes are in many logs: what differs there is said, and is no other result.
    fn compare_logs(&mut self, key: &EntryKey, outcome: &Outcome) {
        for (stderr, name, now) in [(false, "output", &outcome.stdout), (true, "error", &outcome.stderr)] {
            let mut kept = Vec::new();
            if self.ask(|shelf| shelf.log(key, stderr, &mut kept)).is_some() && kept != *now {
                self.warn(format!("what the command printed on standard {name} is not what was kept"));
            }
        }
    }
}
