//! outfs's library behind cuenv's own async trait.
//!
//! Purpose: proves that the two traits have one shape, by running the library as cuenv's `dyn CacheBackend`.
//! Invariant: nothing is decided here; every answer is the library's.

use std::path::Path;

use cuenv_ci::executor::{
    BackendError, BackendResult, CacheBackend, CacheEntry, CacheLookupResult, CacheOutput,
};
use cuenv_ci::ir::{CachePolicy, Task};
use outfs::cache as library;

/// cuenv's trait over whatever implements outfs's.
pub struct Adapter<B>(pub B);

fn policy(policy: CachePolicy) -> library::CachePolicy {
    match policy {
        CachePolicy::Normal => library::CachePolicy::Normal,
        CachePolicy::Readonly => library::CachePolicy::Readonly,
        CachePolicy::Writeonly => library::CachePolicy::Writeonly,
        CachePolicy::Disabled => library::CachePolicy::Disabled,
    }
}

fn task(task: &Task) -> library::Task {
    library::Task { id: task.id.clone(), command: task.command.clone() }
}

/// A cache that fails never fails the task: cuenv goes on without one when it is told `Unavailable`.
fn error(error: outfs::cache::CacheError) -> BackendError {
    BackendError::Unavailable(error.to_string())
}

#[async_trait::async_trait]
impl<B: library::CacheBackend> CacheBackend for Adapter<B> {
    async fn check(&self, t: &Task, digest: &str, p: CachePolicy) -> BackendResult<CacheLookupResult> {
        let found = self.0.check(&task(t), digest, policy(p)).map_err(error)?;
        Ok(CacheLookupResult { hit: found.hit, key: found.key, cached_duration_ms: found.cached_duration_ms })
    }

    async fn store(&self, t: &Task, digest: &str, entry: &CacheEntry, p: CachePolicy) -> BackendResult<()> {
        let output = |o: &CacheOutput| library::CacheOutput {
            path: o.path.clone(),
            data: o.data.clone(),
            is_executable: o.is_executable,
        };
        let entry = library::CacheEntry {
            stdout: entry.stdout.clone(),
            stderr: entry.stderr.clone(),
            exit_code: entry.exit_code,
            duration_ms: entry.duration_ms,
            outputs: entry.outputs.iter().map(output).collect(),
        };
        self.0.store(&task(t), digest, &entry, policy(p)).map_err(error)
    }

    async fn restore_outputs(
        &self,
        t: &Task,
        digest: &str,
        workspace: &Path,
    ) -> BackendResult<Vec<CacheOutput>> {
        let outputs = self.0.restore_outputs(&task(t), digest, workspace).map_err(error)?;
        let output = |o: library::CacheOutput| CacheOutput {
            path: o.path,
            data: o.data,
            is_executable: o.is_executable,
        };
        Ok(outputs.into_iter().map(output).collect())
    }

    async fn get_logs(&self, t: &Task, digest: &str) -> BackendResult<(Option<String>, Option<String>)> {
        self.0.get_logs(&task(t), digest).map_err(error)
    }

    fn name(&self) -> &'static str {
        self.0.name()
    }

    async fn health_check(&self) -> BackendResult<()> {
        self.0.health_check().map_err(error)
    }
}
