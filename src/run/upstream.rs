//! Earlier results that a run depends on: which, and what they hash to.
//!
//! Invariant: what counts is what a result hashes to, not its key, so that an upstream that ran again to the same
//! result changes nothing. Must not know: what is done with them.

use std::collections::BTreeMap;

use super::ledger::Ledger;
use super::lock::Lock;
use super::{Result, RunError};
use crate::model::EntryKey;
use crate::model::session::SessionId;

/// A result to be asked for.
#[derive(Debug, Clone, Copy)]
pub(super) enum Sought<'a> {
    /// The entry of this key.
    Key(&'a EntryKey),
    /// A task's newest.
    Task(&'a str),
}

/// A result as the store knows it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Made {
    /// Its key.
    pub key: EntryKey,
    /// What its outputs hash to.
    pub outputs_hash: String,
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
    pub ask: &'a mut dyn FnMut(Sought<'_>) -> Option<Made>,
}

impl Upstreams<'_> {
    /// What tasks made that come before this one: here, else by the lock file, else by the store.
    pub fn after(&mut self, tasks: &[String]) -> Result<BTreeMap<String, String>> {
        let mut hashes = BTreeMap::new();
        for name in tasks {
            let hash = match self.ledger.last_run(name) {
                Some(last) => last.outputs_hash,
                None => {
                    let locked =
                        self.lock.and_then(|l| l.tasks.get(name)).and_then(|b| b.outputs_hash.clone());
                    locked.or_else(|| (self.ask)(Sought::Task(name)).map(|made| made.outputs_hash))
                }
            };
            let hash = hash.ok_or_else(|| {
                RunError::usage(format!(
                    "the task {name} has no result yet, and this one comes after it: run it first"
                ))
            })?;
            hashes.insert(name.clone(), hash);
        }
        Ok(hashes)
    }

    /// A result by its key or its task's name.
    pub fn result(&mut self, name: &str) -> Result<Upstream> {
        let by_key = EntryKey::from_digest(name).ok().and_then(|key| (self.ask)(Sought::Key(&key)));
        let made = match by_key {
            Some(made) => Some(made),
            None => self.of_task(name)?,
        };
        let made = made.ok_or_else(|| {
            RunError::usage(format!(
                "there is no entry and no task {name} that has a result, and this task needs one: run it first"
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
                (Some(key), Some(outputs_hash)) => Ok(Some(Made { key, outputs_hash })),
                (None, Some(_)) => Err(RunError::usage(format!(
                    "the task {name} ran past the cache last: there is no entry of what it made"
                ))),
                (_, None) => Ok(None),
            };
        }
        let locked = self.lock.and_then(|l| l.tasks.get(name));
        let locked =
            locked.and_then(|b| Some(Made { key: b.key.clone(), outputs_hash: b.outputs_hash.clone()? }));
        Ok(locked.or_else(|| (self.ask)(Sought::Task(name))))
    }
}
