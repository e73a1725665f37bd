//! Results that last as long as a process: taking them away when it is gone.
//!
//! Invariants: a session has a file in the store from before its first result until after its last one was evicted, so
//! that whoever owns the store next finds what a death left; a result of a session that has no file is nobody's, and goes
//! when the store is opened. Must not know: what the results are for.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

use super::{Cache, CacheError, Process, Result};
use crate::model::session::SessionId;

/// A session of a process that cannot be seen from here ends after so long.
const UNSEEN: Duration = Duration::from_secs(86_400);
/// Tasks that are looked at in one go.
const STEP: usize = 100;

impl Cache {
    /// Begins a session that lasts as long as a process; it is on the disk when this returns.
    pub fn begin_session(&self, process: &Process) -> Result<SessionId> {
        let id = SessionId::random();
        let text = serde_json::to_vec(process).expect("numbers and text");
        self.inner.store.write_session(&id, &text)?;
        Ok(id)
    }

    /// Whether a session has begun and not ended.
    pub fn has_session(&self, id: &SessionId) -> Result<bool> {
        Ok(self.inner.store.has_session(id)?)
    }

    /// Ends a session: its results go. Nothing happens when there is none.
    pub fn end_session(&self, id: &SessionId) -> Result<()> {
        let prefix = id.prefix();
        let mut after = prefix.clone();
        loop {
            let tasks = self.inner.index.tasks_after(&after, STEP)?;
            let ours: Vec<_> = tasks.iter().take_while(|t| t.starts_with(&prefix)).collect();
            for task in &ours {
                let rows = self.inner.index.by_task(task, STEP)?;
                for row in rows.iter().filter(|row| SessionId::of_key(&row.key).as_ref() == Some(id)) {
                    match self.evict(&row.key, "session") {
                        // Somebody wants to keep it: it is theirs now.
                        Ok(_) | Err(CacheError::Pinned { .. }) => {}
                        Err(e) => return Err(e),
                    }
                }
            }
            match ours.last() {
                Some(last) if ours.len() == STEP => after = (*last).clone(),
                _ => break,
            }
        }
        Ok(self.inner.store.remove_session(id)?)
    }

    /// Ends the sessions whose process is gone. What goes wrong with one keeps no other.
    pub(super) fn end_dead_sessions(&self) -> Result<()> {
        let ended = self.inner.store.sessions()?.into_iter().map(|id| match self.is_over(&id)? {
            true => self.end_session(&id),
            false => Ok(()),
        });
        ended.fold(Ok(()), Result::and)
    }

    /// Takes away the results of sessions that have no file: one was in use when its session ended, and its user died with
    /// the store's owner, or an older state of the store came back.
    pub(super) fn end_forgotten_sessions(&self) -> Result<()> {
        let mut after = SessionId::ALL.to_owned();
        loop {
            let next = self.inner.index.tasks_after(&after, 1)?.pop();
            let Some(task) = next.filter(|t| t.starts_with(SessionId::ALL)) else { return Ok(()) };
            match SessionId::of_task(&task) {
                Some(id) => {
                    if !self.has_session(&id)? {
                        self.end_session(&id)?;
                    }
                    after = id.after_tasks();
                }
                None => after = task,
            }
        }
    }

    fn is_over(&self, id: &SessionId) -> Result<bool> {
        let Some((bytes, written)) = self.inner.store.session(id)? else { return Ok(false) };
        let lives = serde_json::from_slice::<Process>(&bytes).ok().and_then(|process| process.lives());
        // Also one whose file cannot be understood.
        Ok(lives.map_or_else(|| is_old(written), |lives| !lives))
    }
}

fn is_old(written_ns: i64) -> bool {
    let written = UNIX_EPOCH + Duration::from_nanos(written_ns.max(0).unsigned_abs());
    SystemTime::now().duration_since(written).is_ok_and(|age| age > UNSEEN)
}
