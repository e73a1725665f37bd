//! How the memory that a process may take is divided among what it keeps.
//!
//! Invariant: the shares and what the program needs for itself are the whole, so that whoever gets more takes it from another
//! here. What is held for open files is no cache and not counted; of what kernels know, they are asked to forget what is more.
//! Must not know: what is kept.

use std::sync::atomic::{AtomicU64, Ordering};

use super::Cache;
use crate::model::units::Bytes;

/// What the program takes before it keeps anything of a store: its code, what threads work with, and SQLite's
/// pages (8 MiB for the writer, 1 MiB for each reader).
const ITSELF: u64 = 32 << 20;

/// Bytes for each.
pub(super) struct Shares {
    /// The keys of all entries, and what their top directories look like.
    pub keys: usize,
    /// Manifests and location tables in use.
    pub manifests: usize,
    /// Parts of large manifests.
    pub peeks: usize,
    /// What kernels know: inodes of drafts, and entries.
    pub kernels: usize,
}

impl Shares {
    pub fn of(memory: Bytes) -> Shares {
        let rest = memory.0.saturating_sub(ITSELF) as usize;
        let (keys, manifests, peeks) = (rest / 2, rest / 4, rest / 8);
        Shares { keys, manifests, peeks, kernels: rest - keys - manifests - peeks }
    }
}

/// Bytes that preparing an entry takes for each of its files, until it is committed.
pub(super) const SEALED_FILE: u64 = 512;

/// About how much memory was let go in many small pieces, which the allocator keeps for itself unless it is told.
#[derive(Default)]
pub(super) struct LetGo(AtomicU64);

impl Cache {
    /// Says that so many bytes were let go.
    pub(crate) fn note_let_go(&self, bytes: u64) {
        self.inner.let_go.0.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Whether at least so many bytes were let go since this said so last: there may be something for the system.
    pub fn has_let_go(&self, bytes: u64) -> bool {
        let enough = |let_go| (let_go >= bytes).then_some(0);
        self.inner.let_go.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, enough).is_ok()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_are_the_whole_and_the_default_is_enough_for_more_than_a_million_keys() {
        for mib in [0, 16, 33, 48, 128, 4096] {
            let s = Shares::of(Bytes(mib << 20));
            let sum = (s.keys + s.manifests + s.peeks + s.kernels) as u64 + ITSELF;
            assert_eq!(sum, (mib << 20).max(ITSELF), "{mib} MiB");
        }
        assert!(Shares::of(crate::cache::Limits::default().memory).keys > 1_250_000 * 39);
    }
}
