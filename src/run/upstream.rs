//! Earlier results that a run depends on: which, and what they hash to.
//!
//! Invariant: what counts is what a result hashes to, not its key, so that an upstream that ran again to the same
//! result changes nothing; for a task that this one comes after, what stands at its outputs, because that is what
//! the command will find. Must not know: what is done with them.

use std::path::{Path, PathBuf};

use super::inputs::clean;
use super::ledger::{Ledger, Stand};
use super::lock::Lock;
use super::outputs::{Stamp, leads_into, nodes_behind};
use super::shelf::nodes_hash;
use super::spec::Task;
use super::{Parts, Result, RunError};
use crate::model::EntryKey;
use crate::model::session::SessionId;

/// A result to be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sought<'a> {
    /// The entry of this key.
    Key(&'a EntryKey),
    /// A task's newest.
    Task(&'a str),
    /// The same, and where its outputs belong.
    Declared(&'a str),
}

/// A result as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its key.
    pub key: EntryKey,
    /// What its outputs hash to.
    pub outputs_hash: String,
    /// Where its outputs belong, if that was asked.
    pub declared: Option<Declared>,
}

/// Where a task's outputs belong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Declared {
    /// Below the project's top.
    below: PathBuf,
    /// Relative to that.
    outputs: Vec<PathBuf>,
}

impl Declared {
    /// As a key has it; `None` for names that are no UTF-8.
    pub(super) fn of(parts: &Parts) -> Option<Declared> {
        let plain = |text: &String| (!text.contains('\\')).then(|| PathBuf::from(text));
        let mut outputs = parts.outputs.iter().map(plain).collect::<Option<Vec<_>>>()?;
        outputs.sort();
        outputs.dedup_by(|later, kept| later.starts_with(kept));
        Some(Declared { below: plain(&parts.cwd)?, outputs })
    }
}

/// What a task made that this one comes after.
#[derive(Debug, Clone)]
pub(super) struct After {
    pub name: String,
    pub outputs_hash: String,
    standing: Standing,
}

/// What is at a task's outputs.
#[derive(Debug, Clone)]
enum Standing {
    /// It has none, or nobody knows which, or they are this task's, too.
    Unseen,
    /// One of them is not there.
    Missing,
    /// These, with this mark if it can be relied on.
    There { cwd: PathBuf, outputs: Vec<PathBuf>, views: Vec<PathBuf>, mark: Option<String> },
}

impl After {
    /// The hash is not of what stands there, because it does not.
    pub fn is_missing(&self) -> bool {
        matches!(self.standing, Standing::Missing)
    }

    /// Where its outputs stand.
    pub fn paths(&self) -> Vec<PathBuf> {
        match &self.standing {
            Standing::There { cwd, outputs, .. } => outputs.iter().map(|output| cwd.join(output)).collect(),
            Standing::Unseen | Standing::Missing => Vec::new(),
        }
    }

    /// What stands there is not what was hashed.
    pub fn has_changed(&self) -> bool {
        let Standing::There { cwd, outputs, views, mark } = &self.standing else { return false };
        let same = |stamp: Stamp| Some(&stamp.mark) == mark.as_ref();
        if lead_nowhere(cwd, outputs, views) {
            return true;
        }
        if Stamp::take(cwd, outputs).is_ok_and(same) {
            return false;
        }
        !nodes_behind(cwd, outputs, views).is_ok_and(|nodes| nodes_hash(&nodes) == self.outputs_hash)
    }
}

/// One of the outputs is a link to an entry that is gone. That looks the same as before, and there is nothing to be read.
fn lead_nowhere(cwd: &Path, outputs: &[PathBuf], views: &[PathBuf]) -> bool {
    outputs
        .iter()
        .map(|output| cwd.join(output))
        .any(|path| leads_into(&path, views) && path.metadata().is_err())
}

/// An earlier result that is read, or started from.
#[derive(Debug, Clone)]
pub(super) struct Upstream {
    /// As it was named.
    pub name: String,
    pub key: EntryKey,
    pub outputs_hash: String,
}

/// Where results are looked for.
pub(super) struct Upstreams<'a> {
    pub ledger: &'a Ledger,
    pub lock: Option<&'a Lock>,
    /// The session that the run is in.
    pub session: Option<&'a SessionId>,
    pub task: &'a Task,
    /// What outputs that stand as links lead into.
    pub views: &'a [PathBuf],
    pub ask: &'a mut dyn FnMut(Sought<'_>) -> Option<Made>,
}

impl Upstreams<'_> {
    /// What tasks made that come before this one: what stands there, else what the last run here made, else what the lock
    /// file or the store says.
    pub fn after(&mut self, tasks: &[String]) -> Result<Vec<After>> {
        tasks.iter().map(|name| self.after_one(name)).collect()
    }

    fn after_one(&mut self, name: &str) -> Result<After> {
        let (hash, declared) = match self.ledger.last_run(name) {
            Some(last) => {
                let outputs = last.outputs.into_iter().map(PathBuf::from).collect();
                (last.outputs_hash, Some(Declared { below: last.below.into(), outputs }))
            }
            None => {
                let locked = self.lock.and_then(|l| l.tasks.get(name)).filter(|b| b.outputs_hash.is_some());
                match locked {
                    Some(block) => (block.outputs_hash.clone(), Declared::of(&block.parts)),
                    None => match (self.ask)(Sought::Declared(name)) {
                        Some(made) => (Some(made.outputs_hash), made.declared),
                        None => (None, None),
                    },
                }
            }
        };
        let told = hash.ok_or_else(|| {
            RunError::usage(format!(
                "the task {name} has no result yet, and this one comes after it: run it first"
            ))
        })?;
        let (standing, seen) = declared.map_or((Standing::Unseen, None), |declared| self.look(declared));
        Ok(After { name: name.to_owned(), outputs_hash: seen.unwrap_or(told), standing })
    }

    /// What stands at a task's outputs, and what that hashes to.
    fn look(&self, declared: Declared) -> (Standing, Option<String>) {
        let place = &self.task.place;
        // Without a slash at the end, which would make it another name for the ledger.
        let (cwd, outputs) = (clean(&place.root.join(declared.below)), declared.outputs);
        let ours = |theirs: &Path| {
            self.task
                .outputs
                .iter()
                .map(|o| place.cwd.join(o))
                .any(|o| o.starts_with(theirs) || theirs.starts_with(o))
        };
        if outputs.is_empty() || outputs.iter().any(|o| ours(&cwd.join(o))) {
            return (Standing::Unseen, None);
        }
        let Ok(stamp) = Stamp::take(&cwd, &outputs) else { return (Standing::Missing, None) };
        let views = self.views.to_vec();
        if lead_nowhere(&cwd, &outputs, &views) {
            return (Standing::Missing, None);
        }
        let known = self.ledger.stand(&cwd, &outputs).filter(|s| s.mark == stamp.mark);
        let made = known.as_ref().is_some_and(|known| known.made);
        if let Some(hash) = known.and_then(|known| known.outputs_hash) {
            return (Standing::There { cwd, outputs, views, mark: Some(stamp.mark) }, Some(hash));
        }
        let settled = stamp.settle();
        let Ok(nodes) = nodes_behind(&cwd, &outputs, &views) else { return (Standing::Missing, None) };
        let hash = nodes_hash(&nodes);
        let mut mark = None;
        if settled && Stamp::take(&cwd, &outputs).is_ok_and(|again| again == stamp) {
            let stand = Stand {
                manifest: None,
                outputs_hash: Some(hash.clone()),
                links: false,
                mark: stamp.mark.clone(),
                own_times: false,
                made,
            };
            self.ledger.set_stand(&cwd, &outputs, Some(&stand));
            mark = Some(stamp.mark);
        }
        (Standing::There { cwd, outputs, views, mark }, Some(hash))
    }

    /// A result by its key or its task's name.
    pub fn result(&mut self, name: &str) -> Result<Upstream> {
        let by_key = EntryKey::from_digest(name).ok().and_then(|key| (self.ask)(Sought::Key(&key)));
        let made = match by_key {
            Some(made) => Some(made),
            None => self.of_task(name)?,
        };
        let made = made.ok_or_else(|| {
            let help = match EntryKey::from_digest(name) {
                Ok(_) => format!("'outfs why {name}' says what became of it"),
                Err(_) => "run it first".to_owned(),
            };
            RunError::usage(format!(
                "there is no entry and no task {name} that has a result, and this task needs one: {help}"
            ))
        })?;
        Ok(Upstream { name: name.to_owned(), key: made.key, outputs_hash: made.outputs_hash })
    }

    fn of_task(&mut self, name: &str) -> Result<Option<Made>> {
        if let Some(last) = self.ledger.last_run(name) {
            let of = last.key.as_ref().and_then(SessionId::of_key);
            if of.is_some() && of.as_ref() != self.session {
                return Err(RunError::usage(format!(
                    "what the task {name} made last was ephemeral, and of another session: run it again"
                )));
            }
            return match (last.key, last.outputs_hash) {
                (Some(key), Some(outputs_hash)) => Ok(Some(self.as_kept(key, outputs_hash))),
                (None, Some(_)) => Err(RunError::usage(format!(
                    "the task {name} ran past the cache last: there is no entry of what it made"
                ))),
                (_, None) => Ok(None),
            };
        }
        let locked = self.lock.and_then(|l| l.tasks.get(name));
        let locked = locked.and_then(|b| Some((b.key.clone(), b.outputs_hash.clone()?)));
        Ok(match locked {
            Some((key, outputs_hash)) => Some(self.as_kept(key, outputs_hash)),
            None => (self.ask)(Sought::Task(name)),
        })
    }

    /// What the entry of a key has, which is what will be read: another run may have replaced what is remembered of it, or come to
    /// something else without keeping it. What is remembered counts for an entry that is gone.
    fn as_kept(&mut self, key: EntryKey, outputs_hash: String) -> Made {
        (self.ask)(Sought::Key(&key)).unwrap_or(Made { key, outputs_hash, declared: None })
    }
}
