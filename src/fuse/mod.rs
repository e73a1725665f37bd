//! The kernel's side: the only room that knows fuser.
//!
//! Purpose: translate requests into `vfs` calls and errors into errnos; mount, unmount,
//! passthrough, notifications. Invariants: never notify while holding a lock a request needs;
//! no error but through `errno`. Must not know: the store, the index, what entries are.

use std::path::Path;
use std::sync::Arc;

use serde::{Deserialize, Serialize};

use crate::vfs::View;

/// Whether large and draft files bypass the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Passthrough {
    /// Where kernel and privileges allow.
    #[default]
    Auto,
    /// Never.
    Off,
    /// Refuse to mount without.
    Require,
}

/// How a view is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountOptions {
    /// See [`Passthrough`].
    pub passthrough: Passthrough,
    /// Other users may enter (the kernel checks permissions in any case).
    pub allow_other: bool,
    /// Threads that answer requests, at least 2.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { passthrough: Passthrough::Auto, allow_other: false, threads: 4 }
    }
}

/// Why a mount failed, and what to do.
#[derive(Debug, thiserror::Error)]
#[error("cannot mount on {path}: {why}", path = path.display())]
pub struct MountError {
    /// The mount point.
    pub path: std::path::PathBuf,
    /// What went wrong and what to do about it.
    pub why: String,
    /// There is no FUSE here at all (no device, no privileges): the store can be used without.
    pub no_fuse: bool,
}

/// A mounted view; dropping it unmounts.
pub struct Mounted {
    _todo: (),
}

#[allow(unused_variables, clippy::todo)]
impl Mounted {
    /// Is passthrough in use?
    pub fn passthrough(&self) -> bool {
        todo!()
    }
    /// False once the kernel side is gone (unmounted by anyone).
    pub fn alive(&self) -> bool {
        todo!()
    }
    /// Unmounts: `lazy` detaches even when busy. On `Err` the mount stands as before.
    pub fn unmount(&self, lazy: bool) -> std::io::Result<()> {
        todo!()
    }
    /// Calls `then` from another thread when the session has ended, for whatever reason.
    pub fn on_end(&self, then: Box<dyn FnOnce() + Send>) {
        todo!()
    }
}

/// Mounts a view; requests are answered when it returns.
#[allow(unused_variables, clippy::todo)]
pub fn mount(view: Arc<View>, at: &Path, options: &MountOptions) -> Result<Mounted, MountError> {
    todo!()
}
