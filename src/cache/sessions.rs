//! Results that last as long as a process: taking them away when it is gone.
//!
//! Invariants: a session has a file in the store's `sessions/` from before its first result until after its last one was
//! evicted, so that whoever owns the store next finds what a death left. Must not know: what the results are for.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Cache, CacheError, Process, Result};
use crate::model::session::SessionId;

/// A session of a process that cannot be seen from here ends after so long.
const UNSEEN: Duration = Duration::from_secs(86_400);
/// Tasks that are looked at in one go.
const STEP: usize = 100;

impl Cache {
    fn sessions(&self) -> PathBuf {
        self.inner.store.root().join("sessions")
    }

    /// Begins a session that lasts as long as a process.
    pub fn begin_session(&self, process: &Process) -> Result<SessionId> {
        let id = SessionId::random();
        let file = self.sessions().join(id.to_string());
        let text = serde_json::to_vec(process).expect("numbers and text");
        std::fs::write(&file, text).map_err(|e| CacheError::io("begin a session in", &file, e))?;
        Ok(id)
    }

    /// Whether a session has begun and not ended.
    pub fn has_session(&self, id: &SessionId) -> bool {
        self.sessions().join(id.to_string()).exists()
    }

    /// Ends a session: its results go. Nothing happens when there is none.
    pub fn end_session(&self, id: &SessionId) -> Result<()> {
        let prefix = id.prefix();
        let mut after = prefix.clone();
        loop {
            let tasks = self.inner.index.tasks_after(&after, STEP)?;
            let ours: Vec<_> = tasks.iter().take_while(|t| t.starts_with(&prefix)).collect();
            for task in &ours {
                for row in self.inner.index.by_task(task, STEP)? {
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
        let file = self.sessions().join(id.to_string());
        match std::fs::remove_file(&file) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(CacheError::io("end a session in", &file, e))
            }
            _ => Ok(()),
        }
    }

    /// Ends the sessions whose process is gone.
    pub(super) fn end_dead_sessions(&self) -> Result<()> {
        let dir = self.sessions();
        let names = std::fs::read_dir(&dir).map_err(|e| CacheError::io("list", &dir, e))?;
        for path in names.flatten().map(|e| e.path()) {
            let id = path.file_name().and_then(|n| n.to_str()).and_then(|n| n.parse::<SessionId>().ok());
            if let Some(id) = id.filter(|_| is_over(&path)) {
                self.end_session(&id)?;
            }
        }
        Ok(())
    }
}

fn is_over(file: &Path) -> bool {
    let process = std::fs::read(file).ok().and_then(|b| serde_json::from_slice::<Process>(&b).ok());
    let lives = process.and_then(|p| p.lives());
    // Also one that was being written when its writer died.
    let age = || file.metadata().and_then(|m| m.modified()).map(|t| SystemTime::now().duration_since(t));
    lives.map_or_else(|| age().is_ok_and(|age| age.is_ok_and(|a| a > UNSEEN)), |lives| !lives)
}
