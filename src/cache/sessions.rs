//! Results that last as long as a process: who that is, and taking them away when it is gone.
//!
//! Invariants: a session has a file in the store's `sessions/` from before its first result until after its last one was
//! evicted, so that whoever owns the store next finds what a death left; a process is known by its
//! number and when it started. Must not know: what the results are for.

use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use serde::{Deserialize, Serialize};

use super::{Cache, CacheError, Result};
use crate::model::session::SessionId;

/// A session of a process that cannot be seen from here ends after so long.
const UNSEEN: Duration = Duration::from_secs(86_400);
/// Tasks that are looked at in one go.
const STEP: usize = 100;

/// A process, so that another one with its number is not taken for it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    /// Its number.
    pub pid: u32,
    /// When it started, in ticks since the machine did.
    pub started: u64,
    /// Where its number means something: the machine's start, and the namespace of processes.
    pub space: String,
}

impl Process {
    /// A living process; `None` when there is none of that number.
    pub fn of(pid: u32) -> Option<Process> {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        // The name may have spaces and parentheses in it.
        let mut rest = stat.rsplit_once(')')?.1.split_whitespace();
        let state = rest.next()?;
        let started = rest.nth(18)?.parse().ok()?;
        (!matches!(state, "Z" | "X")).then(|| Process { pid, started, space: space() })
    }

    /// Whether it lives; `None` when that cannot be seen from here.
    fn lives(&self) -> Option<bool> {
        let (boot, here) = (self.space.split(' ').next(), space());
        match self.space == here {
            true => Some(Process::of(self.pid).as_ref() == Some(self)),
            // Since then the machine was started again.
            false if boot != here.split(' ').next() => Some(false),
            false => None,
        }
    }
}

fn space() -> String {
    let boot = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    let pids = std::fs::read_link("/proc/self/ns/pid").unwrap_or_default();
    format!("{} {}", boot.trim(), pids.display())
}

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
