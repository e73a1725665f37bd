//! How many descriptors open files may take.
//!
//! Invariant: some stay for everything else, so that who opens very many files keeps nobody from reading. Must not know:
//! what is open.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};

use super::error::{Result, VfsError};

/// Descriptors that are left, but no more than a quarter of all.
const LEFT: u64 = 1024;

/// Handles of all views: what they take is the process's.
static OPEN: AtomicU64 = AtomicU64::new(0);

/// A handle's descriptor, until it is dropped.
pub(super) struct Counted(());

impl Counted {
    /// Counts one more; ENFILE when there is none to spare.
    pub fn one() -> Result<Counted> {
        static MOST: OnceLock<u64> = OnceLock::new();
        let most = *MOST.get_or_init(|| {
            let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
            limit - LEFT.min(limit / 4)
        });
        let before = OPEN.fetch_add(1, Ordering::Relaxed);
        let counted = Counted(());
        if before < most { Ok(counted) } else { Err(VfsError::Draft(Errno::ENFILE)) }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        OPEN.fetch_sub(1, Ordering::Relaxed);
    }
}
