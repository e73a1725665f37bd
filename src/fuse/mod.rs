//! The kernel's side: the only room that knows the FUSE protocol. (fuser mounts, shakes hands and notifies.)
//!
//! Purpose: translate requests into `vfs` calls and errors into errnos; mount, unmount,
//! passthrough, notifications. Invariants: never notify while holding a lock a request needs;
//! no error but through `errno`. Must not know: the store, the index, what entries are.

mod adapter;
mod backing;
mod convert;
mod detach;
mod device;
mod errno;
mod far;
#[cfg(any(test, fuzzing))]
#[doc(hidden)]
pub mod fuzz;
mod handshake;
mod jobs;
mod listing;
mod looker;
mod notify;
mod place;
mod reply;
mod request;
mod ring;
mod serve;
mod session;
mod wire;
mod without;

pub use detach::detach;
pub use errno::errno;
pub use looker::look;
pub use place::{Identity, Whereabouts, device_of};
pub(crate) use ring::{allowed as ring_allowed, offered as ring_offered};
pub use session::{Mounted, mount};

use serde::{Deserialize, Serialize};

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

/// How the kernel's requests reach the daemon.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Transport {
    /// Through io_uring where kernel and rules allow, else through `/dev/fuse`.
    #[default]
    Auto,
    /// Through `/dev/fuse`.
    Dev,
    /// Through io_uring; refuse to mount without.
    Uring,
}

/// How a view is mounted.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct MountOptions {
    /// See [`Passthrough`].
    pub passthrough: Passthrough,
    /// See [`Transport`].
    pub transport: Transport,
    /// Other users may enter; then the kernel checks permissions.
    pub allow_other: bool,
    /// Threads that answer what comes through `/dev/fuse`, at least 2.
    pub threads: usize,
}

impl Default for MountOptions {
    fn default() -> Self {
        Self { passthrough: Passthrough::Auto, transport: Transport::Auto, allow_other: false, threads: 4 }
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
