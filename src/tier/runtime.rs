//! Where a tier's futures run.

use tokio::runtime::{Builder, Runtime};

/// A thread of a tier's own, which waits for its server; callers wait for what it brings.
pub(super) fn runtime() -> Result<Runtime, String> {
    let built = Builder::new_multi_thread().worker_threads(1).thread_name("tier-io").enable_all().build();
    built.map_err(|e| format!("no thread for it: {e}"))
}
