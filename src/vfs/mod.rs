//! File-system logic without a kernel: namespace, sealed entries, drafts, control files.
//!
//! Purpose: what every operation on a view means. Invariants: sealed inode numbers are computed
//! (slot and record), everything else has a number in a table until the kernel forgets it; an
//! entry with a look-up count is leased; no lock is held across disk I/O but a draft's gate.
//! Must not know: fuser, errno values (its errors are [`VfsError`]), mounting, sockets.

mod error;

pub use error::VfsError;

use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::cache::Cache;
use crate::model::EntryKey;

/// What happens when a client stores over a sealed entry.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Overwrite {
    /// EROFS: the first result wins.
    #[default]
    Deny,
    /// The change continues in a draft that replaces the entry when sealed.
    Replace,
}

/// What a view shows and allows.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct ViewOptions {
    /// EROFS throughout; no opens reach the daemon.
    pub read_only: bool,
    /// Only these keys (leased while the view lives); implies `read_only`.
    pub scope: Option<Vec<EntryKey>>,
    /// Seal in-place drafts with parsing metadata after this much quiet.
    pub seal_quiet: Option<Duration>,
    /// Storing over a sealed entry.
    pub overwrite: Overwrite,
}

/// One mount's view of a cache.
pub struct View {
    _cache: Cache,
    _options: ViewOptions,
}

#[allow(unused_variables, clippy::todo)]
impl View {
    /// Makes a view and registers it with the cache as a holder.
    pub fn new(cache: Cache, options: ViewOptions) -> Result<Arc<View>, VfsError> {
        todo!()
    }
}
